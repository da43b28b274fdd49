"""Very many records at once, and entries that ask for very much: no good entry loses a slot, and memory has a bound."""

from __future__ import annotations

import logging
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from celery_neli.beat.replicated import host
from celery_neli.beat.replicated.inventory import ORPHANS
from celery_neli.exceptions import ConfigurationError
from celery_neli.logs import EntryLines
from celery_neli.schedule_topic.codec import (
    ENTRY,
    STATE,
    Definition,
    State,
    decode_definition,
    encode_definition,
    encode_state,
    key_of,
    kind_of,
)
from tests.unit.beats import START, World

if TYPE_CHECKING:
    from tests.unit.beats import Process

HOURLY = Definition(task="t", schedule="PT1H", since=START)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock of a portion is its end: one record is handed over at a time."""
    monkeypatch.setattr(host, "PORTION", -1.0)


def flood(world: World, count: int) -> None:
    """So many entries are put at once."""
    value = encode_definition(HOURLY)
    world.log.extend((ENTRY, f"flood-{n}", value, None) for n in range(count))


def known(beat: Process) -> int:
    return sum(name.startswith("flood") for name in beat.scheduler.schedule)


@pytest.mark.usefixtures("slow")
def test_what_comes_at_once_is_taken_in_portions_between_which_slots_run() -> None:
    """A tick takes as much as its time allows, and comes back at once for the rest; the good entry is on time."""
    world = World({"good": 1.0})
    beat = world.leader()
    world.ticks(until=1.5)
    flood(world, 50)
    counts = []
    for _ in range(10):
        assert beat.turn() == 0
        counts.append(known(beat))
    assert counts == list(range(1, 11))
    world.now = 2.0
    beat.turn()
    beat.turn()
    assert world.slots("good") == [1, 2]
    assert known(beat) < 20
    world.ticks(until=3.5)
    assert known(beat) == 50
    assert world.slots("good") == [1, 2, 3]


@pytest.mark.usefixtures("slow")
def test_portions_keep_the_order_of_the_topic() -> None:
    """An entry that was put, changed, removed and put again is what was said last."""
    world = World({"good": 1.0})
    beat = world.leader()
    world.ticks(until=1.5)
    flood(world, 5)
    world.put("r", "PT10S")
    beat.turn()
    flood(world, 5)
    world.put("r", "PT20S")
    beat.turn()
    world.edit().remove("r")
    beat.turn()
    world.put("r", "PT30S")
    world.ticks(until=2.5)
    assert beat.entry("r").schedule.seconds == 30


@pytest.mark.usefixtures("slow")
def test_a_standby_comes_back_at_once_for_what_is_left() -> None:
    """It has everything soon, however much came at once."""
    world = World({"good": 1.0})
    beat = world.beat()
    beat.turn()
    flood(world, 30)
    for _ in range(29):
        assert beat.turn() == 0
    beat.turn()
    assert known(beat) == 30
    assert beat.turn() > 0


def test_all_shards_of_a_beat_share_one_portion(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many it has, the slots of one wait for no more than that."""
    monkeypatch.setattr(host, "PORTION", 60.0)
    world = World({"good": 1.0})
    beat = world.beat(shards=4)
    beat.turn()
    flood(world, 30)
    clock = iter([0.0, *([100.0] * 1000)])
    monkeypatch.setattr(host, "time", SimpleNamespace(perf_counter=lambda: next(clock), monotonic=time.monotonic))
    beat.turn()
    assert sum(name.startswith("flood") for each in beat.schedulers for name in each.schedule) == 1


def test_a_name_without_end_is_none_of_ours() -> None:
    """Everybody would keep it in memory."""
    assert kind_of(key_of(ENTRY, "x" * 5000)) == (ENTRY, "x" * 5000)
    assert kind_of(key_of(ENTRY, "x" * 10_000)) is None


