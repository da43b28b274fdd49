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
from celery_neli.nearest import nearest
from celery_neli.schedule.records import Definition, check_name, encode_definition
from celery_neli.schedule.text import parse, read
from celery_neli.tick import misfire, overlap
from celery_neli.tick.misfire import Misfire
from celery_neli.tick.overlap import Overlap
from celery_neli.tick.slots import next_slot

__all__ = ["OWN_OPTIONS", "check_comes", "define", "entry_of", "moment", "revive"]

#: Entry options that are ours: no part of a message.
OWN_OPTIONS = frozenset((*misfire.OPTIONS, *overlap.OPTIONS))
#: What `Task.apply_async` takes beside the arguments, and kombu's `publish`.
_WHERE = ("queue", "exchange", "exchange_type", "routing_key", "priority", "delivery_mode", "mandatory", "immediate")
_WHEN = ("expires", "countdown", "expiration", "time_limit", "soft_time_limit", "timeout", "confirm_timeout")
_HOW = ("headers", "serializer", "compression", "retry", "retry_policy", "ignore_result", "shadow", "add_to_parent")
_THEN = ("link", "link_error", "reply_to")
OPTIONS = OWN_OPTIONS.union(_WHERE, _WHEN, _HOW, _THEN)
_NOT = {
    "task_id": "each slot has an id of its own",
    "eta": "it would be the same for every slot; use countdown (seconds)",
}


def define(
    app: Any, name: Any, task: Any, schedule: Any, *, args: Any = (), kwargs: Any = None, options: Any = None
) -> Definition:
    """The definition of an entry, everything about it checked; `since` is 0 and `changes` empty.

    ``task`` is a name or a task; ``schedule`` whatever `text.parse` takes. Nothing says that the app has a
    task of that name: who sends need not import it.

    :raises ConfigurationError: names the field, what is wrong with it and what to give.
    """
    check_name(name)
    task = getattr(task, "name", task)
    if not isinstance(task, str) or not task.strip() or not task.isprintable():
        raise ConfigurationError(f"task = {task!r}: give the name of a task, such as 'shop.tasks.tidy_up'")
    text, when = parse(schedule, app=app)
    _check_interval(text, when, app)
    if not isinstance(args, (list, tuple)):
        raise ConfigurationError(f"args = {args!r}: give a list")
    definition = Definition(
        task=task,
        schedule=text,
        args=_as_json("args", list(args)),
        kwargs=_as_json("kwargs", _mapping("kwargs", kwargs)),
        options=_as_json("options", _options(options)),
    )
    encode_definition(definition)  # its size
    entry = entry_of(definition, name, app)
    Overlap.of(entry).check(app, entry)
    return definition


def entry_of(definition: Definition, name: str, app: Any) -> ScheduleEntry:
    """Celery's entry of a runtime entry, as if it had run at `since` and never before. Entries may share a schedule.

    :raises ConfigurationError: this process cannot read it (a schedule that its Celery does not know; solar without
        ephem; a pause of a beat_schedule entry, which is no entry of its own).
    """
    if definition.task is None or definition.schedule is None:
        raise ConfigurationError(f"beat entry {name!r}: is defined in beat_schedule, not here")
    try:
        if not definition.options.keys().isdisjoint(misfire.OPTIONS):
            Misfire.from_settings(definition.options)
        when = _schedule(definition.schedule, app)
        args, kwargs, options = [
            revive(each) if each else each for each in (definition.args, definition.kwargs, definition.options)
        ]
    except (ValueError, TypeError, KeyError) as exc:  # ConfigurationError is a ValueError
        raise ConfigurationError(f"beat entry {name!r}: {exc}") from None
    return ScheduleEntry(
        name,
        definition.task,
        moment(definition.since).astimezone(when.tz),
        0,
        when,
        tuple(args),
        kwargs,
        options,
        app=app,
    )


def revive(value: Any) -> Any:
    """What was made of ``value`` by kombu's JSON: a definition holds datetimes and the like as marked dicts.

    :raises ValueError: it is marked as something that this kombu does not know.
    """
    if type(value) is list:
        return [revive(each) for each in value]
    if type(value) is dict:
        return object_hook({key: revive(each) for key, each in value.items()})
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
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ConfigurationError(f"{field} = {value!r}: give a dict with names for keys")
    return dict(value)


def _options(value: Any) -> dict[str, Any]:
    options = _mapping("options", value)
    for name in options:
        if name in _NOT:
            raise ConfigurationError(f"options: {name} cannot be set: {_NOT[name]}")
        if name not in OPTIONS:
            raise ConfigurationError(f"options: there is no option {name}; did you mean {nearest(name, OPTIONS)}?")
    return options


def _as_json(field: str, value: Any) -> Any:
    """``value`` in JSON's types, as kombu's JSON has it (which marks datetimes, decimals, UUIDs, bytes), if it comes
    back from that.
    """
    encode: Any = dumps  # it comes without types
    try:
        plain = json.loads(encode(value))
        back = revive(plain)
        same = back == _listed(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as exc:
        raise ConfigurationError(f"{field} = {_short(value)}: cannot be kept as JSON: {exc}") from None
    if not same:
        raise ConfigurationError(f"{field} = {_short(value)}: would come back from JSON as {_short(back)}")
    return plain


def _listed(value: Any) -> Any:
    """With lists in place of tuples, as JSON has them."""
    if isinstance(value, (list, tuple)):
        return [_listed(each) for each in value]
    if isinstance(value, dict):
        return {key: _listed(each) for key, each in value.items()}
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
