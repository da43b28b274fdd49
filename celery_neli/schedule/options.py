"""The options of a message that an entry may have: their names, and what each of them takes.

The same for entries of `beat_schedule` and for those made at runtime. Pure; imports no Kafka client.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

from celery.canvas import Signature
from kombu.entity import Exchange, Queue

from celery_neli.nearest import nearest
from celery_neli.schedule.checks import shown
from celery_neli.tick import misfire, overlap

__all__ = ["OPTIONS", "OWN_OPTIONS", "mistakes", "unknown"]

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
            yield f"options: there is no option {shown(name)[1:-1]}; did you mean {nearest(str(name), OPTIONS)}?"


def _is_seconds(value: Any) -> bool:
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and math.isfinite(value)
        and 0 <= value <= MOST_SECONDS
    )


def _is_flag(value: Any) -> bool:
    return isinstance(value, (bool, int)) and value in (True, False)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_short(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value.encode("utf-8", "surrogatepass")) <= SHORT


def _is_expiry(value: Any) -> bool:
    if isinstance(value, str):  # as Celery has it in a message
        try:
            datetime.fromisoformat(value[:-1] + "+00:00" if value.endswith("Z") else value)
        except ValueError:
            return False
        return True
    return isinstance(value, datetime) or _is_seconds(value)


def _is_policy(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        name in _POLICY and (each is None or name == "retry_errors" or _is_seconds(each))
        for name, each in value.items()
    )


def _is_link(value: Any) -> bool:
    return all(
        isinstance(each, Signature) or (isinstance(each, Mapping) and isinstance(each.get("task"), str))
        for each in (value if isinstance(value, (list, tuple)) else [value])
    )


_SECONDS: _Takes = _is_seconds, f"a number of seconds from 0 to {MOST_SECONDS}"
_FLAG: _Takes = _is_flag, "True or False"
_TEXT: _Takes = _is_text, "a string"
_SHORT: _Takes = _is_short, f"a string of 1 to {SHORT} bytes"
_LINK: _Takes = _is_link, "a signature, or a list of signatures"
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
    "expires": (_is_expiry, "a number of seconds from 0 on, or a datetime"),
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
    "shadow": _TEXT,
    "add_to_parent": _FLAG,
    # what follows
    "link": _LINK,
    "link_error": _LINK,
    "reply_to": _SHORT,
}
OPTIONS = OWN_OPTIONS.union(_TAKES)
