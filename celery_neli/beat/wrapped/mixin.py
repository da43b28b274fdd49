"""A scheduler class held to the lease of one term.

Celery's own code decides what is due; :class:`LeasedMixin` asks the lease at the moments that count: before an entry
advances, before it is applied, and before anything is written. (The last one, before a message leaves, is
:mod:`celery_neli.beat.publish`.)
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from celery.beat import SchedulingError
from celery.utils.log import get_logger

from celery_neli.beat.connections import drop_connection
from celery_neli.beat.publish import beat_headers
from celery_neli.beat.tenure import LeaseEnded
from celery_neli.beat.wrapped.stores import Ledger, Reservation
from celery_neli.logs import escaping
from celery_neli.periodic.static import check_static, log_mistakes
from celery_neli.printable import printable
from celery_neli.transport_errors import is_transport_error, without_wrapper

if TYPE_CHECKING:
    from celery_neli.beat.tenure import Tenure

__all__ = ["LeasedMixin", "release_connection"]

logger = escaping(get_logger(__name__))

#: Seconds between two log lines about a task broker that cannot be reached.
BROKER_DOWN_LOG_INTERVAL = 30.0


class LeasedMixin:
    """In front of a scheduler class: asks the lease before an entry advances, before it is applied, and before a write.

    Used by :func:`build` only, which gives the class its tenure. Everything runs on the thread that ticks.
    """

    neli_alone = False
    neli_tenure: Tenure
    neli_reservation: Reservation | None = None
    neli_ledger: Ledger
    neli_reservation_class: type[Reservation] = Reservation

    def merge_inplace(self, b: Any) -> None:
        """Do as the scheduler does, but leave out entries of `beat_schedule` that would prevent it from being built."""
        super().merge_inplace(self._neli_sound(b))  # type: ignore[misc]

    def update_from_dict(self, dict_: Any) -> None:
        """Do the same for schedulers that take over `beat_schedule` by this method."""
        super().update_from_dict(self._neli_sound(dict_))  # type: ignore[misc]

    def _neli_sound(self, given: Any) -> Any:
        scheduler: Any = self
        if given is not scheduler.app.conf.beat_schedule:
            return given  # the scheduler's own entries
        found = check_static(given, scheduler.app, kind=scheduler.Entry)
        log_mistakes(found, logger)
        return found.entries

    def reserve(self, entry: Any) -> Any:
        """Advance the entry.

        :raises LeaseEnded: the term may start nothing more; the entry is as it was.
        """
        advance = super().reserve  # type: ignore[misc]
        tenure = self.neli_tenure
        tenure.ask_start()
        tenure.reset(beat_headers(entry, term=tenure.term, slot=getattr(self, "neli_slot", None)))
        self.neli_reservation = self.neli_reservation_class(scheduler=self, entry=entry)
        return self.neli_reservation.take(advance)

    def apply_async(self, entry: Any, producer: Any = None, advance: bool = True, **kwargs: Any) -> Any:
        """Send the entry's task. Return None in a tick of a scheduler with slots if the application refuses to send it.

        The lease is asked here too: eager tasks and an overridden ``Task.apply_async`` pass by the producer.

        :raises LeaseEnded: the term ended first; nothing was sent.
        :raises celery.beat.SchedulingError: it could not be sent.
        """
        base: Any = super()
        self.neli_tenure.ask_finish()
        try:
            try:
                result = base.apply_async(entry, producer=producer, advance=advance, **kwargs)
            except BaseException as exc:
                if isinstance(exc, Exception) or not self._neli_may_go_on(entry, exc):
                    raise
                raise SchedulingError(f"Couldn't apply scheduled task {entry.name}: {exc!r}") from exc
        except Exception as exc:
            self.neli_tenure.ask_finish()
            if is_transport_error(vars(self).get("connection"), exc, given=self.neli_tenure.in_transport):
                # The next entry waits for the broker in _ensure_connected, neither advanced and lost like this one nor
                # counted as progress.
                release_connection(self)
                self._neli_settle(failed=True)
                raise
            if self._neli_refused(exc) and getattr(self, "neli_in_tick", False):
                return None
            raise
        self._neli_settle()
        return result

    def _neli_may_go_on(self, entry: Any, exc: BaseException) -> bool:
        """Return True if an application's `apply_async` raised what would end beat, as a timeout of gevent's does: the
        next beat would send the same slot, and end as well.

        False for what asks for an end. `sys.exit` does, too, and is logged, for nothing else says why beat ended.
        """
        tenure = self.neli_tenure
        if isinstance(exc, (LeaseEnded, KeyboardInterrupt)) or tenure.in_transport or not tenure.may_start():
            return False
        if isinstance(exc, SystemExit):
            logger.error("beat: ends entry=%s: what sends it raised %s", printable(entry.name), printable(repr(exc)))
        return not isinstance(exc, SystemExit)

    def _neli_refused(self, exc: Exception) -> bool:
        """Settle the entry in flight, which the application refused; return True if that was logged."""
        reservation = self.neli_reservation
        logged = reservation is not None and reservation.refuse(without_wrapper(exc))
        if logged:
            self.neli_reservation = None
        self._neli_settle()
        return logged

    def _neli_settle(self, *, failed: bool = False) -> None:
        """The entry in flight is done with. May raise (its store is down): tried again before the next tick."""
        tenure = self.neli_tenure
        tenure.headers = None
        if failed and self.neli_reservation is not None and self.neli_reservation.fail():
            self.neli_reservation = None
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
        """The tick may have been cut off anywhere: what was not sent is not recorded as sent.

        ``write``: the lease still holds, so the store may be written. May raise what the store raises.
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
        """One turn of the scheduler's own tick. :raises LeaseEnded: the term may start nothing more."""
        ledger = self.neli_ledger
        if ledger.owed is not None:
            self.neli_tenure.ask_start()
            if ledger.owed_term == self.neli_tenure.term:  # else a successor may have written since
                ledger.owed.confirm()
            ledger.owed = None
        return super().tick(*args, **kwargs)  # type: ignore[misc]

    def sync(self) -> None:
        """Write the schedule, if the term still holds and no entry is half done (its run would be written too)."""
        if not self._neli_may_write():
            return
        dirty = set(getattr(self, "_dirty", ()))
        try:
            super().sync()  # type: ignore[misc]
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
            super()._do_sync()  # type: ignore[misc]

    def _neli_may_write(self) -> bool:
        half_done = self.neli_reservation is not None and not self.neli_tenure.left
        return not half_done and self.neli_tenure.may_finish()

    def _ensure_connected(self) -> Any:
        """Wait for the task broker for as long as this term may start work: Celery's beat ends after 100 attempts.

        Tries once a second (plus the transport's own connection timeout); leaves within that time once the term ends.

        :raises LeaseEnded: the term may start nothing more.
        """
        said = 0.0

        def on_error(exc: Exception, interval: float) -> None:
            nonlocal said
            if not said or time.monotonic() - said > BROKER_DOWN_LOG_INTERVAL:
                logger.error(
                    "beat: cannot reach the task broker (%s); trying again, handing over after neli_stall_timeout",
                    exc,
                )
                said = time.monotonic()

        scheduler: Any = self
        connection = scheduler.connection.ensure_connection(
            on_error, None, interval_start=0.2, interval_step=0.4, interval_max=1.0, callback=self.neli_tenure.ask_start
        )
        if said:
            logger.info("beat: the task broker answers again")
        return connection


def release_connection(inner: Any) -> None:
    """Drop the connection to the task broker (Celery 5.5 and 5.6 leave it open), without waiting for the broker."""
    vars(inner).pop("producer", None)
    connection = vars(inner).pop("connection", None)
    if connection is not None:
        drop_connection(connection)
