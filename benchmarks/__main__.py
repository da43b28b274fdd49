"""`make bench`: alternating rounds in one run, medians, one JSON line at the end. Compare ratios, not times."""

from __future__ import annotations

import json

from benchmarks import ask, dispatch, gate, idle, throughput, tick


def main() -> None:
    parts = {"ask": ask, "gate": gate, "throughput": throughput, "dispatch": dispatch, "idle": idle, "tick": tick}
    results = {name: part.run() for name, part in parts.items()}
    for name, rows in results.items():
        print(name)
        for label, value in rows.items():
            print(f"  {label:<58} {value:>10}")
    print(json.dumps(results))


main()
