"""The records of the leader topic: claim, heartbeat (`beat`), release and request; and the journal that holds a role's.

Every reader must judge the same bytes alike (R9), so reading is strict: what is not exactly as specified here raises,
and every reader skips it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

from celery_neli.exceptions import RecordError, UnknownVersion
from celery_neli.printable import printable
from celery_neli.settings import MAX_LEASE

VERSION = 1
MAX_BYTES = 1 << 16
MAX_NAME = 512
MAX_DATA = 1 << 14  # characters of JSON: a claim that repeats the data of others must not outgrow `MAX_BYTES`
MAX_OFFER = MAX_DATA - 1024  # characters that an owner may put into its records; the rest is for what members add
MAX_BRACKETS = 64  # how deep a parser follows depends on its stack, so no reader may come near that limit
MAX_DIGITS = 40  # characters of an integer: the interpreter has a setting for how many it reads
_MAX_OFFSET = 1 << 62
IDLE = "idle"  # in a record's data: seconds since its author's owner last made progress, for the successor
IDLE_MOST = 3600.0
_ROOM = {IDLE: IDLE_MOST + 0.001}

Kind = Literal["claim", "beat", "release", "request"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One record of a role's journal (docs/protocol.md, "Records").

    `member` is its author, `seq` the author's own number for it, `lease` the seconds that it buys. `seen` is the offset
    of the last effective record that the author knew: -1 before the first, None in a blind claim, which names `end` in
    its place. `term` stands in heartbeats and releases; in a request it is the term to end, None for the present one.
    `to` (a member's name or identity, None for any member) stands in requests, `data` in all other records.
    """

    kind: Kind
    member: str
    seq: int
    lease: float
    seen: int | None = None
    term: int | None = None
    end: int | None = None
    data: Mapping[str, Any] | None = None
    to: str | None = None

    @property
    def blind(self) -> bool:
        """True for a claim by a member that found no certificate (R7)."""
        return self.kind == "claim" and self.seen is None

    @property
    def refers(self) -> int:
        """The highest offset that its author must have known of; a sound log holds it before this record (R9)."""
        end = None if self.end is None else self.end - 1
        return max(-1 if offset is None else offset for offset in (self.term, self.seen, end))


