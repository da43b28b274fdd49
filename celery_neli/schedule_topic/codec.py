"""The records of the schedule topic: the state of an entry, its definition, a member's note; as values and as bytes.

A value is a UTF-8 JSON object with a version, as in the leader topic (records.py). The key says what it is and whose:
`s/<entry>`, `e/<entry>`, `m/<member>`, `p/<pause>`; without a value (a tombstone) it is deleted. Reading is strict:
what is not exactly as written here raises `RecordError`, and nothing else, whatever the bytes are; it is skipped alone.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import wraps
from typing import Any, Final, Literal, TypeAlias, TypeVar
from zlib import crc32

from celery_neli.exceptions import ConfigurationError, RecordError
from celery_neli.kafka.topic_spec import SCHEDULE_PARTITIONS
from celery_neli.printable import printable_error, shown
from celery_neli.schedule_topic import values

MAX_BYTES = 1 << 18  # of a definition; a message of Kafka's default limit, 1 MB, has room for it
MAX_SMALL = 1 << 12  # bytes of a state or a note; ours have some hundred
MAX_NAME = 512
MAX_KEY = 1 << 13  # bytes; names in `beat_schedule` may be longer than `MAX_NAME`, and every beat keeps what it reads
MAX_CHANGES = 20  # how many of its changes a definition remembers
MAX_VERSION = 64  # characters of the name of a version
REVISION_MOST = 1 << 53  # the highest revision of a definition
EPOCH_MOST = 1 << 53  # the highest epoch of a state; epochs come from Kafka's offsets, which stay far below it
RUNS_MOST = 1 << 53  # the highest count of runs that is written; readers accept higher ones
FAR_AHEAD = 86_400.0  # seconds; no last run further ahead of the clock is believed, unless the entry begins then
START_AHEAD = 3650 * 86_400.0  # the same for the time at which an entry begins, which may be ahead on purpose

Kind: TypeAlias = Literal["s", "e", "m", "p"]
_Value = TypeVar("_Value")
STATE: Final = "s"
ENTRY: Final = "e"
MEMBER: Final = "m"
PAUSE: Final = "p"  # a rule that pauses entries
ENTRY_PARTITIONS: Final = SCHEDULE_PARTITIONS - 1  # of definitions and states; the last one is for all others
NO_EPOCH: Final = -1  # of a state that no leader wrote, such as one that was imported: any leader's is higher
#: Fields of a definition that are written only if they say something, and what says nothing.
_OPTIONAL: Final = {"until": None, "owner": "", "version": "", "base": None, "revision": 0, "removed": False}
_PREFIXES: Mapping[bytes, Kind] = {b"s/": STATE, b"e/": ENTRY, b"m/": MEMBER, b"p/": PAUSE}


@dataclass(frozen=True, slots=True)
class State:
    """What an entry has come to. Times are Unix seconds.

    `epoch` orders the states of an entry, and the record calls it `term`: of two states, the one of the higher epoch
    counts. A leader takes the number of its term, and adds what makes it higher than every epoch that it has read: the
    numbers alone would not do, since entries move from shard to shard, and a new leader topic counts from 0.
    """

    last: float  # the last slot that is settled
    runs: int  # how often it ran (`total_run_count`)
    epoch: int
    since: float = 0.0  # the definition's `since` that it ran under, 0 for an entry of `beat_schedule`
    open: bool = False  # the leader's settled watermark does not cover this entry: `last` alone counts
    sent: float | None = None  # the last slot whose task was sent, if it must not overlap; later ones may be left out
    waits: bool = False  # a slot after `last` waits for that task, and none of them was given to the transport


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Who (`by`) did what to a definition, when (`at`, Unix seconds), and why (`note`, "" if they did not say)."""

    at: float
    by: str
    what: str
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """An entry made at runtime; or, `static`, the pause of one of `beat_schedule`, without task and schedule.

    `version` names this definition, and `base` the one that it replaces, whose `revision` is lower by one: if another
    one is there by then, it is void (versions.py), and its writer tries again or raises `Conflict`. A definition
    without `base` replaces whatever is there. One that is `removed` stands for an entry that is gone, until a beat
    deletes it.
    """

    task: str | None
    schedule: str | None  # its text
    args: list[Any] = field(default_factory=list)
    kwargs: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)  # of the message
    paused: bool = False
    since: float = 0.0  # when it was defined so (Unix seconds); its state refers to it
    static: bool = False
    changes: tuple[Change, ...] = ()  # oldest first, the last 20
    until: float | None = None  # when a pause ends by itself (Unix seconds)
    owner: str = ""  # of the file that it was applied from
    version: str = ""
    base: str | None = None  # "" if there was none
    revision: int = 0
    removed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """A member's schedule, and the name of its Celery app (None if an older release wrote the note)."""

    schedule: str  # its hash
    version: int | None  # its `neli_schedule_version`
    at: float  # when the member said so (Unix seconds)
    app: str | None = None


