"""What a runtime entry may be, checked before it is stored; and Celery's entry, made from what was stored.

Pure; imports no Kafka client.
"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from typing import Any

from celery.beat import ScheduleEntry
from celery.schedules import schedule
from kombu.utils.json import dumps, object_hook

from celery_neli.config import setting
from celery_neli.exceptions import ConfigurationError
from celery_neli.periodic.call import Call, call_of, mistakes_here, option_mistakes, plain, shape_mistakes
from celery_neli.periodic.shape import SHAPED, shape
from celery_neli.periodic.text import parse, read
from celery_neli.printable import printable_error
from celery_neli.schedule.cron import cron
from celery_neli.schedule.policies import OWN_OPTIONS, Overlap
from celery_neli.schedule.slots import next_slot, shift_of
from celery_neli.schedule_topic.codec import Definition, check_definition, check_name
from celery_neli.schedule_topic.pauses import effective
from celery_neli.schedule_topic.values import LATEST, check_made, check_plain, shown

KEPT_OPTIONS, LONGEST_OPTIONS = 1024, 1024
#: Options, as text, that have no mistakes: most of a hundred thousand entries have the same few.
_sound: set[str] = set()


def define(
    app: Any, name: Any, task: Any, schedule: Any, *, args: Any = (), kwargs: Any = None, options: Any = None
) -> Definition:
    """Check all of an entry but its size, which `encode_definition` checks; its `since` is 0, its `changes` are empty.

    ``task`` is a name, a task, or a signature, which brings arguments and options; if ``app`` knows the task, it is
    asked whether it takes the arguments. ``schedule`` is what `text.parse` takes. JSON can hold ``args``, ``kwargs``
    and ``options``, which are those of the message and the policies.

    Raises:
        ConfigurationError: it names the field, what is wrong with it and what to give.
    """
    name = check_name(name)
    call = call_of(app, task, args, kwargs, options)
    text = parse(schedule, app=app)
    schedule_of_text(text, app)  # an error of it names no entry
    kwargs, options = ({} if each is None else each for each in (call.kwargs, call.options))
    _refuse_first(shape_mistakes({"args": call.args, "kwargs": kwargs, "options": options}))
    kwargs, options = ({plain(key): each for key, each in given.items()} for given in (kwargs, options))
    _refuse_first(option_mistakes(options, runtime=True))
    definition = Definition(
        task=call.task,
        schedule=text,
        args=_as_json("args", list(call.args)),
        kwargs=_as_json("kwargs", kwargs),
        options=_as_json("options", options),
    )
    check_definition(definition)
    if not SHAPED.isdisjoint(options):
        shape(app, name, schedule_of_text(text, app), options, runtime=True)  # nor does an error of it
    entry = entry_of(definition, name, app)
    if not OWN_OPTIONS.isdisjoint(entry.options):
        Overlap.of(entry).check(app, entry)
    _refuse_first(mistakes_here(app, Call(call.task, entry.args, entry.kwargs, entry.options)))
    return definition


def entry_of(definition: Definition, name: str, app: Any) -> ScheduleEntry:
    """Return Celery's entry of a runtime entry, as if it had run at `since` and never before. Entries may share their
    schedule.

    Raises `ConfigurationError` if this process cannot read it (a schedule that its Celery does not know; solar without
    ephem; a pause of an entry of `beat_schedule`, which is not an entry of its own).
    """
    task = definition.task
    if task is None or definition.schedule is None:
        raise ConfigurationError(f"beat entry {shown(name)}: is defined in beat_schedule, not here")
    try:
        check_name(name)
        when = schedule_of_text(definition.schedule, app)
        if not task.strip() or not task.isprintable():
            raise ConfigurationError(f"task = {shown(task)}: give the name of a task, such as 'shop.tasks.tidy_up'")
        args = _revive(definition.args)
        kwargs, options = (_revive(each) if each else each for each in (definition.kwargs, definition.options))
        if type(kwargs) is not dict or type(options) is not dict:  # kombu's decoders may make objects of any type
            _refuse_first(shape_mistakes({"kwargs": kwargs, "options": options}))
        if options and (key := repr(definition.options)) not in _sound:
            _refuse_first(option_mistakes(options, runtime=True))
            if len(_sound) < KEPT_OPTIONS and len(key) < LONGEST_OPTIONS:
                _sound.add(key)
        if options and not SHAPED.isdisjoint(options):
            when = shape(app, name, when, options, runtime=True)
        last = moment(definition.since).astimezone(when.tz)
        return ScheduleEntry(name, task, last, 0, when, tuple(args), kwargs, options, app=app)
    except ConfigurationError as exc:
        reason = str(exc)
    except Exception as exc:  # noqa: BLE001 - kombu's decoders and Celery's classes may raise anything
        reason = f"cannot be read: {printable_error(exc)}"
    raise ConfigurationError(f"beat entry {shown(name)}: {reason}")


def reason_of(error: ConfigurationError, name: str) -> str:
    """Return what is wrong with an entry, for a line that names the entry already."""
    return str(error).removeprefix(f"beat entry {shown(name)}: ")


@lru_cache(maxsize=1024)  # most of a hundred thousand entries have one of a few schedules
def schedule_of_text(text: str, app: Any) -> Any:
    """Return the schedule of a definition, the same object for the same text. Raises `ConfigurationError`."""
    when, least = read(text, app=app), setting(app, "neli_least_interval")
    if type(when) is schedule and when.run_every.total_seconds() < least:
        raise ConfigurationError(
            f"schedule = {text!r}: every {when.run_every.total_seconds():g} s is more often than an entry put at "
            f"runtime may run: neli_least_interval = {least:g} s; give a longer interval, or lower that setting for "
            "all beats"
        )
    if type(when) is cron and when.least_interval < least:
        raise ConfigurationError(
            f"schedule = {text!r}: every {when.least_interval:g} s is more often than an entry put at runtime may run: "
            f"neli_least_interval = {least:g} s; name fewer seconds, or lower that setting for all beats"
        )
    return when


def check_comes(definition: Definition, name: str, app: Any, *, after: float) -> None:
    """Raise `ConfigurationError` if a runtime entry has no slot after ``after`` (Unix seconds)."""
    if definition.schedule is None:
        return
    when = schedule_of_text(definition.schedule, app)
    shaped = {each: _revive(value) for each, value in (definition.options or {}).items() if each in SHAPED}
    try:
        when = shape(app, name, when, shaped, runtime=True) if shaped else when
        slot = next_slot(when, moment(after + shift_of(when)))
    except Exception:  # noqa: BLE001 - a schedule's own search may raise anything
        slot = None
    if slot is None:
        beside = f" with {', '.join(f'{each} = {shown(value)}' for each, value in shaped.items())}" if shaped else ""
        raise ConfigurationError(
            f"schedule = {definition.schedule!r}{beside}: its time never comes; give one that is ahead"
        )


def same(one: Any, other: Any) -> bool:
    """Return True if two values are the same JSON: 1, 1.0 and true, which only Python takes for equal, are not."""
    return bool(one == other) and json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def until_of(value: Any, now: float) -> float | None:
    """Return the end of a pause in Unix seconds: of a datetime (a naive one is local time), of how long from ``now``,
    or of Unix seconds; None stays None. Raises `ConfigurationError` if it is not ahead.
    """
    until: Any = None
    try:
        if value is None:
            return None
        if isinstance(value, timedelta):
            until = now + value.total_seconds()
        elif isinstance(value, datetime):
            until = value.timestamp()
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            until = float(value)
    except (ValueError, OverflowError, OSError):
        pass
    if until is None or not now < until <= LATEST:
        remedy = "give a datetime, a timedelta or Unix seconds, which lie ahead"
        raise ConfigurationError(f"until = {shown(value)}: {remedy}")
    return float(until)


def awake(definition: Definition, now: float) -> Definition:
    """Return a definition as it is ``now`` (Unix seconds): if the end of its pause has come, it is not paused, and
    slots up to that end never run.
    """
    standing = effective(definition, (), now)
    if standing.paused == definition.paused:
        return definition
    return replace(definition, paused=False, until=None, since=standing.since)


def moment(seconds: float) -> datetime:
    """Return Unix seconds as a datetime in UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc)


