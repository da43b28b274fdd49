"""The slots of an entry in a span of time, by its schedule as it is now. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

from celery.schedules import schedule
from celery.utils.time import maybe_make_aware

from celery_neli.schedule.slots import last_run, next_slot

_TICK = timedelta.resolution


def slots(when: Any, start: datetime, end: datetime, anchor: datetime | None) -> Iterator[datetime]:
    """Yield the slots from ``start`` to ``end`` (aware, both included), as they are named: without a jitter's shift.

    Those of an interval that counts from its last run lie at ``anchor``, one of its slots, and multiples of the
    interval. Raises what a schedule of an application's own raises.
    """
    begin = start - _TICK
    every = _every(when)
    if every is not None and anchor is not None:
        begin = anchor + (begin - anchor) // every * every
    shift = shift_of(when)
    slot = next_slot(when, (begin + shift).astimezone(when.tz))
    while slot is not None:
        slot = maybe_make_aware(slot).astimezone(timezone.utc)
        if slot - shift > end:
            return
        if slot - shift >= start:
            yield slot - shift
        slot = next_slot(when, last_run(when, slot).astimezone(when.tz))


def shift_of(when: Any) -> timedelta:
    """Return how long after the time that names it a slot is due (`neli_jitter`)."""
    shift: timedelta = getattr(when, "shift", timedelta(0))
    return shift


def counts_from_last_run(when: Any) -> bool:
    """Return True if the slots of a schedule depend on when its entry ran last."""
    return _every(when) is not None


def _every(when: Any) -> timedelta | None:
    """Return the interval, if slots count from the last run."""
    inner = when.inner if getattr(when, "floats", False) else when
    every: timedelta | None = inner.run_every if isinstance(inner, schedule) else None
    return every
