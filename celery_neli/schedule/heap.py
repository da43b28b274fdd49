"""A heap of due times by name.

A binary heap whose places are indexed by name, so that one of a hundred thousand entries moves or leaves without a
search. It is kept in arrays, which take a third of the memory of as many objects, and which the garbage collector does
not scan. Pure.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Node(NamedTuple):
    """A name and its due time (seconds, of any epoch). Of equal times the lower ``order`` comes first."""

    time: float
    order: int
    name: str


class DueHeap:
    """Names by due time. `put` and `remove` cost O(log N) and change the heap in place; `peek` costs O(1).

    Of equal times, the name that was put there first comes first. For one thread at a time.
    """

    __slots__ = ("_first", "_names", "_next", "_orders", "_places", "_times")

    def __init__(self) -> None:
        # The time, order and name at each place of the heap, and the place of each name.
        self._times = array("d")
        self._orders = array("q")
        self._names: list[str] = []
        self._places: dict[str, int] = {}
        self._next = 0
        self._first: Node | None = None

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[Node]:
        """Iterate over all nodes: `peek()` first, the others in the heap's order, not sorted."""
        return map(Node, self._times, self._orders, self._names)

    def fill(self, times: Iterable[tuple[str, float]]) -> None:
        """Replace all that is there by these names and times, each name once: O(N log N), at the speed of a sort."""
        nodes = sorted((time, order, name) for order, (name, time) in enumerate(times))
        self._times = array("d", [time for time, _, _ in nodes])
        self._orders = array("q", [order for _, order, _ in nodes])
        self._names = [name for _, _, name in nodes]
        self._places = {name: place for place, name in enumerate(self._names)}
        self._next = len(nodes)
        self._first = None

    def put(self, name: str, time: float) -> None:
        """Add ``name`` at ``time``, or move it there."""
        order, self._next = self._next, self._next + 1
        place = self._places.get(name)
        if place is None:
            place = len(self._names)
            self._times.append(time)
            self._orders.append(order)
            self._names.append(name)
        self._settle(place, time, order, name)

    def remove(self, name: str) -> bool:
        """Remove ``name``; return True if it was there."""
        place = self._places.pop(name, None)
        if place is None:
            return False
        time, order, last = self._times.pop(), self._orders.pop(), self._names.pop()
        if place < len(self._names):
            self._settle(place, time, order, last)
        if not place:
            self._first = None
        return True

    def peek(self) -> Node | None:
        """Return the first node due, None if there is none: the same object until another comes first or it is put
        again.
        """
        if self._first is None and self._names:
            self._first = Node(self._times[0], self._orders[0], self._names[0])
        return self._first

    def until(self, time: float) -> Iterator[str]:
        """Yield the names due at or before ``time``, in the heap's order: O(their number). The heap must not change
        during the iteration.
        """
        times, places = self._times, [0]
        while places:
            place = places.pop()
            if place < len(times) and times[place] <= time:
                yield self._names[place]
                places += (2 * place + 1, 2 * place + 2)

    def second(self) -> float | None:
        """Return the time of the second node due; None if there are not two."""
        return min(self._times[1:3], default=None)

    def _settle(self, place: int, time: float, order: int, name: str) -> None:
        """Put a node at ``place``, then move it up or down to where it belongs."""
        times, orders = self._times, self._orders
        changes_first = not place
        while place:
            above = (place - 1) >> 1
            other = times[above]
            if other < time or (other == time and orders[above] < order):
                break
            self._move(above, place)
            place = above
        if changes_first or not place:
            self._first = None
        size = len(times)
        while (below := 2 * place + 1) < size:
            right, other = below + 1, times[below]
            if right < size and (times[right], orders[right]) < (other, orders[below]):
                below, other = right, times[right]
            if time < other or (time == other and order < orders[below]):
                break
            self._move(below, place)
            place = below
        times[place], orders[place], self._names[place] = time, order, name
        self._places[name] = place

    def _move(self, source: int, target: int) -> None:
        self._times[target] = self._times[source]
        self._orders[target] = self._orders[source]
        name = self._names[target] = self._names[source]
        self._places[name] = target
