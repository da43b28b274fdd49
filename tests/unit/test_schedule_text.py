"""Schedules as text: what goes in comes out, and what cannot is refused with the reason."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery.schedules import BaseSchedule, crontab, schedule
from hypothesis import given
from hypothesis import strategies as st

from celery_neli.exceptions import ConfigurationError
from celery_neli.periodic.text import MOST, human, parse, read, text_of
from celery_neli.schedule.slots import once
from tests.unit.schedulers import make_app

APP = make_app(timezone="Europe/Berlin")


def parsed(value: Any, *, app: Any) -> tuple[str, Any]:
    """Return the text of a schedule, and the schedule that it stands for."""
    text = parse(value, app=app)
    return text, read(text, app=app)


UTC = timezone.utc


@pytest.mark.parametrize(
    ("given_", "text", "expected"),
    [
        ("*/5 8-18  * * mon-fri", "*/5 8-18 * * mon-fri", crontab("*/5", "8-18", "mon-fri")),
        (" 0 4 1 * * ", "0 4 1 * *", crontab(0, 4, day_of_month=1)),
        ("@hourly", "0 * * * *", crontab(0)),
        ("@Daily", "0 0 * * *", crontab(0, 0)),
        (crontab([30, 0], {2, 1}), "0,30 1,2 * * *", crontab("0,30", "1,2")),
        ("PT30S", "PT30S", schedule(30)),
        ("PT1H30M", "PT1H30M", schedule(5400)),
        ("P1DT2H", "P1DT2H", schedule(timedelta(days=1, hours=2))),
        ("P2W", "P14D", schedule(timedelta(days=14))),
        ("pt0,25s", "PT0.25S", schedule(0.25)),
        ("PT90M", "PT1H30M", schedule(5400)),
        ("5m", "PT5M", schedule(300)),
        ("30s", "PT30S", schedule(30)),
        ("30 S", "PT30S", schedule(30)),
        ("every 5 minutes", "PT5M", schedule(300)),
        ("Every  hour", "PT1H", schedule(3600)),
        ("every day", "P1D", schedule(86400)),
        ("1h30m", "PT1H30M", schedule(5400)),
        ("every 1 d 2 h", "P1DT2H", schedule(timedelta(days=1, hours=2))),
        ("1 week, 2 days", "P9D", schedule(timedelta(days=9))),
        ("250ms", "PT0.25S", schedule(0.25)),
        ("1,5 h", "PT1H30M", schedule(5400)),
        (30, "PT30S", schedule(30)),
        (0.001, "PT0.001S", schedule(0.001)),
        (timedelta(minutes=5), "PT5M", schedule(300)),
        ("relative:PT1H", "relative:PT1H", schedule(3600, relative=True)),
        (schedule(3600, relative=True), "relative:PT1H", schedule(3600, relative=True)),
        ("at:2026-12-01T10:00:00Z", "at:2026-12-01T10:00:00Z", once(datetime(2026, 12, 1, 10, tzinfo=UTC))),
        ("2026-12-01T10:00:00+05:30", "at:2026-12-01T04:30:00Z", once(datetime(2026, 12, 1, 4, 30, tzinfo=UTC))),
        ("2026-07-01 10:00", "at:2026-07-01T08:00:00Z", once(datetime(2026, 7, 1, 8, tzinfo=UTC))),
        ("at:2026-07-01T10:00:00.5-0200", "at:2026-07-01T12:00:00.500000Z",
         once(datetime(2026, 7, 1, 12, 0, 0, 500_000, tzinfo=UTC))),
        (datetime(2026, 12, 1, 10), "at:2026-12-01T09:00:00Z", once(datetime(2026, 12, 1, 9, tzinfo=UTC))),  # noqa: DTZ001
        (once(datetime(2026, 12, 1, tzinfo=UTC)), "at:2026-12-01T00:00:00Z", once(datetime(2026, 12, 1, tzinfo=UTC))),
    ],
)  # fmt: skip
def test_text_and_objects_come_to_one_text(given_: Any, text: str, expected: BaseSchedule) -> None:
    """The same schedule has the same text, and that text means the same schedule."""
    found, when = parsed(given_, app=APP)
    assert (found, when) == (text, expected)
    assert getattr(when, "relative", None) == getattr(expected, "relative", None)
    assert when.app is APP
    assert read(text, app=APP) == expected
    assert text_of(when) == text


def test_solar_events() -> None:
    """As text and as Celery's object."""
    pytest.importorskip("ephem")
    from celery.schedules import solar

    text, when = parsed("solar:Sunset, -37.81,144.96", app=APP)
    assert text == "solar:sunset,-37.81,144.96"
    assert parsed(solar("sunset", -37.81, 144.96), app=APP) == (text, when)
    assert when.app is APP


@given(st.timedeltas(min_value=timedelta(milliseconds=1), max_value=MOST))
def test_every_interval_comes_back(every: timedelta) -> None:
    """To the microsecond."""
    text, when = parsed(every, app=APP)
    assert when.run_every == every
    assert parsed(text, app=APP) == (text, schedule(every))


