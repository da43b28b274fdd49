"""The embedded Kafka: what clients may expect of it, its faults, and how it ends."""

from __future__ import annotations

import ctypes.util
import os
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from celery_neli.embedded import EmbeddedKafka
from celery_neli.exceptions import ConfigurationError, EmbeddedKafkaUnavailable, NeliError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from confluent_kafka import Message

DEADLINE = 15.0  # seconds: far above what any of it takes


def clients(servers: str) -> dict[str, Any]:
    """Settings of a quiet client that tries again soon."""
    return {
        "bootstrap.servers": servers,
        "reconnect.backoff.ms": 20,
        "reconnect.backoff.max.ms": 100,
        "log_level": 0,
        "error_cb": lambda _error: None,
    }


def consumers(servers: str, group: str = "group") -> dict[str, Any]:
    """Settings of a consumer that does not wait long for records."""
    return clients(servers) | {
        "group.id": group,
        "auto.offset.reset": "earliest",
        "partition.assignment.strategy": "cooperative-sticky",
        "fetch.wait.max.ms": 50,
    }


def send(producer: Producer, topic: str, value: bytes, *, timeout: float = DEADLINE) -> list[str | None]:
    """Produce one record; the error's name (None: written) of each delivery report that came within the timeout."""
    reports: list[str | None] = []
    producer.produce(topic, value, on_delivery=lambda error, _: reports.append(error.name() if error else None))
    producer.flush(timeout)
    return reports


def receive(consumer: Consumer, count: int = 1) -> list[bytes | None]:
    """The values of the next records, errors left out."""
    values: list[bytes | None] = []
    wait_for(lambda: take(consumer, values) >= count)
    return values


def take(consumer: Consumer, values: list[bytes | None]) -> int:
    """Poll once; how many values there are now."""
    message: Message | None = consumer.poll(0.05)
    if message is not None and message.error() is None:
        values.append(message.value())
    return len(values)


def wait_for(condition: Callable[[], object]) -> None:
    """Ask until it is true."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture
def kafka() -> Iterator[EmbeddedKafka]:
    """One broker with the topic ``topic`` of one partition."""
    with EmbeddedKafka() as embedded:
        embedded.create_topic("topic")
        yield embedded


@pytest.fixture
def pair() -> Iterator[EmbeddedKafka]:
    """Two brokers with the topic ``topic`` of one partition, which broker 1 leads."""
    with EmbeddedKafka(brokers=2) as embedded:
        embedded.create_topic("topic", replication_factor=2)
        embedded.move_leader("topic", 0, 1)
        yield embedded


def test_what_is_produced_is_consumed_in_order(kafka: EmbeddedKafka) -> None:
    """Records come back in the order of one partition."""
    producer = Producer(clients(kafka.bootstrap_servers))
    for number in range(10):
        assert send(producer, "topic", b"%d" % number) == [None]
    consumer = Consumer(consumers(kafka.bootstrap_servers))
    consumer.assign([TopicPartition("topic", 0, 0)])
    assert receive(consumer, 10) == [b"%d" % number for number in range(10)]
    consumer.close()


def test_a_topic_has_the_partitions_asked_for() -> None:
    """create_topic decides; without it a topic made by a client's asking would have four."""
    with EmbeddedKafka() as kafka:
        kafka.create_topic("seven", partitions=7)
        topics = AdminClient(clients(kafka.bootstrap_servers)).list_topics(timeout=DEADLINE).topics
    assert {name: len(topic.partitions) for name, topic in topics.items()} == {"seven": 7}


def test_a_deleted_topic_can_be_made_anew_and_empty(kafka: EmbeddedKafka) -> None:
    """Offsets begin again at 0, as in a leader topic that was created again."""
    producer = Producer(clients(kafka.bootstrap_servers))
    send(producer, "topic", b"old")
    kafka.delete_topic("topic")
    kafka.create_topic("topic")
    consumer = Consumer(consumers(kafka.bootstrap_servers))
    assert consumer.get_watermark_offsets(TopicPartition("topic", 0), timeout=DEADLINE) == (0, 0)
    consumer.close()


def test_a_group_shares_its_partitions_cooperatively() -> None:
    """Two members under cooperative-sticky end with two partitions each; the first never gives up more than two."""
    revoked: list[int] = []
    with EmbeddedKafka() as kafka:
        kafka.create_topic("shared", partitions=4)
        first, second = (
            Consumer(consumers(kafka.bootstrap_servers) | {"session.timeout.ms": 1500, "heartbeat.interval.ms": 100})
            for _ in range(2)
        )
        first.subscribe(["shared"], on_revoke=lambda _, lost: revoked.extend(part.partition for part in lost))
        wait_for(lambda: first.poll(0.05) is None and len(first.assignment()) == 4)
        second.subscribe(["shared"])
        wait_for(
            lambda: (
                (first.poll(0.05), second.poll(0.05)) == (None, None)
                and len(first.assignment()) == len(second.assignment()) == 2
            )
        )
        assert len(revoked) == 2
        first.close()
        second.close()


