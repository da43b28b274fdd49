"""What it means to pause, resume or remove an entry, and to run it by hand.

Of an entry of `beat_schedule` only its pause is kept, as a definition without task and schedule.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import celery.beat

from celery_neli.exceptions import ConfigurationError, NeliError
from celery_neli.periodic.conflicts import utc
from celery_neli.periodic.definition import check_comes, until_of
from celery_neli.periodic.editor import Edit, ScheduleEditor, entry_name, expected_version
from celery_neli.schedule.due import expires_of
from celery_neli.schedule.policies import OWN_OPTIONS
from celery_neli.schedule_topic.codec import Definition


def pausing(editor: ScheduleEditor, name: Any, *, until: Any = None, expected: Any = None) -> Edit:
    """Let its slots pass, for good or until a time. Nothing changes if it is paused so."""
    name, end = _changeable(editor, name), until_of(until, editor.now)

    def plan(old: Definition | None) -> tuple[Definition, str] | None:
        found = _pausable(editor, name, old)
        if found.paused and found.until == end:
            return None
        return replace(found, paused=True, until=end), "paused" if end is None else f"paused until {utc(end)}"

    return Edit(name, plan, expected_version(expected))


def resuming(editor: ScheduleEditor, name: Any, *, expected: Any = None) -> Edit:
    """End the pause: the next slot is the first one after now. Nothing changes if it is not paused."""
    name = _changeable(editor, name)

    def plan(old: Definition | None) -> tuple[Definition, str] | None:
        found = _pausable(editor, name, old)
        if not found.paused:
            return None
        check_comes(found, editor.app, after=editor.now)
        return replace(found, paused=False, until=None, since=editor.now), "resumed"

    return Edit(name, plan, expected_version(expected))


def removing(editor: ScheduleEditor, name: Any, *, expected: Any = None) -> Edit:
    """Delete a runtime entry and its state, which the beat that leads does: what is written says that it is gone."""
    name = entry_name(name)

    def plan(old: Definition | None) -> tuple[Definition, str] | None:
        static = name in editor.static or name in editor.refused
        if name in editor.known.unreadable:
            old = Definition(task=None, schedule=None, static=True)
        elif old is None or (static and old.static):
            if static:
                raise ConfigurationError(f"name = {name!r}: is in beat_schedule; take it out there, or pause it")
            raise editor.unknown(name)
        return replace(old, args=[], kwargs={}, options={}, paused=False, until=None, removed=True), "removed"

    return Edit(name, plan, expected_version(expected))


def run_now(editor: ScheduleEditor, name: Any) -> Any:
    """Send the task of an entry, as a beat does, with the headers `neli_beat_entry` and `periodic_task_name`; return
    its result. Raises as `ScheduleEditor`.
    """
    name = entry_name(name)
    editor.look((name,))
    entry = editor.entry(name)
    if editor.runtime(name) is not None:
        editor.change(Edit(name, lambda found: None if found is None else (found, "run now")))
    expires = expires_of(entry.options, None, editor.app.timezone)
    entry.options = {key: value for key, value in entry.options.items() if key not in OWN_OPTIONS}
    if expires is not None:
        entry.options["expires"] = expires
    own = entry.options.get("headers") or {}
    entry.options["headers"] = {"periodic_task_name": name, **own, "neli_beat_entry": name}
    return celery.beat.Scheduler(editor.app, schedule={}, lazy=True).apply_async(entry, advance=False)


def _changeable(editor: ScheduleEditor, name: Any) -> str:
    editor.check_run()
    name = entry_name(name)
    editor.check_not_refused(name)
    return str(name)


def _pausable(editor: ScheduleEditor, name: str, found: Definition | None) -> Definition:
    """Return the definition that holds the pause of an entry."""
    if name in editor.known.unreadable:
        raise NeliError(f"the definition of {name!r} cannot be read here: {editor.known.unreadable[name]}")
    static = name in editor.static
    if static and found is not None and not found.static:
        raise NeliError(f"{name!r} is in beat_schedule and was put at runtime, too: remove the latter first")
    if static:
        return found or Definition(task=None, schedule=None, static=True)
    if found is None or found.static:
        raise editor.unknown(name)
    return found
