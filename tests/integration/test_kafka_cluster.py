"""The brokers that other tests rely on do what those tests take for granted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from confluent_kafka import Consumer, Producer

from tests.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kafka.cluster import KafkaCluster

pytestmark = pytest.mark.integration


def test_coordinator_is_found(kafka_cluster: KafkaCluster, names: Callable[[str], str]) -> None:
    """`coordinator_of` names the broker that Kafka itself tells for a group that exists."""
    topic, group = names("topic"), names("group")
    kafka_cluster.create_topic(topic)
    consumer = Consumer({"bootstrap.servers": kafka_cluster.bootstrap_servers, "group.id": group})
    try:
        consumer.subscribe([topic])
        wait_until(lambda: consumer.poll(0.1) or consumer.assignment(), timeout=60, what="an assignment")
        told = kafka_cluster.admin().describe_consumer_groups([group])[group].result(10).coordinator
        assert kafka_cluster.coordinator_of(group).id == told.id
    finally:
        consumer.close()


@pytest.mark.slow
def test_restart_heals(kafka_cluster: KafkaCluster, names: Callable[[str], str]) -> None:
    """After one node was killed, another frozen, `start` brings all back on their ports, with what was acknowledged."""
    topic = names("topic")
    kafka_cluster.create_topic(topic)
    addresses = kafka_cluster.bootstrap_servers
    producer = Producer({"bootstrap.servers": addresses, "acks": "all", "log_level": 0})
    assert produce(producer, topic) == 0

    leader = kafka_cluster.leader_of(topic)
    assert leader is not None
    leader.kill()
    other = next(node for node in kafka_cluster.nodes if node is not leader)
    other.freeze()
    assert not leader.running
    kafka_cluster.start()

    assert all(node.running and not node.frozen for node in kafka_cluster.nodes)
    assert kafka_cluster.bootstrap_servers == addresses
    assert produce(producer, topic) == 1


def produce(producer: Producer, topic: str) -> int:
    """Append one record and return its offset."""
    told: list[int] = []
    producer.produce(topic, b"x", partition=0, on_delivery=lambda error, message: told.append(message.offset()))
    wait_until(lambda: producer.poll(0.1) or told, timeout=60, what="an acknowledgement")
    return told[0]
