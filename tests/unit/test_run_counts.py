"""How often an entry ran: the tasks that beats handed to the task broker for it."""

from __future__ import annotations

from typing import Any

import pytest
from celery.schedules import crontab

from tests.unit.beats import World


def check(world: World, *names: str) -> None:
    """RUNS is what the broker has."""
    for name in names:
        assert world.state(name).runs == len(world.slots(name)), name


@pytest.mark.parametrize("end", ["hand_over", "crash"])
@pytest.mark.parametrize(("before", "after"), [(3600.0, 0.5), (0.5, 3600.0), (crontab(), 0.5), (3600.0, 7.0)])
def test_a_schedule_that_was_changed_counts_only_what_ran(end: str, before: Any, after: Any) -> None:
    """Of the new schedule no slot ran before there was one, though the mark *done* has passed it."""
    world = World({"e": before, "other": 1.0})
    first = world.leader()
    second = world.beat({"e": after, "other": 1.0})
    world.ticks(until=20.2)
    getattr(first, end)()
    world.now = 21.0
    second.member.lead()
    world.ticks(until=25.2)
    check(world, "e", "other")


@pytest.mark.parametrize("then", [0.5, 30.0])
def test_a_runtime_entry_that_is_changed_counts_only_what_ran(then: float) -> None:
    """With a leader, and with none."""
    world = World({"other": 1.0}, neli_least_interval=0.5)
    first = world.leader()
    world.put("e", 10.0)
    world.ticks(until=25.2)
    world.put("e", then)
    world.ticks(until=30.2)
    first.hand_over()
    world.put("e", 2 * then)
    world.now = 33.0
    world.leader()
    world.ticks(until=40.2)
    check(world, "e", "other")


def test_a_pause_counts_nothing() -> None:
    """Nor do slots that pass between two leaders."""
    world = World({"e": 1.0})
    first = world.leader()
    world.ticks(until=5.2)
    world.edit().pause("e")
    world.ticks(until=9.2)
    first.hand_over()
    world.now = 15.0
    world.edit().resume("e")
    world.leader()
    world.ticks(until=20.2)
    check(world, "e")


def test_an_entry_that_a_leader_did_not_have_did_not_run() -> None:
    """A version without it led for a while, and said all the while that everything is done."""
    world = World({"e": 1.0, "other": 1.0})
    first = world.leader()
    world.ticks(until=5.2)
    first.hand_over()
    second = world.leader({"other": 1.0})
    world.ticks(until=35.2)
    second.hand_over()
    world.leader()
    world.ticks(until=40.2)
    check(world, "e", "other")


def test_one_message_for_many_slots_is_one_run() -> None:
    """`fire_once`, and what `skip` leaves out."""
    world = World({"e": 1.0, "skip": {"task": "t", "schedule": 60.0, "options": {"neli_misfire": "skip"}}})
    first = world.leader()
    world.ticks(until=5.2)
    first.hand_over()
    world.now = 300.5
    world.leader()
    world.ticks(until=303.2)
    check(world, "e", "skip")


def test_what_is_left_out_of_doubt_is_no_run() -> None:
    """With `neli_in_doubt` = "skip"."""
    world = World({"e": 1.0}, neli_in_doubt="skip")
    first = world.leader()
    world.ticks(until=4.9)
    first.crash()
    world.now = 8.0
    successor = world.leader()
    world.ticks(until=10.2)
    assert successor.in_doubt == 1
    check(world, "e")


def test_runs_whose_states_were_lost_are_reckoned_from_where_states_were_saved() -> None:
    """Not from where the entry ran last, which may be another schedule's."""
    world = World({"e": 3600.0})
    first = world.leader()
    world.ticks(until=10.2)
    first.hand_over()
    second = world.leader({"e": 1.0})
    world.ticks(until=15.2)
    second.topic.up = False
    world.ticks(until=18.9)
    second.crash()
    world.leader({"e": 1.0})
    world.ticks(until=22.5)
    check(world, "e")


def test_what_a_deposed_leader_wrote_late_counts() -> None:
    """It ran once more than its successor knew."""
    world = World({"e": 10.0})
    world.put_state("e", 20.0, epoch=7, runs=2)
    standby = world.beat()
    world.ticks(until=21)
    world.put_state("e", 30.0, epoch=6, runs=3)
    world.ticks(until=31)
    assert standby.entry().total_run_count == 3
