"""Runs any Celery scheduler for a role: builds it for each term, and closes it at the term's end.

It knows what each known scheduler needs to be built, retired (its state is written, then it is closed) and abandoned
(nothing is written: the term is over, and the store may belong to another beat).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import celery.beat
from celery.utils.log import get_logger
from celery.utils.time import maybe_make_aware

from celery_neli.beat.publish import leased_producer, release_connection
from celery_neli.beat.tenure import Tenure
from celery_neli.beat.wrapped.mixin import LeasedMixin, Ledger, is_database, is_redbeat, reservation_class
from celery_neli.exceptions import ConfigurationError
from celery_neli.logs import escaping

logger = escaping(get_logger(__name__))


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
    ledger: Ledger = field(default_factory=Ledger, init=False)

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
        attributes = {
            "neli_tenure": tenure,
            "neli_ledger": self.ledger,
            "neli_reservation_class": reservation_class(cls),
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
                sent = self.ledger.sent.get(name)
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
    store = getattr(scheduler, "_store", None)
    if store is not None:
        # A shelf writes its cache when it is closed, and when it is collected as garbage. And it must be closed: with
        # gdbm, opening the file that this process has open fails, whereupon Celery deletes it.
        store.cache.clear()
        store.close()
    _forget(scheduler)


def _forget(scheduler: Any) -> None:
    """Free what schedulers leave behind when they are closed."""
    finalizer = getattr(scheduler, "_finalize", None)
    if finalizer is not None:
        finalizer.cancel()  # DatabaseScheduler: would write at exit, and keeps the scheduler of each term alive
    release_connection(scheduler)
