"""The schedule topic on the embedded Kafka: read, followed and written by beats."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from confluent_kafka import Producer

from celery_neli.config import Config
from celery_neli.embedded import EmbeddedKafka
from celery_neli.exceptions import RecordError
from celery_neli.schedule_topic import topic as schedule_client
from celery_neli.schedule_topic.codec import ENTRY, MEMBER, STATE, Note, State, encode_note, encode_state
from celery_neli.schedule_topic.topic import ScheduleTopic
from tests.processes import wait_until

LOG = logging.getLogger("celery_neli.schedule")
Make = Callable[..., ScheduleTopic]
NOTE = encode_note(Note(schedule="abc", version=None, at=0.0))


def state(runs: int, epoch: int = 1) -> bytes:
    return encode_state(State(0.0, runs, epoch))


@pytest.fixture
def kafka() -> Iterator[EmbeddedKafka]:
    with EmbeddedKafka() as embedded:
        yield embedded


@pytest.fixture
def config(kafka: EmbeddedKafka) -> Config:
    return Config(group="g", kafka=kafka.bootstrap_servers, heartbeat_interval=0.1, heartbeat_timeout=0.6)


@pytest.fixture
def make(config: Config) -> Iterator[Make]:
    """A started topic, stopped after the test."""
    with ExitStack() as stack:

        def made(changed: Callable[[], None] | None = None) -> ScheduleTopic:
            topic = ScheduleTopic(config, log=LOG, changed=changed)
            stack.callback(topic.stop)
            topic.start()
            return topic

        yield made


def drained(topic: ScheduleTopic) -> dict[tuple[str, str], bytes | None]:
    """What is in the topic that was not drained yet."""
    assert topic.read_to_end(20)
    return dict(topic.drain())


def test_what_one_writes_another_reads(make: Make) -> None:
    """From the beginning if it comes later, and at once if it is there; deletions, too."""
    here, there = make(), make()
    here.write(STATE, "a", state(1))
    here.write(ENTRY, "a", b"{}")
    here.write(MEMBER, "one", NOTE)
    assert here.flush(20)
    wanted = {("s", "a"): state(1), ("e", "a"): b"{}", ("m", "one"): NOTE}
    assert drained(there) == drained(make()) == wanted
    here.write(ENTRY, "a", None)
    assert here.flush(20)
    assert drained(there) == {("e", "a"): None}


def test_a_change_is_reported_soon(make: Make) -> None:
    """Within 0.3 s, on the embedded Kafka, which does not wake who waits for records; five times that here."""
    reported = threading.Event()
    here, there = make(), make(reported.set)
    assert there.read_to_end(20)
    assert here.read_to_end(20)
    assert not reported.is_set()
    began = time.monotonic()
    here.write(STATE, "a", state(1))
    assert reported.wait(5)
    assert time.monotonic() - began < 1.5
    assert there.drain() == {("s", "a"): state(1)}


def test_only_the_latest_is_drained_in_the_order_of_reading(make: Make) -> None:
    """However many records there were."""
    here, there = make(), make()
    for runs in range(3):
        for name in "ba":
            here.write(STATE, name, state(runs))
        assert here.flush(20)
    here.write(STATE, "b", state(9))
    assert here.flush(20)
    assert list(drained(there).items()) == [(("s", "a"), state(2)), (("s", "b"), state(9))]
    assert there.drain() == {}


def test_own_writes_are_not_drained(make: Make) -> None:
    """Nor is what they replaced; what another writes after them is."""
    reported: list[bool] = []
    here, there = make(lambda: reported.append(True)), make()
    for runs in range(5):
        here.write(STATE, "a", state(runs))
    assert here.flush(20)
    assert drained(here) == {}
    assert not reported
    there.write(STATE, "a", state(7))
    assert there.flush(20)
    assert drained(here) == {("s", "a"): state(7)}
    there.write(STATE, "a", state(8))
    assert there.flush(20)
    here.write(STATE, "a", state(9))
    assert here.flush(20)
    assert drained(here) == {}


def test_of_two_epochs_the_higher_counts(make: Make) -> None:
    """A leader that was frozen writes behind its successor."""
    frozen, successor, reader = make(), make(), make()
    successor.write(STATE, "a", state(1, epoch=5))
    assert successor.flush(20)
    assert frozen.read_to_end(20)
    frozen.write(STATE, "a", state(9, epoch=3))
    assert frozen.flush(20)
    assert drained(reader) == drained(frozen) == {("s", "a"): state(1, epoch=5)}
    assert drained(successor) == {("s", "a"): state(9, epoch=3)}  # which knows better, and can write again


def test_the_end_is_asked_for_again(make: Make, config: Config) -> None:
    """Whatever was acknowledged before the question is read, at each of many."""
    topic = make()
    for runs in range(10):
        schedule_client.write(config, [(STATE, "a", state(runs))], log=LOG)
        assert drained(topic) == {("s", "a"): state(runs)}


@pytest.mark.parametrize("partitions", [17, 20])
def test_any_topic_of_enough_partitions_will_do(
    kafka: EmbeddedKafka, config: Config, make: Make, partitions: int
) -> None:
    """More do no harm."""
    kafka.create_topic(config.schedule_topic, partitions=partitions)
    here = make()
    here.write(MEMBER, "one", NOTE)
    assert here.flush(20)
    assert drained(make()) == {("m", "one"): NOTE}


def test_kafka_may_come_later(kafka: EmbeddedKafka, make: Make) -> None:
    """Only a caller that asks for the end waits for it; the latest value of each key is kept."""
    kafka.broker_down()
    topic = make()
    for runs in range(100):
        topic.write(STATE, "a", state(runs))
    assert not topic.read_to_end(0.1)
    assert not topic.flush(0.1)
    assert topic.unsaved == 1
    kafka.broker_up()
    assert topic.flush(20)
    assert drained(make()) == {("s", "a"): state(99)}


def test_kafka_may_go_away(kafka: EmbeddedKafka, config: Config, make: Make) -> None:
    """What was not delivered within a lease is sent again with its latest value."""
    topic, there = make(), make()
    assert drained(there) == {}
    assert topic.read_to_end(20)
    kafka.broker_down()
    for runs in range(3):
        topic.write(STATE, "a", state(runs))
    topic.write(STATE, "b", state(1))
    assert not topic.flush(2 * config.heartbeat_timeout)
    topic.write(STATE, "b", state(2))
    assert not topic.read_to_end(0.1)
    kafka.broker_up()
    assert topic.flush(20)
    assert drained(there) == {("s", "a"): state(2), ("s", "b"): state(2)}


def test_what_is_forgotten_is_not_written_later(kafka: EmbeddedKafka, make: Make) -> None:
    """The term is over. A note has no epoch."""
    topic = make()
    assert topic.read_to_end(20)
    kafka.broker_down()
    topic.write(STATE, "a", state(1))
    topic.write(ENTRY, "a", None)
    topic.write(MEMBER, "one", NOTE)
    topic.forget_unsaved()
    assert topic.unsaved == 1
    kafka.broker_up()
    assert topic.flush(20)
    assert drained(make()) == {("m", "one"): NOTE}


def test_a_topic_that_is_gone_is_created_again(
    kafka: EmbeddedKafka, config: Config, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said, and counted: what was known is not there any more. What is written since then is."""
    topic = make()
    topic.write(STATE, "old", state(1))
    assert topic.flush(20)
    before = topic.generation
    kafka.delete_topic(config.schedule_topic)
    wait_until(lambda: topic.generation > before, timeout=20, what="a new generation")
    topic.write(STATE, "new", state(2))
    assert topic.flush(20)
    assert drained(make()) == {("s", "new"): state(2)}
    wait_until(lambda: "schedule lost" in caplog.text, timeout=5, what="a line")


