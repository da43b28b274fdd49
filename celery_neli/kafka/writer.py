"""Append records to a topic: the one writer under everything that writes to Kafka."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import ClusterMetadata  # type: ignore[attr-defined]  # documented there

from celery_neli.config import Config
from celery_neli.kafka.causes import DENIED
from celery_neli.kafka.client_log import ClientLog
from celery_neli.kafka.liveness import Probe

_TIMED_OUT = frozenset({"_MSG_TIMED_OUT", "_TIMED_OUT", "_TRANSPORT"})

Done = Callable[[KafkaError | None], None]
"""Called with the outcome of one record, on a thread that polls, flushes or replaces the client."""


class Writer:
    """A producer for one topic. Never in a forked child. `send`, `poll`, `flush`, `purge` and `len` may be called from
    any thread; the others are for one thread, and for no time at which others use the writer. The constructor raises
    `ConfigurationError` if librdkafka refuses a property.
    """

    def __init__(self, config: Config, log: ClientLog, topic: str, properties: Mapping[str, Any]) -> None:
        self._log, self._topic, self._properties = log, topic, properties
        self._probe = Probe(config, log, topic)
        self._doubted = False  # records were lost: it may reach no broker
        self._failed = ""  # why librdkafka takes no record any more
        self._client = log.client(Producer, properties)

    def __len__(self) -> int:
        """Return how many records and reports librdkafka has."""
        return len(self._client)

    def send(self, partition: int, key: bytes | str, value: bytes | None, done: Done) -> None:
        """Hand a record to librdkafka; never blocks. Raises `BufferError` if it has too many, `KafkaException` if it
        refuses this one; after a fatal error it takes no other (see `is_lost`).
        """
        try:
            self._client.produce(
                self._topic, value, key, partition=partition, on_delivery=partial(self._delivered, done)
            )
        except KafkaException as exception:
            if exception.args[0].fatal() or exception.args[0].name() == "_FATAL":
                self._failed = f"the producer failed ({exception.args[0].str()})"
            raise

    def send_all(self, records: Iterable[tuple[int, bytes | str, bytes | None]], timeout: float) -> str:
        """Send records (partition, key and value); return "", or why not all were acknowledged within `timeout`
        seconds. Those that were not are dropped; some of them may have been written, or will be yet.
        """
        outcomes: list[KafkaError | None] = []
        try:
            for partition, key, value in records:
                self.send(partition, key, value, outcomes.append)
        except KafkaException as exception:
            outcomes.append(exception.args[0])
        waiting = 0 if any(outcomes) else self.flush(max(0.0, timeout))
        failed = [error for error in outcomes if error is not None]
        if not failed and not waiting:
            return ""
        self.purge()
        if not failed:
            return f"no answer from Kafka within {timeout:.2g} s"
        if failed[0].name() in DENIED:
            return self._log.lacks(["Write"], "topic", self._topic)
        return self._log.reason(failed[0])

    def poll(self) -> None:
        """Take librdkafka's reports; never waits."""
        self._client.poll(0)

    def flush(self, timeout: float) -> int:
        """Wait up to `timeout` seconds for acknowledgements, and return how many records still wait for theirs."""
        return self._client.flush(timeout)

    def purge(self) -> None:
        """Drop what was not acknowledged; its outcomes are reported as errors by the next polls."""
        self._client.purge(in_queue=True, in_flight=True, blocking=False)

    def metadata(self, timeout: float) -> ClusterMetadata:
        """Return what brokers know of the topic. Blocks for `timeout` seconds at most. Raises `KafkaException`."""
        metadata: ClusterMetadata = self._client.list_topics(self._topic, timeout=timeout)
        return metadata

    def is_lost(self) -> bool:
        """Return True if the client failed, or finds no broker although brokers answer. May wait for half a second."""
        if not self._doubted:
            return self._failed != ""
        heard = self._probe.heard
        lost = self._probe.is_lost(self._client)
        self._doubted = self._probe.heard == heard
        return lost

    def replace(self) -> None:
        """Replace the client. What it had is dropped: a record is worth nothing after the lease that it was to buy."""
        self.purge()
        self._client.flush(0)
        lost, self._client = self._client, self._log.client(Producer, self._properties)
        why = self._failed or "the producer finds no broker, though brokers answer"
        self._failed, self._doubted = "", False
        self._probe.watch.let_go(lost, self._log, why)

    def close(self, timeout: float = 0.0) -> None:
        """Wait up to `timeout` seconds for acknowledgements, drop the rest, and end."""
        if self._client.flush(timeout):
            self.purge()
            self._client.flush(0)
        self._log.close(self._client)

    def _delivered(self, done: Done, error: KafkaError | None, message: Message) -> None:
        if error is None:
            self._probe.heard, self._doubted = time.monotonic(), False
        else:
            self._doubted |= error.name() in _TIMED_OUT
        done(error)
