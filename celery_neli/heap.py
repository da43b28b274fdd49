"""Due times by name: which name is due first, and where each one stands.

A binary heap whose places are indexed by name, so that one entry is moved or removed among a hundred thousand without
looking at the others. Pure: no clock, no thread, no Celery.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["DueHeap", "Node"]


class Node(NamedTuple):
    """A name and its due time (seconds, of any epoch). ``order`` breaks ties: who was put first, comes first."""

    time: float
    order: int
    name: str


class DueHeap:
    """Names by due time. `put`, `remove` and `pop` cost O(log N) and change the heap in place; `peek` costs O(1).

    Of equal times the one that was put (or moved there) first comes first. Not for several threads at once.
    """

    __slots__ = ("_next", "_nodes", "_places")

    def __init__(self) -> None:
        self._nodes: list[Node] = []
        self._places: dict[str, int] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self._nodes)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[Node]:
        """All nodes; the first is `peek()`, the others come in the heap's order, not sorted."""
        return iter(self._nodes)

    def fill(self, times: Iterable[tuple[str, float]]) -> None:
        """Begin anew with these names and times, each name once: O(N log N), at the speed of a sort."""
        self._nodes = sorted(Node(time, order, name) for order, (name, time) in enumerate(times))
        self._places = {node.name: place for place, node in enumerate(self._nodes)}
        self._next = len(self._nodes)

    def put(self, name: str, time: float) -> None:
        """Add `name`, or move it, to `time`."""
        node = Node(time, self._next, name)
        self._next += 1
        place = self._places.get(name)
        if place is None:
            place = len(self._nodes)
            self._nodes.append(node)
            self._rise(place, node)
        else:
            self._settle(place, node)

    def remove(self, name: str) -> bool:
        """Take `name` out; whether it was there."""
        place = self._places.pop(name, None)
        if place is None:
            return False
        last = self._nodes.pop()
        if last.name != name:
            self._settle(place, last)
        return True

    def peek(self) -> Node | None:
        """The first one due; None if there is none. The very object stays first until something changes."""
        return self._nodes[0] if self._nodes else None

    def pop(self) -> Node:
        """Take out the first one due. Raises `IndexError` if there is none."""
        first = self._nodes[0]
        self.remove(first.name)
        return first

    def _settle(self, place: int, node: Node) -> None:
        """Put `node` at `place`, then up or down to where it belongs."""
        if place and node < self._nodes[(place - 1) >> 1]:
            self._rise(place, node)
        else:
            self._sink(place, node)

    def _rise(self, place: int, node: Node) -> None:
        nodes, places = self._nodes, self._places
        while place:
            above = (place - 1) >> 1
            parent = nodes[above]
            if parent < node:
                break
            nodes[place] = parent
            places[parent.name] = place
            place = above
        nodes[place] = node
        places[node.name] = place

    def _sink(self, place: int, node: Node) -> None:
        nodes, places = self._nodes, self._places
        size = len(nodes)
        while (below := 2 * place + 1) < size:
            child = nodes[below]
            if below + 1 < size and nodes[below + 1] < child:
                below += 1
                child = nodes[below]
            if node < child:
                break
            nodes[place] = child
            places[child.name] = place
            place = below
        nodes[place] = node
        places[node.name] = place