def test_a_broker_that_is_down_refuses_and_comes_back_with_its_records(kafka: EmbeddedKafka) -> None:
    """A record that is produced in the outage waits in the client, and older records survive."""
    producer = Producer(clients(kafka.bootstrap_servers))
    assert send(producer, "topic", b"before") == [None]
    kafka.broker_down()
    host, port = kafka.bootstrap_servers.split(":")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)))
    assert send(producer, "topic", b"during", timeout=0.2) == []
    kafka.broker_up()
    assert producer.flush(DEADLINE) == 0
    consumer = Consumer(consumers(kafka.bootstrap_servers))
    consumer.assign([TopicPartition("topic", 0, 0)])
    assert receive(consumer, 2) == [b"before", b"during"]
    consumer.close()


def test_a_slow_broker_answers_after_its_round_trip_time(kafka: EmbeddedKafka) -> None:
    """slow(0.5) delays a write by 0.5 s, and slow(0) ends it."""
    producer = Producer(clients(kafka.bootstrap_servers) | {"linger.ms": 0})
    send(producer, "topic", b"warm-up")
    kafka.slow(0.5)
    began = time.monotonic()
    assert send(producer, "topic", b"slow") == [None]
    assert time.monotonic() - began >= 0.5
    kafka.slow(0)
    began = time.monotonic()
    assert send(producer, "topic", b"fast") == [None]
    assert time.monotonic() - began < 0.5


def test_pushed_errors_meet_the_next_requests_of_their_kind_and_no_more(kafka: EmbeddedKafka) -> None:
    """Two requests fail, the third is served."""
    producer = Producer(clients(kafka.bootstrap_servers) | {"retries": 0})
    kafka.push_errors("Produce", "INVALID_REQUIRED_ACKS", "MSG_SIZE_TOO_LARGE")
    seen = [send(producer, "topic", b"value") for _ in range(3)]
    assert seen == [["INVALID_REQUIRED_ACKS"], ["MSG_SIZE_TOO_LARGE"], [None]]


def test_cleared_errors_meet_nobody(kafka: EmbeddedKafka) -> None:
    """clear_errors takes back what no request has met; an error may be given by its number, several times over."""
    producer = Producer(clients(kafka.bootstrap_servers) | {"retries": 0})
    kafka.push_errors("Produce", 21, count=5)
    assert send(producer, "topic", b"value") == ["INVALID_REQUIRED_ACKS"]
    kafka.clear_errors("Produce")
    assert send(producer, "topic", b"value") == [None]


def test_writes_follow_a_partition_to_its_new_leader(pair: EmbeddedKafka) -> None:
    """With the old leader down, a write succeeds only once the other broker leads."""
    producer = Producer(clients(pair.bootstrap_servers))
    assert send(producer, "topic", b"one") == [None]
    pair.broker_down(1)
    assert send(producer, "topic", b"two", timeout=0.2) == []
    pair.move_leader("topic", 0, 2)
    assert producer.flush(DEADLINE) == 0


def test_a_group_follows_its_coordinator(pair: EmbeddedKafka) -> None:
    """With the old coordinator down, offsets are committed at the new one."""
    pair.move_leader("topic", 0, 2)
    pair.move_coordinator("group", 1)
    consumer = Consumer(consumers(pair.bootstrap_servers) | {"enable.auto.commit": False})
    consumer.assign([TopicPartition("topic", 0, 0)])
    consumer.commit(offsets=[TopicPartition("topic", 0, 5)], asynchronous=False)
    pair.broker_down(1)
    pair.move_coordinator("group", 2)

    def committed() -> bool:
        try:
            return consumer.committed([TopicPartition("topic", 0)], timeout=1.0)[0].offset == 5
        except KafkaException:
            return False  # still on its way to the new coordinator

    wait_for(committed)
    consumer.close()


def test_clients_find_it_at_a_chosen_port() -> None:
    """The chosen port is the bootstrap server, on the loopback interface only."""
    port = free_port()
    with EmbeddedKafka(port=port, brokers=2) as kafka:
        kafka.create_topic("topic")
        assert kafka.bootstrap_servers == f"127.0.0.1:{port}"
        assert send(Producer(clients(kafka.bootstrap_servers)), "topic", b"value") == [None]
        kafka.broker_down(1)  # the other one still answers at the chosen port
        kafka.move_leader("topic", 0, 2)
        assert send(Producer(clients(kafka.bootstrap_servers)), "topic", b"value") == [None]


def test_clients_outlive_a_restart_at_the_same_port() -> None:
    """A producer made before goes on after; the topic is new and empty."""
    port = free_port()
    with EmbeddedKafka(port=port) as kafka:
        kafka.create_topic("topic")
        producer = Producer(clients(kafka.bootstrap_servers))
        assert send(producer, "topic", b"before") == [None]
    with EmbeddedKafka(port=port) as kafka:
        kafka.create_topic("topic")
        assert send(producer, "topic", b"after") == [None]
        consumer = Consumer(consumers(kafka.bootstrap_servers))
        assert consumer.get_watermark_offsets(TopicPartition("topic", 0), timeout=DEADLINE) == (0, 1)
        consumer.close()


