"""What a record of the schedule topic may hold: one check for `put`, which refuses, and for readers, which skip it.

Pure. What passes here, every process can read, make an entry of, and send.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any, Final, NoReturn

from celery_neli.exceptions import ConfigurationError, RecordError, UnknownVersion
from celery_neli.printable import printable
from celery_neli.printable import shown as shown  # with what else may be in an error about a value

VERSION: Final = 1
MAX_INT: Final = 1 << 62

MAX_DEPTH: Final = 64  # of lists and dicts; parsers and serializers follow some hundreds, depending on their stack
MAX_TASK: Final = 512
MAX_SCHEDULE: Final = 2048
MAX_AUTHOR: Final = 512
MAX_NOTE: Final = 1024
MAX_CHANGE: Final = 2 * MAX_SCHEDULE + 512
# Unix seconds: times of the years 1 to 9999, two days apart from their ends, so that every time zone has them.
EARLIEST: Final = -62135596800.0 + 172800.0
LATEST: Final = 253402300799.0 - 172800.0
_SURROGATE = re.compile("[\ud800-\udfff]")


def check_plain(field: str, value: Any) -> None:
    """Raise `ConfigurationError` if a value is nested too deeply, or holds a number or text that is not JSON."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        following: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                following.extend(key for key in each if isinstance(key, str))
                following.extend(each.values())
            elif isinstance(each, (list, tuple)):
                following.extend(each)
            elif isinstance(each, str) and _has_surrogates(each):
                held = f"{shown(each)} holds half of a surrogate pair, which UTF-8 does not have"
                raise ConfigurationError(f"{field}: {held}")
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
    """Raise `ValueError` if a decimal that kombu made is not finite, or a datetime is out of range in UTC."""
    if isinstance(value, Decimal) and not value.is_finite():
        raise ValueError(f"{value!r} is not a finite number")
    if isinstance(value, datetime) and value.tzinfo is not None and not is_moment(value):
        raise ValueError(f"{value!r} is not a time in the years 1 to 9999 in UTC")


def is_moment(value: datetime) -> bool:
    """Return True if every time zone has this time; a naive one may be of any."""
    at = value.replace(tzinfo=timezone.utc) if value.utcoffset() is None else value
    return EARLIEST <= at.timestamp() <= LATEST


def check_text(field: str, value: Any, most: int, *, least: int = 1) -> None:
    """Raise `ConfigurationError` if a text does not have `least` to `most` characters, or UTF-8 does not have them."""
    if not isinstance(value, str) or not least <= len(value) <= most or _has_surrogates(value):
        raise ConfigurationError(f"{field} = {shown(value)}: give a string of {least} to {most} characters")


def check_time(field: str, value: Any) -> None:
    """Raise `ConfigurationError` if a value is not a number of Unix seconds in the years 1 to 9999."""
    if not _is_time(value):
        raise ConfigurationError(f"{field}: {shown(value)} is not a time in the years 1 to 9999: give Unix seconds")


def _has_surrogates(text: str) -> bool:
    return not text.isascii() and _SURROGATE.search(text) is not None


def _is_time(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and EARLIEST <= value <= LATEST


def _refuse(constant: str) -> NoReturn:
    raise RecordError(f"{constant} is not JSON")


# `json.loads` with this argument would make a decoder at each call, and `decode` looks for white space around, which we
# do not write: it takes twice as long.
_SCAN = json.JSONDecoder(parse_constant=_refuse).scan_once  # type: ignore[attr-defined]  # documented in its source


def parse(value: bytes, *, most: int) -> dict[str, Any]:
    """Return the fields of the object in `value`. Raises `RecordError`, `UnknownVersion` for a newer version."""
    if len(value) > most:
        raise RecordError(f"longer than {most} bytes")
    try:
        text = value.decode()
        fields, end = _SCAN(text, 0)
    except RecordError:
        raise
    except (ValueError, RecursionError, MemoryError, StopIteration) as exc:
        raise RecordError("not JSON") from exc
    if end != len(text) or not isinstance(fields, dict):
        raise RecordError("not a JSON object")
    version = fields.get("v")
    if type(version) is not int:
        raise RecordError("no version")
    if version != VERSION:
        raise UnknownVersion(f"its version is {printable(version, 40)}, this member knows {VERSION}")
    return fields


def typed(fields: Mapping[str, Any], name: str, wanted: type) -> Any:
    """Return the field, which must be of exactly this type. Raises `RecordError`."""
    value = fields.get(name)
    if type(value) is not wanted:
        raise RecordError(f"bad {name!r}")
    return value


def instant(name: str, value: Any) -> float:
    """Return the field's value as Unix seconds. Raises `RecordError`, which names the field, if it is no date."""
    if not _is_time(value):
        raise RecordError(f"bad {name!r}: {shown(value)} is not a date in the years 1 to 9999")
    return float(value)


def to_json(value: Any) -> str:
    """Return `value` as JSON without white space. Raises what `json.dumps` raises."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
