"""Periodic tasks at runtime, from any process that has the app.

    from celery_neli import periodic

    periodic.put(app, "tidy-up-42", "shop.tasks.tidy_up", "PT30S", args=[42])
    periodic.pause(app, "tidy-up-42")

They are kept in the schedule topic, beside the state of all entries: the beat that leads has them within a second, and
every beat after any restart. Entries of `beat_schedule` can be looked at, paused and run from here, not changed.

Every function reads the schedule topic and writes to it: it blocks for some tenths of a second, ten seconds at most
while Kafka does not answer. From any thread; not while an event loop waits. Of two that change an entry at the same
time, the later one stands. All raise `ConfigurationError` for what cannot be (it names the field; nothing was stored)
and `NeliError` if Kafka does not answer. Where beats run another ``neli_scheduler``, which does not know these entries,
`put`, `pause` and `resume` are refused, and what is read has a `problem`.
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
from celery_neli.periodic.editor import ScheduleEditor, named
from celery_neli.periodic.view import RUNTIME, Periodic, look, names
from celery_neli.schedule_topic.codec import Change

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
    """Add an entry, or replace the one of this name; the entry as it is now.

    ``task``: a task, or its name; this process need not know it. Or a signature, which brings arguments and options:
    what it says must not be given beside it, too. ``schedule``: text (:mod:`celery_neli.periodic.text`),
    a number of seconds, a `timedelta`, a `datetime`, or a schedule of Celery's. ``options``: those of
    `Task.apply_async`, and the misfire and overlap policies. Arguments must be JSON (datetimes pass). ``by``: who does
    it, for `changes`; by default user@host.

    The first slot is the first one after now; so it is again when the schedule changes. Any other change keeps the
    rhythm, and a paused entry stays paused. To put what is there already writes nothing: every process may do it when
    it starts.
    """
    changes = changing(app, by=by)
    changes.put(name, task, schedule, args, kwargs, options)
    return look(changes, named(name))


def pause(app: Any, name: str, *, by: str | None = None) -> Periodic:
    """Let the slots of an entry pass, also of one in `beat_schedule`, until it is resumed; the entry as it is now."""
    changes = changing(app, by=by)
    changes.pause(name)
    return look(changes, named(name))


def resume(app: Any, name: str, *, by: str | None = None) -> Periodic:
    """End the pause of an entry: slots of the pause were not missed, they never run. The entry as it is now."""
    changes = changing(app, by=by)
    changes.resume(name)
    return look(changes, named(name))


def remove(app: Any, name: str, *, by: str | None = None) -> None:
    """Delete a runtime entry and its state. A task that was sent already runs."""
    editor(app, by=by).remove(name)


def get(app: Any, name: str) -> Periodic | None:
    """One entry, None if there is none of this name."""
    name, changes = named(name), editor(app)
    return as_run(app, look(changes, name)) if name in names(changes) else None


def list(app: Any) -> builtins.list[Periodic]:  # noqa: A001 - is read as periodic.list
    """All entries, those of this process's `beat_schedule` and those of the runtime schedule, by name."""
    changes = editor(app)
    return [as_run(app, look(changes, name)) for name in sorted(names(changes))]


def run_now(app: Any, name: str, *, by: str | None = None) -> AsyncResult:
    """Send the task of an entry at once, from this process, for none of its slots: when it runs next stays as it is.

    Its message has the header `neli_beat_entry`. Of a runtime entry it is noted in `changes`, first of all.

    :raises celery.beat.SchedulingError: the task could not be sent.
    """
    return editor(app, by=by).run_now(name)


class Topic:
    """The schedule topic as a store. Kafka's client is loaded when it is first read."""

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


def editor(app: Any, *, by: str | None = None) -> ScheduleEditor:
    """What reads and changes the schedule of ``app`` in its topic, for one change by ``by``."""
    return ScheduleEditor(app, Topic(app), by=by)


def changing(app: Any, *, by: str | None = None) -> ScheduleEditor:
    """As `editor`, for a change that a beat must follow.

    :raises ConfigurationError: the beats of ``app`` do not run the runtime schedule.
    """
    found = editor(app, by=by)
    reason = not_run(app)
    if reason is not None:
        raise ConfigurationError(
            f"{reason}: nothing was changed. Leave neli_scheduler out, or keep the entry where that scheduler keeps "
            "its own"
        )
    return found


def not_run(app: Any) -> str | None:
    """Return why the beats of ``app`` do not run the runtime schedule, None if they do. Imports ``neli_scheduler``.

    :raises ConfigurationError: ``neli_scheduler`` is no scheduler.
    """
    name = app.conf.get("neli_scheduler")
    if name is None:
        return None
    from celery_neli.beat.host import DEFAULT, is_replicated, resolve

    if is_replicated(resolve(name)):
        return None
    return f"neli_scheduler = {name!r}, and only {DEFAULT} runs entries of the runtime schedule"


def as_run(app: Any, entry: Periodic) -> Periodic:
    """Return ``entry``, without a next slot and with the problem where nothing runs it."""
    reason = not_run(app) if entry.source == RUNTIME else None
    return entry if reason is None else replace(entry, next=None, problem=f"not run: {reason}")
