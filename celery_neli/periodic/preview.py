"""The next slots of an entry, or of a schedule that is not stored yet, and what becomes of each.

Pure for a schedule, and for an entry as soon as the schedule topic was read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone, tzinfo
from itertools import islice
from typing import Any, Final

from celery.schedules import crontab
from celery.utils.time import maybe_make_aware

from celery_neli.exceptions import ConfigurationError
from celery_neli.periodic.call import check_app
from celery_neli.periodic.definition import entry_of, moment
from celery_neli.periodic.editor import ScheduleEditor
from celery_neli.periodic.text import human, looks_like_cron, schedule_of, text_of
from celery_neli.periodic.view import BEAT_SCHEDULE, Periodic, entry_names, view_of
from celery_neli.schedule.cron import cron, zone_of
from celery_neli.schedule.crontabs import follows_real_time, offset_at
from celery_neli.schedule.due import entry_has_slots, runs_left, starting_deadline
from celery_neli.schedule.policies import CANCEL_OTHER, QUEUE_ONE, SKIP, Misfire, Overlap, decide
from celery_neli.schedule.shaped import shaped
from celery_neli.schedule.slots import (
    Derived,
    base_of,
    has_slots,
    last_run,
    looks_again,
    missed,
    next_slot,
    nominal,
    shift_of,
)
from celery_neli.schedule_topic.codec import FAR_AHEAD
from celery_neli.schedule_topic.values import is_moment, shown

MOST: Final = 10_000  # slots in one answer
_SECOND = timedelta(seconds=1)
#: What an overlap policy does to every slot.
_OVERLAPS: Final = {
    SKIP: "left out if the run before is unfinished",
    QUEUE_ONE: "waits if the run before is unfinished",
    CANCEL_OTHER: "revokes the run before if it is unfinished",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NextRun:
    """One slot to come, or one that is owed. `slot`: an aware datetime in the zone that was asked for; `runs`: whether
    its task is sent, as far as is known now; `notes`: what decides that, and what else becomes of it.
    """

    slot: datetime
    runs: bool = True
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values; times are ISO 8601, `utc` in UTC."""
        utc = self.slot.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")
        return {"slot": self.slot.isoformat(), "utc": utc, "runs": self.runs, "notes": list(self.notes)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """The next slots of what `what` names, in the time zone `zone`."""

    what: str
    zone: str
    runs: list[NextRun]


def next_runs(
    app: Any, name_or_schedule: Any, n: int = 10, *, tz: str | tzinfo | None = None, after: datetime | None = None
) -> list[NextRun]:
    """Return the next slots of an entry or of a schedule, soonest first, and what becomes of each.

    Without `after`, slots that an entry owes come first, as its misfire policy has them. A schedule needs no Kafka; for
    an entry of a name, the schedule topic is read, which blocks as `periodic.get` does.

    Args:
        app: The Celery app.
        name_or_schedule: The name of an entry, a `Periodic`, or anything that `periodic.put` takes as a schedule. Text
            that reads as a schedule is one, unless `beat_schedule` has an entry of this name.
        n: How many slots at most, up to 10,000.
        tz: The time zone of the slots in the answer, by its name; by default the one that the schedule is in.
        after: Only slots after this time (naive: in UTC), none that is owed.

    Raises:
        ConfigurationError: A value is wrong, no entry has this name, or the slots cannot be computed.
        NeliError: Kafka does not answer.
    """
    return preview(app, name_or_schedule, n, tz=tz, after=after).runs


def preview(
    app: Any,
    name_or_schedule: Any,
    n: int = 10,
    *,
    tz: str | tzinfo | None = None,
    after: datetime | None = None,
    named: bool = False,
    editor: ScheduleEditor | None = None,
) -> Preview:
    """As `next_runs`, and say what was found; `named`: it is the name of an entry, whatever it reads as. `editor` reads
    the schedule; a new one by default.
    """
    check_app(app)
    if type(n) is not int or not 1 <= n <= MOST:
        raise ConfigurationError(f"n = {shown(n)}: give a whole number from 1 to {MOST}")
    since: Any = after
    if since is not None and not (isinstance(since, datetime) and is_moment(since)):
        raise ConfigurationError(f"after = {shown(since)}: give a datetime of the years 2 to 9998")
    zone = None if tz is None else zone_of(tz)
    when, entry, view, now = _found(app, name_or_schedule, named, editor)
    if not (has_slots(when) if entry is None else entry_has_slots(entry)):
        raise ConfigurationError(f"schedule = {shown(when)}: only the schedule itself knows when it is due")
    own = when.tz if isinstance(base_of(when), (crontab, cron)) else app.timezone
    zone = zone or own
    try:
        text = human(text_of(when))
    except ConfigurationError:
        text = shown(when)
    slots = _slots(app, when, entry, view, now, after, own)
    return Preview(
        what=text if view is None else f"{view.name}: {text}",
        zone=str(zone),
        runs=[
            NextRun(slot=slot.astimezone(zone), runs=runs, notes=tuple(notes)) for slot, runs, notes in islice(slots, n)
        ],
    )


def _found(
    app: Any, given: Any, named: bool, editor: ScheduleEditor | None
) -> tuple[Any, Any, Periodic | None, datetime]:
    """Return the schedule, of an entry also the entry and what is known about it, and the present time (UTC)."""
    name: Any = given.name if isinstance(given, Periodic) else given
    when = mistake = None
    if not named and not isinstance(given, Periodic):
        try:
            when = _in_app(schedule_of(given, app=app), app)
        except ConfigurationError as exc:
            known = isinstance(given, str) and given in (app.conf.beat_schedule or ())
            if not known and (not isinstance(given, str) or looks_like_cron(given)):
                raise  # it can be nothing else
            mistake = exc
    if when is not None and not (isinstance(name, str) and name in (app.conf.beat_schedule or ())):
        return when, None, None, maybe_make_aware(app.now()).astimezone(timezone.utc)
    if editor is not None:
        exists = name in entry_names(editor)
    else:
        editor = ScheduleEditor(app)
        exists = editor.has(name)
    if not exists:
        why = f", and it is no schedule: {mistake}" if mistake is not None else ""
        raise ConfigurationError(f"{editor.unknown(name)}{why}")
    view = view_of(editor, name)
    if name in editor.refused or name in editor.known.unreadable:
        raise ConfigurationError(f"beat entry {shown(name)}: {view.problem}")
    entry = editor.static[name] if name in editor.static else entry_of(editor.known.definitions[name], name, app)
    state = editor.known.states.get(name)
    if view.source == BEAT_SCHEDULE and view.last is None and state is not None:
        view = replace(view, last=state.last)  # it never ran; a leader noted from when on it owes slots
    return entry.schedule, entry, view, moment(editor.now)


def _in_app(when: Any, app: Any) -> Any:
    """Return a schedule that has an app: a copy of what has none, so that what the caller holds stays as it is."""
    if not has_slots(when) or isinstance(when, Derived) or when._app is not None:  # noqa: SLF001 - `app` would be the current one
        return when
    made = object.__new__(type(when))
    made.__dict__.update(vars(when))
    made.__dict__.pop("tz", None)
    made.app = app
    return made


def _slots(
    app: Any, when: Any, entry: Any, view: Periodic | None, now: datetime, after: datetime | None, zone: tzinfo
) -> Iterator[tuple[datetime, bool, list[str]]]:
    shift = timedelta(seconds=shift_of(when))
    start = now if after is None else maybe_make_aware(after).astimezone(timezone.utc) + shift
    ends = None if view is None or not view.paused or view.until is None else moment(view.until) + shift
    paused = view is not None and view.paused and not (ends is not None and ends <= start)
    always, runs = _of_entry(entry, view, paused=paused)
    left = math.inf if entry is None or view is None else runs_left(entry, view.runs)
    begins = None if view is None else _last(view, now)
    begins = None if begins is None else begins + shift
    if ends is not None and not paused:  # it has resumed itself by the time that `after` names
        begins, ends = ends, None
    owed, policy = None, Misfire()
    if begins is not None:
        policy = Misfire.of_app(app).changed_by(entry.options)
        owed = missed(when, begins.astimezone(zone), start, policy.limit)
    computed = owed is not None and not looks_again(when)  # an interval counts from its last run
    following = owed.upcoming if owed is not None and computed else next_slot(when, start.astimezone(zone))
    if owed is not None and owed.total and runs and after is None and left:
        chosen, left_out = decide(policy, owed, now, deadline=starting_deadline(when))
        for slot in owed.newest:
            notes = [f"overdue, {'runs at once' if slot in chosen else 'left out'}: {policy.policy}"]
            if left_out and owed.total > 1 and slot == owed.newest[-1]:
                notes.append(f"{'' if owed.exact else 'at least '}{left_out} left out since {_utc(owed.first)}")
            left -= slot in chosen
            yield nominal(when, slot), slot in chosen, notes + always
    before = start
    while following is not None and left > 0:
        if ends is not None and maybe_make_aware(following) > ends:
            # The pause is over: the entry counts as resumed at its end, where an interval starts over.
            following, ends = next_slot(when, ends.astimezone(zone)), None
            always, runs = _of_entry(entry, view, paused=False)
            continue
        left -= runs
        if isinstance(when, shaped):
            for omitted in when.left_out(before - shift, following - shift):
                yield omitted, False, [when.why_not(omitted) or ""]
        before, upcoming = following, next_slot(when, last_run(when, following).astimezone(zone))
        notes = [*_clock_notes(when, following), *_shape_notes(when, following, upcoming)]
        if not left:
            notes.append(f"the last of {entry.options['neli_max_runs']} runs: neli_max_runs")
        yield nominal(when, following), runs, [*notes, *always]
        following = upcoming


def _utc(slot: datetime | None) -> str:
    return f"{slot:%Y-%m-%d %H:%M:%S}Z"


def _last(view: Periodic, now: datetime) -> datetime | None:
    """Return the time after which an entry owes slots; None if a beat has not seen it yet, or would not believe it."""
    known = [each for each in (view.last, view.since) if each is not None]
    at = max(known, default=None)
    return None if at is None or (at > now.timestamp() + FAR_AHEAD and at != view.since) else moment(at)


def _of_entry(entry: Any, view: Periodic | None, *, paused: bool) -> tuple[list[str], bool]:
    """Return what becomes of every slot of an entry while it is `paused` or not, and whether its tasks are sent."""
    if entry is None or view is None:
        return [], True
    notes, runs = [], True
    if paused:
        until = "" if view.until is None else f" until {_utc(moment(view.until))}"
        by = "" if view.paused_by is None else f" by the pause of {view.paused_by}"
        notes, runs = [f"paused{until}{by}"], False
    if view.problem is not None:
        notes.append(view.problem)
        runs = runs and view.source == BEAT_SCHEDULE
    if (note := _OVERLAPS.get(Overlap.from_options(entry.options).policy)) is not None:
        notes.append(note)
    expires = (entry.options or {}).get("neli_expires")
    if expires is not None:
        notes.append(f"expires after {expires:g} s")
    return notes, runs


def _shape_notes(when: Any, slot: datetime, following: datetime | None) -> Iterator[str]:
    """Yield what the options of its entry do to a slot."""
    if not isinstance(when, shaped):
        return
    if when.shift:
        yield f"sent {when.shift.total_seconds():g} s later: neli_jitter"
    if when.start is not None and next_slot(when, when.start + when.shift - timedelta.resolution) == slot:
        yield "the first one: neli_start"
    if when.end is not None and following is None:
        yield "the last one: neli_end"


def _clock_notes(when: Any, slot: datetime) -> Iterator[str]:
    """Yield what a change of the clock does to a slot."""
    when, slot = base_of(when), nominal(when, slot)
    if not isinstance(when, (crontab, cron)):
        return
    before, at = offset_at(when.tz, slot - _SECOND), offset_at(when.tz, slot)
    shown_then = slot + at
    if at > before:
        fixed = not (when.follows_real_time if isinstance(when, cron) else follows_real_time(when))
        if fixed and not _names(when, shown_then):
            yield f"the clock goes from {slot + before:%H:%M} to {shown_then:%H:%M}: its time is left out"
    elif slot.astimezone(when.tz).fold:
        yield "in the second pass of an hour that is repeated"


def _names(when: Any, local: datetime) -> bool:
    if isinstance(when, cron):
        return when.names(local)
    return local.second == 0 and local.minute in when.minute and local.hour in when.hour
