"""The follower of the schedule topic finds out that a client of its own hears nothing though brokers answer. It ends
then, so that its clients are made anew.
"""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from celery_neli.config import Config
from celery_neli.kafka.client_log import KafkaLog
from celery_neli.schedule_topic import follow as follow_module
from celery_neli.schedule_topic.codec import STATE, key_of
from celery_neli.schedule_topic.follow import (
    ASK,
    AWAY,
    CHECK_AGAIN,
    CHECK_EVERY,
    CUT_OFF,
    IDENTIFY_EVERY,
    STOOD_STILL,
    Follower,
)
from celery_neli.schedule_topic.found import Found
from celery_neli.schedule_topic.pending import Writes

if TYPE_CHECKING:
    from collections.abc import Callable

LOG = logging.getLogger("celery_neli.kafka")
NO_BROKER = KafkaError(-195)  # _TRANSPORT
CONFIG = Config(group="g", topic="t", kafka="k:1")
KEY = key_of(STATE, "e")
#: Seconds within which a deaf client is replaced: two looks find it where it was, and another one soon has the answer.
SOON = 2 * CHECK_EVERY + 2 * CHECK_AGAIN + 4 * ASK


class Kafka:
    """The clock, a broker's log of the first partition, and what each kind of client is told of them."""

    def __init__(self) -> None:
        self.now = 100.0
        self.records = [(KEY, b"1")]
        #: Whether a client made for the question is told of brokers.
        self.answers = True
        self.deaf_readers = self.deaf_producers = False
        #: The reader finds brokers, and is not sent the records.
        self.stuck = False
        self.made: list[Client] = []
        self.asked = 0
        self.identity: str | None = None
        self.meanwhile: Callable[[], object] = lambda: None
        self._pending = False
        self.first = 0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.meanwhile()

    def ask(self) -> None:
        self.asked += 1
        self._pending = True

    def told(self) -> bool | None:
        pending, self._pending = self._pending, False
        return self.answers if pending else None


class Client:
    """A client; librdkafka's deafness stays with it until it is closed."""

    def __init__(self, kafka: Kafka, *, deaf: bool) -> None:
        self.kafka, self.deaf, self.closed = kafka, deaf, False
        self.place: int | None = None
        self.produced: list[Any] = []
        kafka.made.append(self)

    def assign(self, parts: list[Any]) -> None:
        self.place = self.kafka.first

    def poll(self, timeout: float) -> Any:
        if timeout:
            self.kafka.sleep(timeout)
        records, place = self.kafka.records, self.place
        if self.deaf or self.kafka.stuck or place is None or place >= len(records):
            return None
        self.place = place + 1
        record = {"partition": 0, "offset": place, "error": None, "key": records[place][0], "value": records[place][1]}
        return SimpleNamespace(**{name: lambda value=value: value for name, value in record.items()})

    def consume(self, count: int, timeout: float) -> list[Any]:
        return []

    def list_topics(self, topic: str, timeout: float) -> Any:
        if self.deaf or not self.kafka.answers:
            self.kafka.sleep(timeout)
            raise KafkaException(NO_BROKER)
        return SimpleNamespace(brokers={1: None})

    def get_watermark_offsets(self, part: Any, timeout: float) -> tuple[int, int]:
        if self.deaf:
            raise KafkaException(NO_BROKER)
        return self.kafka.first, 0 if part.partition else len(self.kafka.records)

    def produce(self, *record: Any, **how: Any) -> None:
        self.produced.append(record)

    def __len__(self) -> int:
        return len(self.produced)

    def purge(self, **how: bool) -> None: ...

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def kafka(monkeypatch: pytest.MonkeyPatch) -> Kafka:
    kafka = Kafka()
    for name, stand_in in {
        "time": kafka,
        "boottime": kafka.monotonic,
        "Consumer": lambda properties: Client(kafka, deaf=kafka.deaf_readers),
        "Producer": lambda properties: Client(kafka, deaf=kafka.deaf_producers),
        "Brokers": lambda *args: kafka,
        "TopicCheck": lambda *args, **kwargs: SimpleNamespace(
            poll=lambda: True, identity=kafka.identity, identify=lambda timeout: kafka.identity
        ),
    }.items():
        monkeypatch.setattr(follow_module, name, stand_in)
    return kafka


