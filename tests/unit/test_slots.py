"""A schedule's slots are the moments at which its own `is_due` becomes true, asked every second."""

from __future__ import annotations

import itertools
from datetime import datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import celery.utils.time
import pytest
from celery.schedules import BaseSchedule, crontab, schedule, solar
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from celery_neli.schedule.crontabs import FIELDS as NUMBERS
from celery_neli.schedule.crontabs import next_change, offset_at
from celery_neli.schedule.slots import has_slots, last_run, missed, next_slot
from tests.unit.schedulers import make_app

UTC = timezone.utc
SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)
#: Celery 5.7 counts intervals in elapsed time, as we do with all its releases; before, it counts on the local clock.
ELAPSED = hasattr(celery.utils.time, "add_seconds_to_datetime")
ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe"]
APPS = {(zone, utc): make_app(timezone=zone, enable_utc=utc) for zone in ZONES for utc in (True, False)}
#: The clock changes on 29 March and 25 October (Berlin), 8 March and 1 November (New York), 5 April and 4 October (Lord
#: Howe).
MOMENTS = st.one_of(
    st.integers(0, 364 * 86_400_000),
    *(st.integers(day * 86_400_000, day * 86_400_000 + 108_000_000) for day in (66, 87, 93, 275, 297, 304)),
).map(lambda ms: datetime(2026, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms))
FIELDS = {
    "minute": st.sampled_from(["*", "*/15", "0", "30", "1,59"]),
    "hour": st.sampled_from(["*", "*/6", "0", "1-3", "2", "23"]),
    "day_of_week": st.sampled_from(["*", "mon-fri", "0"]),
    "day_of_month": st.sampled_from(["*", "1", "28-31", "*/2"]),
    "month_of_year": st.sampled_from(["*", "3,11", "*/4"]),
}
INTERVALS = st.sampled_from([0.5, 1, 7, 60, 90, 600, 3600, 5400, 7200, 86400, 2 * 86400]).map(
    lambda seconds: timedelta(seconds=seconds)
)
SCHEDULES = st.one_of(
    st.builds(schedule, INTERVALS, relative=st.booleans()), st.builds(crontab, **FIELDS), st.builds(crontab)
)


def as_taken(moment: datetime, how: str, zone: str) -> datetime:
    """A last run as users hand it over: in UTC, in the schedule's zone, or naive (and in UTC, says Celery)."""
    return {"utc": moment, "local": moment.astimezone(ZoneInfo(zone)), "naive": moment.replace(tzinfo=None)}[how]


