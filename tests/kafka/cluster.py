"""A cluster of Apache Kafka (KRaft) on free local ports: one node, or three for the tests of faults."""

from __future__ import annotations

import base64
import uuid
from typing import TYPE_CHECKING, Any

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from tests.kafka.node import KafkaNode
from tests.processes import free_ports, stop_process, wait_until

if TYPE_CHECKING:
    from pathlib import Path
OFFSETS = "__consumer_offsets"


def create_topic(admin: AdminClient, topic: str, *, partitions: int, config: dict[str, str] | None) -> None:
    """Create a topic with the brokers' default replication factor and wait until every partition is led."""
    admin.create_topics([NewTopic(topic, partitions, config=config or {})])[topic].result(30)

    def led() -> bool:
        found = admin.list_topics(topic, timeout=10).topics[topic].partitions
        return len(found) == partitions and all(partition.leader > 0 for partition in found.values())

    wait_until(led, timeout=30, what=f"leaders of topic {topic}")


class KafkaCluster:
    """Real brokers as processes of this machine, every node broker and controller in one. Context manager.

    `nodes` is 1 or 3: with three, every topic has three replicas, of which two must acknowledge, and one node may fail.
    What production has by default (session timeouts, fencing of brokers) is left as it is.
    """

    def __init__(self, *, nodes: int, java: str, libs: Path, directory: Path) -> None:
        ports = free_ports(2 * nodes)
        brokers, controllers = ports[:nodes], ports[nodes:]
        voters = ",".join(f"{i}@127.0.0.1:{port}" for i, port in enumerate(controllers, 1))
        replicas, in_sync = (3, 2) if nodes >= 3 else (1, 1)
        self._formatted = False
        self._admin_client: AdminClient | None = None
        self.nodes = [
            KafkaNode(
                id=i,
                port=port,
                java=java,
                libs=libs,
                directory=directory / f"node{i}",
                properties={
                    **common_properties(directory / f"node{i}", replicas=replicas, in_sync=in_sync),
                    "node.id": i,
                    "controller.quorum.voters": voters,
                    "inter.broker.listener.name": "PLAINTEXT",
                    "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controllers[i - 1]}",
                    "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
                },
            )
            for i, port in enumerate(brokers, 1)
        ]

    @property
    def bootstrap_servers(self) -> str:
        """For `bootstrap.servers`: every broker."""
        return ",".join(node.address for node in self.nodes)

    def start(self, *, timeout: float = 120.0) -> None:
        """Start every node that does not run, thaw the frozen, and wait until all are in, and in sync. Idempotent."""
        if not self._formatted:
            cluster_id = base64.urlsafe_b64encode(b"\1" + uuid.uuid4().bytes[1:]).decode().rstrip("=")
            for node, process in [(node, node.format(cluster_id)) for node in self.nodes]:
                process.wait(timeout)
                if stop_process(process):
                    raise RuntimeError(f"Kafka node {node.id} could not be formatted:\n{node.log_tail()}")
            self._formatted = True
        for node in self.nodes:
            node.thaw()
            node.start()
        for node in self.nodes:
            node.wait_ready(timeout=timeout)
        self.wait_healthy(timeout=timeout)

    def wait_healthy(self, *, timeout: float = 60.0) -> None:
        """Wait until every broker is registered, and every replica of every partition in sync and led."""
        what = f"{len(self.nodes)} brokers with everything in sync, see {self.nodes[0].directory.parent}"
        wait_until(self._healthy, timeout=timeout, what=what)

    def stop(self) -> None:
        """End every node. Not cleanly: a quorum that is to end altogether cannot hand anything over."""
        for node in self.nodes:
            node.kill()
        self._admin_client = None

    def node(self, broker_id: int) -> KafkaNode:
        """Return the node of this broker id (they count from 1)."""
        return self.nodes[broker_id - 1]

    def leader_of(self, topic: str, partition: int = 0) -> KafkaNode | None:
        """Return the node that leads the partition, None while nobody does."""
        found = self.admin().list_topics(topic, timeout=10).topics[topic].partitions[partition]
        return None if found.leader < 1 else self.node(found.leader)

    def coordinator_of(self, group: str) -> KafkaNode:
        """Return the node that coordinates the consumer group of this name, whether it exists or not.

        That is the leader of the group's partition of `__consumer_offsets`. Raises `TimeoutError` if there is none
        within 30 s.
        """

        def coordinator() -> KafkaNode | None:
            offsets = self.admin().list_topics(OFFSETS, timeout=10).topics[OFFSETS]
            if offsets.error or not offsets.partitions:
                # The first question for any coordinator makes the topic.
                self._ask_for_coordinator(group)
                return None
            return self.leader_of(OFFSETS, _java_hash(group) % len(offsets.partitions))

        return wait_until(coordinator, timeout=30, what=f"a coordinator of group {group}")

    def _ask_for_coordinator(self, group: str) -> None:
        try:
            self.admin().describe_consumer_groups([group], request_timeout=5)[group].result(10)
        except KafkaException:
            pass  # no such group is an answer, too

    def create_topic(self, topic: str, *, partitions: int = 1, config: dict[str, str] | None = None) -> None:
        """Create a topic with the cluster's replication factor and wait until every partition is led."""
        create_topic(self.admin(), topic, partitions=partitions, config=config)

    def admin(self) -> AdminClient:
        """Return a client for administration, one for the cluster's life; any thread."""
        if self._admin_client is None:
            # Refused connections to nodes that a test took down are no news.
            settings: dict[str, str | int | float | bool] = {
                "bootstrap.servers": self.bootstrap_servers,
                "log_level": 0,
                "reconnect.backoff.max.ms": 500,
            }
            self._admin_client = AdminClient(settings)
        return self._admin_client

    def _healthy(self) -> bool:
        try:
            told = self.admin().list_topics(timeout=5)
        except KafkaException:
            return False
        partitions = [partition for topic in told.topics.values() for partition in topic.partitions.values()]
        return len(told.brokers) == len(self.nodes) and all(
            partition.leader > 0 and sorted(partition.isrs) == sorted(partition.replicas) for partition in partitions
        )

    def __enter__(self) -> KafkaCluster:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def single_node_properties(directory: Path) -> dict[str, Any]:
    """Return what the only node of a cluster needs beside its listeners."""
    return {**common_properties(directory, replicas=1, in_sync=1), "node.id": 1}


