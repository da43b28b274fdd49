"""Times of calls, in rounds that alternate."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(slots=True)
class Timed:
    """Seconds by the clock, and of CPU by all threads of this process."""

    wall: float = 0.0
    cpu: float = 0.0

    def __truediv__(self, count: int) -> Timed:
        return Timed(self.wall / count, self.cpu / count)


@contextmanager
def timed(*, collecting: bool = False) -> Iterator[Timed]:
    """Time what is inside, with Python's garbage collector at rest unless `collecting`."""
    took = Timed()
    if not collecting:
        gc.disable()
    cpu, wall = time.process_time(), time.perf_counter()
    try:
        yield took
    finally:
        took.wall, took.cpu = time.perf_counter() - wall, time.process_time() - cpu
        gc.enable()


def per_call(call: Callable[[], object], times: int) -> Timed:
    """One call's time, of so many."""
    gc.collect()
    with timed() as took:
        for _ in range(times):
            call()
    return took / times


def alternate(cases: Mapping[str, Callable[[], Timed]], rounds: int) -> dict[str, list[Timed]]:
    """Each case once a round; the one that begins changes from round to round."""
    names = list(cases)
    found: dict[str, list[Timed]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(cases[name]())
    return found


def ratio(upper: list[float], lower: list[float]) -> float:
    """The median of the ratios of two cases, round by round."""
    return statistics.median(a / b for a, b in zip(upper, lower, strict=True))


def quantile(values: list[float], share: float) -> float:
    """The value below which that share of them lies; the highest if they are few."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
