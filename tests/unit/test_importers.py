"""What becomes of each entry of another scheduler: all is checked, then all is written, and nothing newer is lost."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest

from celery_neli.exceptions import NeliError
from celery_neli.periodic.importers import Found, Row, Source, carry_over, left_out
from celery_neli.periodic.importers.stores import of_redbeat
from celery_neli.schedule_topic.codec import ENTRY, STATE, Definition, State
from tests.unit.schedules import NOON, Desk

LAST = NOON - 3600


@pytest.fixture
def desk() -> Desk:
    return Desk()


def carried(desk: Desk, *found: Found | Row, mirrors: bool = False, **options: bool) -> list[Row]:
    source = Source(what="elsewhere", entries=found, mirrors=mirrors)
    return carry_over(source, desk.editor(), **options)


def entry(name: str = "e", **given: Any) -> Found:
    fields: dict[str, Any] = {"task": "t", "schedule": "PT5M", "last": LAST, "runs": 7, **given}
    return Found(name=name, **fields)


def test_an_entry_goes_on_where_it_was(desk: Desk) -> None:
    """Slots since its last run are owed, those before are not; its count goes on; the move is noted."""
    (row,) = carried(desk, entry(args=[1], options={"queue": "q"}))
    found = desk.store.definition("e")
    assert (row.action, row.last, row.runs) == ("added", LAST, 7)
    assert (found.task, found.schedule, found.args, found.options) == ("t", "PT5M", [1], {"queue": "q"})
    assert found.since == LAST
    assert (found.changes[0].by, found.changes[0].what) == ("alice", "imported from elsewhere")
    assert desk.look("e").next == LAST + 300


def test_state_that_is_carried_over_gives_way_to_a_leaders(desk: Desk) -> None:
    """Its term is below that of any leader; and `done`, which knows nothing of this entry, does not cover it."""
    carried(desk, entry())
    assert desk.store.state("e") == State(last=LAST, runs=7, epoch=-1, since=LAST, open=True)


def test_the_state_is_there_before_its_entry(desk: Desk) -> None:
    """A beat that leads takes an entry as new as soon as it sees it: the count would begin at nought."""
    carried(desk, entry())
    assert [each.kind for writes in desk.store.writes for each in writes] == [STATE, ENTRY]


def test_an_import_over_the_limit_of_entries_writes_no_state_either(desk: Desk) -> None:
    desk.app.conf.neli_entry_limit = 1
    with pytest.raises(NeliError, match="neli_entry_limit = 1: there are 0 entries, and 2 more"):
        carried(desk, entry("a"), entry("b"))
    assert desk.store.writes == []


def test_an_entry_that_never_ran_begins_now_or_when_it_is_said_to(desk: Desk) -> None:
    """It has no state."""
    carried(desk, entry("new", last=None, runs=0), entry("later", last=None, runs=0, since=NOON + 999))
    assert desk.store.definition("new").since == NOON
    assert desk.store.definition("later").since == NOON + 999
    assert desk.store.state("new") is None


def test_of_an_entry_of_beat_schedule_the_state_is_carried_over(desk: Desk) -> None:
    """And that it was paused."""
    desk.app.conf.beat_schedule["off"] = {"task": "t", "schedule": 60.0}
    rows = carried(desk, entry("static"), entry("off", paused=True))
    assert [row.action for row in rows] == ["state", "state"]
    assert desk.store.state("static") == State(last=LAST, runs=7, epoch=-1, open=True)
    assert desk.store.definition("static") is None
    assert desk.store.definition("off").paused


def test_what_ran_elsewhere_after_its_last_run_here_is_not_owed(desk: Desk) -> None:
    """Of a schedule that went back and forth; the state here stays."""
    here = State(last=LAST - 600, runs=3, epoch=9)
    desk.store.set("static", here)
    carried(desk, entry("static"))
    assert desk.store.state("static") == here
    assert (desk.store.definition("static").since, desk.store.definition("static").paused) == (LAST, False)


def test_newer_state_is_left_alone(desk: Desk) -> None:
    """The same import a second time changes nothing."""
    newer = State(last=NOON, runs=9, epoch=9)
    desk.store.set("static", newer)
    desk.store.set("e", newer)
    rows = carried(desk, entry("static"), entry("e"))
    assert [row.action for row in rows] == ["kept", "added"]
    assert (desk.store.state("static"), desk.store.state("e")) == (newer, newer)


def test_an_entry_that_is_here_is_kept_unless_it_is_to_be_replaced(desk: Desk) -> None:
    """Its history goes on."""
    desk.put("e", "PT1M")
    (kept,) = carried(desk, entry())
    assert (kept.action, kept.state, kept.edit) == ("kept", None, None)
    assert desk.store.definition("e").schedule == "PT1M"
    (replaced,) = carried(desk, entry(paused=True), replacing=True)
    found = desk.store.definition("e")
    assert (replaced.action, found.schedule, found.paused) == ("replaced", "PT5M", True)
    assert [change.what for change in found.changes] == ["added", "imported from elsewhere"]


def test_what_cannot_be_carried_over_is_listed_with_its_reason(desk: Desk) -> None:
    """The others are carried over."""
    desk.store.values[ENTRY, "new"] = b'{"v":99}'
    desk.store.set("hidden", Definition(task="t", schedule="PT1M"))
    desk.app.conf.beat_schedule["hidden"] = {"task": "t", "schedule": 60.0}
    rows = carried(
        desk,
        entry("a", schedule="often"),
        entry("b", args=[object()]),
        entry("c", schedule="at:2026-06-01T10:00:00Z"),  # before its last run
        left_out("d", NeliError("it expired")),
        entry("new"),
        entry("hidden"),
        entry("good"),
    )
    assert [row.action for row in rows] == ["left out"] * 6 + ["added"]
    for row, reason in zip(
        rows, ("often", "args", "never comes", "expired", "version", "at runtime, too"), strict=False
    ):
        assert reason in row.notes[0]
    assert [each.name for writes in desk.store.writes for each in writes if each.kind == ENTRY] == ["good"]


def test_a_one_off_that_is_overdue_is_carried_over(desk: Desk) -> None:
    """Beat was down when its time came: it is a missed slot."""
    carried(desk, entry(schedule="at:2026-06-01T11:30:00Z", last=None, runs=0, since=LAST))
    assert desk.look("e").next == NOON - 1800


def test_a_mirror_of_beat_schedule_brings_no_entry_back(desk: Desk) -> None:
    """What was deleted from beat_schedule since then stays deleted."""
    rows = carried(desk, entry("static"), entry("gone"), mirrors=True)
    assert [row.action for row in rows] == ["state", "left out"]
    assert "beat_schedule has no such entry" in rows[1].notes[0]


def test_a_dry_run_writes_nothing_and_says_the_same(desk: Desk) -> None:
    """Its rows are those of the import."""
    dry = carried(desk, entry(), entry("static"), dry_run=True)
    assert desk.store.writes == []
    assert carried(desk, entry(), entry("static")) == dry
    assert desk.store.writes


def test_nothing_is_written_if_there_is_nothing_to_write(desk: Desk) -> None:
    """An empty store makes no topic."""
    assert carried(desk) == []
    assert desk.store.writes == []


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"last": float("nan")}, "last: nan is not a time in the years 1 to 9999"),
        ({"last": 1e300}, "last: .*years 1 to 9999"),
        ({"last": "yesterday"}, "last: 'yesterday' is not a time"),
        ({"runs": "many"}, "its count is none: 'many'"),
        ({"runs": -1}, "its count is none: -1"),
        ({"since": 1e15}, "since: .*years 1 to 9999"),
        ({"name": 5}, "name = 5"),
        ({"name": "a\nb"}, "name = "),
        ({"task": object()}, "task = "),
        ({"schedule": 0}, "schedule = 0"),
        ({"schedule": float("nan")}, "schedule = nan"),
        ({"args": 5}, "args = 5"),
        ({"kwargs": [1]}, "kwargs = "),
        ({"options": {"quue": "q"}}, "options: there is no option quue"),
        ({"options": {"countdown": "soon"}}, "options: countdown = 'soon'"),
    ],
)
def test_an_entry_that_cannot_be_taken_over_is_one_line(desk: Desk, given: dict[str, Any], says: str) -> None:
    """And nothing of it is written; those around it are carried over."""
    bad = entry(given.pop("name", "bad"), **given)
    rows = carried(desk, entry("a"), bad, entry("z"))
    assert [row.action for row in rows] == ["added", "left out", "added"]
    (note,) = rows[1].notes
    assert re.search(says, note), note
    assert sorted({name for _, name in desk.store.values}) == ["a", "z"]


def test_an_entry_that_beat_schedule_leaves_out_is_told(desk: Desk) -> None:
    """Its state would be of nothing."""
    desk.app.conf.beat_schedule["bad"] = {"task": "t", "schedule": 0}
    (row,) = carried(desk, entry("bad"))
    assert (row.action, desk.store.writes) == ("left out", [[]] if desk.store.writes else [])
    assert "leaves it out: schedule = 0" in row.notes[0]


@pytest.mark.parametrize("stored", [None, 5, "e", object(), {"task": "t"}, SimpleNamespace(name="e", task="t")])
def test_what_is_no_entry_of_celerys_is_left_out(stored: Any) -> None:
    """By the name that its source has for it."""
    found = of_redbeat(stored, "e")
    assert isinstance(found, Row)
    assert found.name == "e"
    assert "cannot be read" in found.notes[0]
