"""The slots of crontabs through changes of the clock, and the time zones that they are in.

The rule is that of Debian's cron. A crontab whose minute or hour begins with `*` (`*`, `*/n`) follows real time: it
runs whenever the local clock shows one of its times, so it runs in both passes of an hour that is repeated, and not at
times that the clock skips. A crontab with fixed times runs once for each of them: when the clock shows it for the first
time or, if the clock skips it, at the end of the gap.

cronsim finds the local times that a crontab names. It is asked about a clock that never changes, which is how the local
clock behaves between two changes. This module decides what happens at a change, in the same way for all time zones,
and for both kinds of crontabs: Celery's `crontab`, and `celery_neli.cron` (`cron.py`), which may name seconds, too.

All versions of Celery have the same slots, because only the numbers of a crontab and its text are used. Pure; nothing
blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone, tzinfo
from functools import lru_cache, partial
from typing import Any

from cronsim import CronSim, CronSimError

_SECOND, _DAY = timedelta(seconds=1), timedelta(days=1)
_FIRST, _LAST = datetime.min.replace(tzinfo=timezone.utc), datetime.max.replace(tzinfo=timezone.utc)
#: The fields in cron's order, and how many numbers each has when it restricts nothing.
FIELDS = {"minute": 60, "hour": 24, "day_of_month": 31, "month_of_year": 12, "day_of_week": 7}
#: Two changes within this time that cancel each other go unnoticed. Since 1970 the shortest time between two changes
#: was a week (a summer of seven days in north-eastern Brazil, October 2000).
_STEP = timedelta(days=6)
#: How much time is searched for changes at once.
_SPAN, _EPOCH = 60 * _STEP, datetime(1970, 1, 1, tzinfo=timezone.utc)


def follows_real_time(when: Any) -> bool:
    """Return True if the text of the minute or hour of crontab ``when`` begins with `*`.

    Numbers that a user gave as an int, a list or a set are fixed times, and so are `0-59` and `0,15,30,45`.
    """
    return any(isinstance(text, str) and text.startswith("*") for text in (when._orig_minute, when._orig_hour))  # noqa: SLF001 - what Celery pickles a crontab by


def next_time(when: Any, after: datetime) -> datetime | None:
    """Return the first slot (UTC) of crontab ``when`` after ``after`` (aware); None if it has none within fifty years,
    or none that a datetime can hold.
    """
    return next_in_zone(when.tz, partial(_next_local, when), after, real_time=follows_real_time(when))


def next_in_zone(
    zone: tzinfo, next_local: Callable[[datetime], datetime | None], after: datetime, *, real_time: bool
) -> datetime | None:
    """Return the first slot (UTC) after ``after`` (aware) of times that are named as local times in ``zone``.

    ``next_local`` returns the first time that is named after a local time, both in whole seconds and marked as UTC, on
    a clock that never changes; None if there is none. ``real_time``: they follow real time. None if there is no slot,
    or none that a datetime can hold.
    """
    try:
        return _next_in_zone(zone, next_local, after.astimezone(timezone.utc).replace(microsecond=0), real_time)
    except OverflowError:
        return None


def _next_in_zone(
    zone: tzinfo, next_local: Callable[[datetime], datetime | None], begin: datetime, real_time: bool
) -> datetime | None:
    offset = offset_at(zone, begin)
    # Local times carry UTC as their zone, whose clock never changes.
    reached = begin + offset
    if not real_time and (change := next_change(zone, begin - _DAY, begin)) is not None:
        # In the second pass of an hour, the clock has shown the times up to the end of the first one.
        reached = max(reached, change + offset_at(zone, change - _SECOND) - _SECOND)
    due = next_local(reached)
    while due is not None:
        slot = max(due - offset, begin)  # a time that the clock skipped is due at the change
        change = next_change(zone, begin, slot)
        if change is None:
            return slot
        begin, offset = change, offset_at(zone, change)
        if real_time and not reached < begin + offset <= due:
            # The clock repeats times, or has skipped the one that was due.
            reached = begin + offset - _SECOND
            due = next_local(reached)
    return None


def _next_local(when: Any, reached: datetime) -> datetime | None:
    """Return the first time that the crontab names after local time ``reached``, on a clock that never changes."""
    numbers = [getattr(when, name) for name in FIELDS]
    if not all(numbers):
        return None
    minutes, hours, days, months, weekdays = (
        None if len(field) == size else frozenset(field) for field, size in zip(numbers, FIELDS.values(), strict=True)
    )
    # Celery takes the days that both day fields name, cron those that either names: cronsim sees only one field.
    calendar = _calendar(minutes, hours, days, months, weekdays if days is None else None)
    if calendar is None:
        return None
    if hours is not None and reached.hour > max(hours):
        reached = reached.replace(hour=23, minute=59, second=59)  # cronsim goes hour by hour
    while True:
        times = copy(calendar)
        times.dt = reached
        due = next(times, None)
        if due is None or weekdays is None or due.isoweekday() % 7 in weekdays:
            return due
        reached = due.replace(hour=23, minute=59, second=59)


@lru_cache(maxsize=1024)
def _calendar(*fields: frozenset[int] | None) -> CronSim | None:
    """Return cronsim's calendar of five fields (None: not restricted), or None if they name no time."""
    text = " ".join("*" if field is None else ",".join(str(int(each)) for each in sorted(field)) for field in fields)
    try:
        return CronSim(text, datetime(2000, 1, 1, tzinfo=timezone.utc))
    except CronSimError:  # a day that none of the months has
        return None


