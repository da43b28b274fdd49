"""The slots of `celery_neli.cron` through changes of the clock, compared with a clock that is looked at.

`NELI_CRON_CASES` says how many changes of the clock are looked at, of some 700 in thirty zones from 2020 to 2040, and
how many lines of random days are compared through these years.
"""

from __future__ import annotations

import os
import random
from datetime import date, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from celery.schedules import crontab

from celery_neli.schedule.cron import cron
from celery_neli.schedule.slots import missed, next_slot
from tests.unit.wall_clock import MINUTE, SECOND, ZONES, Line, WallClock, changes

UTC = timezone.utc
CASES = int(os.environ.get("NELI_CRON_CASES", "6"))
YEARS = (2020, 2040)
DAY = timedelta(days=1)
#: Some that everybody has, and some whose times lie where clocks are changed; of minutes and of seconds.
MINUTES = [
    Line.of(text)
    for text in """
    */15 * * * *|30 * * * *|*/7 */2 * * *|30 2 * * *|30 1 * * *|0 0 * * *|0-59 1 * * *|10 1,2,3 * * sun|40 2 L * *
    30 2 * * sunL|30 2 * * sun#2|30 1 * * 7#1|*/30 * LW * *|0 3 13 * sun|30 2 1-7 3,10,11 sun|45 23 * * fri-sun
    """.replace("\n", "|").split("|")
    if text.strip()
]
SECONDS = [
    Line.of(text)
    for text in """
    */10 * * * * *|30 */5 * * * *|15,45 30 1 * * *|0 30 2 * * *|59 59 1 * * *|1-3 0 0-3 * * *|*/20 30 2 * * sun#2
    7 */15 2 L * sunL|0,59 59 0,1,2,23 * * *|*/30 0 3 * * *
    """.replace("\n", "|").split("|")
    if text.strip()
]


def chance(rng: random.Random, *, seconds: bool) -> Line:
    """Return a line whose times are likely to lie near a change of the clock."""
    days = rng.choice(["*", "*", "*", "L", "LW", "1-7", "25-31", "*/2", "13,L"])
    weekdays = rng.choice(["*", "*", "*", "sun", "0", "7", "mon-fri", "sunL", "sun#1", "sun#2", "5#3,sunL", "*/2"])
    return Line(
        rng.choice(["0", "30", "*/7", "0,59", "58-59", str(rng.randrange(60))]) if seconds else "0",
        rng.choice(["*", "*/5", "*/25", "0", "30", "59", "0,30", "20-40/3", str(rng.randrange(60))]),
        rng.choice(["*", "*/2", "*/5", "0", "1", "2", "3", "23", "0-3", "1,2", "2-3", str(rng.randrange(24))]),
        days,
        rng.choice(["*", "*", "3,10,11", "mar-nov"]),
        weekdays,
    )


def compare(zone: str, start: datetime, steps: int, step: timedelta, lines: list[Line], rng: random.Random) -> int:
    """Compare each line's chain of slots, some slots after odd moments, and what was missed; return how many."""
    clock, end, slots = WallClock(ZoneInfo(zone), start, steps, step), start + steps * step, 0
    for line in lines:
        text = " ".join(line if step == SECOND else line[1:])
        when, expected = cron(text, tz=zone), clock.runs(line)
        found, at = [], next_slot(when, start)
        while at is not None and at <= end:
            found.append(at)
            at = next_slot(when, at)
        assert found == expected, f"{text} in {zone} after {start}"
        for _ in range(3):
            moment = start + rng.random() * (end - start)
            first = next((slot for slot in expected if slot > moment), None)
            slot = next_slot(when, rng.choice([moment, moment.astimezone(ZoneInfo("Asia/Kolkata"))]))
            assert (slot == first) if first else (slot is None or slot > end), f"{text} in {zone} after {moment}"
        owed = missed(when, start, end, 50)
        assert owed is not None
        assert list(owed.newest) == expected[-50:]
        assert owed.upcoming == at
        assert owed.total == len(expected) if owed.exact else 100 <= owed.total <= len(expected)
        slots += len(found)
    return slots


@pytest.mark.timeout(3600)
def test_slots_are_those_of_a_clock_that_is_looked_at(record_property: Any) -> None:
    """Each minute for three days, and each second for some hours, around changes of the clock in both directions."""
    rng = random.Random(20261115)
    cases = [(zone, at) for zone in ZONES for at in changes(ZoneInfo(zone), *YEARS)]
    slots = 0
    chosen = rng.sample(cases, min(CASES, len(cases)))
    for zone, at in chosen:
        begin = at - DAY - rng.randrange(60) * MINUTE
        lines = [*MINUTES, *(chance(rng, seconds=False) for _ in range(4))]
        slots += compare(zone, begin, 3 * 24 * 60, MINUTE, lines, rng)
        begin = at - timedelta(seconds=rng.randrange(5000, 9000))
        lines = [*SECONDS, *(chance(rng, seconds=True) for _ in range(4))]
        slots += compare(zone, begin, 4 * 3600, SECOND, lines, rng)
    print(f"{len(chosen)} of {len(cases)} changes of the clock: {slots} slots compared")
    record_property("slots", slots)
    assert slots > 0


