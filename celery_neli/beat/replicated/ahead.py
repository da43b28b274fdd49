"""Which times in the records of the schedule topic are believed if they are ahead of this process's clock.

A forged record, or a leader whose clock was years ahead, must not silence an entry for ever; a clock that was fast for
a while must not make it run twice. The bounds are in docs/protocol.md ("Slots", S8).
"""

from __future__ import annotations

import logging
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from celery_neli.beat.replicated.claims import ASTRAY
from celery_neli.logs import escaping
from celery_neli.schedule_topic.codec import FAR_AHEAD, START_AHEAD

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_neli.logs import LogLimit

__all__ = ["Ahead"]

logger = escaping(logging.getLogger(__name__))


class Ahead:
    """Judges times by the clock ``moment`` (Unix seconds), and logs those ahead of it as often as ``limit`` allows. One
    thread at a time.
    """

    def __init__(self, moment: Callable[[], float], limit: LogLimit) -> None:
        self._moment, self._limit = moment, limit

    def begins(self, name: str, since: float) -> float:
        """Return when the entry begins: never before the time from which on it was defined, if that is believed."""
        return 0.0 if since > 0 and self.is_far(name, "since", since, START_AHEAD) else since

    def is_far(self, name: str, field: str, at: float, most: float = FAR_AHEAD) -> bool:
        """Return True if this time is more than ``most`` seconds ahead of the clock, and not believed. Log that, and
        also that an entry waits for a time ahead.
        """
        ahead = at - self._moment()
        if ahead > ASTRAY and self._limit.allows((field, name)):
            logger.warning(
                "schedule: entry=%s %s=%s is %.0f s ahead of this clock: %s", name, field,
                datetime.fromtimestamp(at, timezone.utc).isoformat(), ahead,
                "it is not believed, and the entry runs without it" if ahead > most
                else "the entry does not run before; if a clock was wrong, put the entry again, or pause and resume it",
            )  # fmt: skip
        return ahead > most
