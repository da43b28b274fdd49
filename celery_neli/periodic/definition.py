"""What an entry of the runtime schedule may be, checked before it is stored; and Celery's entry, made from what was.

Pure; imports no Kafka client.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from functools import lru_cache
from typing import Any

from celery.beat import ScheduleEntry
from celery.schedules import schedule
from kombu.utils.json import dumps, object_hook

from celery_neli.config import least_interval
from celery_neli.exceptions import ConfigurationError
from celery_neli.periodic.call import Call, call_of, check_arguments, is_mapping, plain
from celery_neli.periodic.options import OWN_OPTIONS, check_here, mistakes, unknown
from celery_neli.periodic.text import parse, read
from celery_neli.printable import printable_error
from celery_neli.schedule.misfire import Misfire
from celery_neli.schedule.overlap import Overlap
from celery_neli.schedule.slots import next_slot
from celery_neli.schedule_topic.codec import Definition, check_name, encode_definition
from celery_neli.schedule_topic.values import check_made, check_plain, shown

__all__ = ["OWN_OPTIONS", "check_comes", "define", "entry_of", "moment", "reason_of", "revive"]


_NOT = {
    "task_id": "each slot has an id of its own",
    "eta": "it would be the same for every slot; use countdown (seconds)",
}
#: Headers by which workers know a message. Celery would let an entry's own stand in their place.
_NOT_HEADERS = ("id", "task", "root_id", "parent_id", "group", "eta", "argsrepr", "kwargsrepr")


def define(
    app: Any, name: Any, task: Any, schedule: Any, *, args: Any = (), kwargs: Any = None, options: Any = None
) -> Definition:
    """The definition of an entry, everything about it checked; `since` is 0 and `changes` empty.

    ``task`` is a name, a task, or a signature, which brings arguments and options; ``schedule`` whatever `text.parse`
    takes. Nothing says that the app has a task of that name: who sends need not import it. If it has, the task is asked
    whether it takes the arguments.

    :raises ConfigurationError: names the field, what is wrong with it and what to give.
    """
    name = check_name(name)
    call = call_of(app, task, args, kwargs, options)
    text, when = parse(schedule, app=app)
    _check_interval(text, when, app)
    if not isinstance(call.args, (list, tuple)):
        raise ConfigurationError(f"args = {shown(call.args)}: give a list")
    definition = Definition(
        task=call.task,
        schedule=text,
        args=_as_json("args", list(call.args)),
        kwargs=_as_json("kwargs", _mapping("kwargs", call.kwargs)),
        options=_as_json("options", _options(call.options)),
    )
    encode_definition(definition)  # checks its size, and all that needs no app
    entry = entry_of(definition, name, app)
    Overlap.of(entry).check(app, entry)
    check_arguments(app, Call(call.task, entry.args, entry.kwargs, entry.options))
    check_here(app, entry.options)
    return definition


def entry_of(definition: Definition, name: str, app: Any) -> ScheduleEntry:
    """Celery's entry of a runtime entry, as if it had run at `since` and never before. Entries may share a schedule.

    :raises ConfigurationError: this process cannot read it (a schedule that its Celery does not know; solar without
        ephem; a pause of a beat_schedule entry, which is no entry of its own).
    """
    if definition.task is None or definition.schedule is None:
        raise ConfigurationError(f"beat entry {shown(name)}: is defined in beat_schedule, not here")
    try:
        return _entry_of(definition.task, definition.schedule, definition, name, app)
    except ConfigurationError as exc:
        reason = str(exc)
    except Exception as exc:  # noqa: BLE001 - whatever kombu's decoders and Celery's classes raise
        reason = f"cannot be read: {printable_error(exc)}"
    raise ConfigurationError(f"beat entry {shown(name)}: {reason}")


def reason_of(error: ConfigurationError, name: str) -> str:
    """Return what is wrong with an entry, for a line that names the entry already."""
    return str(error).removeprefix(f"beat entry {shown(name)}: ")


def _entry_of(task: str, schedule: str, definition: Definition, name: str, app: Any) -> ScheduleEntry:
    check_name(name)
    if not task.strip() or not task.isprintable():
        raise ConfigurationError(f"task = {shown(task)}: give the name of a task, such as 'shop.tasks.tidy_up'")
    when = _schedule(schedule, app)
    args, kwargs, options = [  # kombu's decoders may make anything
        revive(each) if each else each for each in (definition.args, definition.kwargs, definition.options)
    ]
    if kwargs:
        kwargs = _mapping("kwargs", kwargs)
    if options:
        checked = _options(options)
        Misfire().changed_by(checked)
        Overlap.from_options(checked)
    last = moment(definition.since).astimezone(when.tz)
    return ScheduleEntry(name, task, last, 0, when, tuple(args), kwargs, options, app=app)


def revive(value: Any) -> Any:
    """What was made of ``value`` by kombu's JSON: a definition holds datetimes and the like as marked dicts.

    :raises ValueError: it is marked as something that this kombu does not know.
    """
    if type(value) is list:
        return [revive(each) for each in value]
    if type(value) is dict:
        plain = {key: revive(each) for key, each in value.items()}
        made = object_hook(plain)
        if made is not plain:
            check_made(made)
        return made
    return value


@lru_cache(maxsize=1024)  # of a hundred thousand entries, most have one of a few schedules
def _schedule(text: str, app: Any) -> Any:
    when = read(text, app=app)
    _check_interval(text, when, app)
    return when


def _check_interval(text: str, when: Any, app: Any) -> None:
    """Raise `ConfigurationError` for an interval that is shorter than `neli_least_interval`."""
    least = least_interval(app)
    if type(when) is not schedule:
        return
    every = when.run_every.total_seconds()
    if every < least:
        raise ConfigurationError(
            f"schedule = {text!r}: every {every:g} s is more often than an entry put at runtime may run: "
            f"neli_least_interval = {least:g} s; give a longer interval, or lower that setting for all beats"
        )


def check_comes(definition: Definition, app: Any, *, after: float) -> None:
    """:raises ConfigurationError: the entry has no slot after ``after`` (Unix seconds)."""
    text = definition.schedule
    assert text is not None, "runtime entries have one"
    try:
        comes = next_slot(_schedule(text, app), moment(after)) is not None
    except Exception:  # noqa: BLE001 - Celery 5.5 and 5.6 search for the 30th of February until they give up
        comes = False
    if not comes:
        raise ConfigurationError(f"schedule = {text!r}: its time never comes; give one that is ahead")


def moment(seconds: float) -> datetime:
    """Unix seconds as a datetime in UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc)


