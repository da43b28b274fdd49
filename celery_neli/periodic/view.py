"""The entries of the schedule as the API shows them, with what is wrong with each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from celery.schedules import crontab
from celery.utils.time import maybe_make_aware

from celery_neli.exceptions import ConfigurationError, NeliError
from celery_neli.periodic.definition import awake, entry_of, moment, reason_of
from celery_neli.periodic.editor import ScheduleEditor, entry_name
from celery_neli.periodic.text import text_of
from celery_neli.printable import printable, printable_error
from celery_neli.schedule.due import is_finished, runs_left
from celery_neli.schedule.slots import next_slot, nominal, shift_of
from celery_neli.schedule_topic.codec import FAR_AHEAD, START_AHEAD, Change, Definition, State
from celery_neli.schedule_topic.pauses import NEVER, effective
from celery_neli.schedule_topic.rules import tags_of
from celery_neli.schedule_topic.values import shown

UNSHOWN = "cannot be shown"
BEAT_SCHEDULE, RUNTIME = "beat_schedule", "runtime"
KEPT_SLOTS = 4096
_WHOLE_MINUTES = 86_400.0 * 3650  # Unix seconds, after which each time zone is whole minutes away from UTC


@dataclass(frozen=True, slots=True, kw_only=True)
class Periodic:
    """One entry of the schedule and its state. Times are Unix seconds.

    `schedule`: its text, or the `repr` of what text cannot express. `source`: where it is defined, `beat_schedule` or
    `runtime`. `last`: the last slot that it ran for, None if it never ran; `runs`: how often it ran. `next`: the next
    slot; None if there is none, the entry is paused, or only the schedule itself knows. `due`: when that slot is due:
    then, or later by the entry's jitter; in the past if it is overdue. `finished`: it never runs again, because of its
    `neli_end` or `neli_max_runs`, or because its only time is past.
    `since`: no slot at or before it runs (of an entry of `beat_schedule`, the end of its last pause). `changes`: who
    did what and when, oldest first, the last 20; `note`: why the last one was made. `problem`: why this process cannot
    make an entry of it, if so.

    `version`: names what is stored of it, and changes with each change ("" if nothing is): for `expected`. `owner`: the
    one that it was put for. `tags`: its option `neli_tags`. `until`: when its pause ends by itself. `paused_by`: the
    pause of many entries that holds it, None if there is none.
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
    version: str = ""
    owner: str = ""
    tags: tuple[str, ...] = ()
    until: float | None = None
    note: str = ""
    paused_by: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values; what `args`, `kwargs` and `options` hold stays as it is."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {**values, "changes": [asdict(each) for each in self.changes], "tags": [*self.tags]}


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
    shows_next = entry is not found
    found = awake(found, editor.now)
    tags = tags_of(entry.options)
    rules = [each for each in editor.rules if each.fits(name, tags)]
    standing = effective(found, rules, editor.now)
    holding = [each for each in rules if each.holds(editor.now)]
    state = editor.known.states.get(name)
    if state is not None and not static and _is_of_former(state, found):
        state = None
    runs, upcoming = state.runs if state else 0, None
    if shows_next and runs_left(entry, runs):
        upcoming = _next(editor, state, entry.schedule, standing.since)
    return Periodic(
        name=name,
        task=task,
        schedule=text,
        args=tuple(entry.args or ()),
        kwargs=entry.kwargs,
        options=entry.options,
        source=BEAT_SCHEDULE if static else RUNTIME,
        paused=standing.paused,
        next=None if standing.paused else upcoming,
        due=None if standing.paused or upcoming is None else upcoming + shift_of(entry.schedule),
        finished=shows_next and upcoming is None and is_finished(entry, runs),
        last=state.last if state and state.runs else None,
        runs=runs,
        since=standing.since or None,
        changes=found.changes,
        problem=problem,
        version=found.version,
        owner=found.owner,
        tags=tags,
        until=standing.next_change if standing.paused and standing.next_change < NEVER else None,
        paused_by="; ".join(each.what for each in holding) or None,
        note=found.changes[-1].note if found.changes else "",
    )


def _is_of_former(state: State, found: Definition) -> bool:
    """Return True for the state of an entry of the same name that was removed before this one was added."""
    first = found.changes[0] if found.changes else None
    return first is not None and first.what == "added" and state.since < first.at and state.last < first.at


def _unshown(name: str, why: str, *, source: str = RUNTIME) -> Periodic:
    return Periodic(name=name, task=None, schedule=None, source=source, problem=f"{UNSHOWN}: {why}")


def _next(editor: ScheduleEditor, state: State | None, when: Any, since: float) -> float | None:
    # A beat does not believe what is further ahead, either.
    begins = since if since <= editor.now + START_AHEAD else 0.0
    last = state.last if state is not None and state.last <= max(begins, editor.now + FAR_AHEAD) else 0.0
    after = max(begins, last) or editor.now
    if type(when) is not crontab or after < _WHOLE_MINUTES:
        return _slot_after(when, after)
    # Of a hundred thousand entries most have one of a few schedules, whose slots are whole minutes.
    key = id(when), int(after // 60)
    found = editor.slots.get(key)
    if found is None or found[0] is not when:
        if len(editor.slots) >= KEPT_SLOTS:
            editor.slots.clear()
        editor.slots[key] = found = when, _slot_after(when, after)
    return found[1]


def _slot_after(when: Any, after: float) -> float | None:
    try:
        slot = next_slot(when, moment(after + shift_of(when)))
    except Exception:  # noqa: BLE001 - a user's schedule may raise anything; the beat logs it
        return None
    return None if slot is None else maybe_make_aware(nominal(when, slot)).timestamp()
