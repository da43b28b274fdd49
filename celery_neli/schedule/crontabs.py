"""The slots of Celery's crontabs, through changes of the clock.

The rule is that of Debian's cron. A crontab whose minute or hour begins with `*` (`*`, `*/n`) follows real time: it
runs whenever the local clock shows one of its times, so it runs in both passes of an hour that is repeated, and not at
times that the clock leaves out. One with fixed times runs once for each of them: when the clock shows it for the first
time, and, when the clock leaves it out, as soon as the clock has passed it.

Which times of the local calendar a crontab names, cronsim says. It is asked about a clock that never changes: between
two changes the local clock is one. What happens at a change is decided here, for all time zones in the same way.

All versions of Celery come out the same: only the numbers of a crontab are used, and the text they came from. Pure;
nothing blocks.
"""

from __future__ import annotations

from copy import copy
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from cronsim import CronSim, CronSimError

from celery_neli.schedule.zones import next_change, offset_at

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

__all__ = ["follows_real_time", "next_time"]

_SECOND, _DAY = timedelta(seconds=1), timedelta(days=1)
#: How many numbers each field has when it restricts nothing, in the order in which cron writes them.
_FIELDS = (("minute", 60), ("hour", 24), ("day_of_month", 31), ("month_of_year", 12), ("day_of_week", 7))


def follows_real_time(when: Any) -> bool:
    """Return True if the text of the minute or hour of crontab ``when`` begins with `*`.

    Numbers that a user gave as an int, a list or a set are fixed times, and so are `0-59` and `0,15,30,45`.
    """
    return any(isinstance(text, str) and text.startswith("*") for text in (when._orig_minute, when._orig_hour))  # noqa: SLF001 - what Celery pickles a crontab by


def next_time(when: Any, after: datetime) -> datetime | None:
    """Return the first slot (UTC) of crontab ``when`` after ``after`` (aware), or None if it names no time.

    None too if there is none within fifty years, or none that a datetime can hold.
    """
    try:
        return _next_time(when, after.astimezone(timezone.utc).replace(microsecond=0))
    except OverflowError:
        return None


def _next_time(when: Any, begin: datetime) -> datetime | None:
    zone, real_time = when.tz, follows_real_time(when)
    offset = offset_at(zone, begin)
    # Local times carry UTC as their zone: their clock never changes.
    reached = begin + offset
    if not real_time and (change := next_change(zone, begin - _DAY, begin)) is not None:
        # In the second pass of an hour, the clock has shown the times up to the end of the first one.
        reached = max(reached, change + offset_at(zone, change - _SECOND) - _SECOND)
    due = _next_local(when, reached)
    while due is not None:
        slot = max(due - offset, begin)  # what the clock has left out is due at its change
        change = next_change(zone, begin, slot)
        if change is None:
            return slot
        begin, offset = change, offset_at(zone, change)
        if real_time and not reached < begin + offset <= due:
            # The clock shows times again, or has left out the one that was due.
            reached = begin + offset - _SECOND
            due = _next_local(when, reached)
    return None


def _next_local(when: Any, reached: datetime) -> datetime | None:
    """Return the first time that the crontab names after local time ``reached``, on a clock that never changes."""
    numbers: list[AbstractSet[int] | None] = []
    for name, size in _FIELDS:
        field = getattr(when, name)
        if not field:
            return None
        numbers.append(None if len(field) == size else frozenset(field))
    *fields, weekdays = numbers
    if fields[2] is None:
        fields.append(weekdays)
        weekdays = None
    else:
        fields.append(None)
    calendar = _calendar(*fields)
    if calendar is None:
        return None
    if fields[1] is not None and reached.hour > max(fields[1]):
        reached = _end_of_day(reached)  # cronsim goes hour by hour
    while True:
        times = copy(calendar)
        times.dt = reached
        due = next(times, None)
        # Celery's days are those that both fields name. Of cron's, those that either names: let it see but one.
        if due is None or weekdays is None or due.isoweekday() % 7 in weekdays:
            return due
        reached = _end_of_day(due)


def _end_of_day(at: datetime) -> datetime:
    return at.replace(hour=23, minute=59, second=59)


@lru_cache(maxsize=1024)
def _calendar(*fields: frozenset[int] | None) -> CronSim | None:
    """Return cronsim's reading of five fields, None for one that restricts nothing; None if they name no time."""
    text = " ".join("*" if field is None else ",".join(str(int(each)) for each in sorted(field)) for field in fields)
    try:
        return CronSim(text, datetime(2000, 1, 1, tzinfo=timezone.utc))
    except CronSimError:  # a day that none of the months has
        return None
