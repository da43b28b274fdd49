"""The schedule topic for a process that looks on, such as the page or the alarms: each record that counts, in order."""

from __future__ import annotations

import logging
import time
from typing import Final

from confluent_kafka import KafkaError, KafkaException

from celery_neli.config import Config
from celery_neli.kafka.client_log import ClientLog
from celery_neli.kafka.properties import schedule_reader_properties
from celery_neli.kafka.reader import BEGINNING, OutOfRange, RawRecord, Reader
from celery_neli.schedule_topic.codec import ENTRY, ENTRY_PARTITIONS, MEMBER, Kind, kind_of
from celery_neli.schedule_topic.versions import Marks, head_of
from celery_neli.threads import original

ASK: Final = 1.0  # seconds that one question to the brokers may block
LOOK_EVERY: Final = 2.0  # seconds between two looks for a topic that is missing
NEVER: Final = float("-inf")
MOST: Final = 5_000  # records that one `poll` returns
_READ: Final = range(ENTRY_PARTITIONS + 1)

Change = tuple[Kind, str, bytes | None]


class ScheduleFeed:
    """The records of entries, states and pauses, from the first one on. For one thread, never in a forked child.

    `generation` counts how often it began again: what was read before may not be there any more. `whole` is the
    generation that was last read to the ends that its partitions had at some moment, -1 before the first.
    """

    def __init__(self, config: Config, log: logging.Logger, *, raises: bool = False) -> None:
        """Does not wait. Raises `ConfigurationError`. If `raises` is true, `poll` raises `KafkaException` where it
        would go on trying otherwise.
        """
        client_log = ClientLog(log, config.properties, one_shot=True)
        properties = schedule_reader_properties(config)
        report = None if raises else self._on_error
        self._reader = Reader(config, client_log, config.schedule_topic, properties, report=report)
        self._raises = raises
        self._next: dict[int, int] = {}  # the offsets of the next records; none while the topic is not read
        self._open: set[int] = set()  # the partitions of which no end was reached in this generation
        self._ends: tuple[float, list[int]] | None = None  # ends that are to be read, and when they were asked for
        self._read_until = NEVER
        self._look_at = float("-inf")
        self._absent_until = float("-inf")
        self._marks = Marks()
        self.generation = 0
        self.whole = -1

    @property
    def absent(self) -> bool:
        """Return True if the topic was not there a moment ago: it is as good as empty."""
        return not self._next and time.monotonic() < self._absent_until

    def poll(self, timeout: float) -> list[Change]:
        """Return what was read, after `timeout` seconds at most where nothing is. Of a definition that stands for an
        entry which was removed, the value is None, as of a tombstone.
        """
        if not self._next and not self._place():
            original("time", "sleep")(timeout)
            return []
        found: list[Change] = []
        for event in self._reader.read(timeout, MOST):
            if isinstance(event, OutOfRange):
                self._begin()
                return []
            is_record = isinstance(event, RawRecord)
            self._next[event.partition] = max(self._next[event.partition], event.offset + is_record)
            if not isinstance(event, RawRecord):
                self._open.discard(event.partition)
            elif (entry := kind_of(event.key)) is not None and (change := self._change(*entry, event.value)):
                found.append(change)
        if not self._open:
            self.whole = self.generation
        if self._reader.missing:
            self._reader.missing, self._next, self._look_at = "", {}, float("-inf")
            self._reader.drop()
        self._reader.heal()
        return found

    def read_until(self) -> float:
        """Return the time (Unix seconds) up to which all was read that the topic holds, by the brokers' word; minus
        infinity if that is not known. Takes a second at most.
        """
        if not self._next:
            return time.time() if self.absent else NEVER
        if self._ends is None:
            asked_at = time.time()
            try:
                self._ends = asked_at, self._reader.ends(self._next, ASK)
            except KafkaException:
                return self._read_until
        at, ends = self._ends
        if all(map(int.__ge__, self._next.values(), ends)):
            self._read_until, self._ends = at, None
        return self._read_until

    def close(self) -> None:
        """End; takes milliseconds."""
        self._reader.close()

    def _change(self, kind: Kind, name: str, value: bytes | None) -> Change | None:
        if kind == MEMBER:
            return None
        if kind == ENTRY:
            if not self._marks.counts(name, value):
                return None
            if value is not None and head_of(value).removed:
                value = None
        return kind, name, value

    def _place(self) -> bool:
        """Begin to read if the topic is there; return True if so."""
        if time.monotonic() < self._look_at:
            return False
        self._look_at = time.monotonic() + LOOK_EVERY
        try:
            count = self._reader.partitions(ASK)
        except KafkaException:
            self._absent_until = float("-inf")
            if self._raises:
                raise
            return False
        if count < len(_READ):  # the next beat makes it, or gives it what it lacks
            self._absent_until = self._look_at
            return False
        self._begin()
        return True

    def _begin(self) -> None:
        self._next, self._open = dict.fromkeys(_READ, 0), set(_READ)
        self._ends, self._read_until, self._marks = None, NEVER, Marks()
        self.generation += 1
        for partition in _READ:
            self._reader.place(partition, BEGINNING)

    def _on_error(self, error: KafkaError) -> None:
        """Note an error that concerns the connection: librdkafka goes on by itself."""
