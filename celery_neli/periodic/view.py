"""The entries of the schedule and their state, as users see them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from celery.utils.time import maybe_make_aware

from celery_neli.exceptions import ConfigurationError, NeliError
from celery_neli.periodic.definition import entry_of, moment, reason_of
from celery_neli.periodic.text import text_of
from celery_neli.printable import printable, printable_error
from celery_neli.schedule.slots import next_slot
from celery_neli.schedule_topic.codec import FAR_AHEAD, START_AHEAD, Definition
from celery_neli.schedule_topic.values import shown

if TYPE_CHECKING:
    from celery_neli.periodic.editor import ScheduleEditor
    from celery_neli.schedule_topic.codec import Change

__all__ = ["Periodic", "entry_names", "view_of"]

UNSHOWN = "cannot be shown"
BEAT_SCHEDULE, RUNTIME = "beat_schedule", "runtime"


@dataclass(frozen=True, slots=True, kw_only=True)
class Periodic:
    """One entry of the schedule and its state. Times are Unix seconds.

    `schedule`: its text, or the `repr` of what text cannot express. `source`: where it is defined, `beat_schedule` or
    `runtime`. `last`: the last slot that it ran for, None if it never ran; `runs`: how often it ran. `next`: the next
    slot, in the past if it is overdue; None if there is none, the entry is paused, or only the schedule itself knows.
    `since`: no slot at or before it runs (of an entry of `beat_schedule`, the end of its last pause). `changes`: who
    did what and when, oldest first, the last 20. `problem`: why this process cannot make an entry of it, if so.
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
        """Return it as plain values; what `args`, `kwargs` and `options` hold stays as it is."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {**values, "changes": [asdict(each) for each in self.changes]}


def entry_names(editor: ScheduleEditor) -> set[str]:
    """Return the names of all entries, of `beat_schedule` and of the runtime schedule. The first call blocks."""
    known = editor.known
    runtime = (name for name in known.definitions if editor.runtime(name))
    return {*editor.static, *editor.refused, *known.unreadable, *runtime}


def view_of(editor: ScheduleEditor, name: str) -> Periodic:
    """Return one of the `entry_names`, with what is wrong with it as its `problem`. The first call blocks."""
    try:
        found = _view_of(editor, name)
    except NeliError:
        raise  # of Kafka
    except Exception as exc:  # noqa: BLE001 - a user's class may raise anything: the other entries are shown
        found = _unshown(name, printable_error(exc))
    if found.source == RUNTIME and editor.not_run is not None:
        return replace(found, next=None, problem=f"not run: {editor.not_run}")
    return found


def _view_of(editor: ScheduleEditor, name: str) -> Periodic:
    definition = editor.known.definitions.get(name)
    if name in editor.static:
        return _of_static(editor, name, definition)
    if name in editor.refused:
        return _unshown(name, editor.refused[name], source=BEAT_SCHEDULE)
    if definition is None:
        return _unshown(name, editor.known.unreadable[name])
    entry, problem = None, None
    try:
        entry = entry_of(definition, name, editor.app)
    except ConfigurationError as exc:
        problem = f"{UNSHOWN}: {reason_of(exc, name)}"
    fields = definition if entry is None else entry
    return Periodic(
        name=name,
        task=definition.task if entry else printable(definition.task),
        schedule=definition.schedule if entry else printable(definition.schedule),
        args=tuple(fields.args),
        kwargs=fields.kwargs,
        options=fields.options,
        source=RUNTIME,
        paused=definition.paused,
        next=None if entry is None or definition.paused else _next(editor, name, entry.schedule, definition.since),
        since=definition.since,
        changes=definition.changes,
        problem=problem,
        **_ran(editor, name),
    )


def _of_static(editor: ScheduleEditor, name: str, definition: Definition | None) -> Periodic:
    entry = editor.static[name]
    hides = definition is not None and not definition.static
    pause = Definition(task=None, schedule=None) if definition is None or hides else definition
    doubts = editor.checked.doubts.get(name, ())
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
        paused=pause.paused,
        next=None if pause.paused else _next(editor, name, entry.schedule, pause.since),
        since=pause.since or None,
        changes=pause.changes,
        problem="hides a runtime entry of this name: remove that one" if hides else "; ".join(doubts) or None,
        **_ran(editor, name),
    )


def _unshown(name: str, why: str, *, source: str = RUNTIME) -> Periodic:
    """Return an entry that no beat runs because it cannot be read."""
    return Periodic(name=name, task=None, schedule=None, source=source, problem=f"{UNSHOWN}: {why}")


def _ran(editor: ScheduleEditor, name: str) -> dict[str, Any]:
    state = editor.known.states.get(name)
    return {"last": state.last, "runs": state.runs} if state and state.runs else {}


def _next(editor: ScheduleEditor, name: str, when: Any, since: float) -> float | None:
    state = editor.known.states.get(name)
    # A beat does not believe what is further ahead, either.
    begins = since if since <= editor.now + START_AHEAD else 0.0
    last = state.last if state is not None and state.last <= max(begins, editor.now + FAR_AHEAD) else 0.0
    after = max(begins, last) or editor.now
    try:
        slot = next_slot(when, moment(after))
    except Exception:  # noqa: BLE001 - a user's schedule may raise anything; the beat logs it
        return None
    return None if slot is None else maybe_make_aware(slot).timestamp()
