from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import ConfigResource

from celery_neli.config import Config
from celery_neli.election.records import End, Entry, Event, Lost, Started
from celery_neli.exceptions import ConfigurationError, TopicError
from celery_neli.kafka.journal import KafkaJournal
from tests.processes import wait_until

pytestmark = pytest.mark.integration
LOG = logging.getLogger("celery_neli.kafka")


class Reading:
    """Reads a journal and keeps what it reported."""

    def __init__(self, config: Config) -> None:
        self.journal = KafkaJournal(config, log=LOG)
        self.events: list[Event] = []

    def until(self, condition: Callable[[list[Event]], object], *, timeout: float = 15.0) -> list[Event]:
        """Read until the condition holds for what is reported from now on."""
        new: list[Event] = []
        deadline = time.monotonic() + timeout
        while not condition(new):
            assert time.monotonic() < deadline, f"only {new[-5:]} within {timeout} s"
            reported = self.journal.read(0.05)
            new += reported
            self.events += reported
        return new

    def until_end(self, *roles: int, timeout: float = 15.0) -> list[Event]:
        return self.until(lambda new: {End(role) for role in roles or (0,)} <= set(new), timeout=timeout)

    def close(self) -> None:
        self.journal.close()


def entries(events: list[Event], role: int = 0) -> list[int]:
    return [event.offset for event in events if isinstance(event, Entry) and event.role == role]


def starts(events: list[Event], role: int = 0) -> list[Started]:
    return [event for event in events if isinstance(event, Started) and event.role == role]


@pytest.fixture
def config(kafka, names) -> Config:
    return Config(group=names("group"), kafka=kafka)


@pytest.fixture
def fill(kafka) -> Iterator[Callable[..., None]]:
    """Append so many records as another client."""
    producer = Producer({"bootstrap.servers": kafka, "linger.ms": 0})

    def fill(topic: str, count: int, partition: int = 0) -> None:
        for number in range(count):
            producer.produce(topic, b"stranger %d" % number, partition=partition)
        assert producer.flush(10) == 0

    yield fill
    producer.close()


@pytest.fixture
def read(config) -> Iterator[Reading]:
    with closing(Reading(config)) as reading:
        yield reading


def test_a_missing_topic_is_created_as_the_lease_needs_it(read, config, kafka_node):
    """Partitions as roles; nothing compacted, no unclean leaders, a day's retention, times from the broker."""
    read.until_end()
    made = kafka_node.admin().list_topics(config.topic, timeout=10).topics[config.topic]
    assert len(made.partitions) == 1
    resource = ConfigResource(ConfigResource.Type.TOPIC, config.topic)
    values = kafka_node.admin().describe_configs([resource])[resource].result(10)
    assert values["cleanup.policy"].value == "delete"
    assert values["unclean.leader.election.enable"].value == "false"
    assert values["message.timestamp.type"].value == "LogAppendTime"
    assert values["retention.ms"].value == "86400000"


def test_members_may_create_the_topic_at_once(config):
    """Who comes second finds it made."""
    readings = [Reading(config) for _ in range(3)]
    try:
        deadline = time.monotonic() + 20
        while not all(End(0) in reading.events for reading in readings):
            assert time.monotonic() < deadline
            for reading in readings:
                reading.events += reading.journal.read(0.01)
    finally:
        for reading in readings:
            reading.close()


def test_an_empty_log_starts_at_its_oldest(read):
    """`Started` is reported although no record ever comes, and so is the end."""
    assert read.until_end() == [Started(0, 0, oldest=True), End(0)]


def test_a_short_log_is_read_from_its_beginning(read, config, kafka_node, fill):
    """Fewer records than the tail: all of them."""
    kafka_node.create_topic(config.topic)
    fill(config.topic, 10)
    reported = read.until_end()
    assert starts(reported) == [Started(0, 0, oldest=True)]
    assert entries(reported) == list(range(10))


def test_a_long_log_is_read_from_near_its_end_and_further_back_when_asked(read, config, kafka_node, fill):
    """The last 200 records; then 1000 more; then all, which is reported as the oldest."""
    kafka_node.create_topic(config.topic)
    fill(config.topic, 1500)
    reported = read.until_end()
    assert starts(reported) == [Started(0, 1300, oldest=False)]
    assert entries(reported) == list(range(1300, 1500))
    read.journal.look_back(0)
    reported = read.until_end()
    assert starts(reported) == [Started(0, 300, oldest=False)]
    assert entries(reported) == list(range(300, 1500))
    read.journal.look_back(0)
    reported = read.until_end()
    assert starts(reported) == [Started(0, 0, oldest=True)]
    assert entries(reported) == list(range(1500))


def test_a_log_whose_beginning_is_gone_starts_at_what_is_left(read, config, kafka_node, fill):
    """Neither the tail nor looking back may fall silent where records expired; what is left is the oldest."""
    kafka_node.create_topic(config.topic)
    fill(config.topic, 1000)
    kafka_node.admin().delete_records([TopicPartition(config.topic, 0, 900)])[
        TopicPartition(config.topic, 0, 900)
    ].result(10)
    reported = read.until_end()
    assert starts(reported) == [Started(0, 900, oldest=True)]
    assert entries(reported) == list(range(900, 1000))
    read.journal.look_back(0)
    assert starts(read.until_end()) == [Started(0, 900, oldest=True)]


