"""The schedule as code sees it: a draft while no scheduler exists, and one view of the schedules of all shards.

Receivers of ``beat_init`` and the like read and change ``sender.scheduler.schedule``, which is what Celery's scheduler
runs. The hosts' schedulers are built later. Until then the draft shows the entries that they will have, and it makes
every change again in each scheduler that is built. As with Celery, changes stay in this process: every beat that may
lead has to make them.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, MutableMapping
from datetime import datetime
from typing import Any

import celery.beat
from celery.utils.log import get_logger
from celery.utils.time import maybe_make_aware

from celery_neli.beat.replicated.entries import Entries
from celery_neli.config import owner
from celery_neli.exceptions import ConfigurationError
from celery_neli.logs import escaping
from celery_neli.periodic.static import check_static
from celery_neli.printable import MOST_CHARACTERS, printable

logger = escaping(get_logger(__name__))

FIELDS = ("task", "schedule", "args", "kwargs", "options", "last_run_at", "total_run_count")
RUNS_FROM = 5  # what follows changes with each run


class Draft:
    """The entries of ``app``'s beat, as `celery.beat.Scheduler` would make them. Opens no connection.

    ``given``: entries in addition to those of `beat_schedule`. One thread at a time.
    """

    def __init__(self, app: Any, given: Mapping[str, Any]) -> None:
        self._app = app
        self._made: datetime = maybe_make_aware(app.now())
        lazy = celery.beat.Scheduler(app, schedule=dict(given), lazy=True)
        lazy.update_from_dict(check_static(app.conf.beat_schedule, app).entries)  # mistakes are logged by those built
        lazy.install_default_entries(lazy.schedule)
        #: The schedule. Callers may change it as they may change a dict.
        self.entries = Entries(lazy.schedule)
        self.entries.changes()
        self._was = {name: _fields(entry) for name, entry in self.entries.items()}
        self._configured = self._configuration()
        self._changed: dict[str, None] = {}
        self._logged: set[str] = set()
        #: The entries that the present term's scheduler was built with; None if `learn` is not called.
        self._built: dict[str, Any] | None = None

    def show(self, entry: Any) -> None:
        """Show an entry that `Scheduler.add` added. Each scheduler that is built gets it from there."""
        self.entries[entry.name] = entry
        self.entries.settle(entry.name)
        self._was[entry.name] = _fields(entry)

    def amend(self, scheduler: Any, *, stored: bool, learns: bool) -> None:
        """Make the changes in a scheduler that was built. Log each entry that cannot be changed, once per process.

        ``stored``: the scheduler keeps its entries in a store, which is no mapping. ``learns``: `learn` is called when
        its term ends.
        """
        for name in self._changes():
            try:
                if stored:
                    raise TypeError("this scheduler keeps its entries in a store: change them there")
                self._change(scheduler, name)
            except Exception as exc:  # noqa: BLE001 - of whatever was put there
                if name not in self._logged:
                    self._logged.add(name)
                    logger.error(
                        "beat: entry=%s was changed in the schedule by code, which has no effect: %s",
                        printable(name), printable(str(exc), 2 * MOST_CHARACTERS),
                    )  # fmt: skip
        self._built = {name: _defined(entry) for name, entry in scheduler.schedule.items()} if learns else None

    def learn(self, scheduler: Any) -> None:
        """Keep what code set, changed or deleted in the schedule of a term that is over, for the next one."""
        if self._built is None:
            return
        before, self._built = self._built, None
        now = scheduler.schedule
        for name in before.keys() - now.keys():
            self.entries[name] = None  # so that the deletion is a change
            del self.entries[name]
        for name, entry in now.items():
            if name not in before or _defined(entry) != before[name]:
                self.entries[name] = entry

    def _changes(self) -> list[str]:
        """Return the names that were set or deleted, or whose entries were changed here and not in `beat_schedule`."""
        self._changed.update(self.entries.changes())
        configured = self._configuration()
        for name, was in self._was.items():
            as_before = name not in self._changed and configured.get(name) is self._configured.get(name)
            if as_before and _fields(self.entries[name]) != was:
                self._changed[name] = None
        return list(self._changed)

    def _configuration(self) -> dict[str, Any]:
        given = self._app.conf.beat_schedule
        return dict(given) if isinstance(given, dict) else {}

    def _change(self, scheduler: Any, name: str) -> None:
        if name not in self.entries:
            scheduler.schedule.pop(name, None)
            return
        entry = self.entries[name]
        if not isinstance(entry, celery.beat.ScheduleEntry) or not isinstance(name, str):
            found = check_static({name: entry}, self._app, kind=scheduler.Entry)
            for wrong in found.mistakes.values():
                raise ConfigurationError("; ".join(wrong))
            entry = found.entries[name]
        made = scheduler._maybe_entry(name, entry)
        if made is entry:  # each scheduler has its own: they run at different times
            made = object.__new__(type(entry))
            made.__dict__.update(vars(entry))
        if not isinstance(made.task, str) or not hasattr(made.schedule, "is_due"):
            raise TypeError(f"task = {made.task!r}, schedule = {made.schedule!r}: give a task's name and a schedule")
        made.name = name
        if maybe_make_aware(made.last_run_at) >= self._made:  # it has no last run of its own
            made.last_run_at = made.default_now()
        put = getattr(scheduler, "neli_put", None)
        if put is None:
            scheduler.schedule[name] = made
        else:
            put(made)


class Shards(ChainMap[str, Any]):
    """The schedules of all shards as one mapping. Each entry is in the schedule of its shard."""

    def __setitem__(self, name: str, entry: Any) -> None:
        self._of(name)[name] = entry

    def __delitem__(self, name: str) -> None:
        del self._of(name)[name]

    pop = MutableMapping.pop  # type: ignore[assignment]  # ChainMap's looks into the first mapping alone
    popitem = MutableMapping.popitem

    def clear(self) -> None:
        """As a dict's."""
        for each in self.maps:
            each.clear()

    def _of(self, name: str) -> Any:
        return self.maps[owner(name, len(self.maps))]


def _fields(entry: Any) -> tuple[Any, ...]:
    values = [getattr(entry, name, None) for name in FIELDS]
    return tuple([dict(value) if isinstance(value, dict) else value for value in values])


def _defined(entry: Any) -> tuple[Any, ...]:
    return _fields(entry)[:RUNS_FROM]
