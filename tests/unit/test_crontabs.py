"""The slots of crontabs through changes of the clock, compared with a clock that is looked at once a minute.

`NELI_DST_CASES` says how many changes of the clock are looked at, of some 900 in thirty zones and twenty years, with
some forty crontabs each.
"""

from __future__ import annotations

import os
import random
from datetime import datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import dateutil.tz
import pytest
from celery.schedules import crontab
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_neli.schedule.crontabs import follows_real_time
from celery_neli.schedule.slots import has_slots, missed, next_slot
from tests.unit.schedulers import make_app
from tests.unit.wall_clock import MINUTE, ZONES, Crontab, WallClock, changes

UTC = timezone.utc
CASES = int(os.environ.get("NELI_DST_CASES", "12"))
YEARS = (2007, 2026)
DAY = timedelta(days=1)
#: Some that everybody has, and some whose times lie where clocks are changed.
USUAL = [
    Crontab(*fields.split())
    for fields in """
    * * * * *|*/15 * * * *|*/7 * * * *|0 * * * *|30 * * * *|59 * * * *|0 */2 * * *|30 */3 * * *|*/20 2 * * *
    */15 0-4 * * *|0 2 * * *|30 2 * * *|0 3 * * *|30 1 * * *|0 1 * * *|0 0 * * *|30 0 * * *|1 0 * * *|45 23 * * *
    15,45 1-3 * * *|0-59 1 * * *|0,30 0-23 * * *|10 1,2,3 * * 0|30 2 * * 6|0 0 1 * *|0 0 * * 1-5|40 1 1-7 * 0
    0 4 13 * 5|*/30 * 25-31 * 0|30 2 25-31 3,10 *|0 8 30 12 *|*/10 0 * * 0
    """.replace("\n", "|").split("|")
    if fields.strip()
]


def celerys(fields: Crontab, zone: Any) -> crontab:
    when = crontab(**fields._asdict())
    when.tz = zone  # as if it were the app's
    return when


def chance(rng: random.Random) -> Crontab:
    """Return a crontab whose times are likely to lie near a change of the clock."""
    several = ",".join(str(each) for each in sorted(rng.sample(range(60), 3)))
    return Crontab(
        rng.choice(["*", "*/5", "*/25", "*/1", "0", "30", str(rng.randrange(60)), several, "20-40/3", "0-59"]),
        rng.choice(["*", "*/2", "*/5", "0", "1", "2", "3", "23", "0-3", "1,2", "2-3", "22-23", str(rng.randrange(24))]),
        rng.choice(["*", "*", "*", "*/2", "1-7", "25-31", "1,15,28"]),
        rng.choice(["*", "*", "*", "3,10,11", "*/3"]),
        rng.choice(["*", "*", "*", "0", "1-5", "0,6", "*/2"]),
    )


def compare(zone: Any, start: datetime, minutes: int, crontabs: list[Crontab], rng: random.Random) -> int:
    """Compare each crontab's chain of slots, some slots after odd moments, and what was missed; return how many."""
    clock, end, slots = WallClock(zone, start, minutes), start + minutes * MINUTE, 0
    for fields in crontabs:
        when, expected = celerys(fields, zone), clock.runs(fields)
        found, at = [], next_slot(when, start)
        while at is not None and at <= end:
            found.append(at)
            at = next_slot(when, at)
        assert found == expected, f"{' '.join(fields)} in {zone} after {start}"
        for _ in range(6):
            moment = start + rng.random() * (end - start)
            first = next((slot for slot in expected if slot > moment), None)
            slot = next_slot(when, rng.choice([moment, moment.astimezone(zone)]))
            assert (slot == first) if first else (slot is None or slot > end), f"{' '.join(fields)} after {moment}"
        owed = missed(when, start.astimezone(zone), end, 50)
        assert owed is not None
        assert list(owed.newest) == expected[-50:]
        assert owed.upcoming == at
        assert owed.total == len(expected) if owed.exact else 100 <= owed.total <= len(expected)
        slots += len(found)
    return slots