def test_a_log_emptied_by_expiry_starts_at_its_end(read, config, kafka_node, fill):
    """No record is left, but offsets go on: the start is not 0, and it is the oldest."""
    kafka_node.create_topic(config.topic)
    fill(config.topic, 500)
    everything = TopicPartition(config.topic, 0, 500)
    kafka_node.admin().delete_records([everything])[everything].result(10)
    assert read.until_end() == [Started(0, 500, oldest=True), End(0)]


def test_ones_own_record_is_read_back_and_then_the_end(read):
    """What was appended comes back with its bytes, and the end is reported after it."""
    read.until_end()
    read.journal.append(0, "leader", b"mine")
    reported = read.until(lambda new: End(0) in new and entries(new))
    assert Entry(0, 0, b"mine") in reported
    assert reported[-1] == End(0)


def test_the_end_is_reported_again_when_asked_and_no_record_is_missed_or_doubled(read, config, fill):
    """Asking moves the reader to where it stands: under load every record is still reported exactly once."""
    read.until_end()
    read.journal.ask_end(0)
    assert read.until_end() == [End(0)]
    for _ in range(20):
        fill(config.topic, 7)
        read.journal.ask_end(0)
        fill(config.topic, 3)
        read.until_end()
    read.until(lambda _: len(entries(read.events)) >= 200)
    assert entries(read.events) == list(range(200))


def test_asking_at_every_turn_does_not_put_the_answer_off(read):
    """Each asking starts the fetch again: were it repeated faster than a broker answers, no answer would ever come."""
    read.until_end()
    deadline = time.monotonic() + 5
    reported: list[Event] = []
    while End(0) not in reported:
        assert time.monotonic() < deadline
        read.journal.ask_end(0)
        reported += read.journal.read(0.01)


def test_roles_do_not_disturb_each_other(kafka, names, fill):
    """Looking back and asking for the end of one role tells nothing of the others."""
    config = Config(group=names("group"), kafka=kafka, roles=("red", "green"))
    with closing(Reading(config)) as read:
        read.until_end(0, 1)
        fill(config.topic, 20, partition=1)
        read.until(lambda new: len(entries(new, 1)) == 20 and End(1) in new)
        read.journal.look_back(0)
        read.until_end(0)
        read.journal.ask_end(0)
        read.until_end(0)
        assert entries(read.events, 1) == list(range(20))
        assert len(starts(read.events, 1)) == 1


def test_a_topic_deleted_is_reported_and_created_again(read, config, kafka_node, fill):
    """Every role's position is lost; reading begins again in the new log, which no other member had to create."""
    read.until_end()
    fill(config.topic, 5)
    read.until(lambda new: len(entries(new)) == 5)
    kafka_node.admin().delete_topics([config.topic])[config.topic].result(10)
    reported = read.until(lambda new: starts(new), timeout=30)
    kinds = [type(event) for event in reported if not isinstance(event, End)]
    assert kinds == [Lost, Started]
    read.journal.append(0, "leader", b"new")
    read.until(lambda new: Entry(0, 0, b"new") in new)


def test_a_topic_created_again_behind_ones_back_is_reported(read, config, kafka_node, fill):
    """A position beyond the new log's end is lost, not waited for."""
    read.until_end()
    fill(config.topic, 50)
    read.until(lambda new: len(entries(new)) == 50)
    kafka_node.admin().delete_topics([config.topic])[config.topic].result(10)
    wait_until(
        lambda: config.topic not in kafka_node.admin().list_topics(timeout=10).topics, timeout=10, what="the deletion"
    )
    kafka_node.create_topic(config.topic)
    reported = read.until(lambda new: starts(new), timeout=30)
    assert [type(event) for event in reported if not isinstance(event, End)] == [Lost, Started]


@pytest.mark.parametrize("created_again", [False, True])
def test_a_topic_deleted_while_a_member_looks_back_is_reported(read, config, kafka_node, fill, created_again):
    """The member must remember the leases that it read of: what it finds at offset 0 is another log."""
    kafka_node.create_topic(config.topic)
    fill(config.topic, 1500)
    assert starts(read.until_end()) == [Started(0, 1300, oldest=False)]
    read.journal.look_back(0)
    kafka_node.admin().delete_topics([config.topic])[config.topic].result(10)
    if created_again:
        wait_until(
            lambda: config.topic not in kafka_node.admin().list_topics(timeout=10).topics,
            timeout=10,
            what="the deletion",
        )
        kafka_node.create_topic(config.topic)
    reported = read.until(lambda new: Started(0, 0, oldest=True) in new, timeout=30)
    assert Lost in [type(event) for event in reported]


