"""A leader topic and a consumer group in memory, for tests of the threads above them."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from celery_neli.election.records import End, Entry, Event, Started

if TYPE_CHECKING:
    import logging
    from collections.abc import Iterator

    from celery_neli.config import Config


class MemoryLog:
    """One log for each of some roles; `connect` makes a member's journal and group, as `Neli` wants them."""

    def __init__(self, roles: int = 1) -> None:
        self.roles: list[list[bytes]] = [[] for _ in range(roles)]
        self.records = self.roles[0]
        self.changed = threading.Condition()
        self.reachable = True
        self.failing: Exception | None = None  # raised to whoever connects
        self.broken: Exception | None = None  # raised to whoever reads
        self.connected = 0

    def connect(self, config: Config, log: logging.Logger) -> tuple[MemoryJournal, MemoryGroup]:
        self.connected += 1
        if self.failing is not None:
            raise self.failing
        return MemoryJournal(self), MemoryGroup()


class MemoryJournal:
    def __init__(self, log: MemoryLog) -> None:
        self.log = log
        self.next = [-1] * len(log.roles)
        self.at_end = [False] * len(log.roles)

    def read(self, timeout: float) -> list[Event]:
        if self.log.broken is not None:
            raise self.log.broken
        deadline = time.monotonic() + timeout
        with self.log.changed:
            while True:
                events = [event for role in range(len(self.next)) for event in self._of(role)]
                left = deadline - time.monotonic()
                if events or left <= 0 or not self.log.changed.wait(left):
                    return events

    def _of(self, role: int) -> Iterator[Event]:
        if self.next[role] < 0:
            self.next[role] = 0
            yield Started(role, 0, oldest=True)
        if not self.log.reachable:
            return
        for record in self.log.roles[role][self.next[role] :]:
            yield Entry(role, self.next[role], record)
            self.next[role] += 1
            self.at_end[role] = False
        if not self.at_end[role]:
            self.at_end[role] = True
            yield End(role)

    def append(self, role: int, key: str, value: bytes) -> None:
        with self.log.changed:
            if self.log.reachable:
                self.log.roles[role].append(value)
                self.log.changed.notify_all()

    def look_back(self, role: int) -> None: ...

    def ask_end(self, role: int) -> None:
        self.at_end[role] = False

    def close(self) -> None: ...


class MemoryGroup:
    induced: frozenset[int] = frozenset()
    is_member = True

    def poll(self) -> None: ...
    def join(self) -> None: ...
    def leave(self) -> None: ...
    def close(self) -> None: ...
