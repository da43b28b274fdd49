"""The heap of due times does what a sorted list would, for any sequence of changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from celery_neli.schedule.heap import DueHeap, Node

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES = st.sampled_from("abcdefghij")
#: Few values: ties are the point.
TIMES = st.sampled_from([0.0, 1.0, 1.5, 2.0, 3.0])


def pop(heap: DueHeap) -> Node:
    """Remove the first node due and return it."""
    first = heap.peek()
    assert first is not None
    assert heap.remove(first.name)
    return first


class Model(RuleBasedStateMachine):
    """A list of (time, order, name) that is sorted each time."""

    def __init__(self) -> None:
        super().__init__()
        self.heap = DueHeap()
        self.model: dict[str, tuple[float, int]] = {}
        self.count = 0

    @rule(name=NAMES, time=TIMES)
    def put(self, name: str, time: float) -> None:
        self.heap.put(name, time)
        self.count += 1
        self.model[name] = (time, self.count)

    @rule(name=NAMES)
    def remove(self, name: str) -> None:
        assert self.heap.remove(name) == (self.model.pop(name, None) is not None)

    @rule()
    def pop(self) -> None:
        if self.model:
            first = pop(self.heap)
            assert (first.time, first.name) == self.sorted()[0]
            del self.model[first.name]
        else:
            assert self.heap.peek() is None

    @rule(times=st.lists(st.tuples(NAMES, TIMES), unique_by=lambda pair: pair[0]))
    def fill(self, times: list[tuple[str, float]]) -> None:
        self.heap.fill(times)
        self.model = {name: (time, order) for order, (name, time) in enumerate(times)}
        self.count = len(times)

    def sorted(self) -> list[tuple[float, str]]:
        return [(time, name) for (time, _), name in sorted((place, name) for name, place in self.model.items())]

    @invariant()
    def first_and_members_agree(self) -> None:
        first = self.heap.peek()
        assert [(first.time, first.name)] == self.sorted()[:1] if first else not self.model
        assert len(self.heap) == len(self.model)
        assert {node.name: node.time for node in self.heap} == {name: time for name, (time, _) in self.model.items()}


TestModel = Model.TestCase


@given(st.lists(st.tuples(NAMES, TIMES), max_size=60))
def test_names_leave_in_the_order_of_their_times_and_ties_as_they_came(changes: list[tuple[str, float]]) -> None:
    """Whatever was moved on the way."""
    heap = DueHeap()
    expected: dict[str, tuple[float, int]] = {}
    for order, (name, time) in enumerate(changes):
        heap.put(name, time)
        expected[name] = (time, order)
    assert [pop(heap).name for _ in expected] == sorted(expected, key=expected.__getitem__)
    assert heap.peek() is None


@given(st.lists(st.tuples(NAMES, TIMES), max_size=60), TIMES)
def test_what_is_due_until_a_time_is_found(changes: list[tuple[str, float]], time: float) -> None:
    """All of it, and nothing else; the heap stays as it is."""
    heap = DueHeap()
    expected: dict[str, float] = {}
    for name, each in changes:
        heap.put(name, each)
        expected[name] = each
    assert sorted(heap.until(time)) == sorted(name for name, each in expected.items() if each <= time)
    assert len(heap) == len(expected)


def test_the_first_one_is_the_same_object_until_it_is_another_or_put_anew() -> None:
    """So one may tell by identity that nothing came in between."""
    heap = DueHeap()
    heap.fill((name, float(n)) for n, name in enumerate("abcdef"))
    first = heap.peek()
    heap.put("f", 0.5)
    heap.remove("c")
    heap.put("g", 9.0)
    assert heap.peek() is first
    heap.put("a", 0.0)
    assert heap.peek() == (0.0, 8, "a")
    assert heap.peek() is not first
    first = heap.peek()
    heap.put("b", -1.0)
    heap.remove("b")
    assert heap.peek() is not first


@pytest.mark.parametrize(
    "change",
    [
        lambda heap, name: heap.put(name, 0.5),
        lambda heap, name: heap.put(name, 1e9),
        lambda heap, name: heap.remove(name),
    ],
    ids=["to the front", "to the back", "out"],
)
def test_a_change_of_one_name_touches_few_others(change: Callable[[DueHeap, Counted], object]) -> None:
    """Of ten thousand, the comparisons that a change makes grow with the logarithm only."""
    names = [Counted(f"n{n}") for n in range(10_000)]
    heap = DueHeap()
    heap.fill((name, 1.0) for name in names)  # all tied: every comparison reaches the order
    Counted.hashed = 0
    change(heap, names[5_000])
    assert Counted.hashed < 60, "each node that moves writes its new place: one hash"


class Counted(str):
    """A name that counts how often a place was looked up or written for any of its kind."""

    __slots__ = ()
    hashed = 0

    def __hash__(self) -> int:
        Counted.hashed += 1
        return super().__hash__()
