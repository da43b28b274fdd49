"""The leader topic: is it there, is it fit, and if it is missing, make it.

A member may start before its Kafka does, so that Kafka is out of reach is no error here: `TopicCheck` goes on asking.
What an operator must mend (rights, partitions, a compacted topic) raises `TopicError`, which says how.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from confluent_kafka import Consumer, KafkaException, Producer

# Documented as part of this module, though not re-exported in the way that mypy asks for.
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    ClusterMetadata,
    ConfigResource,
    NewPartitions,
    NewTopic,
)

from celery_neli.clients import admin_properties
from celery_neli.exceptions import TopicError

if TYPE_CHECKING:
    from celery_neli.config import Config
    from celery_neli.kafkalog import KafkaLog

ASK = 0.5  # seconds that one metadata request may block
REQUEST = 5.0  # seconds for one admin request, which does not block
PAUSE = 0.1  # seconds between attempts
SHORT_RETENTION = 3_600_000  # ms; the longest lease allowed is 300 s, and R7 needs records to outlive it by far

#: What the topic is created with. `unclean.leader.election.enable`: a leader from outside the ISR would take records
#: back that bought a lease.
TOPIC_CONFIG = {
    "cleanup.policy": "delete",
    "retention.ms": "86400000",
    "message.timestamp.type": "LogAppendTime",
    "unclean.leader.election.enable": "false",
}

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


def topic_config(replicas: int | None) -> dict[str, str]:
    """What the topic is created with; `replicas`: how many, None where the brokers' default decides."""
    return {**TOPIC_CONFIG, "min.insync.replicas": "2"} if replicas else dict(TOPIC_CONFIG)


def create_command(config: Config, *, replicas: int | None = None) -> str:
    """The `kafka-topics.sh` command that makes the leader topic as a member would."""
    parts = [
        f"kafka-topics.sh --bootstrap-server {_servers(config)} --create --topic {config.topic}",
        f"--partitions {len(config.roles)}",
    ]
    if replicas:
        parts.append(f"--replication-factor {replicas}")
    parts += [f"--config {name}={value}" for name, value in topic_config(replicas).items()]
    return " ".join(parts)


def alter_command(config: Config) -> str:
    """The `kafka-topics.sh` command that gives the leader topic a partition for each role."""
    return (
        f"kafka-topics.sh --bootstrap-server {_servers(config)} --alter --topic {config.topic} "
        f"--partitions {len(config.roles)}"
    )


def _administered(metadata: ClusterMetadata) -> bool:
    """Whether there is a controller to answer admin requests; the embedded Kafka has none."""
    return metadata.controller_id in metadata.brokers


def _servers(config: Config) -> str:
    return str(config.properties["bootstrap.servers"])