def succeeding(new: Definition, current: Definition | None) -> Definition:
    """Return `new` as what replaces `current` (None: there is no definition), under a version of its own."""
    return _after(replace(new, version=secrets.token_hex(8)), current)


def repaired(current: Definition) -> Definition:
    """Return the definition that counts, to be written again behind a void record: same version, next revision."""
    return _after(current, current)


def _after(new: Definition, current: Definition | None) -> Definition:
    if current is None:
        return replace(new, base="", revision=1)
    if current.revision >= REVISION_MOST:  # forged: no next one would be higher, so one that always counts ends that
        return replace(new, base=None, revision=1)
    return replace(new, base=current.version, revision=current.revision + 1)


def key_of(kind: Kind, name: str) -> bytes:
    """Return the record's key. Any name has one."""
    return f"{kind}/{name}".encode("utf-8", "surrogatepass")


def kind_of(key: bytes | None) -> tuple[Kind, str] | None:
    """Return what `key_of` made the key from, or None if it did not make this key."""
    kind = _PREFIXES.get((key or b"")[:2])
    if key is None or kind is None or len(key) > MAX_KEY:
        return None
    try:
        return kind, key[2:].decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return None


def partition_of(kind: Kind, name: str) -> int:
    """Return the partition of a record. A definition and its state stand in the same one, so that a process which
    changes an entry reads one of many; members' notes and pauses have one of their own.
    """
    if kind not in (ENTRY, STATE):
        return ENTRY_PARTITIONS
    return crc32(name.encode("utf-8", "surrogatepass")) % ENTRY_PARTITIONS


def check_name(name: object) -> str:
    """Return the name of a runtime entry as a plain string, if it may be one. Raises `ConfigurationError`."""
    if not isinstance(name, str) or not name.strip() or len(name) > MAX_NAME or not name.isprintable():
        raise ConfigurationError(f"name = {shown(name)}: give 1 to {MAX_NAME} printable characters")
    return name if type(name) is str else str.__str__(name)


def encode_state(state: State) -> bytes:
    """Return the state as bytes. Takes any finite numbers."""
    text = f'{{"v":{values.VERSION},"last":{state.last!r},"runs":{state.runs},"term":{state.epoch}'
    if state.since:
        text += f',"since":{state.since!r}'
    if state.sent is not None:
        text += f',"sent":{state.sent!r}'
    if state.waits:
        text += ',"waits":true'
    return (text + (',"open":true}' if state.open else "}")).encode()


def encode_note(note: Note) -> bytes:
    """Return the note as bytes."""
    fields = {"v": values.VERSION, "schedule": note.schedule, "version": note.version, "at": note.at}
    if note.app is not None:
        fields["app"] = note.app
    return values.to_json(fields).encode()


def encode_definition(definition: Definition) -> bytes:
    """Return the definition as bytes. Raises `ConfigurationError`, which names a field that no process could read."""
    if not isinstance(definition.args, (list, tuple)):
        raise ConfigurationError(f"args: {shown(definition.args)} is not a list")
    for name in ("kwargs", "options"):
        value = getattr(definition, name)
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise ConfigurationError(f"{name}: {shown(value)} is not a dict whose keys are strings")
    check_definition(definition)
    fields = {name: getattr(definition, name) for name in ("task", "schedule", "args", "kwargs", "options")}
    fields["changes"] = [_change_fields(each) for each in definition.changes[-MAX_CHANGES:]]
    parts: dict[str, str] = {}
    for name, value in fields.items():
        try:
            parts[name] = values.to_json(value)
        except (TypeError, ValueError, RecursionError) as exc:
            raise ConfigurationError(f"{name}: not JSON: {exc}") from None
    length = sum(map(len, parts.values()))
    if length > MAX_BYTES - 256:
        longest = max(parts, key=lambda name: len(parts[name]))
        raise ConfigurationError(
            f"{longest}: the definition has {length} bytes as JSON, {len(parts[longest])} of them here; "
            f"{MAX_BYTES >> 10} KiB are allowed: keep the data elsewhere, and pass where it is"
        )
    flags = values.to_json({
        "paused": definition.paused, "since": definition.since, "static": definition.static,
        **{name: value for name, default in _OPTIONAL.items() if (value := getattr(definition, name)) != default},
    })  # fmt: skip
    body = ",".join(f'"{name}":{text}' for name, text in parts.items())
    return f'{{"v":{values.VERSION},{body},{flags[1:]}'.encode()


def _change_fields(change: Change) -> dict[str, Any]:
    return {name: value for name, value in asdict(change).items() if name != "note" or value}