def encode(record: Record) -> bytes:
    """Return the bytes of `record`. Raises RecordError if no reader would accept them."""
    fields: dict[str, Any] = {"v": VERSION, "kind": record.kind, "member": record.member, "seq": record.seq}
    if record.kind == "request":
        fields.update({name: value for name, value in (("to", record.to), ("term", record.term)) if value is not None})
    else:
        fields.update(lease=record.lease, seen=record.seen)
        if record.kind != "claim":
            fields["term"] = record.term
        if record.blind:
            fields["end"] = record.end
        if record.data is not None:
            fields["data"] = record.data
    try:
        value = json.dumps(fields, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as exc:
        raise RecordError(f"not JSON: {exc}") from exc
    decode(value)
    return value


def sound(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of `data` as its readers will have it, for the records of a term to carry.

    Raises ValueError, which names the limit, unless a record can carry `data` together with what members add.
    """
    try:
        length = _length({**data})
        if length > MAX_OFFER:
            raise RecordError(f"they have {length} characters as JSON, and at most {MAX_OFFER} are allowed")
        record = decode(encode(Record(kind="claim", member="m/1", seq=0, lease=1.0, seen=-1, data={**data})))
    except (TypeError, ValueError, RecursionError) as exc:
        raise ValueError(f"no record can carry the data {printable(data)}: {exc}") from exc
    return _without_idle(record.data or {})


def repeatable(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a member repeats of `data` that were read: all but the `idle` of their author.

    The longest values are left out if the member's own `idle` would not fit: no member could read its heartbeats.
    """
    kept = _without_idle(data)
    while _length({**kept, **_ROOM}) > MAX_DATA:
        del kept[max(kept, key=lambda name: _length({name: kept[name]}))]
    return kept


def decode(value: bytes) -> Record:
    """Return the record in `value`.

    Raises `UnknownVersion` if a newer version of the protocol wrote it, else `RecordError` if it is not a record.
    """
    if len(value) > MAX_BYTES:
        raise RecordError(f"longer than {MAX_BYTES} bytes")
    if _brackets(value) > MAX_BRACKETS:
        raise RecordError(f"more than {MAX_BRACKETS} brackets")
    try:
        fields = json.loads(
            value.decode(), parse_constant=_finite, parse_float=_finite, parse_int=_short, object_pairs_hook=_once
        )
    except RecordError:
        raise
    except (ValueError, RecursionError) as exc:
        raise RecordError("not JSON") from exc
    if not isinstance(fields, dict):
        raise RecordError("not a JSON object")
    version = fields.get("v")
    if not isinstance(version, int) or isinstance(version, bool):
        raise RecordError("no version")
    if version != VERSION:
        raise UnknownVersion(f"its version is {version}, this member knows {VERSION}")
    kind: Any = fields.get("kind")
    if kind not in get_args(Kind):
        raise RecordError("unknown kind")
    if kind == "request":
        to = None if fields.get("to") is None else _name(fields, "to")
        term = None if fields.get("term") is None else _offset(fields, "term")
        return Record(
            kind=kind, member=_name(fields, "member"), seq=_offset(fields, "seq"), lease=0.0, to=to, term=term
        )
    seen = None if kind == "claim" and fields.get("seen", 0) is None else _offset(fields, "seen", least=-1)
    data = fields.get("data")
    if data is not None:
        _check_data(data)
    return Record(
        kind=kind,
        member=_name(fields, "member"),
        seq=_offset(fields, "seq"),
        lease=_lease(fields),
        seen=seen,
        term=None if kind == "claim" else _offset(fields, "term"),
        end=_offset(fields, "end") if seen is None else None,
        data=data,
    )


def _finite(number: str) -> float:
    """Return a number, but refuse one that is too large, and the constants that are not JSON (NaN, Infinity)."""
    value = float(number)
    if not math.isfinite(value):
        raise RecordError("a number is too large, or not JSON")
    return value


def _short(number: str) -> int:
    if len(number) > MAX_DIGITS:
        raise RecordError("an integer is too long")
    return int(number)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; refuse a key that stands twice, for readers would differ on which one counts."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise RecordError("a key stands twice")
    return fields


def _check_data(data: object) -> None:
    """Raise RecordError unless readers would accept a claim that repeats `data`, where escaped brackets count, too."""
    if not isinstance(data, dict):
        raise RecordError("bad 'data'")
    text = json.dumps(data)
    if len(text) > MAX_DATA:
        raise RecordError(f"its 'data' have more than {MAX_DATA} characters as JSON")
    if _brackets(text.encode()) >= MAX_BRACKETS:
        raise RecordError(f"its 'data' have more than {MAX_BRACKETS - 1} brackets")


def _length(data: Mapping[str, Any]) -> int:
    return len(json.dumps(data))


def _without_idle(data: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in data.items() if name != IDLE}


def _brackets(text: bytes) -> int:
    return text.count(b"[") + text.count(b"{")


def _name(fields: Mapping[str, Any], field: str) -> str:
    value = fields.get(field)
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME:
        raise RecordError(f"bad {field!r}")
    return value


def _offset(fields: Mapping[str, Any], field: str, least: int = 0) -> int:
    value = fields.get(field)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= _MAX_OFFSET:
        raise RecordError(f"bad {field!r}")
    return value


def _lease(fields: Mapping[str, Any]) -> float:
    value = fields.get("lease")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= MAX_LEASE:
        raise RecordError("bad 'lease'")
    return float(value)


# The journal of each role


@dataclass(frozen=True, slots=True)
class Started:
    """Reading starts: no next record of this role is before `offset`; `oldest`: the log holds nothing older."""

    role: int
    offset: int
    oldest: bool


@dataclass(frozen=True, slots=True)
class Entry:
    """One record of a role's journal; `key` is its author's name of the role, None if it gave none."""

    role: int
    offset: int
    value: bytes
    key: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class End:
    """All that was in the log at some moment since the last `Started`, `ask_end` or own append was read."""

    role: int


@dataclass(frozen=True, slots=True)
class Lost:
    """The position is gone from the log (truncated, expired, or a new topic); a `Started` follows by itself."""

    role: int
    reason: str


Event = Started | Entry | End | Lost


class Journal(Protocol):
    """The log of every role, as one member reads and appends it. Only the member's thread calls it."""

    def read(self, timeout: float) -> list[Event]:
        """Wait up to `timeout` seconds for events. Raises `TopicError` while the leader topic is missing or unfit."""

    def append(self, role: int, key: str, value: bytes) -> None:
        """Give a record to the producer. Never block and never raise: the rules bear the loss of a record."""

    def look_back(self, role: int) -> None:
        """Start again from further back in the same log; a `Started` with a lower offset follows."""

    def ask_end(self, role: int) -> None:
        """Return `End` once more, even if nothing new arrives."""

    def close(self) -> None:
        """Send what was appended, for about a second at most, and end."""
