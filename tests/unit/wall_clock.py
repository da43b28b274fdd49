"""A clock on the wall, looked at once a minute: when it runs a crontab, by the rule of Debian's cron.

Written from the rule, and from nothing that celery_neli or cronsim have: what it says is compared with them.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from datetime import tzinfo

MINUTE = timedelta(minutes=1)


class Crontab(NamedTuple):
    """The fields in cron's order, as text of numbers, `*`, ranges, steps and commas."""

    minute: str
    hour: str
    day_of_month: str
    month_of_year: str
    day_of_week: str

    @property
    def starred(self) -> bool:
        """Return True if it follows real time."""
        return self.minute[0] == "*" or self.hour[0] == "*"

    def matches(self) -> Any:
        """Return the test of a local time."""
        bounds = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 6))
        minutes, hours, days, months, weekdays = (
            numbers(field, *bound) for field, bound in zip(self, bounds, strict=True)
        )

        def test(at: datetime) -> bool:
            return (
                at.minute in minutes
                and at.hour in hours
                and at.day in days
                and at.month in months
                and at.isoweekday() % 7 in weekdays
            )

        return test


def numbers(field: str, least: int, most: int) -> set[int]:
    found: set[int] = set()
    for part in field.split(","):
        body, _, step = part.partition("/")
        first, _, last = (f"{least}-{most}" if body == "*" else body).partition("-")
        found.update(range(int(first), int(last or first) + 1, int(step or 1)))
    return found


class WallClock:
    """The clock in a zone through some minutes of real time: ``start`` (UTC, a whole minute) and what follows."""

    def __init__(self, zone: tzinfo, start: datetime, minutes: int) -> None:
        self.moments = [start + n * MINUTE for n in range(1, minutes + 1)]
        self._shown = [at.astimezone(zone).replace(tzinfo=None) for at in [start, *self.moments]]

    def runs(self, crontab: Crontab) -> list[datetime]:
        """Return the minutes after ``start`` in which the crontab runs."""
        matches = crontab.matches()
        if crontab.starred:
            return [at for at, shown in zip(self.moments, self._shown[1:], strict=True) if matches(shown)]
        found, latest = [], self._shown[0]
        for at, shown in zip(self.moments, self._shown[1:], strict=True):
            if shown <= latest:
                continue  # the clock has shown this time before
            passed = latest + MINUTE
            while passed <= shown:
                if matches(passed):
                    found.append(at)
                    break
                passed += MINUTE
            latest = shown
        return found


def changes(zone: tzinfo, first: int, last: int) -> list[datetime]:
    """Return the minutes (UTC) in which the clock is changed in these years."""
    found, step = [], timedelta(hours=6)
    at, end = datetime(first, 1, 1, tzinfo=timezone.utc), datetime(last + 1, 1, 1, tzinfo=timezone.utc)
    offset = at.astimezone(zone).utcoffset()
    while at < end:
        following = (at + step).astimezone(zone).utcoffset()
        if following != offset:
            change = at
            while change.astimezone(zone).utcoffset() == offset:
                change += MINUTE
            found.append(change)
        at, offset = at + step, following
    return found
