"""The entries of the schedule and their state, as users see them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from celery.utils.time import maybe_make_aware

from celery_neli.exceptions import ConfigurationError, NeliError
from celery_neli.periodic.definition import entry_of, moment, reason_of
from celery_neli.periodic.text import text_of
from celery_neli.printable import printable, printable_error
from celery_neli.schedule.slots import next_slot
from celery_neli.schedule_topic.codec import FAR_AHEAD, START_AHEAD
from celery_neli.schedule_topic.values import shown

if TYPE_CHECKING:
    from celery_neli.periodic.editor import ScheduleEditor
    from celery_neli.schedule_topic.codec import Change, Definition

__all__ = ["Periodic", "look", "names"]

UNSHOWN = "cannot be shown"
BEAT_SCHEDULE, RUNTIME = "beat_schedule", "runtime"


@dataclass(frozen=True, slots=True, kw_only=True)
class Periodic:
    """One entry of the schedule and its state. Times are Unix seconds.

    `schedule` is its text, or the `repr` of what text cannot express. `source`: where it is defined, `beat_schedule` or
    `runtime`. `last`: the last slot that it ran for, None if it never ran; `runs`: how often. `next`: the next one, in
    the past if it is overdue; None if there is none, it is paused, or only the schedule itself can tell. `since`: no
    slot at or before it runs (runtime entries; of others, the end of their last pause). `changes`: who did what and
    when, oldest first, the last 20. `problem`: why this process cannot make an entry of it, if so.
    """

    name: str
    task: str | None
    schedule: str | None
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    source: str = RUNTIME
    paused: bool = False
    last: float | None = None
    runs: int = 0
    next: float | None = None
    since: float | None = None
    changes: tuple[Change, ...] = ()
    problem: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """As plain values; what `args`, `kwargs` and `options` hold stays as it is."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {**values, "changes": [asdict(each) for each in self.changes]}


def names(editor: ScheduleEditor) -> set[str]:
    """The names of all entries: of `beat_schedule` and of the runtime schedule. Blocks at the first time."""
    known = editor.known
    runtime = (name for name in known.definitions if editor.runtime(name))
    return {*editor.static, *editor.refused, *known.unreadable, *runtime}


def look(editor: ScheduleEditor, name: str) -> Periodic:
    """Return one entry of `names`. Blocks at the first time. What is wrong with the entry is its `problem`."""
    try:
        return _look(editor, name)
    except NeliError:
        raise  # of Kafka
    except Exception as exc:  # noqa: BLE001 - of a user's class: the others are shown
        return _unshown(name, printable_error(exc))


def _look(editor: ScheduleEditor, name: str) -> Periodic:
    definition = editor.known.definitions.get(name)
    if name in editor.static:
        return _of_static(editor, name, definition)
    if name in editor.refused:
        return _unshown(name, editor.refused[name], source=BEAT_SCHEDULE)
    if definition is None:
        return _unshown(name, editor.known.unreadable[name])
    try:
        entry, problem = entry_of(definition, name, editor.app), None
    except ConfigurationError as exc:
        entry, problem = None, f"{UNSHOWN}: {reason_of(exc, name)}"
    state = editor.known.states.get(name)
    return Periodic(
        name=name,
        task=definition.task if entry else printable(definition.task),
        schedule=definition.schedule if entry else printable(definition.schedule),
        args=tuple(definition.args) if entry is None else entry.args,
        kwargs=definition.kwargs if entry is None else entry.kwargs,
        options=definition.options if entry is None else entry.options,
        source=RUNTIME,
        paused=definition.paused,
        last=state.last if state and state.runs else None,
        runs=state.runs if state else 0,
        next=None if entry is None or definition.paused else _next(editor, name, entry.schedule, definition.since),
        since=definition.since,
        changes=definition.changes,
        problem=problem,
    )


def _unshown(name: str, why: str, *, source: str = RUNTIME) -> Periodic:
    """Return an entry that no beat runs because it cannot be read."""
    return Periodic(name=name, task=None, schedule=None, source=source, problem=f"{UNSHOWN}: {why}")


def _of_static(editor: ScheduleEditor, name: str, definition: Definition | None) -> Periodic:
    entry, state = editor.static[name], editor.known.states.get(name)
    hides = definition is not None and not definition.static
    pause = None if hides else definition
    try:
        text = text_of(entry.schedule)
    except ConfigurationError:
        text = shown(entry.schedule)
    return Periodic(
        name=name,
        task=entry.task,
        schedule=text,
        args=tuple(entry.args or ()),
        kwargs=entry.kwargs,
        options=entry.options,
        source=BEAT_SCHEDULE,
        paused=pause is not None and pause.paused,
        last=state.last if state and state.runs else None,
        runs=state.runs if state else 0,
        next=None if pause and pause.paused else _next(editor, name, entry.schedule, pause.since if pause else 0),
        since=pause.since if pause and pause.since else None,
        changes=pause.changes if pause else (),
        problem="hides a runtime entry of this name: remove that one" if hides else editor.doubts.get(name),
    )


def _next(editor: ScheduleEditor, name: str, when: Any, since: float) -> float | None:
    state = editor.known.states.get(name)
    # A beat does not believe what is further ahead, either.
    begins = since if since <= editor.now + START_AHEAD else 0.0
    last = state.last if state is not None and state.last <= max(begins, editor.now + FAR_AHEAD) else 0.0
    after = max(begins, last) or editor.now
    try:
        slot = next_slot(when, moment(after))
    except Exception:  # noqa: BLE001 - of a user's schedule; beat logs it
        return None
    return None if slot is None else maybe_make_aware(slot).timestamp()
