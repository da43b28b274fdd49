"""Log lines from a thread that must not wait.

A logging handler may block: on its lock, on a full pipe, on a disk. The thread that renews the lease therefore only
queues its lines; a thread of its own hands them to the ordinary loggers, in order.
"""

from __future__ import annotations

import logging
import queue
from typing import Any

from celery_neli.threads import original, spawn


class _Queued(logging.Logger):
    """Not of logging's tree: takes no lock, knows no level but the target's, and formats nothing."""

    def __init__(self, name: str, lines: queue.SimpleQueue[logging.LogRecord | None]) -> None:
        super().__init__(name)
        self._lines = lines

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802 - logging's name
        return True

    def handle(self, record: logging.LogRecord) -> None:
        self._lines.put(record)


class BackgroundLog:
    """Loggers whose calls return at once. Lines queued before `start` are kept until then."""

    def __init__(self) -> None:
        self._lines: queue.SimpleQueue[Any] = original("queue", "SimpleQueue")()

    def logger(self, name: str) -> logging.Logger:
        """One that hands on, in the end, to the ordinary logger called `name`."""
        return _Queued(name, self._lines)

    def start(self) -> None:
        """Start to hand on what was and will be logged."""
        self._thread = spawn(self._run, name="neli-log")

    def stop(self, timeout: float = 1.0) -> None:
        """Hand on what is queued, for up to `timeout` seconds, and end."""
        self._lines.put(None)
        self._thread.join(timeout)

    def _run(self) -> None:
        while (record := self._lines.get()) is not None:
            target = logging.getLogger(record.name)
            if target.isEnabledFor(record.levelno):
                target.handle(record)