def _mapping(field: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not is_mapping(value):
        raise ConfigurationError(f"{field} = {shown(value)}: give a dict with names for keys")
    return {plain(key): each for key, each in value.items()}


def _options(value: Any) -> dict[str, Any]:
    """Return the options if each of them exists and has a valid value. `put` and every reader use this check."""
    options = _mapping("options", value)
    for name, reason in _NOT.items():
        if name in options:
            raise ConfigurationError(f"options: {name} cannot be set: {reason}")
    headers = options.get("headers")
    if isinstance(headers, Mapping):
        for name in filter(headers.__contains__, _NOT_HEADERS):
            raise ConfigurationError(f"options: headers: {name} cannot be set: Celery writes it, for each message")
    for mistake in (*unknown(options), *mistakes(options)):
        raise ConfigurationError(mistake)
    return options


def _as_json(field: str, value: Any) -> Any:
    """``value`` in JSON's types, as kombu's JSON has it (which marks datetimes, decimals, UUIDs, bytes), if it comes
    back from that.
    """
    encode: Any = dumps  # it comes without types
    try:
        check_plain(field, value)
        made = json.loads(encode(value))
        check_plain(field, made)
        back = revive(made)
        same = back == _listed(value)
    except ConfigurationError:
        raise
    except Exception as exc:  # noqa: BLE001 - any class in there may raise anything
        raise ConfigurationError(f"{field} = {shown(value)}: cannot be kept as JSON: {exc}") from None
    if not same:
        raise ConfigurationError(f"{field} = {shown(value)}: would come back from JSON as {shown(back)}")
    return made


def _listed(value: Any) -> Any:
    """With lists in place of tuples, as JSON has them."""
    if isinstance(value, (list, tuple)):
        return [_listed(each) for each in value]
    if isinstance(value, dict):
        return {key: _listed(each) for key, each in value.items()}
    return value
