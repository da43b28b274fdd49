"""Reading the history topic: the latest runs, those since a time, and what comes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing

import pytest

from celery_neli.config import Config
from celery_neli.embedded import EmbeddedKafka
from celery_neli.exceptions import ConfigurationError, NeliError
from celery_neli.history import topic
from celery_neli.history.records import (
    Record,
    RunRecord,
    SlotRecord,
    WorkerRecord,
    encode,
    key,
    key_of,
    partition_of,
)
from celery_neli.history.topic import HistoryFollower, NoHistory, read_runs
from celery_neli.kafka.client_log import ClientLog
from celery_neli.kafka.properties import history_producer_properties
from celery_neli.kafka.writer import Writer

LOG = logging.getLogger("celery_neli.test")

Write = Callable[[Iterable[Record]], None]


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedKafka]:
    with EmbeddedKafka() as kafka:
        yield kafka


@pytest.fixture
def config(broker: EmbeddedKafka, request: pytest.FixtureRequest) -> Config:
    return Config(group="test.beat", kafka=broker.bootstrap_servers, topic=request.node.name[:100].replace("[", "-"))


@pytest.fixture
def write(broker: EmbeddedKafka, config: Config) -> Iterator[Write]:
    broker.create_topic(config.history_topic, partitions=4)
    yield (writer := Writing(config))
    writer.writer.close()


class Writing:
    def __init__(self, config: Config) -> None:
        log = ClientLog(LOG, config.properties)
        self.writer = Writer(config, log, config.history_topic, history_producer_properties(config))

    def __call__(self, records: Iterable[Record]) -> None:
        self.raw((key_of(each), encode(each)) for each in records)

    def raw(self, records: Iterable[tuple[bytes, bytes]]) -> None:
        assert not self.writer.send_all([(partition_of(name), name, value) for name, value in records], 10.0)


def runs_of(entry: str, count: int, *, start: float = 1000.0) -> Iterator[Record]:
    for number in range(count):
        slot, id_ = start + number, f"{entry}-{number}"
        yield SlotRecord(entry=entry, task="t", slot=slot, outcome="sent", at=slot + 0.1, member="a", id=id_)
        yield RunRecord(entry=entry, task="t", slot=slot, id=id_, state="succeeded", at=slot + 0.5, worker="w")


def test_a_topic_that_does_not_exist_is_no_history(config: Config) -> None:
    """The error says how history comes to be."""
    with pytest.raises(NoHistory, match="neli_history"):
        read_runs(config, log=LOG)


def test_the_latest_runs_of_all_entries(config: Config, write: Write) -> None:
    """They are the newest ones, the newest first, with what beats and workers told together."""
    write(each for entry in "abcdefgh" for each in runs_of(entry, 10))
    found = read_runs(config, log=LOG, limit=16)
    assert [run.slot for run in found] == [1009.0] * 8 + [1008.0] * 8
    assert {(run.outcome, run.state) for run in found} == {("sent", "succeeded")}
    assert len(read_runs(config, log=LOG)) == 80


def test_an_entry_that_seldom_runs_is_found_far_behind(
    config: Config, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its partition is read back until there are enough runs, and no other."""
    monkeypatch.setattr(topic, "FIRST_PIECE", 10)
    busy = next(name for name in map(str, range(50)) if partition_of(key(name)) == partition_of(key("seldom")))
    write(runs_of("seldom", 5))
    write(runs_of(busy, 200, start=5000.0))
    found = read_runs(config, log=LOG, name="seldom")
    assert [run.slot for run in found] == [1004.0, 1003.0, 1002.0, 1001.0, 1000.0]
    assert {run.entry for run in read_runs(config, log=LOG, limit=3)} == {busy}


def test_a_run_whose_beginning_lies_further_back_is_whole(
    config: Config, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The records of one run may lie in two pieces of the log."""
    monkeypatch.setattr(topic, "FIRST_PIECE", 3)
    sent, done = runs_of("long", 1)
    write([sent, *(WorkerRecord(worker="long", at=1.0) for _ in range(4)), done])
    (found,) = read_runs(config, log=LOG, limit=1)
    assert (found.outcome, found.state) == ("sent", "succeeded")


def test_runs_since_a_time(config: Config, write: Write) -> None:
    """By what happened last: a slot that is long past and was decided of late belongs to it."""
    write(runs_of("a", 10))
    late = SlotRecord(entry="b", task="t", slot=900.0, outcome="skipped", at=1009.0, member="a", policy="misfire")
    write([late])
    assert [run.slot for run in read_runs(config, log=LOG, since=1008.0)] == [1009.0, 1008.0, 900.0]


def test_what_cannot_be_read_is_skipped_alone(config: Config, write: Writing) -> None:
    """A stranger's bytes, a newer version's record."""
    write.raw([(b"a", b"\xff"), (b"a", b'{"v":2,"kind":"slot"}'), (b"", b"")])
    write(runs_of("a", 1))
    assert [run.slot for run in read_runs(config, log=LOG)] == [1000.0]


def test_a_limit_that_is_none_is_refused(config: Config) -> None:
    """Memory stays bounded."""
    for limit in (0, 1 << 30):
        with pytest.raises(ConfigurationError, match="limit"):
            read_runs(config, log=LOG, limit=limit)


def test_a_kafka_that_is_away_costs_the_timeout() -> None:
    """And the error says what does not answer."""
    began = time.monotonic()
    with pytest.raises(NeliError, match=r"127\.0\.0\.1:9"):
        read_runs(Config(group="g", kafka="127.0.0.1:9"), log=LOG, timeout=1.0)
    assert time.monotonic() - began < 4.0


def collect(follower: HistoryFollower, count: int) -> list[Record]:
    found: list[Record] = []
    deadline = time.monotonic() + 10.0
    while len(found) < count and time.monotonic() < deadline:
        found += follower.poll(0.2)
    return found


def test_a_follower_sees_what_is_written(config: Config, write: Write) -> None:
    """From now on, or since a time; workers' records, too."""
    write(runs_of("old", 1))
    with closing(HistoryFollower(config, LOG)) as new, closing(HistoryFollower(config, LOG, since=0.0)) as all_:
        assert new.poll(0.5) == []
        write([WorkerRecord(worker="w", at=1.0)])
        assert collect(new, 1) == [WorkerRecord(worker="w", at=1.0)]
        assert len(collect(all_, 3)) == 3
        assert new.problem == ""


def test_a_follower_waits_for_its_topic(broker: EmbeddedKafka, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what is missing until there is one, and `poll` takes no longer than it is told to."""
    monkeypatch.setattr(topic, "LOOK_EVERY", 0.1)
    with closing(HistoryFollower(config, LOG, since=0.0)) as follower:
        began = time.monotonic()
        assert follower.poll(1.0) == []
        assert time.monotonic() - began < 2.5
        assert "there is no history topic" in follower.problem
        broker.create_topic(config.history_topic, partitions=4)
        with closing((writing := Writing(config)).writer):
            writing(runs_of("a", 1))
        assert len(collect(follower, 2)) == 2
