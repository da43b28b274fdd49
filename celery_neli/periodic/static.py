"""The entries of `beat_schedule`, each checked by itself, with the checks that runtime entries get.

An entry with mistakes is left out, with one line for each mistake, and does not affect the others. Pure; imports no
Kafka client.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import celery.beat
from celery.canvas import Signature
from celery.schedules import schedule

from celery_neli.exceptions import ConfigurationError
from celery_neli.periodic.call import (
    PASSED_ON,
    Call,
    call_of,
    is_mapping,
    mistakes_here,
    option_mistakes,
    plain,
    shape_mistakes,
)
from celery_neli.periodic.shape import SHAPED, UNHEEDED, shape
from celery_neli.periodic.text import schedule_of
from celery_neli.printable import did_you_mean, printable, printable_error
from celery_neli.schedule.slots import Derived
from celery_neli.schedule_topic.codec import MAX_KEY, RUNS_MOST
from celery_neli.schedule_topic.values import is_moment, shown

MAX_NAME_BYTES = MAX_KEY - 2  # the most bytes of an entry's name, which is the key of its state but for two bytes


@dataclass(frozen=True, slots=True)
class StaticEntries:
    """The entries of `beat_schedule` by name.

    `entries`: the fields of each good entry, as Celery's `Entry` takes them; `mistakes`: what is wrong with each entry
    that is left out; `doubts`: what may be wrong with good ones.
    """

    entries: dict[str, Any] = field(default_factory=dict)
    mistakes: dict[str, list[str]] = field(default_factory=dict)
    doubts: dict[str, list[str]] = field(default_factory=dict)


def check_static(
    given: Any, app: Any, *, kind: type[Any] = celery.beat.ScheduleEntry, shaping: bool = True
) -> StaticEntries:
    """Check all entries of a `beat_schedule`; ``kind`` is the class that Celery makes of each. Never raises.

    Without ``shaping``, for schedulers that know only Celery's options, their schedules stay as they are.
    """
    found = StaticEntries()
    if not isinstance(given, Mapping):
        found.mistakes["beat_schedule"] = [f"beat_schedule = {shown(given)}: give a dict of entries by name"]
        return found
    takes = _fields_of(kind)
    for name, entry in given.items():
        wrong: list[str] = []
        doubts: list[str] = []
        fields: dict[str, Any] = {}
        try:
            wrong.extend(_mistakes(name, entry, fields, app, takes))
            if shaping and not wrong and fields.get("options"):
                fields["schedule"] = _shaped(name, fields, app)
            if not wrong:
                doubts.extend(_doubts(fields, app))
                if not shaping and (unheeded := [*_unheeded(fields.get("options"))]):
                    doubts.extend(unheeded)
                    fields["options"] = {key: each for key, each in fields["options"].items() if key not in UNHEEDED}
                # To make Celery's own entry of an interval runs no code of an application.
                quick = kind is celery.beat.ScheduleEntry and isinstance(fields["schedule"], (int, float, timedelta))
                if takes is not None and not quick:
                    kind(**{**fields, "name": name, "app": app})  # asks the schedule for the time
        except ConfigurationError as exc:
            wrong.append(str(exc))
        except Exception as exc:  # noqa: BLE001 - a user's class may raise anything
            wrong.append(f"Celery can make no entry of {shown(entry)}: {printable_error(exc)}")
        if wrong:
            found.mistakes[plain(name) if isinstance(name, str) else shown(name)] = wrong
            continue
        found.entries[plain(name)] = fields
        if doubts:
            found.doubts[plain(name)] = doubts
    return found


def log_mistakes(found: StaticEntries, log: logging.Logger) -> None:
    """Log each mistake and each doubt on a line of its own."""
    for name, wrong in found.mistakes.items():
        for mistake in wrong:
            log.error("beat_schedule: entry=%s is left out: %s", name, mistake)
    for name, doubts in found.doubts.items():
        for doubt in doubts:
            log.warning("beat_schedule: entry=%s: %s", name, doubt)


def with_sound_schedule(name: Any, fields: Any, app: Any, *, shaping: bool = True) -> Any:
    """Return the fields of an entry that an application adds, its schedule as Celery takes it.

    Without ``shaping``, for schedulers that know only Celery's options, those that say when an entry runs are refused.
    Raises `ConfigurationError`, which names the entry, if its schedule, last run or count is wrong.
    """
    if not isinstance(fields, Mapping) or fields.get("schedule") is None:
        return fields  # an entry already, or left to Celery's class
    try:
        for mistake in _past_mistakes(fields):
            raise ConfigurationError(mistake)
        sound = {**fields, "schedule": _sound_schedule(fields, app)}
        options: Any = fields.get("options")
        if is_mapping(options) and not SHAPED.isdisjoint(options):
            for mistake in (*option_mistakes(options, runtime=False), *(() if shaping else _unheeded(options))):
                raise ConfigurationError(mistake)
            sound["schedule"] = _shaped(name, sound, app)
        return sound
    except ConfigurationError as exc:
        raise ConfigurationError(f"beat entry {shown(name)}: {exc}") from None


def _fields_of(kind: type[Any]) -> frozenset[str] | None:
    """Return the fields that the class of the entries takes; None if it takes any, or is not made of fields."""
    try:
        parameters = inspect.signature(kind).parameters.values()
    except (TypeError, ValueError):
        return None
    names = frozenset(each.name for each in parameters)
    takes_any = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)
    return None if takes_any or "schedule" not in names else names


def _mistakes(name: Any, entry: Any, fields: dict[str, Any], app: Any, takes: frozenset[str] | None) -> Iterator[str]:
    """Yield what is wrong with an entry. Set ``fields``, a task, a signature or a text replaced by what it means."""
    if not isinstance(name, str):
        yield f"name = {shown(name)}: give a string"
    elif len(name.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
        yield f"name = {shown(name)}: give at most {MAX_NAME_BYTES} bytes"
    if not isinstance(entry, (Mapping, celery.beat.ScheduleEntry)) or isinstance(entry, Signature):
        yield f"{shown(entry)}: give a dict with a task and a schedule"
        return
    fields.update(entry)
    for each in fields:
        if takes is not None and each not in takes:
            yield f"{printable(each)} = {shown(fields[each])}: there is no such field; {did_you_mean(str(each), takes)}"
    try:
        if fields.get("schedule") is None:
            raise ConfigurationError(
                "schedule is missing: give a number of seconds, a crontab, or text such as '*/5 * * * *' or '5m'"
            )
        fields["schedule"] = _sound_schedule(fields, app)
    except ConfigurationError as exc:
        yield str(exc)
    yield from _past_mistakes(fields)
    given = {each: fields.get(each) for each in ("args", "kwargs", "options")}
    shapes = list(shape_mistakes({each: value for each, value in given.items() if value is not None}))
    yield from shapes
    options: Any = given["options"]
    try:
        if fields.get("task") is None:
            raise ConfigurationError("task is missing: give the name of a task, such as 'shop.tasks.tidy_up'")
        call = call_of(app, fields["task"], *(((), None, None) if shapes else given.values()))
        if not shapes:
            options = call.options
            fields.update((each, value) for each, value in call._asdict().items() if value is not None)
    except ConfigurationError as exc:
        yield str(exc)
    if is_mapping(options):
        yield from option_mistakes(options, runtime=False)


def _sound_schedule(fields: Mapping[str, Any], app: Any) -> Any:
    """Return the schedule among the fields of an entry as Celery takes it: text and times become objects."""
    value = fields["schedule"]
    when = schedule_of(value, app=app)
    if fields.get("relative") and type(when) is schedule and when is not value:
        when = schedule_of(schedule(when.run_every, relative=True), app=app)
    return when if isinstance(value, (str, datetime)) else value


def _shaped(name: Any, fields: Mapping[str, Any], app: Any) -> Any:
    """Return the schedule among the fields of an entry as its options shape it."""
    if SHAPED.isdisjoint(fields["options"]):
        return fields["schedule"]
    when = schedule_of(fields["schedule"], app=app)
    if fields.get("relative") and type(when) is schedule:
        when = schedule(when.run_every, relative=True)
    if not isinstance(when, Derived):
        when.app = app
    return shape(app, plain(name), when, fields["options"], runtime=False)


def _past_mistakes(fields: Mapping[str, Any]) -> Iterator[str]:
    last, count = fields.get("last_run_at"), fields.get("total_run_count")
    if last is not None and not (isinstance(last, datetime) and is_moment(last)):
        yield f"last_run_at = {shown(last)}: give a datetime of the years 2 to 9998, or leave it out"
    if count is not None and (not isinstance(count, int) or not 0 <= count <= RUNS_MOST):
        yield f"total_run_count = {shown(count)}: give a whole number from 0 to {RUNS_MOST}, or leave it out"


def _unheeded(options: Any) -> Iterator[str]:
    """Yield a line if options say when an entry runs, for schedulers that do not know them."""
    if found := [each for each in options or () if each in UNHEEDED]:
        yield (
            f"options: {', '.join(found)}: has no effect, because this scheduler runs the entry by its schedule alone: "
            "leave neli_scheduler out, or the option"
        )


def _doubts(fields: Mapping[str, Any], app: Any) -> Iterator[str]:
    """Yield what may be wrong: a task's own class may take it, and if it does not, a slot is lost, not the entry."""
    call = Call(fields["task"], *(fields.get(each) for each in ("args", "kwargs", "options")))
    yield from mistakes_here(app, call)
    for name in call.options or ():
        if name not in PASSED_ON:
            yield f"options: Celery knows no option {printable(name)}: it is passed on as it is"
