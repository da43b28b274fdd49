"""The entries of a schedule in a heap of due times, which follows every change of the schedule by itself."""

from __future__ import annotations

import copy
import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import celery.beat
from celery.beat import Scheduler as CelerysScheduler
from celery.utils.functional import is_numeric_value
from celery.utils.log import get_logger
from celery.utils.time import humanize_seconds

from celery_neli.beat.replicated.entry_dict import Entries
from celery_neli.beat.replicated.heap_view import HeapView
from celery_neli.exceptions import ConfigurationError
from celery_neli.logs import LogLimit, escaping
from celery_neli.periodic.static import check_static, log_mistakes, with_sound_schedule
from celery_neli.schedule.due import Forecast, entry_has_slots
from celery_neli.schedule.misfire import Misfire
from celery_neli.schedule.once import once

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from celery_neli.schedule.due import Next
    from celery_neli.schedule.heap import DueHeap

__all__ = ["HeapedScheduler"]

logger = escaping(get_logger(__name__))

#: Seconds between two lines that say that an entry will never run.
NEVER_INTERVAL = 3600.0


class HeapedScheduler(CelerysScheduler):
    """Celery's `Scheduler` with its schedule and its heap, and without its comparison of all entries at each tick.

    What may be done with `schedule` in Celery may be done here: entries are set, deleted, updated, merged; the mapping
    is replaced, or is one of the caller's own. The next tick knows.
    """

    _view: HeapView | None = None
    _forecast: Forecast | None = None

    def __init__(self, app: Any, schedule: Any = None, *args: Any, **kwargs: Any) -> None:
        self._never = LogLimit(NEVER_INTERVAL)
        self._misfire = Misfire.of_app(app)
        super().__init__(app, Entries() if schedule is None else schedule, *args, **kwargs)

    # -- the schedule --

    def setup_schedule(self) -> None:
        """Take over `beat_schedule`, then the default entries.

        Celery's PersistentScheduler does it in this order; its Scheduler in the other, and so drops the default ones.
        An entry that is wrong is left out, with one line for each mistake (:mod:`celery_neli.periodic.static`).
        """
        found = check_static(self.beat_schedule(), self.app, kind=self.Entry)
        self.merge_inplace(found.entries)
        self.install_default_entries(self.schedule)
        for name, entry in list(self.schedule.items()):
            try:
                self.check(entry)
            except ConfigurationError as exc:
                del self.schedule[name]
                found.mistakes[name] = [str(exc).removeprefix(f"beat entry {name!r}: ")]
        log_mistakes(found, logger)

    def beat_schedule(self) -> Any:
        """The `beat_schedule` of the configuration, as far as it is this scheduler's."""
        return self.app.conf.beat_schedule

    def add(self, **kwargs: Any) -> Any:
        """As Celery does; the schedule may be text. :raises ConfigurationError: what it takes; nothing was added."""
        entry = self.Entry(app=self.app, **with_sound_schedule(kwargs.get("name"), kwargs, self.app))
        self.check(entry)
        self.schedule[entry.name] = entry
        return entry

    def _maybe_entry(self, name: str, entry: Any) -> Any:
        return super()._maybe_entry(name, with_sound_schedule(name, entry, self.app))

    def merge_inplace(self, b: Any) -> None:
        """As Celery does; what changes in place is noticed, and a schedule may be text.

        :raises ConfigurationError: one of them is not a schedule; nothing was changed.
        """
        super().merge_inplace({name: with_sound_schedule(name, entry, self.app) for name, entry in b.items()})
        if isinstance(self.schedule, Entries):
            self.schedule.note(b)

    def check(self, entry: Any) -> None:
        """:raises ConfigurationError: the entry has a policy that does not exist."""
        self._rule(entry)

    def _rule(self, entry: Any) -> Misfire:
        try:
            return self._misfire.changed_by(entry.options)
        except ConfigurationError as exc:
            raise ConfigurationError(f"beat entry {entry.name!r}: {exc}") from None

    # -- the heap --

    @property
    def _heap(self) -> HeapView | None:
        """The due times as Celery knows them: a list of `event_t`; None before the first tick."""
        return self._view

    @_heap.setter
    def _heap(self, events: Iterable[Any] | None) -> None:
        self._view = None
        if events is not None:
            self._view = HeapView(self.schedule, events)
            if isinstance(self.schedule, Entries):
                self.schedule.changes()

    def populate_heap(self, *args: Any, **kwargs: Any) -> None:
        """Look at every entry: O(N). Done once; whoever changes entries in place may call it. Never raises."""
        schedule = self.schedule
        if isinstance(schedule, Entries):
            schedule.changes()
        else:
            self.old_schedulers = copy.copy(schedule)
        self._view = HeapView(schedule)
        with self._at_once():
            self._view.heap.fill((name, self._first_look(entry)) for name, entry in list(schedule.items()))

    def _first_look(self, entry: Any) -> float:
        """When to look at an entry that is new or was changed, on Celery's clock (`_when`)."""
        try:
            found = self._next(entry)
            if found is not None:
                if found.delay == math.inf:
                    self._warn_of_never(entry)
                return float(found.now + (self.adjust(max(found.delay, 0.0)) or 0.0))
            is_due, delay = entry.is_due()
            delay = 0 if is_due else delay
        except Exception:  # noqa: BLE001 - of a user's schedule; logged
            delay = self._is_due_failed(entry)[1]
        return self._when(entry, max(delay, 0) if is_numeric_value(delay) else delay) or 0

    def _warn_of_never(self, entry: Any) -> None:
        if not isinstance(entry.schedule, once) and self._never.allows(entry.name):
            logger.warning(
                "beat: entry never due entry=%s schedule=%s: it names no time that comes; give it another schedule",
                entry.name, str(entry.schedule),
            )  # fmt: skip

    def _next(self, entry: Any) -> Next | None:
        """How far the entry's next slot is; None if it is to be asked."""
        forecast = self._forecast or Forecast()
        return forecast.next(entry) if type(self).is_due is CelerysScheduler.is_due else None

    @contextmanager
    def _at_once(self) -> Iterator[None]:
        """Look at many entries as at one moment."""
        self._forecast = Forecast()
        try:
            yield
        finally:
            self._forecast = None

    def _due_heap(self) -> DueHeap:
        """The heap, with everything in it that happened to the schedule."""
        view, schedule = self._view, self.schedule
        if view is None or view.schedule is not schedule:
            self.populate_heap()
        elif not isinstance(schedule, Entries):
            # A mapping of the caller's own, who may change it anywhere: compared as Celery does, at its cost.
            if not self.schedules_equal(self.old_schedulers, schedule):
                self.populate_heap()
        elif schedule.changed:
            with self._at_once():
                for name in schedule.changes():
                    entry = schedule.get(name)
                    if entry is None:
                        view.heap.remove(name)
                    else:
                        view.heap.put(name, self._first_look(entry))
        assert self._view is not None, "populate_heap makes it"
        return self._view.heap

    def _is_due_failed(self, entry: Any) -> tuple[bool, float]:
        """One entry that cannot be reckoned stops neither beat nor the others: as Celery 5.7 does."""
        celery.beat.error(
            "beat: Cannot calculate the next run of %r, trying again in %s.",
            entry.name,
            humanize_seconds(self.max_interval),
            exc_info=True,
        )
        return False, self.max_interval

    def _reckons(self, entry: Any) -> bool:
        return type(self).is_due is CelerysScheduler.is_due and entry_has_slots(entry)

    def _settle(self, name: str) -> None:
        if isinstance(self.schedule, Entries):
            self.schedule.settle(name)
        elif self.old_schedulers is not self.schedule:
            self.old_schedulers[name] = self.schedule[name]
