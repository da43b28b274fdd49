"""Undo the advance of an entry whose message never left.

Celery advances an entry (``last_run_at``, ``total_run_count``) before its message leaves. If the term ends in between,
the successor would believe that the task ran, and it would be lost. So each store of entries has a reservation:

- in memory (Celery's Scheduler, PersistentScheduler): the old entry is put back;
- django-celery-beat: the row's object is restored and is no longer due to be written;
- RedBeat, whose entries write to Redis as they advance: the write waits until the message has left. Taking it back
  afterwards would race with the successor. A crash in between sends the task twice; it is never lost.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from celery.beat import ScheduleEntry

from celery_neli.scheduler_class import derives_from

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

__all__ = ["DeferredReservation", "Ledger", "Reservation", "RowReservation", "reservation_class"]


@dataclass(kw_only=True)
class Ledger:
    """What this process remembers of its runs from one scheduler to the next."""

    #: When each entry was last sent from here.
    sent: dict[str, datetime] = field(default_factory=dict)
    #: A run of term ``owed_term`` that could not be written yet.
    owed: Reservation | None = None
    owed_term: int | None = None


class Reservation:
    """Holds an entry of a scheduler that keeps its entries in the mapping ``schedule``.

    It is made before the entry advances, so that the advance can be undone whenever a signal handler cuts in.
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
    """Holds an entry of DatabaseScheduler: ``next(entry)`` changes the row's object, and ``sync`` writes it."""

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
    """Holds an entry of RedBeat: RedBeat's own code, which writes, advances it once the message has left."""

    def take(self, advance: Callable[[Any], Any]) -> Any:
        """Advance the entry in memory only."""
        self.advanced = ScheduleEntry._next_instance(self.entry)  # RedBeat's override is this, and the write
        return self.advanced

    def confirm(self) -> None:
        """Write the run to Redis."""
        self.entry._next_instance(last_run_at=self.advanced.last_run_at)

    def cancel(self) -> None:
        """Do nothing: nothing was written."""


def reservation_class(cls: type[Any]) -> type[Reservation]:
    """Return the reservation for entries of the scheduler class ``cls``."""
    if derives_from(cls, "django_celery_beat.schedulers", "DatabaseScheduler"):
        return RowReservation
    if derives_from(cls, "redbeat.schedulers", "RedBeatScheduler"):
        return DeferredReservation
    return Reservation