@given(st.datetimes(min_value=datetime(1000, 1, 2), max_value=datetime(9999, 12, 30), timezones=st.timezones()))  # noqa: DTZ001
def test_every_time_comes_back(at: datetime) -> None:
    """In any zone."""
    text, when = parsed(at, app=APP)
    assert when.at == at.astimezone(UTC)
    assert parsed(text, app=APP) == (text, when)


@pytest.mark.parametrize(
    ("given_", "says"),
    [
        ("", "write a crontab"),
        ("often", "write a crontab"),
        ("* * * *", "write a crontab"),
        ("* * * * * * *", "write a crontab"),
        ("61 * * * *", "no crontab .*61"),
        ("a b c d e", "no crontab"),
        ("@often", "@hourly"),
        ("P1Y", "years and months"),
        ("P1M", "years and months"),
        ("P1Y2M3DT4H", "years and months"),
        ("PT", "no ISO 8601 duration"),
        ("PT1X", "no ISO 8601 duration"),
        ("P1.5D", "no ISO 8601 duration"),
        ("PT0S", "a millisecond at least"),
        ("P9999999999D", "a timedelta"),
        ("relative:PT0.5S", "a second at least"),
        ("relative:* * * * *", "no ISO 8601 duration"),
        ("30", "a number needs a unit, such as '30s'"),
        ("every", "write a crontab"),
        ("every 5", "write a crontab"),
        ("5x", "no unit x"),
        ("every month", "years and months"),
        ("every 2 years", "years and months"),
        ("5m 5m", "minutes in two places"),
        ("0s", "a millisecond at least"),
        ("101 years", "years and months"),
        ("36526 d", "a hundred years at most"),
        (4e9, "a hundred years at most"),
        (float("inf"), "no number of seconds"),
        (schedule(0), "a millisecond at least"),
        (schedule(None), "its interval is None"),
        (crontab, "the class crontab cannot"),
        ("solar:sunset,nan,5", "no solar event|ephem"),
        ("at:noon", "no time"),
        ("at:2026-12-01", "no time"),
        ("2026-13-01T00:00:00Z", "no time.*month"),
        ("9999-12-31T23:59-10:00", "years 2 to 9998"),
        ("at:9999-12-31T23:59:59Z", "years 2 to 9998"),
        ("at:0001-01-01T00:00:00", "^schedule = 'at:0001.*years 2 to 9998"),
        ("9" * 5000 + " * * * *", "^.{200,600}$"),
        ("²", "write a crontab"),
        ("1.5", "a number needs a unit, such as '1.5s'"),
        ("relative:0.5 s", "a second at least"),
        (0, "a millisecond at least"),
        (-5, "a millisecond at least"),
        (float("nan"), "no number of seconds"),
        (10**400, "no number of seconds"),
        (True, "bool cannot"),
        (None, "NoneType cannot"),
        ({"every": 5}, "dict cannot"),
        (crontab(nowfun=datetime.now), "nowfun"),
        (schedule(5, nowfun=datetime.now), "nowfun"),
        (type("Mine", (crontab,), {})(), "Mine cannot"),
        (schedule(0.5, relative=True), "a second at least"),
    ],
)
def test_what_is_no_schedule_is_refused(given_: Any, says: str) -> None:
    """The error shows the value and says what to write."""
    with pytest.raises(ConfigurationError, match=says):
        parse(given_, app=APP)


@pytest.mark.parametrize("text", ["solar:moonrise,1,2", "solar:sunset,100,2", "solar:sunset", "solar:sunset,a,b"])
def test_what_is_no_solar_event_is_refused(text: str) -> None:
    """The error says how to write one."""
    pytest.importorskip("ephem")
    with pytest.raises(ConfigurationError, match="no solar event"):
        parse(text, app=APP)


def test_words_that_lists_show_mean_the_same_schedule() -> None:
    """What is copied from a list can be put."""
    for text in ("PT30S", "P1DT2H", "PT1H30M0.5S", "P400D"):
        assert parse(human(text), app=APP) == parse(text, app=APP)


def test_the_callers_schedule_is_left_alone() -> None:
    """Its app is the caller's business."""
    when = crontab(app=None)
    mine = make_app()
    when.app = mine
    parse(when, app=APP)
    assert when.app is mine


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("PT30S", "every 30 s"),
        ("P1DT2H", "every 1 d 2 h"),
        ("relative:PT1H30M", "every 1 h 30 min, rounded"),
        ("at:2026-12-01T10:00:00Z", "at 2026-12-01 10:00:00 UTC"),
        ("solar:sunset,-37.81,144.96", "sunset at -37.81, 144.96"),
        ("*/5 * * * *", "*/5 * * * *"),
        ("<mine>", "<mine>"),
        ("solar:x", "solar:x"),
    ],
)
def test_lists_show_words(text: str, said: str) -> None:
    """What has no words is shown as it is."""
    assert human(text) == said
