"""What a beat or worker runs beside its election so that people can see in: history, metrics, health and alarms.

Each part begins and ends with the process's `Leadership`, on threads of its own, and may be absent: nothing waits for
it, and what goes wrong in it is logged and costs nothing else.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Final, Protocol

from celery_neli.config import setting
from celery_neli.exceptions import NeliError
from celery_neli.logs import escaping
from celery_neli.settings import OBSERVABILITY

if TYPE_CHECKING:
    from celery import Celery

    from celery_neli.election.leadership import Leadership

#: The modules with a function `start(app, leadership)` each, which returns a `Part`, or None if it is switched off.
PARTS: Final[tuple[str, ...]] = ("metrics.collect", "history.recorder", "alarms", "health")

logger = escaping(logging.getLogger(__name__))


def check(app: Celery) -> None:
    """Raise `ConfigurationError` if a setting of what is started here is unfit."""
    for name in OBSERVABILITY:
        setting(app, name)


class Part(Protocol):
    """One of the things that run beside an election."""

    def stop(self) -> None:
        """End; wait for a second at most. Repeatable."""


class Observability:
    """The parts that run beside the `leadership` of this process."""

    def __init__(self, app: Celery, leadership: Leadership) -> None:
        self._app, self._leadership = app, leadership
        self._parts: list[Part] = []

    def start(self) -> None:
        """Start all parts; return soon, without waiting for Kafka. Never raises an `Exception`."""
        for name in PARTS:
            try:
                part = importlib.import_module(f"celery_neli.{name}").start(self._app, self._leadership)
            except NeliError as exc:
                logger.error("%s does not run: %s", name, exc)
            except Exception:
                logger.exception("%s does not run", name)
            else:
                if part is not None:
                    self._parts.append(part)

    def stop(self) -> None:
        """Stop all parts, in the reverse order of their start."""
        while self._parts:
            part = self._parts.pop()
            try:
                part.stop()
            except Exception:
                logger.exception("%r did not end well", part)
