"""`celery_neli.cron`: a schedule written as cron's own line, with seconds, `L`, `#` and a time zone of its own.

cronsim reads the fields and finds the local times that they name; what happens when the clock is changed is decided in
`crontabs`, by the same rule as for Celery's crontabs. cronsim's own rule is the same for five fields, and leaves out
lines of six: here, `0 30 2 * * *` and `30 2 * * *` are the same schedule.

Days are cron's: if both the day of the month and the day of the week are restricted, a day need match only one of
them. Celery's `crontab` wants both. Pure; nothing blocks.
"""

from __future__ import annotations

import math
import re
from copy import copy
from datetime import datetime, timedelta, timezone, tzinfo
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final, NoReturn
from zoneinfo import ZoneInfo, available_timezones

from celery.schedules import BaseSchedule, schedstate
from celery.utils.time import maybe_make_aware
from cronsim import CronSim, CronSimError
from cronsim.cronsim import SYMBOLIC_DAYS, Field

from celery_neli.exceptions import ConfigurationError
from celery_neli.printable import closest, shown
from celery_neli.schedule.crontabs import next_in_zone

#: What cron means by a word in place of the fields.
NICKNAMES: Final = {
    **dict.fromkeys(("@yearly", "@annually"), "0 0 1 1 *"),
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    **dict.fromkeys(("@daily", "@midnight"), "0 0 * * *"),
    "@hourly": "0 * * * *",
}
LONGEST: Final = 1000  # characters
MARK: Final = "cron:"
ZONE = re.compile(r"(?:CRON_)?TZ=(\S*)\s*", re.IGNORECASE)
#: The fields, and what each may be.
_FIELDS: Final = {
    "second": "0-59, a range (0-29), a step (*/10), or a list of these (0,30)",
    "minute": "0-59, a range (0-29), a step (*/15), or a list of these (0,30)",
    "hour": "0-23, a range (8-18), a step (*/2), or a list of these (8,12,18)",
    "day of the month": "1-31, a range (1-7), a step (*/2), L (the last day), LW (the last weekday), or a list of them",
    "month": "1-12, a name (jan), a range (mar-oct), a step (*/3), or a list of these",
    "day of the week": "0-7 (0 and 7 are Sunday), a name (mon), a range (mon-fri), the second Friday (fri#2), the last "
    "one (friL), or a list of these",
}
_LAYOUT = "five fields: minute, hour, day of the month, month, day of the week; seconds may come before them"
_NAMED_LAST = re.compile(f"({'|'.join(SYMBOLIC_DAYS)})L")
_START = datetime(2000, 1, 1, tzinfo=timezone.utc)  # the calendar repeats within the fifty years that cronsim searches
_SECOND: Final = timedelta(seconds=1)


class _MistakeError(Exception):
    """What is wrong with a line: the field, its value, and what would do."""