class Following:
    """A follower, and what it is about."""

    def __init__(self, kafka: Kafka) -> None:
        self.kafka = kafka
        klog = KafkaLog(LOG, {})
        self.writes = Writes("t.schedule", klog)
        self.found = Found(self.writes.own, LOG)
        self.follower = Follower(CONFIG, klog, self.found, self.writes, lambda new: None)

    def lasts(self, seconds: float, meanwhile: Callable[[], object] = lambda: None) -> bool:
        """Whether the clients are kept for so long; else, whoever calls `serve` is to call it again."""
        until, self.follower.stopping = self.kafka.now + seconds, False

        def passing() -> None:
            meanwhile()
            self.follower.stopping = self.kafka.now >= until

        self.kafka.meanwhile = passing
        self.follower.serve()
        return self.follower.stopping


@pytest.fixture
def following(kafka: Kafka) -> Following:
    return Following(kafka)


def test_clients_that_hear_are_kept_and_no_broker_is_asked(following: Following) -> None:
    """A schedule may say nothing for days."""
    assert following.lasts(600)
    assert len(following.kafka.made) == 2
    assert following.kafka.asked == 0


@pytest.mark.parametrize("late", [False, True], ids=["from the start", "later"])
def test_a_deaf_reader_is_made_anew_and_reads_from_the_beginning(
    following: Following, kafka: Kafka, caplog: pytest.LogCaptureFixture, *, late: bool
) -> None:
    """One warning says so; what was missed meanwhile is found."""
    if late:
        assert following.lasts(20)
        following.found.take()
        kafka.records.append((KEY, b"2"))
    kafka.deaf_readers = True
    assert not following.lasts(SOON)
    assert all(client.closed for client in kafka.made)
    assert following.found.take() == {}
    assert [record.message for record in caplog.records] == [
        "kafka client deaf: schedule reader finds no broker, though brokers answer: replaced"
    ]
    kafka.deaf_readers = False
    assert following.lasts(60)
    assert following.found.take() == {(STATE, "e"): kafka.records[-1][1]}
    assert following.follower.next[0] == len(kafka.records)
    assert len(caplog.records) == 1


def test_while_brokers_are_away_nothing_is_made_anew(
    following: Following, kafka: Kafka, caplog: pytest.LogCaptureFixture
) -> None:
    """A new client would find none, either. When they are back, one that does not find them by itself is replaced."""
    kafka.answers, kafka.deaf_readers = False, True
    assert following.lasts(300)
    assert kafka.asked > 10
    assert caplog.text == ""

    def back() -> None:
        kafka.answers = kafka.now > 450

    assert not following.lasts(60 + SOON, back)
    assert kafka.now > 450


def test_a_client_that_finds_its_brokers_after_a_moment_is_kept(following: Following, kafka: Kafka) -> None:
    """One look at it is not enough: brokers may have come back just now."""
    kafka.deaf_readers = True

    def hear() -> None:
        kafka.made[0].deaf = kafka.asked == 0

    assert following.lasts(60, hear)
    assert kafka.asked == 1
    assert following.found.take() == {(STATE, "e"): b"1"}


def test_each_client_is_looked_at_twice(following: Following, kafka: Kafka) -> None:
    """The reader hears again, and now it is the producer that does not: it has its time, too."""
    kafka.deaf_readers = True

    def hear() -> None:
        reader, producer = kafka.made
        if kafka.asked == 1 and reader.deaf:
            following.writes.put(KEY, 0, b"mine")
        reader.deaf, producer.deaf = kafka.asked == 0, kafka.asked == 1

    assert following.lasts(60, hear)
    assert kafka.asked == 2


def test_a_reader_that_finds_brokers_and_is_sent_nothing_is_made_anew(
    following: Following, kafka: Kafka, caplog: pytest.LogCaptureFixture
) -> None:
    """By what brokers tell of the topic's end, there is more."""
    assert following.lasts(20)
    kafka.stuck = True
    kafka.records.append((KEY, b"2"))
    assert not following.lasts(SOON)
    assert "kafka client deaf: schedule reader stands still, though brokers answer: replaced" in caplog.text


