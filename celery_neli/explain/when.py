"""Which slot is meant: what users write for one, and the slots of a schedule around a moment. Pure."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, tzinfo
from typing import Any, Final, NamedTuple

from celery.schedules import schedule

from celery_neli.exceptions import ConfigurationError
from celery_neli.periodic.definition import moment
from celery_neli.printable import shown
from celery_neli.schedule.slots import Derived, base_of, has_slots, missed, next_slot, nominal, shift_of
from celery_neli.schedule_topic.values import is_moment

LAST: Final = "last"
FORMS: Final = "give an ISO time (2026-12-01T07:00), 07:00, today 07:00, yesterday 07:00, or last"
_CLOCK = re.compile(r"(?:(today|yesterday)[ T]+)?(\d{1,2}):(\d{2})(?::(\d{2}(?:\.\d{1,6})?))?", re.IGNORECASE)
_FURTHEST: Final = timedelta(days=5 * 366)  # back to which a slot is searched
_TICK: Final = timedelta.resolution


class Window(NamedTuple):
    """The times that a text may mean: a minute, a second, or a moment. Unix seconds."""

    begin: float
    end: float


def window(text: str, zone: tzinfo, now: float) -> Window | None:
    """Return what the text means in this time zone, None for "last". A time of day without a day is the latest one that
    is past. Raises `ConfigurationError`.
    """
    text = text.strip()
    if text.lower() == LAST:
        return None
    try:
        if (found := _CLOCK.fullmatch(text)) is not None:
            return _of_clock(*found.groups(), zone=zone, now=now)
        return _of_iso(text, zone)
    except (ValueError, OverflowError):
        raise ConfigurationError(f"SLOT = {shown(text)}: {FORMS}") from None


def _of_clock(day: str | None, hour: str, minute: str, second: str | None, *, zone: tzinfo, now: float) -> Window:
    today = datetime.fromtimestamp(now, zone)
    whole, _, part = (second or "0").partition(".")
    micro = int(part.ljust(6, "0")) if part else 0
    back = 1 if (day or "").lower() == "yesterday" else 0
    at = _on(today - timedelta(days=back), int(hour), int(minute), int(whole), micro)
    if day is None and at.timestamp() > now:
        at = _on(today - timedelta(days=1), int(hour), int(minute), int(whole), micro)
    return _window(at, minutes=second is None, seconds=not part)


def _on(day: datetime, hour: int, minute: int, second: int, micro: int) -> datetime:
    return day.replace(hour=hour, minute=minute, second=second, microsecond=micro, fold=0)


def _of_iso(text: str, zone: tzinfo) -> Window:
    # Python 3.10 knows no Z, nor a fraction of other than three or six digits.
    text = re.sub(r"[zZ]$", "+00:00", text)
    text = re.sub(r"\.(\d{1,6})\d*", lambda found: f".{found[1]:0<6}", text)
    at = datetime.fromisoformat(text)
    time_of_day = text[10:]
    at = at if at.tzinfo is not None else at.replace(tzinfo=zone)
    return _window(at, minutes=time_of_day.count(":") - _offset_colons(time_of_day) < 2, seconds="." not in text)


def _offset_colons(text: str) -> int:
    offset = re.search(r"[+-]\d{2}(:?)\d{2}", text)
    return len(offset[1]) if offset is not None else 0


def _window(at: datetime, *, minutes: bool, seconds: bool) -> Window:
    if not is_moment(at):
        raise ValueError("not every time zone has it")
    begin = at.timestamp()
    return Window(begin, begin + (60.0 if minutes else 1.0 if seconds else 1e-6))


class Slots:
    """The slots of a schedule around any moment. Those of an interval count from one of them, `anchor` (seconds)."""

    def __init__(self, when: Any, anchor: float | None) -> None:
        self._when, self._anchor = when, anchor
        base, fixed = base_of(when), isinstance(when, Derived) and not when.floats
        self._every = round(base.run_every / _TICK) if isinstance(base, schedule) and not fixed else None
        self.known = has_slots(when) and (self._every is None or anchor is not None)
        self._shift = timedelta(seconds=shift_of(when))

    def at_or_after(self, seconds: float) -> float | None:
        """Return the first slot that is not before this moment, None if there is none or it is not known."""
        return self._from(moment(seconds))

    def after(self, seconds: float) -> float | None:
        """Return the first slot after this moment."""
        return self._from(moment(seconds) + _TICK)

    def before(self, seconds: float) -> float | None:
        """Return the last slot before this moment, None as above, or if it is years before."""
        end = moment(seconds) - _TICK
        if not self.known:
            return None
        if self._every is not None and not isinstance(self._when, Derived):
            return self._of_interval(end, -1)
        end, span = end + self._shift, timedelta(hours=1)
        while span <= _FURTHEST:
            owed = missed(self._when, self._on_rhythm(end - span), end, 1)
            if owed is not None and owed.newest:
                return nominal(self._when, owed.newest[-1]).timestamp()
            span *= 8
        return None

    def _from(self, begin: datetime) -> float | None:
        if not self.known:
            return None
        if self._every is not None and not isinstance(self._when, Derived):
            return self._of_interval(begin, 1)
        found = next_slot(self._when, self._on_rhythm(begin - _TICK) + self._shift)
        return None if found is None else nominal(self._when, found).timestamp()

    def _on_rhythm(self, at: datetime) -> datetime:
        """Return the latest slot until then if slots count from one of them, else the time itself."""
        return at if self._every is None else moment(self._of_interval(at, -1))

    def _of_interval(self, at: datetime, side: int) -> float:
        assert self._anchor is not None
        assert self._every is not None
        anchor = moment(self._anchor)
        steps = (at - anchor) // _TICK
        count = -(-steps // self._every) if side > 0 else steps // self._every
        found: datetime = anchor + count * self._every * _TICK
        return found.timestamp()
