"""Revokes tasks, as `cancel_other` wants it, on a helper thread: the broadcast goes over the broker, which may be slow.

A revoke is worth nothing late. So each has some seconds to leave, is tried once, and the lease is asked just before it
leaves: a leader that was deposed revokes nothing any more.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from celery.utils.log import get_logger

from celery_neli.logs import LogLimit, escaping

logger = escaping(get_logger(__name__))

#: Seconds that a revoke has until it leaves.
LIMIT = 5.0
#: Revokes that may wait for the helper thread.
MOST = 10_000
#: Seconds between two warnings, and after which an idle connection is closed.
WARNING_INTERVAL, IDLE = 60.0, 30.0
#: What ends the process of a task that runs in a prefork pool.
SIGNAL = "SIGTERM"


class _Revoke(NamedTuple):
    entry: str
    task_id: str
    allowed: Callable[[], bool]
    until: float


class Revoker:
    """Revokes the tasks of entries. `revoke` belongs to the thread that ticks; nothing blocks, and nothing raises.

    ``ticks`` never goes back.
    """

    def __init__(self, app: Any, *, ticks: Callable[[], float] = time.monotonic) -> None:
        self._app, self._ticks = app, ticks
        self._queue: queue.SimpleQueue[_Revoke | None] | None = None
        self._warnings = LogLimit(WARNING_INTERVAL, clock=ticks)

    def revoke(self, entry: str, task_id: str, *, allowed: Callable[[], bool]) -> None:
        """Revoke a task, and end it if it runs, unless ``allowed`` returns False just before the revoke leaves."""
        if self._queue is None:
            self._queue = queue.SimpleQueue()
            threading.Thread(target=self._run, args=(self._queue,), name="neli-revoke", daemon=True).start()
        if self._queue.qsize() >= MOST:
            self._warn(entry, task_id, "too many others wait")
            return
        self._queue.put(_Revoke(entry, task_id, allowed, self._ticks() + LIMIT))

    def close(self) -> None:
        """Let the helper thread end when it is done. Returns at once; any number of times."""
        if self._queue is not None:
            self._queue.put(None)
            self._queue = None

    # -- on the helper thread --

    def _run(self, waiting: queue.SimpleQueue[_Revoke | None]) -> None:
        wire: _Wire | None = None
        while True:
            try:
                each = waiting.get(timeout=None if wire is None else IDLE)
            except queue.Empty:
                _close(wire)
                wire = None
                continue
            if each is None:
                _close(wire)
                return
            try:
                wire = wire or _Wire(self._app)
                late = not wire.send(each, self._ticks)
            except Exception as exc:  # noqa: BLE001 - of any broker's client
                _close(wire)
                wire = None
                self._warn(each.entry, each.task_id, repr(exc))
            else:
                if late:
                    self._warn(each.entry, each.task_id, f"the task broker did not take it within {LIMIT:g} s")

    def _warn(self, entry: str, task_id: str, reason: str) -> None:
        if (more := self._warnings.ask("revoke")) is not None:
            logger.warning(
                "beat: not revoked entry=%s id=%s: the task goes on beside the new one: %s%s",
                entry, task_id, reason, f" suppressed={more}" if more else "",
            )  # fmt: skip


class _Wire:
    """Celery's remote control over a connection of its own, which tries once."""

    def __init__(self, app: Any) -> None:
        self._connection = app.connection_for_write(connect_timeout=LIMIT)
        self._control = type(app.control)(app)
        self._control.mailbox.producer_pool = self
        self._producer: Any = None
        self._guard: Callable[[], bool] = lambda: True
        self._left = False

    def send(self, each: _Revoke, ticks: Callable[[], float]) -> bool:
        """Revoke the task; return False if it is too late for that. Raises what the broker's client raises."""
        late = False

        def may_leave() -> bool:
            nonlocal late
            late = ticks() > each.until
            return not late and each.allowed()

        self._guard = may_leave
        if not may_leave():
            return not late
        self._connection.ensure_connection(max_retries=1, timeout=LIMIT)
        if self._producer is None:
            self._producer = self._connection.Producer(auto_declare=False)
        self._control.revoke(each.task_id, terminate=True, signal=SIGNAL, connection=self._connection)
        return not late

    @contextmanager
    def acquire(self, *_: Any, **__: Any) -> Iterator[Any]:
        """Stand in for the app's pool of producers."""
        yield self

    def publish(self, *args: Any, **options: Any) -> None:
        """Publish a control message once, if it may still leave."""
        options["retry"] = False
        if self._guard():
            self._producer.publish(*args, **options)

    def close(self) -> None:
        """End the connection; wait for nothing."""
        self._connection.collapse()


def _close(wire: _Wire | None) -> None:
    if wire is not None:
        try:
            wire.close()
        except Exception:  # of any client: it is gone in any case
            logger.debug("beat: a connection did not end well", exc_info=True)
