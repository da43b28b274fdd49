"""One entry of a schedule: is it due, for which slot, when is the next look, and when does its message expire?

:class:`Forecast` says for many entries at once when each is due next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone, tzinfo
from functools import cache
from operator import attrgetter
from typing import Any, NamedTuple

from celery.beat import ScheduleEntry
from celery.schedules import crontab, schedule
from celery.utils.time import maybe_make_aware

from celery_neli.schedule.cron import cron
from celery_neli.schedule.crontabs import FIELDS, to_utc
from celery_neli.schedule.policies import Misfire, decide
from celery_neli.schedule.slots import (
    LOOK_AGAIN,
    Derived,
    Owed,
    base_of,
    has_slots,
    is_over,
    last_run,
    looks_again,
    missed,
    next_slot,
    nominal,
    only_slot,
    shift_of,
)

#: An entry whose class overrides any of these decides itself when it is due, or advances itself.
_DECIDES = ("is_due", "default_now", "_default_now")
_ADVANCES = ("__next__", "next", "_next_instance")
_CRONTAB_TEXT = attrgetter(*(f"_orig_{name}" for name in FIELDS))
#: The fields that stay as they are when an entry advances.
_KEPT = ("app", "name", "task", "args", "kwargs", "options", "schedule")
_UTC, _NEVER = timezone.utc, datetime.min.replace(tzinfo=timezone.utc)


class Look(NamedTuple):
    """What a look at an entry found.

    ``due``: run it now, for ``slot`` (UTC; None if its schedule has no slots). ``delay``: seconds until the next look,
    ``exact`` if computed (infinite: no slot will follow); what a custom schedule said otherwise. ``owed`` and
    ``left_out``: the slots that are owed, and how many of them will never run; ``passed``: the newest one, if none
    runs.
    """

    due: bool
    delay: Any
    exact: bool = False
    slot: datetime | None = None
    owed: Owed | None = None
    left_out: int = 0
    passed: datetime | None = None

    @property
    def last_left_out(self) -> datetime | None:
        """Return the newest of the slots that will never run, as far as it is known."""
        if self.owed is None or self.slot is None:
            return self.passed
        return max((each for each in self.owed.newest if each < self.slot), default=self.owed.first)


def entry_has_slots(entry: Any) -> bool:
    """Return True if the slots of an entry can be computed: its class and its schedule decide as Celery's own do."""
    return _is_celerys(entry, _DECIDES) and has_slots(entry.schedule)


def look(entry: Any, now: datetime, policy: Misfire) -> Look | None:
    """Look at an entry that has slots at ``now`` (aware); None if there is no slot after its last run."""
    owed = missed(entry.schedule, entry.last_run_at, now, policy.limit + 1)  # … and one that is left out
    if owed is None:
        return None
    delay = math.inf if owed.upcoming is None else (owed.upcoming - now).total_seconds()
    if not owed.total:
        return Look(due=False, delay=delay, exact=True)
    run, left_out = decide(policy, owed, now, deadline=starting_deadline(entry.schedule))
    if not run:
        return Look(due=False, delay=delay, exact=True, owed=owed, left_out=left_out, passed=owed.newest[-1])
    return Look(due=True, delay=0 if len(run) > 1 else delay, exact=True, slot=run[0], owed=owed, left_out=left_out)


def starting_deadline(when: Any) -> float | None:
    """Return `beat_cron_starting_deadline` (seconds) for a crontab or a `cron`, None for any other schedule."""
    known = isinstance(base_of(when), (crontab, cron))
    found: float | None = when.app.conf.beat_cron_starting_deadline if known else None
    return found


def runs_left(entry: Any, runs: int | None = None) -> float:
    """Return how often an entry may run yet, by its `neli_max_runs`, if it ran so often; infinite without."""
    most = entry.options.get("neli_max_runs") if entry.options else None
    return math.inf if most is None else max(0, most - (entry.total_run_count if runs is None else runs))


def is_finished(entry: Any, runs: int) -> bool:
    """Return True if an entry that ran so often and has no slot to come was to end: by the number of its runs, by its
    end, or because it has one slot only.
    """
    when = entry.schedule
    ends = isinstance(when, Derived) and when.end is not None
    return not runs_left(entry, runs) or only_slot(when) is not None or ends


