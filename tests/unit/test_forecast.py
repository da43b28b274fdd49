"""Many entries looked at as at one moment are due when each of them, asked alone, is."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from celery.beat import ScheduleEntry
from celery.schedules import crontab, schedule
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_neli.schedule.cron import cron
from celery_neli.schedule.due import Forecast, entry_has_slots, seconds_to_next
from tests.unit.schedulers import make_app
from tests.unit.test_slots import FIELDS, INTERVALS, MOMENTS, ZONES

UTC = timezone.utc
NOW = datetime(2026, 6, 1, 12, 0, 0, 123456, tzinfo=UTC)
#: Few, so that entries share them.
CRONTABS = st.one_of(
    st.builds(crontab, **FIELDS),
    st.sampled_from(["*", "*/15", "0", "30"]).map(crontab),
    st.sampled_from(["*/15 * * * *", "TZ=Asia/Tokyo 30 2 * * *", "7 */30 * * * *", "30 1 L * mon"]).map(cron),
)
#: From some moment, that of a change of the clock often, up to some days on: between slots, on them and past them.
LASTS = st.tuples(
    MOMENTS,
    st.lists(
        st.one_of(st.integers(0, 120), st.integers(0, 3 * 86_400)).map(lambda seconds: timedelta(seconds=seconds)),
        min_size=2,
        max_size=9,
    ),
).map(lambda pair: [pair[0] + each for each in pair[1]])


def app_in(zone: str, *, utc: bool = True) -> Any:
    app = make_app(timezone=zone, enable_utc=utc)
    app.now = lambda: NOW.astimezone(app.timezone)
    return app


APPS = {(zone, utc): app_in(zone, utc=utc) for zone in ZONES for utc in (True, False)}


def entry(app: Any, when: Any, last: datetime) -> ScheduleEntry:
    return ScheduleEntry(name="e", task="t", schedule=when, last_run_at=last, app=app)


def alone(each: ScheduleEntry) -> float | None:
    return seconds_to_next(each) if entry_has_slots(each) else None


@settings(max_examples=120, deadline=None)
@given(
    crontabs=st.lists(CRONTABS, min_size=1, max_size=2),
    every=INTERVALS,
    relative=st.booleans(),
    lasts=LASTS,
    zone=st.sampled_from(ZONES),
    utc=st.booleans(),
    form=st.sampled_from(["utc", "local", "naive"]),
)
def test_the_forecast_is_what_each_entry_says_alone(
    crontabs: list[Any], every: timedelta, relative: bool, lasts: list[datetime], zone: str, utc: bool, form: str
) -> None:
    """To the microsecond, in any zone, through changes of the clock, in whatever order they come."""
    app = APPS[zone, utc]
    forecast = Forecast()
    for moment in lasts:
        last = {"utc": moment, "local": moment.astimezone(ZoneInfo(zone)), "naive": moment.replace(tzinfo=None)}[form]
        for when in (*(type(each)(*fields_of(each)) for each in crontabs), schedule(every, relative)):
            each = entry(app, when, last)
            found = forecast.next(each)
            assert (None if found is None else found.delay) == alone(each)
            assert found is None or found.now == NOW.timestamp()


def fields_of(when: Any) -> tuple[Any, ...]:
    """What a crontab is made of, to make one more of it."""
    return tuple(when.__reduce__()[1])


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe"])
@pytest.mark.parametrize(
    "day", [66, 87, 93, 275, 297, 304], ids=lambda day: f"{datetime(2026, 1, 1, tzinfo=UTC) + timedelta(day):%d %B}"
)
def test_no_slot_is_shared_across_a_change_of_the_clock(zone: str, day: int) -> None:
    """Neither of the hour that is left out nor of the one that is repeated."""
    app, forecast = APPS[zone, True], Forecast()
    for n in range(0, 30 * 60, 20):
        last = datetime(2026, 1, 1, 0, 5, tzinfo=UTC) + timedelta(days=day, minutes=n)
        for minute, hour in (("0", "*"), ("30", "*"), ("0", "*/12"), ("30", "2"), ("30", "3"), ("0", "1-4")):
            each = entry(app, crontab(minute=minute, hour=hour), last)
            found = forecast.next(each)
            assert found is not None
            assert found.delay == alone(each), f"{hour}:{minute} after {last}"


def test_a_yearly_slot_that_the_change_of_the_clock_leaves_out_is_not_taken_for_the_next_one() -> None:
    """From a summer's day it looks like 3:30, but at 3:10 it is over for this year."""
    app, forecast = APPS["Europe/Berlin", True], Forecast()
    when = crontab(minute="30", hour="2", day_of_month="29", month_of_year="3")
    for last in (datetime(2025, 7, 1, tzinfo=UTC), datetime(2026, 3, 29, 1, 10, tzinfo=UTC)):
        each = entry(app, when, last)
        found = forecast.next(each)
        assert found is not None
        assert found.delay == alone(each)


class CountingZone(tzinfo):
    """Berlin; counts how often somebody asks for its time."""

    def __init__(self) -> None:
        self.asked = 0
        self._zone = ZoneInfo("Europe/Berlin")

    def fromutc(self, at: datetime) -> datetime:
        self.asked += 1
        return self._zone.fromutc(at.replace(tzinfo=self._zone)).replace(tzinfo=self)

    def utcoffset(self, at: datetime | None) -> timedelta | None:
        return None if at is None else at.replace(tzinfo=self._zone).utcoffset()

    def dst(self, at: datetime | None) -> timedelta | None:
        return None if at is None else at.replace(tzinfo=self._zone).dst()

    def tzname(self, at: datetime | None) -> str:
        return "Berlin"


def test_what_is_shared_is_computed_once() -> None:
    """A thousand entries on five crontabs that ran last within two minutes, whatever their order."""
    zone = CountingZone()
    app = make_app(timezone=zone)
    app.now = lambda: NOW.astimezone(zone)
    forecast = Forecast()
    for n in range(1_000):
        when = crontab(minute="0", hour=str(n % 5))
        assert forecast.next(entry(app, when, NOW - timedelta(milliseconds=n * 7919 % 100_000))) is not None
    assert 0 < zone.asked < 500


def test_entries_and_schedules_with_ways_of_their_own_are_asked_or_computed_alone() -> None:
    """A clock, a class or an answer that is not Celery's."""

    class Own(ScheduleEntry):
        def is_due(self) -> Any:
            return False, 7

    app = APPS["UTC", True]
    patched = schedule(timedelta(seconds=60))
    patched.is_due = lambda last: (True, 60)
    clocked = schedule(timedelta(seconds=60), nowfun=lambda: NOW + timedelta(hours=1))
    listed = crontab(minute=[0, 30])
    plain, deciding = crontab(minute="0"), crontab(minute="0")
    deciding.remaining_delta = lambda *args, **options: None
    last = NOW - timedelta(seconds=20)
    forecast = Forecast()
    assert forecast.next(entry(app, patched, last)) is None
    assert forecast.next(entry(app, plain, last)) is not None
    assert forecast.next(entry(app, deciding, last)) is None, "though it has the same fields"
    assert forecast.next(Own(name="o", task="t", schedule=timedelta(seconds=60), last_run_at=last, app=app)) is None
    assert forecast.next(entry(app, clocked, last)) == (40 - 3600, (NOW + timedelta(hours=1)).timestamp())
    assert forecast.next(entry(app, listed, last)) == (alone(entry(app, listed, last)), NOW.timestamp())
