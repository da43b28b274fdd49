"""The thread that follows the schedule topic: it replaces a client that hears nothing although brokers answer, and it
reads everything again when the topic may have changed unseen.
"""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka import OFFSET_BEGINNING, KafkaError, KafkaException

from celery_neli.config import Config
from celery_neli.kafka import liveness as liveness_module
from celery_neli.kafka import reader as reader_module
from celery_neli.kafka import writer as writer_module
from celery_neli.kafka.client_log import ClientLog
from celery_neli.kafka.liveness import ASK_EVERY, PATIENCE, QUIET, Watch
from celery_neli.schedule_topic import follower as follower_module
from celery_neli.schedule_topic.codec import STATE, key_of
from celery_neli.schedule_topic.follower import AWAY, CUT_OFF, IDENTIFY_EVERY, STOOD_STILL, Follower
from celery_neli.schedule_topic.pending import PendingReads, PendingWrites
from tests.processes import wait_until
from tests.unit.fakes import FakeBrokers

if TYPE_CHECKING:
    from collections.abc import Callable

LOG = logging.getLogger("celery_neli.kafka")
AT_END, TIMED_OUT, NO_BROKER = KafkaError(-191), KafkaError(-192), KafkaError(-195)
CONFIG = Config(group="g", topic="t", kafka="k:1")
KEY = key_of(STATE, "e")
#: Seconds after which librdkafka gives a record up.
LOST = 4.0
#: Seconds within which a deaf client is replaced.
SOON = 2 * QUIET + PATIENCE + 2 * ASK_EVERY + LOST + 4


class Kafka(FakeBrokers):
    """The clock, a broker's log of the first partition, and what each kind of client is reported of them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.records = [(KEY, b"1")]
        self.deaf_readers = self.deaf_producers = False
        #: No reader is sent anything.
        self.stuck = False
        self.made: list[Client] = []
        self.identity: str | None = None
        self.meanwhile: Callable[[], object] = lambda: None
        self.first = 0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.meanwhile()


def message(partition: int, offset: int, error: Any = None, key: Any = None, value: Any = None) -> Any:
    fields = {
        "partition": partition, "offset": offset, "error": error, "key": key, "value": value,
        "leader_epoch": 3, "timestamp": (1, 0),
    }  # fmt: skip
    return SimpleNamespace(**{name: lambda value=value: value for name, value in fields.items()})


class Client:
    """A client; librdkafka's deafness stays with it until it is closed."""

    def __init__(self, kafka: Kafka, *, deaf: bool) -> None:
        self.kafka, self.deaf, self.closed = kafka, deaf, False
        self.places: dict[int, int] = {}
        self.ends: dict[int, int] = {}  # the end that was reported of each partition
        self.produced: list[Any] = []
        self.flying: list[tuple[float, Any]] = []
        kafka.made.append(self)

    def incremental_assign(self, parts: list[Any]) -> None:
        (part,) = parts
        first = self.kafka.first if part.partition == 0 else 0
        self.places[part.partition] = first if part.offset == OFFSET_BEGINNING else part.offset

    def incremental_unassign(self, parts: list[Any]) -> None:
        del self.places[parts[0].partition]
        self.ends.pop(parts[0].partition, None)

    def poll(self, timeout: float) -> Any:
        if timeout:
            self.kafka.sleep(timeout)
        self._report()
        if self.deaf or self.kafka.stuck:
            return None
        for partition, place in self.places.items():
            records = self.kafka.records if partition == 0 else []
            if place < len(records):
                self.places[partition] = place + 1
                return message(partition, place, None, *records[place])
            if self.ends.get(partition) != place:
                self.ends[partition] = place
                return message(partition, place, AT_END)
        return None

    def consume(self, count: int, timeout: float) -> list[Any]:
        """Of the other partitions the end is reported at once."""
        if self.deaf or self.kafka.stuck:
            return []
        others = [each for each in self.places if each and self.ends.get(each) != self.places[each]]
        self.ends.update((each, self.places[each]) for each in others)
        return [message(each, self.places[each], AT_END) for each in others]

    def list_topics(self, topic: str, timeout: float) -> Any:
        if self.deaf or not self.kafka.answers:
            self.kafka.sleep(timeout)
            raise KafkaException(NO_BROKER)
        return SimpleNamespace(brokers={1: None})

    def get_watermark_offsets(self, part: Any, timeout: float) -> tuple[int, int]:
        if self.deaf:
            raise KafkaException(NO_BROKER)
        return self.kafka.first, 0 if part.partition else len(self.kafka.records)

    def offsets_for_times(self, parts: list[Any], timeout: float) -> list[Any]:
        if self.deaf:
            raise KafkaException(NO_BROKER)
        begin, end = self.kafka.first, len(self.kafka.records)
        offsets = [(begin if part.offset == OFFSET_BEGINNING else end) if part.partition == 0 else 0 for part in parts]
        return [SimpleNamespace(offset=offset, error=None) for offset in offsets]

    def produce(self, *record: Any, on_delivery: Any, **how: Any) -> None:
        self.produced.append(record)
        self.flying.append((self.kafka.now, on_delivery))

    def _report(self) -> None:
        flying, self.flying = self.flying, []
        for at, reported in flying:
            if not self.deaf:
                reported(None, None)
            elif self.kafka.now - at > LOST:
                reported(TIMED_OUT, None)
            else:
                self.flying.append((at, reported))

    def __len__(self) -> int:
        return len(self.flying)

    def flush(self, timeout: float) -> int:
        return len(self.flying)

    def purge(self, **how: bool) -> None:
        self.flying.clear()

    def close(self) -> None:
        self.closed = True


