"""A Celery scheduler class held to the lease of one term.

Celery's own code decides what is due; :class:`LeasedMixin` asks the lease at the moments that count: before an entry
advances, before it is applied, and before anything is written. The last question, before a message leaves, is asked in
:mod:`celery_neli.beat.publish`. A `Reservation` undoes what Celery has done of an entry whose message never left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import celery.beat
from celery.beat import ScheduleEntry, SchedulingError
from celery.utils.log import get_logger

from celery_neli import hooks
from celery_neli.beat.publish import beat_headers, is_transport_error, release_connection, wait_for_broker
from celery_neli.beat.tenure import Tenure
from celery_neli.logs import escaping
from celery_neli.periodic.static import check_static, log_mistakes
from celery_neli.scheduler_class import derives_from

logger = escaping(get_logger(__name__))


@dataclass(kw_only=True)
class Ledger:
    """What this process remembers of its runs from one scheduler to the next."""

    #: When each entry was last sent from here.
    sent: dict[str, datetime] = field(default_factory=dict)
    #: A run of term ``owed_term`` that could not be written yet.
    owed: Reservation | None = None
    owed_term: int | None = None


class Reservation:
    """Undoes the advance of an entry whose message never left, of a scheduler that has its entries in ``schedule``.

    Celery advances an entry (``last_run_at``, ``total_run_count``) before its message leaves. If the term ends in
    between, the successor would believe that the task ran, and it would be lost. A reservation is made before the entry
    advances, so that the advance can be undone whenever a signal handler cuts in.
    """

    #: The entry after this run; None before :meth:`take`.
    advanced: Any = None

    def __init__(self, *, scheduler: Any, entry: Any) -> None:
        self.scheduler = scheduler
        self.entry = entry

    def take(self, advance: Callable[[Any], Any]) -> Any:
        """Advance the entry by ``advance`` (the scheduler's own ``reserve``), and return the advanced one."""
        self.advanced = advance(self.entry)
        return self.advanced

    def confirm(self) -> None:
        """Make the run known: its message left, or Celery gave it up for good. May write, block and raise."""

    def cancel(self) -> None:
        """Undo the advance: nothing was sent."""
        self.scheduler.schedule[self.entry.name] = self.entry


class RowReservation(Reservation):
    """Holds an entry of DatabaseScheduler: ``next(entry)`` changes the object of the row, which ``sync`` writes."""

    FIELDS = ("last_run_at", "total_run_count", "no_changes")  # those that ModelEntry.__next__ sets

    def __init__(self, *, scheduler: Any, entry: Any) -> None:
        super().__init__(scheduler=scheduler, entry=entry)
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
        self.advanced = ScheduleEntry._next_instance(self.entry)  # RedBeat's override is this, and the write
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
    neli_ledger: Ledger
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
        found = check_static(given, self.app, kind=self.Entry)
        log_mistakes(found, logger)
        return found.entries

    def reserve(self, entry: Any) -> Any:
        """Advance the entry. Raise `LeaseEnded`, and leave the entry as it was, if the term may start nothing more."""
        advance = super().reserve
        tenure = self.neli_tenure
        tenure.ask_start()
        tenure.reset(beat_headers(entry, term=tenure.term))
        self.neli_reservation = self.neli_reservation_class(scheduler=self, entry=entry)
        return self.neli_reservation.take(advance)

    def apply_async(self, entry: Any, producer: Any = None, advance: bool = True, **kwargs: Any) -> Any:
        """Send the entry's task.

        The lease is asked here too: eager tasks and an overridden ``Task.apply_async`` pass by the producer.

        Raises:
            LeaseEnded: The term ended first; nothing was sent.
            celery.beat.SchedulingError: It could not be sent.
        """
        base: Any = super()
        tenure = self.neli_tenure
        tenure.ask_finish()
        try:
            try:
                result = base.apply_async(entry, producer=producer, advance=advance, **kwargs)
            except BaseException as exc:
                if isinstance(exc, Exception) or not tenure.goes_on_after(exc, entry.name):
                    raise
                raise SchedulingError(f"Couldn't apply scheduled task {entry.name}: {exc!r}") from exc
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
        """Tell those who look on what became of the slot in flight."""
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
        ledger = self.neli_ledger
        ledger.sent[reservation.entry.name] = reservation.advanced.last_run_at
        if not self.neli_tenure.may_finish():
            return  # the store is the successor's, and may know better by now
        ledger.owed, ledger.owed_term = reservation, self.neli_tenure.term
        reservation.confirm()
        ledger.owed = None

    def neli_cut_off(self, *, write: bool) -> None:
        """Take back what was not sent: the tick may have been cut off anywhere.

        If the lease still holds, ``write`` is True and the store may be written. May raise what the store raises.
        """
        reservation, self.neli_reservation = self.neli_reservation, None
        self.neli_tenure.headers = None
        if reservation is not None and self.neli_tenure.left:
            self.neli_ledger.sent[reservation.entry.name] = reservation.advanced.last_run_at
            if write:
                self._neli_enter(reservation)
        elif reservation is not None and write:
            reservation.cancel()

    def tick(self, *args: Any, **kwargs: Any) -> Any:
        """Run the scheduler's own tick. Raise `LeaseEnded` if the term may start nothing more."""
        ledger = self.neli_ledger
        if ledger.owed is not None:
            self.neli_tenure.ask_start()
            if ledger.owed_term == self.neli_tenure.term:  # else a successor may have written since
                ledger.owed.confirm()
            ledger.owed = None
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


def reservation_class(cls: type[Any]) -> type[Reservation]:
    """Return the reservation for entries of the scheduler class ``cls``."""
    if is_database(cls):
        return RowReservation
    return DeferredReservation if is_redbeat(cls) else Reservation
