"""What a change of the lease makes the worker do: begin to consume, send back, wait for what runs."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from celery_neli import signals
from celery_neli.logs import escaping
from celery_neli.worker.consumer_step import apply
from celery_neli.worker.in_flight import LOOK_EVERY

if TYPE_CHECKING:
    from celery_neli.worker.in_flight import Drain

logger = escaping(logging.getLogger(__name__))


class Handover:
    """The worker's own receivers of the signals of leadership; they run on the leadership's thread."""

    def __init__(self, drain: Drain) -> None:
        self._drain = drain

    def listen(self) -> None:
        """Connect them, for as long as the leadership lives."""
        self._drain.leadership.barrier = self.revoked  # not a receiver: those that come later would wait for it
        for signal, receiver in self._receivers():
            signal.connect(receiver, sender=self._drain.leadership, weak=False)

    def ignore(self) -> None:
        """Disconnect them."""
        for signal, receiver in self._receivers():
            signal.disconnect(receiver, sender=self._drain.leadership)

    def _receivers(self) -> tuple[tuple[Any, Any], ...]:
        return (
            (signals.leadership_acquired, self.acquired),
            (signals.leadership_revoked, self.leave),
            (signals.leadership_fenced, self.fenced),
        )

    def acquired(self, **_: Any) -> None:
        """Consume from the role's queue."""
        self._apply_soon()

    def leave(self, **_: Any) -> None:
        """Leave the role's queue, and send back what has not begun."""
        self._apply_soon()

    def revoked(self, role: str) -> None:
        """The same, and return when no task of the role runs any more.

        Nothing that goes wrong in here may bring the release forward: then wait until the lease has ended.
        """
        try:
            self._apply_soon()
            self._drain.wait(role)
        except Exception:
            logger.exception("handover failed role=%s: the lease is kept to its end", role)
            while self._drain.leadership.held(role):
                time.sleep(LOOK_EVERY)

    def fenced(self, *, role: str, term: int, **_: Any) -> None:
        """Leave the role's queue, send back, and kill if the settings say so."""
        self._apply_soon()
        self._drain.fenced(role, term)

    def _apply_soon(self) -> None:
        consumer = self._drain.consumer
        if consumer is not None:
            consumer.call_soon(self._apply)

    def _apply(self) -> None:
        """On the consumer's thread; the connection may be lost since."""
        consumer = self._drain.consumer
        if consumer is not None:
            apply(consumer, self._drain)
            self._drain.send_back()
