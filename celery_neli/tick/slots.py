"""The slots of Celery's schedules: the due times after a moment, whenever one asks.

Celery's schedules answer `is_due(last_run_at)` for the present only. Asked here is what they *would* answer: the first
due time after a moment, and those that were due until now. The arithmetic is Celery's own, of the installed release
(`remaining_estimate`, on a schedule whose clock is stopped), so time zones, DST and its changes from release to release
come out the same. Only exact copies of Celery's behaviour are answered for; a class that overrides it knows `is_due`
and no more. All slots are aware datetimes in UTC. Pure, apart from the schedules' own settings; nothing blocks.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone, tzinfo
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import celery.utils.time
from celery.schedules import crontab, schedule, solar
from celery.utils.time import maybe_make_aware, remaining

from celery_neli.tick.once import once

if TYPE_CHECKING:
    from collections.abc import Hashable

__all__ = ["Owed", "is_known", "last_run", "missed", "next_slot"]

#: Slots that are counted one by one; beyond that a count is a lower bound.
COUNTED = 100
#: Celery 5.7 counts intervals in elapsed time, its forerunners on the local clock.
ELAPSED = hasattr(celery.utils.time, "add_seconds_to_datetime")
#: What decides when a schedule is due. A class that overrides any of it is known by `is_due` alone.
_DECIDES = frozenset(
    ("is_due", "remaining_estimate", "remaining_delta", "_delta_to_next", "_next_event", "now", "maybe_make_aware")
)
_ASKED = ("is_due", "remaining_estimate")
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
    if any(getattr(getattr(when, name), "__func__", None) is not getattr(kind, name) for name in _ASKED):
        return False  # this one was patched
    # Below a second, Celery rounds a relative interval to a moment that is past.
    return not isinstance(when, schedule) or when.run_every >= (_SECOND if when.relative else _LEAST)


def next_slot(when: Any, after: datetime) -> datetime | None:
    """The first slot of schedule ``when`` after ``after``: when `is_due(after)` becomes true. A naive one is UTC.

    None if its class knows only `is_due`, or if it names no time after that.
    """
    return _following(when, _start(when, after)) if is_known(when) else None


def _following(when: Any, start: datetime) -> datetime | None:
    if isinstance(when, once):
        return when.at if when.at > start else None
    if ELAPSED and isinstance(when, schedule) and not when.relative:
        every: timedelta = when.run_every
        return start.astimezone(timezone.utc) + every
    # Its clock stands at `after`. (Celery 5.5 and 5.6 reckon from the present hour if that is much later.)
    then = object.__new__(type(when))
    then.__dict__.update(vars(when), nowfun=lambda: start)
    slot: datetime = start.astimezone(timezone.utc) + then.remaining_estimate(start)
    if isinstance(when, crontab) and slot <= start:
        # In the hour that is repeated when the clock goes back, Celery finds the time in the first pass of it, which is
        # over: it would run the entry again and again for an hour. It is the second pass.
        slot = slot.astimezone(start.tzinfo).replace(fold=1).astimezone(timezone.utc)
    if isinstance(when, solar):
        # The moment of a sunrise is known to the millisecond at best. Slots are whole seconds, rounded up, as if the
        # schedule had been asked once a second.
        slot = -(-(slot - _EPOCH) // _SECOND) * _SECOND + _EPOCH
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
    if first is None:
        return _NEVER if isinstance(when, once) else None
    now = maybe_make_aware(now).astimezone(timezone.utc)
    if first > now:
        return Owed(newest=(), first=None, total=0, exact=True, upcoming=first)
    if isinstance(when, once):
        return Owed(newest=(first,), first=first, total=1, exact=True, upcoming=None)
    if isinstance(when, schedule) and not when.relative:
        return _of_interval(when, start, now, first, limit)
    return _of_chain(when, start.tzinfo, now, first, limit)


def _of_interval(when: Any, start: datetime, now: datetime, first: datetime, limit: int) -> Owed:
    base = start.astimezone(timezone.utc)

    def nth(n: int) -> datetime:
        step: timedelta = n * when.run_every
        return base + (step if ELAPSED else remaining(start, step, start))

    # On a local clock an hour may be missing or doubled between the two: a bound, then the one place where it turns.
    few, many = 1, (now - base + timedelta(hours=25)) // when.run_every + 2
    if ELAPSED:
        few = (now - base) // when.run_every
    else:
        while many - few > 1:
            middle = (few + many) // 2
            few, many = (middle, many) if nth(middle) <= now else (few, middle)
    newest = tuple(nth(n) for n in range(max(1, few - limit + 1), few + 1))
    return Owed(newest=newest, first=first, total=few, exact=True, upcoming=nth(few + 1))


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
        found, upcoming = _until(when, zone, start or now + timedelta(days=1), now, None)
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
        # A relative interval is rounded on the clock of its last run. One that names no further time: ask in a day.
        slot = next_slot(when, last_run(when, slot).astimezone(zone)) or now + timedelta(days=1)
    return found, slot


def _in_phase(when: Any, anchor: datetime, near: datetime) -> datetime:
    """``near``; for a relative interval, which counts from its last run, the whole number of intervals before it."""
    if isinstance(when, schedule):
        every: timedelta = when.run_every
        return anchor + (near - anchor) // every * every
    return near


def _start(when: Any, moment: datetime) -> datetime:
    """``moment`` as `is_due` takes it: a naive one is UTC, in the schedule's zone; crontabs live in theirs."""
    aware: datetime = maybe_make_aware(moment, when.tz)
    return aware.astimezone(when.tz) if isinstance(when, crontab) else aware


@lru_cache(maxsize=256)
def _is_celerys(kind: Hashable) -> bool:
    for base in (schedule, crontab, solar, once):
        if isinstance(kind, type) and issubclass(kind, base):
            return all(getattr(kind, name, None) is getattr(base, name, None) for name in _DECIDES)
    return False


_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
#: Of a schedule that is over.
_NEVER = Owed(newest=(), first=None, total=0, exact=True, upcoming=None)
