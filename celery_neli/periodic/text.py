"""Schedules as text, to and from: the schedule topic holds it, the command line takes it, and people read it.

| text | schedule |
|---|---|
| `*/5 8-18 * * mon-fri` | a crontab: minute, hour, day of the month, month, day of the week; in the app's zone |
| `@hourly`, `@daily`, `@weekly`, `@monthly`, `@yearly` | the crontabs that cron means by these |
| `CRON_TZ=Europe/Berlin 30 7 * * fri#2`, `TZ=…` | a line of cron in a zone of its own: `celery_neli.cron` |
| `cron:0 0 13 * fri`, `*/10 * * * * *`, `0 9 L * *` | the same in the app's zone; `cron:` where it could be a crontab |
| `PT30S`, `P1DT2H` | an interval: an ISO 8601 duration of weeks, days, hours, minutes, seconds |
| `30s`, `5m`, `1h30m`, `every 5 minutes`, `every 1 d 2 h`, `every hour` | the same, in words |
| `relative:PT1H` | an interval that is rounded to its resolution: Celery's `relative` |
| `solar:sunset,-37.81,144.96` | a solar event at a latitude and a longitude |
| `at:2026-12-01T10:00:00Z` | one time, in the app's time zone if it has no offset; `at:` may be left out |

Pure; nothing blocks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, NoReturn

from celery.exceptions import ImproperlyConfigured
from celery.schedules import ParseException, crontab, schedule, solar

from celery_neli.exceptions import ConfigurationError
from celery_neli.printable import printable
from celery_neli.schedule import cron as cron_lines
from celery_neli.schedule.cron import NICKNAMES, CronError, cron
from celery_neli.schedule.crontabs import FIELDS, to_utc
from celery_neli.schedule.slots import base_of, once
from celery_neli.schedule_topic.values import is_moment, shown

FORMS = (
    "write a crontab ('*/5 * * * *'), a line of cron ('CRON_TZ=Europe/Berlin 30 7 * * mon-fri'), an interval ('30s', "
    "'5m', 'every 2 hours', 'P1DT2H'), a solar event ('solar:sunset,-37.81,144.96') or a time "
    "('at:2026-12-01T10:00:00Z')"
)
OUT_OF_RANGE = "not every time zone has it: give a time of the years 2 to 9998"
LEAST = timedelta(milliseconds=1)
MOST = timedelta(days=36525)  # a hundred years: a datetime may not hold the slots of a longer interval
_SECOND = timedelta(seconds=1)
_RELATIVE, _SOLAR, _AT = "relative:", "solar:", "at:"
_UNITS = ("weeks", "days", "hours", "minutes", "seconds")
_DURATION = re.compile(
    r"P(?:(\d+)W)?(?:(\d+)D)?(?:T(?=\d)(?:(\d+)H)?(?:(\d+)M)?(?:(\d+(?:[.,]\d{1,6})?)S)?)?", re.IGNORECASE
)
#: An interval in words, and one number of it with its unit.
_WORDS = re.compile(r"(?:every\s+)?(?:\d+(?:[.,]\d{1,6})?\s*[a-z]+[\s,]*)+|every\s+[a-z]+", re.IGNORECASE)
_WORD = re.compile(r"(?:(\d+(?:[.,]\d{1,6})?)\s*|every\s+)([a-z]+)", re.IGNORECASE)
_UNIT_WORDS = {
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), "seconds"),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), "minutes"),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), "hours"),
    **dict.fromkeys(("d", "day", "days"), "days"),
    **dict.fromkeys(("w", "week", "weeks"), "weeks"),
    **dict.fromkeys(("ms", "millisecond", "milliseconds"), "milliseconds"),
}
_LONG_WORDS = frozenset(("month", "months", "mon", "mo", "year", "years", "y", "yr", "yrs"))
LONG = "years and months differ in length; write days ('30d'), or a crontab ('0 0 1 * *')"
_MOMENT = re.compile(
    r"(\d{4}-\d{2}-\d{2})[T ](\d{2}:\d{2})(?::(\d{2})(?:[.,](\d{1,6}))?)?(Z|[+-]\d{2}(?::?\d{2})?)?", re.IGNORECASE
)
_NUMBER = re.compile(r"[0-9]+(?:[.,][0-9]+)?")


def parse(value: Any, *, app: Any) -> str:
    """Return the text of a schedule, which `read` makes a schedule.

    ``value`` is text as above; or a number of seconds, a `timedelta`, a `datetime` (naive: in the app's time zone), a
    `once`, a `cron`, or Celery's `schedule`, `crontab` or `solar`. The text is the same for the same schedule, however
    it was written. Raises `ConfigurationError` if text cannot express it (a class of one's own, a `nowfun`).
    """
    return text_of(schedule_of(value, app=app) if isinstance(value, str) else _from_object(value, app))


def read(text: str, *, app: Any) -> Any:
    """Return the schedule that `parse` wrote as ``text``. Raises `ConfigurationError`."""
    when = _from_text(text, text, app)
    when.app = app
    return when


def text_of(when: Any) -> str:
    """Return the text of a schedule object; raise `ConfigurationError` if text cannot express it."""
    when = base_of(when)  # what options make of it is in the options
    kind = type(when)
    if kind not in (schedule, crontab, cron, solar, once):
        _refuse(when, f"{_kind(when)} cannot be written as text; {FORMS}, or put it into beat_schedule")
    if when.nowfun is not None:
        _refuse(when, "a nowfun cannot be written as text; put it into beat_schedule, or leave the nowfun out")
    if kind is cron:
        return str(when)
    if kind is crontab:
        return " ".join(_field(getattr(when, f"_orig_{name}")) for name in FIELDS)
    if kind is solar:
        return f"{_SOLAR}{when.event},{float(when.lat)!r},{float(when.lon)!r}"
    if kind is once:
        return f"{_AT}{when.at.isoformat().replace('+00:00', 'Z')}"
    return (_RELATIVE if when.relative else "") + _duration_text(when.run_every)


def schedule_of(value: Any, *, app: Any) -> Any:
    """Return the schedule that an entry of `beat_schedule` means: of the forms that `parse` takes, an object; any other
    object that decides itself when it is due stays as it is. Raises `ConfigurationError`.
    """
    if isinstance(value, str):
        return _from_text(str.__str__(value).strip(), value, app)
    if type(value) is not schedule and _decides(value):
        return value
    when = _from_object(value, app)
    if not _decides(when):
        _refuse(value, f"{_kind(value)} is not a schedule; {FORMS}")
    return when


def _decides(value: Any) -> bool:
    return not isinstance(value, type) and all(callable(getattr(value, name, None)) for name in ("is_due", "now"))


def _kind(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def human(text: str) -> str:
    """Return the text of a schedule in words: `every 1 d 2 h`, `at 2026-12-01 10:00:00 UTC`, `sunset at -37.81,
    144.96`, `30 7 * * fri#2 (Europe/Berlin)`. A crontab and other text stay as they are.
    """
    if (line := cron_lines.human(text)) is not None:
        return line
    body = text.removeprefix(_RELATIVE)
    if (found := _DURATION.fullmatch(body)) is not None:
        parts = zip(found.groups(), ("w", "d", "h", "min", "s"), strict=True)
        words = " ".join(f"{number} {unit}" for number, unit in parts if number)
        return f"every {words}" + (", rounded" if body != text else "")
    if text.startswith(_AT):
        return f"at {text.removeprefix(_AT).replace('T', ' ').replace('Z', ' UTC')}"
    if text.startswith(_SOLAR) and text.count(",") == 2:
        event, latitude, longitude = text.removeprefix(_SOLAR).split(",")
        return f"{event} at {latitude}, {longitude}"
    return text


def _from_object(value: Any, app: Any) -> Any:
    every = value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            every = timedelta(seconds=value)
        except (OverflowError, ValueError):
            _refuse(value, "no number of seconds that a timedelta can hold")
    if isinstance(every, timedelta):
        return schedule(_checked(timedelta.__add__(timedelta(), every), value))  # a plain one, of subclasses too
    if isinstance(value, datetime):
        return _once(value, value, app)
    if type(value) is schedule:
        if not isinstance(value.run_every, timedelta):
            _refuse(value, f"its interval is {shown(value.run_every)}; give a number of seconds or a timedelta")
        _checked(value.run_every, value, relative=value.relative)
    return value  # `text_of` refuses what text cannot express


def looks_like_cron(text: str) -> bool:
    """Return whether text can only be a line of `cron`: it names a zone, begins with `cron:`, has six fields, or days
    that Celery's crontab does not know.
    """
    if text.lower().startswith(cron_lines.MARK) or cron_lines.ZONE.match(text):
        return True
    fields = text.upper().split()
    if len(fields) == 6:
        return all(re.fullmatch(r"[A-Z0-9*,/#?-]+", each) and not each.isalpha() for each in fields[:3])
    return len(fields) == 5 and ("L" in fields[2] or "#" in fields[4] or bool(re.search(r"\dL|[A-Z]{3}L", fields[4])))


def _from_text(text: str, given: str, app: Any) -> Any:
    lower = text.lower()
    if looks_like_cron(text):
        return _cron(text, given)
    if text.startswith("@"):
        if lower not in NICKNAMES:
            _refuse(given, f"write one of {', '.join(NICKNAMES)}")
        return _crontab(NICKNAMES[lower], given)
    if lower.startswith(_SOLAR):
        return _solar(text[len(_SOLAR) :], given)
    if lower.startswith(_AT) or _MOMENT.match(text):
        return _once(_moment(text[len(_AT) :] if lower.startswith(_AT) else text, given), given, app)
    relative = lower.startswith(_RELATIVE)
    body = text[len(_RELATIVE) :].strip() if relative else text
    if _WORDS.fullmatch(body):
        numbers = _in_words(body, given)
    elif relative or re.match(r"P[\dT]", body, re.IGNORECASE):
        numbers = _duration(body, given)
    else:
        if len(text.split()) != len(FIELDS):
            _refuse(given, f"a number needs a unit, such as '{text}s'" if _NUMBER.fullmatch(text) else FORMS)
        return _crontab(text, given)
    try:
        every = timedelta(**{unit: float(number.replace(",", ".")) for unit, number in numbers.items()})
    except OverflowError:
        _refuse(given, "longer than a timedelta can be")
    return schedule(_checked(every, given, relative=relative), relative)


def _cron(text: str, given: str) -> cron:
    try:
        return cron(text)
    except CronError as exc:
        return _refuse(given, exc.reason)


def _crontab(text: str, given: str) -> crontab:
    try:
        return crontab.from_string(" ".join(text.split()))
    except (ParseException, ValueError, TypeError, KeyError, LookupError, ArithmeticError, RecursionError) as exc:
        fields = "minute, hour, day of the month, month, day of the week"
        _refuse(given, f"no crontab ({printable(str(exc))}); its fields are {fields}")


def _solar(text: str, given: str) -> solar:
    try:
        event, latitude, longitude = text.split(",")
        place = float(latitude), float(longitude)
        if not all(map(math.isfinite, place)):
            raise ValueError("latitude and longitude are finite numbers")
        return solar(event.strip().lower(), *place)
    except ImproperlyConfigured:
        _refuse(given, "solar events need the package ephem here, too: install celery[solar]")
    except ValueError as exc:
        example = "write 'solar:sunset,-37.81,144.96': event, latitude, longitude"
        _refuse(given, f"no solar event ({printable(str(exc))}); {example}")


def moment_of(text: str) -> datetime:
    """Return the time of ISO text, naive if it has no offset. Raises `ValueError`."""
    found = _MOMENT.fullmatch(text.strip())
    if found is None:
        raise ValueError("no ISO time")
    day, minute, second, fraction, zone = found.groups()
    if zone is not None:  # Python 3.10 reads one form only
        zone = "+00:00" if zone in "Zz" else f"{zone[:3]}:{zone[3:].lstrip(':') or '00'}"
    return datetime.fromisoformat(f"{day}T{minute}:{second or '00'}.{(fraction or '0').ljust(6, '0')}{zone or ''}")


def _moment(text: str, given: str) -> datetime:
    if _MOMENT.fullmatch(text.strip()) is None:
        _refuse(given, "no time; write 'at:2026-12-01T10:00:00Z', or without the Z in the app's time zone")
    try:
        return moment_of(text)
    except ValueError as exc:
        _refuse(given, f"no time ({exc}); write 'at:2026-12-01T10:00:00Z'")


def _once(at: datetime, given: Any, app: Any) -> once:
    try:
        at = to_utc(app.timezone, at) if at.utcoffset() is None else at
        if is_moment(at):
            return once(at)
    except OverflowError:
        pass
    return _refuse(given, OUT_OF_RANGE)


def _duration(text: str, given: str) -> Mapping[str, str]:
    if re.match(r"P[^T]*\d[YM]", text, re.IGNORECASE):
        _refuse(given, LONG)
    found = _DURATION.fullmatch(text)
    if found is None or not any(found.groups()):
        _refuse(given, "no ISO 8601 duration; write e.g. 'PT30S', 'PT1H30M', 'P1D', 'P2W'")
    return dict(zip(_UNITS, found.groups(default="0"), strict=True))


def _in_words(text: str, given: str) -> Mapping[str, str]:
    numbers: dict[str, str] = {}
    for number, word in _WORD.findall(text):
        if word.lower() in _LONG_WORDS:
            _refuse(given, LONG)
        unit = _UNIT_WORDS.get(word.lower())
        if unit is None:
            _refuse(given, f"there is no unit {word}; write w, d, h, m, s or ms: '5m', '1h30m', 'every 2 hours'")
        if unit in numbers:
            _refuse(given, f"there are {unit} in two places")
        numbers[unit] = number or "1"
    return numbers


def _checked(every: timedelta, given: Any, *, relative: bool = False) -> timedelta:
    if every < LEAST:
        _refuse(given, "an interval lasts a millisecond at least: give a number of seconds above 0")
    if every > MOST:
        _refuse(given, "an interval lasts a hundred years at most: leave the entry out, or give a shorter one")
    if relative and every < _SECOND:
        _refuse(given, "a relative interval lasts a second at least: Celery rounds a shorter one to the past")
    return every


def _duration_text(every: timedelta) -> str:
    minutes, seconds = divmod(every.seconds, 60)
    hours, minutes = divmod(minutes, 60)
    fraction = f".{every.microseconds:06}".rstrip("0") if every.microseconds else ""
    time = (f"{hours}H" if hours else "") + (f"{minutes}M" if minutes else "")
    time += f"{seconds}{fraction}S" if seconds or fraction else ""
    return "P" + (f"{every.days}D" if every.days else "") + (f"T{time}" if time else "")


def _field(spec: Any) -> str:
    if isinstance(spec, Iterable) and not isinstance(spec, str):
        return ",".join(map(str, sorted(spec)))
    return "".join(str(spec).split())


def _refuse(given: Any, why: str) -> NoReturn:
    raise ConfigurationError(f"schedule = {shown(given)}: {why}") from None
