"""The options of a message that an entry may have: their names, and what each of them takes.

The same for entries of `beat_schedule` and for those made at runtime. Pure; imports no Kafka client.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

from celery.canvas import Signature
from kombu.compression import get_encoder
from kombu.entity import Exchange, Queue
from kombu.serialization import dumps

from celery_neli.exceptions import ConfigurationError
from celery_neli.printable import did_you_mean
from celery_neli.schedule import misfire, overlap
from celery_neli.schedule_topic.values import is_moment, shown

__all__ = ["OPTIONS", "OWN_OPTIONS", "check_here", "mistakes", "unknown"]

#: Entry options that are ours: no part of a message.
OWN_OPTIONS = frozenset((*misfire.OPTIONS, *overlap.OPTIONS))
#: Seconds; Celery adds them to the present time, and a datetime must hold the sum.
MOST_SECONDS = 2**31 - 1
#: Bytes of AMQP's short strings.
SHORT = 255
_POLICY = ("max_retries", "interval_start", "interval_step", "interval_max", "retry_errors")
_MODES = (1, 2, "transient", "persistent")

_Takes = tuple[Callable[[Any], bool], str]


def mistakes(options: Mapping[str, Any]) -> Iterator[str]:
    """Yield one line for each known option whose value is wrong. None leaves an option out."""
    for name, value in options.items():
        if value is None or name not in _TAKES:
            continue
        takes, remedy = _TAKES[name]
        if not takes(value):
            yield f"options: {name} = {shown(value)}: give {remedy}"


def unknown(options: Mapping[str, Any]) -> Iterator[str]:
    """Yield one line for each option that does not exist."""
    for name in options:
        if name not in OPTIONS:
            yield f"options: there is no option {shown(name)[1:-1]}; {did_you_mean(str(name), OPTIONS)}"


def check_here(app: Any, options: Mapping[str, Any]) -> None:
    """Ask kombu and the app whether this process could send with these options, which are of the right types.

    Raises:
        ConfigurationError: it could not: it does not know the serializer, the compression or the queue.
    """
    encode: Any = dumps  # they come without types
    compress: Any = get_encoder
    for name, attempt in (("serializer", lambda name: encode([], name)), ("compression", compress)):
        value = options.get(name)
        try:
            if value is not None:
                attempt(value)
        except Exception:  # noqa: BLE001 - of kombu's registries, and of an application's codec
            raise ConfigurationError(
                f"options: {name} = {shown(value)}: this process has none of that name: register it here, too, or "
                "leave it out"
            ) from None
    queue = options.get("queue")
    if isinstance(queue, str) and not app.conf.task_create_missing_queues and queue not in app.amqp.queues:
        raise ConfigurationError(
            f"options: queue = {shown(queue)}: is none of task_queues, and task_create_missing_queues is off: name one "
            "of those, or add it"
        )


def _is_seconds(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= MOST_SECONDS


def _is_flag(value: Any) -> bool:
    return isinstance(value, (bool, int)) and value in (True, False)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_short(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value.encode("utf-8", "surrogatepass")) <= SHORT


def _is_expiry(value: Any) -> bool:
    if isinstance(value, str):  # as Celery has it in a message
        try:
            value = datetime.fromisoformat(value[:-1] + "+00:00" if value.endswith("Z") else value)
        except ValueError:
            return False
    return is_moment(value) if isinstance(value, datetime) else _is_seconds(value)


def _is_policy(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        name in _POLICY and (each is None or name == "retry_errors" or _is_seconds(each))
        for name, each in value.items()
    )


def _is_link(value: Any) -> bool:
    return all(map(_is_signature, value if isinstance(value, (list, tuple)) else [value]))


def _is_signature(value: Any) -> bool:
    """Return True for a signature, or for what JSON leaves of one, from which every worker can make it again."""
    if not isinstance(value, Mapping) or not isinstance(value.get("task"), str) or not value["task"].strip():
        return False
    args, kwargs, options = (value.get(field) for field in ("args", "kwargs", "options"))
    if not (
        (args is None or isinstance(args, (list, tuple)))
        and (kwargs is None or isinstance(kwargs, Mapping))
        and (options is None or (isinstance(options, Mapping) and not any(mistakes(options))))
    ):
        return False
    if isinstance(value, Signature) or value.get("subtask_type") is None:
        return True
    try:
        Signature.from_dict(copy.deepcopy(dict(value)))
    except Exception:  # noqa: BLE001 - a chain, a group or a chord of nothing that Celery can make one of
        return False
    return True


_SECONDS: _Takes = _is_seconds, f"a number of seconds from 0 to {MOST_SECONDS}"
_FLAG: _Takes = _is_flag, "True or False"
_TEXT: _Takes = _is_text, "a string"
_SHORT: _Takes = _is_short, f"a string of 1 to {SHORT} bytes"
_LINK: _Takes = _is_link, "a signature (task, args, kwargs, options), or a list of signatures"
#: What `Task.apply_async` takes beside the arguments, and kombu's `publish`.
_TAKES: Mapping[str, _Takes] = {
    # where it goes
    "queue": (lambda value: isinstance(value, Queue) or _is_short(value), "the name of a queue"),
    "exchange": (lambda value: isinstance(value, Exchange) or _is_short(value), "the name of an exchange"),
    "exchange_type": _SHORT,
    "routing_key": (lambda value: value == "" or _is_short(value), f"a string of at most {SHORT} bytes"),
    "priority": (lambda value: type(value) is int and 0 <= value <= 255, "a whole number from 0 to 255"),
    "delivery_mode": (
        lambda value: type(value) in (int, str) and value in _MODES,
        "1 or 'transient', 2 or 'persistent'",
    ),
    "mandatory": _FLAG,
    "immediate": _FLAG,
    # when
    "expires": (_is_expiry, f"a number of seconds from 0 to {MOST_SECONDS}, or a datetime of the years 2 to 9998"),
    "countdown": _SECONDS,
    "expiration": _SECONDS,
    "time_limit": _SECONDS,
    "soft_time_limit": _SECONDS,
    "timeout": _SECONDS,
    "confirm_timeout": _SECONDS,
    # how
    "headers": (
        lambda value: isinstance(value, Mapping) and all(isinstance(key, str) for key in value),
        "a dict with names for keys",
    ),
    "serializer": _TEXT,
    "compression": _TEXT,
    "retry": _FLAG,
    "retry_policy": (_is_policy, f"a dict with some of {', '.join(_POLICY)}, in numbers"),
    "ignore_result": _FLAG,
    "shadow": (lambda value: _is_short(value) and value.isprintable(), f"a name of 1 to {SHORT} bytes"),
    "add_to_parent": _FLAG,
    # what follows
    "link": _LINK,
    "link_error": _LINK,
    "reply_to": _SHORT,
}
OPTIONS = OWN_OPTIONS.union(_TAKES)
