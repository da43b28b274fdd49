"""When clocks change, and what moment a local time is, in any kind of `tzinfo`."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import dateutil.tz
import pytest

from celery_neli.exceptions import ConfigurationError
from celery_neli.periodic.text import parse, read
from celery_neli.schedule.crontabs import next_change, offset_at, to_utc
from celery_neli.schedule.due import expires_of
from tests.unit.schedulers import make_app
from tests.unit.wall_clock import changes

UTC = timezone.utc
SECOND = timedelta(seconds=1)


def kinds(name: str) -> list[Any]:
    """The zone as zoneinfo, dateutil and, if it is installed, pytz have it."""
    found: list[Any] = [ZoneInfo(name), dateutil.tz.gettz(name)]
    try:
        import pytz
    except ImportError:
        return found
    return [*found, pytz.timezone(name)]


@pytest.mark.parametrize("name", ["America/Los_Angeles", "Australia/Lord_Howe", "Africa/Casablanca", "Pacific/Apia"])
def test_changes_are_found_one_after_the_other(name: str) -> None:
    """To the second, in every kind of zone."""
    for zone in kinds(name):
        at, end, found = datetime(2009, 12, 31, tzinfo=UTC), datetime(2015, 1, 1, tzinfo=UTC), []
        while (change := next_change(zone, at, end)) is not None:
            found.append(change)
            assert offset_at(zone, change - SECOND) != offset_at(zone, change)
            assert next_change(zone, at, change - SECOND) is None
            assert next_change(zone, change - SECOND, change) == change
            at = change
        assert found == changes(ZoneInfo(name), 2010, 2014)


def test_a_summer_of_a_week_is_not_overlooked() -> None:
    """Recife, October 2000: the shortest since 1970."""
    zone = ZoneInfo("America/Recife")
    start, end = datetime(2000, 9, 1, tzinfo=UTC), datetime(2001, 1, 1, tzinfo=UTC)
    first = next_change(zone, start, end)
    assert first == datetime(2000, 10, 8, 3, tzinfo=UTC)
    assert next_change(zone, first, end) == datetime(2000, 10, 15, 2, tzinfo=UTC)


@pytest.mark.parametrize(
    ("local", "fold", "expected"),
    [
        (datetime(2026, 6, 1, 12), 0, datetime(2026, 6, 1, 19, tzinfo=UTC)),  # noqa: DTZ001 - given without an offset
        (datetime(2026, 11, 1, 1, 30), 0, datetime(2026, 11, 1, 8, 30, tzinfo=UTC)),  # noqa: DTZ001
        (datetime(2026, 11, 1, 1, 30), 1, datetime(2026, 11, 1, 9, 30, tzinfo=UTC)),  # noqa: DTZ001
        (datetime(2026, 3, 8, 2, 30), 0, datetime(2026, 3, 8, 10, 30, tzinfo=UTC)),  # noqa: DTZ001
        (datetime(2026, 3, 8, 3), 0, datetime(2026, 3, 8, 10, tzinfo=UTC)),  # noqa: DTZ001
        (datetime(2026, 3, 8, 1, 59, 59, 5), 0, datetime(2026, 3, 8, 9, 59, 59, 5, tzinfo=UTC)),  # noqa: DTZ001
    ],
)
def test_a_local_time_is_the_same_moment_in_every_kind_of_zone(local: datetime, fold: int, expected: datetime) -> None:
    """Los Angeles; pytz's zones, put into a datetime as they are, would give its mean time of 1883."""
    for zone in kinds("America/Los_Angeles"):
        assert to_utc(zone, local.replace(fold=fold)) == expected


@pytest.mark.parametrize("zone", ["Asia/Shanghai", "UTC", "America/Los_Angeles"])
@pytest.mark.parametrize("text", ["2026-12-01 10:00", "2026-12-01T10:00:00", "at:2026-12-01T10:00:00"])
def test_a_time_without_an_offset_is_in_the_zone_of_the_app(zone: str, text: str) -> None:
    """As text and as datetime, whatever kind of zone the app has."""
    naive = datetime(2026, 12, 1, 10)  # noqa: DTZ001 - given without an offset
    expected = naive.replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)
    for kind in kinds(zone):
        app = make_app(timezone=kind)
        for given in (text, naive):
            assert read(parse(given, app=app), app=app).at == expected
        assert expires_of({"expires": naive}, None, app.timezone) == expected
        assert expires_of({"expires": "2026-12-01T10:00:00"}, None, app.timezone) == expected
    aware = naive.replace(tzinfo=UTC)
    assert expires_of({"expires": aware}, None, ZoneInfo(zone)) == aware
    assert expires_of({"expires": "2026-12-01T10:00:00+00:00"}, None, ZoneInfo(zone)) == "2026-12-01T10:00:00+00:00"


@pytest.mark.parametrize("value", [60, 2.5, None, "soon"])
def test_other_expiries_stay_as_they_are(value: Any) -> None:
    """Seconds from the sending; what is no time, Celery says."""
    assert expires_of({"expires": value}, None, UTC) == value


@pytest.mark.parametrize(
    ("zone", "text"), [("Asia/Shanghai", "0001-01-01 00:00"), ("America/Los_Angeles", "9999-12-31 23:59")]
)
def test_a_time_that_utc_cannot_hold_is_refused(zone: str, text: str) -> None:
    """With one line, never an `OverflowError`."""
    with pytest.raises(ConfigurationError, match=r"schedule = .*: not every time zone has it"):
        parse(text, app=make_app(timezone=zone))
