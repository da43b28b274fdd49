"""The consumer group, which induces: the member that owns a role's partition is asked to lead the role (R2, R6).

Kafka's group protocol spreads the partitions over the members and notices the dead. It does not decide who leads: the
journal does. Nothing is fetched or committed here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from celery_neli.config import Config
from celery_neli.kafka.causes import DENIED
from celery_neli.kafka.client_log import ClientLog
from celery_neli.kafka.liveness import Probe
from celery_neli.kafka.properties import group_properties
from celery_neli.threads import spawn

BATCH: Final = 16  # events that one poll serves
CLOSE: Final = 0.2  # seconds that `close` waits for the coordinator
CHECK_EVERY: Final = 10.0  # seconds between two looks if this client still finds brokers


class KafkaGroup:
    """This member's part in the consumer group. After the constructor for one thread only, and never in a forked child.

    `log` only enqueues. Raises `ConfigurationError`. No method blocks, but `poll` may take half a second now and then
    while brokers are away. After a `join` before the topic exists, partitions are assigned 5 s after its creation.
    """

    def __init__(self, config: Config, *, log: logging.Logger) -> None:
        self._config = config
        self._log = ClientLog(log, config.properties)
        self._properties = group_properties(config)
        self.induced: frozenset[int] = frozenset()  # the roles whose partitions are assigned here; empty after `leave`
        self.is_member = False  # the group has counted this member in
        self._joined = self._closed = False
        self._trouble: set[str] = set()
        self._probe = Probe(config, self._log, config.topic)
        self._consumer = self._log.client(Consumer, self._properties, self._on_error)

    def poll(self) -> None:
        """Serve what the group has for this member: assignments, revocations, errors, log lines."""
        if self._closed:
            return
        self._heal()
        with self._reporting():
            for _ in range(BATCH):
                message = self._consumer.poll(0)
                if message is None:
                    return
                if (error := message.error()) is not None:
                    self._on_error(error)

    def join(self) -> None:
        """Ask for membership; returns at once, may be repeated."""
        if self._joined or self._closed:
            return
        with self._reporting():
            self._consumer.subscribe(
                [self._config.topic], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
            )
            self._joined = True
            self._log.reachability.joined(self)

    def leave(self) -> None:
        """Give up membership; the next polls tell the others."""
        self.induced, self.is_member = frozenset(), False
        if not self._joined or self._closed:
            return
        self._joined = False
        self._log.reachability.left(self)
        with self._reporting():
            self._consumer.unsubscribe()

    def close(self) -> None:
        """Leave the group and end; takes milliseconds, or 0.4 s at most if the coordinator does not answer."""
        if self._closed:
            return
        self._closed, self._joined, self.is_member, self.induced = True, False, False, frozenset()
        self._log.reachability.left(self)
        # librdkafka waits up to 4 s for the coordinator's answer when that is frozen, or in the midst of a rebalance.
        spawn(partial(self._log.close, self._consumer, "group"), name="neli-group-close").join(CLOSE)

    def _heal(self) -> None:
        """Replace the client if it has lost the brokers (liveness.py): else this member would be induced no more."""
        if not self._joined or time.monotonic() < self._probe.heard + CHECK_EVERY:
            return
        if self._probe.is_lost(self._consumer):
            lost, self._consumer = self._consumer, self._log.client(Consumer, self._properties, self._on_error)
            self._probe.watch.let_go(lost, self._log, "the group member finds no broker, though brokers answer")
            self.induced, self._joined, self.is_member = frozenset(), False, False
            self.join()

    # The callbacks run inside poll(), and at the end in close(); an exception would come out there.

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if consumer is not self._consumer:
            return  # it was replaced, and is being closed on another thread
        # An explicit offset, so that the group is not asked for a committed one; paused, so that nothing is fetched.
        parts = [TopicPartition(part.topic, part.partition, 0) for part in partitions]
        with self._reporting():
            consumer.incremental_assign(parts)
            if parts:
                consumer.pause(parts)
        if not DENIED.isdisjoint(self._trouble):
            self._log.say(logging.INFO, f"group joined, after all group={self._config.group}")
        self._trouble.clear()
        self.is_member = self._joined
        if self._joined:
            self.induced |= {part.partition for part in parts if part.partition < len(self._config.roles)}

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if consumer is not self._consumer:
            return
        self.induced -= {part.partition for part in partitions}
        with self._reporting():
            consumer.incremental_unassign(partitions)

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        lost = sorted(part.partition for part in partitions)
        self._log.say(logging.INFO, f"group membership lost partitions={lost}")
        self.is_member = self.is_member and consumer is not self._consumer
        self._on_revoke(consumer, partitions)

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except KafkaException as exception:
            self._on_error(exception.args[0])

    def _on_error(self, error: KafkaError) -> None:
        """Log each kind of error once until the group assigns again: the lease works without it, only slower (R2)."""
        if error.name() in self._trouble or error.name() == "_AUTO_OFFSET_RESET":  # the latter of a paused partition
            return
        self._trouble.add(error.name())
        if error.name() == "GROUP_AUTHORIZATION_FAILED":
            group = self._config.group
            self._log.say(
                logging.WARNING,
                f"group not joined group={group}: {self._log.lacks(['Read'], 'group', group)}; "
                "this member still leads where no other member does, only later",
            )
        elif error.name() != "TOPIC_AUTHORIZATION_FAILED":  # about the leader topic, whose reader reports it
            self._log.remark(error, joined=True)
