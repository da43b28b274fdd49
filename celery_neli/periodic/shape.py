"""Options that say which slots an entry has: their checks, and the schedule that they make of the entry's own.

`neli_timezone`, `neli_start`, `neli_end`, `neli_calendar` and `neli_jitter`; and the checks of `neli_max_runs` and
`neli_tags`. Imports no Kafka client; nothing blocks but the import of an application's calendar.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone, tzinfo
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final, NoReturn
from zoneinfo import ZoneInfo

from celery.schedules import crontab, schedule
from celery.utils.imports import symbol_by_name

from celery_neli.config import setting
from celery_neli.exceptions import ConfigurationError
from celery_neli.periodic.text import moment_of
from celery_neli.printable import printable_error
from celery_neli.schedule import calendars
from celery_neli.schedule.calendars import HOLIDAYS, ONLY, SKIP, Calendar
from celery_neli.schedule.cron import cron, zone_of
from celery_neli.schedule.crontabs import to_utc
from celery_neli.schedule.policies import SHAPE_OPTIONS
from celery_neli.schedule.shaped import shaped, shift_for
from celery_neli.schedule.slots import Derived, has_slots, next_slot, once
from celery_neli.schedule_topic.values import is_moment, shown

MOST_RUNS: Final = 2**31 - 1
MOST_TAGS, LONGEST_TAG = 20, 100
LONGEST_JITTER: Final = 31 * 86_400.0  # seconds
#: How many slots of a crontab are looked at to find the shortest time between two of them.
COMPARED: Final = 50
_SINCE: Final = datetime(2024, 1, 1, tzinfo=timezone.utc)  # from when on
_TIME = "give an aware datetime, or ISO text such as '2026-12-01T10:00:00+01:00', a date and a time of day"
#: The options that shape a schedule.
SHAPED: Final = frozenset(SHAPE_OPTIONS)
#: The options that say when an entry runs: other schedulers know none of them.
UNHEEDED: Final = SHAPED | {"neli_max_runs"}


def is_jitter(value: Any) -> bool:
    """Return True for a number of seconds."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= LONGEST_JITTER


def is_most_runs(value: Any) -> bool:
    """Return True for a whole number above 0."""
    return type(value) is int and 0 < value <= MOST_RUNS


def are_tags(value: Any) -> bool:
    """Return True for a list of 1 to 20 different texts."""
    return (
        isinstance(value, (list, tuple))
        and 0 < len(value) <= MOST_TAGS
        and all(isinstance(each, str) and 0 < len(each) <= LONGEST_TAG and each.isprintable() for each in value)
        and all(each.strip() == each for each in value)
        and len(set(value)) == len(value)
    )


#: Checks that need no more than the value, with what to give.
TAKES: Final[Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "neli_jitter": (is_jitter, f"a number of seconds from 0 to {LONGEST_JITTER:.0f}"),
    "neli_max_runs": (is_most_runs, f"a whole number from 1 to {MOST_RUNS}"),
    "neli_tags": (
        are_tags,
        f"a list of 1 to {MOST_TAGS} different texts of 1 to {LONGEST_TAG} printable characters, without space around",
    ),
    "neli_timezone": (
        lambda value: isinstance(value, (str, ZoneInfo)),
        "the name of a time zone, such as 'Europe/Berlin'",
    ),
    **dict.fromkeys(
        ("neli_start", "neli_end"), (lambda value: isinstance(value, (str, datetime)), _TIME.removeprefix("give "))
    ),
    "neli_calendar": (
        lambda value: isinstance(value, str) or (callable(value) and not isinstance(value, type)),
        "text such as 'holidays:DE-BY' or 'only holidays:DE-BY', the name of a calendar, or a function of a date",
    ),
}


def shape(app: Any, name: str, when: Any, options: Mapping[str, Any] | None, *, runtime: bool) -> Any:
    """Return schedule ``when`` as the checked ``options`` of the entry ``name`` shape it; itself if they do not.

    Of a ``runtime`` entry, a calendar is one of `neli_calendars` or of holidays: a record runs no code of its choice.

    Raises:
        ConfigurationError: An option does not fit the schedule or the others; it names option, value and what would do.
    """
    if not options or isinstance(when, Derived) or SHAPED.isdisjoint(options):
        return when
    given = {each: options[each] for each in SHAPE_OPTIONS if options.get(each) is not None}
    if not given.get("neli_jitter", 1):
        del given["neli_jitter"]
    if not given:
        return when
    first, value = next(iter(given.items()))
    if not has_slots(when):
        _refuse(first, value, "only the schedule itself knows when it is due: give a crontab, an interval or a time")
    if isinstance(when, schedule) and when.relative:
        _refuse(first, value, "a relative interval has no times of its own: leave relative out, or give a crontab")
    zone, inner = _zone(when, given.get("neli_timezone"))
    start, end = _span(app, inner, zone, given)
    calendar = given.get("neli_calendar")
    jitter = given.get("neli_jitter", 0)
    if jitter:
        _check_jitter(inner, zone, jitter)
    return shaped(
        inner,
        shift=shift_for(name, jitter) if jitter else timedelta(0),
        start=start,
        end=end,
        calendar=None if calendar is None else _calendar(app, calendar, runtime),
        zone=zone,
        anchored=bool(jitter),
    )


def shape_entry(app: Any, entry: Any) -> None:
    """Give an entry that code has made the schedule that its options shape. Raises `ConfigurationError`."""
    if entry.options and not SHAPED.isdisjoint(entry.options):
        entry.schedule = shape(app, entry.name, entry.schedule, entry.options, runtime=False)