@pytest.mark.timeout(3600)
def test_slots_are_those_of_a_clock_that_is_looked_at_each_minute(record_property: Any) -> None:
    """Around changes of the clock, in both directions, of any length, and where a zone moved for good."""
    rng = random.Random(20261101)
    cases = [(zone, at) for zone in ZONES for at in changes(ZoneInfo(zone), *YEARS)]
    count = slots = 0
    for name, at in rng.sample(cases, min(CASES, len(cases))):
        crontabs = USUAL + [chance(rng) for _ in range(8)]
        slots += compare(ZoneInfo(name), at - DAY - rng.randrange(60) * MINUTE, 3 * 24 * 60, crontabs, rng)
        count += len(crontabs)
    print(f"{count} crontabs at {min(CASES, len(cases))} of {len(cases)} changes of the clock: {slots} slots compared")
    record_property("slots", slots)
    assert count


@pytest.mark.parametrize(("zone", "year"), [("America/Los_Angeles", 2026), ("Africa/Casablanca", 2014)])
def test_rare_slots_are_those_of_the_clock_through_all_changes_of_a_year(zone: str, year: int) -> None:
    """From any day in it, with several changes before the next slot."""
    rare = ["*/30 2 * 3 0", "0 */12 29 * *", "30 2 * 3,11 0", "*/20 1 1-7 11 0", "15 * 31 12 *", "*/30 2 26-31 10 *"]
    crontabs = [Crontab(*fields.split()) for fields in rare]
    compare(ZoneInfo(zone), datetime(year, 1, 1, 12, tzinfo=UTC), 365 * 24 * 60, crontabs, random.Random(year))


def test_slots_of_ordinary_days_are_those_of_the_clock() -> None:
    """In any zone, on any day."""
    rng = random.Random(7)
    for _ in range(max(4, CASES // 6)):
        start = datetime(rng.randint(*YEARS), 1, 1, tzinfo=UTC) + rng.randrange(365 * 24 * 60) * MINUTE
        compare(ZoneInfo(rng.choice(ZONES)), start, 2 * 24 * 60, [chance(rng) for _ in range(8)], rng)


@settings(max_examples=20, deadline=None)
@given(
    zone=st.sampled_from(ZONES),
    day=st.integers(0, 20 * 365),
    seed=st.integers(0, 2**32),
)
def test_slots_of_the_clock_of_dateutil_and_of_zoneinfo_are_the_same(zone: str, day: int, seed: int) -> None:
    """So are those of an app whose time zone is of either."""
    rng = random.Random(seed)
    at = datetime(2007, 1, 1, tzinfo=UTC) + timedelta(days=day, seconds=rng.randrange(86400))
    near = [each for each in changes(ZoneInfo(zone), at.year, at.year) if each > at]
    at = near[0] - timedelta(hours=4) if near else at
    fields = chance(rng)
    one, other = celerys(fields, ZoneInfo(zone)), celerys(fields, dateutil.tz.gettz(zone))
    for _ in range(10):
        slot = next_slot(one, at)
        assert next_slot(other, at) == slot
        if slot is None:
            break
        at = slot


def test_an_app_with_a_zone_of_pytz_has_the_same_slots() -> None:
    """Though its datetimes differ in what their tzinfo is."""
    pytz = pytest.importorskip("pytz")
    zone = pytz.timezone("America/Los_Angeles")
    rng = random.Random(3)
    for at in changes(ZoneInfo("America/Los_Angeles"), 2026, 2026):
        compare(zone, at - DAY, 3 * 24 * 60, USUAL, rng)


def times(fields: str, zone: str, start: datetime, count: int) -> list[str]:
    when, found, at = celerys(Crontab(*fields.split()), ZoneInfo(zone)), [], start
    for _ in range(count):
        slot = next_slot(when, at)
        assert slot is not None
        found.append(f"{slot:%d %H:%M}")
        at = slot
    return found


def test_a_step_over_all_minutes_goes_on_through_the_hour_that_is_repeated() -> None:
    """Los Angeles, 1 November 2026: the clock goes from 2:00 back to 1:00 at 9:00 UTC."""
    start = datetime(2026, 11, 1, 7, 50, tzinfo=UTC)
    expected = [f"01 {hour:02}:{minute:02}" for hour in (8, 9, 10) for minute in (0, 15, 30, 45)]
    assert times("*/15 * * * *", "America/Los_Angeles", start, 12) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ("30 1 * * *", ["01 08:30", "02 09:30"]),
        ("0,30 1 * * *", ["01 08:00", "01 08:30", "02 09:00"]),
        ("30 * * * *", ["01 08:30", "01 09:30", "01 10:30"]),
        ("*/30 1 * * *", ["01 08:00", "01 08:30", "01 09:00", "01 09:30", "02 09:00"]),
        ("0-59 1 * * *", [f"01 08:{minute:02}" for minute in range(60)] + ["02 09:00"]),
    ],
)
def test_a_fixed_time_runs_once_in_an_hour_that_is_repeated(fields: str, expected: list[str]) -> None:
    """In the first pass of it; whatever has a star in front follows real time."""
    start = datetime(2026, 11, 1, 7, 50, tzinfo=UTC)
    assert times(fields, "America/Los_Angeles", start, len(expected)) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ("30 2 * * *", ["08 10:00", "09 09:30"]),
        ("0,20,40 2,3 * * *", ["08 10:00", "08 10:20", "08 10:40", "09 09:00"]),
        ("30 2 8 3 *", ["08 10:00"]),
        ("30 2 * * 0", ["08 10:00", "15 09:30"]),
        ("30 */2 * * *", ["08 08:30", "08 11:30"]),
        ("*/30 2 * * *", ["09 09:00", "09 09:30"]),
    ],
)
def test_a_fixed_time_that_is_left_out_runs_at_the_end_of_the_gap(fields: str, expected: list[str]) -> None:
    """Once, whatever lies in it. Los Angeles, 8 March 2026: from 2:00 to 3:00 at 10:00 UTC."""
    assert times(fields, "America/Los_Angeles", datetime(2026, 3, 8, 8, tzinfo=UTC), len(expected)) == expected


