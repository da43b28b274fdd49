"""The first states of many new entries: no task waits for them, and none is published before its own entry's."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from celery_neli.beat.replicated.unwritten import PORTION
from tests.unit.beats import NOON, Crash, World
from tests.unit.fakes import FakeTopic

OTHERS = [f"o{n}" for n in range(3 * PORTION)]


def schedule() -> dict[str, Any]:
    """Many entries of which nobody knows, and behind them, due at once, `e`."""
    due = {"task": "t", "schedule": 10.0, "last_run_at": NOON - timedelta(seconds=10)}
    return {**dict.fromkeys(OTHERS, 3600.0), "e": due}


def written(world: World) -> set[str]:
    return set(FakeTopic(world.log).states())


def test_a_due_task_leaves_before_the_states_of_others_are_written() -> None:
    """They follow, all of them, while nothing else is to do."""
    world = World(schedule())
    found: list[set[str]] = []
    world.before_wire = lambda entry: found.append(written(world))
    world.leader()
    world.ticks(until=1)
    assert world.slots() == [0]
    assert len(found[0]) < len(OTHERS)
    assert written(world) == {"e", *OTHERS}


def test_no_task_leaves_before_the_state_of_its_entry_is_written() -> None:
    """What the slots of an interval are counted from, the successor knows."""
    world = World(schedule())
    found: list[set[str]] = []
    world.before_wire = lambda entry: found.append(written(world))
    world.leader()
    world.ticks(until=1)
    assert "e" in found[0]


def test_states_that_a_leader_did_not_come_to_write_are_written_by_its_successor() -> None:
    world = World(schedule())
    world.before_wire = crash
    world.leader()
    world.ticks(until=1)
    assert written(world) < {"e", *OTHERS}
    world.before_wire = lambda entry: None
    world.leader()
    world.ticks(until=2)
    assert written(world) == {"e", *OTHERS}
    assert world.slots() == [0]


def test_an_entry_that_goes_before_its_state_was_written_gets_none() -> None:
    """And keeps nobody busy. One turn writes a portion, whatever the machine, so most are still to be written then."""
    world = World(schedule())
    beat = world.leader()
    while not written(world):
        world.election.catch_up()
        beat.turn()
    gone = min({*OTHERS} - written(world))  # they are written in no order
    del beat.scheduler.schedule[gone]
    world.ticks(until=1)
    assert written(world) == {"e", *OTHERS} - {gone}


def crash(entry: str) -> None:
    raise Crash
