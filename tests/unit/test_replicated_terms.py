"""Terms of the replicated scheduler that begin from nothing or are cut off, and states that others write."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from celery.schedules import crontab
from kombu.exceptions import OperationalError

from celery_neli.schedule_topic.codec import ENTRY, NO_EPOCH, STATE
from tests.unit.beats import NOON, START, Process, World, seconds

SKIP = {"neli_in_doubt": "skip", "neli_misfire": "fire_all"}
ALL = {"neli_misfire": "fire_all"}


# -- terms that are taken back, or begin from nothing --


def test_a_term_that_is_taken_back_is_handed_over() -> None:
    """What came of its last slots is not known for sure: a new term begins, to which they are in doubt."""
    world = World({"e": 1.0}, **SKIP)
    beat = world.leader()
    world.election.latency = 0.05
    world.ticks(until=5.02)
    beat.fence()
    world.ticks(until=6.5)
    assert not beat.serves()
    beat.member.take_back()
    beat.forget_fences()
    world.ticks(until=9.5)
    assert world.slots() == seconds(5), "nothing is sent in a term that was over"
    assert set(beat.member.resigned) == {"leader"}
    beat.member.release()
    beat.member.lead()
    world.ticks(until=12.5)
    assert len(world.slots()) == len(set(world.slots())), "none twice"
    told = sorted({*seconds(12)} - {*world.slots()})
    assert len(told) == beat.in_doubt <= 1


def test_a_term_that_is_cut_off_between_reservation_and_wire_still_owes_the_slot() -> None:
    """The entry is as it was; the next term of the same process sends it."""
    world = World({"e": 1.0}, **ALL)
    beat = world.leader()

    def lapse(entry: str) -> None:
        if world.now > 4.5 and beat.member.world.role("leader").holder is beat.member and not fenced:
            fenced.append(True)
            beat.fence()

    fenced: list[bool] = []
    from celery.signals import before_task_publish

    def receiver(headers: Any, **kwargs: Any) -> None:
        lapse("e")

    before_task_publish.connect(receiver, weak=False, dispatch_uid="cut")
    try:
        world.ticks(until=6.5)
        assert world.slots() == seconds(4)
        assert (beat.entry().total_run_count, world.state().last) == (4, 4)
        beat.member.lead()
        world.ticks(until=8.5)
    finally:
        before_task_publish.disconnect(dispatch_uid="cut")
    assert world.slots() == seconds(8)


def test_a_new_term_tries_at_once_what_failed_in_the_one_before() -> None:
    """The pause was that term's."""
    world = World({"bad": 10.0})
    beat = world.leader()

    def fail(entry: str) -> None:
        raise OperationalError("it cannot be sent")

    world.before_wire = fail
    world.ticks(until=45)
    world.before_wire = lambda entry: None
    beat.hand_over()
    world.ticks(until=48)
    beat.member.lead()
    world.ticks(until=49)
    assert world.slots("bad") == [40]
    assert not world.state("bad").open


def test_a_blind_leader_with_states_takes_what_is_past_for_in_doubt(caplog: pytest.LogCaptureFixture) -> None:
    """The election's log is gone, the schedule topic is not: somebody may have sent what no state tells of."""
    for policy, sent in (("send", [20.0]), ("skip", [])):
        caplog.clear()
        world = World({"e": 10.0}, neli_in_doubt=policy)
        world.put_state("e", 10.0, epoch=7, runs=1)
        world.now = 25.0
        beat = world.beat()
        beat.member.lead(blind=True)
        world.ticks(until=29)
        assert world.slots() == sent
        assert beat.in_doubt == 1
        assert f"count=1 first=2026-03-01T12:00:20+00:00 last=2026-03-01T12:00:20+00:00 policy={policy}" in caplog.text
        world.ticks(until=31)
        assert world.slots() == [*sent, 30.0]


def test_the_first_leader_ever_owes_nothing() -> None:
    """Entries begin when it begins."""
    world = World({"e": 10.0, "c": crontab()}, **SKIP)
    world.now = 95.0
    beat = world.leader()
    world.ticks(until=121)
    assert world.slots() == [105, 115]
    assert world.slots("c") == [120]
    assert beat.in_doubt == 0


def test_after_another_scheduler_entries_count_as_served_until_it_was_heard_of() -> None:
    """It left neither marks nor states; crontab slots of the gap are missed and not in doubt."""
    world = World({"c": crontab()}, **SKIP)
    world.now = 200.0
    beat = world.beat()
    beat.member.predecessor_active = NOON + timedelta(seconds=70)
    beat.member.lead()
    world.ticks(until=201)
    assert world.slots("c") == [120, 180]
    assert beat.in_doubt == 0


