"""Periodic tasks at runtime, from any process that has the app.

    from celery_neli import periodic

    periodic.put(app, "tidy-up-42", "shop.tasks.tidy_up", "PT30S", args=[42])
    periodic.pause(app, "tidy-up-42")

They are kept in the schedule topic, beside the state of all entries: the leading beat has them within a second, and
every beat has them after any restart. Entries of `beat_schedule` can be read, paused and run from here, not changed.

Every function reads the schedule topic (`runs` the history topic), and those that change an entry write to it. They
block for some tenths of a second, or ten seconds at most while Kafka does not answer. Call them from any thread, but
not while an event loop waits. If two processes change an entry at the same time, the later change counts. All functions
raise `ConfigurationError` for a wrong value (it names the field; nothing was stored) and `NeliError` if Kafka does not
answer. If beats run another ``neli_scheduler``, which does not know these entries, `put`, `pause` and `resume` are
refused, and entries that are read have a `problem`.
"""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timedelta
from typing import Any

from celery.result import AsyncResult
from celery.utils.time import maybe_make_aware

from celery_neli.exceptions import ConfigurationError, NeliError
from celery_neli.history.runs import Run
from celery_neli.periodic import run_history
from celery_neli.periodic.definition import entry_of, moment, reason_of
from celery_neli.periodic.editor import ScheduleEditor, entry_name
from celery_neli.periodic.text import text_of
from celery_neli.printable import printable, printable_error
from celery_neli.schedule.due import is_finished, runs_left
from celery_neli.schedule.slots import next_slot, nominal, shift_of
from celery_neli.schedule_topic.codec import FAR_AHEAD, START_AHEAD, Change, Definition, State
from celery_neli.schedule_topic.values import shown

__all__ = ["Change", "Periodic", "Run", "get", "list", "pause", "put", "remove", "resume", "run_now", "runs"]

UNSHOWN = "cannot be shown"
BEAT_SCHEDULE, RUNTIME = "beat_schedule", "runtime"


@dataclass(frozen=True, slots=True, kw_only=True)
class Periodic:
    """One entry of the schedule and its state. Times are Unix seconds.

    `schedule`: its text, or the `repr` of what text cannot express. `source`: where it is defined, `beat_schedule` or
    `runtime`. `last`: the last slot that it ran for, None if it never ran; `runs`: how often it ran. `next`: the next
    slot; None if there is none, the entry is paused, or only the schedule itself knows. `due`: when that slot is due:
    then, or later by the entry's jitter; in the past if it is overdue. `finished`: it never runs again, because of its
    `neli_end` or `neli_max_runs`, or because its only time is past.
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
    due: float | None = None
    finished: bool = False
    since: float | None = None
    changes: tuple[Change, ...] = ()
    problem: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values; what `args`, `kwargs` and `options` hold stays as it is."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {**values, "changes": [asdict(each) for each in self.changes]}


def put(
    app: Any,
    name: str,
    task: Any,
    schedule: Any,
    *,
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    by: str | None = None,
) -> Periodic:
    """Add an entry, or replace the one of this name.

    The first slot is the first one after now, and so it is again when the schedule changes. Any other change keeps the
    rhythm, and a paused entry stays paused. If nothing would change, nothing is written: every process may call this
    when it starts.

    Args:
        app: the Celery app.
        name: the name of the entry.
        task: a task, or its name, which this process need not know; or a signature, which brings arguments and options.
            Nothing may be given both in the signature and beside it.
        schedule: text (:mod:`celery_neli.periodic.text`), a number of seconds, a `timedelta`, a `datetime`, or a
            schedule of Celery's.
        args: the positional arguments, which must be JSON (datetimes pass).
        kwargs: the keyword arguments, which must be JSON, too.
        options: the options of `Task.apply_async`, the misfire and overlap policies, what else decides when it runs
            (`neli_timezone`, `neli_start`, `neli_end`, `neli_max_runs`, `neli_calendar`, `neli_jitter`), and
            `neli_tags`.
        by: who makes the change, for `changes`; by default user@host.

    Returns:
        The entry as it is now.
    """
    editor = ScheduleEditor(app, by=by)
    editor.put(name, task, schedule, args, kwargs, options)
    return view_of(editor, name)


def pause(app: Any, name: str, *, by: str | None = None) -> Periodic:
    """Let the slots of an entry pass until it is resumed, also of one in `beat_schedule`. Return it as it is now."""
    editor = ScheduleEditor(app, by=by)
    editor.pause(name)
    return view_of(editor, name)


def resume(app: Any, name: str, *, by: str | None = None) -> Periodic:
    """End the pause of an entry, whose slots during the pause never run. Return it as it is now."""
    editor = ScheduleEditor(app, by=by)
    editor.resume(name)
    return view_of(editor, name)


def remove(app: Any, name: str, *, by: str | None = None) -> None:
    """Delete a runtime entry and its state. A task that was sent already runs."""
    ScheduleEditor(app, by=by).remove(name)


def get(app: Any, name: str) -> Periodic | None:
    """Return one entry, None if there is none of this name."""
    editor = ScheduleEditor(app)
    return view_of(editor, name) if entry_name(name) in entry_names(editor) else None


def list(app: Any) -> builtins.list[Periodic]:  # noqa: A001 - is read as periodic.list
    """Return all entries, of this process's `beat_schedule` and of the runtime schedule, by name."""
    editor = ScheduleEditor(app)
    return [view_of(editor, name) for name in sorted(entry_names(editor))]


