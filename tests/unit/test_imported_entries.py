"""What a leader takes for in doubt of an entry that no leader had before, and what not."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

import pytest
from celery.schedules import crontab

from celery_neli.periodic.importers import Found, Source, carry_over
from celery_neli.schedule_topic.codec import STATE
from tests.unit.beats import NOON, START, Crash, World

SKIP = {"neli_in_doubt": "skip"}
HOUR = 3600.0


def bring_in(world: World, name: str = "e", schedule: Any = HOUR, *, last: float | None, **fields: Any) -> None:
    """Import an entry whose last run was at ``last``, in seconds since noon."""
    at = None if last is None else START + last
    found = Found(name=name, task="t", schedule=schedule, last=at, runs=0 if last is None else 3, **fields)
    (row,) = carry_over(Source(what="RedBeat", entries=[found]), world.edit())
    assert row.action in ("added", "state"), row


@pytest.mark.parametrize("policy", ["skip", "send"])
@pytest.mark.parametrize("static", [False, True])
def test_what_was_missed_before_an_import_is_missed(
    policy: str, *, static: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """There was no leader: the misfire policy decides, whatever becomes of slots in doubt."""
    world = World({"e": HOUR} if static else {}, neli_in_doubt=policy)
    bring_in(world, last=-4200.0)
    world.now = 10.0
    beat = world.leader()
    world.ticks(until=12)
    assert world.slots() == [-600]
    assert beat.in_doubt == 0
    assert "in doubt" not in caplog.text
    assert world.state().runs == 4


@pytest.mark.parametrize("end", ["hand_over", "crash"])
def test_what_is_imported_while_there_is_no_leader_is_not_in_doubt(end: str, caplog: pytest.LogCaptureFixture) -> None:
    """Not even where an earlier leader had claimed: it did not have the entry."""
    world = World({"other": 10.0}, **SKIP)
    first = world.leader()
    world.ticks(until=31)
    getattr(first, end)()
    world.now = 40.0
    bring_in(world, last=-3590.0)  # due at 10: before what the first leader claimed
    bring_in(world, "new", last=None, since=START - 3580.0)  # it never ran; due at 20
    world.leader()
    world.ticks(until=42)
    assert world.slots() == [10]
    assert world.slots("new") == [20]
    assert "in doubt entry=e" not in caplog.text
    assert "in doubt entry=new" not in caplog.text


def test_what_is_imported_while_there_is_a_leader_is_not_in_doubt() -> None:
    """What its predecessor had claimed is not what it might have sent of this entry."""
    world = World({"other": 10.0}, **SKIP)
    first = world.leader()
    world.ticks(until=31)
    first.crash()
    world.now = 40.0
    leader = world.leader()
    world.ticks(until=41)
    before = leader.in_doubt
    bring_in(world, last=-3590.0)
    world.ticks(until=43)
    assert world.slots() == [10]
    assert leader.in_doubt == before


@pytest.mark.parametrize("policy", ["skip", "send"])
def test_what_a_leader_may_have_sent_of_an_imported_entry_is_in_doubt(policy: str) -> None:
    """It was killed over the entry's first slot, and has written nothing of the entry."""
    world = World({"other": 10.0}, neli_in_doubt=policy)
    first = world.leader()
    world.ticks(until=31)
    first.crash()
    world.now = 40.0
    bring_in(world, last=-3590.0)

    def kill(entry: str) -> None:
        if entry == "e":
            world.after_wire = lambda entry: None
            raise Crash

    world.after_wire = kill
    second = world.leader()
    world.ticks(until=43)
    assert second.dead
    assert world.slots() == [10]
    third = world.leader()
    world.ticks(until=46)
    assert world.slots() == ([10] if policy == "skip" else [10, 10])
    assert len({each.id for each in world.sent if each.entry == "e"}) == 1
    assert third.in_doubt >= 1


def test_an_imported_slot_waits_for_a_claim_behind_the_import() -> None:
    """For its successor takes an entry that came later than all claims for one that no leader had."""
    world = World({"other": 10.0}, **SKIP)
    first = world.leader()
    world.ticks(until=31)
    first.crash()
    world.now = 40.0
    bring_in(world, last=-3590.0)
    world.election.latency = 0.1
    world.leader()
    claimed: list[float] = []
    world.before_wire = lambda entry: claimed.append(world.marks()[0]) if entry == "e" else None
    world.ticks(until=43)
    assert world.slots() == [10]
    assert claimed[0] >= 40


def test_an_import_by_a_clock_that_is_ahead_holds_up_no_other_entry() -> None:
    """It runs when the leader's clock is there."""
    world = World({"other": 1.0}, **SKIP)
    world.leader()
    world.ticks(until=5.5)
    world.now = 8.5
    bring_in(world, last=-3595.0)
    world.now = 5.5
    world.ticks(until=10.2)
    assert world.slots("other") == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert [(round(each.at, 1) >= 8.5, each.slot) for each in world.sent if each.entry == "e"] == [(True, 5)]