def becomes_due(when: Any, after: datetime, expected: datetime) -> bool:
    """Return True if `is_due(after)`, asked every second, is first true in the second that ends with ``expected``."""
    asked: list[datetime] = []
    when.nowfun = lambda: asked[-1].astimezone(when.tz)  # as Celery's own clock

    def due(at: datetime) -> bool:
        asked.append(at)
        return bool(when.is_due(after)[0])

    first = -(-(expected - datetime(2020, 1, 1, tzinfo=UTC)) // SECOND) * SECOND + datetime(2020, 1, 1, tzinfo=UTC)
    start = after.replace(tzinfo=UTC) if after.tzinfo is None else after.astimezone(UTC)
    around = [first - n * SECOND for n in range(1, 100)]
    between = [start + n * (first - start) / 50 for n in range(50)]
    return due(first) and not any(due(at) for at in (*around, *between) if start < at < expected)


def meets_a_change(when: Any, zone: str, begin: datetime, end: datetime) -> bool:
    """Return True if a crontab names a time that clocks skip or repeat between ``begin`` and ``end`` (UTC)."""
    here = ZoneInfo(zone)
    while (change := next_change(here, begin, end)) is not None:
        first, last = sorted(change + offset_at(here, change - each) for each in (SECOND, 0 * SECOND))
        for minute in range((last - first) // MINUTE):
            local = first + minute * MINUTE
            numbers = (local.minute, local.hour, local.day, local.month, local.isoweekday() % 7)
            if all(number in getattr(when, name) for name, number in zip(NUMBERS, numbers, strict=True)):
                return True
        begin = change
    return False


@settings(max_examples=150, deadline=None)
@given(
    when=SCHEDULES,
    after=MOMENTS,
    zone=st.sampled_from(ZONES),
    utc=st.booleans(),
    how=st.sampled_from(["utc", "local", "naive"]),
)
def test_the_next_slot_is_when_is_due_becomes_true(when: Any, after: datetime, zone: str, utc: bool, how: str) -> None:
    """In any zone, in whatever zone the last run is given; crontabs from one day to the other on the same clock.

    Through changes of the clock, crontabs go their own way: see test_crontabs.
    """
    assume(ELAPSED or zone in ("UTC", "Asia/Kolkata"))  # before 5.7, is_due itself reckons wrongly around DST
    assume(ELAPSED or how != "utc" or zone == "UTC")  # and takes the zone of the last run for the schedule's
    when.app = APPS[zone, utc]
    last = as_taken(after, how, zone)
    slot = next_slot(when, last)
    if isinstance(when, crontab):
        assert slot is not None
        at, then = after.astimezone(ZoneInfo(zone)), slot.astimezone(ZoneInfo(zone))
        assume(at.utcoffset() == then.utcoffset())
        # Of an hour that is repeated, Celery takes the first pass for the second one.
        assume(
            all(
                (each - 2 * HOUR).utcoffset() == each.utcoffset() == (each + 2 * HOUR).utcoffset()
                for each in (at, then)
            )
        )
        assume(not meets_a_change(when, zone, after, slot))
    if slot is None:  # a relative interval below a second
        assert when.run_every < SECOND
    else:
        assert slot > after
        assert slot.tzinfo is UTC
        assert becomes_due(when, last, slot)


def test_a_crontab_whose_times_the_clock_skips_comes_at_the_next_ones() -> None:
    """Of all Sundays that it names, the clock skips this hour on 29 March. Celery finds it due then."""
    when = crontab(minute="*", hour="2", day_of_month="28-31", month_of_year="3,11", day_of_week="0")
    when.app = APPS["Europe/Berlin", True]
    before, slot = datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 11, 29, 1, tzinfo=UTC)
    assert next_slot(when, before) == slot
    assert meets_a_change(when, "Europe/Berlin", before, slot)
    assert not meets_a_change(when, "Europe/Berlin", before + timedelta(days=28, hours=2), slot)
    assert not meets_a_change(crontab(hour=4), "Europe/Berlin", before, slot)


@settings(max_examples=100, deadline=None)
@given(
    when=SCHEDULES,
    last=MOMENTS,
    zone=st.sampled_from(ZONES),
    gap=st.integers(0, 40),
    extra=st.floats(0, 1),
    limit=st.integers(1, 60),
)
def test_missed_slots_are_those_that_follow_one_another(
    when: Any, last: datetime, zone: str, gap: int, extra: float, limit: int
) -> None:
    """Each the next of the one before, up to now; the newest in full, the others by number."""
    when.app = APPS[zone, True]
    at = last.astimezone(ZoneInfo(zone))
    slots = [next_slot(when, at)]
    assume(slots[0] is not None)
    for _ in range(gap):
        slots.append(next_slot(when, slots[-1].astimezone(ZoneInfo(zone))))  # type: ignore[union-attr]
    upcoming = slots.pop()
    now = slots[-1] + (upcoming - slots[-1]) * min(extra, 0.999) if slots else last  # type: ignore[operator]
    owed = missed(when, at, now, limit)
    assert owed is not None
    assert owed.exact
    assert owed.total == len(slots)
    assert list(owed.newest) == slots[-limit:]
    assert owed.upcoming == upcoming
    assert owed.first == (slots[0] if slots else None)


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("every", [90, 600, 3600, 5400, 86_400])
@pytest.mark.parametrize("day", [66, 87, 93, 275, 297, 304])
def test_intervals_count_elapsed_time_through_changes_of_the_clock(every: int, day: int, zone: str) -> None:
    """With every release of Celery, in the chain as in what was missed: Lord Howe's half hour makes no difference."""
    when = schedule(timedelta(seconds=every), app=APPS[zone, True])
    last = datetime(2026, 1, 1, 5, tzinfo=UTC) + timedelta(days=day)
    slot = next_slot(when, last.astimezone(ZoneInfo(zone)))
    assert slot == last + when.run_every
    owed = missed(when, last.astimezone(ZoneInfo(zone)), last + timedelta(days=3), 7)
    assert owed is not None
    total = 3 * 86_400 // every
    assert owed.total == total
    assert owed.newest == tuple(last + n * when.run_every for n in range(max(1, total - 6), total + 1))
    assert owed.upcoming == last + (total + 1) * when.run_every


def test_an_interval_that_ends_after_all_datetimes_never_comes() -> None:
    """It is no error at each look."""
    when = schedule(timedelta(days=999_999_999), app=APPS["UTC", True])
    assert next_slot(when, datetime(2026, 1, 1, tzinfo=UTC)) is None
    owed = missed(when, datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC), 1)
    assert owed is not None
    assert (owed.total, owed.upcoming) == (0, None)


