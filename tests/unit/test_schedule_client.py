"""The schedule topic for one question or one change, on the embedded Kafka."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka import Producer

from celery_neli.config import Config
from celery_neli.embedded import EmbeddedKafka
from celery_neli.exceptions import NeliError
from celery_neli.kafka.properties import producer_properties, schedule_producer_properties
from celery_neli.schedule_topic.codec import ENTRY, MEMBER, STATE, Note, State, encode_note, encode_state
from celery_neli.schedule_topic.topic import read_all, read_notes, write
from celery_neli.status import look
from tests.processes import free_ports

LOG = logging.getLogger("celery_neli.cli")
NOTE = Note(schedule="0123456789", version=3, at=1.5)


@pytest.fixture
def kafka() -> Iterator[EmbeddedKafka]:
    with EmbeddedKafka() as embedded:
        yield embedded


@pytest.fixture
def config(kafka: EmbeddedKafka) -> Config:
    return Config(group="g.beat", kafka=kafka.bootstrap_servers)


def test_without_a_topic_there_is_nothing(config: Config) -> None:
    """And reading makes none."""
    for _ in range(2):
        assert read_all(config, log=LOG) == {}
        assert read_notes(config, log=LOG) == {}


def test_asking_for_the_topic_does_not_make_it(kafka: EmbeddedKafka, config: Config) -> None:
    """Brokers that make topics by themselves would make one that forgets."""
    for properties, made in ((schedule_producer_properties, False), (producer_properties, True)):
        producer = Producer(properties(config))
        producer.list_topics(config.schedule_topic, timeout=20)
        assert (config.schedule_topic in producer.list_topics(timeout=20).topics) is made
        producer.close()


def test_what_was_written_is_read(config: Config) -> None:
    """Entries and notes apart; what was deleted is not there."""
    state = encode_state(State(0.0, 1, 1))
    write(config, [(ENTRY, "a", b"1"), (ENTRY, "b", b"1"), (STATE, "a", state)], log=LOG)
    write(config, [(MEMBER, "one", encode_note(NOTE)), (ENTRY, "c", b"1"), (ENTRY, "a", b"2")], log=LOG)
    write(config, [(ENTRY, "b", None)], log=LOG)
    found = [(("s", "a"), state), (("e", "c"), b"1"), (("e", "a"), b"2")]
    assert read_all(config, log=LOG) == dict(found)
    assert read_notes(config, log=LOG) == {"one": NOTE}


def test_an_error_of_our_own_is_not_blamed_on_the_properties(config: Config) -> None:
    """Only what librdkafka refuses while clients are made is a fault of `neli_kafka`."""
    value: Any = 5
    with pytest.raises(TypeError):
        write(config, [(ENTRY, "a", value)], log=LOG)


def test_the_state_of_the_higher_term_is_read(config: Config) -> None:
    """As beats judge."""
    newer, older = encode_state(State(0.0, 1, 5)), encode_state(State(0.0, 9, 3))
    write(config, [(STATE, "a", newer)], log=LOG)
    write(config, [(STATE, "a", older)], log=LOG)
    assert read_all(config, log=LOG) == {("s", "a"): newer}


def test_strangers_are_left_out(kafka: EmbeddedKafka, config: Config) -> None:
    """Of notes, those that cannot be read as well."""
    write(config, [(MEMBER, "one", encode_note(NOTE)), (MEMBER, "two", b"?"), (ENTRY, "a", b"1")], log=LOG)
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
    for partition in (0, 16):
        producer.produce(config.schedule_topic, b"?", None, partition=partition)
        producer.produce(config.schedule_topic, b"?", b"leader", partition=partition)
    assert producer.flush(20) == 0
    producer.close()
    assert read_all(config, log=LOG) == {("e", "a"): b"1"}
    assert read_notes(config, log=LOG) == {"one": NOTE}


def test_without_kafka_each_says_so_in_one_sentence_and_in_time() -> None:
    """Whether the topic could be found or not."""
    config = Config(group="g.beat", kafka=f"127.0.0.1:{free_ports(1)[0]}")
    began = time.monotonic()
    for ask in (
        lambda: read_all(config, log=LOG, timeout=0.3),
        lambda: read_notes(config, log=LOG, timeout=0.3),
        lambda: write(config, [(ENTRY, "a", b"1")], log=LOG, timeout=0.3),
    ):
        with pytest.raises(NeliError, match=r"127\.0\.0\.1") as raised:
            ask()
        assert "\n" not in str(raised.value)
    assert time.monotonic() - began < 5


def test_what_was_not_acknowledged_is_an_error(kafka: EmbeddedKafka, config: Config) -> None:
    """With Kafka's reason, or that there was no answer."""
    write(config, [(ENTRY, "a", b"1")], log=LOG)
    kafka.push_errors("Produce", "TOPIC_AUTHORIZATION_FAILED")
    with pytest.raises(NeliError, match=r"was not written: .* right Write on the topic g\.beat\.neli\.schedule: kaf"):
        write(config, [(ENTRY, "a", b"2")], log=LOG)
    kafka.push_errors("Produce", "_TRANSPORT", count=100)
    with pytest.raises(NeliError, match=r"was not written: "):
        write(config, [(ENTRY, "a", b"3")], log=LOG, timeout=0.5)
    kafka.clear_errors("Produce")
    assert read_all(config, log=LOG)["e", "a"] == b"1"


def test_status_tells_the_members_schedules(kafka: EmbeddedKafka, config: Config) -> None:
    """Of those alive; the embedded Kafka does not describe the group, so a young note is a sign of life."""
    kafka.create_topic(config.topic)
    now = time.time()
    notes = {"one": Note(schedule="aaaaaaaabb", version=None, at=now), "two": Note(schedule="b", version=2, at=now)}
    notes["old"] = Note(schedule="c", version=None, at=now - 300)
    write(config, [(MEMBER, name, encode_note(note)) for name, note in notes.items()], log=LOG)
    reported = look(config, "beat", log=LOG, schedules=True)
    assert [(each.name, each.schedule, each.version) for each in reported.schedules] == [
        ("one", "aaaaaaaa", None),
        ("two", "b", 2),
    ]
    assert reported.as_dict()["disagreement"] == "members disagree on the schedule: aaaaaaaa: one; b (version 2): two"
    assert look(config, "beat", log=LOG).schedules == []


def test_status_is_reported_without_schedules_if_they_cannot_be_read(kafka: EmbeddedKafka, config: Config) -> None:
    """A beat of an older version has none."""
    kafka.create_topic(config.topic)
    reported = look(config, "beat", log=LOG, schedules=True)
    assert (reported.exists, reported.schedules, reported.disagreement) == (True, [], None)
