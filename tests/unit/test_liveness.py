"""Clients that hear nothing although brokers answer: when they read again from where they stand, and when they are
replaced, with brokers that answer what the test says.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from celery_neli.config import Config
from celery_neli.election.records import End, Entry, Event, Started
from celery_neli.kafka import journal as journal_module
from celery_neli.kafka import liveness as liveness_module
from celery_neli.kafka import reader as reader_module
from celery_neli.kafka import writer as writer_module
from celery_neli.kafka.client_log import ClientLog
from celery_neli.kafka.journal import KafkaJournal
from celery_neli.kafka.liveness import PATIENCE, PATIENCE_MOST, QUIET, Brokers, Probe, Step, Watch
from tests.unit.fakes import FakeBrokers

LOG = logging.getLogger("celery_neli.kafka")
AT_END, NO_BROKER = KafkaError(-191), KafkaError(-195)  # _PARTITION_EOF, _TRANSPORT
CONFIG = Config(group="g", topic="t", kafka="k:1")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def steps(watch: Watch, clock: Clock, heard: Callable[[], float], seconds: float) -> list[tuple[float, Step]]:
    """What is to be done within so many seconds, and after how many, looking ten times a second."""
    done, began = [], clock.now
    while clock.now < began + seconds:
        clock.now += 0.1
        step = watch.look(heard())
        if step is Step.REPLACE:
            watch.replaced()
        if step is not Step.WAIT:
            done.append((clock.now - began, step))
    return done


def test_a_client_that_hears_is_left_alone_and_no_broker_is_asked() -> None:
    """A record now and then is enough."""
    clock, cluster = Clock(), FakeBrokers()
    watch = Watch(cluster, rereads=True, clock=clock)
    assert steps(watch, clock, lambda: clock.now - QUIET / 2, 60) == []
    assert cluster.asked == 0


def test_a_deaf_reader_reads_again_and_is_replaced_within_ten_seconds() -> None:
    """In this order."""
    clock, cluster = Clock(), FakeBrokers()
    done = steps(Watch(cluster, rereads=True, clock=clock), clock, lambda: 100.0, 10)
    assert [step for _, step in done] == [Step.REREAD, Step.REPLACE]
    assert QUIET <= done[0][0] < QUIET + 0.5
    assert done[1][0] >= 2 * QUIET + PATIENCE


def test_a_reader_that_is_silent_rightly_only_reads_again() -> None:
    """Reading again, it is reported the end: no broker has to be asked."""
    clock, cluster, last = Clock(), FakeBrokers(), [100.0]
    watch = Watch(cluster, rereads=True, clock=clock)
    for _ in range(600):
        clock.now += 0.1
        step = watch.look(last[0])
        assert step is not Step.REPLACE
        if step is Step.REREAD:
            last[0] = clock.now
    assert cluster.asked == 0


def test_while_brokers_are_away_nothing_is_replaced() -> None:
    """Once they are back, the client has its time to find them by itself; if it does not, it is replaced."""
    clock, cluster = Clock(), FakeBrokers()
    cluster.answers = False
    watch = Watch(cluster, rereads=True, clock=clock)
    assert [step for _, step in steps(watch, clock, lambda: 100.0, 60)] == [Step.REREAD]
    cluster.answers = True
    ((after, step),) = steps(watch, clock, lambda: 100.0, 5)
    assert step is Step.REPLACE
    assert after >= PATIENCE


def test_a_client_that_finds_the_brokers_by_itself_is_not_replaced() -> None:
    """It hears within its time."""
    clock, cluster = Clock(), FakeBrokers()
    cluster.answers = False
    watch = Watch(cluster, rereads=True, clock=clock)
    steps(watch, clock, lambda: 100.0, 60)
    cluster.answers = True
    assert steps(watch, clock, lambda: 100.0, PATIENCE - 0.5) == []
    assert steps(watch, clock, lambda: clock.now, 60) == []


def test_if_new_clients_hear_nothing_either_they_are_made_ever_less_often_and_warned_of_once() -> None:
    """Some other fault then; hearing something forgets all that."""
    clock, cluster = Clock(), FakeBrokers()
    watch = Watch(cluster, clock=clock)
    assert watch.first
    done = [after for after, _ in steps(watch, clock, lambda: 100.0, 600)]
    gaps = [later - earlier for earlier, later in pairwise(done)]
    assert gaps[0] < gaps[1] < gaps[2]
    assert gaps[-1] > PATIENCE_MOST
    assert not watch.first
    assert steps(watch, clock, lambda: clock.now, 1) == []
    assert watch.first


class Client:
    """A reader or producer of a log whose last record is at offset 7, of epoch 3; `deaf`: it is reported nothing."""

    made: list[Client]
    deaf = False

    def __init__(self, properties: dict[str, Any]) -> None:
        self.placed: list[tuple[int, int]] = []  # offset, epoch
        self.unreported: list[Any] = []
        self.metadata = SimpleNamespace(brokers={1: None}, topics={"t": SimpleNamespace(error=None, partitions={})})
        self.made.append(self)

    def poll(self, timeout: float) -> Any:
        return self.unreported.pop(0) if self.unreported and not self.deaf else None

    def incremental_assign(self, parts: list[Any]) -> None:
        offset = parts[0].offset
        self.placed.append((offset, parts[0].leader_epoch))
        record = SimpleNamespace(
            partition=lambda: 0, error=lambda: None, offset=lambda: 7, leader_epoch=lambda: 3, value=lambda: b"",
            key=lambda: None, timestamp=lambda: (1, 0),
        )  # fmt: skip
        end = SimpleNamespace(partition=lambda: 0, error=lambda: AT_END, offset=lambda: 8)
        self.unreported = [end] if offset == 8 else [record, end]

    def incremental_unassign(self, parts: list[Any]) -> None: ...

    def list_topics(self, topic: str, timeout: float) -> Any:
        if self.deaf:
            raise KafkaException(NO_BROKER)
        return self.metadata

    def flush(self, timeout: float) -> int:
        return 0

    def purge(self, **how: bool) -> None: ...

    def close(self) -> None: ...


class FoundTopic:
    """A topic that is found at the first look."""

    def __init__(self, *_: Any) -> None:
        self.found = False

    def poll(self) -> bool:
        self.found = True
        return True

    def allow(self, operation: str) -> None: ...


@pytest.mark.parametrize("led", [True, False])
def test_brokers_answer_if_a_new_client_finds_them_and_the_topic_led(led: bool) -> None:
    """A broker that is starting may know itself, and not lead yet."""
    Client.made = []

    def make(properties: dict[str, Any]) -> Client:
        client = Client(properties)
        partition = SimpleNamespace(leader=1 if led else -1)
        client.metadata.topics["t"] = SimpleNamespace(error=None, partitions={0: partition})
        return client

    assert Brokers(CONFIG, ClientLog(LOG, {}), "t", make=make).find() is led


def test_a_client_without_brokers_does_not_hear() -> None:
    """It has no broker to ask."""
    Client.made = []
    client, heard = Client({}), []
    for client.deaf in (False, True):
        probe = Probe(CONFIG, ClientLog(LOG, {}), "t")
        made = probe.heard
        assert not probe.is_lost(client)
        heard.append(probe.heard > made)
    assert heard == [True, False]


def test_a_journal_replaces_a_deaf_reader_where_it_stood(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It goes on where the records ended, no start is reported again, and one warning says it."""
    clock, cluster = Clock(), FakeBrokers()
    Client.made = []
    for module in (reader_module, liveness_module):
        monkeypatch.setattr(module, "Brokers", lambda *_: cluster)
        monkeypatch.setattr(module, "Watch", lambda brokers, **how: Watch(brokers, clock=clock, **how))
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock))
    monkeypatch.setattr(reader_module, "Consumer", Client)
    monkeypatch.setattr(writer_module, "Producer", Client)
    monkeypatch.setattr(journal_module, "TopicAdmin", FoundTopic)
    journal = KafkaJournal(CONFIG, log=LOG)
    reader = Client.made[0]
    reported: list[Event] = journal.read(0)
    assert reported == [Started(0, 7, oldest=False), Entry(0, 7, b""), End(0)]
    reader.deaf = True
    reported = []
    for _ in range(100):
        clock.now += 0.1
        reported += journal.read(0)
    assert len(Client.made) == 3  # the reader, the producer, and one reader more
    assert Client.made[2].placed[0] == (8, 3)  # with its epoch: a truncated log shows (R9)
    assert set(reported) == {End(0)}
    assert len(caplog.records) == 1
    assert "kafka client deaf: the reader has heard nothing" in caplog.text
