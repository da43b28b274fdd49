"""The schedule topic on real brokers: created, compacted, caught up with, and written through a broker's death."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource

from celery_neli.config import Config
from celery_neli.schedule_topic import topic as schedule_client
from celery_neli.schedule_topic.codec import ENTRY, MEMBER, STATE, State, encode_state, key_of, partition_of
from celery_neli.schedule_topic.topic import ScheduleTopic
from tests.kafka.cluster import KafkaCluster
from tests.processes import wait_until

pytestmark = pytest.mark.integration
LOG = logging.getLogger("celery_neli.schedule")
MANY = 100_000
Make = Callable[[Config], ScheduleTopic]


def state(runs: int, epoch: int = 1) -> bytes:
    return encode_state(State(1732365000.25, runs, epoch))


@pytest.fixture
def config(kafka: str, names: Callable[[str], str]) -> Config:
    return Config(group=names("group"), kafka=kafka)


@pytest.fixture
def make() -> Iterator[Make]:
    """A started topic, stopped after the test."""
    with ExitStack() as stack:

        def made(config: Config) -> ScheduleTopic:
            topic = ScheduleTopic(config, log=LOG)
            stack.callback(topic.stop)
            topic.start()
            return topic

        yield made


def log_of(config: Config) -> list[tuple[bytes, bytes | None]]:
    """Every record that the brokers have, in order."""
    reader = Consumer(
        {
            "bootstrap.servers": config.properties["bootstrap.servers"],
            "group.id": "log",
            "enable.partition.eof": True,
            "log_level": 0,
        }
    )
    reader.assign([TopicPartition(config.schedule_topic, each, OFFSET_BEGINNING) for each in range(17)])
    left = set(range(17))
    found: list[tuple[bytes, bytes | None]] = []

    def ended() -> bool:
        message = reader.poll(0.5)
        if message is not None and message.error() is None:
            key, value = message.key(), message.value()
            assert isinstance(key, bytes)
            assert not isinstance(value, str)
            found.append((key, value))
        error = None if message is None else message.error()
        if message is not None and error is not None and error.name() == "_PARTITION_EOF":
            left.discard(message.partition())
        return not left

    wait_until(ended, timeout=60, what="the end of the log", interval=0)
    reader.close()
    return found


def configured(node: KafkaCluster, topic: str) -> dict[str, str]:
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
    entries = node.admin().describe_configs([resource])[resource].result(10)
    return {name: entry.value for name, entry in entries.items()}


def test_the_topic_is_made_to_be_compacted(make: Make, config: Config, kafka_node: KafkaCluster) -> None:
    """Nothing is deleted by time; 16 partitions for entries, and one."""
    assert make(config).read_to_end(30)
    made = kafka_node.admin().list_topics(config.schedule_topic, timeout=10).topics[config.schedule_topic]
    assert len(made.partitions) == 17
    values = configured(kafka_node, config.schedule_topic)
    assert values["cleanup.policy"] == "compact"
    assert values["segment.bytes"] == "1048576"
    assert values["min.compaction.lag.ms"] == "60000"
    assert values["min.cleanable.dirty.ratio"] == "0.1"
    assert values["unclean.leader.election.enable"] == "false"


def test_several_may_make_it_at_once(make: Make, config: Config) -> None:
    """Who comes second finds it made."""
    topics = [make(config) for _ in range(3)]
    assert all(topic.read_to_end(30) for topic in topics)


def test_a_topic_that_deletes_by_time_is_refused(
    make: Make, config: Config, kafka_node: KafkaCluster, caplog: pytest.LogCaptureFixture
) -> None:
    """One error with the command; once that was done, it goes on by itself, and writes what had to wait."""
    kafka_node.create_topic(config.schedule_topic, partitions=17)
    topic = make(config)
    topic.write(STATE, "a", state(1))
    wait_until(lambda: "cleanup.policy=delete, which deletes the schedule" in caplog.text, timeout=20, what="an error")
    assert topic.unsaved == 1
    change = ConfigEntry("cleanup.policy", "compact", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ConfigResource.Type.TOPIC, config.schedule_topic, incremental_configs=[change])
    kafka_node.admin().incremental_alter_configs([resource])[resource].result(10)
    assert topic.flush(20)
    assert caplog.text.count("which deletes the schedule") == 1


def test_a_hundred_thousand_entries_are_caught_up_with(make: Make, config: Config) -> None:
    """Within seconds, as a successor must; a one-shot reader as well. Target: one second each."""
    writer = make(config)
    for number in range(MANY):
        writer.write(STATE, f"entry-{number}", state(number))
    assert writer.flush(60)
    began = time.monotonic()
    reader = make(config)
    assert reader.read_to_end(60)
    took = time.monotonic() - began
    assert len(reader.drain()) == MANY
    began = time.monotonic()
    assert len(schedule_client.read_all(config, log=LOG, timeout=60)) == MANY
    print(f"\n{MANY} records: caught up in {took:.2f} s, read_all in {time.monotonic() - began:.2f} s")
    assert took < 15


def test_who_follows_is_at_the_end_in_a_round_trip(make: Make, config: Config) -> None:
    """Everything that was acknowledged before the question is there. Target: 50 ms."""
    topic, times = make(config), []
    assert topic.read_to_end(30)
    for runs in range(20):
        schedule_client.write(config, [(STATE, "a", state(runs))], log=LOG)
        began = time.monotonic()
        assert topic.read_to_end(10)
        times.append(time.monotonic() - began)
        assert topic.drain() == {("s", "a"): state(runs)}
    print(f"\nread_to_end took {sorted(times)[10] * 1000:.1f} ms, {max(times) * 1000:.1f} ms at most")
    assert sorted(times)[10] < 0.5


def test_compaction_keeps_the_latest_of_each_key(make: Make, config: Config, kafka_node: KafkaCluster) -> None:
    """Brokers may do it at any time: a reader finds the same as before, and what was deleted stays so."""
    kafka_node.create_topic(
        config.schedule_topic,
        partitions=17,
        config={
            "cleanup.policy": "compact",
            "segment.ms": "100",
            "min.cleanable.dirty.ratio": "0.01",
            "delete.retention.ms": "100",
            "message.timestamp.type": "LogAppendTime",
        },
    )
    topic = make(config)
    # Of one partition, so that the last of them closes the segment of all.
    alike = (each for each in map(str, range(1000)) if partition_of(ENTRY, each) == 3)
    a, b, c, gone, tick = (next(alike) for _ in range(5))
    topic.write(ENTRY, gone, b"{}")
    assert topic.flush(20)
    topic.write(ENTRY, gone, None)
    for runs in range(50):
        for name in (a, b, c):
            topic.write(STATE, name, state(runs))
        assert topic.flush(20)
    before = len(log_of(config))
    assert before >= 150

    def compacted() -> bool:
        # The segment that is written to is never compacted; a new record closes it.
        topic.write(STATE, tick, state(int(time.monotonic())))
        return topic.flush(20) and len(log_of(config)) < before / 3

    wait_until(compacted, timeout=120, what="compaction", interval=0.5)
    left = log_of(config)
    assert (key_of(STATE, a), state(0)) not in left
    found = schedule_client.read_all(config, log=LOG)
    assert {found["s", name] for name in (a, b, c)} == {state(49)}
    assert ("e", gone) not in found
    reader = make(config)
    assert reader.read_to_end(20)
    read = reader.drain()
    assert {read["s", name] for name in (a, b, c)} == {state(49)}
    assert read.get(("e", gone)) is None


def test_a_position_that_is_gone_is_reported_and_the_topic_read_again(
    make: Make, config: Config, kafka_node: KafkaCluster
) -> None:
    """Deleted and created again with less in it; what was not there any more is known by the generation."""
    topic = make(config)
    for number in range(20):
        topic.write(ENTRY, f"{number}", b"{}")
    assert topic.flush(20)
    before = topic.generation
    kafka_node.admin().delete_topics([config.schedule_topic])[config.schedule_topic].result(30)
    wait_until(lambda: topic.generation > before, timeout=30, what="a new generation")
    schedule_client.write(config, [(ENTRY, "new", b"{}")], log=LOG, timeout=30)
    wait_until(lambda: topic.read_to_end(10) and ("e", "new") in topic.drain(), timeout=30, what="the new record")


@pytest.mark.slow
def test_nothing_acknowledged_is_lost_when_the_partitions_leader_dies(
    make: Make, kafka_cluster: KafkaCluster, names: Callable[[str], str]
) -> None:
    """Every key ends with its last value, and no older value of a key stands behind a newer one."""
    config = Config(group=names("group"), kafka=kafka_cluster.bootstrap_servers)
    writer, reader = make(config), make(config)
    assert writer.read_to_end(60)
    assert reader.read_to_end(60)
    killed, saved, runs = None, -1, 0
    began = time.monotonic()
    while killed is None or saved < runs - 1 or time.monotonic() < killed + 3:
        assert time.monotonic() - began < 90, f"only {saved} of {runs} were acknowledged"
        if killed is None or time.monotonic() < killed + 3:
            for name in "abcdef":
                writer.write(STATE, name, state(runs))
            runs += 1
        if writer.flush(0.1):
            saved = runs - 1
        if killed is None and time.monotonic() > began + 2:
            assert saved > 0
            leader = kafka_cluster.leader_of(config.schedule_topic)
            assert leader is not None
            leader.kill()
            killed = time.monotonic()
    assert reader.read_to_end(30)
    assert reader.drain() == {("s", name): state(runs - 1) for name in "abcdef"}
    log = log_of(config)
    for name in "abcdef":
        values = [value for key, value in log if key == key_of(STATE, name)]
        order = [state(number) for number in range(runs)]
        positions = [order.index(value) for value in values if value is not None]
        assert positions == sorted(positions), f"{name}: {positions}"
    print(f"\n{runs} rounds, everything acknowledged {time.monotonic() - killed:.1f} s after the kill")


def test_notes_are_read_without_the_entries(config: Config, kafka: str) -> None:
    """`celery neli status` has two seconds."""
    schedule_client.write(config, [(MEMBER, "one", b'{"v":1,"schedule":"a","version":null,"at":1}')], log=LOG)
    producer = Producer({"bootstrap.servers": kafka})
    for number in range(20_000):
        producer.produce(config.schedule_topic, state(number), key_of(STATE, f"{number}"), partition=number % 16)
    assert producer.flush(30) == 0
    producer.close()
    began = time.monotonic()
    assert list(schedule_client.read_notes(config, log=LOG)) == ["one"]
    print(f"\nnotes read in {time.monotonic() - began:.3f} s")
