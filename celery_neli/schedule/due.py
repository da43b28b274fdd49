"""Whether an entry of a schedule is due, for which of its slots, and when to look at it again."""

from __future__ import annotations

import math
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, NamedTuple

from celery.beat import ScheduleEntry
from celery.schedules import crontab, schedule, solar
from celery.utils.time import maybe_make_aware

from celery_neli.schedule.misfire import OPTIONS, decide
from celery_neli.schedule.slots import LOOK_AGAIN, comes_never, is_known, last_run, missed, next_slot

if TYPE_CHECKING:
    from celery_neli.schedule.misfire import Misfire
    from celery_neli.schedule.slots import Owed

__all__ = [
    "Look",
    "advance",
    "at_of",
    "look",
    "pass_over",
    "place",
    "reckoned",
    "restart",
    "rule_of",
    "seconds_to_next",
]

#: An entry whose class has its own say in any of these is asked, and advanced by its own code.
_JUDGES = ("is_due", "default_now", "_default_now")
_ADVANCES = ("__next__", "next", "_next_instance")


class Look(NamedTuple):
    """What a look at an entry found.

    ``due``: run it now, for ``slot`` (UTC; None: its schedule knows no slots). ``delay``: seconds until the next look,
    ``exact`` if reckoned (infinite: no slot will follow); of a custom schedule whatever it said. ``owed`` and
    ``left_out``: slots that will never run, if any; ``passed``: the newest of them, when none runs.
    """

    due: bool
    delay: Any
    exact: bool = False
    slot: datetime | None = None
    owed: Owed | None = None
    left_out: int = 0
    passed: datetime | None = None


def reckoned(entry: Any) -> bool:
    """Whether the entry and its schedule are as Celery has them, so that its slots can be reckoned."""
    return _has_celerys(entry, _JUDGES) and is_known(entry.schedule)


def rule_of(entry: Any, default: Misfire) -> Misfire:
    """The misfire policy of an entry: its options before the ``default``. Raises `ConfigurationError`."""
    options = entry.options
    if not options or not any(name in options for name in OPTIONS):
        return default
    return default.changed_by(options)


def look(entry: Any, now: datetime, rule: Misfire) -> Look | None:
    """Look at a `reckoned` entry at ``now`` (aware); None if its schedule names no slot after the last run."""
    owed = missed(entry.schedule, entry.last_run_at, now, rule.limit)
    if owed is None:
        return None
    delay = math.inf if owed.upcoming is None else (owed.upcoming - now).total_seconds()
    if not owed.total:
        return Look(due=False, delay=delay, exact=True)
    deadline = entry.schedule.app.conf.beat_cron_starting_deadline if isinstance(entry.schedule, crontab) else None
    decision = decide(rule, owed, now, deadline=deadline)
    if not decision.run:
        return Look(due=False, delay=delay, exact=True, owed=owed, left_out=decision.left_out, passed=owed.newest[-1])
    return Look(
        due=True,
        delay=0 if len(decision.run) > 1 else delay,
        exact=True,
        slot=decision.run[0],
        owed=owed,
        left_out=decision.left_out,
    )


def seconds_to_next(entry: Any) -> float | None:
    """Seconds until the next slot of a `reckoned` entry, negative if it is past, infinite if none will follow; None as
    for `look`.
    """
    slot = next_slot(entry.schedule, entry.last_run_at)
    if slot is None:
        if isinstance(entry.schedule, solar):
            return LOOK_AGAIN.total_seconds()
        return math.inf if comes_never(entry.schedule) else None
    now: datetime = maybe_make_aware(entry.default_now())
    return (slot - now).total_seconds()


def advance(entry: Any, slot: datetime | None, now: datetime | None) -> Any:
    """The entry after its run for ``slot`` at ``now`` by its clock. `last_run_at` is the slot: intervals do not drift.

    An entry without a slot, or whose class advances itself, is advanced as Celery does it: by `next(entry)`.
    """
    if slot is None or now is None or not _has_celerys(entry, _ADVANCES):
        return next(entry)
    at = _run_at(entry, slot, now)
    if type(entry) is not ScheduleEntry:
        return entry._next_instance(last_run_at=at)  # noqa: SLF001 - what next(entry) calls
    # What it would return, without going through all that makes a new entry of what a user wrote.
    advanced: Any = object.__new__(ScheduleEntry)
    advanced.app = entry.app
    advanced.name = entry.name
    advanced.task = entry.task
    advanced.args = entry.args
    advanced.kwargs = entry.kwargs
    advanced.options = entry.options
    advanced.schedule = entry.schedule
    advanced.last_run_at = at
    advanced.total_run_count = entry.total_run_count + 1
    return advanced


def pass_over(entry: Any, slot: datetime, now: datetime) -> Any:
    """The entry with the slots up to ``slot`` behind it, as if they had run, but not counted as runs."""
    passed = object.__new__(type(entry))
    passed.__dict__.update(vars(entry), last_run_at=_run_at(entry, slot, now))
    return passed


def restart(entry: Any, *, before: float) -> None:
    """Let an interval begin now that last ran in the future, but not after ``before``, the clock's last time (Unix)."""
    if not isinstance(entry.schedule, schedule) or not reckoned(entry) or entry.schedule.nowfun is not None:
        return
    now: datetime = entry.default_now()
    last: datetime = maybe_make_aware(entry.last_run_at)
    if maybe_make_aware(now) < last and last.timestamp() <= before:
        entry.last_run_at = now


def at_of(entry: Any) -> float:
    """Return the entry's `last_run_at` as Unix seconds."""
    return float(maybe_make_aware(entry.last_run_at).timestamp())


def place(entry: Any, at: float) -> None:
    """Set the entry's `last_run_at` to ``at`` (Unix seconds), in the zone that it had."""
    zone = entry.last_run_at.tzinfo
    moment = datetime.fromtimestamp(at, timezone.utc)
    entry.last_run_at = moment.replace(tzinfo=None) if zone is None else moment.astimezone(zone)


def _run_at(entry: Any, slot: datetime, now: datetime) -> datetime:
    """``slot`` as a `last_run_at`: on the clock of the entry, for relative intervals are rounded on that of the last
    run. Of a solar event, which was the last one owed, as Celery has it: now.
    """
    at = last_run(entry.schedule, slot)
    if at > slot:
        aware = maybe_make_aware(now)
        following = next_slot(entry.schedule, at)
        if following is None or following > aware:
            at = max(at, aware)
    if now.tzinfo is None:
        return at.astimezone(timezone.utc).replace(tzinfo=None)
    return at.astimezone(now.tzinfo)


def _has_celerys(entry: Any, names: tuple[str, ...]) -> bool:
    kind = type(entry)
    return kind is ScheduleEntry or all(
        getattr(kind, name, None) is getattr(ScheduleEntry, name, None) for name in names
    )
