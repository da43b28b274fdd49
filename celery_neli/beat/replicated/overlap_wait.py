"""Slots that wait until their entry's last task has ended: a helper thread asks the result backend for all of them.

The thread that ticks only takes what has been found, so a thousand entries that wait cost a tick nothing. The helper
asks for each of them twice a second, for `MOST` a second together.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from celery.utils.log import get_logger

from celery_neli.logs import LogLimit, escaping
from celery_neli.schedule.policies import unfinished

logger = escaping(get_logger(__name__))

#: Seconds between two questions about one task, and how many questions there are in a second at most.
EVERY, MOST = 0.5, 400
#: Seconds without any answer after which all tasks count as finished, as those do of which the backend is silent.
GIVE_UP = 10.0
#: Seconds between two warnings.
WARNING_INTERVAL = 60.0


class Last(NamedTuple):
    """The last task of an entry: its id and name, when it was sent (Unix seconds), and how long it counts."""

    task_id: str
    task: str
    started: float
    age: float


class WaitingSlots:
    """The entries of which a slot waits. Belongs to the thread that ticks; nothing blocks.

    ``clock`` tells Unix seconds, ``ticks`` never goes back. The helper thread is started by the first entry that waits.
    """

    def __init__(
        self, app: Any, *, clock: Callable[[], float] = time.time, ticks: Callable[[], float] = time.monotonic
    ) -> None:
        self._app, self._clock, self._ticks = app, clock, ticks
        self._last: dict[str, Last] = {}
        self._helper: _Helper | None = None
        self._warnings = LogLimit(WARNING_INTERVAL, clock=ticks)

    def __len__(self) -> int:
        return len(self._last)

    def last(self, name: str) -> Last | None:
        """Return the task that the entry's slot waits for; None if none waits, or the task has ended."""
        return self._last.get(name)

    def add(self, name: str, last: Last) -> None:
        """Wait for the end of the entry's last task."""
        if self._last.get(name) == last:
            return
        if self._helper is None:
            self._helper = _Helper(self._app, self._clock, self._ticks)
        if not self._last:
            self._helper.heard = self._ticks()
        self._last[name] = last
        self._helper.questions.put((name, last))

    def drop(self, name: str) -> None:
        """Wait no more."""
        if self._last.pop(name, None) is not None and self._helper is not None:
            self._helper.questions.put((name, None))

    def ended(self) -> list[str]:
        """Return, and forget, the entries whose last task has ended since the last call."""
        helper, found = self._helper, []
        if helper is None:
            return []
        while helper.ended:
            name, last = helper.ended.popleft()
            if self._last.get(name) == last:
                del self._last[name]
                found.append(name)
        if self._last and self._ticks() - helper.heard > GIVE_UP:
            if self._warnings.allows("silent"):
                logger.warning(
                    "beat: overlap unknown waiting=%d: the last tasks of these entries count as finished, for the"
                    " result backend has not told for %.0f s: %s", len(self._last), GIVE_UP, helper.reason,
                )  # fmt: skip
            found += self._last
            self.clear()
        return found

    def clear(self) -> None:
        """Forget all of them."""
        for name in list(self._last):
            self.drop(name)

    def close(self) -> None:
        """Let the helper thread end when it has its answer. Returns at once; any number of times."""
        self._last.clear()
        if self._helper is not None:
            self._helper.questions.put(None)
            self._helper = None


class _Helper:
    """The thread that asks, with a result backend of its own (under gevent, a greenlet)."""

    def __init__(self, app: Any, clock: Callable[[], float], ticks: Callable[[], float]) -> None:
        self.questions: queue.SimpleQueue[tuple[str, Last | None] | None] = queue.SimpleQueue()
        self.ended: deque[tuple[str, Last]] = deque()
        #: When the backend answered last, and why it did not since.
        self.heard = ticks()
        self.reason = "it does not answer"
        self._app, self._clock, self._ticks = app, clock, ticks
        self._asked: dict[str, tuple[float, Last]] = {}  # when, oldest first
        threading.Thread(target=self._run, name="neli-overlap-wait", daemon=True).start()

    def _run(self) -> None:
        while self._take():
            if self._asked:
                self._ask()

    def _take(self) -> bool:
        """Take what is new, and wait for it until the next question is due; return False at the end."""
        while True:
            try:
                found = self.questions.get(timeout=self._pause())
            except queue.Empty:
                return True
            if found is None:
                return False
            name, last = found
            self._asked.pop(name, None)
            if last is not None:
                self._asked[name] = self._ticks(), last

    def _pause(self) -> float | None:
        first = next(iter(self._asked.values()), None)
        return None if first is None else max(1 / MOST, first[0] + EVERY - self._ticks())

    def _ask(self) -> None:
        """Ask for the task that was not asked for the longest time."""
        name, (_, last) = next(iter(self._asked.items()))
        del self._asked[name]
        try:
            waits = unfinished(
                self._app, last.task_id, last.started, self._clock(), last.age, task=last.task
            )  # fmt: skip
        except Exception as exc:  # noqa: BLE001 - any backend's; the thread that ticks logs it
            self.reason, waits = repr(exc), True
        else:
            self.heard = self._ticks()
        if waits:
            self._asked[name] = self._ticks(), last
        else:
            self.ended.append((name, last))
