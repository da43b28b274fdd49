"""The inner scheduler's life: any Celery scheduler, built afresh for each term, and put down at its end.

What each known scheduler needs to be built, retired (its state written, then closed) and abandoned (nothing written:
the term is over, and the store may be somebody else's) is written down here, once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import celery.beat
from celery.utils.time import maybe_make_aware

from celery_neli.beat.publish import leased_producer
from celery_neli.beat.replicated.engine import LedMixin
from celery_neli.beat.wrapped.mixin import LeasedMixin, release_connection
from celery_neli.beat.wrapped.stores import reservation_class
from celery_neli.scheduler_class import derives_from

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from celery_neli.beat.replicated.host import Keeper
    from celery_neli.beat.tenure import Tenure
    from celery_neli.beat.wrapped.stores import Ledger

__all__ = ["abandon", "build", "build_led", "count_births", "renew", "retire"]


def build(cls: type[Any], *, app: Any, tenure: Tenure, ledger: Ledger, options: Mapping[str, Any]) -> Any:
    """An instance of scheduler class ``cls`` for one term. Reads and writes its store; may block and raise anything."""
    attributes = {
        "neli_tenure": tenure,
        "neli_ledger": ledger,
        "neli_reservation_class": reservation_class(cls),
        "__module__": cls.__module__,
    }
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


def build_led(
    cls: type[Any], *, app: Any, shard: int, keeper: Keeper, ledger: Ledger, options: Mapping[str, Any]
) -> Any:
    """An instance of a `ReplicatedScheduler` class, to be kept from term to term. Reads the configuration only."""
    attributes = {"neli_ledger": ledger, "neli_keeper": keeper, "neli_shard": shard, "__module__": cls.__module__}
    led = type(cls.__name__, (LedMixin, LeasedMixin, cls), attributes)
    return led(app=app, **options)


def renew(inner: Any, *, app: Any, tenure: Tenure, options: Mapping[str, Any]) -> None:
    """Let a scheduler that is kept send in this term."""
    inner.neli_tenure = tenure
    inner.neli_producer_base = options.get("Producer") or app.amqp.Producer
    inner.Producer = leased_producer(inner.neli_producer_base, tenure)


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
    forget(inner)


def forget(inner: Any) -> None:
    """Free what schedulers leave behind when they are closed."""
    finalizer = getattr(inner, "_finalize", None)
    if finalizer is not None:
        finalizer.cancel()  # DatabaseScheduler: would write at exit, and keeps the scheduler of each term alive
    release_connection(inner)


def is_database(cls: type[Any]) -> bool:
    """Whether ``cls`` is django-celery-beat's scheduler or derives from it."""
    return derives_from(cls, "django_celery_beat.schedulers", "DatabaseScheduler")


def is_redbeat(cls: type[Any]) -> bool:
    """Whether ``cls`` is RedBeat's scheduler or derives from it."""
    return derives_from(cls, "redbeat.schedulers", "RedBeatScheduler")
