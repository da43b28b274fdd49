"""The hash of beat_schedule that members compare."""

from __future__ import annotations

import enum
import functools
import subprocess
import sys
from collections import OrderedDict, defaultdict, deque
from dataclasses import dataclass, field
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.schedules import crontab, schedule, solar
from hypothesis import given
from hypothesis import strategies as st

from celery_neli.beat.replicated.member_notes import canonical, fingerprint


def entry(**fields: Any) -> Any:
    common = {"name": "e", "task": "t", "schedule": schedule(60), "args": (), "kwargs": {}, "options": {}}
    return SimpleNamespace(**{**common, **fields})


class Plain:
    """An object whose repr is its address."""

    def __init__(self, value: Any) -> None:
        self.value = value


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class Colour(enum.Enum):
    RED = frozenset({"r", "e", "d"})


@dataclass
class Order:
    tags: set[str] = field(default_factory=lambda: {"new", "paid", "gift"})


class Business(crontab):
    """A crontab of the user's own."""

    def __init__(self, country: str, **fields: Any) -> None:
        self.country = country
        super().__init__(**fields)


PROGRAM = """
from tests.unit.test_fingerprint import every_kind, fingerprint
print(fingerprint(every_kind()))
"""


def every_kind() -> list[Any]:
    """Entries with each kind of value whose repr differs between processes."""
    app = Celery("shop", set_as_current=False)
    values = [
        {"a", "b", "c", "d"}, frozenset("abcdef"), {"deep": [{"x", "y", "z"}]}, Colour.RED, Order(), Plain({"p", "q"}),
        Slotted({"p", "q"}), len, every_kind, lambda: None, functools.partial(print, {"u", "v"}), deque([{"s", "t"}]),
        defaultdict(list, b={"m", "n"}, a=[1]), OrderedDict(b=1, a={"k", "l"}), app, {("t", "u"): {"i", "j"}}, object(),
    ]  # fmt: skip
    entries = [entry(name=str(number), kwargs={"value": value}) for number, value in enumerate(values)]
    whens = [crontab(minute={1, 2, 30}), solar("sunset", 1, 2), Business("de", hour={3, 4})]
    return entries + [entry(name=f"when {number}", schedule=when) for number, when in enumerate(whens)]


@pytest.mark.parametrize("seed", ["1", "2", "77"])
def test_identical_entries_have_one_hash_in_every_process(seed: str) -> None:
    """Whatever the seed of Python's hashes and the addresses of objects are."""
    told = subprocess.run(
        [sys.executable, "-c", PROGRAM], env={"PYTHONHASHSEED": seed, "PYTHONPATH": "."}, capture_output=True, text=True
    )
    assert told.stdout.strip() == fingerprint(every_kind()), told.stderr


def test_the_order_of_a_dict_does_not_matter() -> None:
    """Two equal dicts have one hash, and entries may come in any order."""
    one = [entry(kwargs={"a": 1, "b": 2}), entry(name="f")]
    other = [entry(name="f"), entry(kwargs={"b": 2, "a": 1})]
    assert fingerprint(one) == fingerprint(other)


def test_an_ordinary_schedule_keeps_the_hash_that_it_had() -> None:
    """A beat of an earlier release beside this one does not disagree."""
    ordinary = [
        entry(args=(1, "a"), kwargs={"a": [None, 2.5], "b": {"c": (True,)}}, options={"queue": "q"}),
        entry(name="f", schedule=schedule(timedelta(minutes=5))),
    ]
    assert fingerprint(ordinary) == "d8a4c9c9"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (schedule(3600), schedule(3601)),
        (schedule(60), schedule(60, relative=True)),
        (crontab(minute=5), crontab(hour=5)),
        (crontab(minute={1, 2}), crontab(minute={1, 3})),
        (Business("de"), Business("fr")),
        ({"a": {1, 2}}, {"a": {1, 3}}),
        (Plain(1), Plain(2)),
        (Slotted(1), Slotted(2)),
        (every_kind, entry),
        (Order(), Order({"new"})),
        ({1: "a"}, {"1": "a"}),
        ((1,), [1]),
        (set(), {}),
    ],
)
def test_what_differs_has_another_hash(one: Any, other: Any) -> None:
    """Also where the repr is the same: an interval's repr rounds."""
    assert canonical(one) != canonical(other)


NESTED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.lists(inner).map(tuple),
)


@given(NESTED)
def test_plain_values_are_told_as_their_repr(value: Any) -> None:
    """But for the order of dicts."""

    def ordered(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: ordered(value[key]) for key in sorted(value, key=repr)}
        return type(value)(map(ordered, value)) if isinstance(value, (list, tuple)) else value

    assert canonical(value) == repr(ordered(value))


def test_what_refers_to_itself_or_cannot_be_shown_is_no_error() -> None:
    """A fingerprint is taken on a thread of its own, where an error would be lost."""

    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError("no repr")

    loop: list[Any] = []
    loop.append(loop)
    round_trip = Plain(None)
    round_trip.value = round_trip
    for value in (loop, round_trip, Broken(), "\ud800"):
        assert canonical(value) == canonical(value)
    assert fingerprint([entry(kwargs={"x": "\ud800"})])
