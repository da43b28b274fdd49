"""Taking over a schedule that another scheduler keeps: what is carried over, and what is not and why.

A source (`importing_redbeat`, `importing_django`, `importing_file`) says what it has. All of it is checked first, then
written: an entry as a runtime entry, when and how often it ran as its state. So the slots that came since its last run
are missed ones, subject to the misfire policy, as if there had been no move: none is lost, none runs twice. Of an entry
that `beat_schedule` has, the state alone is carried over.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery.utils.time import maybe_make_aware

from celery_neli.exceptions import ConfigurationError, NeliError, RecordError
from celery_neli.periodic.definition import check_comes, define
from celery_neli.printable import printable_error
from celery_neli.schedule_topic.codec import (
    ENTRY,
    NO_TERM,
    STATE,
    Change,
    Definition,
    State,
    decode_state,
    encode_definition,
    encode_state,
)
from celery_neli.schedule_topic.values import check_time, shown

if TYPE_CHECKING:
    from celery_neli.periodic.editor import Record, ScheduleEditor

__all__ = ["Found", "LeftOut", "Row", "Source", "carry_over", "of_entry", "plan", "source_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An entry of a source. Times are Unix seconds.

    `last`: its last run, None if it never ran. `since`: from when on its slots count, where that is not its last run.
    `notes`: what is different from now on.
    """

    name: str
    task: Any
    schedule: Any
    args: Any = ()
    kwargs: Any = None
    options: Any = None
    paused: bool = False
    last: float | None = None
    runs: int = 0
    since: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """An entry of a source that cannot be carried over, and why."""

    name: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What a scheduler keeps. `mirrors`: nothing but entries of `beat_schedule`. `warning`: what to know of it now."""

    what: str
    entries: Sequence[Found | LeftOut]
    mirrors: bool = False
    warning: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What becomes of one entry. `action`: added, replaced, state (alone), kept (as it is here) or left out."""

    name: str
    action: str
    schedule: str | None = None
    last: float | None = None
    runs: int = 0
    notes: tuple[str, ...] = ()
    records: tuple[Record, ...] = field(default=(), repr=False)


def plan(source: Source, editor: ScheduleEditor, *, replacing: bool = False) -> list[Row]:
    """What becomes of each entry of the source, in its order; its `records` are to be written, all of them or none.

    Reads the schedule topic (blocks); writes nothing. ``replacing``: entries that are here already are replaced.
    """
    editor.known  # noqa: B018 - read it now: what Kafka raises concerns no single entry
    return [
        Row(name=found.name, action="left out", notes=(found.why,))
        if isinstance(found, LeftOut)
        else _row_of(source, editor, found, replacing)
        for found in source.entries
    ]


def source_of(app: Any, kind: str, path: Path | None = None, *, trust: Collection[str] = ()) -> Source:
    """What a source has: ``kind`` is "redbeat", "django" or "file" (at ``path``, with classes to ``trust``). Blocks;
    raises `NeliError`.
    """
    if kind == "redbeat":
        from celery_neli.periodic.importers import redbeat as importing_redbeat

        return importing_redbeat.read(app)
    if kind == "django":
        from celery_neli.periodic.importers import django as importing_django

        return importing_django.read(app)
    from celery_neli.periodic.importers import shelf as importing_file

    return importing_file.read(app, path or Path(app.conf.beat_schedule_filename), trust=trust)


def carry_over(source: Source, editor: ScheduleEditor, *, replacing: bool = False, dry_run: bool = False) -> list[Row]:
    """`plan`, and then write it, unless it is a ``dry_run``. Blocks."""
    rows = plan(source, editor, replacing=replacing)
    if not dry_run:
        editor.write([record for row in rows for record in row.records])
    return rows


def _row_of(source: Source, editor: ScheduleEditor, found: Found, replacing: bool) -> Row:
    try:
        for field, at in (("last", found.last), ("since", found.since)):
            if at is not None:
                check_time(field, at)
        return _row(source, editor, found, replacing)
    except Exception as exc:  # noqa: BLE001 - of somebody's classes: it costs this entry alone
        return Row(name=str(found.name), action="left out", notes=(_why(exc),))


