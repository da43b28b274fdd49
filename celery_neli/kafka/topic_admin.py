"""A topic of an election: is it there, is it fit, and if it is missing, make it.

A member may start before its Kafka does, so that Kafka is out of reach is no error here: `TopicCheck` goes on asking.
What an operator must mend (rights, partitions, its configuration) raises `TopicError`, which says how.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TYPE_CHECKING, Any

from confluent_kafka import Consumer, KafkaException, Producer, TopicCollection

# Documented as part of this module, though not re-exported in the way that mypy asks for.
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclOperation,
    AdminClient,
    ClusterMetadata,
    ConfigResource,
    NewPartitions,
    NewTopic,
)

from celery_neli.exceptions import TopicError
from celery_neli.kafka.causes import is_denied
from celery_neli.kafka.properties import admin_properties
from celery_neli.kafka.topic_spec import TopicSpec, leader_topic

if TYPE_CHECKING:
    from confluent_kafka import KafkaError

    from celery_neli.config import Config
    from celery_neli.kafka.client_log import KafkaLog

ASK = 0.5  # seconds that one metadata request may block
REQUEST = 5.0  # seconds for one admin request, which does not block
PAUSE = 0.1  # seconds between attempts

GONE = frozenset({"UNKNOWN_TOPIC_OR_PART", "_UNKNOWN_TOPIC", "_UNKNOWN_PARTITION", "UNKNOWN_TOPIC_ID"})
"""The errors of a client whose topic may have been deleted: brokers must be asked."""

NEEDED = {"Read": AclOperation.READ, "Write": AclOperation.WRITE}
"""The rights on a topic without which a member can do nothing; each of them implies Describe."""

_NOT_ALLOWED = frozenset(
    {
        "TOPIC_AUTHORIZATION_FAILED",
        "CLUSTER_AUTHORIZATION_FAILED",
        "POLICY_VIOLATION",
        "INVALID_CONFIG",
        "TOPIC_EXCEPTION",
        "INVALID_REPLICATION_FACTOR",
    }
)

Steps = Generator["Future[Any] | float", Any, None]


def _administered(metadata: ClusterMetadata) -> bool:
    """Whether there is a controller to answer admin requests; the embedded Kafka has none."""
    return metadata.controller_id in metadata.brokers


class TopicCheck:
    """Looks for a topic step by step. For one thread.

    `poll` blocks for half a second at most (while brokers do not answer a metadata request): call it only while no
    lease depends on the thread. `reader` is asked for metadata; `producer` too, where a topic can be made no other way:
    by default one made for it, for brokers that make topics by themselves make them unfit for a schedule.
    """

    def __init__(
        self,
        config: Config,
        klog: KafkaLog,
        *,
        reader: Consumer | Producer,
        producer: Producer | None = None,
        topic: TopicSpec | None = None,
        clock: Callable[[], float] = time.monotonic,
        administer: Callable[[dict[str, Any]], AdminClient] = AdminClient,
    ) -> None:
        """`topic`: by default the leader topic. `clock` and `administer` are for tests."""
        self._config = config
        self._topic = leader_topic(config) if topic is None else topic
        self._administer = administer
        self._klog = klog
        self._reader = reader
        self._producer = producer
        self._clock = clock
        self._admin: AdminClient | None = None
        self._steps = self._run()
        self._future: Future[Any] | None = None
        self._resume_at = float("-inf")
        self.heard = clock()
        """When brokers last answered a question for metadata (the clock's seconds); at first: when this was made."""
        self.identity: str | None = None
        """Kafka's id of the topic that was found, which no other topic of the same name has; None: not told."""

    def poll(self) -> bool:
        """Go on if there is anything to go on with; True: the topic is there and fit.

        Raises `TopicError`: unfit, or may not be created. Begin again with a new check.
        """
        if self._admin is not None:
            self._admin.poll(0)
        while True:
            future = self._future
            if self._clock() < self._resume_at or (future is not None and not future.done()):
                return False
            self._future = None
            try:
                if future is not None and (error := future.exception()) is not None:
                    step = self._steps.throw(error)
                else:
                    step = self._steps.send(None if future is None else future.result())
            except StopIteration:
                self.close()
                return True
            if isinstance(step, Future):
                self._future = step
            else:
                self._resume_at = self._clock() + step

    def present(self) -> bool | None:
        """Whether brokers know the topic; None: no answer. Blocks for half a second at most."""
        metadata = self._metadata(self._reader)
        if metadata is None:
            return None
        error = metadata.topics[self._topic.name].error
        return error is None or error.name() != "UNKNOWN_TOPIC_OR_PART"

    def identify(self, timeout: float) -> str | None:
        """Return Kafka's id of the topic that is there now, or None if no broker tells it. Blocks for `timeout` seconds
        at most.
        """
        topic = self._topic.name
        try:
            wanted = self._admin_client().describe_topics(TopicCollection([topic]), request_timeout=timeout)
            return str(wanted[topic].result(timeout).topic_id)
        except (KafkaException, FutureTimeout):
            return None  # it is gone, or brokers are: others find out
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the admin client; does not wait for what it was asked."""
        self._admin = None

    def _run(self) -> Steps:
        while (metadata := self._metadata(self._reader)) is None or not self._fit(metadata):
            if metadata is None:
                yield PAUSE
            elif not _administered(metadata):
                self._make_embedded(metadata)
                yield PAUSE
            elif found := self._partitions(metadata):
                yield from self._grow(found)
                yield PAUSE
            else:
                yield from self._create(len(metadata.brokers))
                yield PAUSE
        if _administered(metadata):
            yield from self._ask_rights()
            yield from self._inspect()

    def _metadata(self, client: Consumer | Producer) -> ClusterMetadata | None:
        try:
            metadata: ClusterMetadata = client.list_topics(self._topic.name, timeout=ASK)
        except KafkaException as exception:
            self._klog.say(logging.DEBUG, f"topic metadata not read: {exception}")
            return None
        self.heard = self._clock()
        return metadata

    def _fit(self, metadata: ClusterMetadata) -> bool:
        """False: missing, or too few partitions. Raises `TopicError`: not ours to see."""
        topic = self._topic.name
        found = metadata.topics[topic]
        if found.error is not None and found.error.name() in _NOT_ALLOWED:
            raise TopicError(
                f"Kafka does not let this member see the {self._topic.what} {topic}, if it exists "
                f"({found.error.str()}): {self._klog.lacks(NEEDED, 'topic', topic)}"
            )
        return self._partitions(metadata) >= self._topic.partitions

    def _partitions(self, metadata: ClusterMetadata) -> int:
        found = metadata.topics[self._topic.name]
        return 0 if found.error is not None else len(found.partitions)

    def _make_embedded(self, metadata: ClusterMetadata) -> None:
        """The embedded Kafka answers no admin request. In this process it can be told; elsewhere a producer's question
        for a topic makes it, with four partitions.
        """
        topic, wanted, found = self._topic.name, self._topic.partitions, self._partitions(metadata)
        if found:
            raise TopicError(
                f"The {self._topic.what} {topic} has {found} partition(s), but {self._topic.each}, and the "
                "embedded Kafka adds none: start it with `celery -A <app> neli kafka`, which makes the topics "
                f"of the app, or begin with EmbeddedKafka.create_topic({topic!r}, partitions={wanted})"
            )
        here = sys.modules.get("celery_neli.kafka.mock_cluster")
        if here is None or not here.create_topic(self._topic.servers, topic, wanted):
            self._metadata(self._producer or Producer({**self._properties(), "allow.auto.create.topics": True}))

    def _grow(self, found: int) -> Steps:
        """Add the partitions that are missing: roles were appended to the list."""
        topic, wanted = self._topic.name, self._topic.partitions
        new = NewPartitions(topic, wanted)
        try:
            yield self._admin_client().create_partitions([new], request_timeout=REQUEST)[topic]
        except KafkaException as exception:
            error = exception.args[0]
            if error.name() == "INVALID_PARTITIONS":
                return  # another member was faster
            reason = f"{error.name()} {error.str()}"
            if error.name() in _NOT_ALLOWED:
                raise TopicError(
                    f"The {self._topic.what} {topic} has {found} partition(s), but {self._topic.each}, and this member "
                    f"could not add any ({reason}). Have them added: {self._topic.enlarge_command()}"
                    f"{self._or_allow(error, 'Alter')}"
                ) from exception
            self._klog.say(logging.WARNING, f"{self._topic.what} not enlarged yet topic={topic} reason={reason!r}")
        else:
            self._klog.say(
                logging.INFO, f"{self._topic.what} enlarged topic={topic} partitions={wanted} before={found}"
            )

    def _create(self, brokers: int) -> Steps:
        topic, partitions = self._topic.name, self._topic.partitions
        # The brokers' default is often 1, and then one broker's end is everybody's.
        replicas = 3 if brokers >= 3 else None
        new = NewTopic(topic, partitions, replication_factor=replicas or -1, config=self._topic.config(replicas))
        try:
            yield self._admin_client().create_topics([new], request_timeout=REQUEST)[topic]
        except KafkaException as exception:
            error = exception.args[0]
            if error.name() == "TOPIC_ALREADY_EXISTS":
                return  # another member was faster
            reason = f"{error.name()} {error.str()}"
            if error.name() in _NOT_ALLOWED:
                raise TopicError(
                    f"The {self._topic.what} {topic} is missing and could not be created ({reason}). "
                    f"Have it created: {self._topic.create_command(replicas=replicas)}"
                    f"{self._or_allow(error, 'Create')}"
                ) from exception
            self._klog.say(logging.WARNING, f"{self._topic.what} not created yet topic={topic} reason={reason!r}")
        else:
            count = replicas or "default"
            self._klog.say(
                logging.INFO, f"{self._topic.what} created topic={topic} partitions={partitions} replicas={count}"
            )

    def _or_allow(self, error: KafkaError, operation: str) -> str:
        if not is_denied(error.name()):
            return ""
        return f" (or allow it: {self._klog.lacks([operation], 'topic', self._topic.name)})"

    def _ask_rights(self) -> Steps:
        """Ask which rights there are: a client finds out about a missing one only when it reads or writes, too late."""
        topic = self._topic.name
        try:
            wanted = self._admin_client().describe_topics(
                TopicCollection([topic]), include_authorized_operations=True, request_timeout=REQUEST
            )
            described = yield wanted[topic]
        except KafkaException as exception:
            self._klog.say(logging.DEBUG, f"rights not read topic={topic} reason={exception.args[0].name()}")
            return
        self.identity = str(described.topic_id)
        found = described.authorized_operations or NEEDED.values()
        missing = [name for name, operation in NEEDED.items() if operation not in found]
        if missing:
            raise TopicError(self._klog.denied(missing, self._topic.what, topic))

    def _inspect(self) -> Steps:
        topic = self._topic.name
        resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
        try:
            entries = yield self._admin_client().describe_configs([resource], request_timeout=REQUEST)[resource]
        except KafkaException as exception:
            # Not allowed, or no answer: the topic is there, and a member need not know more to work.
            error = exception.args[0]
            line = f"{self._topic.what} configuration not read topic={topic} reason={error.name()}"
            more = f": {self._klog.lacks(['DescribeConfigs'], 'topic', topic)}" if is_denied(error.name()) else ""
            self._klog.say(logging.INFO, line + more)
            return
        for risk in self._topic.judge(self._topic, {name: entry.value for name, entry in entries.items()}):
            self._klog.say(logging.WARNING, f"{self._topic.what} at risk topic={topic} {risk}")

    def _admin_client(self) -> AdminClient:
        if self._admin is None:
            self._admin = self._administer(self._properties())
        return self._admin

    def _properties(self) -> dict[str, Any]:
        return {**admin_properties(self._config), "logger": self._klog, "error_cb": self._klog.remark}
