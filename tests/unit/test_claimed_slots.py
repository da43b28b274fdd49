"""The replicated scheduler in a term: slots are claimed before they are published, and settled before they are done."""

from __future__ import annotations

import itertools
import logging
import math
import uuid
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from celery.schedules import crontab, schedule
from kombu.exceptions import OperationalError

from celery_neli.beat.replicated.claims import Watermarks
from celery_neli.schedule.slots import slot_id
from tests.unit.beats import NOON, START, World

if TYPE_CHECKING:
    from collections.abc import Callable


def read_marks(world: World, role: str = "leader") -> list[Watermarks]:
    """Those of all records that were read, in seconds since noon."""
    found = [Watermarks.of(data) for name, _, data in world.election.records if name == role]
    return [Watermarks(each.claimed - START, each.settled - START) for each in found if each is not None]


# -- claims --


@pytest.mark.parametrize("latency", [0.1, 0.4])
def test_a_slot_is_published_only_when_its_claim_was_read_back(latency: float) -> None:
    """Whoever leads next has read that claim first. Until it is read, nothing leaves."""
    world = World({"e": 10.0, "often": 0.3})
    world.election.latency = latency
    world.leader()
    world.before_wire = lambda entry: covered.append(world.marks()[0])
    covered: list[float] = []
    world.ticks(until=21)
    assert len(world.slots()) == 2
    assert len(covered) == len(world.sent)
    assert all(each.slot <= claimed + 1e-6 for each, claimed in zip(world.sent, covered, strict=True))


def test_nothing_is_published_while_no_claim_is_read_back() -> None:
    """However often the scheduler looks; the claim is repeated; all goes on when it is read."""
    world = World({"e": 10.0})
    world.election.latency = math.inf
    beat = world.leader()
    world.ticks(until=15)
    assert world.slots() == []
    assert beat.member.hurried > 2
    world.election.latency = 0.0
    world.ticks(until=16)
    assert world.slots() == [10]


@pytest.mark.parametrize("when", [10.0, 3.0, 0.3, 0.05])
def test_a_due_slot_does_not_wait_for_kafka(when: float) -> None:
    """It was claimed half a heartbeat interval before, which is enough for a record to come back."""
    world = World({"e": when})
    world.election.latency = 0.2
    world.leader()
    world.ticks(until=20.01)
    late = [each.at - each.slot for each in world.sent if each.slot > 0.7]
    assert len(late) > 1
    assert max(late) < 0.001


def test_a_slot_leaves_as_soon_as_its_claim_is_heard() -> None:
    """An entry that is due at once waits for the record and no longer."""
    world = World({})
    world.election.latency = 0.137
    beat = world.leader()
    world.ticks(until=9.9)
    beat.scheduler.add(name="e", task="t", schedule=10.0, last_run_at=NOON)
    world.ticks(until=11)
    (sent,) = world.sent
    assert sent.at == pytest.approx(10.037, abs=0.001)


def test_nothing_is_offered_while_nothing_is_due_soon() -> None:
    """No record leaves because of the schedule; the mark *done* travels with beats that leave anyway."""
    world = World({"e": 600.0})
    beat = world.leader()
    world.ticks(until=500)
    assert beat.member.hurried == 0
    assert world.marks()[1] == pytest.approx(500, abs=1)
    assert beat.turn() > 99


def test_dense_slots_do_not_cost_a_record_each() -> None:
    """Two hurried ones in a heartbeat interval at most."""
    world = World({f"e{n}": 0.05 + n / 100 for n in range(10)})
    beat = world.leader()
    world.ticks(until=10)
    assert len(world.sent) > 800
    assert beat.member.hurried <= 2 * 10 / 0.5 + 1


def test_claims_are_not_far_ahead_and_never_go_back() -> None:
    """What is claimed and not used is in doubt after a crash: an interval at most."""
    world = World({"e": 1.0, "c": crontab()})
    world.leader()
    world.ticks(until=70)
    marks = read_marks(world)
    assert len(marks) > 50
    assert all(a.claimed <= b.claimed and a.settled <= b.settled for a, b in itertools.pairwise(marks))
    assert marks[-1].claimed <= 70.5


def test_the_claim_covers_the_newest_slot_of_an_entry_that_is_late() -> None:
    """After a standstill of the process the first slot that is owed was claimed, and the one to run was not."""
    world = World({"e": 0.1})
    world.leader()
    world.ticks(until=5.45)
    assert world.marks()[0] > 5.8
    world.now = 9.43
    world.ticks(until=10.05)
    assert world.slots()[-3:] == pytest.approx([9.8, 9.9, 10.0])


