"""A clock on the wall, looked at once a minute or second: when it runs a crontab, by the rule of Debian's cron.

Written from the rule, and from nothing that celery_neli or cronsim have: what it says is compared with them.
"""

from __future__ import annotations

import re
from datetime import date, datetime, timedelta, timezone
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from datetime import tzinfo

ZONES = [
    "America/Los_Angeles",
    "America/New_York",
    "America/St_Johns",
    "America/Havana",
    "America/Caracas",
    "America/Sao_Paulo",
    "America/Asuncion",
    "America/Santiago",
    "America/Nuuk",
    "America/Scoresbysund",
    "America/Argentina/San_Luis",
    "Europe/London",
    "Europe/Berlin",
    "Europe/Istanbul",
    "Europe/Moscow",
    "Europe/Volgograd",
    "Africa/Casablanca",
    "Africa/Cairo",
    "Africa/Juba",
    "Asia/Gaza",
    "Asia/Beirut",
    "Asia/Tehran",
    "Asia/Amman",
    "Asia/Pyongyang",
    "Australia/Lord_Howe",
    "Australia/Sydney",
    "Pacific/Apia",
    "Pacific/Chatham",
    "Pacific/Norfolk",
    "Pacific/Fiji",
    "Antarctica/Troll",
    "Antarctica/Casey",
    "UTC",
]
MINUTE, SECOND = timedelta(minutes=1), timedelta(seconds=1)
WEEKDAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
NAMES = {
    **{name: str(number) for number, name in enumerate(WEEKDAYS)},
    **{name: str(number) for number, name in enumerate(MONTHS, 1)},
}


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


class Line(NamedTuple):
    """A line of cron as `celery_neli.cron` has it: with seconds, `L`, `LW`, `#`, and days that either field names."""

    second: str
    minute: str
    hour: str
    day_of_month: str
    month: str
    day_of_week: str

    @classmethod
    def of(cls, text: str) -> Line:
        fields = text.split()
        return cls(*(["0"] * (6 - len(fields)) + fields))

    @property
    def starred(self) -> bool:
        """Return True if it follows real time: the seconds do not matter."""
        return self.minute[0] == "*" or self.hour[0] == "*"

    def on(self, day: date) -> bool:
        """Return whether it names this day."""
        if day.month not in numbers(named(self.month), 1, 12):
            return False
        both = self.day_of_month[0] == "*" or self.day_of_week[0] == "*"
        of_month = any(_in_month(each, day) for each in self.day_of_month.split(","))
        of_week = any(_in_week(each, day) for each in named(self.day_of_week).split(","))
        return of_month and of_week if both else of_month or of_week

    def matches(self) -> Any:
        """Return the test of a local time."""
        seconds, minutes, hours = numbers(self.second, 0, 59), numbers(self.minute, 0, 59), numbers(self.hour, 0, 23)
        days = lru_cache(maxsize=None)(self.on)

        def test(at: datetime) -> bool:
            return at.second in seconds and at.minute in minutes and at.hour in hours and days(at.date())

        return test


def named(field: str) -> str:
    return re.sub("[a-z]{3}", lambda found: NAMES[found[0]], field.replace("-sun", "-7"))  # the last day of a range


def _in_month(term: str, day: date) -> bool:
    following = [day + timedelta(days=n) for n in range(1, 8)]
    if term == "L":
        return following[0].month != day.month
    if term == "LW":  # a weekday, and none follows it in its month
        return day.isoweekday() < 6 and not [
            each for each in following if each.month == day.month and each.isoweekday() < 6
        ]
    return day.day in numbers(term, 1, 31)


def _in_week(term: str, day: date) -> bool:
    weekday, _, nth = term.partition("#")
    if nth:
        before = [day - timedelta(weeks=n) for n in range(6)]
        return day.isoweekday() % 7 == int(weekday) % 7 and sum(each.month == day.month for each in before) == int(nth)
    if term.endswith("L"):
        return day.isoweekday() % 7 == int(term[:-1]) % 7 and (day + timedelta(weeks=1)).month != day.month
    return not {day.isoweekday(), day.isoweekday() % 7}.isdisjoint(numbers(term, 0, 7))


class WallClock:
    """The clock in a zone through some steps of real time: ``start`` (UTC, on a whole step) and what follows."""

    def __init__(self, zone: tzinfo, start: datetime, steps: int, step: timedelta = MINUTE) -> None:
        self._step, self._zone = step, zone
        self.moments = [start + n * step for n in range(1, steps + 1)]
        self._shown = [at.astimezone(zone).replace(tzinfo=None) for at in [start, *self.moments]]

    def runs(self, crontab: Crontab | Line) -> list[datetime]:
        """Return the steps after ``start`` in which the crontab runs."""
        matches = crontab.matches()
        if crontab.starred:
            return [at for at, shown in zip(self.moments, self._shown[1:], strict=True) if matches(shown)]
        found, latest = [], self._shown[0]
        for at, shown in zip(self.moments, self._shown[1:], strict=True):
            if shown <= latest:
                continue  # the clock has shown this time before
            passed = latest + self._step
            while passed <= shown:
                if matches(passed):
                    found.append(at)
                    break
                passed += self._step
            latest = shown
        return found

    def every(self, interval: timedelta, anchor: datetime) -> list[datetime]:
        """Return the steps that lie an interval, or several, from ``anchor``."""
        return [at for at in self.moments if (at - anchor) % interval == timedelta(0)]

    def shows_once(self, local: datetime) -> bool:
        """Return whether the clock shows this local time, and only once, also before and after these steps."""
        near = [local.replace(tzinfo=timezone.utc) + timedelta(hours=n) for n in range(-30, 31)]
        offsets = {at.astimezone(self._zone).utcoffset() or timedelta(0) for at in near}
        moments = {local.replace(tzinfo=timezone.utc) - offset for offset in offsets}
        return sum(at.astimezone(self._zone).replace(tzinfo=None) == local for at in moments) == 1

    def shaped(
        self,
        runs: list[datetime],
        *,
        start: datetime | None = None,
        end: datetime | None = None,
        days: set[date] | None = None,
        only: bool = False,
    ) -> list[datetime]:
        """Return those of some steps from ``start`` to ``end``, both included, on days that are not among ``days``, or
        ``only`` those on one of them. A day is what the clock shows.
        """
        found = []
        for at in runs:
            if (start is not None and at < start) or (end is not None and at > end):
                continue
            if days is not None and (at.astimezone(self._zone).date() in days) != only:
                continue
            found.append(at)
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