def _row(source: Source, editor: ScheduleEditor, found: Found, replacing: bool) -> Row:
    if found.name in editor.refused:
        return _left_out(found, f"beat_schedule has it, and leaves it out: {editor.refused[found.name]}")
    if found.name in editor.static:
        return _of_static(source, editor, found)
    if source.mirrors:
        return _left_out(found, "beat_schedule has no such entry any more")
    old = editor.runtime(found.name)
    if found.name in editor.known.unreadable:
        return _left_out(found, f"the entry here cannot be read: {editor.known.unreadable[found.name]}")
    if old is not None and not replacing:
        return Row(name=found.name, action="kept", schedule=old.schedule, notes=("is here already; see --replace",))
    since = next(each for each in (found.since, found.last, editor.now) if each is not None)
    try:
        new = define(
            editor.app, found.name, found.task, found.schedule, args=found.args, kwargs=found.kwargs,
            options=found.options,
        )  # fmt: skip
        check_comes(new, editor.app, after=since)
    except ConfigurationError as exc:
        return _left_out(found, str(exc))
    changes = (*(old.changes if old else ()), _change(source, editor))
    definition = replace(new, since=since, paused=found.paused, changes=changes)
    # Its state first: a beat that leads keeps it for the entry that follows, and has one of its own from then on.
    records = [*_state(editor, found, since=since), (ENTRY, found.name, encode_definition(definition))]
    return Row(
        name=found.name,
        action="added" if old is None else "replaced",
        schedule=new.schedule,
        last=found.last,
        runs=found.runs,
        notes=(*(("paused",) if found.paused else ()), *found.notes),
        records=tuple(records),
    )


def _of_static(source: Source, editor: ScheduleEditor, found: Found) -> Row:
    """Its state; and, as a definition, its pause and from when on its slots count if it has a state here already."""
    records = _state(editor, found, since=0.0)
    here, old = editor.known.states.get(found.name), editor.known.definitions.get(found.name)
    behind = here is not None and found.last is not None and here.last < found.last
    notes = ["is in beat_schedule"]
    if old is not None and not old.static:
        return _left_out(found, "is in beat_schedule, and was put at runtime, too: remove the latter first")
    pause = old or Definition(task=None, schedule=None, static=True)
    since = max(pause.since, found.last or 0.0) if behind else pause.since
    new = replace(pause, paused=pause.paused or found.paused, since=since)
    if new != pause:
        new = replace(new, changes=(*new.changes, _change(source, editor)))
        records.append((ENTRY, found.name, encode_definition(new)))
    if found.paused:
        notes.append("paused")
    return Row(
        name=found.name,
        action="state" if records else "kept",
        last=found.last,
        runs=found.runs,
        notes=tuple(notes),
        records=tuple(records),
    )


def _state(editor: ScheduleEditor, found: Found, *, since: float) -> list[Record]:
    """The state to write: none if it never ran, or has a state here: that one is newer, or `since` says the same."""
    if found.last is None or found.name in editor.known.states:
        return []
    state = encode_state(State(last=found.last, runs=found.runs, term=NO_TERM, since=since, open=True))
    try:
        decode_state(state)  # what cannot be read is not written
    except RecordError:
        raise ConfigurationError(f"its count is none: {shown(found.runs)}") from None
    return [(STATE, found.name, state)]


def _left_out(found: Found, why: str) -> Row:
    return Row(name=found.name, action="left out", last=found.last, runs=found.runs, notes=(why,))


def _change(source: Source, editor: ScheduleEditor) -> Change:
    return Change(at=editor.now, by=editor.by, what=f"imported from {source.what}")


def _why(exc: Exception) -> str:
    """Why an entry is left out, in one line."""
    return str(exc) if isinstance(exc, NeliError) else f"cannot be read: {printable_error(exc)}"


def seconds(at: datetime | None) -> float | None:
    """A time as Celery keeps it (a naive one is UTC), in Unix seconds."""
    return None if at is None else maybe_make_aware(at).timestamp()


def of_entry(entry: Any, *, name: str | None = None, paused: bool = False, app: Any = None) -> Found | LeftOut:
    """Return a Celery entry as `Found`, or `LeftOut` for anything else. ``name`` is what its source calls it; ``app``
    is for an entry that has none.
    """
    try:
        if app is not None:
            entry.app = entry.schedule.app = app
        return _of_entry(entry, paused=paused)
    except Exception as exc:  # noqa: BLE001 - whatever is stored there: it costs this entry alone
        return LeftOut(name=str(name or getattr(entry, "name", "?")), why=f"is not an entry of Celery's: {_why(exc)}")


def _of_entry(entry: Any, *, paused: bool) -> Found:
    options: Mapping[str, Any] = entry.options or {}
    arguments: Iterable[Any] = entry.args or ()
    return Found(
        name=entry.name,
        task=entry.task,
        schedule=entry.schedule,
        args=list(arguments),
        kwargs=entry.kwargs or {},
        options=options,
        paused=paused,
        last=seconds(entry.last_run_at),
        runs=entry.total_run_count or 0,
    )
