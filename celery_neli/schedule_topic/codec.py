"""The records of the schedule topic: the state of an entry, its definition, a member's note; as values and as bytes.

A value is a UTF-8 JSON object with a version, as in the leader topic (records.py). The key says what it is and whose:
`s/<entry>`, `e/<entry>`, `m/<member>`; without a value (a tombstone) it is deleted. Reading is strict: what is not
exactly as written here raises `RecordError`, and nothing else, whatever the bytes are; it is skipped alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Final, Literal, TypeAlias, TypeVar

from celery_neli.exceptions import ConfigurationError, RecordError
from celery_neli.printable import printable_error
from celery_neli.schedule_topic.strict_json import (
    MAX_INT,
    VERSION,
    instant,
    number,
    read,
    spell,
    spell_field,
    typed,
)
from celery_neli.schedule_topic.values import EARLIEST, LATEST, check_definition, shown

MAX_BYTES = 1 << 18
"""Of a definition. A message of Kafka's default limit, 1 MB, has room for it."""
MAX_SMALL = 1 << 12
"""Bytes of a state or a note; ours have some hundred."""
MAX_NAME = 512
RANK_MOST = 1 << 53
"""The highest term that a state may have. Ranks come from Kafka's offsets, which stay far below it."""
RUNS_MOST = 1 << 53
"""The highest count of runs that is written. Readers accept higher ones."""
FAR_AHEAD = 86_400.0
"""Seconds. A last run that is further ahead of the reader's clock is not believed, unless the entry begins then."""
START_AHEAD = 3650 * 86_400.0
"""Seconds. The same for the time at which an entry begins, which may be ahead on purpose."""
MAX_KEY = 1 << 13
"""Bytes. The names of `beat_schedule` may be longer than `MAX_NAME`, and everybody keeps the names that it reads."""
MAX_CHANGES = 20
"""How many of its changes a definition remembers."""

Kind: TypeAlias = Literal["s", "e", "m"]
_Value = TypeVar("_Value")
STATE: Final = "s"
ENTRY: Final = "e"
MEMBER: Final = "m"
NO_TERM: Final = -1
"""The term of a state that no leader wrote, such as one that was imported: any leader's is higher."""
_PREFIXES: Mapping[bytes, Kind] = {b"s/": STATE, b"e/": ENTRY, b"m/": MEMBER}


@dataclass(frozen=True, slots=True)
class State:
    """What an entry has come to. Times are Unix seconds.

    `last`: the last slot that is settled. `runs`: how often it ran (`total_run_count`). `term`: of the leader that
    wrote this; the higher one wins. `since`: the definition's `since` that it ran under, 0 for an entry of
    `beat_schedule`. `open`: the leader's `done` mark does not cover this entry: `last` alone counts. `sent`: the last
    slot whose task was sent, where somebody asks whether that has finished; slots may have been left out since.
    """

    last: float
    runs: int
    term: int
    since: float = 0.0
    open: bool = False
    sent: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """That somebody (`by`) did something (`what`) to a definition, and when (`at`, Unix seconds)."""

    at: float
    by: str
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """An entry made at runtime; or, `static`, the pause of one of `beat_schedule`, which has neither task nor schedule.

    `schedule` is its text. `options` are those of the message. `since`: when it was defined so (Unix seconds); its
    state refers to it. Of `changes`, oldest first, the last 20 are kept.
    """

    task: str | None
    schedule: str | None
    args: list[Any] = field(default_factory=list)
    kwargs: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    paused: bool = False
    since: float = 0.0
    static: bool = False
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Which schedule a member has: its hash, its `neli_schedule_version` if it has one, when it said so (Unix
    seconds), and the name of its Celery app (None if that has none, or an older release wrote the note).
    """

    schedule: str
    version: int | None
    at: float
    app: str | None = None


def key_of(kind: Kind, name: str) -> bytes:
    """The record's key. Any name has one."""
    return f"{kind}/{name}".encode("utf-8", "surrogatepass")


def kind_of(key: bytes | None) -> tuple[Kind, str] | None:
    """What `key_of` made the key from; None: another made it."""
    kind = None if key is None else _PREFIXES.get(key[:2])
    if key is None or kind is None or len(key) > MAX_KEY:
        return None
    try:
        return kind, key[2:].decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return None


def partition_of(kind: Kind) -> int:
    """Where its records are: members apart, so that they can be read without the entries."""
    return 1 if kind == MEMBER else 0


def check_name(name: object) -> str:
    """Return the name of a runtime entry as a plain string, if it may be one. Raises `ConfigurationError`."""
    if not isinstance(name, str) or not name.strip() or len(name) > MAX_NAME or not name.isprintable():
        raise ConfigurationError(f"name = {shown(name)}: give 1 to {MAX_NAME} printable characters")
    return name if type(name) is str else str.__str__(name)


def encode_state(state: State) -> bytes:
    """Its bytes, few of them. Takes any finite numbers."""
    text = f'{{"v":{VERSION},"last":{state.last!r},"runs":{state.runs},"term":{state.term}'
    if state.since:
        text += f',"since":{state.since!r}'
    if state.sent is not None:
        text += f',"sent":{state.sent!r}'
    return (text + (',"open":true}' if state.open else "}")).encode()


def encode_note(note: Note) -> bytes:
    """Its bytes."""
    fields = {"v": VERSION, "schedule": note.schedule, "version": note.version, "at": note.at}
    if note.app is not None:
        fields["app"] = note.app
    return spell(fields).encode()