def _refuse_first(mistakes: Any) -> None:
    for mistake in mistakes:
        raise ConfigurationError(mistake)


def _as_json(field: str, value: Any) -> Any:
    """Return ``value`` in JSON's types, as kombu writes it, if kombu would read it back as what it was."""
    encode: Any = dumps  # it comes without types
    try:
        check_plain(field, value)
        made = json.loads(encode(value))
        check_plain(field, made)
        back = _revive(made)
        same = back == _listed(value)
    except ConfigurationError:
        raise
    except Exception as exc:  # noqa: BLE001 - any class in there may raise anything
        raise ConfigurationError(f"{field} = {shown(value)}: cannot be kept as JSON: {exc}") from None
    if not same:
        raise ConfigurationError(f"{field} = {shown(value)}: would come back from JSON as {shown(back)}")
    return made


def _revive(value: Any) -> Any:
    """Return what kombu's JSON makes of ``value``, in which datetimes and the like are marked dicts."""
    if type(value) is list:
        return [_revive(each) for each in value]
    if type(value) is dict:
        revived = {key: _revive(each) for key, each in value.items()}
        made = object_hook(revived)
        if made is not revived:
            check_made(made)
        return made
    return value


def _listed(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_listed(each) for each in value]
    if isinstance(value, dict):
        return {key: _listed(each) for key, each in value.items()}
    return value
