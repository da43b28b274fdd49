"""What is kept until Kafka has acknowledged it, with a writer that does what the test says."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from celery_neli.kafka.client_log import ClientLog
from celery_neli.schedule_topic.pending import IN_FLIGHT, PendingWrites

TIMED_OUT, PURGED, UNKNOWN_TOPIC = -192, -152, -188  # librdkafka's _MSG_TIMED_OUT, _PURGE_QUEUE and _UNKNOWN_TOPIC
LOG = logging.getLogger("celery_neli.schedule")


class FakeWriter:
    """Keeps what it was given; `deliver` and `fail` report on the oldest. `log` is what brokers have."""

    def __init__(self) -> None:
        self.queue: list[tuple[bytes, bytes | None, Callable[..., None]]] = []
        self.log: list[tuple[bytes, bytes | None]] = []
        self.room = 1_000_000
        self.refuses: Exception | None = None
        self.flushes = False

    def __len__(self) -> int:
        return len(self.queue)

    def send(self, partition: int, key: bytes, value: bytes | None, done: Any) -> None:
        if self.refuses is not None:
            raise self.refuses
        if len(self.queue) >= self.room:
            raise BufferError
        self.queue.append((key, value, done))

    def deliver(self, count: int = 1) -> None:
        for key, value, reported in [self.queue.pop(0) for _ in range(count)]:
            self.log.append((key, value))
            reported(None)

    def fail(self) -> None:
        self.queue.pop(0)[2](KafkaError(TIMED_OUT))

    def purge(self) -> None:
        self.purged = [self.queue.pop(0) for _ in range(len(self.queue))]

    def poll(self) -> None: ...

    def flush(self, timeout: float) -> None:
        if self.flushes:
            self.deliver(len(self.queue))

    @property
    def values(self) -> list[bytes | None]:
        return [value for _, value, _ in self.queue]


@pytest.fixture
def writer() -> FakeWriter:
    return FakeWriter()


@pytest.fixture
def writes(writer: FakeWriter) -> PendingWrites:
    made = PendingWrites(ClientLog(LOG, {"bootstrap.servers": "writes:1"}))
    made.use(writer)  # type: ignore[arg-type]
    return made


def test_a_value_is_unsaved_until_it_is_acknowledged(writes: PendingWrites, writer: FakeWriter) -> None:
    """Then it is forgotten."""
    writes.put(b"a", 0, b"1")
    assert (writes.unsaved, writes.saved(b"a")) == (1, False)
    writer.deliver()
    assert (writes.unsaved, writes.saved(b"a")) == (0, True)
    assert writer.log == [(b"a", b"1")]


def test_a_key_has_one_record_on_its_way_and_its_latest_value_follows(
    writes: PendingWrites, writer: FakeWriter
) -> None:
    """So nothing can overtake, and values in between are not written at all."""
    for value in (b"1", b"2", b"3"):
        writes.put(b"a", 0, value)
    assert writer.values == [b"1"]
    writer.deliver()
    assert writes.unsaved == 1
    writes.serve()
    writer.deliver()
    assert (writer.log, writes.unsaved) == ([(b"a", b"1"), (b"a", b"3")], 0)


def test_what_was_not_delivered_is_sent_again_with_its_latest_value(
    writes: PendingWrites, writer: FakeWriter, caplog: pytest.LogCaptureFixture
) -> None:
    """One line says that there is trouble."""
    writes.put(b"a", 0, b"1")
    writes.put(b"b", 0, b"1")
    writes.put(b"a", 0, b"2")
    writer.fail()
    writer.fail()
    writes.serve()
    assert writer.values == [b"2", b"1"]
    assert caplog.text.count("schedule not saved yet") == 1


def test_while_no_broker_answers_nothing_is_said_of_it(
    writes: PendingWrites, writer: FakeWriter, caplog: pytest.LogCaptureFixture
) -> None:
    """The journal says so."""
    caplog.set_level(logging.INFO)
    ClientLog(LOG, {"bootstrap.servers": "writes:1"}).error(KafkaError(-187))  # _ALL_BROKERS_DOWN
    caplog.clear()
    writes.put(b"a", 0, b"1")
    writer.fail()
    assert not caplog.records


def test_librdkafka_has_a_bounded_number_at_a_time(writes: PendingWrites, writer: FakeWriter) -> None:
    """The rest waits, one value a key, and goes in the order in which the keys were written."""
    for number in range(IN_FLIGHT + 10):
        writes.put(b"%d" % number, 0, b"1")
        writes.put(b"%d" % number, 0, b"2")
    assert len(writer) == IN_FLIGHT
    assert writes.unsaved == IN_FLIGHT + 10
    writer.deliver(5)
    writes.serve()
    assert [key for key, _, _ in writer.queue[-5:]] == [b"%d" % number for number in range(IN_FLIGHT, IN_FLIGHT + 5)]


def test_a_full_queue_loses_nothing(writes: PendingWrites, writer: FakeWriter) -> None:
    """What it refused is sent when there is room."""
    writer.room = 1
    writes.put(b"a", 0, b"1")
    writes.put(b"b", 0, b"1")
    writer.deliver()
    writes.serve()
    writer.deliver()
    assert writes.unsaved == 0


def test_what_kafka_can_never_take_is_given_up(
    writes: PendingWrites, writer: FakeWriter, caplog: pytest.LogCaptureFixture
) -> None:
    """It would be refused again; the rest goes on."""
    writer.refuses = KafkaException(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE))
    writes.put(b"a", 0, b"1")
    writer.refuses = None
    writes.put(b"b", 0, b"1")
    writer.deliver()
    assert (writes.unsaved, writer.log) == (0, [(b"b", b"1")])
    assert "not saved key=b'a'" in caplog.text


def test_what_is_refused_while_the_topic_is_gone_is_tried_again(writes: PendingWrites, writer: FakeWriter) -> None:
    """It is created again."""
    writer.refuses = KafkaException(KafkaError(UNKNOWN_TOPIC))
    writes.put(b"a", 0, b"1")
    writer.refuses = None
    writes.serve()
    writer.deliver()
    assert (writes.unsaved, writer.log) == (0, [(b"a", b"1")])


def test_what_is_forgotten_is_not_sent_again(writes: PendingWrites, writer: FakeWriter) -> None:
    """Neither what waited nor what failed; other keys are, although librdkafka was emptied."""
    writes.put(b"a", 0, b"1")
    writes.put(b"keep", 0, b"1")
    writes.forget(lambda key: key != b"keep")
    assert (writes.unsaved, len(writer)) == (1, 0)
    for _, _, reported in writer.purged:
        reported(KafkaError(PURGED))
    writes.serve()
    assert [key for key, _, _ in writer.queue] == [b"keep"]


def test_a_late_report_on_what_was_forgotten_says_nothing_of_what_was_written_since(
    writes: PendingWrites, writer: FakeWriter
) -> None:
    """The new value is on its way, not saved."""
    writes.put(b"a", 0, bytes([49]))
    writes.forget(lambda key: True)
    writes.put(b"a", 0, b"new")
    ((_, _, reported),) = writer.purged
    reported(None)
    assert not writes.saved(b"a")
    writer.deliver()
    assert writes.saved(b"a")


def test_a_new_writer_has_everything_to_send(writes: PendingWrites, writer: FakeWriter) -> None:
    """The one before may have taken along what it had."""
    writes.put(b"a", 0, b"1")
    writes.use(None)
    writes.put(b"b", 0, b"1")
    other = FakeWriter()
    writes.use(other)  # type: ignore[arg-type]
    other.deliver(2)
    assert (writes.unsaved, sorted(other.log)) == (0, [(b"a", b"1"), (b"b", b"1")])


def test_an_own_record_is_known_once(writes: PendingWrites, writer: FakeWriter) -> None:
    """By its value: another's record of the same key is none, and neither is the same one a second time."""
    writes.put(b"a", 0, b"1")
    writes.put(b"gone", 0, None)
    assert not writes.is_own(b"a", b"2")
    assert writes.is_own(b"a", b"1")
    assert not writes.is_own(b"a", b"1")
    assert writes.is_own(b"gone", None)
    assert not writes.is_own(b"other", None)


def test_flush_waits_for_the_acknowledgements(writes: PendingWrites, writer: FakeWriter) -> None:
    """And says whether they came."""
    assert writes.flush(0)
    writes.put(b"a", 0, b"1")
    writes.put(b"a", 0, b"2")
    assert not writes.flush(0.02)
    writer.flushes = True
    assert writes.flush(5)
    assert writer.log == [(b"a", b"1"), (b"a", b"2")]


def test_many_threads_write(writes: PendingWrites, writer: FakeWriter) -> None:
    """The last value of each key arrives last."""
    writer.flushes = True

    def write(name: bytes) -> None:
        for number in range(300):
            writes.put(name, 0, b"%d" % number)

    threads = [threading.Thread(target=write, args=(name,)) for name in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert writes.flush(5)
    assert dict(writer.log) == dict.fromkeys((b"a", b"b", b"c"), b"299")