def seconds_to_next(entry: Any) -> float | None:
    """Return the seconds until the next slot of an entry that has slots: negative if it is past, infinite if none will
    follow, None as for `look`.
    """
    slot = next_slot(entry.schedule, entry.last_run_at)
    if slot is None:
        if looks_again(entry.schedule):
            return LOOK_AGAIN.total_seconds()
        return math.inf if is_over(entry.schedule) else None
    now: datetime = maybe_make_aware(entry.default_now())
    return (slot - now).total_seconds()


def advance(entry: Any, slot: datetime | None, now: datetime | None) -> Any:
    """Return the entry after its run for ``slot`` at ``now`` (its own clock). Its `last_run_at` is the slot, so that
    intervals do not drift.

    An entry without a slot, or whose class advances itself, advances as Celery does it: by `next(entry)`.
    """
    if slot is None or now is None or not _is_celerys(entry, _ADVANCES):
        return next(entry)
    at = _run_at(entry, slot, now)
    if type(entry) is not ScheduleEntry:
        return entry._next_instance(last_run_at=at)  # noqa: SLF001 - what next(entry) calls
    # What `next` would return, without the work of making an entry from what a user wrote.
    advanced: Any = object.__new__(ScheduleEntry)
    for field in _KEPT:
        setattr(advanced, field, getattr(entry, field))
    advanced.last_run_at, advanced.total_run_count = at, entry.total_run_count + 1
    return advanced


def pass_over(entry: Any, slot: datetime, now: datetime) -> Any:
    """Return the entry with the slots up to ``slot`` behind it, as if they had run, but not counted as runs."""
    passed = object.__new__(type(entry))
    passed.__dict__.update(vars(entry), last_run_at=_run_at(entry, slot, now))
    return passed


def restart(entry: Any, *, before: float) -> None:
    """Let an interval start over now if it last ran in the future but not after ``before``, the last time (Unix
    seconds) that the clock showed before it was set back.
    """
    when = entry.schedule
    floats = when.floats if isinstance(when, Derived) else isinstance(when, schedule)
    if not floats or not entry_has_slots(entry) or when.nowfun is not None:
        return
    now: datetime = entry.default_now()
    if maybe_make_aware(now).timestamp() < at_of(entry) <= before:
        entry.last_run_at = now


def at_of(entry: Any) -> float:
    """Return the entry's `last_run_at` as Unix seconds."""
    return float(maybe_make_aware(entry.last_run_at).timestamp())


def place(entry: Any, at: float) -> None:
    """Set the entry's `last_run_at` to ``at`` (Unix seconds), in the zone that it had."""
    entry.last_run_at = _in_zone_of(entry.last_run_at, datetime.fromtimestamp(at, _UTC))


# An entry's state, and what is shown of it, has its last slot without the shift of its schedule (`slots.nominal`), so
# that a slot which ran does not run again when `neli_jitter` is changed.


def last_at(entry: Any) -> float:
    """Return the time that names the last slot of an entry, or after which its first one is, as Unix seconds."""
    return at_of(entry) - shift_of(entry.schedule)


def place_last(entry: Any, at: float) -> None:
    """Set the last slot of an entry to the one that is named by ``at`` (Unix seconds)."""
    place(entry, at + shift_of(entry.schedule))


def begin_shifted(entry: Any) -> None:
    """Have an entry that was made just now begin with the first slot after that: none that waits for its jitter."""
    if shift_of(entry.schedule):
        place_last(entry, at_of(entry))


def slot_text(entry: Any, slot: datetime) -> str:
    """Return a slot of an entry as logs, headers and ids name it: in UTC, without the shift of its schedule."""
    return nominal(entry.schedule, slot).astimezone(_UTC).isoformat()


def expires_of(options: Mapping[str, Any], slot: datetime | None, zone: tzinfo) -> Any:
    """Return the `expires` of a message: an aware datetime, seconds from the time of sending, or None.

    Of the checked ``options``, `neli_expires` counts from the slot if there is one, and `expires` from the sending. A
    time without an offset is in ``zone``: Celery would take it for UTC when it sends the message, and for the worker's
    local time when it runs the task.
    """
    seconds = options.get("neli_expires")
    if seconds is not None:
        return seconds if slot is None else slot + timedelta(seconds=seconds)
    expires = options.get("expires")
    try:
        at = datetime.fromisoformat(expires) if isinstance(expires, str) else expires
    except ValueError:
        return expires  # Celery reads it, or says what is wrong with it
    return to_utc(zone, at) if isinstance(at, datetime) and at.utcoffset() is None else expires


