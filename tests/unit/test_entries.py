"""The schedule's mapping is a dict that knows what was changed in it; the heap's view is Celery's list of events."""

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from celery.beat import ScheduleEntry, event_t
from celery.schedules import schedule
from hypothesis import given
from hypothesis import strategies as st

from celery_neli.beat.replicated.entries import Entries, HeapView

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES = st.sampled_from("abc")
CHANGES: dict[str, Callable[[Any, str], Any]] = {
    "set": lambda mapping, name: mapping.__setitem__(name, object()),
    "delete": lambda mapping, name: mapping.__delitem__(name),
    "pop": lambda mapping, name: mapping.pop(name),
    "pop or not": lambda mapping, name: mapping.pop(name, None),
    "setdefault": lambda mapping, name: mapping.setdefault(name, 1),
    "update": lambda mapping, name: mapping.update({name: object()}),
    "update, pairs": lambda mapping, name: mapping.update([(name, object())]),
    "update, keyword": lambda mapping, name: mapping.update(**{name: object()}),
    "or": lambda mapping, name: mapping.__ior__({name: object()}),
    "popitem": lambda mapping, name: mapping.popitem(),
    "clear": lambda mapping, name: mapping.clear(),
}


@given(st.lists(st.tuples(st.sampled_from(sorted(CHANGES)), NAMES)))
def test_every_way_to_change_a_dict_is_noticed_and_none_else(changes: list[tuple[str, str]]) -> None:
    """Against a plain dict: the same content, the same errors; and the changes are those that there were."""
    entries, plain = Entries({"a": 0, "b": 1}), {"a": 0, "b": 1}
    entries.changes()
    for what, name in changes:
        before = dict(entries)
        outcomes = []
        for mapping in (entries, plain):
            try:
                CHANGES[what](mapping, name)
                outcomes.append("")
            except KeyError as error:
                outcomes.append(repr(error))
        assert outcomes[0] == outcomes[1]
        assert list(entries) == list(plain)
        differ = {each for each in before.keys() | entries.keys() if before.get(each) is not entries.get(each)}
        assert entries.changed == bool(differ)
        assert set(entries.changes()) == differ
        assert not entries.changed


def test_what_was_done_about_a_change_can_be_said() -> None:
    """And what was changed where nobody saw it."""
    entries = Entries()
    entries["z"] = 0
    assert list(entries.changes()) == [], "whoever asks first looks at every entry anyway"
    entries.update({"a": 0, "b": 1})
    entries.settle("a")
    entries.settle("c")
    assert list(entries.changes()) == ["b"]
    entries.note(["a"])
    assert list(entries.changes()) == ["a"]


def test_a_copy_is_a_plain_dict() -> None:
    """Nobody asks it for changes."""
    entries = Entries({"a": 0})
    for duplicate in (copy.copy(entries), entries.copy(), pickle.loads(pickle.dumps(entries))):  # noqa: S301 - our own
        assert type(duplicate) is dict
        assert duplicate == entries


class Entry:
    def __init__(self, name: str) -> None:
        self.name = name


def test_the_view_shows_the_heap_as_celerys_list() -> None:
    """The first is due first; they are the events that were put, or made of the schedule's entries."""
    schedule = Entries({name: Entry(name) for name in "abc"})
    late, early = event_t(3.0, 5, schedule["a"]), event_t(1.0, 5, schedule["b"])
    view = HeapView(schedule, [late, early])
    view.heap.put("c", 2.0)
    assert view[0] is early
    assert len(view) == 3
    assert list(view) == [early, event_t(3.0, 5, schedule["a"]), (2.0, 5, schedule["c"])] or view[1] in (late, view[2])
    assert sorted(event.time for event in view) == [1.0, 2.0, 3.0]
    assert view[:1] == [early]
    schedule["b"] = Entry("b")
    assert view[0].entry is schedule["b"], "not the event of an entry that was replaced"


def test_an_event_goes_where_its_time_belongs() -> None:
    """Wherever it was inserted; one of the same entry is moved."""
    schedule = Entries({name: Entry(name) for name in "ab"})
    view = HeapView(schedule, [event_t(1.0, 5, schedule["a"])])
    schedule.changes()
    schedule.note("b")
    view.insert(0, event_t(2.0, 5, schedule["b"]))
    assert [event.entry.name for event in view] == ["a", "b"]
    assert "b" not in schedule.changes(), "whoever puts an event has seen to the change"
    view[0] = event_t(9.0, 5, schedule["a"])
    assert [event.entry.name for event in view] == ["b", "a"]
    view.insert(5, event_t(0.5, 5, schedule["a"]))
    assert [event.time for event in view] == [0.5, 2.0]
    del view[0]
    assert view == [event_t(2.0, 5, schedule["b"])]
    with pytest.raises(IndexError):
        view[1]


@pytest.mark.parametrize("name", [None, "other"])
def test_an_entry_has_the_name_that_it_is_set_under(name: str | None) -> None:
    """A tick that ran it under another name would find it due again at once, and send without end."""
    entries = Entries()
    entries["e"] = ScheduleEntry(name, "t", schedule=schedule(5), app=Celery("test", set_as_current=False))
    entries.update(f=ScheduleEntry(name, "t", schedule=schedule(5), app=Celery("test", set_as_current=False)))
    assert [entry.name for entry in entries.values()] == ["e", "f"]