class cron(BaseSchedule):  # noqa: N801 - as Celery's schedule, crontab and solar
    """A schedule that is due whenever a line of cron says so: ``cron("30 7 * * mon-fri", tz="Europe/Berlin")``.

    Use it wherever Celery takes a schedule, with any beat, and in `periodic.put`. It can be pickled, compared and
    hashed; two are equal if they name the same times in the same zone. ``str()`` gives a text of which `cron` makes it
    again: ``CRON_TZ=Europe/Berlin 30 7 * * mon-fri``, or ``cron:30 7 * * mon-fri`` if it has no zone of its own. For
    any thread; nothing blocks.

    Args:
        line: minute, hour, day of the month, month and day of the week, or six fields, the first of which is the
            second; or `@hourly`, `@daily`, `@weekly`, `@monthly`, `@yearly`. ``CRON_TZ=`` or ``TZ=`` with a zone may
            come before them. A day of the month may be `L`, the last one, or `LW`, the last weekday; a day of the week
            `fri#2`, the second Friday of a month, or `friL`, the last one. Case is ignored.
        tz: the name of a time zone, or a `ZoneInfo`; without one, the times are in the app's time zone.
        nowfun: what tells the present time, as for Celery's schedules.
        app: the Celery app; by default the current one.

    Raises:
        ConfigurationError: it names the field, its value and what would do.
    """

    def __init__(self, line: str, tz: str | tzinfo | None = None, *, nowfun: Any = None, app: Any = None) -> None:
        try:
            fields, named = _split(line)
            given = None if tz is None else _key_of(tz)
            zone = None if named is None else _key_of(named)
            if None not in (given, zone) and given != zone:
                raise _MistakeError(f"tz = {given!r}, and the text names {zone}: give one of them")
            #: The fields as they were written, but for case and white space; `zone`: the name of its own time zone.
            self.fields = _tidy(fields)
            self.zone = given or zone
            # The same object for as long as it is in use: what `crontabs` knows of a zone is kept for each object.
            self._tz = None if self.zone is None else ZoneInfo(self.zone)
            self._times = _times(self.fields)
        except _MistakeError as exc:
            raise CronError(line, str(exc)) from None
        super().__init__(nowfun=nowfun, app=app)

    @property
    def tz(self) -> tzinfo:
        """The time zone that its times are in."""
        zone: tzinfo = self.app.timezone if self._tz is None else self._tz
        return zone

    @property
    def follows_real_time(self) -> bool:
        """True if its minute or hour begins with `*`: it runs whenever the clock shows one of its times."""
        return any(text.startswith("*") for text in self._times.parts[1:3])

    @property
    def five_fields(self) -> str | None:
        """The line in five fields, with numbers where a day is the last of its kind, for other programs that read cron;
        None if it names seconds other than 0.
        """
        return " ".join(self._times.parts[1:]) if set(self._times.seconds) == {0} else None

    @property
    def least_interval(self) -> float:
        """The shortest time between two of its slots, in seconds, if that is less than a minute; else 60."""
        seconds, minutes = sorted(self._times.seconds), self._times.minutes
        gaps = [after - before for before, after in pairwise(seconds)]
        if any((each + 1) % 60 in minutes for each in minutes):
            gaps.append(60 + seconds[0] - seconds[-1])
        return float(min(gaps, default=60))

    def names(self, local: datetime) -> bool:
        """Return whether it names this local time, in whole seconds."""
        found = _after(self._times, local.replace(tzinfo=timezone.utc, fold=0, microsecond=0) - _SECOND)
        return found == local.replace(tzinfo=timezone.utc, fold=0, microsecond=0)

    def next_time(self, after: datetime) -> datetime | None:
        """Return its first slot (UTC) after ``after`` (aware); None if a datetime cannot hold it."""
        times = self._times
        return next_in_zone(self.tz, lambda local: _after(times, local), after, real_time=self.follows_real_time)

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        """Return the time until the first slot after a last run, negative if it is past."""
        slot = self.next_time(maybe_make_aware(last_run_at, self.tz))
        return timedelta.max if slot is None else slot - maybe_make_aware(self.now())

    def is_due(self, last_run_at: datetime) -> schedstate:
        """Return whether it is due now, and the seconds until its next slot, infinite if there is none.

        A slot that is later than `beat_cron_starting_deadline` (seconds) is no longer due, as for Celery's crontab.
        """
        now, last = maybe_make_aware(self.now()), maybe_make_aware(last_run_at, self.tz)
        deadline = self.app.conf.beat_cron_starting_deadline
        oldest = last if deadline is None else max(last, now - timedelta(seconds=deadline, microseconds=1))
        slot = self.next_time(oldest)
        due = slot is not None and slot <= now
        upcoming = self.next_time(now) if due else slot
        return schedstate(due, math.inf if upcoming is None else (upcoming - now).total_seconds())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, cron):
            return self._key() == other._key() and self.nowfun == other.nowfun
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[Any, ...]:
        times = self._times
        weekdays = frozenset(
            (each[0] % 7, each[1]) if isinstance(each, tuple) else (each % 7, 0) for each in times.weekdays
        )
        numbers = (times.seconds, times.minutes, times.hours, times.days, times.months)
        return self.zone, self.follows_real_time, times.day_and, weekdays, *map(frozenset, numbers)

    def __reduce__(self) -> tuple[Any, ...]:
        made = type(self), (str(self),)
        return made if self.nowfun is None else (*made, {"nowfun": self.nowfun})

    def __str__(self) -> str:
        return f"{MARK}{self.fields}" if self.zone is None else f"CRON_TZ={self.zone} {self.fields}"

    def __repr__(self) -> str:
        return f"<cron: {self.fields}{'' if self.zone is None else f' ({self.zone})'}>"


class CronError(ConfigurationError):
    """A line is no line of cron: `reason` names the field, its value and what would do."""

    def __init__(self, line: Any, reason: str) -> None:
        super().__init__(f"cron({shown(line)}): {reason}")
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return ConfigurationError, (str(self),)


def zone_of(name: Any) -> tzinfo:
    """Return the time zone of this name, or the one that is given. Raises `ConfigurationError`."""
    if isinstance(name, tzinfo):
        return name
    try:
        return ZoneInfo(_key_of(name))
    except _MistakeError as exc:
        raise ConfigurationError(str(exc)) from None


def human(text: str) -> str | None:
    """Return the text of a `cron` in words: `30 7 * * mon-fri (Europe/Berlin)`; None if it is no such text."""
    if text.lower().startswith(MARK):
        return text[len(MARK) :]
    found = ZONE.match(text)
    return None if found is None else f"{text[found.end() :]} ({found[1]})"


# -- how a line is read --