class FoundTopic:
    """A topic that is there and fit."""

    def __init__(self, kafka: Kafka) -> None:
        self.kafka, self.found, self.identity = kafka, False, kafka.identity

    def poll(self) -> bool:
        self.found = True
        return True

    def identify(self, timeout: float) -> str | None:
        return self.kafka.identity

    def allow(self, operation: str) -> None: ...


@pytest.fixture
def kafka(monkeypatch: pytest.MonkeyPatch) -> Kafka:
    kafka = Kafka()
    monkeypatch.setattr(writer_module, "time", kafka)
    for module in (reader_module, liveness_module):
        monkeypatch.setattr(module, "time", kafka)
        monkeypatch.setattr(module, "Brokers", lambda *args: kafka)
        monkeypatch.setattr(module, "Watch", lambda brokers, **how: Watch(brokers, clock=kafka.monotonic, **how))
    monkeypatch.setattr(reader_module, "Consumer", lambda properties: Client(kafka, deaf=kafka.deaf_readers))
    monkeypatch.setattr(writer_module, "Producer", lambda properties: Client(kafka, deaf=kafka.deaf_producers))
    monkeypatch.setattr(follower_module, "time", kafka)
    monkeypatch.setattr(follower_module, "boottime", kafka.monotonic)
    monkeypatch.setattr(follower_module, "TopicAdmin", lambda *args: FoundTopic(kafka))
    return kafka


class Following:
    """A follower, and what it is about."""

    def __init__(self, kafka: Kafka) -> None:
        self.kafka = kafka
        log = ClientLog(LOG, {})
        self.writes = PendingWrites(log)
        self.reads = PendingReads(self.writes.is_own, LOG)
        self.follower = Follower(CONFIG, log, self.reads, self.writes, lambda new: None)

    def run(self, seconds: float, meanwhile: Callable[[], object] = lambda: None) -> int:
        """Follow for so long, with two new clients. Return how many more were made in that time."""
        until, self.follower.stopping = self.kafka.now + seconds, False
        made = len(self.kafka.made)

        def passing() -> None:
            meanwhile()
            self.follower.stopping = self.kafka.now >= until

        self.kafka.meanwhile = passing
        self.follower.serve()
        return len(self.kafka.made) - made - 2


@pytest.fixture
def following(kafka: Kafka) -> Following:
    return Following(kafka)


