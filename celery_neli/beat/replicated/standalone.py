"""Celery's scheduler with a tick that does not grow with the schedule, and slots in place of moments.

What Celery's documentation says of its scheduler holds for this one. What differs:

- Which entry is due next is read from a heap that is changed in place. No tick looks at an entry that is not due.
- An entry runs *for a slot*, a due time of its schedule, and that slot is its `last_run_at`: intervals do not drift,
  and a slot has the same name in every process. Schedules that know only `is_due` are asked, and have no slots.
- Slots that passed while no beat ran them are subject to the misfire policy (:mod:`celery_neli.schedule.policies`), and
  logged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import celery.beat
from celery.utils.log import get_logger
from celery.utils.time import humanize_seconds

from celery_neli.beat.publish import naming_producer, wait_for_broker
from celery_neli.beat.replicated.engine import Engine
from celery_neli.beat.replicated.entries import Entries
from celery_neli.beat.replicated.ledger import SlotLedger
from celery_neli.beat.replicated.sender import NoLease
from celery_neli.config import enabled
from celery_neli.exceptions import ConfigurationError
from celery_neli.logs import escaping
from celery_neli.periodic.shape import shape_entry
from celery_neli.periodic.static import check_static, log_mistakes, with_sound_schedule
from celery_neli.printable import closest
from celery_neli.schedule.policies import OWN_OPTIONS

logger = escaping(get_logger(__name__))


class ReplicatedScheduler(celery.beat.Scheduler):
    """Celery's `Scheduler`, constructed and used in the same way. All methods belong to the thread that ticks.

    An entry's options may hold a misfire policy (`neli_misfire`, `neli_misfire_max`, `neli_misfire_grace`) and
    `neli_expires`, seconds from the slot; they are no part of its message, which has the moment as its `expires`.

    Subclasses may override what Celery's may. The work is done by an `Engine`; while an elected beat leads, its host
    gives this object a ledger that claims slots, and otherwise whatever beat has this scheduler sends.
    """

    #: Makes the ledger that learns of each slot. `ReplicatedHost` sets it before it calls the constructor.
    neli_make_ledger: Callable[..., SlotLedger] | None = None

    def __init__(self, app: Any, schedule: Any = None, *args: Any, **kwargs: Any) -> None:
        if self.neli_make_ledger is None and app.conf.get("neli_group") and enabled(app):
            raise ConfigurationError(
                "celery_neli.ReplicatedScheduler by itself takes part in no election, and every beat that has it "
                "sends: set beat_scheduler = 'celery_neli.Scheduler', which uses it (or neli_enabled = False)"
            )
        self.app = app
        self.neli_engine = Engine(self, self.neli_make_ledger or (lambda **_: SlotLedger()))
        # In front of the class's own, whatever a subclass makes of it: it knows what comes of each message.
        self.__dict__["apply_async"] = self.neli_engine.sender.apply_async
        super().__init__(app, Entries() if schedule is None else schedule, *args, **kwargs)
        if self.neli_make_ledger is None:
            self.Producer: Any = naming_producer(self.Producer, self.neli_engine.sender.lease)

    # -- the schedule --

    def setup_schedule(self) -> None:
        """Take over `beat_schedule`, then the default entries.

        Celery's PersistentScheduler does it in this order; its Scheduler in the other, and so drops the default ones.
        An entry that is wrong is left out, with one line for each mistake (:mod:`celery_neli.periodic.static`).
        """
        found = check_static(self._owned(self.app.conf.beat_schedule), self.app, kind=self.Entry)
        self.merge_inplace(found.entries)
        self.install_default_entries(self.schedule)
        for name, entry in list(self.schedule.items()):
            try:
                self.check(entry)
            except ConfigurationError as exc:
                del self.schedule[name]
                found.mistakes[name] = [str(exc).removeprefix(f"beat entry {name!r}: ")]
        log_mistakes(found, logger)

    def add(self, **kwargs: Any) -> Any:
        """As Celery does; the schedule may be text. An entry of another shard is made, and not added.

        Raises `ConfigurationError` for an entry that is wrong, and adds nothing.
        """
        entry = self.Entry(app=self.app, **with_sound_schedule(kwargs.get("name"), kwargs, self.app))
        self.neli_put(entry)
        return entry

    def neli_put(self, entry: Any) -> None:
        """Put an entry that code has made into the schedule, if it is of this shard. Raises `ConfigurationError`."""
        if self.neli_engine.ledger.owns(entry.name):
            shape_entry(self.app, entry)
            self.check(entry)
            self.schedule[entry.name] = entry
            self.neli_engine.ledger.added(entry.name)

    def check(self, entry: Any) -> None:
        """Raise `ConfigurationError` if the entry has an option or a policy that does not exist."""
        self.neli_engine.table.policy(entry)
        for name in entry.options:
            if name.startswith("neli_") and name not in OWN_OPTIONS:
                near = closest(name, OWN_OPTIONS)
                raise ConfigurationError(f"beat entry {entry.name!r}: there is no option {name}; did you mean {near}?")
        self.neli_engine.ledger.check(entry)

    def merge_inplace(self, b: Any) -> None:
        """As Celery does; a schedule may be text. Changes nothing and raises `ConfigurationError` if one is wrong."""
        owned = self._owned(b)
        super().merge_inplace({name: with_sound_schedule(name, each, self.app) for name, each in owned.items()})
        if isinstance(self.schedule, Entries):
            self.schedule.note(owned)

    def update_from_dict(self, dict_: Any) -> None:
        """As Celery does."""
        super().update_from_dict(self._owned(dict_))

    def _owned(self, entries: Any) -> Any:
        """Return those of these entries that are of this shard; what is not a mapping as it is."""
        if not isinstance(entries, Mapping):
            return entries
        return {name: each for name, each in entries.items() if self.neli_engine.ledger.owns(str(name))}

    def _maybe_entry(self, name: str, entry: Any) -> Any:
        return super()._maybe_entry(name, with_sound_schedule(name, entry, self.app))

    # -- the heap --

    @property
    def _heap(self) -> Any:
        """The due times as Celery knows them: a list of `event_t`; None before the first tick."""
        return self.neli_engine.table.view

    @_heap.setter
    def _heap(self, events: Any) -> None:
        self.neli_engine.table.replace_view(events)

    def populate_heap(self, *args: Any, **kwargs: Any) -> None:
        """Look at every entry: O(N). Done once; call it after changing entries in place. Never raises."""
        self.neli_engine.table.populate()

    def _is_due_failed(self, entry: Any) -> tuple[bool, float]:
        """One entry whose next run cannot be computed stops neither beat nor the others: as Celery 5.7 does."""
        text = "beat: Cannot calculate the next run of %r, trying again in %s."
        celery.beat.error(text, entry.name, humanize_seconds(self.max_interval), exc_info=True)
        return False, self.max_interval

    # -- the tick, and publishing --

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Run what is due next, one slot of one entry at most; return the seconds until the next tick is wanted.

        Blocks for as long as publishing does.
        """
        return self.neli_engine.tick()

    def reserve(self, entry: Any) -> Any:
        """Advance the entry: for the slot that is being run, else (called from outside a tick) for the present."""
        return self.neli_engine.sender.reserve(entry)

    def apply_async(self, entry: Any, producer: Any = None, advance: bool = True, **kwargs: Any) -> Any:
        """Send the entry's task, as Celery does; faster where that changes nothing. Raises `SchedulingError`."""
        sender = self.neli_engine.sender
        entry = sender.message_of(self.reserve(entry) if advance else entry, sender.slot)
        if producer is None or kwargs:
            return super().apply_async(entry, producer=producer, advance=False, **kwargs)
        return sender.transmit(entry, producer)

    def sync(self) -> None:
        """Wait until the state of what ran is in Kafka, for a second at most, if this beat leads."""
        self.neli_engine.ledger.flush()

    def _do_sync(self) -> None:
        if self.neli_engine.sender.may_sync():
            super()._do_sync()

    def _ensure_connected(self) -> Any:
        lease = self.neli_engine.sender.lease
        return super()._ensure_connected() if isinstance(lease, NoLease) else wait_for_broker(self.connection, lease)
