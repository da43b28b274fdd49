"""What shows the health of one process, put together."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from celery import Celery

from celery_neli.config import setting
from celery_neli.election.leadership import Leadership
from celery_neli.health.directory import REMEDY, DirectoryError, path_of
from celery_neli.health.notes import NoteKeeper
from celery_neli.health.vitals import Vitals
from celery_neli.logs import escaping

logger = escaping(logging.getLogger(__name__))


class HealthPart:
    """The thread that watches this process, and what tells of it: a note in a directory, a server for HTTP."""

    def __init__(self, leadership: Leadership, *, directory: Path | None, address: tuple[str, int] | None) -> None:
        config = leadership.config
        self._pid = os.getpid()
        self.vitals = Vitals(leadership, kafka_away=_kafka_away(config.properties))
        self._parts: list[Any] = [self.vitals]
        if directory is not None:
            report = self.vitals.report
            self._parts.append(NoteKeeper(directory, config.group, leadership.election, config.name, report))
        if address is not None:
            from celery_neli.health.pages import Pages
            from celery_neli.health.server import Server

            pages = Pages(config.name, leadership.election, leadership.roles, self.vitals.report)
            self._parts.append(Server(*address, pages.answer, name=config.name))

    @classmethod
    def of(cls, app: Celery, leadership: Leadership) -> HealthPart | None:
        """Return what the settings ask for; None if that is nothing. Raises `ConfigurationError`."""
        address = address_of(setting(app, "neli_http"), leadership.election)
        directory = directory_of(setting(app, "neli_health_dir"))
        if address is None and directory is None:
            return None
        return cls(leadership, directory=directory, address=address)

    def start(self) -> None:
        """Start all threads."""
        for each in self._parts:
            each.start()

    def stop(self) -> None:
        """End; wait for a second or so at most. Repeatable. Without effect in a forked child, which has no thread."""
        if os.getpid() == self._pid:
            while self._parts:
                self._parts.pop().stop()


def address_of(given: Mapping[str, str] | str | None, election: str) -> tuple[str, int] | None:
    """Return host and port for a process of this election, from the setting `neli_http`; None for none."""
    text = given.get(election) if isinstance(given, Mapping) else given
    if not text:
        return None
    host, _, port = text.rpartition(":")
    return host, int(port)


def directory_of(given: str | None) -> Path | None:
    """Return the directory of notes from the setting `neli_health_dir`; None for none, or if there is no place."""
    if given == "":
        return None
    try:
        return path_of(given)
    except DirectoryError as exc:
        logger.info("health not noted: `celery neli health` cannot see this process: %s; %s", exc, REMEDY)
        return None


def _kafka_away(properties: Mapping[str, Any]) -> Callable[[], str]:
    from celery_neli.kafka.client_log import of_process

    reachability = of_process(properties)

    def kafka_away() -> str:
        if not reachability.unreachable:
            return ""
        cause = reachability.cause
        return "no broker of Kafka answers" + ("" if cause is None or not cause.reason else f": {cause.reason}")

    return kafka_away
