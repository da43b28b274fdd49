"""A leader topic and a consumer group in memory, for tests of the threads above them."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from celery_neli.events import End, Entry, Event, Started

if TYPE_CHECKING:
    import logging

    from celery_neli.config import Config


class MemoryLog:
    """One log of one role; `connect` makes a member's journal and group, as `Neli` wants them."""

    def __init__(self) -> None:
        self.records: list[bytes] = []
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
        self.next = -1
        self.at_end = False

    def read(self, timeout: float) -> list[Event]:
        events: list[Event] = []
        if self.log.broken is not None:
            raise self.log.broken
        if self.next < 0:
            self.next = 0
            events.append(Started(0, 0, oldest=True))
        deadline = time.monotonic() + timeout
        with self.log.changed:
            while not events and self.at_end and not self._news():
                left = deadline - time.monotonic()
                if left <= 0 or not self.log.changed.wait(left):
                    break
            if self._news():
                events += [
                    Entry(0, offset, self.log.records[offset]) for offset in range(self.next, len(self.log.records))
                ]
                self.next = len(self.log.records)
                self.at_end = False
        if not self.at_end and self.log.reachable:
            self.at_end = True
            events.append(End(0))
        return events

    def _news(self) -> bool:
        return self.log.reachable and self.next < len(self.log.records)

    def append(self, role: int, key: str, value: bytes) -> None:
        with self.log.changed:
            if self.log.reachable:
                self.log.records.append(value)
                self.log.changed.notify_all()

    def look_back(self, role: int) -> None: ...

    def ask_end(self, role: int) -> None:
        self.at_end = False

    def close(self) -> None: ...


class MemoryGroup:
    induced: frozenset[int] = frozenset()

    def poll(self) -> None: ...
    def join(self) -> None: ...
    def leave(self) -> None: ...
    def close(self) -> None: ...
