"""When each of many entries is due next: what they share is reckoned once.

A schedule of a hundred thousand entries has far fewer kinds of times than entries. The clock is read once, an interval
is a sum, and the next slot of a crontab is the same for all that ran last between two slots of it.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from celery.beat import ScheduleEntry
from celery.schedules import crontab, schedule
from celery.utils.time import maybe_make_aware

from celery_neli.schedule.due import reckoned, seconds_to_next
from celery_neli.schedule.slots import is_known, next_slot

if TYPE_CHECKING:
    from datetime import tzinfo

__all__ = ["Forecast", "Next"]

_SPEC = attrgetter("_orig_minute", "_orig_hour", "_orig_day_of_week", "_orig_day_of_month", "_orig_month_of_year")
_NOUGHT, _UTC = timedelta(0), timezone.utc


class Next(NamedTuple):
    """Seconds until the next slot (negative: it is past; infinite: there is none), counted from ``now`` (Unix)."""

    delay: float
    now: float


class _Clock(NamedTuple):
    app: Any
    now: datetime
    moment: float
    zone: tzinfo


class _Stretch(NamedTuple):
    """Whatever ran last from ``begin`` on and before ``slot`` is due at ``slot``."""

    begin: datetime
    slot: datetime
    next: Next


class Forecast:
    """One look at many entries, for which time stands still. Blocks no longer than they do that are not Celery's own.

    Not for several threads at once.
    """

    def __init__(self) -> None:
        self._clocks: dict[int, _Clock] = {}
        self._stretches: dict[Any, _Stretch] = {}

    def next(self, entry: Any) -> Next | None:
        """What :func:`celery_neli.schedule.due.seconds_to_next` says of the entry; None too if it is not `reckoned`."""
        found = None
        if type(entry) is ScheduleEntry:
            when, last = entry.schedule, entry.last_run_at
            kind = type(when)
            if (
                (kind is schedule or kind is crontab)
                and when.nowfun is None
                and is_known(when)
                and last.tzinfo is not None
            ):
                found = self._of_interval(when, last) if kind is schedule else self._of_crontab(when, last)
        if found is None and reckoned(entry) and (delay := seconds_to_next(entry)) is not None:
            return Next(delay, maybe_make_aware(entry.default_now()).timestamp())
        return found

    def _of_interval(self, when: Any, last: datetime) -> Next | None:
        every: timedelta = when.run_every
        if when.relative or every <= _NOUGHT:
            return None
        clock = self._clock(when.app)
        return Next((last.astimezone(_UTC) + every - clock.now).total_seconds(), clock.moment)

    def _of_crontab(self, when: Any, last: datetime) -> Next | None:
        zone = vars(when).get("tz") or self._clock(when.app).zone  # asked for its `tz`, it would keep that from now on
        key = _SPEC(when), zone
        try:
            known = self._stretches.get(key)
        except TypeError:
            return None  # it was given as a list or a set
        if known is not None and known.begin <= last < known.slot:
            return known.next
        slot = next_slot(when, last)
        if slot is None:
            return None
        clock = self._clock(when.app)
        found = Next((slot - clock.now).total_seconds(), clock.moment)
        # Crontabs do not look at more than the minute.
        begin = last.astimezone(zone).replace(second=0, microsecond=0).astimezone(_UTC)
        self._stretches[key] = _Stretch(begin, slot, found)
        return found

    def _clock(self, app: Any) -> _Clock:
        clock = self._clocks.get(id(app))
        if clock is None:
            now = maybe_make_aware(app.now()).astimezone(_UTC)
            clock = self._clocks[id(app)] = _Clock(app, now, now.timestamp(), app.timezone)
        return clock
