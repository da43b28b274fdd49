"""A schedule that is due one time: in any beat, and without cost once it is over."""

from __future__ import annotations

import math
import pickle
from datetime import datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import celery.beat
import pytest
from celery.schedules import crontab, schedule

from celery_neli.beat.replicated.standalone import ReplicatedScheduler
from celery_neli.exceptions import ConfigurationError
from celery_neli.schedule.due import advance, look, seconds_to_next
from celery_neli.schedule.policies import Misfire
from celery_neli.schedule.slots import has_slots, missed, next_slot, once
from tests.unit.schedulers import make_app

AT = datetime(2026, 6, 1, 12, tzinfo=timezone.utc)
SECOND = timedelta(seconds=1)


class Clock:
    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


def entry_at(clock: Clock, last: datetime, **conf: Any) -> Any:
    app = make_app(**conf)
    return celery.beat.ScheduleEntry("e", "t", last, 0, once(AT, nowfun=clock, app=app), app=app)


@pytest.mark.parametrize("scheduler", [celery.beat.Scheduler, ReplicatedScheduler])
def test_a_beat_sends_it_one_time(scheduler: type[Any]) -> None:
    """Celery's own scheduler and ours, from an ordinary beat_schedule, and neither waits for it any more."""
    clock = Clock(AT - 2 * SECOND)
    app = make_app(beat_schedule={"e": {"task": "t", "schedule": once(AT, nowfun=clock)}})
    sent: list[Any] = []

    class Recording(scheduler):  # type: ignore[misc]
        def apply_async(self, entry: Any, *args: Any, **kwargs: Any) -> None:
            sent.append(entry.name)

    beat = Recording(app, max_interval=300)
    assert 1.9 < beat.tick() <= 2
    assert sent == []
    clock.now = AT
    beat.tick()
    assert sent == ["e"]
    for _ in range(3):
        clock.now += 1000 * SECOND
        beat.tick()
    assert sent == ["e"]
    assert beat.tick() == 300


def test_over_it_costs_nothing_at_a_tick() -> None:
    """Its place in the heap is the last, and no look at the heap asks it for the time."""
    asked: list[datetime] = []

    def clock() -> datetime:
        asked.append(AT)
        return AT

    schedules = {"over": once(AT - SECOND, nowfun=clock), "other": schedule(10, nowfun=Clock(AT))}
    beat = ReplicatedScheduler(make_app(beat_schedule={k: {"task": "t", "schedule": v} for k, v in schedules.items()}))
    beat.tick()
    asked.clear()
    assert [round(beat.tick()) for _ in range(5)] == [10] * 5
    assert asked == []


def test_a_run_that_was_missed_is_owed() -> None:
    """It is subject to the misfire policy, as any slot."""
    clock = Clock(AT + 90 * SECOND)
    entry = entry_at(clock, AT - SECOND)
    found = look(entry, clock.now, Misfire())
    assert found is not None
    assert (found.due, found.slot, found.left_out, found.delay) == (True, AT, 0, math.inf)
    skipped = look(entry, clock.now, Misfire(policy="skip"))
    assert skipped is not None
    assert (skipped.due, skipped.left_out, skipped.passed, skipped.delay) == (False, 1, AT, math.inf)


def test_it_is_over_when_it_ran_for_its_slot() -> None:
    """The slot is the last run: no slot is left, and there is nothing to wait for."""
    clock = Clock(AT)
    ran = advance(entry_at(clock, AT - SECOND), AT, AT)
    assert ran.last_run_at == AT
    assert next_slot(ran.schedule, ran.last_run_at) is None
    assert seconds_to_next(ran) == math.inf
    found = look(ran, AT + SECOND, Misfire())
    assert found is not None
    assert (found.due, found.delay) == (False, math.inf)


def test_the_time_until_it_is_known() -> None:
    """To the second, from any last run before."""
    clock = Clock(AT - 10 * SECOND)
    assert seconds_to_next(entry_at(clock, AT - 3600 * SECOND)) == 10
    owed = missed(once(AT, app=make_app()), AT - SECOND, AT - SECOND, 1)
    assert owed is not None
    assert (owed.total, owed.upcoming) == (0, AT)


@pytest.mark.parametrize("naive", [True, False])
def test_is_due_as_celery_asks_it(naive: bool) -> None:
    """A naive last run is in UTC, as everywhere in Celery."""
    when = once(AT, nowfun=Clock(AT - SECOND))

    def last(at: datetime) -> datetime:
        return at.replace(tzinfo=None) if naive else at.astimezone(ZoneInfo("Asia/Kolkata"))

    assert when.is_due(last(AT - 60 * SECOND)) == (False, 1)
    when.nowfun = Clock(AT)
    assert when.is_due(last(AT - 60 * SECOND)) == (True, math.inf)
    assert when.is_due(last(AT)) == (False, math.inf)


def test_a_subclass_with_its_own_say_is_asked() -> None:
    """Its slots are not ours to reckon."""

    class Whim(once):
        def is_due(self, last_run_at: datetime) -> Any:
            return super().is_due(last_run_at)

    assert has_slots(once(AT))
    assert not has_slots(Whim(AT))


def test_copies_are_equal() -> None:
    """Through a pickle (a shelf), and in another zone; not so another time, another clock, another kind."""
    when = once(AT)
    assert pickle.loads(pickle.dumps(when)) == when  # noqa: S301 - our own
    assert once(AT.astimezone(ZoneInfo("Asia/Tokyo"))) == when
    assert once(AT + SECOND) != when
    assert once(AT, nowfun=Clock(AT)) != when
    assert crontab() != when
    assert repr(when) == "<once: 2026-06-01T12:00:00+00:00>"


@pytest.mark.parametrize("at", [datetime(2026, 6, 1), "2026-06-01", None, 1.0])  # noqa: DTZ001 - refused
def test_a_time_without_a_zone_is_refused(at: Any) -> None:
    """Such a time names no moment."""
    with pytest.raises(ConfigurationError, match=r"once\(.*give a datetime"):
        once(at)
