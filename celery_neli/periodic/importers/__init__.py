"""Import the schedule of another scheduler: check all of its entries, then write all that can be imported, or nothing.

An entry becomes a runtime entry; when and how often it ran becomes its state. So the slots since its last run are
missed ones, and the misfire policy applies to them as if there had been no move: none is lost, none runs twice. If
`beat_schedule` has an entry, too, only its state and its pause are imported. The modules of this package read what
RedBeat, django-celery-beat and the file of celery beat keep.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from celery.utils.time import maybe_make_aware

from celery_neli.exceptions import ConfigurationError, NeliError, RecordError
from celery_neli.periodic.definition import check_comes, define
from celery_neli.periodic.editor import Edit, ScheduleEditor
from celery_neli.periodic.limits import check_limit
from celery_neli.printable import printable_error
from celery_neli.schedule_topic import codec
from celery_neli.schedule_topic.codec import Definition, State
from celery_neli.schedule_topic.values import check_time, shown
from celery_neli.schedule_topic.write import Write


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An entry of a source. Times are Unix seconds.

    `last`: its last run, None if it never ran. `since`: the time after which its slots count, if that is not its last
    run. `notes`: what is different here.
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
class Row:
    """What becomes of one entry. `action`: added, replaced, state (alone), kept (as it is here) or left out."""

    name: str
    action: str
    schedule: str | None = None
    last: float | None = None
    runs: int = 0
    notes: tuple[str, ...] = ()
    state: Write | None = field(default=None, repr=False, compare=False)
    edit: Edit | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What a scheduler keeps; a row is of an entry that is left out.

    `mirrors`: only entries of `beat_schedule`. `warning`: what to know before an import.
    """

    what: str
    entries: Sequence[Found | Row]
    mirrors: bool = False
    warning: str | None = None


def found_or_left_out(name: str, find: Callable[[], Found]) -> Found | Row:
    """Return what ``find`` returns; if it raises, only this entry is left out."""
    try:
        return find()
    except Exception as exc:  # noqa: BLE001 - what is stored may raise anything
        return left_out(name, exc)


def left_out(name: str, error: Exception) -> Row:
    """Return the row of an entry that cannot be imported, with the reason. A `NeliError` says it."""
    why = str(error) if isinstance(error, NeliError) else f"cannot be read: {printable_error(error)}"
    return Row(name=name, action="left out", notes=(why,))


def seconds(at: datetime | None) -> float | None:
    """Return a time as Celery keeps it (a naive one is UTC) in Unix seconds."""
    return None if at is None else maybe_make_aware(at).timestamp()


def carry_over(source: Source, editor: ScheduleEditor, *, replacing: bool = False, dry_run: bool = False) -> list[Row]:
    """Import what can be imported, unless it is a ``dry_run``; return what becomes of each entry, in their order.

    With ``replacing``, entries that are here already are replaced. Blocks for the schedule topic.
    """
    editor.known  # noqa: B018 - read it now: an error of Kafka concerns no single entry
    rows = [_row_of(source, editor, found, replacing) for found in source.entries]
    if not dry_run:
        if editor.app.conf.get("neli_entry_limit") is not None:
            names = [row.edit.name for row in rows if row.edit is not None and row.name not in editor.static]
            check_limit(editor.app, names, editor.read)  # before any state is written
        # The states come first: a leading beat would make one of its own for a definition without a state.
        editor.write([row.state for row in rows if row.state is not None])
        editor.change(*(row.edit for row in rows if row.edit is not None))
    return rows


def _row_of(source: Source, editor: ScheduleEditor, found: Found | Row, replacing: bool) -> Row:
    if isinstance(found, Row):
        return found
    try:
        for name, at in (("last", found.last), ("since", found.since)):
            if at is not None:
                check_time(name, at)
        if found.name in editor.refused:
            raise NeliError(f"beat_schedule has it, and leaves it out: {editor.refused[found.name]}")
        if found.name in editor.static:
            row = _of_static(source, editor, found)
        elif source.mirrors:
            raise NeliError("beat_schedule has no such entry any more")
        else:
            row = _of_runtime(source, editor, found, replacing)
    except Exception as exc:  # noqa: BLE001 - a class of the source may raise anything; only this entry is left out
        row = left_out(str(found.name), exc)
    return replace(row, last=found.last, runs=found.runs)


def _of_runtime(source: Source, editor: ScheduleEditor, found: Found, replacing: bool) -> Row:
    old = editor.runtime(found.name)
    if found.name in editor.known.unreadable:
        raise NeliError(f"the entry here cannot be read: {editor.known.unreadable[found.name]}")
    if old is not None and not replacing:
        return Row(name=found.name, action="kept", schedule=old.schedule, notes=("is here already; see --replace",))
    since = next(each for each in (found.since, found.last, editor.now) if each is not None)
    new = define(
        editor.app, found.name, found.task, found.schedule, args=found.args, kwargs=found.kwargs, options=found.options
    )
    check_comes(new, found.name, editor.app, after=since)
    new = replace(new, since=since, paused=found.paused)
    what = f"imported from {source.what}"
    codec.encode_definition(editor.changed(new, what))  # what is too large is left out alone

    def plan(here: Definition | None) -> tuple[Definition, str] | None:
        if here is not None and not replacing:
            return None  # somebody put it since
        return replace(new, changes=here.changes if here else (), owner=here.owner if here else ""), what

    return Row(
        name=found.name,
        action="added" if old is None else "replaced",
        schedule=new.schedule,
        notes=(*(("paused",) if found.paused else ()), *found.notes),
        state=_state(editor, found, since=since),
        edit=Edit(found.name, plan),
    )


def _of_static(source: Source, editor: ScheduleEditor, found: Found) -> Row:
    """Return the state of an entry of `beat_schedule`; and its pause, and the time after which its slots count if it
    has a state here already, as a definition.
    """
    state = _state(editor, found, since=0.0)
    here, old = editor.known.states.get(found.name), editor.known.definitions.get(found.name)
    if old is not None and not old.static:
        raise NeliError("is in beat_schedule, and was put at runtime, too: remove the latter first")
    behind = here is not None and found.last is not None and here.last < found.last

    def plan(pause: Definition | None) -> tuple[Definition, str] | None:
        pause = pause or Definition(task=None, schedule=None, static=True)
        since = max(pause.since, found.last or 0.0) if behind else pause.since
        new = replace(pause, paused=pause.paused or found.paused, since=since)
        return None if new == pause else (new, f"imported from {source.what}")

    edit = None if plan(old) is None else Edit(found.name, plan)
    return Row(
        name=found.name,
        action="state" if state or edit else "kept",
        notes=("is in beat_schedule", *(("paused",) if found.paused else ())),
        state=state,
        edit=edit,
    )


def _state(editor: ScheduleEditor, found: Found, *, since: float) -> Write | None:
    """Return the state to write: none if the entry never ran, or has a state here, which is newer or says the same."""
    if found.last is None or found.name in editor.known.states:
        return None
    state = codec.encode_state(State(last=found.last, runs=found.runs, epoch=codec.NO_EPOCH, since=since, open=True))
    try:
        codec.decode_state(state)  # what cannot be read is not written
    except RecordError:
        raise ConfigurationError(f"its count is none: {shown(found.runs)}") from None
    return Write(codec.STATE, found.name, state)
