"""What plain text means in YAML: one thing in version 1.1, which PyYAML reads, and often another in version 1.2.

Text such as `on`, `010` or `1e3` is a `Doubt`: a file that has it must say what is meant. Pure; loads PyYAML.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal

import yaml

Meaning = Literal["str", "null", "bool", "int", "float", "timestamp"]
#: The core schema of YAML 1.2.
_CORE: Final[tuple[tuple[Meaning, re.Pattern[str]], ...]] = (
    ("null", re.compile(r"(?:~|null|Null|NULL|)\Z")),
    ("bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")),
    ("int", re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z")),
    (
        "float",
        re.compile(
            r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
        ),
    ),
)
_TAG: Final = "tag:yaml.org,2002:"
_OLD: Final[Any] = yaml.SafeLoader.yaml_implicit_resolvers  # by the first character
#: Numbers to the base of 60 in version 1.1: ports and times of the day, to everybody who writes them.
_SEXAGESIMAL: Final = re.compile(r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?\Z")
_LEADING_ZERO: Final = re.compile(r"[-+]?0[0-9]+\Z")
_DATE: Final = "{__type__: datetime, __value__: '2026-12-01T10:00:00+00:00'}"


@dataclass(frozen=True, slots=True)
class Doubt:
    """Plain text that not every reader of YAML understands alike, or no number that JSON has. `why`: what to write."""

    why: str


@lru_cache(maxsize=4096)
def is_text(text: str) -> bool:
    """Return True if plain text is the same text to every reader of YAML."""
    return _old(text) == _core(text) == "str"


@lru_cache(maxsize=4096)
def meaning_of(text: str) -> Any:
    """Return the value of plain text: None, a bool, a number or text; or a `Doubt`."""
    old, core = _old(text), _core(text)
    if old != core or _LEADING_ZERO.match(text):
        return text if old == "str" == core or _SEXAGESIMAL.match(text) else _doubt(text, old)
    if core == "null":
        return None
    if core == "bool":
        return text.lower() == "true"
    try:
        if core == "int":
            return int(text, 16 if text.startswith("0x") else 10)
        if core == "float":
            number = float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
            return number if abs(number) < float("inf") else Doubt(f"{text}: give a finite number, or null")
    except ValueError as exc:  # of some thousand digits
        return Doubt(f"not a number that can be read: {exc}")
    return text


def _old(text: str) -> Meaning:
    for tag, pattern in _OLD.get(text[:1], ()):
        if pattern.match(text):
            found: Any = tag.removeprefix(_TAG)
            return "str" if found in ("value", "merge") else found  # they mean something in keys only
    return "str"


def _core(text: str) -> Meaning:
    return next((meaning for meaning, pattern in _CORE if pattern.match(text)), "str")


def _doubt(text: str, old: Meaning) -> Doubt:
    if old == "bool":
        truth = "true" if text.lower() in ("yes", "on") else "false"
        return Doubt(
            f"{text} is {truth} to some readers of YAML and text to others: write {truth}, or '{text}' in quotes"
        )
    if old == "timestamp":
        return Doubt(
            f"{text} is a date to some readers of YAML and text to others: write '{text}' in quotes for text, or "
            f"{_DATE} for a datetime"
        )
    return Doubt(
        f"readers of YAML differ on what {text} is: write a plain number, such as 1000 or 0.5, or '{text}' in quotes"
    )
