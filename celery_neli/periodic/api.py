"""Periodic tasks at runtime, from any process that has the app.

    from celery_neli import periodic

    periodic.put(app, "tidy-up-42", "shop.tasks.tidy_up", "PT30S", args=[42])
    periodic.pause(app, "tidy-up-42")

They are kept in the schedule topic, beside the state of all entries: the leading beat has them within a second, and
every beat has them after any restart. Entries of `beat_schedule` can be read, paused and run from here, not changed.

Every function reads the schedule topic, and those that change an entry write to it. They block for some tenths of a
second, or ten seconds at most while Kafka does not answer. Call them from any thread, but not while an event loop
waits. If two processes change an entry at the same time, the later change counts. All functions raise
`ConfigurationError` for a wrong value (it names the field; nothing was stored) and `NeliError` if Kafka does not
answer. If beats run another ``neli_scheduler``, which does not know these entries, `put`, `pause` and `resume` are
refused, and entries that are read have a `problem`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from celery_neli.periodic.editor import ScheduleEditor, entry_name
from celery_neli.periodic.view import Periodic, entry_names, view_of
from celery_neli.schedule_topic.codec import Change

if TYPE_CHECKING:
    import builtins

    from celery.result import AsyncResult

__all__ = ["Change", "Periodic", "get", "list", "pause", "put", "remove", "resume", "run_now"]


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
        options: the options of `Task.apply_async`, and the misfire and overlap policies.
        by: who makes the change, for `changes`; by default user@host.

    Returns:
        The entry as it is now.
    """
    editor = ScheduleEditor(app, by=by)
    editor.put(name, task, schedule, args, kwargs, options)
    return view_of(editor, entry_name(name))


def pause(app: Any, name: str, *, by: str | None = None) -> Periodic:
    """Let the slots of an entry pass until it is resumed, also of one in `beat_schedule`. Return it as it is now."""
    editor = ScheduleEditor(app, by=by)
    editor.pause(name)
    return view_of(editor, entry_name(name))


def resume(app: Any, name: str, *, by: str | None = None) -> Periodic:
    """End the pause of an entry, whose slots during the pause never run. Return it as it is now."""
    editor = ScheduleEditor(app, by=by)
    editor.resume(name)
    return view_of(editor, entry_name(name))


def remove(app: Any, name: str, *, by: str | None = None) -> None:
    """Delete a runtime entry and its state. A task that was sent already runs."""
    ScheduleEditor(app, by=by).remove(name)


def get(app: Any, name: str) -> Periodic | None:
    """Return one entry, None if there is none of this name."""
    editor = ScheduleEditor(app)
    return view_of(editor, entry_name(name)) if entry_name(name) in entry_names(editor) else None


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