def test_an_entry_that_is_new_in_the_leader_s_version_begins_where_the_last_leader_was_done() -> None:
    """A deployment: nothing between the two leaders is lost."""
    world = World({"e": 10.0})
    world.leader()
    world.ticks(until=55)
    world.beats[0].hand_over()
    world.now = 70.0
    world.leader({"e": 10.0, "new": crontab()})
    world.ticks(until=71)
    assert world.slots("new") == [60]
    assert world.state("new").last == 60


# -- states of others --


def test_a_deposed_leader_s_late_state_takes_nothing_back() -> None:
    """Neither in the leader, which writes its own again, nor in those that stand by."""
    world = World({"e": 10.0})
    leader, standby = world.leader(), world.beat()
    leader.member.lead()
    world.ticks(until=35)
    world.put_state("e", 10.0, epoch=1, runs=1)
    world.ticks(until=36)
    assert (world.state().last, world.state().epoch) == (30, 2)
    assert (standby.entry().last_run_at - NOON).total_seconds() == 30
    leader.crash()
    world.put_state("e", 10.0, epoch=1, runs=1)
    standby.turn()
    assert ((standby.entry().last_run_at - NOON).total_seconds(), standby.entry().total_run_count) == (30, 3)
    successor = world.leader()
    world.ticks(until=45)
    assert world.slots() == [10, 20, 30, 40]
    assert successor.in_doubt == 0


def test_an_imported_state_counts_also_while_somebody_leads() -> None:
    """It is of no term: what another scheduler ran before."""
    world = World({"e": 100.0})
    world.leader()
    world.ticks(until=5)
    world.put_state("e", 60.0, epoch=NO_EPOCH, runs=17)
    world.ticks(until=170)
    assert world.slots() == [160]
    assert (world.state().runs, world.state().epoch) == (18, 1)


def test_a_state_that_waits_for_its_entry_is_used_when_that_comes() -> None:
    """Read before the entry was added, or before its definition was."""
    world = World({"tick": 1.0})
    world.put_state("e", 95.0, runs=9, epoch=3)
    world.now = 100.0
    beat = world.leader()
    world.ticks(until=101)
    beat.scheduler.add(name="e", task="t", schedule=10.0)
    world.ticks(until=116)
    assert world.slots() == [105, 115]
    assert world.state().runs == 11


def test_the_state_of_an_entry_that_the_leader_lacks_is_kept() -> None:
    """A version that has it leads again: it goes on where it was."""
    both = {"e": 10.0, "old": 10.0}
    world = World(both, **ALL)
    world.leader()
    world.ticks(until=15)
    world.beats[0].hand_over()
    world.leader({"e": 10.0})
    world.ticks(until=35)
    world.beats[1].hand_over()
    assert world.state("old").last == 10
    world.leader(both)
    world.ticks(until=45)
    assert world.slots("old")[-1] == 40
    assert not world.doubled()


def test_when_the_topic_was_made_anew_the_leader_writes_all_states_again() -> None:
    """And a standby, which knows as much, does not."""
    world = World({"e": 10.0, "f": 10.0, "paused": 10.0})
    leader, standby = world.leader(), world.beat()
    world.edit().pause("paused")
    world.ticks(until=25)
    world.log.clear()
    for beat in (leader, standby):
        beat.topic.forget()
    writes = standby.topic.writes
    world.ticks(until=26)
    assert {name: world.state(name).last for name in ("e", "f")} == {"e": 20, "f": 20}
    assert world.state("paused").runs == 0
    assert standby.topic.writes == writes


def test_records_that_are_none_are_told_and_change_nothing() -> None:
    """The topic is told, which says so."""
    world = World({"e": 10.0})
    world.log += [(STATE, "e", b"nonsense", None), (ENTRY, "x", b"{}", None)]
    beat = world.leader()
    world.ticks(until=25)
    assert world.slots() == [10, 20]
    assert sorted(beat.topic.refused) == ["e", "x"]


def test_nothing_is_sent_before_the_topic_was_read_to_its_end() -> None:
    """Somebody else may have run what is due."""
    world = World({"e": 10.0})
    beat: Process = world.beat()
    world.ticks(until=1)
    world.put_state("e", 20.0, epoch=1)
    beat.topic.up = False
    world.now = 25.0
    beat.member.lead()
    world.ticks(until=29)
    assert world.sent == []
    assert beat.fails()
    beat.topic.up = True
    world.ticks(until=31)
    assert world.slots() == [30]
    assert pytest.approx(beat.entry().last_run_at.timestamp()) == START + 30
