"""Wakes a waiting beat, and holds a hand-over until its hosts have ended: the leadership's signals do both."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, Any

from celery_neli import signals
from celery_neli.threads import patched

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from celery_neli.election.leadership import Leadership

__all__ = ["Wakeup"]

#: Seconds that a greenlet waits at a time.
GREEN_WAIT = 0.05


class Wakeup:
    """The thread that ticks waits on it, and the leadership's thread wakes it. Nothing is safe because of it."""

    def __init__(self, roles: Iterable[str]) -> None:
        # Not a condition: put() is reentrant, so a signal handler may call wake in whatever the owner is doing.
        self._calls: queue.SimpleQueue[None] = queue.SimpleQueue()
        #: True once the beat is closing: it starts nothing more. A plain attribute, for a signal handler sets it.
        self.closing = False
        self._leader: Leadership | None = None
        self._drain_timeout = 0.0
        #: The last term of each role that was fenced.
        self.fenced: dict[str, int] = {}
        #: By role: set while a hand-over has nothing to wait for.
        self.down = {role: threading.Event() for role in roles}
        for each in self.down.values():
            each.set()

    def wake(self) -> None:
        """Wake the thread that ticks. Any thread, and signal handlers."""
        self._calls.put(None)

    def wait(self, timeout: float) -> None:
        """Wait until `wake` is called or ``timeout`` seconds are over. The thread that ticks."""
        if patched():
            timeout = min(timeout, GREEN_WAIT)  # a real thread cannot wake a greenlet
        try:
            self._calls.get(timeout=timeout)
            while True:
                self._calls.get_nowait()
        except queue.Empty:
            return

    def connect(self, leader: Leadership, *, drain_timeout: float) -> None:
        """Listen to the signals of ``leader``; hold its hand-overs for ``drain_timeout`` seconds at most."""
        self._leader, self._drain_timeout = leader, drain_timeout
        for signal, receiver in self._receivers():
            signal.connect(receiver, sender=leader, weak=False, dispatch_uid=self._uid(signal))

    def disconnect(self) -> None:
        """Stop listening."""
        for signal, _ in self._receivers():
            signal.disconnect(sender=self._leader, dispatch_uid=self._uid(signal))

    def _receivers(self) -> tuple[tuple[Any, Callable[..., None]], ...]:
        return (
            (signals.leadership_acquired, self._acquired),
            (signals.leadership_revoked, self._revoked),
            (signals.leadership_fenced, self._fenced),
        )

    def _uid(self, signal: Any) -> tuple[int, int]:
        return id(self), id(signal)

    def _acquired(self, **kwargs: Any) -> None:
        self.wake()

    def _revoked(self, role: str, **kwargs: Any) -> None:
        self.wake()
        self.down[role].wait(self._drain_timeout)

    def _fenced(self, role: str, term: int, **kwargs: Any) -> None:
        self.fenced[role] = term  # even if late heartbeats bring the term back: what was done in it was to stop
        self.wake()