def test_clients_that_hear_are_kept_and_no_broker_is_asked(following: Following) -> None:
    """A schedule may say nothing for days."""
    assert following.run(600) == 0
    assert following.kafka.asked == 0
    assert following.reads.generation == 0


@pytest.mark.parametrize("late", [False, True], ids=["from the start", "later"])
def test_a_deaf_reader_is_replaced_and_reads_from_the_beginning(
    following: Following, kafka: Kafka, caplog: pytest.LogCaptureFixture, *, late: bool
) -> None:
    """One warning says so; what was missed in the meantime is found."""

    def grow_deaf() -> None:
        if late and kafka.now < 120:
            return
        if late and len(kafka.records) == 1:
            following.reads.take()
            kafka.records.append((KEY, b"2"))
        kafka.made[0].deaf = True

    assert following.run(60, grow_deaf) == 1
    reader = kafka.made[0]
    wait_until(lambda: reader.closed, timeout=10, what="the end of the reader that was replaced")
    assert following.reads.take() == {(STATE, "e"): kafka.records[-1][1]}
    assert following.reads.generation == (1 if late else 0), "the topic may be another one by now"
    assert following.follower.next[0] == len(kafka.records)
    (line,) = [record.message for record in caplog.records]
    assert line.startswith("kafka client deaf: the reader has heard nothing for ")


def test_a_deaf_reader_is_replaced_soon(following: Following, kafka: Kafka) -> None:
    """And not at once: brokers may have come back just now."""
    kafka.deaf_readers = True
    assert following.run(SOON - LOST) == 1
    assert following.run(2 * QUIET) == 0


def test_while_brokers_are_away_nothing_is_replaced(
    following: Following, kafka: Kafka, caplog: pytest.LogCaptureFixture
) -> None:
    """A new client would find none, either. When they are back, one that does not find them by itself is replaced."""
    kafka.answers, kafka.deaf_readers = False, True
    assert following.run(300) == 0
    assert kafka.asked > 10
    assert caplog.text == ""

    def back() -> None:
        kafka.answers = kafka.now > 450
        kafka.deaf_readers = False

    assert following.run(60 + SOON, back) == 1
    assert kafka.now > 450


def test_a_client_that_finds_its_brokers_after_a_moment_is_kept(following: Following, kafka: Kafka) -> None:
    """One look at it is not enough: brokers may have come back just now."""
    kafka.deaf_readers = True

    def hear() -> None:
        kafka.made[0].deaf = kafka.asked == 0

    assert following.run(60, hear) == 0
    assert kafka.asked == 1
    assert following.reads.take() == {(STATE, "e"): b"1"}


def test_each_client_has_its_time(following: Following, kafka: Kafka) -> None:
    """The reader hears again, and now it is the producer that does not: it has its time, too."""
    kafka.deaf_readers = True

    def hear() -> None:
        reader, producer = kafka.made
        if kafka.asked == 1 and reader.deaf:
            following.writes.put(KEY, 0, b"mine")
        reader.deaf, producer.deaf = kafka.asked == 0, kafka.asked == 1

    assert following.run(60, hear) == 0
    assert kafka.asked == 2
    assert following.writes.saved(KEY)