@settings(max_examples=40, deadline=None)
@given(
    when=st.one_of(st.builds(crontab, minute=FIELDS["minute"]), st.builds(schedule, INTERVALS, relative=st.booleans())),
    limit=st.integers(1, 150),
    days=st.integers(10, 400),
)
def test_a_long_standstill_costs_little_and_the_newest_are_known(when: Any, limit: int, days: int) -> None:
    """They are the same as if one had only just begun to miss them."""
    when.app = APPS["UTC", True]
    now = datetime(2026, 5, 1, 12, 0, 30, tzinfo=UTC)
    owed = missed(when, now - timedelta(days=days), now, limit)
    assume(owed is not None)
    assert owed is not None
    assert len(owed.newest) == min(limit, owed.total)
    assert owed.newest[-1] <= now < owed.upcoming
    for slot, following in zip(owed.newest, (*owed.newest[1:], owed.upcoming), strict=True):
        assert next_slot(when, slot) == following
    if isinstance(when, schedule) and not when.relative:
        assert owed.total == timedelta(days=days) // when.run_every


@pytest.mark.parametrize("event", ["sunrise", "solar_noon", "dusk_civil"])
def test_solar_slots_are_whole_seconds_and_never_the_same_event_twice(event: str) -> None:
    """Some 86,400 seconds apart: an event that is looked for from its own moment may be found again."""
    pytest.importorskip("ephem")
    when = solar(event, 52.5, 13.4, app=APPS["Europe/Berlin", True])
    slots = [next_slot(when, datetime(2026, 3, 20, 1, 2, 3, tzinfo=UTC))]
    for _ in range(400):
        assert slots[-1] is not None
        slots.append(next_slot(when, last_run(when, slots[-1])))
    for slot, following in itertools.pairwise(slots):
        assert slot is not None
        assert following is not None
        assert slot.microsecond == 0
        assert timedelta(hours=23) < following - slot < timedelta(hours=25)
        assert last_run(when, slot) - slot == SECOND


def test_a_relative_interval_stays_on_the_clock_of_its_last_run() -> None:
    """Midnights in New York, from one to the next, though slots are in UTC."""
    when = schedule(timedelta(days=1), relative=True, app=APPS["UTC", True])
    last = datetime(2026, 3, 6, 15, tzinfo=ZoneInfo("America/New_York"))
    owed = missed(when, last, last + timedelta(days=3), 9)
    assert owed is not None
    assert [slot.hour for slot in owed.newest] == [5, 5, 4], "the clock goes forward on the 8th"


def test_the_solar_slot_is_when_is_due_becomes_true() -> None:
    """Asked every second."""
    pytest.importorskip("ephem")
    when = solar("sunrise", 52.5, 13.4, app=APPS["Europe/Berlin", True])
    after = datetime(2026, 3, 20, 1, 2, 3, tzinfo=UTC)
    slot = next_slot(when, after)
    assert slot is not None
    assert becomes_due(when, after, slot)


