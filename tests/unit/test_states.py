"""Entries that are made, changed, paused and removed at runtime, as the replicated scheduler follows them."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from celery_neli.schedule_topic.codec import ENTRY, STATE, Definition, encode_definition
from celery_neli.schedule_topic.versions import head_of
from tests.unit.beats import NOON, START, World
from tests.unit.fakes import FakeTopic

if TYPE_CHECKING:
    from pathlib import Path

SKIP = {"neli_in_doubt": "skip"}


def leading(**conf: Any) -> World:
    """A world with a leader since noon, five seconds ago."""
    world = World({"e": 10.0}, **conf)
    world.leader()
    world.ticks(until=5)
    return world


def at(seconds: float) -> str:
    return (NOON + timedelta(seconds=seconds)).isoformat()


# -- entries that are made at runtime --


def test_an_entry_that_is_defined_runs_from_then_on() -> None:
    """Its first slot is the first one after its definition; its state tells under which it ran."""
    world = leading()
    world.put("r", "PT10S")
    world.ticks(until=36)
    assert world.slots("r") == [15, 25, 35]
    state = world.state("r")
    assert (state.last, state.runs, state.since, state.open) == (35, 3, 5, False)


def test_an_entry_that_is_defined_is_taken_over() -> None:
    """By one that stood by, and by one that is started afterwards."""
    world = leading()
    standby = world.beat()
    world.put("r", "PT10S", args=[1])
    world.ticks(until=20)
    world.beats[0].crash()
    standby.member.lead()
    world.ticks(until=30)
    standby.crash()
    world.leader()
    world.ticks(until=40)
    assert sorted(set(world.slots("r"))) == [15, 25, 35]


def test_an_entry_that_is_defined_while_nobody_leads_owes_its_slots_since() -> None:
    """It is nobody's in doubt: no leader knew it."""
    world = World({"e": 10.0}, neli_misfire="fire_all", **SKIP)
    world.leader()
    world.ticks(until=5)
    world.beats[0].crash()
    world.now = 12.0
    world.put("r", "PT10S")
    world.now = 45.0
    successor = world.leader()
    world.ticks(until=53)
    assert world.slots("r") == [22, 32, 42, 52]
    assert successor.in_doubt == 0


def test_a_changed_schedule_begins_with_the_change() -> None:
    """No slot of the old one after it, none of the new one before it; how often it ran is kept."""
    world = leading()
    world.put("r", "PT10S")
    world.ticks(until=27)
    world.put("r", "PT4S")
    world.ticks(until=40)
    assert world.slots("r") == [15, 25, 31, 35, 39]
    assert (world.state("r").runs, world.state("r").since) == (5, 27)


def test_changed_arguments_keep_the_rhythm() -> None:
    """The next message has them."""
    world = leading()
    beat = world.beats[0]
    world.put("r", "PT10S", args=[1])
    world.ticks(until=17)
    world.put("r", "PT10S", args=[2])
    world.ticks(until=26)
    assert world.slots("r") == [15, 25]
    assert tuple(beat.entry("r").args) == (2,)
    assert beat.entry("r").total_run_count == 2


def test_slots_of_a_pause_never_run() -> None:
    """Neither during it nor after, however soon after it they were; it goes on with the first one after."""
    world = leading(neli_misfire="fire_all")
    world.put("r", "PT10S")
    world.ticks(until=17)
    world.edit().pause("r")
    world.ticks(until=52)
    world.edit().resume("r")
    world.ticks(until=73)
    assert world.slots("r") == [15, 62, 72]
    assert world.state("r").runs == 3


@pytest.mark.parametrize("leader", ["the same", "another"])
def test_an_entry_of_beat_schedule_is_paused_and_resumed(leader: str, caplog: pytest.LogCaptureFixture) -> None:
    """Also over a change of leaders; told in the log."""
    caplog.set_level(logging.INFO)
    world = World({"e": 10.0, "tick": 1.0}, neli_misfire="fire_all", **SKIP)
    world.leader()
    world.ticks(until=15)
    world.edit().pause("e")
    world.ticks(until=22)
    if leader == "another":
        world.beats[0].hand_over()
        world.leader()
    world.ticks(until=45)
    assert world.slots() == [10]
    world.edit().resume("e")
    world.ticks(until=47)
    if leader == "another":
        world.beats[1].crash()
        world.leader()
    world.ticks(until=66)
    assert world.slots() == [10, 55, 65]
    assert "entry=e was paused" in caplog.text
    assert "entry=e was resumed" in caplog.text


def test_an_entry_that_is_removed_runs_no_more() -> None:
    """Nor after it was defined anew does it owe what came before."""
    world = leading(neli_misfire="fire_all")
    world.put("r", "PT10S")
    world.ticks(until=17)
    world.edit().remove("r")
    world.ticks(until=52)
    world.put("r", "PT10S")
    world.ticks(until=63)
    assert world.slots("r") == [15, 62]
    assert world.state("r").runs == 1