class Next(NamedTuple):
    """Seconds until the next slot (negative: it is past; infinite: there is none), counted from ``now`` (Unix)."""

    delay: float
    now: float


class Forecast:
    """When each of many entries is due next, as of one moment.

    A hundred thousand entries have far fewer kinds of times: the clock is read once, an interval is a sum, and the next
    slot of a crontab is the same for all entries that ran last between two of its slots. Blocks only where entries or
    schedules of other classes do. For one thread at a time.
    """

    def __init__(self) -> None:
        self._clock = cache(_clock)
        #: For the text and time zone of a crontab: an entry that ran last from one time on and before the other, which
        #: is a slot, is due at the latter.
        self._stretches: dict[Any, tuple[datetime, datetime]] = {}

    def next(self, entry: Any) -> Next | None:
        """Return what `seconds_to_next` says of the entry; None also for an entry that has no slots."""
        if not entry_has_slots(entry):
            return None
        when, last, slot = entry.schedule, entry.last_run_at, None
        if type(entry) is ScheduleEntry and when.nowfun is None and last.tzinfo is not None:
            if type(when) is schedule and not when.relative:
                slot = last.astimezone(_UTC) + when.run_every
            elif type(when) is crontab:
                slot = self._of_crontab(when, last)
            elif type(when) is cron:
                zone = self._clock(when.app)[1] if when.zone is None else None
                slot = self._in_stretch(when, last, (str(when), zone), lambda: last.replace(microsecond=0))
            elif isinstance(when, Derived) and not when.floats:
                slot = self._of_derived(when, last)
        if slot is not None:
            now, _ = self._clock(when.app)
            return Next((slot - now).total_seconds(), now.timestamp())
        delay = seconds_to_next(entry)
        return None if delay is None else Next(delay, maybe_make_aware(entry.default_now()).timestamp())

    def _of_crontab(self, when: Any, last: datetime) -> datetime | None:
        zone = vars(when).get("tz") or self._clock(when.app)[1]  # reading `tz` would store it in the crontab
        # Crontabs ignore seconds.
        return self._in_stretch(
            when,
            last,
            (_CRONTAB_TEXT(when), zone),
            lambda: last.astimezone(zone).replace(second=0, microsecond=0),
        )

    def _of_derived(self, when: Any, last: datetime) -> datetime | None:
        """Entries that differ in their shift share the search."""
        zone, at = when.zone or self._clock(when.app)[1], last.astimezone(_UTC) - when.shift
        try:
            begin, slot = self._stretches.get((when.key, zone), (_NEVER, _NEVER))
        except TypeError:
            return None
        if not begin <= at < slot:
            following = next_slot(when, last)
            if following is None:
                return None
            slot = nominal(when, following)
            self._stretches[when.key, zone] = at, slot
        found: datetime = slot + when.shift
        return found

    def _in_stretch(self, when: Any, last: datetime, key: Any, begins: Callable[[], datetime]) -> datetime | None:
        """Return the slot after ``last``, which is also the one after ``begins()`` and any time between."""
        try:
            begin, slot = self._stretches.get(key, (_NEVER, _NEVER))
        except TypeError:
            return None  # a field was given as a list or a set
        if begin <= last < slot:
            return slot
        following = next_slot(when, last)
        if following is not None:
            self._stretches[key] = begins().astimezone(_UTC), following
        return following


def _clock(app: Any) -> tuple[datetime, tzinfo]:
    return maybe_make_aware(app.now()).astimezone(_UTC), app.timezone


def _run_at(entry: Any, slot: datetime, now: datetime) -> datetime:
    """Return the `last_run_at` after a run for ``slot``, on the clock of the entry, on which relative intervals are
    rounded. For the last solar event that was owed it is now, as with Celery.
    """
    at = last_run(entry.schedule, slot)
    if at > slot:
        aware = maybe_make_aware(now)
        following = next_slot(entry.schedule, at)
        if following is None or following > aware:
            at = max(at, aware)
    return _in_zone_of(now, at)


def _in_zone_of(other: datetime, at: datetime) -> datetime:
    return at.astimezone(_UTC).replace(tzinfo=None) if other.tzinfo is None else at.astimezone(other.tzinfo)


def _is_celerys(entry: Any, names: tuple[str, ...]) -> bool:
    kind = type(entry)
    return kind is ScheduleEntry or all(
        getattr(kind, name, None) is getattr(ScheduleEntry, name, None) for name in names
    )
