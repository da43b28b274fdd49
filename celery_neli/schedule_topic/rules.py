"""A pause of many entries: one record of the schedule topic, for all entries, those of a tag, or those of a prefix.

It concerns whatever entry it fits, also one that is put later. Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any, Final

from celery_neli.exceptions import ConfigurationError, RecordError
from celery_neli.printable import printable_error
from celery_neli.schedule_topic import values
from celery_neli.schedule_topic.codec import MAX_NAME, MAX_SMALL

ALL: Final = "all"
TAG: Final = "tag"
PREFIX: Final = "prefix"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """A pause of many entries. Times are Unix seconds.

    `of`: "all", "tag" or "prefix", and `value` says which tag or prefix. `at`: when it was made, `by` whom, and why
    (`note`). `until`: when it ends or has ended, None: not by itself. `ended_by`: who ended it, "" if no one did.
    """

    id: str
    of: str
    value: str = ""
    at: float
    by: str
    note: str = ""
    until: float | None = None
    ended_by: str = ""

    def fits(self, name: str, tags: Collection[str]) -> bool:
        """Return True if it concerns an entry of this name and these tags."""
        if self.of == PREFIX:
            return name.startswith(self.value)
        return self.of == ALL or self.value in tags

    def holds(self, now: float) -> bool:
        """Return True if it has not ended."""
        return self.until is None or self.until > now

    @property
    def what(self) -> str:
        """Return what it pauses, in words."""
        return "all entries" if self.of == ALL else f"{self.of} {self.value!r}"

    @property
    def option(self) -> str:
        """Return the option of the command line that means it."""
        return "--all" if self.of == ALL else f"--{self.of} {self.value!r}"

    @property
    def line(self) -> str:
        """Return all of it in a line."""
        end = "until it is resumed"
        if self.until is not None:
            end = f"until {datetime.fromtimestamp(self.until, timezone.utc):%Y-%m-%d %H:%M:%S}Z"
        return f"{self.what} {end}, by {self.by}" + (f": {self.note}" if self.note else "")

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


def encode_pause(pause: Pause) -> bytes:
    """Return the record. Raises `ConfigurationError`, which names a field that no process could read."""
    _check(pause)
    fields = {name: value for name, value in asdict(pause).items() if name != "id" and value not in ("", None)}
    value = values.to_json({"v": values.VERSION, **fields}).encode()
    if len(value) > MAX_SMALL:
        raise ConfigurationError(f"note: the pause has {len(value)} bytes, {MAX_SMALL} are allowed: say less")
    return value


def decode_pause(name: str, value: bytes) -> Pause:
    """Return the pause in a record whose key ends with `name`. Raises `RecordError` and nothing else."""
    try:
        fields = values.parse(value, most=MAX_SMALL)
        until = fields.get("until")
        pause = Pause(
            id=name,
            of=values.typed(fields, "of", str),
            at=values.instant("at", fields.get("at")),
            until=None if until is None else values.instant("until", until),
            **{each: _text(fields, each) for each in ("value", "by", "note", "ended_by")},
        )
        _check(pause)
    except RecordError:
        raise
    except Exception as exc:
        raise RecordError(f"cannot be read: {printable_error(exc)}") from exc
    return pause


def _check(pause: Pause) -> None:
    if pause.of not in (ALL, TAG, PREFIX):
        raise ConfigurationError(f"of = {values.shown(pause.of)}: it must be all, tag or prefix")
    values.check_text(pause.of, pause.value, MAX_NAME, least=0 if pause.of == ALL else 1)
    values.check_text("by", pause.by, values.MAX_AUTHOR, least=0)
    values.check_text("ended_by", pause.ended_by, values.MAX_AUTHOR, least=0)
    values.check_text("note", pause.note, values.MAX_NOTE, least=0)
    values.check_time("at", pause.at)
    if pause.until is not None:
        values.check_time("until", pause.until)


def _text(fields: Mapping[str, Any], name: str) -> str:
    text: str = values.typed({name: "", **fields}, name, str)
    return text


def tags_of(options: Any) -> tuple[str, ...]:
    """Return the tags among the options of an entry."""
    tags = options.get("neli_tags") if isinstance(options, Mapping) else None
    return tuple(each for each in tags if isinstance(each, str)) if isinstance(tags, (list, tuple)) else ()