# -- time zones: asked only from UTC to local time, for in that direction zoneinfo, dateutil, pytz and Celery's agree --


def offset_at(zone: tzinfo, moment: datetime) -> timedelta:
    """Return how far local time in ``zone`` is ahead of UTC at ``moment`` (aware, in UTC)."""
    return moment.astimezone(zone).replace(tzinfo=timezone.utc) - moment


def to_utc(zone: tzinfo, local: datetime) -> datetime:
    """Return the moment (UTC) at which clocks in ``zone`` show ``local`` (naive).

    If they show it twice, the first moment, or the second one if its `fold` is 1; if they skip it, the moment at which
    they would show it without the change.
    """
    shown = local.replace(tzinfo=timezone.utc, fold=0)
    first, last = _FIRST + _DAY, _LAST - _DAY
    before, after = offset_at(zone, max(shown, first) - _DAY), offset_at(zone, min(shown, last) + _DAY)
    moments = sorted(each for each in (shown - before, shown - after) if each + offset_at(zone, each) == shown)
    return moments[-1 if local.fold else 0] if moments else shown - before


def next_change(zone: tzinfo, begin: datetime, end: datetime) -> datetime | None:
    """Return the first moment after ``begin`` and not after ``end`` at which clocks in ``zone`` change, or None.

    Both are aware and in UTC. Raises `OverflowError` if a datetime cannot hold the time around one of them.
    """
    same = _Same(zone)
    for number in range((begin - _EPOCH) // _SPAN, (end - _EPOCH) // _SPAN + 1):
        for change in _changes(same, number):
            if begin < change <= end:
                return change
    return None


@dataclass(frozen=True, slots=True, eq=False)
class _Same:
    """A time zone as a key: those of dateutil cannot be hashed."""

    zone: tzinfo

    def __hash__(self) -> int:
        return id(self.zone)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.zone is self.zone


@lru_cache(maxsize=4096)
def _changes(same: _Same, number: int) -> tuple[datetime, ...]:
    """Return the moments at which clocks change in one span of time: to find them takes a hundred questions."""
    found, zone = [], same.zone
    end = _EPOCH + number * _SPAN
    offset = offset_at(zone, end)
    for _ in range(_SPAN // _STEP):
        begin, end = end, end + _STEP
        before, offset = offset, offset_at(zone, end)
        change = end
        while offset != before and change - begin > _SECOND:
            middle = begin + (change - begin) // _SECOND // 2 * _SECOND
            begin, change = (middle, change) if offset_at(zone, middle) == before else (begin, middle)
        if offset != before:
            found.append(change)
    return tuple(found)
