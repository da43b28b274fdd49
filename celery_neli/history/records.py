"""The records of the history topic, as values and as bytes.

A value is a UTF-8 JSON object with a version, as in the leader topic. Its key is the name of the entry, so that all of
an entry is in one partition; the key of a worker's record is the worker's name. Reading is strict: what is not as
written here raises `RecordError`, and nothing else, whatever the bytes are. Fields that are not known are skipped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, NoReturn
from zlib import crc32

from celery_neli import hooks
from celery_neli.exceptions import RecordError, UnknownVersion
from celery_neli.kafka.topic_spec import HISTORY_PARTITIONS
from celery_neli.printable import printable, printable_error

VERSION: Final = 1
PARTITIONS: Final = HISTORY_PARTITIONS
MAX_BYTES: Final = 1 << 15
MAX_NAME: Final = 1 << 13  # characters of a name or an id; names in `beat_schedule` may have any length
MAX_ERROR: Final = hooks.MOST_OF_AN_ERROR
MAX_QUEUES: Final = 100  # of a worker
MAX_WHOLE: Final = 1 << 62
# Unix seconds: the years 1 to 9999, two days apart from their ends, so that every time zone has them.
EARLIEST: Final = -62135596800.0 + 172800.0
LATEST: Final = 253402300799.0 - 172800.0

OUTCOMES: Final = (hooks.SENT, hooks.FAILED, hooks.REFUSED, hooks.IN_DOUBT, hooks.SKIPPED, hooks.SENDING)

#: What `policy` says of slots that were not sent by a beat.
BACKFILL: Final = "backfill"
BY_HAND: Final = "by hand"

STARTED: Final = "started"
SUCCEEDED: Final = "succeeded"
FAILED: Final = "failed"
RETRIED: Final = "retried"  # it runs again: it asked for that, or its message went back to its queue
REVOKED: Final = "revoked"  # also: it had expired
REJECTED: Final = "rejected"  # its message was given back to the broker, not to its queue
IGNORED: Final = "ignored"  # it raised `Ignore`: its body did not run, or wants no result
STATES: Final = (STARTED, SUCCEEDED, FAILED, RETRIED, REVOKED, REJECTED, IGNORED)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotRecord:
    """What became of a slot, as the beat `member` tells. The fields are those of `hooks.SlotEvent`.

    Of a backfill, `member` is who began it, and `attempt` names one attempt to send the slot, from `SENDING` to what
    came of it; `over` is the attempt in doubt that this one is to replace (`fates`).
    """

    entry: str
    task: str
    slot: float | None
    outcome: str
    at: float
    member: str
    role: str = ""
    term: int | None = None
    id: str | None = None
    policy: str = ""
    count: int = 1
    first: float | None = None
    error: str = ""
    attempt: str = ""
    over: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """What the task of a slot did, as the `worker` tells that has it. `state` is one of `STATES`."""

    entry: str
    task: str
    slot: float | None
    id: str | None
    state: str
    at: float
    worker: str
    runtime: float | None = None
    retries: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRecord:
    """A worker that reports what the tasks of slots do has started; if `stopped`, it has ended."""

    worker: str
    at: float
    queues: tuple[str, ...] = ()
    stopped: bool = False


Record = SlotRecord | RunRecord | WorkerRecord

_KINDS: Final[Mapping[str, type[Record]]] = {"slot": SlotRecord, "run": RunRecord, "worker": WorkerRecord}
_quoted = json.encoder.encode_basestring_ascii
_to_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode  # `dumps` would make one each time


def key_of(record: Record) -> bytes:
    """Return the record's key. Any name has one."""
    return key(record.worker if isinstance(record, WorkerRecord) else record.entry)


def key(name: str) -> bytes:
    """Return the key of the records of an entry, or of a worker."""
    return name.encode("utf-8", "surrogatepass")


def partition_of(key: bytes) -> int:
    """Return the partition of the records with this key."""
    return crc32(key) % PARTITIONS


def encode(record: Record) -> bytes:
    """Return the record as bytes, without the fields that have their defaults. Raises `RecordError` if no reader would
    accept them.
    """
    kind, checks = _CHECKS[type(record)]
    told: dict[str, Any] = {"v": VERSION, "kind": kind}
    for name, default, check in checks:
        value = getattr(record, name)
        if value != default:
            told[name] = check(name, value)
    value = _to_json(told).encode()
    if len(value) > MAX_BYTES:
        raise RecordError(f"longer than {MAX_BYTES} bytes")
    return value


