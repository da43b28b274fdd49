"""What the replicated scheduler takes over from the leader before: after a clean end, after a crash, from nobody."""

from __future__ import annotations

import itertools
import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from celery.schedules import crontab, solar

from celery_neli.schedule.slots import once
from tests.unit.beats import NOON, Crash, World, seconds

if TYPE_CHECKING:
    from collections.abc import Callable

SKIP = {"neli_in_doubt": "skip", "neli_misfire": "fire_all"}
ALL = {"neli_misfire": "fire_all"}


def crash_once(name: str, slot_count: int) -> Callable[[str], None]:
    """A hook for the wire: the process is killed at the entry's so manieth message."""
    count = 0

    def kill(entry: str) -> None:
        nonlocal count
        count += entry == name
        if count == slot_count and entry == name:
            count += 1
            raise Crash

    return kill


# -- a clean end --


def test_a_clean_hand_over_leaves_no_doubt(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is missing, nothing doubled, no word is said; also while slots are owed."""
    world = World({"e": 1.0, "f": 0.3, "c": crontab()}, **ALL)
    with caplog.at_level(logging.WARNING):
        for until in (5.0, 9.02, 9.5, 61.0, 61.5):
            beat = world.leader()
            world.ticks(until=until)
            beat.hand_over()
            assert world.marks()[0] == world.marks()[1]
        world.leader()
        world.ticks(until=66.5)
    assert world.slots() == seconds(66)
    assert world.slots("c") == [60]
    assert not world.doubled()
    assert "in doubt" not in caplog.text


def test_what_was_claimed_is_not_given_back_while_states_are_not_in_kafka() -> None:
    """The successor could not know what ran: it takes it for in doubt."""
    world = World({"e": 1.0}, **ALL)
    beat = world.leader()
    world.ticks(until=4.9)
    beat.topic.up = False
    world.ticks(until=5.1)
    beat.hand_over()
    claimed, done = world.marks()
    assert done < 5.1 < claimed
    world.leader()
    world.ticks(until=6.5)
    assert sorted(set(world.slots())) == seconds(6)


def test_a_fenced_leader_offers_nothing() -> None:
    """The role may be another's by then."""
    world = World({"e": 1.0})
    beat = world.leader()
    world.ticks(until=4.7)
    beat.fence()
    count, before = len(beat.member.offers), world.marks()
    beat.turn()
    assert len(beat.member.offers) == count
    assert world.marks() == before
    assert not beat.serves()


# -- crashes --


@pytest.mark.parametrize("place", ["before the wire", "behind the wire"])
def test_a_crash_in_the_midst_of_sending_costs_no_slot(place: str, caplog: pytest.LogCaptureFixture) -> None:
    """What had left is sent again under the same id, and told once."""
    world = World({"e": 1.0}, **ALL)
    hook = "before_wire" if place == "before the wire" else "after_wire"
    setattr(world, hook, crash_once("e", 5))
    world.leader()
    world.ticks(until=6.2)
    assert world.beats[0].dead
    successor = world.leader()
    with caplog.at_level(logging.WARNING):
        world.ticks(until=10.5)
    doubled = {("e", 5.0): 2} if hook == "after_wire" else {}
    assert world.doubled() == doubled
    assert sorted(set(world.slots())) == seconds(10)
    assert len({each.id for each in world.sent}) == 10
    assert successor.in_doubt == 1
    assert caplog.text.count("slots in doubt entry=e count=1") == 1


@pytest.mark.parametrize("place", ["before the wire", "behind the wire"])
def test_with_skip_slots_in_doubt_are_left_out(place: str, caplog: pytest.LogCaptureFixture) -> None:
    """None is doubled; each one that is left out is logged, counted, and settled in Kafka."""
    world = World({"e": 1.0}, **SKIP)
    hook = "before_wire" if place == "before the wire" else "after_wire"
    setattr(world, hook, crash_once("e", 5))
    world.leader()
    world.ticks(until=6.2)
    successor = world.leader()
    with caplog.at_level(logging.WARNING):
        world.ticks(until=10.5)
    assert not world.doubled()
    missing = set(seconds(10)) - set(world.slots())
    assert missing == ({5.0} if hook == "before_wire" else set())
    assert successor.in_doubt == 1
    assert "count=1 first=2026-03-01T12:00:05+00:00 last=2026-03-01T12:00:05+00:00 policy=skip" in caplog.text
    assert world.state().last == 10


def test_the_doubt_of_an_entry_is_told_once_for_all_its_slots(caplog: pytest.LogCaptureFixture) -> None:
    """A line and not one for each slot; the count has them all."""
    world = World({"e": 0.1}, **ALL)
    beat = world.leader()
    world.ticks(until=5)
    beat.topic.up = False
    world.ticks(until=5.45)
    beat.crash(arrives=True)
    claimed, done = world.marks()
    doubtful = [slot for slot in seconds(claimed, 0.1, 0.1) if slot > done]
    assert len(doubtful) > 2
    world.now = 7.0
    successor = world.leader()
    with caplog.at_level(logging.WARNING):
        world.ticks(until=7.05)
    assert caplog.text.count("slots in doubt") == 1
    assert f"count={len(doubtful)} " in caplog.text
    assert successor.in_doubt == len(doubtful)


def test_a_crash_between_state_and_beat_doubles_nothing() -> None:
    """The state tells of the slot before the mark does."""
    world = World({"e": 1.0}, **ALL)
    beat = world.leader()
    world.ticks(until=5.01)
    assert world.state().last == 5
    beat.crash(arrives=False)
    assert world.marks()[1] < 5
    successor = world.leader()
    world.ticks(until=8.5)
    assert world.slots() == seconds(8)
    assert successor.in_doubt == 0


def test_states_that_are_lost_leave_what_the_mark_says_undoubted() -> None:
    """Done is done, also if no state of it ever arrived; how often it ran is reckoned."""
    world = World({"e": 1.0}, **ALL)
    beat = world.leader()
    world.ticks(until=0.5)
    beat.topic.up = False  # nothing failed and nobody asks for confirmed states: the marks go on
    world.ticks(until=5.3)
    claimed, done = world.marks()
    assert done > 4
    beat.crash()
    successor = world.leader()
    world.ticks(until=8.5)
    assert world.slots() == [*seconds(int(done)), *seconds(8, first=int(done) + 1.0)]
    assert (world.state().last, world.state().runs) == (8, 8)
    assert successor.in_doubt == (1 if done < 5 <= claimed else 0)


def test_a_leader_that_dies_before_its_first_offer_hands_on_what_it_found() -> None:
    """Its records repeat the marks of its predecessor."""
    world = World({"e": 1.0}, **ALL)
    world.leader()
    world.after_wire = crash_once("e", 5)
    world.ticks(until=6)
    for _ in range(3):
        world.leader().crash(arrives=False)
        world.now += 1
    successor = world.leader()
    world.ticks(until=12.5)
    assert world.doubled() == {("e", 5.0): 2}
    assert sorted(set(world.slots())) == seconds(12)
    assert successor.in_doubt == 1


def test_doubt_outlives_a_leader_that_dies_before_it_has_settled_it() -> None:
    """A leader that began, claimed and died did not send what it found in doubt: it still is."""
    world = World({"e": 1.0, "f": 1.0}, **SKIP)
    world.leader()
    world.after_wire = crash_once("e", 5)
    world.ticks(until=6)
    second = world.beat()
    world.ticks(until=6.3)

    def kill(*record: object) -> None:
        raise Crash

    second.topic.write = kill  # type: ignore[method-assign]
    second.member.lead()
    world.ticks(until=6.5)
    assert second.dead
    third = world.leader()
    world.ticks(until=9.5)
    assert not world.doubled()
    assert third.in_doubt >= 1


@pytest.mark.parametrize("kind", ["interval", "crontab", "solar", "relative"])
@pytest.mark.parametrize("end", ["hand over", "crash behind the wire"])
def test_every_kind_of_schedule_is_taken_over(kind: str, end: str) -> None:
    """A slot each, no more and no less, but for the one in doubt, whose id is the same."""
    if kind == "solar":
        pytest.importorskip("ephem")
    schedules: dict[str, Any] = {
        "interval": {"task": "t", "schedule": 60.0},
        "crontab": {"task": "t", "schedule": crontab()},
        "relative": {"task": "t", "schedule": timedelta(minutes=1), "relative": True},
    }
    every = 60.0
    if kind == "solar":
        schedules["solar"] = {"task": "t", "schedule": solar("solar_noon", 52.5, 13.4)}
        every = 86400.0
    world = World({"e": schedules[kind]}, **ALL)
    world.interval = min(every / 120, 30.0)  # seconds; no lease is longer than 300
    world.leader()
    world.ticks(until=1.5 * every)
    first = len(world.sent)
    assert first in (1, 2)
    if end == "hand over":
        world.beats[0].hand_over()
    else:
        world.after_wire = crash_once("e", 1)
        world.ticks(until=2.5 * every)
        assert world.beats[0].dead
    world.leader()
    world.ticks(until=4.4 * every)
    slots = sorted(set(world.slots()))
    assert len(slots) in (4, 5)
    assert all(abs(after - slot - every) < every / 500 for slot, after in itertools.pairwise(slots))
    assert len(world.doubled()) == (end != "hand over")
    assert len({each.id for each in world.sent}) == len(slots)
    assert world.state().last >= slots[-1]


def test_a_time_that_comes_once_is_taken_over() -> None:
    """It runs once, whichever leader is there; of one in beat_schedule the state stays."""
    world = World({"e": {"task": "t", "schedule": once(NOON + timedelta(seconds=30))}})
    world.leader()
    world.ticks(until=10)
    world.beats[0].crash()
    world.now = 40.0
    world.leader()
    world.ticks(until=50)
    world.beats[1].crash()
    world.leader()
    world.ticks(until=60)
    assert world.slots() == [30]
    assert world.state().last == 30


def test_an_entry_of_which_several_slots_passed_runs_for_the_newest_and_goes_on() -> None:
    """By default one of them runs: the newest, which lies above what the dead leader had claimed."""
    world = World({"e": 1.0})
    beat = world.leader()
    world.ticks(until=5.3)
    beat.crash()
    world.now = 9.4
    world.leader()
    world.ticks(until=12.5)
    assert world.slots()[-4:] == [9, 10, 11, 12]
    assert not world.doubled()


def test_slots_that_nobody_claimed_were_missed_and_are_not_in_doubt() -> None:
    """Nobody led for a while: the misfire policy's, also with `skip` for those in doubt."""
    world = World({"e": 10.0}, **SKIP)
    world.leader()
    world.ticks(until=15)
    world.beats[0].crash()
    world.now = 55.0
    successor = world.leader()
    world.ticks(until=65)
    assert world.slots() == [10, 20, 30, 40, 50, 60]
    assert successor.in_doubt == 0


def test_the_doubt_of_each_term_is_logged_however_soon_it_follows(caplog: pytest.LogCaptureFixture) -> None:
    """Terms that end within a minute of each other leave no slot out in silence, in a process that leads again."""
    world = World({"e": 0.1}, **SKIP)
    leads, waits = world.leader(), world.beat()
    with caplog.at_level(logging.WARNING):
        for end in (5.05, 10.05, 15.05, 20.05, 25.05):
            world.ticks(until=end)
            leads.fence()
            world.ticks(until=end + 1)
            leads, waits = waits, leads
            leads.forget_fences()
            leads.member.lead()
        world.ticks(until=31)
    assert caplog.text.count("slots in doubt entry=e") == 5
    assert "suppressed" not in caplog.text