@pytest.mark.usefixtures("slow")
def test_a_term_begins_with_everything_that_is_known() -> None:
    """However much came while it stood by: what an entry has come to decides which of its slots are owed."""
    world = World({"good": 1.0, **{f"e{n}": 1.0 for n in range(30)}}, neli_in_doubt="skip", neli_misfire="fire_all")
    first = world.leader()
    standby = world.beat()
    world.ticks(until=3.5)
    flood(world, 40)
    world.log.extend((STATE, f"e{n}", encode_state(State(START + 2, 7, 1)), None) for n in range(30))
    first.crash()
    standby.member.lead()
    standby.turn()
    assert known(standby) == 40
    assert all(standby.entry(f"e{n}").total_run_count >= 7 for n in range(30))


def test_one_line_tells_of_many_records(caplog: pytest.LogCaptureFixture) -> None:
    """Not one for each, nor one for each portion."""
    caplog.set_level(logging.INFO, logger="celery_neli")
    world = World({"good": 1.0})
    world.leader()
    world.ticks(until=1.5)
    flood(world, 3000)
    world.ticks(until=2.5)
    assert caplog.text.count("schedule read records=3000") == 1
    assert "was defined" not in caplog.text


def test_states_of_entries_that_nobody_defines_are_bounded() -> None:
    """The newest are kept, once everything was read, for their entries may come."""
    world = World({"good": 1.0})
    beat = world.leader()
    world.ticks(until=1.5)
    count = ORPHANS + 500
    world.log.extend((STATE, f"stray-{n}", encode_state(State(START - 50, 7, 0)), None) for n in range(count))
    world.ticks(until=2.5)
    for n in (0, count - 1):
        world.put(f"stray-{n}", "PT1H")
    world.ticks(until=3.5)
    assert [beat.entry(f"stray-{n}").total_run_count for n in (0, count - 1)] == [0, 7]


def test_pauses_of_entries_that_are_not_here_are_bounded() -> None:
    """The newest are kept; what they hold besides is not."""
    world = World({"good": 1.0})
    beat = world.leader()
    world.ticks(until=1.5)
    order = encode_definition(Definition(task=None, schedule=None, static=True, paused=True, args=["x" * 1000]))
    world.log.extend((ENTRY, f"stray-{n}", order, None) for n in range(ORPHANS + 500))
    world.ticks(until=2.5)
    scheduler = beat.scheduler
    for n in (0, ORPHANS + 499):
        scheduler.add(name=f"stray-{n}", task="t", schedule=1.0)
    assert (f"stray-{ORPHANS + 499}" in scheduler.schedule, "stray-0" in scheduler.schedule) == (False, True)


def test_many_changes_of_one_entry_are_a_line_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """The later one says how many there were in between."""
    caplog.set_level(logging.INFO, logger="celery_neli")
    world = World({"good": 1.0})
    beat = world.leader()
    world.ticks(until=1.5)
    for n in range(50):
        world.put("r", f"PT{n + 10}S")
        beat.turn()
    assert caplog.text.count("entry=r was") == 2, "defined, changed"


# -- how often an entry may run --


@pytest.mark.parametrize("schedule", [0.001, "PT0.5S", 0.999])
def test_an_interval_below_the_floor_is_refused_when_it_is_put(schedule: Any) -> None:
    """The error names the setting and both values; nothing is stored."""
    world = World({})
    with pytest.raises(ConfigurationError, match=r"schedule = .*neli_least_interval = 1 s"):
        world.put("r", schedule)
    assert world.log == []


@pytest.mark.parametrize("schedule", ["PT1S", "* * * * *", "at:2026-03-01T13:00:00Z"])
def test_what_is_no_shorter_is_put(schedule: str) -> None:
    """Crontabs and single times have no interval."""
    world = World({})
    world.put("r", schedule)
    assert len(world.log) == 1


