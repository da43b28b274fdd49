"""A schedule of which an entry's options leave out some slots, and that they shift: `neli_start`, `neli_jitter`, ….

Only entries that have such options have it; it is made in `periodic/shape.py`. Pure, but for what an application's
calendar does; nothing else blocks.
"""

from __future__ import annotations

import time
from copy import copy
from datetime import datetime, timedelta, timezone, tzinfo
from hashlib import sha256
from typing import Any, Final

from celery.schedules import schedule

from celery_neli.schedule.calendars import Calendar
from celery_neli.schedule.crontabs import to_utc
from celery_neli.schedule.slots import Derived, next_slot, once

#: Days that a calendar may leave out one after the other before a search ends. A day of each year comes within them.
MOST_DAYS: Final = 400
#: Seconds after which a search ends, because an application's calendar is slow.
PATIENCE: Final = 5.0
#: Shifts are multiples of this, which both floats and datetimes hold exactly.
STEP: Final = timedelta(seconds=1) / 64
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_TICK, _DAY = timedelta.resolution, timedelta(days=1)


def shift_for(name: str, jitter: float) -> timedelta:
    """Return the shift of an entry: the same in every process, from 0 to ``jitter`` seconds, but less than that."""
    part = int.from_bytes(sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "big")
    steps = timedelta(seconds=jitter) // STEP
    return part * steps // 2**64 * STEP


class shaped(Derived):  # noqa: N801 - as Celery's schedule, crontab and solar
    """The slots of ``inner`` from ``start`` to ``end`` (aware, both included) on days that ``calendar`` lets through,
    each shifted by ``shift``.

    Start, end and days are those of the slots without the shift; days are those of the schedule's time zone. The slots
    of an interval with a start, or with ``anchored``, lie at the start, or the epoch, and multiples of the interval;
    without, they count from the last run. ``zone`` replaces the time zone of a crontab. It can be pickled and compared.
    """

    def __init__(
        self,
        inner: Any,
        *,
        shift: timedelta = timedelta(0),
        start: datetime | None = None,
        end: datetime | None = None,
        calendar: Calendar | None = None,
        zone: tzinfo | None = None,
        anchored: bool = False,
    ) -> None:
        if zone is not None:
            inner = copy(inner)
            inner.tz = zone  # of a crontab; as if it were the app's
        super().__init__(inner, shift)
        self.start, self.end, self.calendar, self.zone, self.anchored = start, end, calendar, zone, anchored
        self.searched_again = calendar is not None and not isinstance(inner, once)
        self._every: timedelta | None = inner.run_every if isinstance(inner, schedule) else None
        self.floats = self._every is not None and start is None and not anchored

    def next_time(self, after: datetime) -> datetime | None:
        """Return the first slot (UTC, shifted) after ``after`` (aware); None if there is none, or none is found within
        `MOST_DAYS` days that the calendar was asked about.
        """
        try:
            found = self.next_nominal(after.astimezone(timezone.utc) - self.shift)
            return None if found is None else found + self.shift
        except OverflowError:
            return None

    def next_nominal(self, after: datetime) -> datetime | None:
        """Return the same for a time without the shift. Raises `OverflowError` if a datetime cannot hold it."""
        if self.start is not None and after < self.start:
            after = self.start - _TICK
        slot, calendar, began = self._after(after), self.calendar, 0.0
        for _ in range(MOST_DAYS):
            if slot is None or (self.end is not None and slot > self.end):
                return None
            if calendar is None or calendar.lets(slot.astimezone(self.tz).date()):
                return slot
            began = began or time.monotonic()
            if time.monotonic() - began > PATIENCE:
                return None
            slot = self._on_another_day(slot)
        return None

    def why_not(self, slot: datetime) -> str | None:
        """Return why a slot of the other schedule is left out, None if it is not."""
        if self.start is not None and slot < self.start:
            return f"before neli_start = {self.start.isoformat()}"
        if self.end is not None and slot > self.end:
            return f"after neli_end = {self.end.isoformat()}"
        day = slot.astimezone(self.tz).date()
        if self.calendar is None or self.calendar.lets(day):
            return None
        found = self.calendar.named(day)
        what = "" if found in (None, self.calendar.name) else f" ({found})"
        return f"neli_calendar = '{self.calendar.mode} {self.calendar.name}' leaves out {day}{what}"

    def left_out(self, after: datetime, until: datetime) -> list[datetime]:
        """Return the first slot of each day that the calendar leaves out between two slots (all without the shift)."""
        found: list[datetime] = []
        slot = self._after(max(after, self.start - _TICK) if self.start else after)
        while self.calendar is not None and slot is not None and slot < until and len(found) < MOST_DAYS:
            if self.calendar.lets(slot.astimezone(self.tz).date()):
                slot = self._after(slot)
            else:
                found.append(slot)
                slot = self._on_another_day(slot)
        return found

    def first_of_inner(self, at: datetime) -> datetime | None:
        """Return the first slot of the other schedule at or after a time."""
        return self._after(at - _TICK)

    def _after(self, after: datetime) -> datetime | None:
        """Return the first slot of the other schedule."""
        if self._every is None or self.floats:
            return next_slot(self.inner, after)
        anchor = self.start or _EPOCH
        return anchor + ((after - anchor) // self._every + 1) * self._every

    def _on_another_day(self, slot: datetime) -> datetime | None:
        """Return the first slot of the other schedule on a day after that of ``slot``."""
        local = slot.astimezone(self.tz).replace(tzinfo=None)
        midnight = datetime.combine(local.date() + _DAY, datetime.min.time())
        # If the clock is set back over midnight, the day comes twice, and so may the end of it.
        ends = (to_utc(self.tz, midnight.replace(fold=fold)) for fold in (0, 1))
        end = next((each for each in ends if each > slot), slot + _TICK)
        if self._every is not None:
            return slot + max(1, -(-(end - slot) // self._every)) * self._every
        return self._after(max(end - _TICK, slot))

    @property
    def key(self) -> tuple[Any, ...]:
        """What decides its slots but for the shift. Not hashable for every schedule."""
        inner = self.inner.__reduce__()[1] if self._every is None else (self._every, self.inner.relative)
        return type(self.inner), inner, self.zone, self.start, self.end, self.calendar, self.anchored

    def __eq__(self, other: object) -> bool:
        if isinstance(other, shaped):
            return (self.shift, self.nowfun, *self.key) == (other.shift, other.nowfun, *other.key)
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]  # Celery's crontabs have none

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (
            self.inner, self.shift, self.start, self.end, self.calendar, self.zone, self.anchored,
        )  # fmt: skip


def _again(inner: Any, shift: Any, start: Any, end: Any, calendar: Any, zone: Any, anchored: bool) -> shaped:
    return shaped(inner, shift=shift, start=start, end=end, calendar=calendar, zone=zone, anchored=anchored)