def test_strangers_are_skipped_and_reported_once(
    kafka: EmbeddedKafka, config: Config, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """One line of a kind a minute, whatever is in there; and so with what the reader cannot decode."""
    topic = make()
    assert topic.read_to_end(20)
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
    for key in (None, b"leader", b"s/\xff", b"s/good"):
        producer.produce(config.schedule_topic, b"?", key, partition=0)
    assert producer.flush(20) == 0
    producer.close()
    assert drained(topic) == {("s", "good"): b"?"}
    for _ in range(5):
        topic.refuse(STATE, "good", RecordError("not JSON"))
        topic.refuse(ENTRY, "good", RecordError("not JSON"))
    topic.stop()  # its lines are out
    lines = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
    assert lines == [
        "schedule record skipped key=None: nothing of ours",
        "schedule record skipped kind=s name='good': not JSON",
        "schedule record skipped kind=e name='good': not JSON",
    ]


def test_stop_sends_what_is_left_and_ends(make: Make, config: Config) -> None:
    """Afterwards nothing is written, and no caller waits."""
    topic = make()
    assert topic.read_to_end(20)
    topic.write(STATE, "a", state(1))
    topic.stop()
    topic.stop()
    topic.write(STATE, "a", state(2))
    assert not topic.read_to_end(20)
    assert schedule_client.read_all(config, log=LOG) == {("s", "a"): state(1)}


def test_what_was_never_started_stops_at_once(config: Config) -> None:
    """It has no clients."""
    topic = ScheduleTopic(config, log=LOG)
    topic.write(STATE, "a", state(1))
    topic.stop()
    assert topic.drain() == {}


# gevent's hook of os.fork uses select(), which knows 1,024 files; the process of all unit tests may have more.
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in.*_after_fork_in_parent:pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")  # that is the point
def test_a_fork_touches_no_client(make: Make) -> None:
    """There it reads and writes nothing, returns at once and ends as any process."""
    topic = make()
    topic.write(STATE, "a", state(1))
    assert topic.flush(20)
    child = os.fork()
    if child == 0:
        topic.write(STATE, "a", state(2))
        void = (topic.drain(), topic.read_to_end(5), topic.flush(5)) == ({}, False, False)
        topic.forget_unsaved()
        topic.stop()
        del topic
        os._exit(0 if void else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert drained(make()) == {("s", "a"): state(1)}
