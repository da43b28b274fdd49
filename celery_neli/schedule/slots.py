"""The slots of schedules: their due times after any moment; of Celery's schedules, and of `once` and `cron`: ours.

Celery's schedules answer `is_due(last_run_at)` for the present only. This module answers for any moment: the first due
time after it, and those that were due until now. The slots of a relative interval are Celery's own
(`remaining_estimate`, on a schedule whose clock is stopped), and may differ between its releases; no others do. A class
that overrides how it decides has no slots, only `is_due`. All slots are aware datetimes in UTC. Pure, apart from the
schedules' own settings; nothing blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime, timedelta, timezone, tzinfo
from functools import lru_cache
from hashlib import sha1
from typing import Any, Final, NamedTuple
from uuid import UUID

from celery.schedules import BaseSchedule, crontab, schedstate, schedule, solar
from celery.utils.time import maybe_make_aware

from celery_neli.exceptions import ConfigurationError
from celery_neli.schedule.cron import cron
from celery_neli.schedule.crontabs import next_time

COUNTED = 100  # the number of slots that are counted one by one; above it, a count is a lower bound
LOOK_AGAIN = timedelta(days=1)  # the time after which a search that found no slot is repeated
#: The days through which a solar event is searched: each comes at least once a year wherever it comes at all.
SOLAR_DAYS = 400
#: What decides when a schedule is due. A class or object that overrides any of these has no slots.
_DECIDES = frozenset(
    ("is_due", "remaining_estimate", "remaining_delta", "_delta_to_next", "_next_event", "now", "maybe_make_aware")
)
_SECOND, _LEAST, _EPOCH = timedelta(seconds=1), timedelta.resolution, datetime(1970, 1, 1, tzinfo=timezone.utc)


class once(BaseSchedule):  # noqa: N801 - as Celery's schedule, crontab and solar
    """A schedule that is due at ``at`` (an aware datetime), unless the entry ran then or later. For any thread.

    A beat without state counts an entry of `beat_schedule` as run when it starts, so a time before that never comes.
    Raises `ConfigurationError` if ``at`` is not an aware datetime.
    """

    def __init__(self, at: datetime, *, nowfun: Callable[[], datetime] | None = None, app: Any = None) -> None:
        given: Any = at
        if not isinstance(given, datetime) or given.utcoffset() is None:
            raise ConfigurationError(f"once({at!r}): give a datetime with a time zone, such as timezone.utc")
        try:
            self.at = at.astimezone(timezone.utc)
        except OverflowError:
            raise ConfigurationError(f"once({at!r}): in UTC, no datetime can hold it") from None
        super().__init__(nowfun=nowfun, app=app)

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        """Return the time until `at`, negative once that is past."""
        return self.at - maybe_make_aware(self.now())  # type: ignore[no-any-return]

    def is_due(self, last_run_at: datetime) -> schedstate:
        """Return whether it is due now, and the seconds until the next look, infinite once it ran."""
        if maybe_make_aware(last_run_at) >= self.at:
            return schedstate(False, math.inf)
        left = self.remaining_estimate(last_run_at).total_seconds()
        return schedstate(True, math.inf) if left <= 0 else schedstate(False, left)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, once):
            return other.at == self.at and other.nowfun == self.nowfun
        return NotImplemented

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.at,)

    def __repr__(self) -> str:
        return f"<once: {self.at.isoformat()}>"


class Derived(BaseSchedule):
    """A schedule whose slots are some of those of another one, ``inner``, each shifted by ``shift``.

    Everything that decides when a slot runs counts with the shifted time; what shows or names a slot leaves out the
    shift (`nominal`). A subclass says in `next_time` which slots there are. Shown as the other schedule is.
    """

    #: It may have a slot again although a search found none (`looks_again`).
    searched_again = False
    #: The slots of an interval count from the last run, and not from a fixed time.
    floats = False
    #: No slot is after it, without the shift.
    end: datetime | None = None

    def __init__(self, inner: Any, shift: timedelta = timedelta(0)) -> None:
        self.inner, self.shift, self.nowfun = inner, shift, inner.nowfun

    @property
    def app(self) -> Any:
        """The app of the other schedule, which has the clock and perhaps the time zone."""
        return self.inner.app

    @app.setter
    def app(self, app: Any) -> None:
        self.inner.app = app

    @property
    def tz(self) -> tzinfo:
        """The time zone of the other schedule."""
        zone: tzinfo = self.inner.tz
        return zone

    def next_time(self, after: datetime) -> datetime | None:
        """Return the first slot (UTC, shifted) after ``after`` (aware), None if there is none."""
        raise NotImplementedError

    def next_nominal(self, after: datetime) -> datetime | None:
        """Return the same without the shift, for a time without it."""
        raise NotImplementedError

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        """Return the time until the first slot after a last run, negative if it is past."""
        slot = self.next_time(maybe_make_aware(last_run_at, self.tz))
        return timedelta.max if slot is None else slot - maybe_make_aware(self.now())

    def is_due(self, last_run_at: datetime) -> schedstate:
        """Return whether it is due now, and the seconds until its next slot, infinite if there is none."""
        now, slot = maybe_make_aware(self.now()), self.next_time(maybe_make_aware(last_run_at, self.tz))
        due = slot is not None and slot <= now
        upcoming = self.next_time(now) if due else slot
        return schedstate(due, math.inf if upcoming is None else (upcoming - now).total_seconds())

    def __repr__(self) -> str:
        return repr(self.inner)

    def __str__(self) -> str:
        return str(self.inner)


def nominal(when: Any, slot: datetime) -> datetime:
    """Return a slot of schedule ``when`` as it is shown and named everywhere: without its shift (`neli_jitter`)."""
    return slot - when.shift if isinstance(when, Derived) else slot


def shift_of(when: Any) -> float:
    """Return how many seconds after the time that names it a slot of ``when`` is due."""
    return when.shift.total_seconds() if isinstance(when, Derived) else 0.0


def base_of(when: Any) -> Any:
    """Return the schedule that ``when`` is made of, which may be itself."""
    return when.inner if isinstance(when, Derived) else when


def only_slot(when: Any) -> datetime | None:
    """Return the slot of a schedule that has one only, None for any other."""
    base = base_of(when)
    return base.at + (base.at - nominal(when, base.at)) if isinstance(base, once) else None


class Owed(NamedTuple):
    """The slots after the last run and not after now.

    ``newest``: the last few of them, oldest first; ``first``: the first of all; ``total``: their number, or a lower
    bound of it if not ``exact``; ``upcoming``: the first slot after now, None if there is none.
    """

    newest: tuple[datetime, ...]
    first: datetime | None
    total: int
    exact: bool
    upcoming: datetime | None


_NONE = Owed(newest=(), first=None, total=0, exact=True, upcoming=None)  # of a schedule that is over


def has_slots(when: Any) -> bool:
    """Return True if the slots of this schedule can be computed: it is a `once`, a `cron`, or one of Celery's
    intervals, crontabs and solar schedules that overrides nothing.
    """
    kind: Any = type(when)
    if not _is_celerys(kind) or not _DECIDES.isdisjoint(vars(when)):
        return False
    # Below a second, Celery rounds a relative interval to a moment that is past.
    return not isinstance(when, schedule) or when.run_every >= (_SECOND if when.relative else _LEAST)


@lru_cache(maxsize=256)
def _is_celerys(kind: Any) -> bool:
    base = next((each for each in (schedule, crontab, cron, solar, once, Derived) if issubclass(kind, each)), None)
    return base is not None and all(getattr(kind, name, None) is getattr(base, name, None) for name in _DECIDES)


def next_slot(when: Any, after: datetime) -> datetime | None:
    """Return the first slot of schedule ``when`` after ``after`` (naive: UTC), or None if there is none, or the
    schedule has no slots.
    """
    return _next(when, maybe_make_aware(after, when.tz)) if has_slots(when) else None


def is_over(when: Any) -> bool:
    """Return True if a schedule that `has_slots`, but none now, will never have one.

    Relative intervals may, because they are asked; so may those that are searched again after a day (`looks_again`).
    """
    return not looks_again(when) and not (isinstance(when, schedule) and when.relative)


def looks_again(when: Any) -> bool:
    """Return True for solar schedules, and for those with a calendar: a search of theirs ends after some time."""
    return isinstance(base_of(when), solar) or (isinstance(when, Derived) and when.searched_again)


def last_run(when: Any, slot: datetime) -> datetime:
    """Return the `last_run_at` (UTC) of an entry that ran for ``slot``.

    It is the slot itself, and a second later for a solar event, which a search from its own moment could find again.
    """
    return slot + _SECOND if isinstance(base_of(when), solar) else slot


def missed(when: Any, last: datetime, now: datetime, limit: int) -> Owed | None:
    """Return the slots of ``when`` that are owed at ``now`` if it ran last at ``last``; the newest ``limit`` of them in
    full.

    None if the schedule has no slots. Naive times are UTC. The cost is bounded however long ago ``last`` is: intervals
    are computed, other slots are counted to a hundred and then searched from the end.
    """
    if not has_slots(when):
        return None
    start = maybe_make_aware(last, when.tz)  # as `is_due` has it
    first = _next(when, start)
    now = maybe_make_aware(now).astimezone(timezone.utc)
    if first is None:
        if looks_again(when):
            return _NONE._replace(upcoming=now + LOOK_AGAIN)
        return _NONE if is_over(when) else None
    if first > now:
        return _NONE._replace(upcoming=first)
    if isinstance(when, once):
        return Owed(newest=(first,), first=first, total=1, exact=True, upcoming=None)
    if isinstance(when, schedule) and not when.relative:
        total = (now - start) // when.run_every
        newest = tuple(first + (n - 1) * when.run_every for n in range(max(1, total - limit + 1), total + 1))
        return Owed(newest=newest, first=first, total=total, exact=True, upcoming=newest[-1] + when.run_every)
    owed = _missed_one_by_one(when, start.tzinfo, now, first, limit)
    if isinstance(when, Derived) and is_over(when) and _next(when, owed.newest[-1]) is None:
        owed = owed._replace(upcoming=None)
    return owed


def _missed_one_by_one(when: Any, zone: tzinfo | None, now: datetime, first: datetime, limit: int) -> Owed:
    found, upcoming = _until(when, zone, first, now, COUNTED)
    total, exact, base = len(found), upcoming is not None, base_of(when)
    # If there are too many, search the end only, from further back until there are enough.
    span = max(limit * (found[-1] - first) / COUNTED, timedelta(minutes=1))
    begin = now
    while upcoming is None or (not exact and len(found) < limit and begin > first):
        span *= 2
        begin = now - span
        if isinstance(base, schedule):  # it counts from its last run
            begin = first + (begin - first) // base.run_every * base.run_every
        begin = max(begin, first)
        slot = _next(when, begin.astimezone(zone)) or now + LOOK_AGAIN
        found, upcoming = _until(when, zone, slot, now, None)
        total = max(COUNTED, len(found))
    return Owed(newest=tuple(found[-limit:]), first=first, total=total, exact=exact, upcoming=upcoming)


def _until(
    when: Any, zone: tzinfo | None, slot: datetime, now: datetime, most: int | None
) -> tuple[list[datetime], datetime | None]:
    """Return the slots from ``slot`` to ``now`` and the next one, which is None if there are more than ``most``."""
    found: list[datetime] = []
    while slot <= now:
        if len(found) == most:
            return found, None
        found.append(slot)
        # A relative interval is rounded on the clock of its last run. If there is no further slot, search again later.
        slot = _next(when, last_run(when, slot).astimezone(zone)) or now + LOOK_AGAIN
    return found, slot


def _next(when: Any, start: datetime) -> datetime | None:
    if isinstance(when, once):
        return when.at if when.at > start else None
    if isinstance(when, crontab):
        return next_time(when, start)
    if isinstance(when, (cron, Derived)):
        return when.next_time(start)
    if isinstance(when, solar):
        return _next_event(when, start)
    if not when.relative:
        try:
            following: datetime = start.astimezone(timezone.utc) + when.run_every
            return following
        except OverflowError:
            return None
    stopped = object.__new__(type(when))
    stopped.__dict__.update(vars(when), nowfun=lambda: start)
    slot: datetime = start.astimezone(timezone.utc) + stopped.remaining_estimate(start)
    return slot if slot > start else None


def _next_event(when: Any, after: datetime) -> datetime | None:
    """Return the first event of a solar schedule after ``after``, or None if it does not come within a year or so.

    On a day without the event, in the polar night or day, Celery 5.5 and 5.6 raise a TypeError, and Celery 5.7 takes
    the end of its search for the event; here the search goes on to the next day. The moment of a sunrise is known to
    the millisecond at best, so slots are whole seconds, rounded up.
    """
    ephem: Any = when.ephem
    place, sun = when.cal.copy(), ephem.Sun()  # a search changes the observer
    start = place.date = ephem.Date(after.astimezone(timezone.utc).replace(tzinfo=None))
    options = {"use_center": True} if when.use_center else {}
    for _ in range(SOLAR_DAYS):
        try:
            found = getattr(place, when.method)(sun, start=start, **options)
        except ephem.CircumpolarError:
            start = place.next_antitransit(sun, start=start)  # the next day begins when the sun is lowest
        else:
            moment = found.datetime().replace(tzinfo=timezone.utc)
            slot: datetime = -(-(moment - _EPOCH) // _SECOND) * _SECOND + _EPOCH
            return slot if slot > after else None
    return None


# -- the id of a slot: the task id of its message, whichever leader sends it --

#: The namespace of the slots' ids.
NAMESPACE: Final = UUID("5b9ad6f0-7c0e-5d8e-9d57-0d4c4e4c4931")
_NAMESPACE = NAMESPACE.bytes


@lru_cache(maxsize=1_000)  # asked when a slot is sent, and when it is told what became of it
def slot_id(group: str, entry: str, slot: str) -> str:
    """Return the task id of a slot, the same for every sender: UUIDv5 of group, entry and slot (ISO 8601, UTC)."""
    # The value of str(uuid5(…)) (RFC 9562, 5.5), in a third of the time.
    name = f"{group}\n{entry}\n{slot}".encode("utf-8", "surrogatepass")
    digest = sha1(_NAMESPACE + name, usedforsecurity=False).hexdigest()
    variant = "89ab"[int(digest[16], 16) & 3]
    return f"{digest[:8]}-{digest[8:12]}-5{digest[13:16]}-{variant}{digest[17:20]}-{digest[20:32]}"


def id_at(group: str, entry: str, slot: float) -> str:
    """Return the `slot_id` of the slot at these Unix seconds."""
    return slot_id(group, entry, datetime.fromtimestamp(slot, timezone.utc).isoformat())
