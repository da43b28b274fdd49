"""Alarms for what did not run, and reports of what did to services outside.

Read `overdue` (what is overdue; pure), `entries` and `feed` (what is known of the schedule), `watcher` (the process
that watches, and how it is elected); then `reports`, `sink`, `sentry`, `http` (whom they are passed to). Importing it
loads no Kafka client.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from celery_neli import hooks
from celery_neli.config import enabled, from_app, setting
from celery_neli.exceptions import NeliError
from celery_neli.logs import escaping
from celery_neli.schedule.policies import PAUSE_ON_FAILURE
from celery_neli.threads import spawn

if TYPE_CHECKING:
    from celery import Celery

    from celery_neli.alarms.overdue import Alarm
    from celery_neli.alarms.sink import Sink
    from celery_neli.alarms.watcher import Watcher
    from celery_neli.election.leadership import Leadership

logger = escaping(logging.getLogger(__name__))


def start(app: Celery, leadership: Leadership) -> Alarms | None:
    """Start to watch, if `neli_alarms` is on, and the sinks that are set; None if there is nothing to do."""
    if not enabled(app):
        return None
    alarms = Alarms(app, make_sinks(app))
    if setting(app, "neli_alarms"):
        alarms.watch(leadership)
    elif setting(app, "neli_history"):
        alarms.watch_failures(leadership)
    if alarms.idle:
        return None
    return alarms


def _pauses_any(app: Celery) -> bool:
    """Return True if an entry of `beat_schedule` is to be paused after failures."""
    entries = (app.conf.beat_schedule or {}).values()
    found = ((getattr(each, "get", lambda *_: None)("options") or {}) for each in entries)
    return any(each.get(PAUSE_ON_FAILURE) is not None for each in found if isinstance(each, Mapping))


def make_sinks(app: Celery) -> list[Sink]:
    """Return the sinks that the settings name. One that cannot be made is logged."""
    group = from_app(app, "beat").group
    sinks: list[Sink] = []

    def add(make: Callable[[], Sink]) -> None:
        try:
            sinks.append(make())
        except NeliError as exc:
            logger.error("alarms: %s", exc)

    if setting(app, "neli_sentry_crons"):
        from celery_neli.alarms.sentry import sentry

        add(lambda: sentry(app))
    if url := setting(app, "neli_healthchecks"):
        from celery_neli.alarms.http import healthchecks

        add(lambda: healthchecks(url))
    if address := setting(app, "neli_webhook"):
        from celery_neli.alarms.http import webhook

        add(lambda: webhook(address, group))
    return sinks


class Alarms:
    """What a beat or worker runs of this (`observability.Part`)."""

    def __init__(self, app: Celery, sinks: list[Sink]) -> None:
        self._app, self.sinks = app, sinks
        self._group = from_app(app, "beat").group
        self.watcher: Watcher | None = None
        self._leadership: Leadership | None = None
        self._asked = False
        if sinks:
            hooks.slot.add(self._on_slot)
            hooks.run.add(self._on_run)

    @property
    def idle(self) -> bool:
        """True if there is nothing to do."""
        return self.watcher is None and not self.sinks and self._leadership is None

    def watch(self, leadership: Leadership, *, alarms: bool = True) -> None:
        """Take part in watching; without `alarms`, only for failures."""
        from celery_neli.alarms.watcher import Watcher

        self.watcher = Watcher(self._app, leadership, self.raised, alarms=alarms)
        self.watcher.start()

    def watch_failures(self, leadership: Leadership) -> None:
        """Take part in watching for failures as soon as there is an entry that is to be paused after some.

        Of runtime entries, beats know. It begins on another thread, for the one that ticks must not wait.
        """
        if _pauses_any(self._app):
            self.watch(leadership, alarms=False)
        elif leadership.election == "beat":
            self._leadership = leadership
            hooks.pausing.add(self._on_pausing)

    def _on_pausing(self, name: str) -> None:
        leadership = self._leadership
        if not self._asked and leadership is not None:
            self._asked = True
            spawn(lambda: self._begin_late(leadership), name="neli-watch-begins")

    def _begin_late(self, leadership: Leadership) -> None:
        hooks.pausing.remove(self._on_pausing)
        try:
            self.watch(leadership, alarms=False)
        except NeliError as exc:
            logger.error("alarms: entries are not paused after failures: %s", exc)

    def stop(self) -> None:
        """End; wait for a second or two at most."""
        hooks.pausing.remove(self._on_pausing)
        hooks.slot.remove(self._on_slot)
        hooks.run.remove(self._on_run)
        if self.watcher is not None:
            self.watcher.stop()
        for sink in self.sinks:
            sink.stop()

    def _on_slot(self, event: hooks.SlotEvent) -> None:
        from celery_neli.alarms.reports import of_slot

        self._put(of_slot(event, self._group))

    def _on_run(self, event: Any) -> None:
        from celery_neli.alarms.reports import of_run

        self._put(of_run(event, self._group))

    def raised(self, alarm: Alarm) -> None:
        """Pass an alarm to the sinks; return at once."""
        from celery_neli.alarms.reports import of_alarm

        self._put(of_alarm(alarm, self._group))

    def _put(self, report: Any) -> None:
        if report is not None:
            for sink in self.sinks:
                sink.put(report)