def test_an_interval_below_the_floor_is_not_run_from_the_topic(caplog: pytest.LogCaptureFixture) -> None:
    """One line names the entry and the setting; other entries run; `list` shows why it does not."""
    world = World({"good": 1.0})
    world.leader()
    short = Definition(task="t", schedule="PT0.001S", since=START)
    for _ in range(3):
        world.log.append((ENTRY, "r", encode_definition(short), None))
        world.put("other", "PT1S")
        world.ticks(until=world.now + 2)
    assert world.slots("r") == []
    assert len(world.slots("other")) >= 3
    assert caplog.text.count("entry=r cannot be read here") == 1
    assert "neli_least_interval = 1 s" in caplog.text


def test_the_floor_is_a_setting_and_none_for_beat_schedule() -> None:
    """Who writes `beat_schedule` runs the beats."""
    world = World({"static": 0.25}, neli_least_interval=0.5)
    world.log.append((ENTRY, "r", encode_definition(Definition(task="t", schedule="PT0.5S", since=START)), None))
    world.leader()
    world.ticks(until=1.05)
    assert len(world.slots("static")) == 4
    assert world.slots("r") == [0.5, 1.0]


@pytest.mark.parametrize("value", [0, -1, "1", True, float("nan")])
def test_a_floor_that_is_none_is_told_at_the_start(value: Any) -> None:
    """By name."""
    with pytest.raises(ConfigurationError, match="neli_least_interval"):
        World({"e": 1.0}).beat(neli_least_interval=value)


# -- how much one entry may log --


class Lines:
    """A clock, and what was logged."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.lines: list[str] = []
        self.limited = EntryLines(self, clock=lambda: self.now)  # type: ignore[arg-type]  # all that it uses

    def warning(self, msg: str, *args: Any) -> None:
        self.lines.append(msg % args)

    def miss(self, *entries: str) -> None:
        for entry in entries:
            self.limited.warning("missed", entry, "missed entry=%s", entry)


def test_the_first_line_of_an_entry_is_logged_and_one_a_minute_with_a_count() -> None:
    """Each kind and each entry by itself."""
    log = Lines()
    for _ in range(120):
        log.miss("a", "b")
        log.now += 1
    assert log.lines == [
        "missed entry=a",
        "missed entry=b",
        "missed entry=a suppressed=59",
        "missed entry=b suppressed=59",
    ]


def test_lines_that_no_later_one_tells_of_are_summed_up() -> None:
    """A slot is never missed without a word: one line per kind, however many entries."""
    log = Lines()
    names = [f"e{n}" for n in range(20)]
    log.limited.summarize(log.now)
    for _ in range(3):
        log.miss(*names)
    log.lines.clear()
    log.now += 30
    log.limited.summarize(log.now)
    assert log.lines == []
    log.now += 40
    log.limited.summarize(log.now)
    assert log.lines == ["beat: lines suppressed about=missed count=40 entries=20: e0, e1, e2, e3, e4, …"]
    log.now += 70
    log.limited.summarize(log.now)
    assert len(log.lines) == 1


def test_an_entry_that_misses_slots_all_the_time_logs_a_line_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """The count of slots stays exact."""
    world = World({"e": 0.1}, neli_misfire="skip", neli_misfire_grace=0.01)
    beat = world.leader()
    world.ticks(until=1)
    caplog.clear()
    for _ in range(100):
        world.now += 0.55
        beat.turn()
    assert beat.left_out > 100
    assert 1 <= caplog.text.count("slots missed") <= 2


def test_a_definition_as_large_as_can_be_is_one_portion() -> None:
    """What is kept of it is what the entry needs, and the bytes that were read."""
    large = encode_definition(Definition(task="t", schedule="PT1H", args=["x" * 1000] * 250, since=START))
    assert len(decode_definition(large).args) == 250
    world = World({"good": 1.0})
    beat = world.leader()
    world.ticks(until=1.5)
    world.log.extend((ENTRY, f"flood-{n}", large, None) for n in range(40))
    world.ticks(until=2.5)
    assert known(beat) == 40
