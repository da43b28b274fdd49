"""Options that shape a schedule, through the end of a leader: jitter, calendar, start, end, and a number of runs."""

from __future__ import annotations

from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from celery.schedules import crontab

from celery_neli.schedule.slots import slot_id
from tests.unit.beats import NOON, START, Crash, Process, World

if TYPE_CHECKING:
    from collections.abc import Callable

MINUTELY = crontab()
JITTER = 40.0
#: By which an entry "e" is shifted, as every process computes it.
SHIFT = 9.90625


def entry(schedule: Any = MINUTELY, **options: Any) -> dict[str, Any]:
    return {"task": "t", "schedule": schedule, "options": {f"neli_{name}": each for name, each in options.items()}}


def is_closed(day: date) -> bool:
    """A calendar: the second of March."""
    return day == date(2026, 3, 2)


def crash(beat: Process) -> None:
    beat.crash()


def hand_over(beat: Process) -> None:
    beat.hand_over()


def delays(world: World, name: str = "e") -> set[float]:
    return {round(each.at - each.slot, 3) for each in world.sent if each.entry == name}


def minutes(first: int, last: int) -> list[float]:
    return [60.0 * n for n in range(first, last + 1)]


def test_a_slot_with_jitter_is_named_by_its_time_and_sent_after_its_shift() -> None:
    """The task's id and headers are those of the slot without jitter; so is the state."""
    world = World({"e": entry(jitter=JITTER)})
    world.leader()
    world.ticks(until=200)
    assert world.slots() == minutes(1, 3)
    [delay] = delays(world)
    assert 0 <= delay < JITTER
    assert [each.id for each in world.sent] == [
        slot_id("test.beat", "e", (NOON + timedelta(seconds=each)).isoformat()) for each in minutes(1, 3)
    ]
    assert world.state().last == 180.0
    assert world.state().runs == 3


@pytest.mark.parametrize("end", [crash, hand_over])
@pytest.mark.parametrize("at", [120.0, 120.2, 129.0, 130.0, 131.0, 145.0])
def test_a_slot_that_waits_for_its_jitter_is_sent_once(end: Callable[[Process], None], at: float) -> None:
    """The leader ends when the slot's time has come and its shift has not passed, or just after."""
    world = World({"e": entry(jitter=JITTER), "other": 1.0})
    beats = [world.leader(), world.beat()]
    world.ticks(until=at)
    end(beats[0])
    world.ticks(until=at + 5)
    beats[1].member.lead()
    world.ticks(until=300)
    assert world.slots() == minutes(1, 4)
    assert world.doubled().keys() <= {each for each in world.doubled() if each[0] == "other"}


def test_a_slot_with_jitter_whose_sender_is_killed_is_sent_again_with_the_same_id() -> None:
    """It is in doubt, as any other."""
    world = World({"e": entry(jitter=JITTER)})
    world.leader()
    successor = world.beat()

    def die(name: str) -> None:
        if world.now > 120:
            world.after_wire = lambda entry: None
            raise Crash

    world.after_wire = die
    world.ticks(until=150)
    successor.member.lead()
    world.ticks(until=200)
    assert world.slots() == [60.0, 120.0, 120.0, 180.0]
    assert len({each.id for each in world.sent}) == 3
    assert successor.in_doubt == 1


@pytest.mark.parametrize("end", [crash, hand_over])
def test_max_runs_counts_on_in_the_next_leader(end: Callable[[Process], None]) -> None:
    """Three runs, of one leader or two; the entry is finished then, and stays so."""
    world = World({"e": entry(1.0, max_runs=3), "other": 1.0})
    beats = [world.leader(), world.beat(), world.beat()]
    world.ticks(until=2.2)
    end(beats[0])
    world.ticks(until=4)
    beats[1].member.lead()
    world.ticks(until=20)
    assert len(world.slots()) == 3
    end(beats[1])
    world.ticks(until=25)
    beats[2].member.lead()
    world.ticks(until=60)
    assert len(world.slots()) == 3
    assert world.state().runs == 3
    assert world.slots("other")[-1] == 60.0


def test_a_finished_entry_goes_on_if_it_may_run_more_often() -> None:
    """A runtime entry whose options are changed; what passed before is subject to the misfire policy."""
    world = World()
    world.leader()
    world.put("e", "1s", options={"neli_max_runs": 2})
    world.ticks(until=10)
    assert world.slots() == [1.0, 2.0]
    world.put("e", "1s", options={"neli_max_runs": 4})
    world.ticks(until=20)
    assert len(world.slots()) == 4


def test_fire_all_stops_at_the_number_of_runs() -> None:
    """Of five slots that are owed, the oldest two run."""
    world = World({"e": entry(10.0, max_runs=3, misfire="fire_all")})
    beats = [world.leader(), world.beat()]
    world.ticks(until=11)
    beats[0].crash()
    world.ticks(until=62)
    beats[1].member.lead()
    world.ticks(until=100)
    assert world.slots() == [10.0, 20.0, 30.0]


def test_a_day_that_a_calendar_leaves_out_stays_left_out() -> None:
    """A leader that ends on that day, and its successor, owe nothing of it."""
    world = World({"e": entry(crontab(minute="0"), calendar=is_closed)})
    world.interval = 30.0
    beats = [world.leader(), world.beat()]
    world.ticks(until=18 * 3600)
    assert world.slots() == [3600.0 * n for n in range(1, 12)]
    beats[0].crash()
    world.ticks(until=20 * 3600)
    beats[1].member.lead()
    world.ticks(until=37.5 * 3600)
    assert world.slots() == [3600.0 * n for n in (*range(1, 12), 36, 37)]


