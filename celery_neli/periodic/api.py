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

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from celery_neli.config import enabled, from_app
from celery_neli.exceptions import ConfigurationError
from celery_neli.logs import escaping
from celery_neli.periodic.call import check_app
from celery_neli.periodic.editor import ScheduleEditor, entry_name
from celery_neli.periodic.view import RUNTIME, Periodic, entry_names, view_of
from celery_neli.schedule_topic.codec import Change
from celery_neli.scheduler_class import DEFAULT, is_replicated, resolve

if TYPE_CHECKING:
    import builtins

    from celery.result import AsyncResult

    from celery_neli.periodic.editor import Record
    from celery_neli.schedule_topic.codec import Kind

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
    editor = _changing(app, by=by)
    entry = editor.put(name, task, schedule, args, kwargs, options)
    return view_of(editor, entry_name(name), entry=entry)


def pause(app: Any, name: str, *, by: str | None = None) -> Periodic:
    """Let the slots of an entry pass until it is resumed, also of one in `beat_schedule`. Return it as it is now."""
    editor = _changing(app, by=by)
    editor.pause(name)
    return view_of(editor, entry_name(name))


def resume(app: Any, name: str, *, by: str | None = None) -> Periodic:
    """End the pause of an entry, whose slots during the pause never run. Return it as it is now."""
    editor = _changing(app, by=by)
    editor.resume(name)
    return view_of(editor, entry_name(name))


def remove(app: Any, name: str, *, by: str | None = None) -> None:
    """Delete a runtime entry and its state. A task that was sent already runs."""
    editor_of(app, by=by).remove(name)


def get(app: Any, name: str) -> Periodic | None:
    """Return one entry, None if there is none of this name."""
    return find(editor_of(app), name)


def list(app: Any) -> builtins.list[Periodic]:  # noqa: A001 - is read as periodic.list
    """Return all entries, of this process's `beat_schedule` and of the runtime schedule, by name."""
    editor = editor_of(app)
    return [_as_run(app, view_of(editor, name)) for name in sorted(entry_names(editor))]


def run_now(app: Any, name: str, *, by: str | None = None) -> AsyncResult:
    """Send the task of an entry at once, from this process. It runs for no slot, and its next slot stays as it is.

    The message has the header `neli_beat_entry`. For a runtime entry, `changes` notes it before the message is sent.

    Raises:
        celery.beat.SchedulingError: the task could not be sent.
    """
    return editor_of(app, by=by).run_now(name)


class Topic:
    """The schedule topic as a store. The first read loads Kafka's client."""

    def __init__(self, app: Any) -> None:
        if not enabled(check_app(app)):
            raise ConfigurationError("neli_enabled = False: there is no runtime schedule without Kafka; switch it on")
        self._config = from_app(app, "beat")
        self._log = escaping(logging.getLogger(__name__))

    def read(self) -> Mapping[tuple[Kind, str], bytes]:
        from celery_neli.schedule_topic.one_shot import read_all

        return read_all(self._config, log=self._log)

    def write(self, records: builtins.list[Record]) -> None:
        from celery_neli.schedule_topic.one_shot import write

        write(self._config, records, log=self._log)


def editor_of(app: Any, *, by: str | None = None) -> ScheduleEditor:
    """Return an editor of the app's schedule in its topic, for one change by ``by``."""
    return ScheduleEditor(app, Topic(app), by=by)


def _changing(app: Any, *, by: str | None) -> ScheduleEditor:
    """Return an editor for a change that a beat must follow; refuse it if no beat of ``app`` does."""
    editor = editor_of(app, by=by)
    reason = not_run(app)
    if reason is not None:
        raise ConfigurationError(
            f"{reason}: nothing was changed. Leave neli_scheduler out, or keep the entry where that scheduler keeps "
            "its own"
        )
    return editor


def find(editor: ScheduleEditor, name: str) -> Periodic | None:
    """Return one entry that the editor reads, None if there is none of this name."""
    name = entry_name(name)
    return _as_run(editor.app, view_of(editor, name)) if name in entry_names(editor) else None


def not_run(app: Any) -> str | None:
    """Return why the beats of ``app`` do not run the runtime schedule, None if they do. Imports ``neli_scheduler``."""
    name = app.conf.get("neli_scheduler")
    if name is None or is_replicated(resolve(name)):
        return None
    return f"neli_scheduler = {name!r}, and only {DEFAULT} runs entries of the runtime schedule"


def _as_run(app: Any, entry: Periodic) -> Periodic:
    """Return ``entry``, without a next slot and with a problem if no beat runs it."""
    reason = not_run(app) if entry.source == RUNTIME else None
    return entry if reason is None else replace(entry, next=None, problem=f"not run: {reason}")