def test_a_day_that_a_zone_left_out_is_a_gap() -> None:
    """Samoa had no 30 December 2011."""
    start = datetime(2011, 12, 29, 20, tzinfo=UTC)  # 29 December 10:00
    assert times("0 8 * * *", "Pacific/Apia", start, 3) == ["30 10:00", "30 18:00", "31 18:00"]
    assert times("0 */12 * * *", "Pacific/Apia", start, 3) == ["29 22:00", "30 10:00", "30 22:00"]


@pytest.mark.parametrize("field", [0, "0", [0, 30], {0, 30}, (0, 30), "0-59", "5,*/15", set(range(60)), range(60)])
def test_numbers_however_they_are_given_are_fixed_times(field: Any) -> None:
    """What decides is whether the text begins with a star."""
    assert not follows_real_time(crontab(minute=field, hour=[1]))
    assert follows_real_time(crontab(minute=field))
    assert follows_real_time(crontab(minute=field, hour="*/23"))


@pytest.mark.parametrize("field", ["*", "*/15", "*/1", "*,5", None])
def test_what_begins_with_a_star_follows_real_time(field: Any) -> None:
    """`None` is Celery's word for it."""
    fields = {} if field is None else {"minute": field}
    assert follows_real_time(crontab(**fields, hour="1"))


def test_days_are_those_that_both_day_fields_name() -> None:
    """As in Celery; in cron they are those that either names. Also where that is once in 28 years."""
    friday = times("* 4 13 * 5", "Europe/Berlin", datetime(2026, 1, 1, tzinfo=UTC), 61)
    assert (friday[0], friday[59], friday[60]) == ("13 03:00", "13 03:59", "13 03:00")
    when = celerys(Crontab("0", "0", "29", "2", "0"), UTC)
    assert next_slot(when, datetime(2026, 1, 1, tzinfo=UTC)) == datetime(2032, 2, 29, tzinfo=UTC)
    assert next_slot(when, datetime(2033, 1, 1, tzinfo=UTC)) == datetime(2060, 2, 29, tzinfo=UTC)


