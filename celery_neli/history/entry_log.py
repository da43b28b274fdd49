"""The records of one entry in the history topic, read to the end in the order of the log, and appended to.

For what must be exact: unlike `topic.read_runs`, it reads all that the log holds since a time, says how far back that
reaches, and an append returns when Kafka has it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from confluent_kafka import KafkaException

from celery_neli.config import Config
from celery_neli.exceptions import NeliError
from celery_neli.history.records import Record, SlotRecord, encode, key, partition_of
from celery_neli.history.topic import SLACK, read
from celery_neli.kafka.client_log import ClientLog
from celery_neli.kafka.properties import history_producer_properties, history_reader_properties
from celery_neli.kafka.reader import EndOfLog, OutOfRange, RawRecord, Reader
from celery_neli.kafka.topic_admin import TopicAdmin
from celery_neli.kafka.topic_spec import history_topic
from celery_neli.kafka.writer import Writer

ASK: Final = 2.0  # seconds for one question
SLICE: Final = 0.05  # seconds between two steps of the search for the topic


class EntryLog:
    """The history of `entry`. For one thread, never in a forked child. The constructor does not wait; all other methods
    block for `timeout` seconds at most, and raise `NeliError` if Kafka does not answer, refuses, or the topic is unfit.
    """

    def __init__(
        self, config: Config, entry: str, add: Callable[[Record], None], *, log: logging.Logger, timeout: float = 10.0
    ) -> None:
        """`add` is called with each record of the entry's, in their order."""
        self._config, self._add, self._timeout = config, add, timeout
        self._key = key(entry)
        self._partition = partition_of(self._key)
        self._log = ClientLog(log, config.properties, one_shot=True)
        self._topic = config.history_topic
        self._reader = Reader(config, self._log, self._topic, history_reader_properties(config, wait=10))
        self._writer: Writer | None = None
        self._next = 0

    def read(self, since: float) -> tuple[float, bool] | None:
        """Read what is recorded since then, to the end. Return the time of the oldest record that the topic holds, and
        whether it lost nothing of this entry's since it was made. None: there is no topic.
        """
        deadline = time.monotonic() + self._timeout
        reader = self._reader
        try:
            if (count := reader.partitions(self._timeout)) <= self._partition:
                return None
            low, high = reader.bounds(self._partition, ASK)
            begins = [self._time_of_first(each, deadline) for each in ([self._partition] if low else range(count))]
            found = reader.offset_at(self._partition, since - SLACK, ASK)
            self._next = low if found is None else max(low, found)
        except KafkaException as exception:
            raise self._log.failure(exception.args[0], self._topic) from None
        self._read_to(high, deadline)
        return min(begins), not low

    def catch_up(self) -> None:
        """Read what was written since."""
        try:
            _, high = self._reader.bounds(self._partition, ASK)
        except KafkaException as exception:
            raise self._log.failure(exception.args[0], self._topic) from None
        self._read_to(high, time.monotonic() + self._timeout)

    def open(self, retention: float) -> None:
        """Make ready to append: find the topic, or make it, which then keeps records for `retention` seconds."""
        properties = {
            **history_producer_properties(self._config),
            "linger.ms": 0,
            "delivery.report.only.error": False,
            "delivery.timeout.ms": round(self._timeout * 1000),
            "request.timeout.ms": round(self._timeout * 1000),
        }
        began, deadline = time.monotonic(), time.monotonic() + self._timeout
        self._writer = Writer(self._config, self._log, self._topic, properties)
        topic = TopicAdmin(self._config, self._log, self._writer, history_topic(self._config, retention))
        while not topic.poll():
            self._writer.poll()
            if time.monotonic() > deadline or self._log.reachability.is_hopeless(began):
                raise NeliError(f"the history topic {self._topic} was not found and not made in time")
            time.sleep(SLICE)

    def append(self, record: SlotRecord) -> None:
        """Write one record, and wait until Kafka has it. If it raises, the record may be in the log all the same."""
        assert self._writer is not None, "`open` was called"
        if reason := self._writer.send_all([(self._partition, self._key, encode(record))], self._timeout):
            raise NeliError(f"the history topic {self._topic} was not written: {reason}")

    def close(self) -> None:
        """End; takes milliseconds."""
        if self._writer is not None:
            self._writer.close()
        self._reader.close()

    def _time_of_first(self, partition: int, deadline: float) -> float:
        """Return the time of the oldest record; now if there is none."""
        reader = self._reader
        low, high = reader.bounds(partition, ASK)
        reader.drop()
        reader.place(partition, low)
        while low < high and time.monotonic() < deadline:
            for event in reader.read(0.2, 1):
                if isinstance(event, RawRecord) and event.partition == partition:
                    return event.time
        return time.time()

    def _read_to(self, end: int, deadline: float) -> None:
        self._reader.drop()
        if self._next < end:
            self._reader.place(self._partition, self._next)
        while self._next < end:
            if time.monotonic() >= deadline:
                raise NeliError(f"the history topic {self._topic} was not read to its end in time")
            self._take()

    def _take(self) -> None:
        try:
            for event in self._reader.read(0.2):
                if isinstance(event, OutOfRange):
                    raise NeliError(f"the history topic {self._topic} lost records while it was read: {event.reason}")
                if isinstance(event, EndOfLog):
                    self._next = max(self._next, event.offset)
                elif event.partition == self._partition:
                    self._next = event.offset + 1
                    if event.key == self._key and (record := read(event)) is not None:
                        self._add(record)
        except KafkaException as exception:
            raise self._log.failure(exception.args[0], self._topic) from None
