"""What Celery asks of a scheduler besides ticks, answered by the inner scheduler while there is one."""

from __future__ import annotations

from typing import Any

import celery.beat
import click

from celery_neli.exceptions import ConfigurationError

__all__ = ["Facade"]


class Facade(celery.beat.Scheduler):
    """Celery's scheduler interface around an inner scheduler that comes and goes. The thread that ticks."""

    #: RedBeat's receiver of ``beat_init`` takes RedBeat's lock unless the scheduler says that it has none.
    lock_key = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._inner: Any = None
        self._added: list[dict[str, Any]] = []
        super().__init__(*args, **kwargs)

    def add(self, **kwargs: Any) -> Any:
        """Add an entry (Celery's fields); kept for the inner schedulers of later terms too."""
        self._added.append(kwargs)
        return super().add(**kwargs) if self._inner is None else self._inner.add(**kwargs)

    def get_schedule(self) -> Any:
        """The inner scheduler's schedule; what was added here while there is none."""
        return self.data if self._inner is None else self._inner.schedule

    def set_schedule(self, schedule: Any) -> None:
        """Replace it."""
        if self._inner is None:
            self.data = schedule
        else:
            self._inner.schedule = schedule

    schedule = property(get_schedule, set_schedule)

    def should_sync(self) -> bool:
        """Whether :meth:`_do_sync` is due."""
        return self._inner is not None and bool(self._inner.should_sync())

    def _do_sync(self) -> None:
        if self._inner is not None:
            self._inner._do_sync()  # noqa: SLF001 - Celery's name for it

    def sync(self) -> None:
        """Write the schedule, if this process leads."""
        if self._inner is not None:
            self._inner.sync()

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
        return (
            f"    . leads -> {conf.get('neli_scheduler') or 'celery.beat.Scheduler'}\n"
            f"    . group -> {conf.get('neli_group')}.beat"
        )
