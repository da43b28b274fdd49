"""The inner scheduler: any Celery scheduler, built afresh for each term and held to the lease of that term.

Celery's own code decides what is due; :class:`LeasedMixin` asks the lease at the moments that count. How each known
scheduler is built, retired (its state written, then closed) and abandoned (nothing written: the term is over, and the
store may be somebody else's) is written down here, once.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import celery.beat
from celery.utils.imports import load_extension_class_names, symbol_by_name
from celery.utils.log import get_logger
from celery.utils.time import maybe_make_aware
from kombu.exceptions import OperationalError

from celery_neli.exceptions import ConfigurationError
from celery_neli.publish import beat_headers, leased_producer
from celery_neli.reservation import Ledger, Reservation, derives_from, reservation_class

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from celery_neli.tenure import Tenure

__all__ = ["LeasedMixin", "abandon", "build", "count_births", "resolve", "retire"]

logger = get_logger(__name__)

#: Seconds between two log lines about a task broker that cannot be reached.
BROKER_DOWN_LOG_INTERVAL = 30.0


class LeasedMixin:
    """In front of a scheduler class: asks the lease before an entry advances, before it is applied, and before a write.

    Used by :func:`build` only, which gives the class its tenure. Everything runs on the thread that ticks.
    """

    neli_tenure: Tenure
    neli_reservation: Reservation | None = None
    neli_ledger: Ledger

    def reserve(self, entry: Any) -> Any:
        """Advance the entry, unless the term may start nothing more. :raises LeaseEnded:"""
        advance = super().reserve  # type: ignore[misc]
        tenure = self.neli_tenure
        tenure.ask_start()
        tenure.left = 0
        tenure.headers = beat_headers(entry, term=tenure.term)
        self.neli_reservation = reservation_class(type(self))(scheduler=self, entry=entry)
        return self.neli_reservation.take(advance)

    def apply_async(self, entry: Any, producer: Any = None, advance: bool = True, **kwargs: Any) -> Any:
        """Send the entry's task. The lease is asked here too: eager tasks and an overridden ``Task.apply_async`` pass by
        the producer.

        :raises LeaseEnded: the term ended first; nothing was sent.
        """
        base: Any = super()
        self.neli_tenure.ask_finish()
        try:
            result = base.apply_async(entry, producer=producer, advance=advance, **kwargs)
        except Exception as exc:
            # Celery counts a failed publish as run, and so it is, as long as that is still ours to say.
            self.neli_tenure.ask_finish()
            if self._neli_broker_lost(exc):
                # The next entry waits for the broker in _ensure_connected, neither advanced and lost like this one nor
                # counted as progress.
                release_connection(self)
            self._neli_settle()
            raise
        self._neli_settle()
        return result

    def _neli_broker_lost(self, exc: Exception) -> bool:
        connection = vars(self).get("connection")
        errors = (OperationalError, *(connection.recoverable_connection_errors if connection else ()))
        return isinstance(exc.__cause__ or exc.__context__, errors)

    def _neli_settle(self) -> None:
        """The entry in flight is done with. May raise (its store is down): tried again before the next tick."""
        reservation, self.neli_reservation = self.neli_reservation, None
        self.neli_tenure.headers = None
        if reservation is not None:
            self._neli_enter(reservation)
        scheduler: Any = self
        if scheduler.should_sync():
            scheduler._do_sync()

    def _neli_enter(self, reservation: Reservation) -> None:
        ledger = self.neli_ledger
        ledger.sent[reservation.entry.name] = reservation.advanced.last_run_at
        ledger.owed, ledger.owed_term = reservation, self.neli_tenure.term
        reservation.confirm()
        ledger.owed = None

    def neli_cut_off(self, *, write: bool) -> None:
        """The tick may have been cut off anywhere: what was not sent is not recorded as sent. May raise, as its store."""
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
        if self._neli_may_write():
            super().sync()  # type: ignore[misc]

    def _do_sync(self) -> None:
        if self._neli_may_write():
            super()._do_sync()  # type: ignore[misc]

    def _neli_may_write(self) -> bool:
        half_done = self.neli_reservation is not None and not self.neli_tenure.left
        return not half_done and self.neli_tenure.may_finish()

    def _ensure_connected(self) -> Any:
        """Wait for the task broker for as long as this term may start work: Celery's beat ends after 100 attempts.

        Tries once a second (plus the transport's own connection timeout) and leaves within that time once the term ends.

        :raises LeaseEnded: the term may start nothing more.
        """
        said = 0.0

        def on_error(exc: Exception, interval: float) -> None:
            nonlocal said
            if not said or time.monotonic() - said > BROKER_DOWN_LOG_INTERVAL:
                logger.error(
                    "beat: cannot reach the task broker (%s); trying again for as long as this beat leads", exc
                )
                said = time.monotonic()

        scheduler: Any = self
        return scheduler.connection.ensure_connection(
            on_error, None, interval_start=0.2, interval_step=0.4, interval_max=1.0, callback=self.neli_tenure.ask_start
        )


def resolve(name: Any, *, outer: type[Any]) -> type[Any]:
    """The scheduler class that ``neli_scheduler`` means: a dotted path, an alias (entry point), or the class itself.

    :raises ConfigurationError: it is no scheduler, or it is the ``outer`` one itself.
    """
    try:
        aliases = dict(load_extension_class_names("celery.beat_schedulers"))
        cls = symbol_by_name(name, aliases=aliases)
    except Exception as exc:  # importing runs the user's modules
        raise ConfigurationError(f"neli_scheduler={name!r} cannot be imported: {exc!r}") from exc
    if not (isinstance(cls, type) and issubclass(cls, celery.beat.Scheduler)):
        raise ConfigurationError(f"neli_scheduler={name!r}: {cls!r} is not a subclass of celery.beat.Scheduler")
    if issubclass(cls, outer):
        raise ConfigurationError(
            f"neli_scheduler={name!r} is celery-neli's own scheduler: name the one that it is to lead, such as"
            f" 'celery.beat.Scheduler' (beat_scheduler is the setting for celery-neli's)"
        )
    return cls


def build(cls: type[Any], *, app: Any, tenure: Tenure, ledger: Ledger, options: Mapping[str, Any]) -> Any:
    """An instance of scheduler class ``cls`` for one term. Reads and writes its store; may block and raise anything."""
    attributes = {"neli_tenure": tenure, "neli_ledger": ledger, "__module__": cls.__module__}
    leased = type(cls.__name__, (LeasedMixin, cls), attributes)
    options = dict(options, Producer=leased_producer(options.get("Producer") or app.amqp.Producer, tenure))
    if is_database(cls) and not app.conf.beat_sync_every:
        # It writes its rows every three minutes: after a kill the successor would send those minutes again.
        options["sync_every_tasks"] = 1
    inner = leased(app=app, **options)
    # RedBeat takes its lock on beat_init, which is long past, and extends it on every tick. The lease is the lock here.
    if is_redbeat(cls):
        inner.lock_key = inner.lock = None
    return inner


def count_births(inner: Any, *, born_since: datetime, since: datetime) -> None:
    """Entries that the store does not know count as run ``since``, not as run when the inner scheduler was built.

    Celery gives an entry without a ``last_run_at`` the present time. So a crontab slot between the death of the last
    leader and this build would be lost in silence. ``born_since``: when the build began; ``since``: until when the
    entries are known to have been served. What this very process sent counts as well (a term that is taken back).
    """
    if is_database(type(inner)):
        unknown = set(inner.Model.objects.filter(last_run_at__isnull=True).values_list("name", flat=True))
        for name, entry in inner.schedule.items():
            if name in unknown:
                entry.last_run_at = entry.model.last_run_at = _earlier(entry.last_run_at, since)
    elif inner.Entry is celery.beat.ScheduleEntry:
        for name, entry in inner.schedule.items():
            if maybe_make_aware(entry.last_run_at) >= born_since:
                entry.last_run_at = _earlier(entry.last_run_at, since)
            sent = inner.neli_ledger.sent.get(name)
            if sent is not None and sent > entry.last_run_at:
                entry.last_run_at = sent


def _earlier(last: datetime, since: datetime) -> datetime:
    """``since`` in the time zone of ``last``, unless that is earlier (a naive one is UTC, as everywhere in Celery)."""
    aware = maybe_make_aware(last)
    return last if aware <= since else since.astimezone(aware.tzinfo).replace(tzinfo=last.tzinfo)


def retire(inner: Any) -> None:
    """Write what is to be written, then close: the term still holds, a successor will read it. May block and raise."""
    release_connection(inner)  # first: a broker that does not answer shall not delay what follows
    try:
        inner.neli_cut_off(write=True)
    finally:
        try:
            inner.close()
        finally:
            forget(inner)


def abandon(inner: Any) -> None:
    """Close without writing: the term is over, the store is the successor's. Blocks for a second at most."""
    inner.neli_cut_off(write=False)
    store = getattr(inner, "_store", None)
    if store is not None:
        # A shelf writes its cache when it is closed, and when it is collected as garbage. And it must be closed: with
        # gdbm, opening the file that this process has open fails, whereupon Celery deletes it.
        store.cache.clear()
        store.close()
    if is_database(type(inner)):
        inner._dirty.clear()
    forget(inner)


def forget(inner: Any) -> None:
    """Free what schedulers leave behind when they are closed."""
    finalizer = getattr(inner, "_finalize", None)
    if finalizer is not None:
        finalizer.cancel()  # DatabaseScheduler: would write at exit, and keeps the scheduler of each term alive
    release_connection(inner)


def release_connection(inner: Any) -> None:
    """Drop the connection to the task broker (Celery 5.5 and 5.6 leave it open), without waiting for the broker."""
    vars(inner).pop("producer", None)
    connection = vars(inner).pop("connection", None)
    if connection is not None:
        try:
            connection.collect(socket_timeout=1.0)
        except Exception as exc:
            logger.debug("beat: closing the task broker's connection: %r", exc)


def is_database(cls: type[Any]) -> bool:
    """Whether ``cls`` is django-celery-beat's scheduler or derives from it."""
    return derives_from(cls, "django_celery_beat.schedulers", "DatabaseScheduler")


def is_redbeat(cls: type[Any]) -> bool:
    """Whether ``cls`` is RedBeat's scheduler or derives from it."""
    return derives_from(cls, "redbeat.schedulers", "RedBeatScheduler")
