"""Pauses of many entries: made, ended and listed. One record each, however many entries they concern."""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import Any, Final

from celery_neli.exceptions import ConfigurationError, NeliError
from celery_neli.periodic.call import plain
from celery_neli.periodic.definition import until_of
from celery_neli.periodic.editor import ScheduleEditor
from celery_neli.schedule_topic.codec import MAX_NAME, PAUSE
from celery_neli.schedule_topic.rules import ALL, PREFIX, TAG, Pause, encode_pause
from celery_neli.schedule_topic.values import shown
from celery_neli.schedule_topic.write import Write

MOST: Final = 200  # pauses of many entries that hold at a time: each entry is compared with all of them


def pause_where(
    app: Any,
    *,
    all: bool = False,  # noqa: A002 - is read as pause_where(app, all=True)
    tag: str | None = None,
    prefix: str | None = None,
    until: Any = None,
    note: str | None = None,
    by: str | None = None,
) -> Pause:
    """Let the slots of all entries pass, or of those with a tag, or whose names begin with a prefix: of `beat_schedule`
    and of the runtime schedule, also of entries that are put later.

    It is one record, whatever the number of entries, and ends by itself: no slot at or before `until` runs, the first
    one after it does. If these entries are paused so already, that pause gets the new `until` and `note`.

    Args:
        app: the Celery app.
        all: all entries. Give one of `all`, `tag` and `prefix`.
        tag: those with this tag among their option `neli_tags`.
        prefix: those whose names begin with this.
        until: see `pause`.
        note: why.
        by: who makes the change; by default user@host.
    """
    editor = ScheduleEditor(app, by=by, note=note)
    editor.check_run()
    of, value = _selected(all, tag, prefix)
    end = until_of(until, editor.now)
    holding = [each for each in editor.pauses() if each.holds(editor.now)]
    found = next((each for each in holding if (each.of, each.value) == (of, value)), None)
    if found is None and len(holding) >= MOST:
        raise NeliError(f"{MOST} pauses of many entries hold already, which is the most: resume some of them first")
    name, at = (secrets.token_hex(8), editor.now) if found is None else (found.id, found.at)
    pause = Pause(id=name, of=of, value=value, at=at, by=editor.by, note=editor.note, until=end)
    editor.write([Write(PAUSE, name, encode_pause(pause))])
    return pause


def resume_where(
    app: Any,
    *,
    all: bool = False,  # noqa: A002
    tag: str | None = None,
    prefix: str | None = None,
    note: str | None = None,
    by: str | None = None,
) -> list[Pause]:
    """End the pause of many entries that was made with the same `all`, `tag` or `prefix`; return what was ended.

    Other pauses stay, and an entry that was paused by itself stays paused. Slots during the pause never run.

    Raises:
        NeliError: there is no such pause.
    """
    editor = ScheduleEditor(app, by=by, note=note)
    editor.check_run()
    of, value = _selected(all, tag, prefix)
    holding = [each for each in editor.pauses() if each.holds(editor.now)]
    found = [each for each in holding if (each.of, each.value) == (of, value)]
    if not found:
        others = ", ".join(each.option for each in holding[:5])
        which = f"those that hold: {others}" if others else "no pause of many entries holds"
        raise NeliError(f"there is no pause of {Pause(id='', of=of, value=value, at=0, by='').what}; {which}")
    ended = [replace(each, until=editor.now, ended_by=editor.by, note=editor.note or each.note) for each in found]
    editor.write([Write(PAUSE, each.id, encode_pause(each)) for each in ended])
    return ended


def pauses(app: Any) -> list[Pause]:
    """Return the pauses of many entries that hold now, oldest first. An entry may be paused by itself, too."""
    editor = ScheduleEditor(app)
    return sorted((each for each in editor.pauses() if each.holds(editor.now)), key=lambda each: each.at)


def _selected(all_: Any, tag: Any, prefix: Any) -> tuple[str, str]:
    tag, prefix = plain(tag), plain(prefix)
    if type(all_) is not bool:
        raise ConfigurationError(f"all = {shown(all_)}: give True or False")
    if (all_, tag is not None, prefix is not None).count(True) != 1:
        raise ConfigurationError("which entries? give one of all=True, tag and prefix (--all, --tag, --prefix)")
    if all_:
        return ALL, ""
    of, value = (TAG, tag) if prefix is None else (PREFIX, prefix)
    if not isinstance(value, str) or not value or not value.isprintable() or len(value) > MAX_NAME:
        raise ConfigurationError(f"{of} = {shown(value)}: give 1 to {MAX_NAME} printable characters")
    return of, value
