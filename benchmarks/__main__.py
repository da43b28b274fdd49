"""`make bench`: alternating rounds in one run, medians, one JSON line at the end. Compare ratios, not times."""

from __future__ import annotations

import json

from benchmarks import ask, dispatch, idle, tick


def main() -> None:
    results = {"ask": ask.run(), "dispatch": dispatch.run(), "idle": idle.run(), "tick": tick.run()}
    for name, rows in results.items():
        print(name)
        for label, value in rows.items():
            print(f"  {label:<58} {value:>10}")
    print(json.dumps(results))


main()