def test_every_second_is_a_slot_through_a_change_of_the_clock() -> None:
    """In both directions."""
    rng = random.Random(1)
    for at in changes(ZoneInfo("Europe/Berlin"), 2026, 2026):
        assert compare("Europe/Berlin", at - MINUTE, 120, SECOND, [Line.of("* * * * * *")], rng) == 120


def test_days_are_those_of_a_calendar_that_is_looked_at_each_day() -> None:
    """`L`, `LW`, `#`, names, and days that either field names, from 2020 to 2040 in the large run."""
    rng, last = random.Random(5), min(YEARS[0] + CASES, YEARS[1])
    texts = ["L * *", "LW * *", "* * fri#2", "* * 7#5", "* * friL", "13 * fri", "L * mon", "*/2 * mon", "1-7 * */2"]
    texts += ["29 2 *", "LW feb *", "31 * sat-sun", "L feb sun#5", "1,LW jan-mar tueL,thu#1", "* * mon-sun"]
    lines = [Line.of(f"0 12 {text}") for text in texts] + [
        chance(rng, seconds=False)._replace(minute="0", hour="12") for _ in range(CASES)
    ]
    first = date(YEARS[0], 1, 1)
    days = [first + n * DAY for n in range((date(last + 1, 1, 1) - first).days)]
    for line in lines:
        when, found = cron(" ".join(line), tz="UTC"), []
        at = next_slot(when, datetime(2019, 12, 31, 12, tzinfo=UTC))
        while at is not None and at.year <= last:
            found.append(at.date())
            at = next_slot(when, at)
        assert found == [day for day in days if line.on(day)], " ".join(line)


def test_a_line_has_the_slots_of_celerys_crontab_where_they_mean_the_same() -> None:
    """Because one rule decides for both what happens when the clock is changed."""
    for zone in ("America/St_Johns", "Australia/Lord_Howe", "Africa/Casablanca"):
        for at in changes(ZoneInfo(zone), 2024, 2025):
            for text in ("*/15 * * * *", "30 2 * * *", "30 1 * * *", "10 1-3 * 3-11 *", "5 */2 * * 0"):
                other = crontab.from_string(text)
                other.tz = ZoneInfo(zone)
                moments = [at - DAY, at - DAY]
                for _ in range(40):
                    moments = [next_slot(cron(text, tz=zone), moments[0]), next_slot(other, moments[1])]  # type: ignore[list-item, arg-type]
                    assert moments[0] == moments[1], f"{text} in {zone}"


def times(text: str, start: datetime, count: int) -> list[str]:
    found, at = [], start
    for _ in range(count):
        slot = next_slot(cron(text, tz="America/Los_Angeles"), at)
        assert slot is not None
        found.append(f"{slot:%d %H:%M:%S}")
        at = slot
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("15,45 30 1 * * *", ["01 08:30:15", "01 08:30:45", "02 09:30:15"]),
        ("30 */30 1 * * *", ["01 08:00:30", "01 08:30:30", "01 09:00:30", "01 09:30:30"]),
        ("*/30 30 1 * * *", ["01 08:30:00", "01 08:30:30", "02 09:30:00"]),
    ],
)
def test_seconds_in_an_hour_that_is_repeated(text: str, expected: list[str]) -> None:
    """A fixed minute and hour run once. Los Angeles, 1 November 2026: from 2:00 back to 1:00 at 9:00 UTC."""
    assert times(text, datetime(2026, 11, 1, 7, 50, tzinfo=UTC), len(expected)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("15,45 30 2 * * *", ["08 10:00:00", "09 09:30:15"]),
        ("30 */30 2 * * *", ["09 09:00:30", "09 09:30:30"]),
        ("30 30 */2 * * *", ["08 08:30:30", "08 11:30:30"]),
    ],
)
def test_seconds_in_an_hour_that_is_left_out(text: str, expected: list[str]) -> None:
    """A fixed minute and hour run at its end. Los Angeles, 8 March 2026: from 2:00 to 3:00 at 10:00 UTC."""
    assert times(text, datetime(2026, 3, 8, 8, tzinfo=UTC), len(expected)) == expected