class TopicCheck:
    """Looks for the leader topic step by step. For one thread.

    `poll` blocks for half a second at most (while brokers do not answer a metadata request): call it only while no
    lease depends on the thread. `reader` is asked for metadata; `producer` too, where a topic can be made no other way.
    """

    def __init__(
        self,
        config: Config,
        klog: KafkaLog,
        *,
        reader: Consumer,
        producer: Producer,
        clock: Callable[[], float] = time.monotonic,
        administer: Callable[[dict[str, Any]], AdminClient] = AdminClient,
    ) -> None:
        """`clock` and `administer` are for tests."""
        self._config = config
        self._administer = administer
        self._klog = klog
        self._reader = reader
        self._producer = producer
        self._clock = clock
        self._admin: AdminClient | None = None
        self._steps = self._run()
        self._future: Future[Any] | None = None
        self._resume_at = float("-inf")

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
        error = metadata.topics[self._config.topic].error
        return error is None or error.name() != "UNKNOWN_TOPIC_OR_PART"

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
            yield from self._inspect()

    def _metadata(self, client: Consumer | Producer) -> ClusterMetadata | None:
        try:
            metadata: ClusterMetadata = client.list_topics(self._config.topic, timeout=ASK)
        except KafkaException as exception:
            self._klog.say(logging.DEBUG, f"topic metadata not read: {exception}")
            return None
        return metadata

    def _fit(self, metadata: ClusterMetadata) -> bool:
        """False: missing, or too few partitions. Raises `TopicError`: not ours to see."""
        topic = self._config.topic
        found = metadata.topics[topic]
        if found.error is not None and found.error.name() in _NOT_ALLOWED:
            raise TopicError(
                f"Kafka does not let this member see the leader topic {topic} ({found.error.str()}): "
                "allow DESCRIBE, READ and WRITE on it."
            )
        return self._partitions(metadata) >= len(self._config.roles)

    def _partitions(self, metadata: ClusterMetadata) -> int:
        found = metadata.topics[self._config.topic]
        return 0 if found.error is not None else len(found.partitions)

    def _make_embedded(self, metadata: ClusterMetadata) -> None:
        """The embedded Kafka answers no admin request. In this process it can be told; elsewhere a producer's question
        for a topic makes it, with four partitions.
        """
        topic, wanted, found = self._config.topic, len(self._config.roles), self._partitions(metadata)
        if found:
            raise TopicError(
                f"The leader topic {topic} has {found} partition(s), but there are {wanted} roles, one partition each, "
                "and the embedded Kafka adds none: start it with `celery -A <app> neli kafka`, which makes the topics "
                f"of the app, or begin with EmbeddedKafka.create_topic({topic!r}, partitions={wanted})"
            )
        here = sys.modules.get("celery_neli.mock_cluster")
        if here is None or not here.create_topic(_servers(self._config), topic, wanted):
            self._metadata(self._producer)

    def _grow(self, found: int) -> Steps:
        """Add the partitions that are missing: roles were appended to the list."""
        topic, wanted = self._config.topic, len(self._config.roles)
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
                    f"The leader topic {topic} has {found} partition(s), but there are {wanted} roles, one partition "
                    f"each, and this member could not add any ({reason}). "
                    f"Have them added: {alter_command(self._config)}"
                ) from exception
            self._klog.say(logging.WARNING, f"leader topic not enlarged yet topic={topic} reason={reason!r}")
        else:
            self._klog.say(logging.INFO, f"leader topic enlarged topic={topic} partitions={wanted} before={found}")

    def _create(self, brokers: int) -> Steps:
        topic, partitions = self._config.topic, len(self._config.roles)
        # The brokers' default is often 1, and then one broker's end is everybody's.
        replicas = 3 if brokers >= 3 else None
        new = NewTopic(topic, partitions, replication_factor=replicas or -1, config=topic_config(replicas))
        try:
            yield self._admin_client().create_topics([new], request_timeout=REQUEST)[topic]
        except KafkaException as exception:
            error = exception.args[0]
            if error.name() == "TOPIC_ALREADY_EXISTS":
                return  # another member was faster
            reason = f"{error.name()} {error.str()}"
            if error.name() in _NOT_ALLOWED:
                raise TopicError(
                    f"The leader topic {topic} is missing and could not be created ({reason}). "
                    f"Have it created: {create_command(self._config, replicas=replicas)}"
                ) from exception
            self._klog.say(logging.WARNING, f"leader topic not created yet topic={topic} reason={reason!r}")
        else:
            count = replicas or "default"
            self._klog.say(logging.INFO, f"leader topic created topic={topic} partitions={partitions} replicas={count}")

    def _inspect(self) -> Steps:
        topic = self._config.topic
        resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
        try:
            entries = yield self._admin_client().describe_configs([resource], request_timeout=REQUEST)[resource]
        except KafkaException as exception:
            # Not allowed, or no answer: the topic is there, and a member need not know more to work.
            reason = exception.args[0].name()
            self._klog.say(logging.INFO, f"leader topic configuration not read topic={topic} reason={reason}")
            return
        self._judge({name: entry.value for name, entry in entries.items()})

    def _judge(self, values: dict[str, str]) -> None:
        topic = self._config.topic
        policy = values.get("cleanup.policy", "")
        if "compact" in policy:
            raise TopicError(
                f"The leader topic {topic} has cleanup.policy={policy}, which removes the proof of who leads; set "
                f"it to delete: kafka-configs.sh --bootstrap-server {_servers(self._config)} --alter "
                f"--entity-type topics --entity-name {topic} --add-config cleanup.policy=delete"
            )
        if values.get("unclean.leader.election.enable") == "true":
            warning = "unclean.leader.election.enable=true may take records back: set it to false"
            self._klog.say(logging.WARNING, f"leader topic at risk topic={topic} {warning}")
        retention = int(values.get("retention.ms", -1))
        if 0 <= retention < SHORT_RETENTION:
            warning = f"retention.ms={retention} is short: an hour at least, a day is usual"
            self._klog.say(logging.WARNING, f"leader topic at risk topic={topic} {warning}")

    def _admin_client(self) -> AdminClient:
        if self._admin is None:
            properties: dict[str, Any] = {
                **admin_properties(self._config),
                "logger": self._klog,
                "error_cb": self._klog.remark,
            }
            self._admin = self._administer(properties)
        return self._admin