def test_partitions_that_new_roles_need_are_added_while_others_go_on_reading(kafka, kafka_node, names, caplog):
    """Three members with a longer list of roles come at once; nothing is reported to the one with the short list."""
    caplog.set_level(logging.INFO, "celery_neli.kafka")
    name = names("group")
    old, new = (Config(group=name, kafka=kafka, roles=roles) for roles in (("a", "b"), ("a", "b", "c", "d")))
    with closing(Reading(old)) as before:
        before.until_end(0, 1)
        readings = [Reading(new) for _ in range(3)]
        try:
            deadline = time.monotonic() + 20
            while not all({End(role) for role in range(4)} <= set(each.events) for each in readings):
                assert time.monotonic() < deadline
                for each in (before, *readings):
                    each.events += each.journal.read(0.01)
            readings[0].journal.append(3, "d", b"first")
            readings[1].until(lambda reported: Entry(3, 0, b"first") in reported)
        finally:
            for each in readings:
                each.close()
        before.journal.append(1, "b", b"on")
        before.until(lambda reported: Entry(1, 0, b"on") in reported)
        assert {type(event) for event in before.events} <= {Started, End, Entry}
        assert len(starts(before.events, 0)) == len(starts(before.events, 1)) == 1
    said = [record for record in caplog.records if "leader topic enlarged" in record.getMessage()]
    assert {record.levelno for record in said} == {logging.INFO}
    assert f"topic={new.topic} partitions=4 before=2" in said[0].getMessage()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("policy", ["compact", "compact,delete"])
def test_a_compacted_topic_is_refused(read, config, kafka_node, policy):
    """Compaction removes the records that prove who leads (R7)."""
    kafka_node.create_topic(config.topic, config={"cleanup.policy": policy})
    with pytest.raises(TopicError, match=r"cleanup\.policy.*kafka-configs\.sh"):
        read.until_end()


def test_an_unknown_property_is_refused_without_showing_secrets(kafka):
    """Librdkafka's complaint becomes ours, masked."""
    given = {"bootstrap.servers": kafka, "sasl.password": "hunter22", "security.protocol": "hunter22"}
    with pytest.raises(ConfigurationError, match=r"security\.protocol") as raised:
        KafkaJournal(Config(group="g", kafka=given), log=LOG)
    assert "hunter22" not in str(raised.value)


def test_without_a_broker_reads_return_and_close_is_quick(caplog):
    """An outage at the start is no error: one warning, and the member can still be ended."""
    caplog.set_level(logging.INFO, "celery_neli.kafka")
    journal = KafkaJournal(Config(group="g", kafka="127.0.0.1:9"), log=LOG)
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        began = time.monotonic()
        assert journal.read(0.05) == []
        assert time.monotonic() - began < 1.5
    journal.append(0, "leader", b"x")
    began = time.monotonic()
    journal.close()
    assert time.monotonic() - began < 2.5
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "kafka unreachable" in caplog.text


def test_an_outage_later_is_one_warning_and_reading_goes_on(embedded_kafka, names, caplog):
    """The broker goes and comes back: two lines, and the log is read on where it was left."""
    caplog.set_level(logging.INFO, "celery_neli.kafka")
    with closing(Reading(Config(group=names("group"), kafka=embedded_kafka.bootstrap_servers))) as read:
        read.until_end()
        read.journal.append(0, "leader", b"before")
        read.until(lambda new: Entry(0, 0, b"before") in new)
        caplog.clear()
        embedded_kafka.broker_down()
        deadline = time.monotonic() + 3
        read.until(lambda _: time.monotonic() > deadline)
        embedded_kafka.broker_up()
        began = time.monotonic()
        while not any(isinstance(event, Entry) and event.value == b"after" for event in read.events):
            assert time.monotonic() - began < 10
            read.journal.append(0, "leader", b"after")
            read.events += read.journal.read(0.2)
    lines = [record.getMessage() for record in caplog.records if "append lost" not in record.getMessage()]
    assert len(lines) == 2, lines
    assert lines[0].startswith("kafka unreachable")
    assert lines[1].startswith("kafka reachable again")


@pytest.mark.slow
def test_a_clean_stop_of_the_partitions_leader_is_hardly_noticed(kafka_cluster, names):
    """Records keep coming back through a broker's restart: far within any lease."""
    config = Config(group=names("group"), kafka=kafka_cluster.bootstrap_servers)
    with closing(Reading(config)) as read:
        read.until_end()
        leader = wait_until(lambda: kafka_cluster.leader_of(config.topic), timeout=10, what="a leader")
        stop = threading.Thread(target=leader.terminate)
        stop.start()
        gap, last, sent, deadline = 0.0, time.monotonic(), 0, None
        next_append = 0.0
        while deadline is None or time.monotonic() < deadline:
            if time.monotonic() >= next_append:
                read.journal.append(0, "leader", b"beat %d" % sent)
                sent, next_append = sent + 1, time.monotonic() + 0.1
            if entries(read.journal.read(0.05)):
                gap, last = max(gap, time.monotonic() - last), time.monotonic()
            gap = max(gap, time.monotonic() - last)
            if deadline is None and not stop.is_alive():
                deadline = time.monotonic() + 3
        stop.join()
    print(f"longest time without a record through a clean stop: {gap:.2f} s")
    assert gap < 2.0