def common_properties(directory: Path, *, replicas: int, in_sync: int) -> dict[str, Any]:
    """Return what every node of every cluster has, broker and controller in one, with its data under `directory`."""
    return {
        "process.roles": "broker,controller",
        "controller.listener.names": "CONTROLLER",
        "log.dirs": directory / "data",
        "default.replication.factor": replicas,
        "min.insync.replicas": in_sync,
        "offsets.topic.replication.factor": replicas,
        "offsets.topic.num.partitions": 6,
        "log.cleaner.dedupe.buffer.size": 8_388_608,  # 128 MB by default, of a heap of 256
        "transaction.state.log.replication.factor": replicas,
        "transaction.state.log.min.isr": in_sync,
        "transaction.state.log.num.partitions": 6,
        "share.coordinator.state.topic.replication.factor": replicas,
        "share.coordinator.state.topic.min.isr": in_sync,
        # A group's first member need not wait for others to come.
        "group.initial.rebalance.delay.ms": 0,
        "auto.create.topics.enable": "false",
    }


def _java_hash(text: str) -> int:
    """As Kafka hashes a group's name: the absolute value (`Utils.abs`) of Java's `String.hashCode`."""
    value = 0
    for character in text:  # one UTF-16 unit each: Kafka's names are plain
        value = (31 * value + ord(character)) & 0xFFFF_FFFF
    return abs(value - (1 << 32)) & 0x7FFF_FFFF if value >> 31 else value