def check_definition(definition: Definition) -> None:
    """Check all that can be checked without an app. Raises `ConfigurationError`, which names the field."""
    if not definition.static:
        values.check_text("task", definition.task, values.MAX_TASK)
        values.check_text("schedule", definition.schedule, values.MAX_SCHEDULE)
    for name in ("args", "kwargs", "options"):
        if value := getattr(definition, name):
            values.check_plain(name, value)
    values.check_time("since", definition.since)
    if definition.until is not None:
        values.check_time("until", definition.until)
    values.check_text("owner", definition.owner, values.MAX_AUTHOR, least=0)
    for name in ("version", "base"):
        values.check_text(name, getattr(definition, name) or "", MAX_VERSION, least=0)
    for change in definition.changes:
        values.check_time("changes", change.at)
        values.check_text("changes", change.by, values.MAX_AUTHOR, least=0)
        values.check_text("changes", change.what, values.MAX_CHANGE, least=0)
        values.check_text("note", change.note, values.MAX_NOTE, least=0)


def _strictly(decoder: Callable[[bytes], _Value]) -> Callable[[bytes], _Value]:
    """Let a decoder raise `RecordError` only: an unforeseen exception must cost its own record alone."""

    @wraps(decoder)
    def decode_strictly(value: bytes) -> _Value:
        try:
            return decoder(value)
        except RecordError:
            raise
        except ConfigurationError as exc:
            raise RecordError(str(exc)) from None
        except Exception as exc:
            raise RecordError(f"cannot be read: {printable_error(exc)}") from exc

    return decode_strictly


@_strictly
def decode_state(value: bytes) -> State:
    """Return the state in `value`. Raises `RecordError`, `UnknownVersion` if a newer version wrote it. Takes 3 µs."""
    fields = values.parse(value, most=MAX_SMALL)
    last, runs, epoch = fields.get("last"), fields.get("runs"), fields.get("term")
    since, open_, sent = fields.get("since", 0.0), fields.get("open", False), fields.get("sent")
    # Types are compared, not asked for: bool is an int, and this is read a hundred thousand times.
    if type(runs) is not int or not 0 <= runs <= values.MAX_INT:
        raise RecordError("bad 'runs'")
    if type(epoch) is not int or not NO_EPOCH <= epoch <= EPOCH_MOST:
        raise RecordError("bad 'term'")
    if type(open_) is not bool:
        raise RecordError("bad 'open'")
    return State(
        last if type(last) is float and values.EARLIEST <= last <= values.LATEST else values.instant("last", last),
        runs,
        epoch,
        0.0 if since is None or since == 0 else values.instant("since", since),
        open_,
        None if sent is None else values.instant("sent", sent),
        waits=fields.get("waits") is True,
    )


@_strictly
def decode_definition(value: bytes) -> Definition:
    """Return the definition in `value`. Raises as `decode_state`, also for all that `encode_definition` refuses."""
    fields = values.parse(value, most=MAX_BYTES)
    static = values.typed(fields, "static", bool)
    definition = Definition(
        task=None if static else values.typed(fields, "task", str),
        schedule=None if static else values.typed(fields, "schedule", str),
        args=values.typed(fields, "args", list),
        kwargs=values.typed(fields, "kwargs", dict),
        options=values.typed(fields, "options", dict),
        paused=values.typed(fields, "paused", bool),
        since=values.instant("since", fields.get("since")),
        static=static,
        changes=tuple(map(_change, values.typed(fields, "changes", list)[-MAX_CHANGES:])),
        until=None if fields.get("until") is None else values.instant("until", fields["until"]),
        owner=_text(fields, "owner"),
        version=_text(fields, "version"),
        base=None if fields.get("base") is None else _text(fields, "base"),
        revision=_revision(fields.get("revision", 0)),
        removed=fields.get("removed") is True,
    )
    check_definition(definition)
    return definition


@_strictly
def decode_note(value: bytes) -> Note:
    """Return the note in `value`. Raises as `decode_state`."""
    fields = values.parse(value, most=MAX_SMALL)
    version = fields.get("version")
    if version is not None and (type(version) is not int or not 0 <= version <= values.MAX_INT):
        raise RecordError("bad 'version'")
    app = None if fields.get("app") is None else values.typed(fields, "app", str)
    at = values.instant("at", fields.get("at"))
    return Note(schedule=values.typed(fields, "schedule", str), version=version, at=at, app=app)


def outdated(value: bytes | None, by: bytes | None) -> bool:
    """Return True if a state that was read later, `value`, has a lower epoch than one read before, `by`: a leader
    that was frozen may write behind its successor. Tombstones and what cannot be read have no epoch.
    """
    if value is None or by is None:
        return False
    try:
        return decode_state(value).epoch < decode_state(by).epoch
    except RecordError:
        return False


def _revision(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= REVISION_MOST:
        raise RecordError("bad 'revision'")
    return value


def _change(value: Any) -> Change:
    if not isinstance(value, dict):
        raise RecordError("bad 'changes'")
    return Change(
        at=values.instant("changes", value.get("at")),
        by=values.typed(value, "by", str),
        what=values.typed(value, "what", str),
        note=_text(value, "note"),
    )


def _text(fields: Mapping[str, Any], name: str) -> str:
    text = fields.get(name, "")
    if type(text) is not str:
        raise RecordError(f"bad {name!r}")
    return text