def encode_definition(definition: Definition) -> bytes:
    """Return its bytes. Raises `ConfigurationError`, which names a field that no process could read or send, or that is
    too long.

    What is written can be read: `decode_definition` makes the same check.
    """
    if not isinstance(definition.args, (list, tuple)):
        raise ConfigurationError(f"args: {shown(definition.args)} is not a list")
    for name in ("kwargs", "options"):
        value = getattr(definition, name)
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise ConfigurationError(f"{name}: {shown(value)} is not a dict whose keys are strings")
    check_definition(definition)
    parts = {
        name: spell_field(name, getattr(definition, name)) for name in ("task", "schedule", "args", "kwargs", "options")
    }
    changes = [{"at": each.at, "by": each.by, "what": each.what} for each in definition.changes[-MAX_CHANGES:]]
    parts["changes"] = spell_field("changes", changes)
    length = sum(map(len, parts.values()))
    if length > MAX_BYTES - 256:
        longest = max(parts, key=lambda name: len(parts[name]))
        raise ConfigurationError(
            f"{longest}: the definition has {length} bytes as JSON, {len(parts[longest])} of them here; "
            f"{MAX_BYTES >> 10} KiB are allowed: keep the data elsewhere, and pass where it is"
        )
    flags = spell({"paused": definition.paused, "since": definition.since, "static": definition.static})
    body = ",".join(f'"{name}":{text}' for name, text in parts.items())
    return f'{{"v":{VERSION},{body},{flags[1:]}'.encode()


def _alone(decoder: Callable[[bytes], _Value]) -> Callable[[bytes], _Value]:
    """Let a decoder raise `RecordError` only: an unforeseen exception must cost its own record alone."""

    @wraps(decoder)
    def decode_alone(value: bytes) -> _Value:
        try:
            return decoder(value)
        except RecordError:
            raise
        except Exception as exc:
            raise RecordError(f"cannot be read: {printable_error(exc)}") from exc

    return decode_alone


@_alone
def decode_state(value: bytes) -> State:
    """The state in `value`. Raises `RecordError`, and `UnknownVersion` if a newer version wrote it. Takes some 3 µs."""
    if len(value) > MAX_SMALL:
        raise RecordError(f"longer than {MAX_SMALL} bytes")
    fields = read(value)
    try:
        last, runs, term = fields["last"], fields["runs"], fields["term"]
    except KeyError as exc:
        raise RecordError(f"no {exc.args[0]!r}") from None
    since, open_, sent = fields.get("since", 0.0), fields.get("open", False), fields.get("sent")
    # Types are compared, not asked for: bool is an int, and this is read a hundred thousand times.
    if type(runs) is not int or type(term) is not int or not 0 <= runs <= MAX_INT or not -1 <= term <= RANK_MOST:
        raise RecordError("bad 'runs' or 'term'")
    if type(open_) is not bool:
        raise RecordError("bad 'open'")
    return State(
        last if type(last) is float and EARLIEST <= last <= LATEST else instant("last", last),
        runs,
        term,
        0.0 if since is None or since == 0 else instant("since", since),
        open_,
        None if sent is None else instant("sent", sent),
    )


@_alone
def decode_definition(value: bytes) -> Definition:
    """The definition in `value`. Raises as `decode_state`, also for all that `encode_definition` refuses."""
    if len(value) > MAX_BYTES:
        raise RecordError(f"longer than {MAX_BYTES} bytes")
    fields = read(value)
    static = typed(fields, "static", bool)
    for name in () if static else ("task", "schedule"):
        if not typed(fields, name, str):
            raise RecordError(f"bad {name!r}")
    kwargs, options = typed(fields, "kwargs", dict), typed(fields, "options", dict)
    definition = Definition(
        task=None if static else fields["task"],
        schedule=None if static else fields["schedule"],
        args=typed(fields, "args", list),
        kwargs=kwargs,
        options=options,
        paused=typed(fields, "paused", bool),
        since=instant("since", fields.get("since")),
        static=static,
        changes=tuple(map(_change, typed(fields, "changes", list)[-MAX_CHANGES:])),
    )
    try:
        check_definition(definition)
    except ConfigurationError as exc:
        raise RecordError(str(exc)) from None
    return definition


@_alone
def decode_note(value: bytes) -> Note:
    """The note in `value`. Raises as `decode_state`."""
    if len(value) > MAX_SMALL:
        raise RecordError(f"longer than {MAX_SMALL} bytes")
    fields = read(value)
    version = fields.get("version")
    if version is not None and (type(version) is not int or not 0 <= version <= MAX_INT):
        raise RecordError("bad 'version'")
    app = None if fields.get("app") is None else typed(fields, "app", str)
    at = instant("at", fields.get("at"))
    return Note(schedule=typed(fields, "schedule", str), version=version, at=at, app=app)


_DECODERS: Mapping[Kind, Callable[[bytes], State | Definition | Note]] = {
    STATE: decode_state,
    ENTRY: decode_definition,
    MEMBER: decode_note,
}


def decode(kind: Kind, value: bytes) -> State | Definition | Note:
    """What is in the value of a record of this kind. Raises as `decode_state`."""
    return _DECODERS[kind](value)


def outdated(value: bytes | None, by: bytes | None) -> bool:
    """Whether a state that was read later in the log, `value`, is of an older term than one read before, `by`.

    A leader that was frozen may write behind its successor. Tombstones and what cannot be read have no term.
    """
    if value is None or by is None:
        return False
    try:
        return decode_state(value).term < decode_state(by).term
    except RecordError:
        return False


def _change(value: Any) -> Change:
    if not isinstance(value, dict):
        raise RecordError("bad 'changes'")
    return Change(at=number("changes", value.get("at")), by=typed(value, "by", str), what=typed(value, "what", str))
