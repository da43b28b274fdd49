"""Records that nobody sound wrote: they cost nothing but themselves; the replicated scheduler persists its states."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from celery_neli.beat.replicated.term import begin, version_of
from celery_neli.exceptions import RecordError
from celery_neli.periodic.view import view_of
from celery_neli.schedule_topic.codec import (
    ENTRY,
    EPOCH_MOST,
    RUNS_MOST,
    STATE,
    Definition,
    Note,
    State,
    decode_definition,
    decode_state,
    encode_definition,
    encode_state,
)
from celery_neli.schedule_topic.notes import living
from celery_neli.schedule_topic.values import MAX_INT
from tests.unit.beats import START, World
from tests.unit.test_shards import tells

DAY = 86_400.0
YEAR_2200 = datetime(2200, 1, 1, tzinfo=timezone.utc).timestamp()
#: Terms that somebody may forge: what earlier releases read, the highest that this one reads, and one below.
EPOCHS = [MAX_INT, MAX_INT - 1, EPOCH_MOST + 1, EPOCH_MOST, EPOCH_MOST - 1]


def forge(world: World, **fields: Any) -> None:
    """Write a state of the entry `e` with these fields, whatever they are."""
    value = {"v": 1, "last": START, "runs": 3, "term": 1, **fields}
    world.log.append((STATE, "e", json.dumps(value).encode(), None))


def succeed(world: World) -> None:
    """The leader hands over to a beat that was not there before, and has read all of the topic."""
    world.beats[-1].hand_over()
    world.leader()


# -- terms --


@pytest.mark.parametrize("term", EPOCHS)
def test_a_forged_term_does_not_end_persistence(term: int) -> None:
    """Each later leader writes states that its successors read, and that count before the forged one."""
    world = World({"e": 10.0})
    forge(world, term=term)
    world.leader()
    world.ticks(until=15)
    for until in (25, 35):
        succeed(world)
        world.ticks(until=until)
    assert world.slots() == [10, 20, 30]
    state = world.state()
    assert (state.last, 0 <= state.epoch <= EPOCH_MOST) == (30, True)


@pytest.mark.parametrize("term", EPOCHS)
def test_a_forged_term_that_comes_while_a_beat_leads_is_written_over(term: int) -> None:
    """Compaction keeps what was written last; a beat that starts afterwards knows the true state."""
    world = World({"e": 10.0})
    world.leader()
    world.ticks(until=15)
    forge(world, term=term, last=START + 5)
    world.ticks(until=16)
    assert (world.state().last, world.state().runs) == (10, 1)


@pytest.mark.parametrize("base", [EPOCH_MOST, 1 << 62, 10**39, -5, True, 1e308, "9"])
def test_a_forged_base_in_the_records_of_the_role_does_not_end_persistence(base: Any) -> None:
    """What is added to a term for its epoch is inherited only where it leaves room, and the epoch stays readable."""
    world = World({"e": 10.0})
    world.leader()
    world.ticks(until=15)
    world.beats[-1].hand_over()
    data = dict(world.election.role("leader").data or {})
    world.election.role("leader").data = {**data, "base": base}
    world.leader()
    world.ticks(until=25)
    assert world.state().last == 20


def test_a_mark_is_raised_only_after_the_state_was_accepted() -> None:
    """A state that is refused for one field hides none of a lower term that comes after it."""
    world = World({"e": 10.0})
    forge(world, term=1000, last=1e18)
    beat = world.beat()
    world.ticks(until=1)
    assert beat.topic.refused == ["e"]
    forge(world, term=5, last=START + 1)
    beat.member.lead()
    world.ticks(until=12)
    assert world.slots() == [11]
    assert world.state().runs == 3 + 1


# -- times --


@pytest.mark.parametrize("ahead", [DAY + 60, 30 * DAY, YEAR_2200 - START])
@pytest.mark.parametrize("known", [True, False])
def test_a_last_run_far_ahead_does_not_silence_the_entry(
    ahead: float, known: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether the beat knew better or not; one line names the entry, and the next state says how it is."""
    world = World({"e": 10.0})
    standby = world.beat()
    if known:
        world.leader()
        world.ticks(until=15)
        world.beats[-1].hand_over()
    else:
        world.ticks(until=15)
    forge(world, last=START + ahead, term=900)
    standby.member.lead()
    world.ticks(until=40)
    assert len(world.slots()) >= 2
    assert world.state().last <= 40
    assert caplog.text.count("schedule: entry=e last=") == len(world.beats)
    assert "is not believed" in caplog.text


def test_a_last_run_less_far_ahead_is_waited_for_and_said(caplog: pytest.LogCaptureFixture) -> None:
    """It may be of a leader whose clock was fast. The line says until when the entry does not run."""
    world = World({"e": 10.0})
    forge(world, last=START + 600, term=900)
    world.leader()
    world.ticks(until=595)
    assert world.slots() == []
    assert "the entry does not run before" in caplog.text
    world.ticks(until=615)
    assert world.slots() == [610]


def test_a_start_in_two_months_is_waited_for_and_said(caplog: pytest.LogCaptureFixture) -> None:
    """It is no forgery: an entry may begin later. Its state says the same time, and is believed by a successor."""
    world = World({})
    definition = Definition(task="t", schedule="P1D", since=START + 60 * DAY)
    world.log.append((ENTRY, "r", encode_definition(definition), None))
    world.leader()
    world.ticks(until=25)
    succeed(world)
    world.ticks(until=45)
    assert world.slots("r") == []
    assert world.state("r").last == 60 * DAY
    assert view_of(world.edit(), "r").next == START + 61 * DAY
    assert "the entry does not run before" in caplog.text
    assert "is not believed" not in caplog.text


