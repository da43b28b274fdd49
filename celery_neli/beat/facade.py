"""What Celery asks of a scheduler besides ticks, answered by the inner schedulers while there are any."""

from __future__ import annotations

from collections import ChainMap
from typing import TYPE_CHECKING, Any

import celery.beat
import click

from celery_neli.beat.inner import DEFAULT
from celery_neli.exceptions import ConfigurationError
from celery_neli.schedule.static import with_sound_schedule

if TYPE_CHECKING:
    from celery_neli.beat.desk import Desk

__all__ = ["Facade"]


class Facade(celery.beat.Scheduler):
    """Celery's scheduler interface around inner schedulers that come and go. The thread that ticks."""

    #: RedBeat's receiver of ``beat_init`` takes RedBeat's lock unless the scheduler says that it has none.
    lock_key = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._desks: list[Desk] = []
        self._added: list[dict[str, Any]] = []
        super().__init__(*args, **kwargs)

    @property
    def _inners(self) -> list[Any]:
        return [desk.inner for desk in self._desks if desk.inner is not None]

    def add(self, **kwargs: Any) -> Any:
        """Add an entry (Celery's fields; the schedule may be text); kept for the inner schedulers of later terms too.

        :raises ConfigurationError: the schedule is none; nothing was added.
        """
        kwargs = with_sound_schedule(kwargs.get("name"), kwargs, self.app)
        self._added.append(kwargs)
        added = [desk.scheduler.add(**kwargs) for desk in self._desks if desk.scheduler is not None]
        return added[0] if added else super().add(**kwargs)

    def get_schedule(self) -> Any:
        """The inner scheduler's schedule (of several, all entries in one view); what was added here while there is
        none.
        """
        inners = self._inners
        if not inners:
            return self.data
        return inners[0].schedule if len(inners) == 1 else ChainMap(*(each.schedule for each in inners))

    def set_schedule(self, schedule: Any) -> None:
        """Replace it; of several, each one."""
        if not self._inners:
            self.data = schedule
        for inner in self._inners:
            inner.schedule = schedule

    schedule = property(get_schedule, set_schedule)

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
            raise click.ClickException(str(exc)) from None
        conf = self.app.conf
        return f"    . leads -> {conf.get('neli_scheduler') or DEFAULT}\n    . group -> {conf.get('neli_group')}.beat"
