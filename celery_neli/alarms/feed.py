"""What the schedule topic holds of entries and their states, followed by the process that watches."""

from __future__ import annotations

import logging
import time
from typing import Final

from confluent_kafka import KafkaError, KafkaException

from celery_neli.config import Config
from celery_neli.kafka.client_log import ClientLog
from celery_neli.kafka.properties import schedule_reader_properties
from celery_neli.kafka.reader import BEGINNING, OutOfRange, RawRecord, Reader
from celery_neli.schedule_topic.codec import ENTRY, Kind, kind_of, partition_of
from celery_neli.threads import original

ASK: Final = 1.0  # seconds that one question to the brokers may block
LOOK_EVERY: Final = 2.0  # seconds between two looks for a topic that is missing
NEVER: Final = float("-inf")
MOST: Final = 5_000  # records that one `poll` returns
_PARTITION: Final = partition_of(ENTRY)

Change = tuple[Kind, str, bytes | None]


class ScheduleFeed:
    """The records of entries and states, from the first one on. For one thread, never in a forked child.

    `generation` counts how often it began again: what was read before may not be there any more.
    """

    def __init__(self, config: Config, log: logging.Logger) -> None:
        """Does not wait. Raises `ConfigurationError`."""
        client_log = ClientLog(log, config.properties, one_shot=True)
        properties = schedule_reader_properties(config)
        self._reader = Reader(config, client_log, config.schedule_topic, properties, report=self._on_error)
        self._next: int | None = None  # the offset of the next record; None while the topic is not read
        self._end: tuple[float, int] | None = None  # an end of the log that is to be read, and when it was that
        self._read_until = NEVER
        self._look_at = float("-inf")
        self._absent = False
        self.generation = 0

    def poll(self, timeout: float) -> list[Change]:
        """Return what was read, after `timeout` seconds at most where nothing is. Raises nothing."""
        if self._next is None and not self._place():
            original("time", "sleep")(timeout)
            return []
        found: list[Change] = []
        for event in self._reader.read(timeout, MOST):
            if isinstance(event, OutOfRange):
                self._begin()
                return []
            self._next = max(self._next or 0, event.offset + isinstance(event, RawRecord))
            if isinstance(event, RawRecord) and (entry := kind_of(event.key)) is not None:
                found.append((*entry, event.value))
        if self._reader.missing:
            self._reader.missing, self._next, self._look_at = "", None, float("-inf")
            self._reader.drop()
        self._reader.heal()
        return found

    def read_until(self) -> float:
        """Return the time (Unix seconds) up to which all was read that the topic holds, by the brokers' word; minus
        infinity if that is not known. Takes a second at most.
        """
        if self._next is None:
            absent = self._absent and time.monotonic() < self._look_at
            return time.time() if absent else NEVER
        if self._end is None:
            asked_at = time.time()
            try:
                _, end = self._reader.bounds(_PARTITION, ASK)
            except KafkaException:
                return self._read_until
            self._end = asked_at, end
        at, end = self._end
        if self._next >= end:
            self._read_until, self._end = at, None
        return self._read_until

    def close(self) -> None:
        """End; takes milliseconds."""
        self._reader.close()

    def _place(self) -> bool:
        """Begin to read if the topic is there; return True if so."""
        if time.monotonic() < self._look_at:
            return False
        self._look_at = time.monotonic() + LOOK_EVERY
        try:
            count = self._reader.partitions(ASK)
        except KafkaException:
            self._absent = False
            return False
        self._absent = count <= _PARTITION
        if self._absent:
            return False
        self._begin()
        return True

    def _begin(self) -> None:
        self._next, self._end, self._read_until = 0, None, NEVER
        self.generation += 1
        self._reader.place(_PARTITION, BEGINNING)

    def _on_error(self, error: KafkaError) -> None:
        """Note an error that concerns the connection: librdkafka goes on by itself."""