def _split(line: Any) -> tuple[str, str | None]:
    """Return the fields of a line, and the name of the zone before them."""
    if not isinstance(line, str):
        raise _MistakeError(f"the line is {shown(line)}: give text of {_LAYOUT}, such as '30 7 * * mon-fri'")
    text = str.__str__(line).strip()
    if len(text) > LONGEST:
        raise _MistakeError(f"it has {len(text)} characters: give at most {LONGEST}")
    if text.lower().startswith(MARK):
        text = text[len(MARK) :].lstrip()
    found = ZONE.match(text)
    return (text, None) if found is None else (text[found.end() :], found[1])


def _key_of(zone: Any) -> str:
    """Return the name of a time zone, which this machine must know."""
    name = "UTC" if zone is timezone.utc else getattr(zone, "key", None) or getattr(zone, "zone", None) or zone
    if not isinstance(name, str):
        raise _MistakeError(f"tz = {shown(zone)}: give the name of a time zone, such as 'Europe/Berlin'")
    name = str.__str__(name)
    if name.lower() in ("local", "localtime"):
        raise _MistakeError(f"tz = {name!r}: hosts may differ in it; give its name, such as 'Europe/Berlin'")
    try:
        return ZoneInfo(name).key
    except (KeyError, ValueError, OSError):  # not found, no name of a file, a directory
        like = closest(name, available_timezones(), least=0.6) if len(name) < 100 else None
        hint = f"did you mean {like}?" if like else "give a name such as 'Europe/Berlin' or 'UTC'"
        raise _MistakeError(f"tz = {shown(name)}: there is no such time zone here; {hint}") from None


def _tidy(fields: str) -> str:
    """Return fields in lower case but for `L` and `W`, with one space between; a nickname as the fields it means."""
    text = " ".join(fields.lower().split())
    if text.startswith("@"):
        if text not in NICKNAMES:
            raise _MistakeError(f"{shown(text)} is not known: write one of {', '.join(NICKNAMES)}")
        return NICKNAMES[text]
    parts = text.split()
    if len(parts) not in (5, 6):
        raise _MistakeError(f"it has {len(parts)} field{'' if len(parts) == 1 else 's'}: give {_LAYOUT}")
    parts[-3] = parts[-3].upper()
    parts[-1] = re.sub(r"(?<=\w)l(?=,|$)", "L", parts[-1])
    return " ".join(parts)


@lru_cache(maxsize=1024)
def _times(fields: str) -> CronSim:
    """Return cronsim's calendar of tidy fields, which nothing may change."""
    parts = fields.upper().split()
    weekdays = _NAMED_LAST.sub(lambda found: f"{SYMBOLIC_DAYS.index(found[1])}L", parts[-1])
    parts[-1] = weekdays.replace("-SUN", "-7")  # a range ends on the seventh day
    kinds = list(Field)[-len(parts) :]
    for kind, part, field in zip(kinds, parts, fields.split(), strict=True):
        for term, written in zip(part.split(","), field.split(","), strict=True):
            _check(kind, term, written, field)
    try:
        found = CronSim(" ".join(parts), _START)
        if _after(found, _START) is not None:
            return found
    except CronSimError:
        pass
    days, months, weekdays = fields.split()[-3:]
    if weekdays != "*":
        _refuse(
            f"day of the week = {weekdays!r}", f"none is a day {days!r} of the months {months!r}; give one that comes"
        )
    raise _MistakeError(f"day of the month = {days!r}: none of the months {months!r} has it; give a day that comes")


def _check(kind: Field, term: str, written: str, field: str) -> None:
    try:
        kind.parse(term)
        return
    except (CronSimError, ValueError, AssertionError):
        pass
    name = list(_FIELDS)[kind]
    value = f"{name} = {shown(field)}"
    if written != field:
        value += f": {shown(written)} is wrong"
    bounds = re.fullmatch(r"(\w+)-(\w+)(?:/\d+)?", written)
    if bounds is not None:
        try:
            if kind.int(bounds[1].upper()) > kind.int(bounds[2].upper()):
                _refuse(value, f"it ends before it begins: give two ranges, such as {_two(bounds, kind)}")
        except CronSimError:
            pass
    if "?" in written:
        _refuse(value, "that is Quartz's: give *")
    if kind is Field.DAY and "W" in written.upper():
        _refuse(value, "that is Quartz's: give LW, the last weekday of a month, or plain days")
    _refuse(value, f"give *, {_FIELDS[name]}")


def _two(bounds: re.Match[str], kind: Field) -> str:
    least, most = {Field.DAY: (1, 31), Field.MONTH: (1, 12), Field.DOW: (0, 6), Field.HOUR: (0, 23)}.get(kind, (0, 59))
    return f"{bounds[1]}-{most},{least}-{bounds[2]}"


def _refuse(value: str, why: str) -> NoReturn:
    raise _MistakeError(f"{value}: {why}")


def _after(times: CronSim, local: datetime) -> datetime | None:
    """Return the first time after ``local`` (marked as UTC, whose clock never changes); None within fifty years."""
    search = copy(times)
    search.dt = local
    return next(search, None)
