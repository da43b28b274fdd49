"""Import the schedule of another scheduler: check all of its entries, then write all that can be imported, or nothing.

An entry becomes a runtime entry; when and how often it ran becomes its state. So the slots since its last run are
missed ones, and the misfire policy applies to them as if there had been no move: none is lost, none runs twice. If
`beat_schedule` has an entry, too, only its state and its pause are imported.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery_neli.exceptions import ConfigurationError, NeliError, RecordError
from celery_neli.periodic.definition import check_comes, define
from celery_neli.periodic.importers import Found, LeftOut, Source
from celery_neli.printable import printable_error
from celery_neli.schedule_topic.codec import (
    ENTRY,
    NO_TERM,
    STATE,
    Definition,
    State,
    decode_state,
    encode_definition,
    encode_state,
)
from celery_neli.schedule_topic.values import check_time, shown

if TYPE_CHECKING:
    from celery_neli.periodic.editor import Record, ScheduleEditor

__all__ = ["Row", "carry_over", "plan", "source_of"]


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


def source_of(app: Any, kind: str, path: Path | None = None, *, trust: Collection[str] = ()) -> Source:
    """Return what a source has: "redbeat", "django" or "file" (at ``path``, with classes to ``trust``).

    Blocks. Raises `NeliError` if the source cannot be read.
    """
    if kind == "redbeat":
        from celery_neli.periodic.importers import redbeat

        return redbeat.read(app)
    if kind == "django":
        from celery_neli.periodic.importers import django

        return django.read(app)
    from celery_neli.periodic.importers import shelf

    return shelf.read(app, path or Path(app.conf.beat_schedule_filename), trust=trust)


def carry_over(source: Source, editor: ScheduleEditor, *, replacing: bool = False, dry_run: bool = False) -> list[Row]:
    """Write what `plan` returns, unless it is a ``dry_run``. Blocks."""
    rows = plan(source, editor, replacing=replacing)
    if not dry_run:
        editor.write([record for row in rows for record in row.records])
    return rows


def plan(source: Source, editor: ScheduleEditor, *, replacing: bool = False) -> list[Row]:
    """Return what becomes of each entry of the source, in its order, with the records to write.

    Reads the schedule topic (blocks) and writes nothing. With ``replacing``, entries that are here already are
    replaced.
    """
    editor.known  # noqa: B018 - read it now: an error of Kafka concerns no single entry
    return [
        Row(name=found.name, action="left out", notes=(found.why,))
        if isinstance(found, LeftOut)
        else _row_of(source, editor, found, replacing)
        for found in source.entries
    ]


def _row_of(source: Source, editor: ScheduleEditor, found: Found, replacing: bool) -> Row:
    try:
        for name, at in (("last", found.last), ("since", found.since)):
            if at is not None:
                check_time(name, at)
        if found.name in editor.refused:
            return _left_out(found, f"beat_schedule has it, and leaves it out: {editor.refused[found.name]}")
        if found.name in editor.static:
            return _of_static(source, editor, found)
        if source.mirrors:
            return _left_out(found, "beat_schedule has no such entry any more")
        return _of_runtime(source, editor, found, replacing)
    except Exception as exc:  # noqa: BLE001 - a class of the source may raise anything; only this entry is left out
        why = str(exc) if isinstance(exc, NeliError) else f"cannot be read: {printable_error(exc)}"
        return Row(name=str(found.name), action="left out", notes=(why,))


def _of_runtime(source: Source, editor: ScheduleEditor, found: Found, replacing: bool) -> Row:
    old = editor.runtime(found.name)
    if found.name in editor.known.unreadable:
        return _left_out(found, f"the entry here cannot be read: {editor.known.unreadable[found.name]}")
    if old is not None and not replacing:
        return Row(name=found.name, action="kept", schedule=old.schedule, notes=("is here already; see --replace",))
    since = next(each for each in (found.since, found.last, editor.now) if each is not None)
    try:
        new, entry = define(
            editor.app, found.name, found.task, found.schedule, args=found.args, kwargs=found.kwargs,
            options=found.options,
        )  # fmt: skip
        check_comes(str(new.schedule), entry.schedule, after=since)
        changes = old.changes if old else ()
        new = editor.changed(replace(new, since=since, paused=found.paused, changes=changes), _what(source))
        definition = encode_definition(new)
    except ConfigurationError as exc:
        return _left_out(found, str(exc))
    return Row(
        name=found.name,
        action="added" if old is None else "replaced",
        schedule=new.schedule,
        last=found.last,
        runs=found.runs,
        notes=(*(("paused",) if found.paused else ()), *found.notes),
        # The state comes first: a leading beat would make one of its own for a definition without a state.
        records=(*_state(editor, found, since=since), (ENTRY, found.name, definition)),
    )


def _of_static(source: Source, editor: ScheduleEditor, found: Found) -> Row:
    """Return the state of an entry of `beat_schedule`; and its pause, and the time after which its slots count if it
    has a state here already, as a definition.
    """
    records = _state(editor, found, since=0.0)
    here, old = editor.known.states.get(found.name), editor.known.definitions.get(found.name)
    behind = here is not None and found.last is not None and here.last < found.last
    if old is not None and not old.static:
        return _left_out(found, "is in beat_schedule, and was put at runtime, too: remove the latter first")
    pause = old or Definition(task=None, schedule=None, static=True)
    since = max(pause.since, found.last or 0.0) if behind else pause.since
    new = replace(pause, paused=pause.paused or found.paused, since=since)
    if new != pause:
        records.append((ENTRY, found.name, encode_definition(editor.changed(new, _what(source)))))
    return Row(
        name=found.name,
        action="state" if records else "kept",
        last=found.last,
        runs=found.runs,
        notes=("is in beat_schedule", *(("paused",) if found.paused else ())),
        records=tuple(records),
    )


def _state(editor: ScheduleEditor, found: Found, *, since: float) -> list[Record]:
    """Return the state to write: none if the entry never ran, or has a state here, which is newer or says the same."""
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


def _what(source: Source) -> str:
    return f"imported from {source.what}"