POLAR = [
    ("sunrise", 78.2, datetime(2026, 11, 1, tzinfo=UTC)),
    ("sunset", 78.2, datetime(2026, 11, 1, tzinfo=UTC)),
    ("sunrise", 69.6, datetime(2026, 5, 20, tzinfo=UTC)),
    ("sunset", -78.2, datetime(2026, 10, 25, tzinfo=UTC)),
    ("dawn_astronomical", 60.0, datetime(2026, 3, 1, tzinfo=UTC)),
    ("dusk_civil", 69.6, datetime(2026, 3, 1, tzinfo=UTC)),
]


@pytest.mark.parametrize(("event", "latitude", "start"), POLAR)
def test_a_solar_event_comes_again_after_the_polar_night_or_day(event: str, latitude: float, start: datetime) -> None:
    """With every release of Celery; each event is where the sun crosses the horizon, and none is invented."""
    ephem = pytest.importorskip("ephem")
    when = solar(event, latitude, 15.6, app=APPS["UTC", True])
    slots, at = [], start
    while at < start + timedelta(days=300):
        slot = next_slot(when, at)
        assert slot is not None
        slots.append(slot)
        at = last_run(when, slot)
    gaps = [following - slot for slot, following in itertools.pairwise(slots)]
    assert max(gaps) > timedelta(days=20), "the polar night, or day"
    assert min(gaps) > timedelta(hours=23)
    rises = event.startswith(("dawn", "sunrise"))
    for slot in slots:
        heights = []
        for moment in (slot - 2 * MINUTE, slot + 2 * MINUTE):
            when.cal.date = moment.replace(tzinfo=None)
            sun = ephem.Sun(when.cal)
            # Of dawns and dusks, the centre of the sun counts; else its upper edge.
            heights.append(sun.alt + (0 if when.use_center else sun.radius) - when.cal.horizon)
        before, after = heights if rises else heights[::-1]
        assert before < 0 < after, slot
    owed = missed(when, start, slots[-1], 1)
    assert owed is not None
    assert owed.newest == (slots[-1],)


@pytest.mark.parametrize("latitude", [90.0, -90.0])
def test_a_solar_event_that_is_not_found_is_looked_for_again(latitude: float) -> None:
    """At the pole, where the sun rises once a year, on no meridian: in a day, and no slot is invented for it."""
    pytest.importorskip("ephem")
    when = solar("sunrise", latitude, 0, app=APPS["UTC", True])
    last = datetime(2026, 1, 1, tzinfo=UTC)
    assert next_slot(when, last) is None
    owed = missed(when, last, last + timedelta(days=300), 1)
    assert owed is not None
    assert (owed.total, owed.upcoming) == (0, last + timedelta(days=301))


class Weekly(schedule):
    """A class of a user's own."""

    def is_due(self, last_run_at: datetime) -> Any:
        return False, 60


class Renamed(crontab):
    """Another name, and nothing else."""


@pytest.mark.parametrize(
    ("when", "known"),
    [
        (schedule(5), True),
        (schedule(0), False),
        (schedule(-5), False),
        (crontab(), True),
        (Renamed(), True),
        (Weekly(5), False),
        (BaseSchedule(), False),
    ],
)
def test_only_schedules_that_are_celerys_through_and_through_have_slots(when: Any, known: bool) -> None:
    """Another class may know better; it is asked."""
    when.app = APPS["UTC", True]
    assert has_slots(when) is known
    if not known:
        assert next_slot(when, datetime(2026, 1, 1, tzinfo=UTC)) is None
        assert missed(when, datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC), 1) is None


def test_a_schedule_that_was_patched_has_no_slots() -> None:
    """An instance may have an `is_due` of its own."""
    when = schedule(5, app=APPS["UTC", True])
    when.is_due = lambda last_run_at: (True, 5)
    assert not has_slots(when)