def run_now(app: Any, name: str, *, by: str | None = None) -> AsyncResult:
    """Send the task of an entry at once, from this process. It runs for no slot, and its next slot stays as it is.

    The message has the header `neli_beat_entry`. For a runtime entry, `changes` notes it before the message is sent.

    Raises:
        celery.beat.SchedulingError: the task could not be sent.
    """
    return ScheduleEditor(app, by=by).run_now(name)


def runs(
    app: Any, name: str | None = None, *, limit: int = 100, since: datetime | timedelta | float | None = None
) -> builtins.list[Run]:
    """Return what became of the latest slots, newest first: of the entry `name`, or of all entries.

    Beats record that a slot was sent, failed, or was left out; workers that have celery-neli installed record what the
    task did. An entry that was removed keeps its history.

    Args:
        app: The app, whose beats record.
        name: The entry.
        limit: How many runs at most, up to 100,000.
        since: Runs of which something was recorded since this time: a datetime (a naive one is local time), how long
            ago, or Unix seconds.

    Raises:
        ConfigurationError: A value is wrong, or `neli_history` is off.
        NeliError: Nothing was recorded yet, a right is missing, or Kafka does not answer.
    """
    return run_history.runs(app, name, limit=limit, since=since)


def entry_names(editor: ScheduleEditor) -> set[str]:
    """Return the names of all entries, of `beat_schedule` and of the runtime schedule. The first call blocks."""
    known = editor.known
    runtime = (name for name in known.definitions if editor.runtime(name))
    return {*editor.static, *editor.refused, *known.unreadable, *runtime}


def view_of(editor: ScheduleEditor, name: str) -> Periodic:
    """Return one of the `entry_names`, with what is wrong with it as its `problem`. The first call blocks."""
    name = entry_name(name)
    try:
        found = _view_of(editor, name)
    except NeliError:
        raise  # of Kafka
    except Exception as exc:  # noqa: BLE001 - a user's class may raise anything: the other entries are shown
        found = _unshown(name, printable_error(exc))
    if found.source == RUNTIME and editor.not_run is not None:
        return replace(found, next=None, due=None, problem=f"not run: {editor.not_run}")
    return found


def _view_of(editor: ScheduleEditor, name: str) -> Periodic:
    found = editor.known.definitions.get(name)
    static, problem = name in editor.static, None
    entry: Any
    if name in editor.refused:
        return _unshown(name, editor.refused[name], source=BEAT_SCHEDULE)
    if static:
        entry = editor.static[name]
        problem = "; ".join(editor.checked.doubts.get(name, ())) or None
        if found is not None and not found.static:
            problem = "hides a runtime entry of this name: remove that one"
        if found is None or not found.static:
            found = Definition(task=None, schedule=None)
        try:
            text = text_of(entry.schedule)
        except ConfigurationError:
            text = shown(entry.schedule)
        task = entry.task
    elif found is None:
        return _unshown(name, editor.known.unreadable[name])
    else:
        task, text = str(found.task), str(found.schedule)
        try:
            entry = entry_of(found, name, editor.app)
        except ConfigurationError as exc:
            entry, task, text = found, printable(found.task), printable(found.schedule)
            problem = f"{UNSHOWN}: {reason_of(exc, name)}"
    state = editor.known.states.get(name)
    runs, upcoming = state.runs if state else 0, None
    if entry is not found and runs_left(entry, runs):
        upcoming = _next(editor, state, entry.schedule, found.since)
    return Periodic(
        name=name,
        task=task,
        schedule=text,
        args=tuple(entry.args or ()),
        kwargs=entry.kwargs,
        options=entry.options,
        source=BEAT_SCHEDULE if static else RUNTIME,
        paused=found.paused,
        next=None if found.paused else upcoming,
        due=None if found.paused or upcoming is None else upcoming + shift_of(entry.schedule),
        finished=entry is not found and upcoming is None and is_finished(entry, runs),
        last=state.last if state and state.runs else None,
        runs=runs,
        since=found.since or None,
        changes=found.changes,
        problem=problem,
    )


def _unshown(name: str, why: str, *, source: str = RUNTIME) -> Periodic:
    return Periodic(name=name, task=None, schedule=None, source=source, problem=f"{UNSHOWN}: {why}")


def _next(editor: ScheduleEditor, state: State | None, when: Any, since: float) -> float | None:
    # A beat does not believe what is further ahead, either.
    begins = since if since <= editor.now + START_AHEAD else 0.0
    last = state.last if state is not None and state.last <= max(begins, editor.now + FAR_AHEAD) else 0.0
    after = max(begins, last) or editor.now
    try:
        slot = next_slot(when, moment(after + shift_of(when)))
    except Exception:  # noqa: BLE001 - a user's schedule may raise anything; the beat logs it
        return None
    return None if slot is None else maybe_make_aware(nominal(when, slot)).timestamp()
