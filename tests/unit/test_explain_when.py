"""What users write for a slot, and the slots of a schedule around any moment."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from celery.schedules import crontab, schedule
from hypothesis import given
from hypothesis import strategies as st

from celery_neli.exceptions import ConfigurationError
from celery_neli.explain.when import Slots, window
from celery_neli.history.runs import Run
from celery_neli.schedule.slots import once
from tests.unit.schedulers import make_app

BERLIN = ZoneInfo("Europe/Berlin")
NOW = datetime(2026, 11, 30, 9, 30, tzinfo=BERLIN).timestamp()


def meant(text: str) -> tuple[str, float]:
    """The begin of what a text means, in Berlin, and how long it is."""
    found = window(text, BERLIN, NOW)
    assert found is not None
    return datetime.fromtimestamp(found.begin, BERLIN).isoformat(), round(found.end - found.begin, 5)


@pytest.mark.parametrize(
    ("text", "begin", "length"),
    [
        ("07:00", "2026-11-30T07:00:00+01:00", 60),
        ("7:00", "2026-11-30T07:00:00+01:00", 60),
        ("today 07:00", "2026-11-30T07:00:00+01:00", 60),
        ("today 23:00", "2026-11-30T23:00:00+01:00", 60),
        ("23:00", "2026-11-29T23:00:00+01:00", 60),
        ("Yesterday 07:00", "2026-11-29T07:00:00+01:00", 60),
        ("07:00:30", "2026-11-30T07:00:30+01:00", 1),
        ("07:00:30.25", "2026-11-30T07:00:30.250000+01:00", 0),
        ("2026-03-29T07:00", "2026-03-29T07:00:00+02:00", 60),
        ("2026-11-30 06:00:00+00:00", "2026-11-30T07:00:00+01:00", 1),
        ("2026-11-30T06:00+00:00", "2026-11-30T07:00:00+01:00", 60),
        ("2026-11-30T06:00:00Z", "2026-11-30T07:00:00+01:00", 1),
        ("2026-11-30T06:00:00.5Z", "2026-11-30T07:00:00.500000+01:00", 0),
    ],
)
def test_a_text_means_a_minute_a_second_or_a_moment_in_the_zone_of_the_app(
    text: str, begin: str, length: float
) -> None:
    """A time of day is the latest that is past."""
    assert meant(text) == (begin, length)


def test_last_means_no_time() -> None:
    assert window("last", BERLIN, NOW) is window(" LAST ", BERLIN, NOW) is None


@pytest.mark.parametrize(
    "text", ["", "yestermorning", "25:00", "07:61", "2026-13-01T00:00", "tomorrow 07:00", "0001-01-01"]
)
def test_what_means_no_time_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="give an ISO time"):
        window(text, timezone(timedelta(hours=5)), NOW)


def at(hour: int, minute: int = 0, second: float = 0) -> float:
    return datetime(2026, 11, 30, hour, minute, tzinfo=timezone.utc).timestamp() + second


def test_the_slots_of_a_crontab() -> None:
    """The slot itself is not before itself."""
    slots = Slots(crontab(minute="0,30", app=make_app()), None)
    assert slots.at_or_after(at(7)) == at(7)
    assert slots.at_or_after(at(7, 0, 0.000001)) == at(7, 30)
    assert slots.after(at(7)) == at(7, 30)
    assert slots.before(at(7)) == at(6, 30)


def test_a_crontab_that_comes_every_four_years_has_a_slot_before() -> None:
    slots = Slots(crontab(minute="0", hour="0", day_of_month="29", month_of_year="2", app=make_app()), None)
    found = slots.before(at(7))
    assert found is not None
    assert datetime.fromtimestamp(found, timezone.utc).date().isoformat() == "2024-02-29"


@given(st.floats(min_value=-1e6, max_value=1e6), st.sampled_from([0.2, 1, 7, 3600, 100_000]))
def test_the_slots_of_an_interval_count_from_one_of_them(distance: float, every: float) -> None:
    """In both directions; and they are the ones around."""
    anchor = at(7, 0, 0.123456)
    slots = Slots(schedule(every, app=make_app()), anchor)
    moment = anchor + distance
    before, here, after = slots.before(moment), slots.at_or_after(moment), slots.after(moment)
    assert before is not None and here is not None and after is not None  # noqa: PT018
    assert before < moment + 1e-5
    assert here > moment - 1e-5
    assert after - before <= 2 * every + 1e-5
    for each in (before, here, after):
        steps = (each - anchor) / every
        assert abs(steps - round(steps)) < 1e-3


def test_an_interval_without_a_run_and_a_schedule_of_ones_own_have_no_slots() -> None:
    class Moody(schedule):
        def is_due(self, last_run_at: Any) -> Any:
            return super().is_due(last_run_at)

    for slots in (Slots(schedule(5, app=make_app()), None), Slots(Moody(5, app=make_app()), 0.0), Slots(None, 0.0)):
        assert not slots.known
        assert slots.before(at(7)) is slots.at_or_after(at(7)) is slots.after(at(7)) is None


def test_a_time_that_comes_once() -> None:
    slots = Slots(once(datetime(2026, 11, 30, 7, tzinfo=timezone.utc)), None)
    assert (slots.at_or_after(at(7)), slots.after(at(7)), slots.before(at(8))) == (at(7), None, at(7))


def skipped(**more: Any) -> Run:
    return Run(entry="e", outcome="skipped", policy="misfire", **more)


def test_slots_that_were_left_out_together_are_told_by_one_run() -> None:
    """It knows the last of them, or, where one slot ran in their place, the first alone."""
    from celery_neli.explain.gather import spans

    all_ = skipped(slot=30.0, first=10.0, count=3)
    assert [spans(all_, each, [all_]) for each in (0.0, 10.0, 20.0, 30.0, 40.0)] == [False, True, True, True, False]
    some, ran = skipped(slot=10.0, first=10.0, count=2, at=33.0), Run(entry="e", slot=30.0, outcome="sent", at=33.0)
    assert [spans(some, each, [ran, some]) for each in (0.0, 10.0, 20.0, 30.0)] == [False, True, True, False]
