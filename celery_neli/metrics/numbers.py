"""Keeps the numbers of one process: adding is quick from any thread, and reading gives a copy."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from celery_neli.metrics.catalogue import Metric
from celery_neli.threads import original

Labels = tuple[str, ...]


class Distribution:
    """How many values fell into each bucket of a histogram; the last bucket has no upper bound."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...], counts: tuple[int, ...] = (), total: float = 0.0) -> None:
        self.bounds, self.counts, self.sum = bounds, list(counts or [0] * (len(bounds) + 1)), total

    def add(self, value: float) -> None:
        """Count one value; a bound belongs to its bucket."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def copy(self) -> Distribution:
        """Return one that does not change."""
        return Distribution(self.bounds, tuple(self.counts), self.sum)


@dataclass(frozen=True, slots=True)
class Family:
    """A metric and its values at one moment, by the values of its labels; those of a histogram are `Distribution`s."""

    metric: Metric
    values: Mapping[Labels, Any]


class Numbers:
    """Counters, gauges and histograms. Any thread, in signal handlers too; the lock is held for microseconds.

    It is no lock of gevent's, for threads of the operating system take it as well, and it can be taken again by the
    thread that has it: a signal handler that ends a beat may cut in anywhere.
    """

    def __init__(self) -> None:
        self._lock: Any = original("_thread", "RLock")()
        self._values: dict[Metric, dict[Labels, Any]] = {}
        self.observer: Callable[[Metric, Labels, float], None] | None = None
        """Called with each value of a histogram, too; it must not block."""

    def add(self, metric: Metric, labels: Labels, amount: float = 1) -> None:
        """Add to a counter."""
        with self._lock:
            values = self._values.setdefault(metric, {})
            values[labels] = values.get(labels, 0) + amount

    def rise(self, metric: Metric, labels: Labels, value: float) -> None:
        """Set a gauge, unless it is higher."""
        with self._lock:
            values = self._values.setdefault(metric, {})
            values[labels] = max(value, values.get(labels, value))

    def observe(self, metric: Metric, labels: Labels, *observed: float) -> None:
        """Count values of a histogram."""
        with self._lock:
            values = self._values.setdefault(metric, {})
            found = values.get(labels)
            if found is None:
                found = values[labels] = Distribution(metric.buckets)
            for value in observed:
                found.add(value)
        if (observer := self.observer) is not None:
            for value in observed:
                observer(metric, labels, value)

    def read(self) -> list[Family]:
        """Return everything, as it is now."""
        with self._lock:
            return [
                Family(metric, {each: v.copy() if isinstance(v, Distribution) else v for each, v in values.items()})
                for metric, values in self._values.items()
            ]


class LowWater:
    """The lowest value since the last reading, and for `least` seconds at least, so that several readers see it."""

    def __init__(self, least: float) -> None:
        self._least = least
        self._present = self._before = float("inf")
        self._turned = float("-inf")

    def add(self, value: float) -> None:
        """Note a value; for one thread."""
        self._present = min(self._present, value)

    def read(self, now: float) -> float:
        """Return the lowest value; infinity if there is none. `now` is in seconds."""
        lowest = min(self._present, self._before)
        if now - self._turned >= self._least:
            self._turned, self._before, self._present = now, self._present, float("inf")
        return lowest
