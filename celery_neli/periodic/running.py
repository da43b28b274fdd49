"""Run the task of an entry now, by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import celery.beat

from celery_neli.periodic.editor import Edit, ScheduleEditor, entry_name
from celery_neli.schedule.due import expires_of
from celery_neli.schedule.policies import OWN_OPTIONS


def run_now(editor: ScheduleEditor, name: str) -> Any:
    """Send the task of an entry, as a beat does, with the headers `neli_beat_entry` and `periodic_task_name`; return
    its result. Raises as `ScheduleEditor`.
    """
    name = entry_name(name)
    editor.look((name,))
    entry = editor.entry(name)
    if editor.runtime(name) is not None:
        editor.change(Edit(name, lambda found: None if found is None else (replace(found), "run now")))
    expires = expires_of(entry.options, None, editor.app.timezone)
    entry.options = {key: value for key, value in entry.options.items() if key not in OWN_OPTIONS}
    if expires is not None:
        entry.options["expires"] = expires
    own = entry.options.get("headers") or {}
    entry.options["headers"] = {"periodic_task_name": name, **own, "neli_beat_entry": name}
    return celery.beat.Scheduler(editor.app, schedule={}, lazy=True).apply_async(entry, advance=False)