# -- states --


def test_the_state_of_an_entry_is_written_after_each_run() -> None:
    """The slot and not the moment, how often, by whom."""
    world = World({"e": 10.0, "c": crontab()})
    world.leader()
    seen: list[tuple[float, int, int]] = []
    for until in (10.5, 20.5, 61):
        world.ticks(until=until)
        state = world.state()
        assert (state.since, state.open) == (0, False)
        seen.append((state.last, state.runs, state.epoch))
    assert seen == [(10, 1, 1), (20, 2, 1), (60, 6, 1)]
    assert (world.state("c").last, world.state("c").runs) == (60, 1)


def test_an_entry_that_nobody_knows_is_written_when_the_first_term_begins() -> None:
    """It is born then: the next leader reckons from there."""
    world = World({"e": 3600.0})
    world.now = 7.0
    world.leader()
    world.ticks(until=8)
    assert (world.state().last, world.state().runs) == (7, 0)
    world.beats[0].crash()
    world.now = 3000.0
    world.leader()
    world.ticks(until=4000)
    assert world.slots() == [3607]


def test_a_message_names_its_slot_and_term_and_has_the_slot_s_id() -> None:
    """The id is the same whoever sends it."""
    world = World({"e": 10.0})
    world.leader()
    world.ticks(until=10.1)
    (sent,) = world.sent
    slot = (NOON + timedelta(seconds=10)).isoformat()
    assert (sent.entry, sent.slot, sent.term) == ("e", 10, 1)
    assert sent.id == slot_id("test.beat", "e", slot)
    assert uuid.UUID(sent.id).version == 5


def test_an_id_of_the_entry_s_own_options_is_kept() -> None:
    """As Celery does."""
    world = World({"e": {"task": "t", "schedule": 10.0, "options": {"task_id": "mine"}}})
    world.leader()
    world.ticks(until=10.1)
    assert world.sent[0].id == "mine"


class Asked(schedule):
    """A user's own class: due ten seconds after its last run, and knows no slots."""

    def __init__(self, app: Any = None) -> None:
        super().__init__(10, app=app)

    def is_due(self, last_run_at: datetime) -> Any:
        left = 10 - (self.now() - last_run_at).total_seconds()
        return (True, 10) if left <= 0 else (False, left)


def test_schedules_that_know_only_is_due_run_and_are_taken_over() -> None:
    """They have no slots to claim: their state tells when they ran, to whoever leads next."""
    world = World({"e": Asked()})
    world.leader()
    world.ticks(until=25)
    assert [round(each.at) for each in world.sent] == [10, 20]
    assert world.state().runs == 2
    world.beats[0].crash()
    world.leader()
    world.ticks(until=36)
    assert [round(each.at) for each in world.sent] == [10, 20, 30]
    assert len({each.id for each in world.sent}) == 3


# -- the mark done --


def failing(world: World, entry: str, until: float) -> Callable[[str], None]:
    """A hook for the wire: messages of the entry fail until that time."""

    def fail(name: str) -> None:
        if name == entry and world.now < until:
            raise OperationalError("it cannot be sent")

    return fail


def test_an_entry_that_cannot_be_sent_stops_no_other() -> None:
    """Its slot is tried again with growing pauses, and runs in the end."""
    tries: list[float] = []
    world = World({"bad": 1000.0, "good": 1.0})
    fail = failing(world, "bad", 1040)

    def note(entry: str) -> None:
        if entry == "bad":
            tries.append(world.now)
        fail(entry)

    world.before_wire = note
    world.leader()
    world.ticks(until=1100)
    pauses = [round(b - a) for a, b in itertools.pairwise(tries)]
    assert pauses == [1, 2, 4, 8, 16, 32]
    assert world.slots("bad") == [1000]
    assert world.slots("good") == [float(n) for n in range(1, 1101)]


def test_pauses_after_failures_grow_to_a_minute_and_begin_anew_after_a_success() -> None:
    """An entry that fails for an hour is tried each minute."""
    tries: list[float] = []
    world = World({"bad": 1000.0})
    world.leader()

    def fail(entry: str) -> None:
        tries.append(world.now)
        if world.now < 1500 or 2000 <= world.now < 2001:
            raise OperationalError("it cannot be sent")

    world.before_wire = fail
    world.ticks(until=2010)
    pauses = [round(b - a) for a, b in itertools.pairwise(tries)]
    assert pauses[:9] == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert pauses[-1] == 1


