"""The entry table of a scheduler: its entries by name, and a heap of their due times that follows every change.

What may be done with `schedule` in Celery may be done here: entries are set, deleted, updated and merged; the mapping
is replaced, or is one of the caller's own. The next tick knows.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, MutableSequence, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from celery.beat import Scheduler as CelerysScheduler
from celery.beat import event_t
from celery.utils.functional import is_numeric_value
from celery.utils.log import get_logger
from celery.utils.time import maybe_make_aware

from celery_neli.exceptions import ConfigurationError
from celery_neli.logs import LogLimit, escaping
from celery_neli.schedule.due import Forecast, Look, Next, entry_has_slots, look, pass_over, runs_left
from celery_neli.schedule.heap import DueHeap
from celery_neli.schedule.policies import Misfire
from celery_neli.schedule.slots import LOOK_AGAIN, Derived, only_slot

logger = escaping(get_logger(__name__))

#: Seconds between two lines that say that an entry will never run.
NEVER_INTERVAL = 3600.0
NEVER_DUE = "beat: entry never due entry=%s schedule=%s: it names no time that comes; give it another schedule"
#: The priority of every event, as in Celery.
PRIORITY = 5


class Entries(dict[str, Any]):
    """A schedule that knows which of its entries were changed, so that a tick need not compare them all.

    A dict that keeps the names that were set or deleted until `changes` is called; it begins to with the first call. A
    copy and a pickle of it are plain dicts. An entry that is changed in place is not seen: call `note`.
    """

    __slots__ = ("_changed", "_watched")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._changed: dict[str, None] = {}
        self._watched = False

    def note(self, names: Iterable[str]) -> None:
        """Note that these entries were changed in place."""
        if self._watched:
            self._changed.update(dict.fromkeys(names))

    def settle(self, name: str) -> None:
        """Forget the last change of this entry: it needs no attention."""
        self._changed.pop(name, None)

    def changes(self) -> dict[str, None]:
        """Return, and forget, the names that were set, deleted or noted since the last call, in order."""
        self._watched = True
        changed, self._changed = self._changed, {}
        return changed

    @property
    def changed(self) -> bool:
        """True if `changes` would return any."""
        return bool(self._changed)

    def __setitem__(self, name: str, entry: Any) -> None:
        # A tick advances an entry by the name that the entry has, and would find this one due for ever.
        if getattr(entry, "name", name) != name:
            entry.name = name
        super().__setitem__(name, entry)
        if self._watched:
            self._changed[name] = None

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name)
        self.note((name,))

    # By way of the two above, where a dict would pass them by.
    setdefault, clear, update = MutableMapping.setdefault, MutableMapping.clear, MutableMapping.update

    def pop(self, name: str, *default: Any) -> Any:
        """Remove and return an entry, or return the default."""
        if name in self:
            self.note((name,))
        return super().pop(name, *default)

    def popitem(self) -> tuple[str, Any]:
        """Remove and return the last item."""
        name, entry = super().popitem()
        self.note((name,))
        return name, entry

    def __ior__(self, other: Any) -> Entries:  # type: ignore[misc,override]  # typeshed has overloads
        self.update(other)
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


class HeapView(MutableSequence[Any]):
    """`Scheduler._heap` over a `DueHeap`: reads as Celery's list of (time, priority, entry), and can be changed.

    An event goes to where its time belongs, wherever it was inserted, and replaces the one of the same entry. Of the
    entries, those of ``schedule`` are shown.
    """

    def __init__(self, schedule: Mapping[str, Any], events: Iterable[Any] = ()) -> None:
        self.heap = DueHeap()
        self.schedule = schedule
        #: Events that were put here, to be shown as the very same objects.
        self._given: dict[str, Any] = {event[2].name: event for event in events}
        self.heap.fill((name, event[0]) for name, event in self._given.items())

    def __len__(self) -> int:
        return len(self.heap)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self._event(node) for node in list(self.heap)[place]]
        if place == 0 and (first := self.heap.peek()) is not None:
            return self._event(first)
        return self._event(list(self.heap)[place])

    def __setitem__(self, place: Any, event: Any) -> None:
        if isinstance(place, slice):
            raise TypeError("one event at a time: they go to where their times belong")
        del self[place]
        self.insert(place, event)

    def __delitem__(self, place: Any) -> None:
        for event in self[place] if isinstance(place, slice) else [self[place]]:
            self.heap.remove(event[2].name)
            self._given.pop(event[2].name, None)

    def insert(self, place: int, event: Any) -> None:
        """Put the event in, or move the one of the same entry; its time says where it goes, not ``place``."""
        name = event[2].name
        self._given[name] = event
        self.heap.put(name, event[0])
        settle = getattr(self.schedule, "settle", None)
        if settle is not None:
            settle(name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # a list has none

    def __repr__(self) -> str:
        return repr(list(self))

    def _event(self, node: Any) -> Any:
        given = self._given.get(node.name)
        if given is not None and given[0] == node.time and given[2] is self.schedule.get(node.name, given[2]):
            return given
        return event_t(node.time, PRIORITY, self.schedule[node.name])


class EntryTable:
    """The entries of ``scheduler`` with their due times. The thread that ticks.

    It asks the scheduler for what subclasses of Celery's may override: `schedule`, `is_due`, `adjust`, `_when`. With
    `exact`, an entry is looked at when its slot is due and not a moment earlier, and a slot that is past stays in the
    past: the watermark *settled* must not pass it.
    """

    def __init__(self, scheduler: Any) -> None:
        self.exact = False
        #: Entries that are paused.
        self.paused: dict[str, Any] = {}
        #: Celery's view of the heap; None before the first tick.
        self.view: HeapView | None = None
        self._scheduler = scheduler
        self._misfire = Misfire.of_app(scheduler.app)
        self._never = LogLimit(NEVER_INTERVAL)
        self._forecast: Forecast | None = None

    @property
    def schedule(self) -> Any:
        """The entries by name, without the paused ones."""
        return self._scheduler.schedule

    def moment(self) -> float:
        """Return the wall clock of the app, in Unix seconds."""
        return float(maybe_make_aware(self._scheduler.app.now()).timestamp())

    def find(self, name: str) -> Any:
        """Return the entry, paused or not; None if there is none of that name."""
        found = self.schedule.get(name)
        return self.paused.get(name) if found is None else found

    def show(self, entry: Any, *, paused: bool) -> None:
        """Put the entry into the schedule, or keep it out of it while it is ``paused``."""
        if paused:
            self.schedule.pop(entry.name, None)
            self.paused[entry.name] = entry
        else:
            self.paused.pop(entry.name, None)
            self.schedule[entry.name] = entry

    def remove(self, name: str) -> None:
        """Remove the entry, paused or not."""
        self.schedule.pop(name, None)
        self.paused.pop(name, None)

    def note(self, name: str) -> None:
        """Note that the entry was changed in place."""
        if name in self.schedule:
            self.schedule.note((name,))

    def replace_view(self, events: Iterable[Any] | None) -> None:
        """Have these events of Celery's and no others; with None, look at every entry at the next tick."""
        self.view = None
        if events is not None:
            self.view = HeapView(self.schedule, events)
            self._forget_changes()

    def heap(self) -> DueHeap:
        """Return the heap, with everything in it that happened to the schedule since the last call."""
        view, schedule = self.view, self.schedule
        if view is None or view.schedule is not schedule:
            self._scheduler.populate_heap()
        elif not isinstance(schedule, Entries):
            # A mapping of the caller's own, who may change it anywhere: compared as Celery does, at its cost.
            if not self._scheduler.schedules_equal(self._scheduler.old_schedulers, schedule):
                self._scheduler.populate_heap()
        elif schedule.changed:
            changed = schedule.changes()
            with self.at_once():
                for name in changed:
                    entry = schedule.get(name)
                    if entry is None:
                        view.heap.remove(name)
                    else:
                        view.heap.put(name, self.first_look(entry))
        assert self.view is not None, "populate_heap makes it"
        return self.view.heap

    def populate(self) -> None:
        """Look at every entry: O(N). Never raises."""
        schedule = self.schedule
        if not self._forget_changes():
            self._scheduler.old_schedulers = copy.copy(schedule)
        self.view = HeapView(schedule)
        with self.at_once():
            self.view.heap.fill((name, self.first_look(entry)) for name, entry in list(schedule.items()))

    def _forget_changes(self) -> bool:
        if isinstance(self.schedule, Entries):
            self.schedule.changes()
            return True
        return False

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Look at many entries as at one moment."""
        self._forecast = Forecast()
        try:
            yield
        finally:
            self._forecast = None

    def settle(self, name: str) -> None:
        """Note that the heap knows of the last change of this entry, or is about to."""
        scheduler, schedule = self._scheduler, self.schedule
        if isinstance(schedule, Entries):
            schedule.settle(name)
        elif scheduler.old_schedulers is not schedule:
            scheduler.old_schedulers[name] = schedule[name]

    # -- one entry --

    def check(self, entry: Any) -> None:
        """Raise `ConfigurationError` if the scheduler cannot run the entry."""
        self._scheduler.check(entry)

    def policy(self, entry: Any) -> Misfire:
        """Return the misfire policy of an entry. Raises `ConfigurationError`."""
        try:
            return self._misfire.changed_by(entry.options) if entry.options else self._misfire
        except ConfigurationError as exc:
            raise ConfigurationError(f"beat entry {entry.name!r}: {exc}") from None

    def has_slots(self, entry: Any) -> bool:
        """Return True if the entry's slots can be computed; otherwise only its own `is_due` knows when it runs."""
        return self._asks_nobody() and entry_has_slots(entry)

    def look(self, entry: Any, now: datetime) -> Look:
        """Return what is due of an entry that may be. Never raises."""
        try:
            if not runs_left(entry):
                return Look(due=False, delay=math.inf, exact=True)
            if self.has_slots(entry) and (found := look(entry, maybe_make_aware(now), self.policy(entry))) is not None:
                return found
            is_due, delay = self._scheduler.is_due(entry)
            return Look(due=is_due, delay=delay)
        except Exception:  # noqa: BLE001 - of a user's schedule; logged
            return Look(due=False, delay=self._scheduler._is_due_failed(entry)[1])

    def first_look(self, entry: Any) -> float:
        """Return when to look at an entry that is new or was changed, in Unix seconds."""
        scheduler = self._scheduler
        try:
            if not runs_left(entry):
                return math.inf
            found = (self._forecast or Forecast()).next(entry) if self._asks_nobody() else None
            if found is not None:
                if _never_comes(entry, found) and self._never.allows(entry.name):
                    logger.warning(NEVER_DUE, entry.name, str(entry.schedule))
                if found.delay == math.inf:
                    return math.inf
                if self.exact:
                    return float(found.now + found.delay)
                return float(found.now + (scheduler.adjust(max(found.delay, 0.0)) or 0.0))
            is_due, delay = entry.is_due()
            delay = 0 if is_due else delay
        except Exception:  # noqa: BLE001 - of a user's schedule; logged
            delay = scheduler._is_due_failed(entry)[1]
        return scheduler._when(entry, max(delay, 0) if is_numeric_value(delay) else delay) or 0

    def next_look(self, advanced: Any, found: Look, now: datetime) -> float:
        """Return when to look at an entry again that ran at ``now`` as was ``found``."""
        if not found.exact:  # the answer of such a schedule counts from when its entry is done
            return float(self._scheduler._when(advanced, found.delay))
        if self.exact:
            if found.delay > 0 and found.owed is not None and found.owed.upcoming is not None:
                return found.owed.upcoming.timestamp()
            return self.first_look(advanced)
        return float(maybe_make_aware(now).timestamp() + (self._scheduler.adjust(found.delay) or 0))

    def pass_over(self, entry: Any, slot: datetime, now: datetime) -> Any:
        """Let the slots up to ``slot`` never run; return the entry after them."""
        passed = self.schedule[entry.name] = pass_over(entry, slot, now)
        return passed

    def _asks_nobody(self) -> bool:
        return type(self._scheduler).is_due is CelerysScheduler.is_due


def _never_comes(entry: Any, found: Next) -> bool:
    """Return True if an entry has no slot that comes, and that is no plan: neither its only one nor its end is past."""
    when, over = entry.schedule, False
    none = found.delay == math.inf
    if isinstance(when, Derived):
        none = none or (when.searched_again and found.delay == LOOK_AGAIN.total_seconds())
        over = when.end is not None and (entry.total_run_count > 0 or when.end.timestamp() < found.now)
    return none and not over and only_slot(when) is None
