"""When pauses end by themselves. Pure but for the clock that it is given."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

from celery_neli.schedule.heap import DueHeap
from celery_neli.schedule_topic.codec import Definition
from celery_neli.schedule_topic.pauses import effective


class PauseEnds:
    """The entries whose pauses have an end, by the clock ``moment`` (Unix seconds)."""

    def __init__(self, moment: Callable[[], float]) -> None:
        self._moment, self.heap = moment, DueHeap()

    def stand(self, name: str, definition: Definition | None) -> Definition | None:
        """Return the definition as it is at present, and note when that changes."""
        self.heap.remove(name)
        if definition is None or definition.until is None:
            return definition
        standing = effective(definition, (), self._moment())
        if standing.next_change < math.inf:
            self.heap.put(name, standing.next_change)
        return replace(definition, paused=standing.paused, since=standing.since)

    def forget(self, name: str) -> None:
        """Forget an entry that is gone."""
        self.heap.remove(name)

    def due(self) -> Iterator[str]:
        """Yield the entries whose pauses have ended since the last call."""
        while (first := self.heap.peek()) is not None and first.time <= self._moment():
            self.heap.remove(first.name)
            yield first.name

    def wait(self) -> float:
        """Return the seconds until the next pause ends, infinity without any."""
        first = self.heap.peek()
        return math.inf if first is None else max(0.0, first.time - self._moment())
