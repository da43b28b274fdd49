"""What a scheduler and its entries weigh: each in a process of its own, over what its configuration weighs."""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks.results import Results

SIZES = (1_000, 100_000)
ROUNDS = 2
CASES = ("neli", "neli led", "celery")
#: RSS, and in another run, for it costs memory itself, what Python has allocated (tracemalloc).
WEIGHT = """
import gc, json, logging, os, sys, tracemalloc
import psutil
from benchmarks.brokers import broker
from benchmarks.contenders import CONTENDERS
logging.disable(logging.WARNING)
case, size, traced = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "traced"
with broker("memory", redis=False) as memory:
    first = CONTENDERS[case](memory, 1)  # what every scheduler needs
    first.build()
    each = CONTENDERS[case](memory, size)
    gc.collect()
    weigh = (lambda: tracemalloc.get_traced_memory()[0]) if traced else (lambda: psutil.Process().memory_info().rss)
    if traced:
        tracemalloc.start()
    before = weigh()
    each.build()
    each.tick()
    gc.collect()
    print(json.dumps(weigh() - before), flush=True)
    os._exit(0)
"""


def run(bench: Results) -> None:
    for size in bench.options.chosen(SIZES):
        values: dict[tuple[str, str], list[float]] = {}
        for _ in range(min(ROUNDS, bench.options.rounds)):
            for case in CASES:
                values.setdefault((case, "RSS"), []).append(_weight(case, size, "rss"))
        for case in CASES:
            values[case, "tracemalloc"] = [_weight(case, size, "traced")]  # is always the same
        for (case, metric), megabytes in values.items():
            bench.add("memory", case, metric, "MB", megabytes, size=size)
        if size >= 100_000:
            for case in ("neli", "neli led"):
                for metric in ("RSS", "tracemalloc"):
                    ours, celerys = min(values[case, metric]), min(values["celery", metric])
                    bench.claim(f"memory at {size:,} entries ({metric}): {case} / Celery's", ours / celerys, most=1.2)


def _weight(case: str, size: int, how: str) -> float:
    """MB."""
    command = [sys.executable, "-c", WEIGHT, case, str(size), how]
    told = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return float(json.loads(told.stdout)) / 1e6
