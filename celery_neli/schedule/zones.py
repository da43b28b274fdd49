"""When the clocks of a time zone change.

Any `tzinfo` is asked only in the direction in which all of them answer alike, from UTC to local time: `zoneinfo`,
dateutil, pytz, fixed offsets and Celery's own. Pure; nothing blocks.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import tzinfo

__all__ = ["next_change", "offset_at", "to_utc"]

#: Two changes within this time that cancel each other are overlooked. Since 1970 none came within less than a week of
#: the other (the shortest summer: seven days, north-eastern Brazil in October 2000).
_STEP = timedelta(days=6)
#: How much time one cached list of changes covers.
_SPAN = 60 * _STEP
_SECOND, _DAY, _EPOCH = timedelta(seconds=1), timedelta(days=1), datetime(1970, 1, 1, tzinfo=timezone.utc)
_FIRST, _LAST = datetime.min.replace(tzinfo=timezone.utc), datetime.max.replace(tzinfo=timezone.utc)


def offset_at(zone: tzinfo, moment: datetime) -> timedelta:
    """Return how far local time in ``zone`` is ahead of UTC at ``moment`` (aware, in UTC)."""
    return moment.astimezone(zone).replace(tzinfo=timezone.utc) - moment


def to_utc(zone: tzinfo, local: datetime) -> datetime:
    """Return the moment (UTC) at which clocks in ``zone`` show ``local`` (naive).

    Of a time that they show twice, the first one, or the second one if its `fold` is 1; of one that they leave out, the
    moment as if they had not been changed yet.
    """
    shown = local.replace(tzinfo=timezone.utc, fold=0)
    first, last = _FIRST + _DAY, _LAST - _DAY
    before, after = offset_at(zone, max(shown, first) - _DAY), offset_at(zone, min(shown, last) + _DAY)
    moments = sorted(each for each in (shown - before, shown - after) if each + offset_at(zone, each) == shown)
    return moments[-1 if local.fold else 0] if moments else shown - before


def next_change(zone: tzinfo, begin: datetime, end: datetime) -> datetime | None:
    """Return the first moment after ``begin`` and not after ``end`` at which clocks in ``zone`` change, or None.

    Args:
        zone: the time zone.
        begin: aware, in UTC.
        end: the same.

    Raises:
        OverflowError: a datetime cannot hold the time around ``begin`` or ``end``.
    """
    same = _Same(zone)
    for number in range((begin - _EPOCH) // _SPAN, (end - _EPOCH) // _SPAN + 1):
        for change in _of_span(same, number):
            if begin < change <= end:
                return change
    return None


class _Same:
    """A time zone as a key: those of dateutil cannot be hashed."""

    __slots__ = ("zone",)

    def __init__(self, zone: tzinfo) -> None:
        self.zone = zone

    def __hash__(self) -> int:
        return id(self.zone)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.zone is self.zone


@lru_cache(maxsize=4096)
def _of_span(same: _Same, number: int) -> tuple[datetime, ...]:
    """Return the changes after the beginning of a span of time and not after its end."""
    found, zone = [], same.zone
    moment = _EPOCH + number * _SPAN
    offset = offset_at(zone, moment)
    for _ in range(_SPAN // _STEP):
        begin, moment = moment, moment + _STEP
        before, offset = offset, offset_at(zone, moment)
        if offset != before:
            found.append(_change_between(zone, begin, before, moment))
    return tuple(found)


def _change_between(zone: tzinfo, begin: datetime, before: timedelta, end: datetime) -> datetime:
    """Return the moment, a whole second, from which the offset is no longer the one ``before``."""
    while (apart := (end - begin) // _SECOND) > 1:
        middle = begin + timedelta(seconds=apart // 2)
        if offset_at(zone, middle) == before:
            begin = middle
        else:
            end = middle
    return end
