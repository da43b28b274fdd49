"""The heap of due times as Celery knows it: a list of `event_t`, the first of which is due first."""

from __future__ import annotations

from collections.abc import Iterable, MutableSequence, Sequence
from typing import TYPE_CHECKING, Any

from celery.beat import event_t

from celery_neli.schedule.heap import DueHeap

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["PRIORITY", "HeapView"]

#: Celery gives every entry the same.
PRIORITY = 5


class HeapView(MutableSequence[Any]):
    """`Scheduler._heap` over a `DueHeap`: reads as Celery's list of (time, priority, entry), and can be changed.

    An event goes to where its time belongs, wherever it was inserted, and replaces the one of the same entry. Of the
    entries, those of ``schedule`` are shown.
    """

    def __init__(self, schedule: Mapping[str, Any], events: Iterable[Any] = ()) -> None:
        self.heap = DueHeap()
        self.schedule = schedule
        #: Events that were put here, to be shown as the very same objects.
        self._given: dict[str, Any] = {}
        events = list(events)
        self._given.update((event[2].name, event) for event in events)
        self.heap.fill((name, event[0]) for name, event in self._given.items())

    def __len__(self) -> int:
        return len(self.heap)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self._event(node) for node in list(self.heap)[place]]
        if place == 0 and (first := self.heap.peek()) is not None:
            return self._event(first)
        return self._event(list(self.heap)[place])

    def __setitem__(self, place: Any, event: Any) -> None:
        if isinstance(place, slice):
            raise TypeError("one event at a time: they go to where their times belong")
        del self[place]
        self.insert(place, event)

    def __delitem__(self, place: Any) -> None:
        for event in self[place] if isinstance(place, slice) else [self[place]]:
            self.heap.remove(event[2].name)
            self._given.pop(event[2].name, None)

    def insert(self, place: int, event: Any) -> None:
        """Put the event in, or move the one of the same entry; its time says where it goes, not ``place``."""
        name = event[2].name
        self._given[name] = event
        self.heap.put(name, event[0])
        settle = getattr(self.schedule, "settle", None)
        if settle is not None:
            settle(name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(list(self))

    def _event(self, node: Any) -> Any:
        given = self._given.get(node.name)
        if given is not None and given[0] == node.time and given[2] is self.schedule.get(node.name, given[2]):
            return given
        return event_t(node.time, PRIORITY, self.schedule[node.name])