@pytest.mark.parametrize("ahead", [3651 * DAY, YEAR_2200 - START])
def test_a_definition_since_a_far_time_runs_from_now_on(ahead: float, caplog: pytest.LogCaptureFixture) -> None:
    """Also in the next term, whose beat reads its state; `list` says the same."""
    world = World({})
    definition = Definition(task="t", schedule="PT10S", since=START + ahead)
    world.log.append((ENTRY, "r", encode_definition(definition), None))
    world.leader()
    world.ticks(until=25)
    assert world.slots("r") == [10, 20]
    succeed(world)
    world.ticks(until=45)
    assert world.slots("r") == [10, 20, 30, 40]
    assert "since=" in caplog.text
    assert view_of(world.edit(), "r").next == START + 50


def test_a_last_sent_task_far_ahead_holds_up_nothing() -> None:
    """An entry that waits for its last task is not told of one of the year 2200; of one that was sent, it is."""
    world = World({"e": 10.0})
    forge(world, sent=YEAR_2200)
    beat = world.beat()
    world.ticks(until=1)
    assert beat.last_sent == {}
    forge(world, sent=START - 5)
    world.ticks(until=2)
    assert beat.last_sent == {"e": START - 5}


@pytest.mark.parametrize("field", ["last", "since", "sent"])
@pytest.mark.parametrize("value", [1e308, -1e308, 1e18, -1e18, 253402300799, True, "1", None, [], 10**400])
def test_a_time_that_is_no_date_is_refused(field: str, value: Any) -> None:
    """Before anything is made of it. A state may lack `since` and `sent`."""
    text = json.dumps({"v": 1, "last": 1.0, "runs": 0, "term": 0, field: value}).encode()
    if value is None and field != "last":
        decode_state(text)
        return
    with pytest.raises(RecordError):
        decode_state(text)
    if field == "since" and value is not None:
        definition = encode_definition(Definition(task="t", schedule="PT1S"))
        with pytest.raises(RecordError):
            decode_definition(definition.replace(b'"since":0.0', b'"since":' + json.dumps(value).encode()))


def test_the_first_and_the_last_date_have_one_in_every_zone() -> None:
    """What is accepted can be placed, wherever the entry's clock is."""
    for value in (-62_135_596_800.0 + 2 * DAY, 253_402_300_799.0 - 2 * DAY):
        state = decode_state(encode_state(State(value, 0, 0)))
        for zone in ("Pacific/Kiritimati", "Pacific/Pago_Pago"):
            datetime.fromtimestamp(state.last, timezone.utc).astimezone(ZoneInfo(zone))


# -- counts --


@pytest.mark.parametrize("runs", [MAX_INT, MAX_INT - 1, RUNS_MOST])
def test_a_forged_count_of_runs_can_be_written_on(runs: int) -> None:
    """The count stays at its bound, and the entry's state is read by every successor."""
    world = World({"e": 10.0})
    forge(world, runs=runs)
    for until in (15, 25):
        world.leader()
        world.ticks(until=until)
        world.beats[-1].hand_over()
    assert (world.state().last, world.state().runs) == (20, RUNS_MOST)


@pytest.mark.parametrize("field", ["runs", "term"])
@pytest.mark.parametrize("value", [-2, True, 1.0, 1e308, "1", None, 10**30])
def test_a_count_that_is_none_is_refused(field: str, value: Any) -> None:
    """No booleans, no floats, nothing negative (but the term of an import)."""
    with pytest.raises(RecordError):
        decode_state(json.dumps({"v": 1, "last": 1.0, "runs": 0, "term": 0, field: value}).encode())


def test_a_state_that_is_too_long_is_refused() -> None:
    """It would be kept in memory by everybody."""
    with pytest.raises(RecordError, match="longer"):
        decode_state(encode_state(State(1.0, 0, 0))[:-1] + b',"x":"' + b"x" * 5000 + b'"}')


# -- what the records of a role carry --


@pytest.mark.parametrize("split", [{"junk": "x" * 999}, {"1": 5}, {"1": {"claimed": "x"}}, {"7": {}}, [], True, 3])
def test_what_a_term_inherits_for_new_shards_is_marks_only(split: Any) -> None:
    """Whatever stands there is not carried on, for records have an end."""
    beginning = begin(0, 2, tells(r0={"shards": 2, "claimed": 9.0, "done": 8.0, "split": split}), now=100.0)
    assert beginning is not None
    assert dict(beginning.data) == {"shards": 2}


@pytest.mark.parametrize("shards", [257, 10**39, -1, True, 2.0, "4"])
def test_a_number_of_shards_that_nobody_can_set_counts_as_none(shards: Any) -> None:
    """Nobody could get out of it by a setting."""
    beginning = begin(0, 1, tells(r0={"shards": shards, "claimed": 9.0, "done": 8.0}), now=100.0)
    assert beginning is not None
    assert beginning.data == {"shards": 1}


@pytest.mark.parametrize(
    ("value", "version"), [(3, 3), (0, 0), (-1, -1), (True, -1), (1 << 60, -1), (2.5, -1), ("9", -1)]
)
def test_a_schedule_version_that_nobody_can_set_is_none(value: Any, version: int) -> None:
    """A forged one must not keep every newer beat from asking."""
    assert version_of({"version": value}) == version


def test_a_member_whose_note_is_of_the_future_is_not_alive_for_ever() -> None:
    """A note is young by either sign."""
    note = Note(schedule="a", version=None, at=YEAR_2200)
    assert living({"m": note}, None, START) == []
    assert len(living({"m": Note(schedule="a", version=None, at=START + 10)}, None, START)) == 1