def test_a_reader_that_finds_brokers_and_is_sent_nothing_is_replaced(
    following: Following, kafka: Kafka, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even the end of the log, which it asks for."""

    def stick() -> None:
        kafka.stuck = kafka.now > 120

    assert following.run(20 + SOON - LOST, stick) == 1
    assert "kafka client deaf: the reader has heard nothing for " in caplog.text


def test_a_deaf_producer_is_replaced_and_what_it_had_is_written_again(
    following: Following, kafka: Kafka, caplog: pytest.LogCaptureFixture
) -> None:
    """It is asked while records are being lost."""
    kafka.deaf_producers = True
    assert following.run(60) == 0, "a producer that has nothing to do is not asked"
    kafka.deaf_producers = True

    def write() -> None:
        kafka.deaf_producers = False
        if not following.writes.unsaved and not kafka.made[-1].produced:
            following.writes.put(KEY, 0, b"mine")

    assert following.run(SOON + 10, write) == 1
    assert "kafka client deaf: the producer finds no broker, though brokers answer: replaced" in caplog.text
    assert [record[:3] for record in kafka.made[-1].produced] == [("t.schedule", b"mine", KEY)]
    assert following.writes.saved(KEY)


def once(kafka: Kafka, after: float, *what: Callable[[], object]) -> Callable[[], object]:
    """For `run`: what happens one after the other, with so many seconds before each."""
    left, at = list(what), kafka.now + after

    def happen() -> None:
        nonlocal at
        if left and kafka.now >= at:
            left.pop(0)()
            at = kafka.now + after

    return happen


def another_topic(kafka: Kafka) -> None:
    """The topic is deleted, created again, and holds more records than the one before, in other places."""
    kafka.records[:] = [(key_of(STATE, name), b"new") for name in "abc"]


@pytest.mark.parametrize("seconds", [STOOD_STILL + 1, CUT_OFF / 2])
def test_a_process_that_stood_still_reads_all_of_the_topic_again(
    following: Following, kafka: Kafka, caplog: pytest.LogCaptureFixture, seconds: float
) -> None:
    """It may be another one by now, longer than the one before, whose first records were never read."""
    caplog.set_level(logging.INFO)

    def stand_still() -> None:
        following.reads.take()
        another_topic(kafka)
        kafka.now += seconds

    following.run(seconds + 40, once(kafka, 20, stand_still))
    assert following.reads.take() == {(STATE, name): b"new" for name in "abc"}
    assert following.reads.generation == 1
    assert following.follower.torn, "what is missing was lost, for Kafka keeps tombstones for longer"
    assert following.follower.away
    (line,) = [record for record in caplog.records if "schedule missed" in record.message]
    assert line.levelno == logging.INFO


def test_a_process_that_hears_again_after_a_minute_reads_all_of_the_topic_again(
    following: Following, kafka: Kafka
) -> None:
    """It was cut off; all other members went on, and may have created another topic. Silence alone is no news."""

    def cut_off() -> None:
        assert following.reads.generation == 0
        kafka.stuck, kafka.answers = True, False

    def hear() -> None:
        following.reads.take()
        another_topic(kafka)
        kafka.stuck, kafka.answers = False, True

    assert following.run(2 * AWAY + 60, once(kafka, AWAY + 10, cut_off, hear)) == 0
    assert following.reads.generation == 1
    assert following.reads.take() == {(STATE, name): b"new" for name in "abc"}


@pytest.mark.parametrize("reported", [True, False])
def test_another_topic_of_the_name_is_noticed_by_its_id(following: Following, kafka: Kafka, *, reported: bool) -> None:
    """It was deleted, created again and filled so fast that Kafka reports nothing and no offset tells. Where Kafka
    gives no ids, as the embedded one, nothing is asked.
    """
    kafka.identity = "first" if reported else None

    def recreate() -> None:
        following.reads.take()
        another_topic(kafka)
        kafka.identity = "second" if reported else None

    following.run(IDENTIFY_EVERY + 20, once(kafka, 5, recreate))
    assert following.reads.generation == (1 if reported else 0)
    following.run(2 * IDENTIFY_EVERY)
    assert following.reads.generation == (2 if reported else 1)  # for its clients are others now, and no more than that


def test_a_follower_that_begins_again_knows_that_records_may_be_missing(following: Following, kafka: Kafka) -> None:
    """The topic may have been created again, too, while there was none: what is not there now is no entry any more."""
    following.run(20)
    assert following.reads.generation == 0
    following.run(20)  # with clients of its own
    assert following.reads.generation == 1


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

    following.run(2 * CUT_OFF + 60, once(kafka, 10, stand_still, lose, lambda: torn.append(following.follower.torn)))
    assert torn[1:] == [False, True]
    assert following.reads.generation == 2
