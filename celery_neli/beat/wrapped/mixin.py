"""A Celery scheduler class held to the lease of one term.

Celery's own code decides what is due; :class:`LeasedMixin` asks the lease at the moments that count: before an entry
advances, before it is applied, and before anything is written. The last question, before a message leaves, is asked in
:mod:`celery_neli.beat.publish`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery.beat import SchedulingError
from celery.utils.log import get_logger

from celery_neli.beat.publish import beat_headers, is_transport_error, release_connection, wait_for_broker
from celery_neli.beat.wrapped.stores import Ledger, Reservation
from celery_neli.logs import escaping
from celery_neli.periodic.static import check_static, log_mistakes

if TYPE_CHECKING:
    from celery_neli.beat.tenure import Tenure

__all__ = ["LeasedMixin"]

logger = escaping(get_logger(__name__))


class LeasedMixin:
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
        super().merge_inplace(self._neli_sound(b))  # type: ignore[misc]  # the base is the user's class

    def update_from_dict(self, dict_: Any) -> None:
        """Do the same for schedulers that take over `beat_schedule` by this method."""
        super().update_from_dict(self._neli_sound(dict_))  # type: ignore[misc]  # likewise

    def _neli_sound(self, given: Any) -> Any:
        scheduler: Any = self
        if given is not scheduler.app.conf.beat_schedule:
            return given  # the scheduler's own entries
        found = check_static(given, scheduler.app, kind=scheduler.Entry)
        log_mistakes(found, logger)
        return found.entries

    def reserve(self, entry: Any) -> Any:
        """Advance the entry. Raise `LeaseEnded`, and leave the entry as it was, if the term may start nothing more."""
        advance = super().reserve  # type: ignore[misc]  # likewise
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
            self._neli_settle()
            raise
        self._neli_settle()
        return result

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
        return super().tick(*args, **kwargs)  # type: ignore[misc]  # likewise

    def sync(self) -> None:
        """Write the schedule, if the term still holds and no entry is half done (its run would be written too)."""
        if not self._neli_may_write():
            return
        dirty = set(getattr(self, "_dirty", ()))
        try:
            super().sync()  # type: ignore[misc]  # likewise
        except BaseException:
            # Celery's SIGTERM handler raises anywhere. What was being written is written again by the next sync:
            # DatabaseScheduler has forgotten the row that it was saving, a shelf that it is to write its cache.
            if dirty:
                vars(self)["_dirty"] |= dirty
            if (store := getattr(self, "_store", None)) is not None:
                store.writeback = True
            raise

    def _do_sync(self) -> None:
        if self._neli_may_write():
            super()._do_sync()  # type: ignore[misc]  # likewise

    def _neli_may_write(self) -> bool:
        half_done = self.neli_reservation is not None and not self.neli_tenure.left
        return not half_done and self.neli_tenure.may_finish()

    def _ensure_connected(self) -> Any:
        scheduler: Any = self
        return wait_for_broker(scheduler.connection, self.neli_tenure)