def test_after_another_scheduler_what_was_imported_from_it_is_missed() -> None:
    """Its last run is in the import; entries of beat_schedule count as served until the other was heard of last."""
    world = World({"c": crontab()}, **SKIP)
    bring_in(world, last=-3400.0)
    world.now = 260.0
    beat = world.beat()
    beat.member.predecessor_active = NOON + timedelta(seconds=230)
    beat.member.lead()
    world.ticks(until=261)
    assert world.slots() == [200]
    assert world.slots("c") == [240]
    assert beat.in_doubt == 0


def test_an_import_makes_nothing_certain_that_a_lost_log_left_in_doubt() -> None:
    """Other entries have states by a leader: after the loss of the leader topic all that is past is in doubt."""
    world = World({"led": 10.0}, **SKIP)
    world.put_state("led", 10.0, epoch=7, runs=1)
    bring_in(world, last=-3590.0)
    world.now = 25.0
    beat = world.beat()
    beat.member.lead(blind=True)
    world.ticks(until=28)
    assert world.sent == []
    assert beat.in_doubt == 2


def test_what_was_on_the_wire_at_a_clean_end_stays_in_doubt() -> None:
    """Also of an imported entry, whose slot is older than the import."""
    world = World({"other": 10.0}, **SKIP)
    first = world.leader()
    world.ticks(until=31)
    first.hand_over()
    world.now = 40.0
    bring_in(world, last=-3590.0)

    def fail(entry: str) -> None:
        if entry == "e":
            raise OSError("the answer was lost")

    world.after_wire = fail
    second = world.leader()
    world.ticks(until=40.4)
    assert world.slots() == [10]
    second.hand_over()
    world.after_wire = lambda entry: None
    third = world.leader()
    world.ticks(until=44)
    assert world.slots() == [10]
    assert third.in_doubt == 1


@pytest.mark.parametrize("who", ["another, from before", "another, new", "the same"])
def test_what_was_on_the_wire_when_its_leader_was_told_to_end_stays_in_doubt(who: str) -> None:
    """Nothing was written of it, and the clean release takes the claims back."""
    world = World({"other": 10.0}, **SKIP)
    first = world.leader()
    world.ticks(until=31)
    first.hand_over()
    world.now = 40.0
    bring_in(world, last=-3590.0)
    second, standby = world.beat(), world.beat()
    world.ticks(until=40.1)

    def end(entry: str) -> None:
        if entry == "e":
            raise SystemExit

    world.after_wire = end
    second.member.lead()
    with pytest.raises(SystemExit):
        world.ticks(until=42)
    world.after_wire = lambda entry: None
    second.hand_over()
    assert world.slots() == [10]
    standby.turn()
    third = {"another, from before": standby, "the same": second}.get(who) or world.beat()
    third.member.lead()
    world.ticks(until=44)
    assert world.slots() == [10]
    assert third.in_doubt == 1


# -- a first start --


def test_a_new_entry_has_missed_nothing_at_a_first_start(caplog: pytest.LogCaptureFixture) -> None:
    """However long the process has waited to lead: no word of missed slots, none in doubt, none counted."""
    world = World({"e": 1.0, "c": crontab(), "late": {"task": "t", "schedule": 7.0}}, neli_misfire="fire_all")
    beat = world.beat()
    world.ticks(until=185.5)
    beat.member.lead()
    with caplog.at_level(logging.WARNING):
        world.ticks(until=190.5)
    assert world.slots() == [186, 187, 188, 189, 190]
    assert world.slots("c") == []
    assert (world.state().runs, beat.left_out, beat.in_doubt) == (5, 0, 0)
    assert "missed" not in caplog.text


def test_at_a_first_start_what_an_entry_says_of_its_last_run_counts() -> None:
    """`last_run_at` in beat_schedule is the user's word."""
    entry = {"task": "t", "schedule": HOUR, "last_run_at": NOON - timedelta(minutes=70)}
    world = World({"e": entry})
    beat = world.beat()
    world.ticks(until=4)
    beat.member.lead()
    world.ticks(until=5)
    assert world.slots() == [-600]


def test_of_an_entry_of_which_a_leader_told_nothing_the_gap_is_missed(caplog: pytest.LogCaptureFixture) -> None:
    """Whether it is new or its leader died early cannot be known: it is told."""
    world = World({"e": 1.0})
    first = world.leader()
    world.ticks(until=5.2)
    first.hand_over()
    world.log[:] = [record for record in world.log if record[0] != STATE]
    world.now = 9.5
    world.leader()
    with caplog.at_level(logging.WARNING):
        world.ticks(until=10.2)
    assert "slots missed entry=e" in caplog.text