def test_a_deaf_producer_is_made_anew_and_what_it_had_is_written_again(
    following: Following, kafka: Kafka, caplog: pytest.LogCaptureFixture
) -> None:
    """It is asked while something is not acknowledged."""
    kafka.deaf_producers = True
    assert following.lasts(60), "nobody asks a producer that has nothing to do"
    following.writes.put(KEY, 0, b"mine")
    assert not following.lasts(SOON)
    assert "kafka client deaf: schedule producer finds no broker, though brokers answer: replaced" in caplog.text
    kafka.deaf_producers = False
    assert following.lasts(60)
    assert [record[:3] for record in kafka.made[-1].produced] == [("t.schedule", b"mine", KEY)]


def once(kafka: Kafka, after: float, *what: Callable[[], object]) -> Callable[[], object]:
    """For `lasts`: what happens one after the other, with so many seconds before each."""
    left, at = list(what), kafka.now + after

    def happen() -> None:
        nonlocal at
        if left and kafka.now >= at:
            left.pop(0)()
            at = kafka.now + after

    return happen


def another_topic(kafka: Kafka) -> None:
    """The topic is deleted, made again, and holds more records than the one before, in other places."""
    kafka.records[:] = [(key_of(STATE, name), b"new") for name in "abc"]


@pytest.mark.parametrize("seconds", [STOOD_STILL + 1, CUT_OFF / 2])
def test_a_process_that_stood_still_reads_all_of_the_topic_again(
    following: Following, kafka: Kafka, caplog: pytest.LogCaptureFixture, seconds: float
) -> None:
    """It may be another one by now, longer than the one before, whose first records were never read."""
    caplog.set_level(logging.INFO)

    def stand_still() -> None:
        following.found.take()
        another_topic(kafka)
        kafka.now += seconds

    assert following.lasts(seconds + 40, once(kafka, 20, stand_still))
    assert following.found.take() == {(STATE, name): b"new" for name in "abc"}
    assert following.found.generation == 1
    assert following.follower.torn, "what is missing was lost, for Kafka keeps tombstones for longer"
    assert following.follower.away
    (line,) = [record for record in caplog.records if "schedule missed" in record.message]
    assert line.levelno == logging.INFO


def test_a_process_that_hears_again_after_a_minute_reads_all_of_the_topic_again(
    following: Following, kafka: Kafka
) -> None:
    """It was cut off; all other members went on, and may have made another topic. Silence alone is no news."""

    def hear() -> None:
        assert following.found.generation == 0
        following.found.take()
        another_topic(kafka)

    assert following.lasts(AWAY + 40, once(kafka, AWAY + 10, hear))
    assert following.found.take() == {(STATE, name): b"new" for name in "abc"}


@pytest.mark.parametrize("told", [True, False])
def test_another_topic_of_the_name_is_noticed_by_its_id(following: Following, kafka: Kafka, *, told: bool) -> None:
    """It was deleted, created again and filled so fast that Kafka reports nothing and no offset tells. Where Kafka
    gives no ids, as the embedded one, nothing is asked.
    """
    kafka.identity = "first" if told else None

    def recreate() -> None:
        following.found.take()
        another_topic(kafka)
        kafka.identity = "second" if told else None

    assert following.lasts(IDENTIFY_EVERY + 20, once(kafka, 5, recreate))
    assert following.found.generation == (1 if told else 0)
    assert following.lasts(2 * IDENTIFY_EVERY)
    assert following.found.generation == (2 if told else 1)  # for its clients are others now, and no more than that


def test_a_reader_that_was_made_anew_knows_that_records_may_be_missing(following: Following, kafka: Kafka) -> None:
    """The topic may have been made anew, too, while the reader was deaf: what is not there now is no entry any more."""
    assert following.lasts(20)
    assert following.found.generation == 0
    assert following.lasts(20)  # with clients of its own
    assert following.found.generation == 1


def test_what_is_missing_after_hours_was_removed_unless_the_log_lost_it(following: Following, kafka: Kafka) -> None:
    """Kafka was away for hours and has lost the topic: beats hold the only copy, and must not drop it."""
    kafka.records += [(KEY, b"2"), (KEY, b"3")]
    torn = []

    def stand_still() -> None:
        torn.append(following.follower.torn)
        kafka.now += CUT_OFF + 1

    def lose() -> None:
        stand_still()
        kafka.first = len(kafka.records)
        kafka.records.append((KEY, b"4"))

    assert following.lasts(
        2 * CUT_OFF + 60, once(kafka, 10, stand_still, lose, lambda: torn.append(following.follower.torn))
    )
    assert torn[1:] == [False, True]
    assert following.found.generation == 2