def test_an_entry_runs_from_its_start_to_its_end() -> None:
    """Both included, and no line says that its time never comes."""
    begin, end = NOON + timedelta(seconds=90), NOON + timedelta(seconds=120)
    world = World({"e": entry(15.0, start=begin, end=end.isoformat()), "c": entry(MINUTELY, start=end)})
    beats = [world.leader(), world.beat()]
    world.ticks(until=100)
    beats[0].hand_over()
    beats[1].member.lead()
    world.ticks(until=200)
    assert world.slots() == [90.0, 105.0, 120.0]
    assert world.slots("c") == [120.0, 180.0]


@pytest.mark.parametrize(("before", "after"), [(5.0, 40.0), (40.0, 5.0), (40.0, None), (None, 40.0)])
@pytest.mark.parametrize("at", [100.0, 119.9, 121.0, 125.0, 131.0])
def test_no_slot_runs_twice_or_is_lost_if_the_jitter_is_changed(
    before: float | None, after: float | None, at: float
) -> None:
    """At runtime. A slot whose old time had come counts as passed, any other runs at its new time."""
    world = World()
    world.leader()
    world.put("e", "* * * * *", options={"neli_jitter": before})
    world.ticks(until=at)
    world.put("e", "* * * * *", options={"neli_jitter": after})
    world.ticks(until=250)
    assert world.slots() == minutes(1, 4)


@pytest.mark.parametrize(("before", "after", "lost"), [(5.0, 40.0, []), (40.0, 5.0, [120.0])])
def test_no_slot_runs_twice_if_the_jitter_of_beat_schedule_is_changed(
    before: float, after: float, lost: list[float]
) -> None:
    """By a new version of it, while the old one stops. A slot is left out if its new time has passed, and its old time
    had not come.
    """
    world = World({"e": entry(jitter=before)})
    old = world.leader()
    world.ticks(until=125)
    old.hand_over()
    new = world.beat({"e": entry(jitter=after)})
    new.member.lead()
    world.ticks(until=250)
    assert world.slots() == [each for each in minutes(1, 4) if each not in lost]


def test_a_pause_ends_after_the_slots_of_its_time() -> None:
    """One that waits for its jitter when the pause ends is of its time."""
    world = World()
    world.leader()
    world.put("e", "* * * * *", options={"neli_jitter": JITTER})
    world.ticks(until=100)
    world.edit().pause("e")
    world.ticks(until=181)
    world.edit().resume("e")
    world.ticks(until=260)
    assert world.slots() == [60.0, 240.0]


def test_a_thousand_entries_are_spread() -> None:
    """Evenly enough: no tenth of the span has more than twice its share."""
    world = World({f"e{n}": entry(60.0, jitter=60) for n in range(1000)})
    world.leader()
    world.ticks(until=119.99)
    late = [each.at % 60 for each in world.sent if each.at >= 60]
    assert len(late) == 1000
    counts = [sum(6 * n <= each < 6 * (n + 1) for each in late) for n in range(10)]
    assert max(counts) < 150
    assert all(each.slot % 60 == 0 for each in world.sent)
    assert START % 60 == 0


def test_runs_whose_states_were_lost_do_not_count_beyond_the_number() -> None:
    """The mark *done* goes on when an entry is finished."""
    world = World({"e": entry(1.0, max_runs=8), "other": 1.0})
    first = world.leader()
    world.ticks(until=5.2)
    first.topic.up = False
    world.ticks(until=20.2)
    first.crash()
    world.now = 30.0
    world.leader()
    world.ticks(until=40)
    assert world.slots() == [float(n) for n in range(1, 9)]
    assert world.state().runs == 8


def test_an_entry_that_the_former_leader_did_not_have_begins_with_the_slot_that_waits_for_its_jitter() -> None:
    """It is due after the mark *done*, and so it is owed."""
    world = World({"other": 1.0})
    first = world.leader()
    world.ticks(until=125)
    first.hand_over()
    second = world.beat({"other": 1.0, "e": entry(jitter=JITTER)})
    second.member.lead()
    world.ticks(until=200)
    assert world.slots() == [120.0, 180.0]


@pytest.mark.parametrize(("before", "after"), [(5.0, 40.0), (40.0, 5.0)])
def test_a_jitter_that_is_changed_just_before_the_leader_ends_loses_nothing(before: float, after: float) -> None:
    """Whatever the mark *done* says: it was for other times."""
    world = World({"other": 1.0})
    first = world.leader()
    world.put("e", "* * * * *", options={"neli_jitter": before})
    world.ticks(until=125)
    first.topic.up = False  # it does not learn of the change
    world.put("e", "* * * * *", options={"neli_jitter": after})
    first.crash()
    world.beat().member.lead()
    world.ticks(until=250)
    assert world.slots() == minutes(1, 4)


def test_a_time_zone_that_is_changed_owes_nothing_of_the_past() -> None:
    """As with a changed schedule, slots up to the change have passed."""
    world = World()
    world.interval = 30.0
    world.leader()
    world.put("e", "0 9 * * *", options={"neli_timezone": "America/New_York"})
    world.ticks(until=24 * 3600)
    assert world.slots() == [2 * 3600.0]
    world.put("e", "0 9 * * *", options={"neli_timezone": "Europe/London"})
    world.ticks(until=46 * 3600)
    assert world.slots() == [2 * 3600.0, 45 * 3600.0]
