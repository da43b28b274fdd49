"""Times and durations in words, in one time zone."""

from __future__ import annotations

from datetime import datetime, timezone, tzinfo

from celery_neli.printable import printable


class Words:
    """Says times in `zone`."""

    def __init__(self, zone: tzinfo | None = None) -> None:
        self._zone = zone or timezone.utc

    def time(self, seconds: float | None, *, exact: bool = False) -> str:
        """Return a moment (Unix seconds) with its date and zone; `exact`: to the millisecond."""
        if seconds is None:
            return "an unknown time"
        try:
            at = datetime.fromtimestamp(seconds, self._zone)
        except (ValueError, OverflowError, OSError):  # a record's time may be anything
            return f"{seconds:g}"
        parts = at.microsecond and (exact or not abs(seconds - round(seconds)) < 1e-4)
        return f"{at:%Y-%m-%d %H:%M:%S}" + (f".{at.microsecond // 1000:03}" if parts or exact else "") + self._name(at)

    @staticmethod
    def _name(at: datetime) -> str:
        return f" {at.tzname()}" if at.tzname() else ""

    def clock(self, seconds: float) -> str:
        """Return a moment without its zone, to the millisecond."""
        try:
            at = datetime.fromtimestamp(seconds, self._zone)
        except (ValueError, OverflowError, OSError):
            return f"{seconds:g}"
        return f"{at:%Y-%m-%d %H:%M:%S}.{at.microsecond // 1000:03}"


def span(seconds: float) -> str:
    """Return a duration in at most two units: 4.3 s, 12 min 5 s, 3 h 2 min, 5 days."""
    seconds = max(0.0, seconds)
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    if seconds < 2 * 86_400:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"
    return f"{int(seconds // 86_400)} days"


def named(text: object) -> str:
    """Return a name that others wrote, fit for a line."""
    return printable(text)