def test_a_slot_that_fails_is_declared_open_and_then_holds_nobody_up() -> None:
    """*done* stays below it until that state is in Kafka; the successor goes by the state alone."""
    world = World({"bad": 10.0, "good": 1.0}, neli_misfire="fire_all")
    beat = world.leader()
    world.before_wire = failing(world, "bad", 100)
    world.ticks(until=9.5)
    beat.topic.up = False
    world.ticks(until=14)
    assert world.marks()[1] < 10
    assert world.slots("good")[-1] == 14
    beat.topic.up = True
    beat.topic.resend()
    world.ticks(until=17)
    assert world.marks()[1] > 16
    assert world.state("bad").open
    assert world.state("bad").last == 0
    beat.crash()
    world.before_wire = lambda entry: None
    world.leader()
    world.ticks(until=25)
    assert world.slots("bad") == [10, 20]
    assert not world.state("bad").open


def test_an_entry_that_failed_is_closed_when_it_has_caught_up() -> None:
    """Then *done* covers it again."""
    world = World({"bad": 10.0, "good": 1.0}, neli_misfire="fire_all")
    world.leader()
    world.before_wire = failing(world, "bad", 35)
    world.ticks(until=34)
    assert world.state("bad").open
    world.ticks(until=55)
    assert world.slots("bad") == [10, 20, 30, 40, 50]
    assert not world.state("bad").open


def test_a_failed_publish_does_not_advance_the_slot() -> None:
    """Neither last run nor count, here or in Kafka."""
    world = World({"bad": 10.0})
    beat = world.leader()
    world.before_wire = failing(world, "bad", 100)
    world.ticks(until=12)
    assert beat.entry("bad").total_run_count == 0
    assert beat.entry("bad").last_run_at == NOON
    assert (world.state("bad").last, world.state("bad").runs) == (0, 0)


def test_done_does_not_pass_slots_that_are_owed() -> None:
    """Of one entry with many, of many entries with one: what has not left yet is not done."""
    names = [f"e{n}" for n in range(20)]
    world = World({"e": 1.0, **dict.fromkeys(names, 50.0)}, neli_misfire="fire_all")
    world.put_state("e", 0.0)
    world.now = 60.0
    world.leader()

    def look(entry: str) -> None:
        sent = {(each.entry, each.slot) for each in world.sent}
        owed = [*(("e", float(n)) for n in range(1, 61)), *((name, 50.0) for name in names if name != "e")]
        first = min((slot for name, slot in owed if (name, slot) not in sent), default=math.inf)
        dones.append((read_marks(world)[-1].settled if world.election.records else 0, first))
        world.now += 0.07

    dones: list[tuple[float, float]] = []
    world.before_wire = look
    for name in names:
        world.put_state(name, 0.0)
    world.ticks(until=62)
    assert len(dones) >= 80
    assert all(done < first for done, first in dones)
    assert world.slots() == [float(n) for n in range(1, len(world.slots()) + 1)]


def test_an_entry_that_is_added_with_a_slot_already_past_is_open_until_that_ran() -> None:
    """*done* may have passed it already, so it must not count for this one."""
    world = World({"tick": 1.0})
    world.leader()
    world.ticks(until=8.5)
    world.put("r", "PT1S")
    world.before_wire = failing(world, "r", 100)
    world.now = 9.8
    world.ticks(until=12.5)
    assert world.state("r").open
    assert world.marks()[1] > 10
    world.beats[0].crash()
    world.before_wire = lambda entry: None
    world.leader()
    world.ticks(until=13)
    assert world.slots("r")[0] > 9
    world.ticks(until=16)
    assert not world.state("r").open


# -- what is left out --


def test_slots_that_were_missed_go_by_the_misfire_policy(caplog: pytest.LogCaptureFixture) -> None:
    """Counted, logged, and settled in Kafka."""
    policies: dict[str, Any] = {
        "once": {}, "all": {"neli_misfire": "fire_all", "neli_misfire_max": 3},
        "skip": {"neli_misfire": "skip", "neli_misfire_grace": 1},
    }  # fmt: skip
    world = World({name: {"task": "t", "schedule": 10.0, "options": options} for name, options in policies.items()})
    for name in policies:
        world.put_state(name, 0.0)
    world.now = 95.0
    beat = world.leader()
    with caplog.at_level(logging.WARNING):
        world.ticks(until=96)
    # No leader's mark was found although somebody has led: what is past is in doubt, and sent by the same policy.
    assert {name: world.slots(name) for name in policies} == {"once": [90], "all": [70, 80, 90], "skip": []}
    assert beat.left_out == 8 + 6 + 9
    assert caplog.text.count("slots missed") == 3
    assert {world.state(name).last for name in policies} == {90}
    assert world.state("skip").runs == 0
