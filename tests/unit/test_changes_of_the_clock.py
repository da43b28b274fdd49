"""The scheduler through changes of the clock, and entries that no clock ever comes to."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

import pytest
from celery.schedules import crontab, solar

from celery_neli.schedule.slots import slot_id
from tests.unit.test_replicated import NOON, Rig

if TYPE_CHECKING:
    from typing import Any

UTC = timezone.utc


def rig_at(start: datetime, zone: str) -> Rig:
    """A scheduler whose clock stands at ``start``; it counts seconds from noon of another day."""
    rig = Rig(timezone=zone)
    rig.now = (start - NOON).total_seconds()
    return rig


def add(rig: Rig, name: str, when: Any) -> None:
    when.app = rig.app
    rig.add(name, when, last=rig.now)


def slots(rig: Rig, name: str) -> list[str]:
    return [f"{NOON + timedelta(seconds=slot):%H:%M}" for _, who, slot in rig.scheduler.ran if who == name]


def test_beat_in_los_angeles_on_the_night_of_the_repeated_hour() -> None:
    """Every quarter of an hour there is a run; what has a fixed time runs once; each at its slot."""
    start = datetime(2026, 11, 1, 7, 50, tzinfo=UTC)
    rig = rig_at(start, "America/Los_Angeles")
    add(rig, "quarterly", crontab(minute="*/15"))
    add(rig, "nightly", crontab(hour="1", minute="30"))
    rig.ticks(until=rig.now + 3 * 3600)
    assert slots(rig, "quarterly") == [f"{hour:02}:{minute:02}" for hour in (8, 9, 10) for minute in (0, 15, 30, 45)]
    assert slots(rig, "nightly") == ["08:30"]
    assert all(slot is not None and 0 <= at - slot < 1 for at, _, slot in rig.scheduler.ran)


def test_beat_in_los_angeles_on_the_night_of_the_gap() -> None:
    """What would have run at 2:30 runs at 3:00."""
    rig = rig_at(datetime(2026, 3, 8, 9, 10, tzinfo=UTC), "America/Los_Angeles")
    add(rig, "quarterly", crontab(minute="*/15"))
    add(rig, "nightly", crontab(hour="2", minute="30"))
    rig.ticks(until=rig.now + 3600)
    assert slots(rig, "quarterly") == ["09:15", "09:30", "09:45", "10:00"]
    assert slots(rig, "nightly") == ["10:00"]


@pytest.mark.parametrize(
    "numbers", [{"day_of_month": {30}, "month_of_year": {2}}, {"minute": set()}, {"day_of_week": set()}]
)
def test_an_entry_that_is_never_due_costs_one_line_and_holds_up_no_other(
    numbers: dict[str, set[int]], caplog: pytest.LogCaptureFixture
) -> None:
    """With entry, schedule and what to do; no traceback at each look."""
    rig = Rig(timezone="Europe/Berlin")
    when = crontab()
    vars(when).update(numbers)
    add(rig, "never", when)
    add(rig, "ready", crontab(minute="*/5"))
    rig.ticks(until=1000)
    rig.scheduler.populate_heap()  # all entries are looked at
    assert slots(rig, "never") == []
    assert slots(rig, "ready") == ["12:05", "12:10", "12:15"]
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith("beat: entry never due entry=never schedule=<crontab: ")
    assert "give it another schedule" in line


@pytest.mark.parametrize("latitude", [78.2, 90.0])
def test_a_solar_event_in_the_polar_night_waits_for_its_day(latitude: float, caplog: pytest.LogCaptureFixture) -> None:
    """With every release of Celery: it neither runs nor ends beat, and is looked for again each day at the latest."""
    pytest.importorskip("ephem")
    rig = rig_at(datetime(2026, 11, 20, 12, tzinfo=UTC), "UTC")
    add(rig, "sunrise", solar("sunrise", latitude, 15.6))
    rig.scheduler.max_interval = 10 * 86_400
    waits = []
    for _ in range(5):
        waits.append(rig.scheduler.tick())
        rig.now += max(waits[-1], 0.0)
    assert rig.ran() == []
    assert max(waits) <= 10 * 86_400
    assert not caplog.records
    if latitude < 90:
        rig.ticks(until=(datetime(2027, 2, 20, tzinfo=UTC) - NOON).total_seconds())
        assert [f"{NOON + timedelta(seconds=at):%m-%d}" for at in rig.ran()][:2] == ["02-16", "02-17"]


def test_slots_of_ordinary_days_keep_their_task_ids() -> None:
    """A slot's id is made of its time: those that Celery's arithmetic found are the same."""
    rig = rig_at(datetime(2026, 6, 1, 12, 3, tzinfo=UTC), "America/Los_Angeles")
    when = crontab(hour="5", minute="30")
    add(rig, "e", when)
    rig.ticks(until=rig.now + 3600)
    [(_, _, slot)] = rig.scheduler.ran
    assert slot is not None
    text = (NOON + timedelta(seconds=slot)).isoformat()
    assert text == "2026-06-01T12:30:00+00:00"
    assert slot_id("shop", "e", text) == "0cd395a7-2ccb-5aaf-a683-b7f778eb6fef"
