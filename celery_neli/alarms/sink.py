"""A sink: a thread that passes reports on to a service outside, which may be slow, away, or refuse."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any, Final

from celery_neli.alarms.reports import Report
from celery_neli.logs import LogLimit, escaping
from celery_neli.threads import Thread, original, spawn

MOST_QUEUED: Final = 1_000
"""Reports that may wait; further ones are dropped."""
SAID_EVERY: Final = 60.0  # seconds between two lines about a sink that fails
JOIN: Final = 1.0

logger = escaping(logging.getLogger(__name__))


class SinkError(Exception):
    """A report was not delivered; the message says why, without secrets."""


class Sink:
    """Passes reports to `deliver`, one after another, on a thread of its own, which the first report starts.

    `deliver` returns, or raises when the report is lost: a `SinkError`, of which the message is logged, or any other,
    of which only the type is, for its text may hold an address with a secret.
    """

    def __init__(self, name: str, deliver: Callable[[Report], None], wanted: frozenset[str]) -> None:
        """`wanted`: the statuses of the reports that this sink takes."""
        self.name = name
        self._deliver, self._wanted, self._pid = deliver, wanted, os.getpid()
        self._queue: Any = original("queue", "SimpleQueue")()
        self._thread: Thread | None = None
        self._limit = LogLimit(SAID_EVERY)
        self._dropped = 0

    def put(self, report: Report) -> None:
        """Pass it on soon; return at once. Any thread; without effect in a forked child."""
        if report.status not in self._wanted or os.getpid() != self._pid:
            return
        if self._queue.qsize() >= MOST_QUEUED:
            self._dropped += 1
            return
        self._queue.put(report)
        if self._thread is None:
            self._thread = spawn(self._run, name=f"neli-{self.name}")

    def stop(self) -> None:
        """Pass on what is queued, for up to a second, and end. Repeatable."""
        if self._thread is not None and os.getpid() == self._pid:
            self._queue.put(None)
            self._thread.join(JOIN)

    def _run(self) -> None:
        while (report := self._queue.get()) is not None:
            try:
                self._deliver(report)
            except SinkError as exc:
                self._say(str(exc))
            except Exception as exc:  # noqa: BLE001 - of a client of another's: the next report may pass
                self._say(type(exc).__name__)
            if self._dropped and self._limit.allows("dropped"):
                dropped, self._dropped = self._dropped, 0
                logger.warning("alarms: %s is too slow: reports dropped count=%d", self.name, dropped)

    def _say(self, why: str) -> None:
        lost = self._limit.ask("failed")
        if lost is not None:
            logger.warning("alarms: %s did not take a report: %s%s", self.name, why, f" more={lost}" if lost else "")
