"""Periodic tasks at runtime, from any process that has the app.

    from celery_neli import periodic

    periodic.put(app, "tidy-up-42", "shop.tasks.tidy_up", "PT30S", args=[42])
    periodic.pause(app, "tidy-up-42", note="the disk is full")

They are kept in the schedule topic, beside the state of all entries: the leading beat has them within a second, and
every beat has them after any restart. Entries of `beat_schedule` can be read, paused and run from here, not changed.

Every function reads the schedule topic (`runs` the history topic), and those that change an entry write to it. The
first call of a process connects, which takes some tenths of a second; each later one takes some milliseconds, however
many entries there are. They block for ten seconds at most while Kafka does not answer. Call them from any thread, and
from an event loop through `celery_neli.periodic.aio`. The connection is closed when it was not used for a minute, and
when the process ends; a forked child makes its own.

If two processes change an entry at the same time, both changes are made, one after the other, each from what the other
left: none undoes the other but where both say something of the same field. Who must not change what somebody else has
changed since they read it gives `expected`, the `version` of the entry as it was read: then `Conflict` is raised, and
nothing is changed. All functions raise `ConfigurationError` for a wrong value (it names the field; nothing was stored)
and `NeliError` if Kafka does not answer. If beats run another ``neli_scheduler``, which does not know these entries,
`put`, `pause` and `resume` are refused, and entries that are read have a `problem`.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

from celery.result import AsyncResult

from celery_neli.history.runs import Run
from celery_neli.periodic import edits, run_history
from celery_neli.periodic.batches import Batch
from celery_neli.periodic.bulk import pause_where, pauses, resume_where
from celery_neli.periodic.editor import ScheduleEditor, entry_name
from celery_neli.periodic.edits import pausing, removing, resuming
from celery_neli.periodic.listing import listed
from celery_neli.periodic.view import Periodic, view_of
from celery_neli.schedule_topic.codec import Change
from celery_neli.schedule_topic.rules import Pause

__all__ = [
    "Batch", "Change", "Pause", "Periodic", "Run",
    "batch", "get", "list", "pause", "pause_where", "pauses", "put", "remove", "resume", "resume_where",
    "run_now", "runs",
]  # fmt: skip


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
    note: str | None = None,
    owner: str | None = None,
    expected: str | None = None,
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
        note: why, for `changes`.
        owner: for whom the entry is put, such as a file of entries; None: as it is.
        expected: the `version` of the entry as you read it, "" if there must be none of this name; None: any.

    Returns:
        The entry as it is now.

    Raises:
        Conflict: the entry has another version than `expected`; nothing was changed.
    """
    editor = ScheduleEditor(app, by=by, note=note, owner=owner)
    editor.change(editor.to_put(name, task, schedule, args, kwargs, options, expected=expected))
    return _changed(editor, name)


def pause(
    app: Any,
    name: str,
    *,
    until: datetime | timedelta | float | None = None,
    note: str | None = None,
    by: str | None = None,
    expected: str | None = None,
) -> Periodic:
    """Let the slots of an entry pass until it is resumed, also of one in `beat_schedule`. Return it as it is now.

    Args:
        app: the Celery app.
        name: the name of the entry.
        until: when the pause ends by itself: a datetime (a naive one is local time), how long from now, or Unix
            seconds; None: only when it is resumed.
        note: why, for `changes`.
        by: who makes the change, for `changes`; by default user@host.
        expected: see `put`.
    """
    editor = ScheduleEditor(app, by=by, note=note)
    editor.change(pausing(editor, name, until=until, expected=expected))
    return _changed(editor, name)


def resume(
    app: Any, name: str, *, note: str | None = None, by: str | None = None, expected: str | None = None
) -> Periodic:
    """End the pause of an entry, whose slots during the pause never run. Return it as it is now. See `put`."""
    editor = ScheduleEditor(app, by=by, note=note)
    editor.change(resuming(editor, name, expected=expected))
    return _changed(editor, name)


def remove(app: Any, name: str, *, note: str | None = None, by: str | None = None, expected: str | None = None) -> None:
    """Delete a runtime entry and its state. A task that was sent already runs. See `put` for the arguments."""
    editor = ScheduleEditor(app, by=by, note=note)
    editor.change(removing(editor, name, expected=expected))


def _changed(editor: ScheduleEditor, name: str) -> Periodic:
    editor.look_at_state(entry_name(name))
    return view_of(editor, name)


def batch(app: Any, *, by: str | None = None, note: str | None = None, owner: str | None = None) -> Batch:
    """Collect changes in a `with` block, and write them together at its end: ten thousand in a few seconds.

        with periodic.batch(app, note="import") as batch:
            for user in users:
                batch.put(f"digest-{user.id}", "shop.tasks.digest", "0 7 * * *", args=[user.id])

    Each call raises at once what is wrong with it. If the block raises, nothing is written. At its end, all changes are
    checked with what is there, and nothing is written if one of them cannot be made. Then each entry is written as a
    whole; if the process dies in between, some are written, and the same batch again writes the others only.

    Raises:
        Conflict: at the end of the block: entries have other versions than were `expected`, and nothing was changed;
            or somebody else changed entries at that moment, and all others were changed. It says which.
    """
    return Batch(app, by=by, note=note, owner=owner)


def get(app: Any, name: str) -> Periodic | None:
    """Return one entry, None if there is none of this name: with every change that was made before, anywhere."""
    editor = ScheduleEditor(app)
    return view_of(editor, name) if editor.has(entry_name(name)) else None


def list(  # noqa: A001 - is read as periodic.list
    app: Any,
    *,
    prefix: str = "",
    tag: str | None = None,
    limit: int | None = None,
    after: str | None = None,
    owner: str | None = None,
) -> Iterator[Periodic]:
    """Return the entries of this process's `beat_schedule` and of the runtime schedule, one by one, by name.

    The topic is read before this returns, and entries are made when they are asked for.

    Args:
        app: the Celery app.
        prefix: only entries whose names begin with this.
        tag: only entries with this tag among their option `neli_tags`.
        limit: how many at most.
        after: only entries whose names are greater than this, such as the last name of the page before.
        owner: only entries that were put for this owner.
    """
    return listed(ScheduleEditor(app), prefix=prefix, tag=tag, limit=limit, after=after, owner=owner)


def run_now(app: Any, name: str, *, by: str | None = None, note: str | None = None) -> AsyncResult:
    """Send the task of an entry at once, from this process. It runs for no slot, and its next slot stays as it is.

    The message has the header `neli_beat_entry`. For a runtime entry, `changes` notes it before the message is sent.

    Raises:
        celery.beat.SchedulingError: the task could not be sent.
    """
    return edits.run_now(ScheduleEditor(app, by=by, note=note), name)


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
