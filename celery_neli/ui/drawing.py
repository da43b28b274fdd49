"""Pictures as inline SVG, without text in them, so that they stretch with the page; each says in words what it shows.

Shapes are told apart by their height and class, not by colour alone. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from markupsafe import Markup

from celery_neli.history.runs import Run
from celery_neli.printable import printable
from celery_neli.timeline import Term
from celery_neli.ui.run_index import BAD, DOUBT, KINDS, OK, PER_ENTRY, RUNNING, SENT, SKIPPED, kind_of

WIDTH = 1000.0  # units across, which stretch
COLOURS = 6  # classes `m0` … `m5` of members
THINNEST = 2.5  # units of a gap, so that a short one is seen
MOST_BARS = 2_000  # terms of one role that are drawn, the newest ones

CLASSES: Mapping[str, str] = {OK: "ok", SENT: "sent", RUNNING: "run", BAD: "bad", SKIPPED: "skip", DOUBT: "doubt"}
#: How high the mark of each kind is in a strip, of 20.
_HEIGHTS: Mapping[str, int] = {OK: 12, SENT: 12, RUNNING: 8, BAD: 20, SKIPPED: 5, DOUBT: 16}
_STEP, _BAR = 7, 5
_BOX = Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" class="{}"><title>{}</title></rect>')


def colours_of(leaders: Iterable[str]) -> dict[str, int]:
    """Return the colour of each leader, in the order in which they come."""
    return {name: number % COLOURS for number, name in enumerate(dict.fromkeys(leaders))}


def timeline(terms: Sequence[Term], begin: float, end: float, colours: Mapping[str, int], label: str) -> Markup:
    """Return the terms of one role from `begin` to `end` (Unix seconds) as bars, and the time without a leader."""
    parts: list[Markup] = []
    span = max(end - begin, 1e-9)

    def bar(start: float, stop: float, kind: str, title: str, least: float = 0.0) -> None:
        left = (max(start, begin) - begin) / span * WIDTH
        width = max((min(stop, end) - begin) / span * WIDTH - left, least)
        parts.append(_BOX.format(min(left, WIDTH - least), 0.0, width, 10.0, kind, title))

    shown = [each for each in terms if (each.ended is None or each.ended >= begin)][-MOST_BARS:]
    for each in shown:
        start, stop = each.began if each.began is not None else begin, each.ended if each.ended is not None else end
        bar(start, stop, f"m{colours.get(each.leader, 0)}", f"term {each.term}: {printable(each.leader)}, {each.end}")
    for each in shown:  # above their neighbours
        if each.gap and each.began is not None and each.began > begin:
            bar(each.began - each.gap, each.began, "gap", f"{each.gap:.2f} s without a leader", THINNEST)
    if shown and not shown[-1].lives and shown[-1].ended is not None:
        bar(shown[-1].ended, end, "gap", "no leader since then", THINNEST)
    return _svg(parts, label, WIDTH, 10, "timeline", stretch=True)


def strip(kinds: Sequence[str], *, last: int = PER_ENTRY) -> Markup:
    """Return what the last runs came to as a strip, the newest at its right end, and its text alternative."""
    kinds = kinds[-last:]
    first = last - len(kinds)
    marks: dict[str, list[str]] = {}
    for place, kind in enumerate(kinds, first):
        height = _HEIGHTS[kind]
        marks.setdefault(kind, []).append(f"M{place * _STEP} {20 - height}h{_BAR}v{height}h-{_BAR}z")
    parts = [Markup('<rect class="base" y="19" width="{}" height="1"/>').format(last * _STEP)]
    parts += [Markup('<path class="{}" d="{}"/>').format(CLASSES[kind], "".join(each)) for kind, each in marks.items()]
    return _svg(parts, summary(kinds), last * _STEP, 20, "strip", stretch=True)


def summary(kinds: Sequence[str]) -> str:
    """Return what runs came to in words: `50 runs: 48 succeeded, 2 failed; the last one failed`."""
    if not kinds:
        return "no runs known"
    counts = Counter(kinds)
    told = ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if counts[kind])
    return f"{len(kinds)} {'run' if len(kinds) == 1 else 'runs'}: {told}; the last one {_last(kinds[-1])}"


def durations(runs: Sequence[Run], label: str) -> Markup:
    """Return the durations of runs, the oldest first, as bars; a run without one is a mark at the bottom."""
    most = longest(runs) or 1.0
    step = WIDTH / max(len(runs), 20)
    parts = []
    for place, run in enumerate(runs):
        kind = kind_of(run)
        height = 4.0 if run.runtime is None else max(run.runtime / most * 100, 1.5)
        said = "no duration known" if run.runtime is None else f"{run.runtime:.3g} s"
        parts.append(_BOX.format(place * step, 100 - height, step * 0.72, height, CLASSES[kind], f"{kind}, {said}"))
    return _svg(parts, label, WIDTH, 100, "plot", stretch=True)


def longest(runs: Sequence[Run]) -> float | None:
    """Return the longest duration of these runs in seconds, None without any."""
    return max((run.runtime for run in runs if run.runtime is not None), default=None)


def _last(kind: str) -> str:
    return {SENT: "was sent", RUNNING: "is running", SKIPPED: "was left out", DOUBT: "is in doubt"}.get(kind, kind)


def _svg(
    parts: Sequence[Markup], label: str, width: float, height: float, kind: str, *, stretch: bool = False
) -> Markup:
    fits = Markup(' preserveAspectRatio="none"') if stretch else ""
    made = Markup('<svg class="{}" viewBox="0 0 {:g} {:g}"{} role="img" aria-label="{}">{}</svg>')
    return made.format(kind, width, height, fits, printable(label, 400), Markup("").join(parts))
