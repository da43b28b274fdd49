"""What changed, on its way to the barrier: each role's events in their order, by whichever threads deliver.

Roles do not wait for each other: while one thread runs the barrier for one role, another may run it for the next.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable

from celery_neli.election.role_state import LeaderEvent


class _Lane:
    """The events of one role, and the thread that is at them."""

    def __init__(self) -> None:
        self.events: deque[LeaderEvent] = deque()
        self.lock = threading.Lock()
        self.thread: int | None = None


class Delivery:
    """`put` by one thread, which never waits here; `run` by any."""

    def __init__(self, roles: Iterable[str], announce: Callable[[LeaderEvent], None]) -> None:
        """What `announce` raises comes out of `run`; the rest stays for the next one."""
        self._announce = announce
        self._lanes = {role: _Lane() for role in roles}

    def put(self, event: LeaderEvent) -> None:
        """Append an event to its role's. Takes no lock."""
        self._lanes[event.role].events.append(event)

    def run(self) -> bool:
        """Announce what is there on this thread, leaving out roles that another thread is at; whether there was
        anything.
        """
        ran = [self._run(lane) for lane in self._lanes.values()]  # all of them, not up to the first
        return any(ran)

    @property
    def inside(self) -> bool:
        """Whether the calling thread is announcing: it is the barrier that asks."""
        return any(lane.thread == threading.get_ident() for lane in self._lanes.values())

    def _run(self, lane: _Lane) -> bool:
        if not lane.events or not lane.lock.acquire(blocking=False):
            return False
        try:
            lane.thread = threading.get_ident()
            while lane.events:
                self._announce(lane.events.popleft())
        finally:
            lane.thread = None
            lane.lock.release()
        return True