def test_the_leap_day_comes_every_four_years_but_for_2100() -> None:
    """Looked for no longer than it takes."""
    when = celerys(Crontab("0", "0", "29", "2", "*"), ZoneInfo("Europe/Berlin"))
    slot = next_slot(when, datetime(2095, 1, 1, tzinfo=UTC))
    assert slot is not None
    assert slot.astimezone(when.tz).date().isoformat() == "2096-02-29"
    slot = next_slot(when, slot)
    assert slot is not None
    assert slot.astimezone(when.tz).date().isoformat() == "2104-02-29"


@pytest.mark.parametrize(
    "numbers",
    [
        {"day_of_month": {30}, "month_of_year": {2}},
        {"day_of_month": {31}, "month_of_year": {4, 6, 9, 11}},
        {"day_of_month": {30}, "month_of_year": {2}, "day_of_week": {1}},
        {"minute": set()},
        {"hour": set()},
        {"day_of_week": set()},
        {"day_of_week": set(), "day_of_month": {1}},
    ],
)
def test_a_time_that_never_comes_is_not_searched_for(numbers: dict[str, set[int]]) -> None:
    """Celery 5.5 and 5.6 accept the 30th of February; any release, a set without numbers."""
    when = celerys(Crontab("*", "*", "*", "*", "*"), ZoneInfo("Europe/Berlin"))
    vars(when).update(numbers)
    assert next_slot(when, datetime(2026, 1, 1, tzinfo=UTC)) is None
    owed = missed(when, datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC), 1)
    assert owed is not None
    assert (owed.total, owed.upcoming) == (0, None)


@pytest.mark.parametrize("zone", ["UTC", "America/Los_Angeles", "Pacific/Kiritimati"])
def test_no_slot_follows_the_last_day_that_a_datetime_can_hold(zone: str) -> None:
    """It is no error."""
    when = celerys(Crontab("0", "12", "1", "1", "*"), ZoneInfo(zone))
    assert next_slot(when, datetime(9999, 6, 1, tzinfo=UTC)) is None
    assert next_slot(when, datetime.max.replace(tzinfo=UTC)) is None


def test_a_crontab_is_in_the_zone_of_its_app_whatever_the_last_run_is_told_in() -> None:
    """Also where `enable_utc` is off; a naive last run is in UTC, as Celery has it."""
    last = datetime(2026, 3, 1, 12, tzinfo=UTC)
    for utc in (True, False):
        when = crontab(hour="4", minute="30", app=make_app(timezone="Asia/Kolkata", enable_utc=utc))
        for after in (last, last.replace(tzinfo=None), last.astimezone(ZoneInfo("America/New_York"))):
            assert next_slot(when, after) == datetime(2026, 3, 1, 23, tzinfo=UTC)


def test_a_fixed_offset_is_a_zone_without_changes() -> None:
    """Also one of seconds, as old times have it."""
    when = celerys(Crontab("0", "4", "*", "*", "*"), timezone(timedelta(hours=5, minutes=53, seconds=28)))
    assert next_slot(when, datetime(2026, 3, 1, tzinfo=UTC)) == datetime(2026, 3, 1, 22, 6, 32, tzinfo=UTC)


class Named(crontab):
    """Decides as Celery's."""


class Deciding(crontab):
    def remaining_delta(self, *args: Any, **kwargs: Any) -> Any:
        return super().remaining_delta(*args, **kwargs)


class Clocked(crontab):
    def now(self) -> datetime:
        return datetime(2000, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(("kind", "known"), [(Named, True), (Deciding, False), (Clocked, False)])
def test_a_class_that_overrides_what_decides_is_known_by_is_due_alone(kind: Any, known: bool) -> None:
    """It may know better."""
    when = kind(minute="0")
    when.tz = UTC
    assert has_slots(when) is known
    assert (next_slot(when, datetime(2026, 1, 1, tzinfo=UTC)) is not None) is known


def test_a_patched_crontab_is_known_by_is_due_alone() -> None:
    """Whichever of what decides was patched."""
    when = crontab(minute="0")
    when.remaining_delta = lambda *args: None
    assert not has_slots(when)
