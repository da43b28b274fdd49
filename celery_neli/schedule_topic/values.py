"""What a definition may hold: one check for `put`, which refuses, and for every reader, which skips.

Pure. What passes here, every process can read, make an entry of, and send.
"""

from __future__ import annotations

import math
from datetime import datetime, timezone
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from celery_neli.exceptions import ConfigurationError
from celery_neli.printable import shown

if TYPE_CHECKING:
    from celery_neli.schedule_topic.codec import Definition

__all__ = ["EARLIEST", "LATEST", "check_definition", "check_made", "check_plain", "check_time", "shown"]

MAX_DEPTH: Final = 64
"""How deep lists and dicts may be nested. Parsers and serializers follow some hundreds, depending on their stack."""
MAX_TASK: Final = 512
MAX_SCHEDULE: Final = 2048
MAX_AUTHOR: Final = 512
MAX_CHANGE: Final = 2 * MAX_SCHEDULE + 512
EARLIEST: Final = -62135596800.0 + 172800.0
LATEST: Final = 253402300799.0 - 172800.0
"""Unix seconds: times of the years 1 to 9999, two days apart from their ends, so that every time zone has them."""


def check_definition(definition: Definition) -> None:
    """Check all that can be checked without an app.

    Raises:
        ConfigurationError: it names the field that no process could read or send, and what to give.
    """
    if not definition.static:
        _check_text("task", definition.task, MAX_TASK)
        _check_text("schedule", definition.schedule, MAX_SCHEDULE)
    for field in ("args", "kwargs", "options"):
        if value := getattr(definition, field):
            check_plain(field, value)
    check_time("since", definition.since)
    for change in definition.changes:
        check_time("changes", change.at)
        for text, most in ((change.by, MAX_AUTHOR), (change.what, MAX_CHANGE)):
            if len(text) > most or _has_surrogates(text):
                raise ConfigurationError(f"changes = {shown(text)}: give at most {most} characters that UTF-8 has")


def check_plain(field: str, value: Any) -> None:
    """Check a value of JSON's types.

    Raises:
        ConfigurationError: it is nested too deeply, or holds a number that is not finite or half of a surrogate pair.
    """
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        following: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                for key in each:
                    if isinstance(key, str) and _has_surrogates(key):
                        _refuse_surrogates(field, key)
                following.extend(each.values())
            elif isinstance(each, (list, tuple)):
                following.extend(each)
            elif isinstance(each, str):
                if _has_surrogates(each):
                    _refuse_surrogates(field, each)
            elif isinstance(each, float) and not math.isfinite(each):
                raise ConfigurationError(f"{field}: {each!r} is not JSON: give a finite number, or None")
        if not following:
            return
        level = following
    raise ConfigurationError(
        f"{field} = {shown(value)}: lists and dicts are nested more than {MAX_DEPTH} deep: keep the data elsewhere, "
        "and pass where it is"
    )


def check_made(value: Any) -> None:
    """Check what kombu's JSON made of a marked value.

    Raises:
        ValueError: a decimal that is not finite, or a datetime that is out of range in UTC.
    """
    if isinstance(value, Decimal) and not value.is_finite():
        raise ValueError(f"{value!r} is not a finite number")
    if isinstance(value, datetime) and value.tzinfo is not None and not is_moment(value):
        raise ValueError(f"{value!r} is not a time in the years 1 to 9999 in UTC")


def is_moment(value: datetime) -> bool:
    """Return True if every time zone has this time; a naive one may be of any."""
    at = value.replace(tzinfo=timezone.utc) if value.utcoffset() is None else value
    return EARLIEST <= at.timestamp() <= LATEST


def _check_text(field: str, value: Any, most: int) -> None:
    if not isinstance(value, str) or not 0 < len(value) <= most or _has_surrogates(value):
        raise ConfigurationError(f"{field} = {shown(value)}: give a string of 1 to {most} characters")


def check_time(field: str, value: Any) -> None:
    """Check a time in Unix seconds.

    Raises:
        ConfigurationError: it is not a number, or not in the years 1 to 9999.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not EARLIEST <= value <= LATEST:
        raise ConfigurationError(f"{field}: {shown(value)} is not a time in the years 1 to 9999: give Unix seconds")


def _has_surrogates(text: str) -> bool:
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _refuse_surrogates(field: str, text: str) -> None:
    raise ConfigurationError(f"{field}: {shown(text)} holds half of a surrogate pair, which UTF-8 does not have")