def test_a_port_in_use_is_refused() -> None:
    """The message names the port."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"port={port} on 127.0.0.1 cannot be had"):
            EmbeddedKafka(port=port).start()


def test_closing_twice_is_closing_once(caplog: pytest.LogCaptureFixture) -> None:
    """So is starting twice; after the close a call says what to do, and a start begins with no topics."""
    kafka = EmbeddedKafka()
    assert kafka.start() is kafka.start()
    assert caplog.text.count("never production") == 1
    kafka.create_topic("topic")
    kafka.close()
    kafka.close()
    with pytest.raises(NeliError, match="not running: call start"):
        kafka.create_topic("topic")
    with kafka:
        kafka.create_topic("topic")


def test_another_librdkafka_without_the_mock_cluster_is_named() -> None:
    """The error names what is missing and what to do."""
    library = ctypes.util.find_library("c")
    assert library is not None
    with pytest.raises(EmbeddedKafkaUnavailable, match=r"no rd_kafka_\w+\); install confluent-kafka from its wheel"):
        EmbeddedKafka(library=library).start()


def test_a_library_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    """So is a path that leads nowhere."""
    with pytest.raises(EmbeddedKafkaUnavailable, match=r"cannot be loaded from .*missing\.so"):
        EmbeddedKafka(library=tmp_path / "missing.so").start()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda kafka: kafka.broker_down(3), r"broker 3 does not exist: the ids are \[1, 2\]"),
        (lambda kafka: kafka.move_leader("topic", 0, 0), "broker 0 does not exist"),
        (lambda kafka: kafka.push_errors("Prodcue", "NOT_COORDINATOR"), "did you mean Produce"),
        (lambda kafka: kafka.clear_errors("joingroup"), "did you mean JoinGroup"),
        (lambda kafka: kafka.push_errors("Heartbeat", "NOT_COORDINATER"), "did you mean NOT_COORDINATOR"),
        (lambda kafka: kafka.push_errors("Heartbeat"), "name at least one error"),
        (lambda kafka: kafka.slow(-1), "round-trip time in seconds"),
        (lambda kafka: kafka.create_topic("other", replication_factor=3), "from 1 to the number of brokers, 2"),
        (lambda kafka: kafka.create_topic("topic"), "cannot create topic 'topic': .*TOPIC_ALREADY_EXISTS"),
        (lambda kafka: kafka.move_leader("topic", 9, 1), r"cannot move topic \[9\]: .*UNKNOWN_TOPIC_OR_PART"),
        (lambda _: EmbeddedKafka(port=70000), "port=70000: choose one from 1 to 65535"),
        (lambda _: EmbeddedKafka(brokers=0), "brokers=0: an embedded Kafka needs at least one"),
    ],
)
def test_bad_input_is_answered_with_what_would_do(
    pair: EmbeddedKafka, call: Callable[[EmbeddedKafka], object], message: str
) -> None:
    """A wrong id, name or number never reaches librdkafka, or its refusal is put in words."""
    with pytest.raises(NeliError, match=message):
        call(pair)


FIXTURE = """
pytest_plugins = ["celery_neli.testing"]


def test_it(embedded_kafka):
    embedded_kafka.create_topic("topic")
"""


def test_the_fixture_for_users_gives_a_running_kafka(tmp_path: Path) -> None:
    """celery_neli.testing is a pytest plugin for the tests of applications."""
    (tmp_path / "conftest.py").write_text(FIXTURE.split("\n\n\n")[0])
    (tmp_path / "test_it.py").write_text(FIXTURE.split("\n\n\n")[1])
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "1 passed" in result.stdout, result.stdout + result.stderr


FORK = """
import os, sys
from celery_neli.embedded import EmbeddedKafka
from celery_neli.exceptions import NeliError
kafka = EmbeddedKafka(brokers=2).start()
reading, writing = os.pipe()
child = os.fork()
if child == 0:
    try:
        kafka.create_topic("topic")
    except NeliError as error:
        print(error)
    kafka.close()
    os.close(writing)
    os.read(reading, 1)  # lives until the parent is done
    sys.exit(0)
os.close(reading)
kafka.broker_down()  # librdkafka aborts the process if the child still listens
kafka.broker_up()
kafka.create_topic("topic")
os.close(writing)
sys.exit(os.waitpid(child, 0)[1])
"""

NO_CLOSE = """
from celery_neli.embedded import EmbeddedKafka
kafka = EmbeddedKafka(port={port}).start()
kafka.create_topic("topic")
print(kafka.bootstrap_servers)
"""


def run(script: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a Python of its own."""
    return subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_fork_neither_ends_it_nor_keeps_its_ports() -> None:
    """An error tells the child that it has none, its close does nothing, and the parent can still inject faults."""
    result = run(FORK)
    assert (result.returncode, result.stdout.count("not in its fork")) == (0, 1), result.stderr


def test_a_process_that_never_closes_it_ends_cleanly() -> None:
    """No hang, no crash, and the port is free for the next."""
    port = free_port()
    for _ in range(2):
        result = run(NO_CLOSE.format(port=port))
        assert (result.returncode, result.stdout) == (0, f"127.0.0.1:{port}\n"), result.stderr