def _zone(when: Any, given: Any) -> tuple[tzinfo | None, Any]:
    """Return the time zone that a crontab is given, and the schedule; a line of cron has it in itself."""
    if given is None:
        return None, when
    try:
        zone = zone_of(given)
    except ConfigurationError as exc:
        raise ConfigurationError(f"options: neli_timezone{str(exc).removeprefix('tz')}") from None
    if isinstance(when, cron):
        if when.zone is not None:
            _refuse("neli_timezone", given, f"the schedule names {when.zone} already: leave one of them out")
        return None, cron(when.fields, tz=zone, nowfun=when.nowfun, app=when._app)  # noqa: SLF001 - `app` would be the current one
    if not isinstance(when, crontab):
        kind = "a time has its offset" if isinstance(when, once) else "this schedule has no times of day"
        _refuse("neli_timezone", given, f"{kind}: give a crontab, or leave the time zone out")
    return zone, when


def _span(app: Any, when: Any, zone: tzinfo | None, given: Mapping[str, Any]) -> tuple[datetime | None, ...]:
    zone = zone or (ZoneInfo(when.zone) if isinstance(when, cron) and when.zone else app.timezone)
    found: list[datetime | None] = []
    for name in ("neli_start", "neli_end"):
        value = given.get(name)
        found.append(None if value is None else _moment(name, value, zone))
    start, end = found
    if start is not None and end is not None and end <= start:
        _refuse("neli_end", given["neli_end"], f"it is not after neli_start = {shown(given['neli_start'])}")
    return start, end


def _moment(name: str, value: Any, zone: tzinfo) -> datetime:
    try:
        at = moment_of(value) if isinstance(value, str) else value
        if is_moment(at):
            return (to_utc(zone, at) if at.utcoffset() is None else at).astimezone(timezone.utc)
    except (ValueError, OverflowError):
        _refuse(name, value, _TIME)
    return _refuse(name, value, "give a time of the years 2 to 9998")


def _check_jitter(when: Any, zone: tzinfo | None, jitter: float) -> None:
    key = when.run_every if isinstance(when, schedule) else when.__reduce__()[1]
    if isinstance(when, schedule):
        shortest = when.run_every.total_seconds()
    elif isinstance(when, (crontab, cron)) and _is_hashable(key):
        shortest = _shortest(_Key(key, when))
    else:
        return
    if jitter > shortest:
        _refuse("neli_jitter", jitter, f"it is longer than the {shortest:g} s between two of its slots: give less")


class _Key:
    """What a crontab is known by, and the crontab."""

    def __init__(self, key: Any, when: Any) -> None:
        self.key, self.when = (type(when), key), when

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


@lru_cache(maxsize=1024)  # a hundred thousand entries have a few crontabs
def _shortest(known: _Key) -> float:
    """Return the shortest time between two of some slots, in seconds."""
    found: list[datetime] = []
    slot = next_slot(known.when, _SINCE)
    while slot is not None and len(found) < COMPARED:
        found.append(slot)
        slot = next_slot(known.when, slot)
    gaps = ((after - before).total_seconds() for before, after in pairwise(found))
    return min(gaps, default=LONGEST_JITTER)


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _calendar(app: Any, given: Any, runtime: bool) -> Calendar:
    only, source = False, given
    if isinstance(given, str):
        source = str.__str__(given).strip()
        mode, _, rest = source.partition(" ")
        if mode.lower() in (SKIP, ONLY) and rest.strip():
            only, source = mode.lower() == ONLY, rest.strip()
        if source.lower().startswith(HOLIDAYS):
            try:
                return calendars.holidays(HOLIDAYS + source[len(HOLIDAYS) :].strip().upper(), only)
            except ConfigurationError as exc:
                _refuse("neli_calendar", given, str(exc))
        named = setting(app, "neli_calendars") or {}
        if source in named:
            return _named(given, source, named[source], only)
        if runtime:
            known = f"one of neli_calendars ({', '.join(sorted(named))})" if named else "a name that neli_calendars has"
            _refuse("neli_calendar", given, f"there is no such calendar: give {known}, or 'holidays:DE-BY'")
    return _function(given, source, source, only)


@lru_cache(maxsize=256)  # what is known of its days is shared
def _named(given: str, name: str, source: Any, only: bool) -> Calendar:
    return _function(given, name, source, only)


def _function(given: Any, name: Any, source: Any, only: bool) -> Calendar:
    """Return the calendar of a function, or of the path of one. Raises `ConfigurationError`."""
    found = source
    if isinstance(source, str):
        if "." not in source and ":" not in source:
            _refuse("neli_calendar", given, "give 'holidays:DE-BY', a name that neli_calendars has, or a path such as "
                    "'shop.calendars.is_closed'")  # fmt: skip
        try:
            found = symbol_by_name(source)
        except Exception as exc:  # noqa: BLE001 - an application's module may raise anything
            _refuse("neli_calendar", given, f"{shown(source)} cannot be imported: {printable_error(exc)}")
    if not callable(found) or isinstance(found, type):
        _refuse("neli_calendar", given, f"{shown(source)} is no function: give one that takes a date")
    if not isinstance(name, str):
        name = f"{getattr(found, '__module__', '?')}.{getattr(found, '__qualname__', type(found).__name__)}"
    return Calendar(name, found, only=only)


def _refuse(name: str, value: Any, why: str) -> NoReturn:
    raise ConfigurationError(f"options: {name} = {shown(value)}: {why}") from None