def test_an_entry_that_runs_once_is_removed_afterwards() -> None:
    """From everybody's schedule at once, and a minute later with its state from the topic."""
    world = leading()
    standby = world.beat()
    world.put("r", at(20))
    world.ticks(until=25)
    assert world.slots("r") == [20]
    values = FakeTopic(world.log).values()
    assert (ENTRY, "r") not in values
    assert (STATE, "r") in values
    assert "r" not in standby.scheduler.schedule
    world.ticks(until=90)
    assert (STATE, "r") not in FakeTopic(world.log).values()
    assert [value for kind, name, value, _ in world.log if (kind, name) == (ENTRY, "r")][-1] is None
    world.beats[0].crash()
    standby.member.lead()
    world.ticks(until=100)
    assert world.slots("r") == [20]


def test_an_entry_that_runs_once_is_removed_in_an_order_that_never_owes_it_again() -> None:
    """First its definition says so; a minute later its state is deleted, and its definition only after that."""
    world = leading()
    world.put("r", at(20))
    world.ticks(until=19)
    world.beats[0].topic.up = False
    world.ticks(until=22)
    assert world.slots("r") == [20]
    world.beats[0].topic.resend()
    world.beats[0].topic.up = True
    world.ticks(until=25)
    last = [value for kind, name, value, _ in world.log if (kind, name) == (ENTRY, "r")][-1]
    assert last is not None
    assert head_of(last).removed
    world.ticks(until=150)
    gone = [kind for kind, name, value, _ in world.log if name == "r" and value is None]
    assert gone == [STATE, ENTRY]


def test_a_time_that_passed_while_nobody_led_runs_late() -> None:
    """Once, and is removed then."""
    world = leading()
    world.put("r", at(20))
    world.ticks(until=6)
    world.beats[0].crash()
    world.now = 100.0
    world.leader()
    world.ticks(until=130)
    assert world.slots("r") == [20]
    assert (ENTRY, "r") not in FakeTopic(world.log).values()


def test_a_definition_that_cannot_be_read_here_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """It is told and left out; another process may know it. One that replaces a good one leaves that out as well."""
    world = leading()
    world.put("r", "PT10S")
    world.ticks(until=16)
    bad = Definition(task="t", schedule="every blue moon", since=START + 16)
    for name in ("r", "x"):
        world.log.append((ENTRY, name, encode_definition(bad), None))
    world.ticks(until=41)
    assert world.slots() == [10, 20, 30, 40]
    assert (world.slots("r"), world.slots("x")) == ([15], [])
    assert "entry=x cannot be read here" in caplog.text
    world.put("r", "PT10S")
    world.ticks(until=52)
    assert world.slots("r") == [15, 51]


def test_a_definition_under_the_name_of_one_in_beat_schedule_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    """The code's counts; told."""
    world = leading()
    definition = Definition(task="other", schedule="PT1S", since=START + 5)
    world.log.append((ENTRY, "e", encode_definition(definition), None))
    world.ticks(until=25)
    assert world.slots() == [10, 20]
    assert "entry=e is in beat_schedule" in caplog.text


def test_a_pause_of_an_entry_that_comes_later_holds() -> None:
    """Ordered for a version of the schedule that this beat does not have yet."""
    world = World({"e": 10.0, "late": 10.0})
    world.edit().pause("late")
    beat = world.leader({"e": 10.0})
    world.ticks(until=15)
    beat.scheduler.add(name="late", task="t", schedule=10.0, last_run_at=NOON)
    world.ticks(until=45)
    assert world.slots("late") == []
    world.edit().resume("late")
    world.ticks(until=56)
    assert world.slots("late") == [55]


def test_to_run_an_entry_now_changes_nothing_for_the_leader() -> None:
    """A note in its changes is no change of the entry: its next slot stays, its count too."""
    world = leading()
    world.put("r", "PT10S")
    world.ticks(until=17)
    definition = FakeTopic(world.log).values()[ENTRY, "r"]
    entry = world.beats[0].entry("r")
    world.log.append((ENTRY, "r", definition, None))
    world.ticks(until=18)
    assert world.beats[0].entry("r") is entry
    world.ticks(until=26)
    assert world.slots("r") == [15, 25]


def test_a_standby_has_every_change_before_it_leads() -> None:
    """Nothing is left to be read when its term begins."""
    world = leading()
    standby = world.beat()
    world.ticks(until=6)
    world.put("r", "PT10S")
    world.ticks(until=17)
    assert standby.entry("r").total_run_count == 1
    assert (standby.entry("r").last_run_at - NOON).total_seconds() == pytest.approx(16)
    assert (standby.entry("e").last_run_at - NOON).total_seconds() == 10


# -- overlaps --


def test_a_slot_that_would_overlap_is_left_out(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """The result backend is asked by the id of what was sent last, never of what was left out; by a successor, too."""
    options = {"neli_overlap": "skip", "neli_overlap_age": 1000}
    world = World({"e": {"task": "t", "schedule": 10.0, "options": options}}, result_backend=f"file://{tmp_path}")
    first = world.leader()
    world.ticks(until=31)
    assert world.slots() == [10]
    assert first.left_out == 2
    assert caplog.text.count("policy=overlap") == 1
    assert world.state().last == 30
    first.hand_over()
    second = world.leader()
    world.ticks(until=41)
    assert world.slots() == [10]
    assert second.left_out == 1
    second.app.backend.store_result(world.sent[0].id, None, "SUCCESS")
    second.hand_over()
    world.leader()
    world.ticks(until=61)
    assert world.slots() == [10, 50]
    for beat in world.beats:
        beat.stop()