def encode_slot(event: hooks.SlotEvent, member: str) -> bytes:
    """Return what `encode` does of the record of a slot that was sent, in a fifth of the time. Raises as `encode`."""
    slot, at, term, id_ = event.slot, event.at, event.term, event.id
    plain = not event.policy and event.count == 1 and event.first is None and not event.error and event.role and member
    if not (
        plain
        and event.outcome == hooks.SENT
        and type(slot) is type(at) is float
        and EARLIEST <= slot <= LATEST
        and EARLIEST <= at <= LATEST
        and type(term) is int
        and 0 <= term <= MAX_WHOLE
        and type(id_) is type(event.entry) is type(event.task) is str
        and len(event.entry) + len(event.task) + len(event.role) + len(member) + len(id_) <= MAX_NAME >> 1
    ):
        return encode(slot_record(event, member))
    return (
        f'{{"v":{VERSION},"kind":"slot","entry":{_quoted(event.entry)},"task":{_quoted(event.task)},"slot":{slot!r},'
        f'"outcome":"sent","at":{at!r},"member":{_quoted(member)},"role":{_quoted(event.role)},"term":{term},'
        f'"id":{_quoted(id_)}}}'
    ).encode()


def slot_record(event: hooks.SlotEvent, member: str) -> SlotRecord:
    """Return the record that tells of an event; `member` is the name of the beat that tells it."""
    return SlotRecord(
        entry=event.entry, task=event.task, slot=event.slot, outcome=event.outcome, at=event.at, member=member,
        role=event.role, term=event.term, id=event.id, policy=event.policy, count=event.count, first=event.first,
        error=event.error,
    )  # fmt: skip


def decode(value: bytes | None) -> Record:
    """Return the record in `value`. Raises `UnknownVersion` if a newer version wrote it, else `RecordError` if it is no
    record.
    """
    found = _parse(value or b"")
    kind = found.get("kind")
    record = _KINDS.get(kind) if isinstance(kind, str) else None
    if record is None:
        raise RecordError("unknown kind")
    given = {name: check(name, found[name]) for name, _, check in _CHECKS[record][1] if name in found}
    try:
        return record(**given)
    except TypeError as exc:
        raise RecordError(f"a field is missing: {printable_error(exc)}") from None


def _refuse(constant: str) -> NoReturn:
    raise RecordError(f"{printable(constant)} is not JSON")


def _parse(value: bytes) -> dict[str, Any]:
    if len(value) > MAX_BYTES:
        raise RecordError(f"longer than {MAX_BYTES} bytes")
    try:
        found = json.loads(value.decode(), parse_constant=_refuse)
    except RecordError:
        raise
    except (ValueError, RecursionError, MemoryError) as exc:
        raise RecordError("not JSON") from exc
    if not isinstance(found, dict):
        raise RecordError("not a JSON object")
    version = found.get("v")
    if type(version) is not int:
        raise RecordError("no version")
    if version != VERSION:
        raise UnknownVersion(f"its version is {printable(version, 40)}, this process knows {VERSION}")
    return found


def _bad(name: str) -> RecordError:
    return RecordError(f"bad {name!r}")


def _text(name: str, value: Any, most: int = MAX_NAME) -> str:
    if type(value) is not str or len(value) > most:
        raise _bad(name)
    return value


def _error(name: str, value: Any) -> str:
    return _text(name, value, MAX_ERROR)


def _time(name: str, value: Any) -> float:
    if type(value) not in (int, float) or not EARLIEST <= value <= LATEST:
        raise _bad(name)
    return float(value)


def _seconds(name: str, value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value <= LATEST or not math.isfinite(value):
        raise _bad(name)
    return float(value)


def _whole(name: str, value: Any) -> int:
    if type(value) is not int or not 0 <= value <= MAX_WHOLE:
        raise _bad(name)
    return value


def _flag(name: str, value: Any) -> bool:
    if type(value) is not bool:
        raise _bad(name)
    return value


def _queues(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or len(value) > MAX_QUEUES:
        raise _bad(name)
    return tuple(_text(name, each) for each in value)


def _one_of(*known: str) -> Callable[[str, Any], str]:
    def check(name: str, value: Any) -> str:
        if type(value) is not str or value not in known:
            raise _bad(name)
        return value

    return check


def _or_none(check: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    return lambda name, value: None if value is None else check(name, value)


_FIELDS: Final[Mapping[str, Callable[[str, Any], Any]]] = {
    **dict.fromkeys(("entry", "task", "member", "role", "policy", "worker", "attempt", "over"), _text),
    **dict.fromkeys(("slot", "first"), _or_none(_time)),
    "id": _or_none(_text),
    "at": _time,
    "outcome": _one_of(*OUTCOMES),
    "state": _one_of(*STATES),
    "term": _or_none(_whole),
    "count": _whole,
    "retries": _whole,
    "runtime": _or_none(_seconds),
    "error": _error,
    "queues": _queues,
    "stopped": _flag,
}
#: Of each class, what its records are called, and of each field the name, the default and the check.
_CHECKS: Final[Mapping[type[Record], tuple[str, Sequence[tuple[str, Any, Callable[[str, Any], Any]]]]]] = {
    kind: (name, [(each.name, each.default, _FIELDS[each.name]) for each in fields(kind)])
    for name, kind in _KINDS.items()
}
