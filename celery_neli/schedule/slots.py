"""The slots of Celery's schedules: the due times after a moment, whenever one asks.

Celery's schedules answer `is_due(last_run_at)` for the present only. This module answers for any moment: the first due
time after it, and those that were due until now. Intervals count elapsed time; :mod:`celery_neli.schedule.crontabs` and
:mod:`celery_neli.schedule.solar` find the slots of crontabs and solar events; a relative interval is asked for its own
(`remaining_estimate`, on a schedule whose clock is stopped). But for relative intervals, all releases of Celery come
out the same. A class that overrides what decides knows `is_due` and no more. All slots are aware datetimes in UTC.
Pure, apart from the schedules' own settings; nothing blocks.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone, tzinfo
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from celery.schedules import crontab, schedule, solar
from celery.utils.time import maybe_make_aware

from celery_neli.schedule.crontabs import next_time
from celery_neli.schedule.once import once
from celery_neli.schedule.solar import next_event

if TYPE_CHECKING:
    from collections.abc import Hashable

__all__ = ["LOOK_AGAIN", "Owed", "comes_never", "is_known", "last_run", "missed", "next_slot"]

#: Slots that are counted one by one; beyond that a count is a lower bound.
COUNTED = 100
#: When to look again for a slot that was not found.
LOOK_AGAIN = timedelta(days=1)
#: What decides when a schedule is due. A class or object that overrides any of it is known by `is_due` alone.
_DECIDES = frozenset(
    ("is_due", "remaining_estimate", "remaining_delta", "_delta_to_next", "_next_event", "now", "maybe_make_aware")
)
_SECOND, _LEAST = timedelta(seconds=1), timedelta.resolution


class Owed(NamedTuple):
    """The slots after the last run and not after now.

    ``newest``: the last ones of them, oldest first; ``first``: the very first; ``total``: how many there are, or a
    lower bound if not ``exact``; ``upcoming``: the first slot after now, None if there will be none.
    """

    newest: tuple[datetime, ...]
    first: datetime | None
    total: int
    exact: bool
    upcoming: datetime | None


def is_known(when: Any) -> bool:
    """Whether the slots of this schedule can be told: ours, or Celery's interval, crontab or solar, nothing
    overridden.
    """
    kind: Any = type(when)
    if not _is_celerys(kind):
        return False
    if not _DECIDES.isdisjoint(vars(when)):
        return False  # this one was patched
    # Below a second, Celery rounds a relative interval to a moment that is past.
    return not isinstance(when, schedule) or when.run_every >= (_SECOND if when.relative else _LEAST)


def next_slot(when: Any, after: datetime) -> datetime | None:
    """Return the first slot of schedule ``when`` after ``after`` (naive: UTC).

    None if its class knows only `is_due`, or if it names no time after that.
    """
    return _following(when, _start(when, after)) if is_known(when) else None


def _following(when: Any, start: datetime) -> datetime | None:
    if isinstance(when, once):
        return when.at if when.at > start else None
    if isinstance(when, crontab):
        return next_time(when, start)
    if isinstance(when, solar):
        return next_event(when, start)
    if not when.relative:
        try:
            following: datetime = start.astimezone(timezone.utc) + when.run_every
            return following
        except OverflowError:
            return None
    # Its clock stands at `start`.
    then = object.__new__(type(when))
    then.__dict__.update(vars(when), nowfun=lambda: start)
    slot: datetime = start.astimezone(timezone.utc) + then.remaining_estimate(start)
    return slot if slot > start else None


def last_run(when: Any, slot: datetime) -> datetime:
    """The `last_run_at` (UTC) with which ``slot`` counts as run.

    The slot itself; of a solar event a second later, for looked for from its own moment it could be found again.
    """
    return slot + _SECOND if isinstance(when, solar) else slot


def missed(when: Any, last: datetime, now: datetime, limit: int) -> Owed | None:
    """The slots of ``when`` that are owed at ``now`` if it ran last at ``last``; the newest ``limit`` of them in full.

    None if the class of the schedule knows only `is_due`. Naive times are UTC. The cost is bounded however long ago
    ``last`` is: intervals are reckoned, others counted to a hundred, then looked at from the end.
    """
    if not is_known(when):
        return None
    start = _start(when, last)
    first = _following(when, start)
    now = maybe_make_aware(now).astimezone(timezone.utc)
    if first is None:
        if isinstance(when, solar):
            return _NEVER._replace(upcoming=now + LOOK_AGAIN)
        return _NEVER if comes_never(when) else None
    if first > now:
        return Owed(newest=(), first=None, total=0, exact=True, upcoming=first)
    if isinstance(when, once):
        return Owed(newest=(first,), first=first, total=1, exact=True, upcoming=None)
    if isinstance(when, schedule) and not when.relative:
        return _of_interval(when, start, now, first, limit)
    return _of_chain(when, start.tzinfo, now, first, limit)


def _of_interval(when: Any, start: datetime, now: datetime, first: datetime, limit: int) -> Owed:
    total = (now - start) // when.run_every
    newest = tuple(first + (n - 1) * when.run_every for n in range(max(1, total - limit + 1), total + 1))
    return Owed(newest=newest, first=first, total=total, exact=True, upcoming=newest[-1] + when.run_every)


def _of_chain(when: Any, zone: tzinfo | None, now: datetime, first: datetime, limit: int) -> Owed:
    found, upcoming = _until(when, zone, first, now, COUNTED)
    if upcoming is not None:
        return Owed(newest=tuple(found[-limit:]), first=first, total=len(found), exact=True, upcoming=upcoming)
    # Too many. Look at the end only, further back until there are enough.
    span = max(limit * (found[-1] - first) / COUNTED, timedelta(minutes=1))
    begin = now
    while upcoming is None or (len(found) < limit and begin > first):
        span *= 2
        begin = max(_in_phase(when, first, now - span), first)
        start = next_slot(when, begin.astimezone(zone))
        found, upcoming = _until(when, zone, start or now + LOOK_AGAIN, now, None)
    return Owed(
        newest=tuple(found[-limit:]), first=first, total=max(COUNTED, len(found)), exact=False, upcoming=upcoming
    )


def _until(
    when: Any, zone: tzinfo | None, slot: datetime, now: datetime, most: int | None
) -> tuple[list[datetime], datetime | None]:
    """The slots from ``slot`` to ``now``, and the one after; that is None if there are more than ``most``."""
    found: list[datetime] = []
    while slot <= now:
        if len(found) == most:
            return found, None
        found.append(slot)
        # A relative interval is rounded on the clock of its last run. Of one that names no further time: ask again.
        slot = next_slot(when, last_run(when, slot).astimezone(zone)) or now + LOOK_AGAIN
    return found, slot


def _in_phase(when: Any, anchor: datetime, near: datetime) -> datetime:
    """``near``; for a relative interval, which counts from its last run, the whole number of intervals before it."""
    if isinstance(when, schedule):
        every: timedelta = when.run_every
        return anchor + (near - anchor) // every * every
    return near


def _start(when: Any, moment: datetime) -> datetime:
    """Return ``moment`` as `is_due` takes it: a naive one is UTC, and is converted to the schedule's zone."""
    aware: datetime = maybe_make_aware(moment, when.tz)
    return aware


def comes_never(when: Any) -> bool:
    """Return True if a schedule that names no slot now names none later: all that `is_known`, but for relative
    intervals, which are asked, and solar events, for which one looks again in a day.
    """
    return not isinstance(when, solar) and not _is_relative(when)


def _is_relative(when: Any) -> bool:
    return isinstance(when, schedule) and when.relative


@lru_cache(maxsize=256)
def _is_celerys(kind: Hashable) -> bool:
    for base in (schedule, crontab, solar, once):
        if isinstance(kind, type) and issubclass(kind, base):
            return all(getattr(kind, name, None) is getattr(base, name, None) for name in _DECIDES)
    return False


#: Of a schedule that is over.
_NEVER = Owed(newest=(), first=None, total=0, exact=True, upcoming=None)
