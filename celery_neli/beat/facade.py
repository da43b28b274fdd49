"""What Celery asks of a scheduler besides ticks, answered by the inner schedulers while there are any."""

from __future__ import annotations

from collections import ChainMap
from typing import TYPE_CHECKING, Any

import celery.beat
from celery.utils.log import get_logger

from celery_neli.beat.draft import Draft
from celery_neli.beat.replicated.sharding import owner
from celery_neli.beat.wrapped.host import is_database, is_redbeat
from celery_neli.exceptions import ConfigurationError
from celery_neli.logs import escaping
from celery_neli.periodic.static import with_sound_schedule
from celery_neli.printable import failure
from celery_neli.scheduler_class import DEFAULT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from celery_neli.beat.role_runner import Desk

__all__ = ["Facade"]

logger = escaping(get_logger(__name__))

#: Schedulers that keep entries in memory, or in a file of which they use only the entries of `beat_schedule`.
_CELERYS = (celery.beat.Scheduler, celery.beat.PersistentScheduler)


class Spread(ChainMap[str, Any]):
    """The schedules of all shards as one mapping. Each entry is in the schedule of its shard."""

    def __setitem__(self, name: str, entry: Any) -> None:
        self._of(name)[name] = entry

    def __delitem__(self, name: str) -> None:
        del self._of(name)[name]

    def pop(self, name: str, *default: Any) -> Any:
        """As a dict's."""
        return self._of(name).pop(name, *default)

    def popitem(self) -> tuple[str, Any]:
        """As a dict's."""
        for name in self:
            return name, self.pop(name)
        raise KeyError("the schedule is empty")

    def clear(self) -> None:
        """As a dict's."""
        for each in self.maps:
            each.clear()

    def _of(self, name: str) -> Any:
        return self.maps[owner(name, len(self.maps))]


class Facade(celery.beat.Scheduler):
    """Celery's scheduler interface around inner schedulers that come and go. The thread that ticks."""

    #: RedBeat's receiver of ``beat_init`` takes RedBeat's lock unless the scheduler says that it has none.
    lock_key = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._desks: list[Desk] = []
        self._added: list[dict[str, Any]] = []
        self._drafted: Draft | None = None
        #: The mapping that Celery's constructor was given, evaluated.
        self._given: Any = None
        super().__init__(*args, **kwargs)

    @property
    def _inners(self) -> list[Any]:
        return [desk.inner for desk in self._desks if desk.inner is not None]

    def add(self, **kwargs: Any) -> Any:
        """Add an entry (Celery's fields; the schedule may be text), also to the inner schedulers of later terms.

        :raises ConfigurationError: the schedule is none; nothing was added.
        """
        kwargs = with_sound_schedule(kwargs.get("name"), kwargs, self.app)
        added = [desk.scheduler.add(**kwargs) for desk in self._desks if desk.scheduler is not None]
        if not added:
            added = [self.Entry(app=self.app, **kwargs)]
            self._draft.show(added[0])
        self._added.append(kwargs)
        return added[0]

    def get_schedule(self) -> Any:
        """Return the schedule of the inner scheduler; of several, one view. While there is none, return the draft: its
        changes are made again in each inner scheduler that is built.
        """
        schedules = [desk.schedule for desk in self._desks if desk.scheduler is not None]
        if not schedules:
            return self._draft.entries
        return schedules[0] if len(schedules) == 1 else Spread(*schedules)

    def set_schedule(self, schedule: Any) -> None:
        """Replace it; of several, each entry in its shard."""
        schedulers = [desk.scheduler for desk in self._desks if desk.scheduler is not None]
        if not schedulers:
            self._draft.replace(schedule)
        elif len(schedulers) == 1:
            schedulers[0].schedule = schedule
        else:
            spread = self.get_schedule()
            spread.clear()
            spread.update(schedule)

    @property
    def _draft(self) -> Draft:
        """The schedule while there is no scheduler. Made on first use; Celery itself does not use it."""
        if self._drafted is None:
            self._drafted = Draft(self.app, {**self._rows(), **self._given})
        return self._drafted

    def _rows(self) -> Mapping[str, Any]:
        """Return the entries of a database. RedBeat shows only what is due; another process may have a file open."""
        cls = self._inner_class(self.app)
        if not is_database(cls):
            return {}
        try:
            return dict(cls(app=self.app, lazy=True).schedule)
        except Exception as exc:  # noqa: BLE001 - the database fails; its scheduler will meet that again, and wait
            logger.warning("beat: the entries in the database cannot be shown yet: %r", exc)
            return {}

    def _amend(self, scheduler: Any) -> None:
        """Change in a scheduler that was built what code has changed in the schedule."""
        cls = self._inner_class(self.app)
        learns = cls in _CELERYS
        if self._drafted is not None or learns:
            self._draft.amend(scheduler, stored=is_database(cls) or is_redbeat(cls), learns=learns)

    def _learn(self, scheduler: Any) -> None:
        """Keep what code has changed in a scheduler whose term is over."""
        if self._drafted is not None:
            self._drafted.learn(scheduler)

    @staticmethod
    def _inner_class(app: Any) -> type[Any]:
        raise NotImplementedError

    schedule = property(get_schedule, set_schedule)

    @property
    def data(self) -> Any:
        """The schedule, as Celery's scheduler keeps it."""
        return self.get_schedule()

    @data.setter
    def data(self, schedule: Any) -> None:
        if self._given is None:
            self._given = schedule
        else:
            self.set_schedule(schedule)

    def should_sync(self) -> bool:
        """Whether :meth:`_do_sync` is due."""
        return any(inner.should_sync() for inner in self._inners)

    def _do_sync(self) -> None:
        for inner in self._inners:
            inner._do_sync()

    def sync(self) -> None:
        """Write the schedule, if this process leads."""
        for inner in self._inners:
            inner.sync()

    def neli_check(self) -> None:
        """Raise `ConfigurationError` for settings with which this scheduler could not run. Starts nothing."""

    @property
    def info(self) -> str:
        """Lines of beat's banner. A wrong setting ends the command here, with one line, before anything has started."""
        try:
            self.neli_check()
        except ConfigurationError as exc:
            raise failure(exc) from None
        conf = self.app.conf
        return f"    . leads -> {conf.get('neli_scheduler') or DEFAULT}\n    . group -> {conf.get('neli_group')}.beat"
