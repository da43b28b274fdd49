"""The results on a terminal: sizes down, cases across."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.results import Claim, Figure

WIDTH = 13


def print_part(figures: Iterable[Figure]) -> None:
    """One table for each metric and transport."""
    groups: dict[tuple[str, str, str | None, str], list[Figure]] = {}
    for figure in figures:
        groups.setdefault((figure.part, figure.metric, figure.transport, figure.unit), []).append(figure)
    for (part, metric, transport, unit), rows in groups.items():
        where = f", {transport}" if transport else ""
        print(f"\n{part}: {metric}{where} ({unit})")
        cases = list(dict.fromkeys(row.case for row in rows))
        if all(row.size is None for row in rows):
            for row in rows:
                print(f"  {row.case:<58} {_shown(row):>{WIDTH}}")
            continue
        width = max(WIDTH, *(len(case) + 1 for case in cases))
        print(" " * 10 + "".join(f"{case:>{width}}" for case in cases))
        for size in sorted({row.size for row in rows if row.size is not None}):
            cells = {row.case: _shown(row) for row in rows if row.size == size}
            print(f"{size:>10}" + "".join(f"{cells.get(case, ''):>{width}}" for case in cases))
        for why in dict.fromkeys(row.why for row in rows if row.why):
            print(f"  not run: {why}")


def print_claims(claims: Iterable[Claim]) -> None:
    """What is promised, and what was found."""
    print("\nwhat is promised, and what this run found")
    for claim in claims:
        bound = f">= {claim.least:g}" if claim.least is not None else f"<= {claim.most:g}"
        print(f"  {claim.what:<74} {claim.found:>10.3g}  {bound:<9} {'' if claim.met else 'MISSED'}")


def _shown(row: Figure) -> str:
    value = row.value
    if value is None:
        return "not run"
    if value == 0 or 0.1 <= abs(value) < 100:
        return f"{value:.2f}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2g}"
