"""From a schedule in the configuration to the first tick's end, by the number of entries."""

from __future__ import annotations

import gc
from functools import partial

from benchmarks.brokers import broker
from benchmarks.contenders import CONTENDERS
from benchmarks.measure import Timed, alternate, timed
from benchmarks.results import Results

SIZES = (10, 1_000, 10_000, 100_000)
REDBEATS_MOST = 1_000
ROUNDS = 3


def run(bench: Results) -> None:
    with broker("memory") as memory:
        assert memory is not None

        def start(case: str, size: int) -> Timed:
            each = CONTENDERS[case](memory, size)
            gc.collect()
            with timed(collecting=True) as took:
                each.build()
            each.close()
            return took

        for size in bench.options.chosen(SIZES):
            cases = ["neli", "neli led", "celery"]
            most = max(SIZES) if bench.options.full else REDBEATS_MOST
            if memory.redis is not None and size <= most:
                cases.append("redbeat")
            found = alternate({case: partial(start, case, size) for case in cases}, min(ROUNDS, bench.options.rounds))
            for case, took in found.items():
                bench.add(
                    "startup", case, "start-up to the first tick", "ms", [1e3 * each.wall for each in took], size=size
                )
