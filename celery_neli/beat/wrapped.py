"""Runs any Celery scheduler for a role: builds it for each term, held to the lease, and closes it at the term's end.

Celery's own code decides what is due. :class:`LeasedMixin` asks the lease at the moments that count: before an entry
advances, before it is applied, and before anything is written; :mod:`celery_neli.beat.publish` asks the last time,
before a message leaves. A `Reservation` undoes what Celery has done of an entry whose message never left.

:class:`WrappedHost` knows what each known scheduler needs to be built, retired (its state is written, then it is
closed) and abandoned (nothing is written: the term is over, and the store may belong to another beat).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, ClassVar

import celery.beat
from celery.utils.log import get_logger
from celery.utils.time import maybe_make_aware

from celery_neli import hooks
from celery_neli.beat.publish import (
    beat_headers,
    is_transport_error,
    leased_producer,
    release_connection,
    wait_for_broker,
)
from celery_neli.beat.tenure import Tenure
from celery_neli.config import derives_from
from celery_neli.exceptions import ConfigurationError
from celery_neli.logs import escaping
from celery_neli.periodic.static import check_static, log_mistakes

logger = escaping(get_logger(__name__))


@dataclass(kw_only=True)
class SentRuns:
    """What this process remembers of its runs from one scheduler to the next."""

    #: When each entry was last sent from here.
    sent: dict[str, datetime] = field(default_factory=dict)
    #: A run of term ``owed_term`` that could not be written yet.
    owed: Reservation | None = None
    owed_term: int | None = None


@dataclass(eq=False)
class Reservation:
    """Undoes the advance of an entry whose message never left, of a scheduler that has its entries in ``schedule``.

    Celery advances an entry (``last_run_at``, ``total_run_count``) before its message leaves. If the term ends in
    between, the successor would believe that the task ran, and it would be lost. A reservation is made before the entry
    advances, so that the advance can be undone whenever a signal handler cuts in.
    """

    scheduler: Any
    entry: Any
    #: The entry after this run; None before :meth:`take`.
    advanced: Any = None

    def take(self, advance: Callable[[Any], Any]) -> Any:
        """Advance the entry by ``advance`` (the scheduler's own ``reserve``), and return the advanced one."""
        self.advanced = advance(self.entry)
        return self.advanced

    def confirm(self) -> None:
        """Make the run known: its message left, or Celery gave it up for good. May write, block and raise."""

    def cancel(self) -> None:
        """Undo the advance: nothing was sent."""
        self.scheduler.schedule[self.entry.name] = self.entry


@dataclass(eq=False)
class RowReservation(Reservation):
    """Holds an entry of DatabaseScheduler: ``next(entry)`` changes the object of the row, which ``sync`` writes."""

    FIELDS: ClassVar = ("last_run_at", "total_run_count", "no_changes")  # those that ModelEntry.__next__ sets

    def __post_init__(self) -> None:
        self._was = {name: getattr(self.entry.model, name) for name in self.FIELDS}
        self._was_dirty = self.entry.name in self.scheduler._dirty

    def cancel(self) -> None:
        """Restore the row's object; it is not written for this run."""
        for name, value in self._was.items():
            setattr(self.entry.model, name, value)
        if not self._was_dirty:
            self.scheduler._dirty.discard(self.entry.name)


class DeferredReservation(Reservation):
    """Holds an entry of RedBeat, which writes to Redis as it advances: that waits until the message has left.

    Taking it back afterwards would race with the successor. A crash in between sends the task twice; it is never lost.
    """

    def take(self, advance: Callable[[Any], Any]) -> Any:
        """Advance the entry in memory only."""
        self.advanced = celery.beat.ScheduleEntry._next_instance(
            self.entry
        )  # RedBeat's override is this, and the write
        return self.advanced

    def confirm(self) -> None:
        """Write the run to Redis."""
        self.entry._next_instance(last_run_at=self.advanced.last_run_at)

    def cancel(self) -> None:
        """Do nothing: nothing was written."""


class LeasedMixin(celery.beat.Scheduler):
    """Stands in front of a user's scheduler class, as a base that `WrappedHost` adds together with the tenure.

    Celery's schedulers call their own methods and offer no hooks, so that only a subclass can ask in between.
    Everything runs on the thread that ticks.
    """

    neli_tenure: Tenure
    neli_reservation: Reservation | None = None
    neli_sent_runs: SentRuns
    neli_reservation_class: type[Reservation] = Reservation

    def merge_inplace(self, b: Any) -> None:
        """Leave out entries of `beat_schedule` that would prevent the scheduler from being built."""
        super().merge_inplace(self._neli_sound(b))

    def update_from_dict(self, dict_: Any) -> None:
        """Do the same for schedulers that take over `beat_schedule` by this method."""
        super().update_from_dict(self._neli_sound(dict_))

    def _neli_sound(self, given: Any) -> Any:
        if given is not self.app.conf.beat_schedule:
            return given  # the scheduler's own entries
        found = check_static(given, self.app, kind=self.Entry, shaping=False)
        log_mistakes(found, logger)
        return found.entries

    def reserve(self, entry: Any) -> Any:
        """Advance the entry. Raise `LeaseEnded`, and leave the entry as it was, if the term may start nothing more."""
        advance = super().reserve
        tenure = self.neli_tenure
        tenure.ask_start()
        tenure.reset(beat_headers(entry, term=tenure.term))
        self.neli_reservation = self.neli_reservation_class(self, entry)
        return self.neli_reservation.take(advance)

    def apply_async(self, entry: Any, producer: Any = None, advance: bool = True, **kwargs: Any) -> Any:
        """Send the entry's task. Raises `LeaseEnded` if the term ended first, and `SchedulingError` if that fails.

        The lease is asked here too: eager tasks and an overridden ``Task.apply_async`` pass by the producer.
        """
        base: Any = super()
        tenure = self.neli_tenure
        tenure.ask_finish()
        try:
            with tenure.outliving(entry.name):
                result = base.apply_async(entry, producer=producer, advance=advance, **kwargs)
        except Exception as exc:
            tenure.ask_finish()
            if is_transport_error(vars(self).get("connection"), exc, given=tenure.in_transport):
                # The next entry waits for the broker in _ensure_connected, neither advanced and lost like this one nor
                # counted as progress.
                release_connection(self)
            self._neli_tell(hooks.FAILED, entry, hooks.error_text(exc))
            self._neli_settle()
            raise
        self._neli_tell(hooks.SENT, entry)
        self._neli_settle()
        return result

    def _neli_tell(self, outcome: str, entry: Any, error: str = "") -> None:
        tenure = self.neli_tenure
        if hooks.slot and tenure.headers is not None:
            slot = datetime.fromisoformat(tenure.headers["neli_beat_slot"])
            hooks.slot(hooks.SlotEvent.of(outcome, entry, slot, tenure.role.name, tenure.term, error=error))

    def _neli_settle(self) -> None:
        """Record the entry in flight as run. May raise (its store is down): that is retried before the next tick."""
        tenure = self.neli_tenure
        tenure.headers = None
        if self.neli_reservation is not None:
            tenure.left = tenure.left or 1  # an eager task has left, too
            self._neli_enter(self.neli_reservation)
        self.neli_reservation = None  # only now: SystemExit may cut in anywhere
        scheduler: Any = self
        if scheduler.should_sync():
            scheduler._do_sync()

    def _neli_enter(self, reservation: Reservation) -> None:
        runs = self.neli_sent_runs
        runs.sent[reservation.entry.name] = reservation.advanced.last_run_at
        if not self.neli_tenure.may_finish():
            return  # the store is the successor's, and may know better by now
        runs.owed, runs.owed_term = reservation, self.neli_tenure.term
        reservation.confirm()
        runs.owed = None

    def neli_cut_off(self, *, write: bool) -> None:
        """Take back what was not sent: the tick may have been cut off anywhere.

        If the lease still holds, ``write`` is True and the store may be written. May raise what the store raises.
        """
        reservation, self.neli_reservation = self.neli_reservation, None
        self.neli_tenure.headers = None
        if reservation is not None and self.neli_tenure.left:
            self.neli_sent_runs.sent[reservation.entry.name] = reservation.advanced.last_run_at
            if write:
                self._neli_enter(reservation)
        elif reservation is not None and write:
            reservation.cancel()

    def tick(self, *args: Any, **kwargs: Any) -> Any:
        """Run the scheduler's own tick. Raise `LeaseEnded` if the term may start nothing more."""
        runs = self.neli_sent_runs
        if runs.owed is not None:
            self.neli_tenure.ask_start()
            if runs.owed_term == self.neli_tenure.term:  # else a successor may have written since
                runs.owed.confirm()
            runs.owed = None
        return super().tick(*args, **kwargs)

    def sync(self) -> None:
        """Write the schedule, if the term still holds and no entry is half done (its run would be written too)."""
        if not self._neli_may_write():
            return
        dirty = set(getattr(self, "_dirty", ()))
        try:
            super().sync()
        except BaseException:
            # Celery's SIGTERM handler raises anywhere. What was being written is written again by the next sync:
            # DatabaseScheduler has forgotten the row that it was saving, a shelf that it is to write its cache.
            if dirty:
                self._dirty |= dirty
            if (store := getattr(self, "_store", None)) is not None:
                store.writeback = True
            raise

    def _do_sync(self) -> None:
        if self._neli_may_write():
            super()._do_sync()

    def _neli_may_write(self) -> bool:
        half_done = self.neli_reservation is not None and not self.neli_tenure.left
        return not half_done and self.neli_tenure.may_finish()

    def _ensure_connected(self) -> Any:
        scheduler: Any = self
        return wait_for_broker(scheduler.connection, self.neli_tenure)


def is_database(cls: type[Any]) -> bool:
    """Return True if ``cls`` is django-celery-beat's scheduler or derives from it."""
    return derives_from(cls, "django_celery_beat.schedulers", "DatabaseScheduler")


def is_redbeat(cls: type[Any]) -> bool:
    """Return True if ``cls`` is RedBeat's scheduler or derives from it."""
    return derives_from(cls, "redbeat.schedulers", "RedBeatScheduler")


@dataclass(kw_only=True, eq=False)
class WrappedHost:
    """Serves a role by the scheduler class ``cls`` (`role_runner.Host`).

    ``options`` are what `celery_neli.Scheduler` was constructed with. ``made`` is called with each scheduler that was
    built, ``learn`` with each one whose term is over: they keep the changes that code made to the schedule.
    """

    app: Any
    cls: type[Any]
    options: Mapping[str, Any]
    made: Callable[[Any], None]
    learn: Callable[[Any], None]

    stands_by = False
    stuck = False
    scheduler: Any = field(default=None, init=False)
    #: Outlives the schedulers: what was sent from here, and what could not be written.
    sent_runs: SentRuns = field(default_factory=SentRuns, init=False)

    def prepare(self) -> bool:
        """Do nothing: a standby has no scheduler."""
        return True

    def begin(self, tenure: Tenure, *, first_seen: datetime) -> bool:
        """Build the scheduler. Reads and writes its store; may block and raise anything."""
        began = datetime.now(timezone.utc)
        self.scheduler = scheduler = self._build(tenure)
        self.made(scheduler)
        self._count_initial_runs(began=began, since=first_seen)
        return True

    def tick(self) -> float:
        """Let the scheduler send what is due."""
        return float(self.scheduler.tick() or 0)

    def end(self, *, held: bool) -> None:
        """Retire the scheduler if the lease is ``held``, otherwise abandon it. May block and raise."""
        scheduler, self.scheduler = self.scheduler, None
        if scheduler is not None:
            self.learn(scheduler)
            (_retire if held else _abandon)(scheduler)

    def _build(self, tenure: Tenure) -> Any:
        cls, app = self.cls, self.app
        reservation = RowReservation if is_database(cls) else DeferredReservation if is_redbeat(cls) else Reservation
        attributes = {
            "neli_tenure": tenure,
            "neli_sent_runs": self.sent_runs,
            "neli_reservation_class": reservation,
            "__module__": cls.__module__,
        }
        leased = type(cls.__name__, (LeasedMixin, cls), attributes)
        producer = self.options.get("Producer") or app.amqp.Producer
        options = dict(self.options, Producer=leased_producer(producer, tenure))
        if is_database(cls) and not app.conf.beat_sync_every:
            # It writes its rows every three minutes: after a kill the successor would send those minutes again.
            options["sync_every_tasks"] = 1
        scheduler = leased(app=app, **options)
        if is_redbeat(cls):
            # RedBeat takes its lock on beat_init, which is long past, and extends it on every tick. The lease is the
            # lock here.
            scheduler.lock_key = scheduler.lock = None
        return scheduler

    def _count_initial_runs(self, *, began: datetime, since: datetime) -> None:
        """Let entries that the store does not know count as run ``since``, not as run when the scheduler was built.

        Celery gives an entry without a ``last_run_at`` the present time. So a crontab slot between the death of the
        last leader and this build would be lost in silence. What this very process sent counts, too: a term may be
        taken back.
        """
        scheduler = self.scheduler
        if is_database(type(scheduler)):
            unknown = set(scheduler.Model.objects.filter(last_run_at__isnull=True).values_list("name", flat=True))
            for name, entry in scheduler.schedule.items():
                if name in unknown:
                    entry.last_run_at = entry.model.last_run_at = _earlier(entry.last_run_at, since)
        elif scheduler.Entry is celery.beat.ScheduleEntry:
            for name, entry in scheduler.schedule.items():
                if maybe_make_aware(entry.last_run_at) >= began:
                    entry.last_run_at = _earlier(entry.last_run_at, since)
                sent = self.sent_runs.sent.get(name)
                if sent is not None and sent > entry.last_run_at:
                    entry.last_run_at = sent


def add_to(scheduler: Any, added: list[dict[str, Any]]) -> None:
    """Add these entries to a scheduler that was built; log those that it does not take."""
    for fields in added:
        try:
            scheduler.add(**fields)
        except ConfigurationError as exc:
            logger.error("beat: entry=%s is left out: %s", fields.get("name"), exc)


def _earlier(last: datetime, since: datetime) -> datetime:
    """Return ``since`` in the time zone of ``last`` (Celery's naive times are UTC), or ``last`` if that is earlier."""
    aware = maybe_make_aware(last)
    return last if aware <= since else since.astimezone(aware.tzinfo).replace(tzinfo=last.tzinfo)


def _retire(scheduler: Any) -> None:
    """Write what is to be written, then close: the term still holds, and a successor will read it."""
    release_connection(scheduler)  # first: a broker that does not answer shall not delay what follows
    try:
        scheduler.neli_cut_off(write=True)
    finally:
        try:
            scheduler.close()
        finally:
            _forget(scheduler)


def _abandon(scheduler: Any) -> None:
    """Close without writing: the term is over, the store is the successor's. Blocks for a second at most."""
    scheduler.neli_cut_off(write=False)
    if (store := getattr(scheduler, "_store", None)) is not None:
        # A shelf writes its cache when it is closed, and when it is collected as garbage. And it must be closed: with
        # gdbm, opening the file that this process has open fails, whereupon Celery deletes it.
        store.cache.clear()
        store.close()
    _forget(scheduler)


def _forget(scheduler: Any) -> None:
    if (finalizer := getattr(scheduler, "_finalize", None)) is not None:
        finalizer.cancel()  # DatabaseScheduler: would write at exit, and keeps the scheduler of each term alive
    release_connection(scheduler)
