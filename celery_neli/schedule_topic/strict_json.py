"""Strict and quick JSON for the records of the schedule topic."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

from celery_neli.exceptions import ConfigurationError, RecordError, UnknownVersion
from celery_neli.printable import printable
from celery_neli.schedule_topic.values import EARLIEST, LATEST

VERSION = 1
MAX_INT = 1 << 62


def _refuse(constant: str) -> NoReturn:
    raise RecordError(f"{constant} is not JSON")


# `json.loads` with this argument would make a decoder at each call, and `decode` looks for white space around, which we
# do not write: it takes twice as long.
_SCAN = json.JSONDecoder(parse_constant=_refuse).scan_once  # type: ignore[attr-defined]  # documented in its source


def read(value: bytes) -> dict[str, Any]:
    """The fields of the object in `value`. Raises `RecordError`, and `UnknownVersion` if a newer version wrote it."""
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
    """The field, of exactly this type. Raises `RecordError`."""
    value = fields.get(name)
    if type(value) is not wanted:
        raise RecordError(f"bad {name!r}")
    return value


def number(name: str, value: Any) -> float:
    """A finite number. Raises `RecordError`, which names the field."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -MAX_INT <= value <= MAX_INT:
        raise RecordError(f"bad {name!r}")
    return float(value)


def instant(name: str, value: Any) -> float:
    """Return the field's value as Unix seconds. Raises `RecordError`, which names the field, if it is no date."""
    seconds = number(name, value)
    if not EARLIEST <= seconds <= LATEST:
        raise RecordError(f"bad {name!r}: {value!r} is not a date in the years 1 to 9999")
    return seconds


def spell(value: Any) -> str:
    """As JSON, without white space. Raises what `json.dumps` raises."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def spell_field(name: str, value: Any) -> str:
    """As JSON. Raises `ConfigurationError`, which names the field that a user gave."""
    try:
        return spell(value)
    except (TypeError, ValueError, RecursionError) as exc:
        raise ConfigurationError(f"{name}: not JSON: {exc}") from None
