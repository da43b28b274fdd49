"""What an entry calls: a task by its name, the task itself, or a signature; with which arguments and options.

The checks are the same for entries of `beat_schedule` and for runtime entries. Types are asked for, not attributes:
many objects have a `name`. Pure; imports no Kafka client.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from types import MethodType
from typing import Any, NamedTuple, NoReturn

from celery import Celery, Task
from celery.canvas import Signature
from kombu.compression import get_encoder
from kombu.entity import Exchange, Queue
from kombu.serialization import dumps

from celery_neli.config import setting
from celery_neli.exceptions import ConfigurationError
from celery_neli.periodic import shape
from celery_neli.printable import closest, did_you_mean, printable
from celery_neli.schedule.policies import ALARM_OPTIONS, OWN_OPTIONS, PAUSE_ON_FAILURE, Misfire, Overlap
from celery_neli.schedule_topic.values import MAX_TASK, is_moment, shown
from celery_neli.settings import MOST_FAILURES

EXAMPLE = "give the name of a task, such as 'shop.tasks.tidy_up', the task itself, or its signature"
#: Options of a runtime entry that cannot be set, and why.
_NOT = {
    "task_id": "each slot has an id of its own",
    "eta": "it would be the same for every slot; use countdown (seconds)",
}
#: Headers by which workers recognise a message. Celery would let an entry's own replace them.
_NOT_HEADERS = ("id", "task", "root_id", "parent_id", "group", "eta", "argsrepr", "kwargsrepr")
LIKE = 0.75  # how similar, from 0 to 1, an unknown option must be to a known one to count as a misspelling of it
MOST_SECONDS = 2**31 - 1  # seconds; Celery adds them to the present time, and a datetime must hold the sum
SHORT = 255  # the most bytes of AMQP's short strings


class Call(NamedTuple):
    """The name of a task, and what to send it with."""

    task: str
    args: Any
    kwargs: Any
    options: Any


def check_app(app: Any) -> Any:
    """Return ``app``; raise `ConfigurationError` if it is not a Celery app."""
    if isinstance(app, type) or not isinstance(app, Celery):
        raise ConfigurationError(f"app = {shown(app)}: give the Celery app")
    return app


def plain(text: Any) -> Any:
    """Return a string of a subclass of `str`, such as an enum of names, as a plain one; anything else as it is."""
    return str.__str__(text) if isinstance(text, str) and type(text) is not str else text


def is_mapping(value: Any) -> bool:
    """Return True for a dict whose keys are strings. A signature is a dict, too, but not meant as one."""
    plain_dict = isinstance(value, Mapping) and not isinstance(value, Signature)
    return plain_dict and all(isinstance(key, str) for key in value)


def call_of(app: Any, task: Any, args: Any, kwargs: Any, options: Any) -> Call:
    """Return what ``task`` means, together with what is given beside it.

    A signature brings its arguments and options. Arguments in two places, or one keyword or option in two, are refused
    by a `ConfigurationError`, as is what is no task.
    """
    if isinstance(task, str):
        return Call(_task_name(plain(task), task), args, kwargs, options)
    if isinstance(task, type):
        _refuse(task, "this is a class: give the task itself, which app.register_task returns, or its name")
    if isinstance(task, Task):
        _check_home(app, task, task.name, task.app)
        return Call(_task_name(task.name, task), args, kwargs, options)
    if isinstance(task, Signature):
        return _of_signature(app, task, args, kwargs, options)
    if isinstance(task, MethodType) and isinstance(task.__self__, Task):
        _refuse(task, "this is a method of a task: give the task itself, or its signature")
    return _refuse(task, EXAMPLE)


def _of_signature(app: Any, signature: Any, args: Any, kwargs: Any, options: Any) -> Call:
    if type(signature) is not Signature:
        name = str(signature.get("task"))
        what = name.removeprefix("celery.") if name.startswith("celery.") else type(signature).__name__
        _refuse(signature, f"a {what} cannot be an entry: give a task that calls it")
    name, fields = signature.get("task"), []
    for field, given in {"args": args, "kwargs": kwargs, "options": options}.items():
        held, why = signature.get(field), None
        whole = given or held or given
        if given and field != "options" and signature.get("immutable"):
            why = "is immutable and takes no more arguments"
        elif given and held and field == "args":
            why = "has arguments, too"
        elif given and held and is_mapping(given):  # `shape_mistakes` finds any other
            if both := sorted(given.keys() & held.keys()):
                why = f"says {', '.join(both)}, too"
            whole = {**held, **given}
        if why is not None:
            raise ConfigurationError(
                f"{field} = {shown(given)}: the signature {shown(signature)} {why}: give all of it in one place"
            )
        fields.append(whole)
    _check_home(app, signature, name, getattr(signature, "_app", None))
    return Call(_task_name(plain(name), signature), *fields)


def _check_home(app: Any, given: Any, name: Any, home: Any) -> None:
    """Refuse a task of another app: only workers of that app may have it. A shared task belongs to every app."""
    if not (isinstance(home, Celery) and isinstance(app, Celery)):
        return
    # Either may be a proxy, such as `current_app`.
    one, other = (getattr(each, "_get_current_object", lambda each=each: each)() for each in (home, app))
    if one is not other and name not in app.tasks:
        _refuse(
            given,
            f"it belongs to the app {home.main!r}, and {app.main!r} has no task of that name; if its workers do, give "
            f"the name {shown(name)}",
        )


def _task_name(name: Any, given: Any) -> str:
    if not isinstance(name, str) or not name.strip() or not name.isprintable() or len(name) > MAX_TASK:
        _refuse(given, EXAMPLE)
    if name in ("celery.chain", "celery.group"):  # `add_periodic_task` makes these of a chain or a group
        _refuse(given, "no worker runs it: give a task that calls the chain or the group")
    return name


def _refuse(task: Any, why: str) -> NoReturn:
    raise ConfigurationError(f"task = {shown(task)}: {why}")


def shape_mistakes(given: Mapping[str, Any]) -> Iterator[str]:
    """Yield one line for each of the ``args``, ``kwargs`` and ``options`` that are given in the wrong type."""
    for field, value in given.items():
        if field == "args" and not isinstance(value, (list, tuple)):
            yield f"args = {shown(value)}: give a list"
        elif field != "args" and not is_mapping(value):
            yield f"{field} = {shown(value)}: give a dict with names for keys"


def option_mistakes(options: Mapping[str, Any], *, runtime: bool) -> Iterator[str]:
    """Yield one line for each mistake in the options of an entry, of which None leaves one out.

    A ``runtime`` entry has known options only, and none that would be the same for all slots. An entry of
    `beat_schedule` may have others, which its task's class takes, but no misspelt ones.
    """
    if runtime:
        yield from (f"options: {name} cannot be set: {reason}" for name, reason in _NOT.items() if name in options)
        headers = options.get("headers")
        for name in filter(headers.__contains__, _NOT_HEADERS) if isinstance(headers, Mapping) else ():
            yield f"options: headers: {name} cannot be set: Celery writes it, for each message"
        for name in options:
            if name not in OPTIONS:
                yield f"options: there is no option {shown(name)[1:-1]}; {did_you_mean(str(name), OPTIONS)}"
    yield from _value_mistakes(options)
    for name in () if runtime else options:
        if name in PASSED_ON:
            continue
        near = closest(name, OWN_OPTIONS) if name.startswith("neli_") else closest(name, PASSED_ON, least=LIKE)
        if near is not None:
            yield f"options: there is no option {printable(name)}; did you mean {near}?"
    if options.keys().isdisjoint(OWN_OPTIONS):
        return
    checks: tuple[Callable[[Any], Any], ...] = Misfire().changed_by, Overlap.from_options
    for check in checks:
        try:
            check(options)
        except ConfigurationError as exc:
            yield str(exc)


def mistakes_here(app: Any, call: Call) -> Iterator[str]:
    """Yield what is wrong with a call in this process: the task, if the app knows it, does not take the arguments; the
    serializer, compression or queue of its message does not exist.
    """
    task = app.tasks.get(call.task)
    header = getattr(task, "__header__", None)
    if header is not None and task.typing and type(task).apply_async is Task.apply_async:  # its own may add arguments
        args, kwargs = list(call.args or ()), dict(call.kwargs or {})
        try:
            header(*args, **kwargs)
        except TypeError as exc:
            given = f"kwargs = {shown(kwargs)}" if "keyword" in str(exc) else f"args = {shown(args)}"
            yield f"{given}: {call.task} does not take these arguments: {exc}"
    options = call.options or {}
    if options.get(PAUSE_ON_FAILURE) is not None and not setting(app, "neli_history"):
        yield (
            f"options: {PAUSE_ON_FAILURE} = {shown(options[PAUSE_ON_FAILURE])}: failures are counted by the run "
            "history, and neli_history = False: set it to True, or leave the option out"
        )
    encode: Any = dumps  # they come without types
    compress: Any = get_encoder
    for name, attempt in (("serializer", lambda name: encode([], name)), ("compression", compress)):
        value = options.get(name)
        try:
            if value is not None:
                attempt(value)
        except Exception:  # noqa: BLE001 - kombu's registries and an application's codec may raise anything
            yield (
                f"options: {name} = {shown(value)}: this process has none of that name: register it here, too, or "
                "leave it out"
            )
    queue = options.get("queue")
    if isinstance(queue, str) and not app.conf.task_create_missing_queues and queue not in app.amqp.queues:
        yield (
            f"options: queue = {shown(queue)}: is none of task_queues, and task_create_missing_queues is off: name one "
            "of those, or add it"
        )


def _value_mistakes(options: Mapping[str, Any]) -> Iterator[str]:
    for name, value in options.items():
        if value is None or name not in _TAKES:
            continue
        takes, remedy = _TAKES[name]
        if not takes(value):
            yield f"options: {name} = {shown(value)}: give {remedy}"


def _is_seconds(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= MOST_SECONDS


def _is_short(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value.encode("utf-8", "surrogatepass")) <= SHORT


def _is_expiry(value: Any) -> bool:
    if isinstance(value, str):  # as Celery has it in a message
        try:
            value = datetime.fromisoformat(value[:-1] + "+00:00" if value.endswith("Z") else value)
        except ValueError:
            return False
    return is_moment(value) if isinstance(value, datetime) else _is_seconds(value)


def _is_retry_policy(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        name in _RETRY_POLICY and (each is None or name == "retry_errors" or _is_seconds(each))
        for name, each in value.items()
    )


def _is_link(value: Any) -> bool:
    return all(map(_is_signature, value if isinstance(value, (list, tuple)) else [value]))


def _is_signature(value: Any) -> bool:
    """Return True for a signature, or a dict that JSON made of one and a worker can make a signature again."""
    if not isinstance(value, Mapping) or not isinstance(value.get("task"), str) or not value["task"].strip():
        return False
    fields: Any = (("args", (list, tuple)), ("kwargs", Mapping), ("options", Mapping))
    if any(value.get(name) is not None and not isinstance(value[name], kind) for name, kind in fields):
        return False
    if any(_value_mistakes(value.get("options") or {})):
        return False
    if isinstance(value, Signature) or value.get("subtask_type") is None:
        return True
    try:
        return bool(Signature.from_dict(copy.deepcopy(dict(value))))
    except Exception:  # noqa: BLE001 - of a chain, a group or a chord, Celery may raise anything
        return False


def _is_allowance(value: Any) -> bool:
    return _is_seconds(value) and value > 0


_RETRY_POLICY = ("max_retries", "interval_start", "interval_step", "interval_max", "retry_errors")
_Takes = tuple[Callable[[Any], bool], str]
_SHORT: _Takes = _is_short, f"a string of 1 to {SHORT} bytes"
_FLAGS = ("mandatory", "immediate", "retry", "ignore_result", "add_to_parent")
_TIMES = ("countdown", "expiration", "time_limit", "soft_time_limit", "timeout", "confirm_timeout")
#: What `Task.apply_async` takes beside the arguments, and kombu's `publish`.
_TAKES: Mapping[str, _Takes] = {
    "queue": (lambda value: isinstance(value, Queue) or _is_short(value), "the name of a queue"),
    "exchange": (lambda value: isinstance(value, Exchange) or _is_short(value), "the name of an exchange"),
    "exchange_type": _SHORT,
    "reply_to": _SHORT,
    "routing_key": (lambda value: value == "" or _is_short(value), f"a string of at most {SHORT} bytes"),
    "priority": (lambda value: type(value) is int and 0 <= value <= 255, "a whole number from 0 to 255"),
    "delivery_mode": (
        lambda value: type(value) in (int, str) and value in (1, 2, "transient", "persistent"),
        "1 or 'transient', 2 or 'persistent'",
    ),
    **dict.fromkeys(_FLAGS, (lambda value: isinstance(value, int) and value in (True, False), "True or False")),
    **dict.fromkeys(_TIMES, (_is_seconds, f"a number of seconds from 0 to {MOST_SECONDS}")),
    **shape.TAKES,
    **dict.fromkeys(ALARM_OPTIONS, (_is_allowance, f"a number of seconds above 0, at most {MOST_SECONDS}")),
    PAUSE_ON_FAILURE: (
        lambda value: type(value) is int and 1 <= value <= MOST_FAILURES,
        f"a whole number from 1 to {MOST_FAILURES}: after how many failed runs in a row the entry is paused",
    ),
    "expires": (_is_expiry, f"a number of seconds from 0 to {MOST_SECONDS}, or a datetime of the years 2 to 9998"),
    "headers": (is_mapping, "a dict with names for keys"),
    **dict.fromkeys(("serializer", "compression"), (lambda value: isinstance(value, str) and value != "", "a string")),
    "retry_policy": (_is_retry_policy, f"a dict with some of {', '.join(_RETRY_POLICY)}, in numbers"),
    "shadow": (lambda value: _is_short(value) and value.isprintable(), f"a name of 1 to {SHORT} bytes"),
    **dict.fromkeys(
        ("link", "link_error"), (_is_link, "a signature (task, args, kwargs, options), or a list of signatures")
    ),
}
OPTIONS = OWN_OPTIONS.union(_TAKES)
#: Options of `beat_schedule` that pass unchecked: Celery and kombu take them, too.
PASSED_ON = OPTIONS | {
    "app_id", "chain", "chord", "connection", "content_encoding", "content_type", "correlation_id", "declare", "eta",
    "group_id", "group_index", "message_id", "parent_id", "producer", "publisher", "replaced_task_nesting", "root_id",
    "router", "stamped_headers", "stamps", "task_id", "task_type", "timestamp", "type", "user_id",
}  # fmt: skip
