"""A worker's transitions as worker events: `worker-neli-acquired`, `worker-neli-revoked`, `worker-neli-fenced`.

A thread and a connection of their own send them: the worker's event dispatcher takes a lock and may wait for a task
broker that is gone, and a handover must not wait for those who only watch.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from celery.bootsteps import RUN
from celery.signals import worker_shutdown

from celery_neli import signals
from celery_neli.election.leadership import Leadership
from celery_neli.logs import escaping

KEPT = 100
"""Events that wait for a task broker that is away; further ones are dropped."""

Send = Callable[[dict[str, Any]], None]

logger = escaping(logging.getLogger(__name__))


class Outbox:
    """Sends events in order, on a thread that exists only while there are any.

    `connect` gives what sends one event. Both may block, and raise: then the event is sent again after `retry` seconds.
    """

    def __init__(self, connect: Callable[[], AbstractContextManager[Send]], *, retry: float = 2.0) -> None:
        self._connect, self._retry = connect, retry
        self._events: deque[dict[str, Any]] = deque()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    def put(self, event: dict[str, Any]) -> None:
        """Have `event` sent. From any thread; does not wait for the broker."""
        with self._lock:
            if len(self._events) < KEPT and not self._closed.is_set():
                self._events.append(event)
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="neli-events", daemon=True)
                    self._thread.start()

    def close(self, timeout: float = 2.0) -> None:
        """Send what is left, for up to `timeout` seconds; give up what cannot be sent at once."""
        with self._lock:
            self._closed.set()
            thread = self._thread
        if thread is not None:
            thread.join(timeout)

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._events:
                    self._thread = None
                    return
            try:
                with self._connect() as send:
                    while self._events:
                        send(self._events[0])
                        self._events.popleft()
            except Exception as exc:  # noqa: BLE001 - whatever a transport raises: it concerns those who watch only
                logger.debug("worker events wait for the task broker: %r", exc)
                if self._closed.wait(self._retry):
                    return


def send_transitions(worker: Any, leadership: Leadership) -> None:
    """Send the transitions of `leadership` as events of `worker` while it sends worker events at all (Celery's default;
    not with both `--without-gossip` and `--without-heartbeat`, unless `-E`). Returns at once.
    """
    outbox = Outbox(lambda: _dispatcher(worker))

    def on_transition(signal: Any, election: str, role: str, term: int, **_: Any) -> None:
        if _wanted(worker):
            kind = signal.name.replace("leadership_", "worker-neli-")
            outbox.put({"type": kind, "election": election, "role": role, "term": term, "timestamp": time.time()})

    for signal in (signals.leadership_acquired, signals.leadership_revoked, signals.leadership_fenced):
        signal.connect(on_transition, sender=leadership, weak=False)
    worker_shutdown.connect(lambda **_: outbox.close(), sender=worker, weak=False)


def _wanted(worker: Any) -> bool:
    """Return True if the worker sends worker events now; `celery control enable_events` may change that."""
    dispatcher = getattr(getattr(worker, "consumer", None), "event_dispatcher", None)
    return dispatcher is not None and dispatcher.enabled and (not dispatcher.groups or "worker" in dispatcher.groups)


@contextmanager
def _dispatcher(worker: Any) -> Iterator[Send]:
    with worker.app.connection_for_write() as connection:
        connection.connect()  # tries once; a channel would be waited for without end
        with worker.app.events.Dispatcher(
            connection, hostname=worker.hostname, channel=connection.channel(), buffer_while_offline=False
        ) as dispatcher:
            yield lambda event: dispatcher.send(**event)
            if worker.blueprint.state != RUN:  # an event after its "worker-offline" would show it as alive again
                dispatcher.send("worker-offline")
