"""The recorder of the run history: what is told gets into the topic, and what Kafka does costs nobody anything."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from celery import Celery

from celery_neli import hooks
from celery_neli.config import Config
from celery_neli.embedded import EmbeddedKafka
from celery_neli.exceptions import NeliError
from celery_neli.history import recorder as module
from celery_neli.history.recorder import Recorder, recorder_of, start
from celery_neli.history.records import RunRecord, SlotRecord, WorkerRecord
from celery_neli.history.topic import HistoryFollower, read_runs
from celery_neli.hooks import RunEvent, SlotEvent, WorkerEvent
from celery_neli.kafka.writer import Writer
from tests.unit.fakes import FakeLeadership

LOG = logging.getLogger("celery_neli.test.recorder")


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedKafka]:
    with EmbeddedKafka() as kafka:
        yield kafka


def config_for(servers: str, name: str) -> Config:
    return Config(group="test.beat", kafka=servers, topic=name[:100].replace("[", "-").replace("]", ""), name="beat-1")


@pytest.fixture
def config(broker: EmbeddedKafka, request: pytest.FixtureRequest) -> Config:
    return config_for(broker.bootstrap_servers, request.node.name)


Make = Callable[..., Recorder]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Recorder] = []

    def recorder(config: Config) -> Recorder:
        made.append(found := Recorder(config, retention=3600.0, log=LOG))
        found.start(hooks.slot, hooks.run, hooks.worker)
        return found

    yield recorder
    for each in made:
        each.stop()


def slot_event(number: int = 0, **more: Any) -> SlotEvent:
    given = {"entry": "e", "task": "t", "outcome": "sent", "role": "leader", "term": 7, "id": f"id-{number}"}
    return SlotEvent(**{**given, "slot": 1000.0 + number, "at": 1000.5 + number, **more})


def wait_for(condition: Callable[[], Any], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)


def test_what_is_told_is_recorded(config: Config, make: Make) -> None:
    """The topic is made, and each event becomes its record."""
    recorder = make(config)
    hooks.slot(slot_event(policy="misfire", outcome="skipped", count=3, first=990.0, error="why"))
    told = {"entry": "e", "task": "t", "slot": 1000.0, "id": "id-0", "worker": "w", "at": 1001.0}
    hooks.run(RunEvent(**told, state="failed", runtime=0.5, retries=2, error="ValueError: x"))
    hooks.worker(WorkerEvent(worker="w", queues=("celery",), at=999.0))
    assert recorder.queued > 0
    wait_for(lambda: recorder.queued == 0)
    assert (recorder.dropped, recorder.lag) == (0, 0.0)
    with closing(HistoryFollower(config, LOG, since=0.0)) as follower:
        found: list[Any] = []
        wait_for(lambda: found.extend(follower.poll(0.2)) or len(found) == 3)
    assert sorted(found, key=lambda each: each.at) == [
        WorkerRecord(worker="w", at=999.0, queues=("celery",)),
        SlotRecord(
            entry="e", task="t", slot=1000.0, outcome="skipped", at=1000.5, member="beat-1", role="leader", term=7,
            id="id-0", policy="misfire", count=3, first=990.0, error="why",
        ),
        RunRecord(**told, state="failed", runtime=0.5, retries=2, error="ValueError: x"),
    ]  # fmt: skip


def test_the_end_flushes_what_is_left(config: Config, make: Make) -> None:
    """What was told right before the end is in the topic."""
    recorder = make(config)
    for number in range(50):
        hooks.slot(slot_event(number))
    recorder.stop()
    assert len(read_runs(config, log=LOG)) == 50
    hooks.slot(slot_event(99))
    assert recorder.queued == 0  # it listens no more


def test_nothing_is_made_until_something_is_told(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A beat that stands by has no Kafka client for it."""
    made: list[Any] = []
    monkeypatch.setattr(module, "Writer", lambda *given: made.append(given) or Writer(*given))
    make(config_for("127.0.0.1:9", "none"))
    time.sleep(3 * module.LOOK_EVERY)
    assert not made
    hooks.slot(slot_event())
    wait_for(lambda: made)


def test_a_kafka_that_is_away_costs_the_end_a_second(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """Telling takes no time, the end little more than a second, and one line says what was lost."""
    recorder = make(config_for("127.0.0.1:9", "away"))
    began = time.monotonic()
    for number in range(1000):
        hooks.slot(slot_event(number))
    assert time.monotonic() - began < 0.5
    time.sleep(1.0)
    assert recorder.lag > 0
    began = time.monotonic()
    recorder.stop()
    assert time.monotonic() - began < module.FLUSH + module.JOIN + 0.5
    wait_for(lambda: recorder.dropped == 1000)
    wait_for(lambda: "dropped" in caplog.text)
    assert [each.getMessage() for each in caplog.records if "dropped" in each.getMessage()] == [
        "run history records dropped topic=away.history number=1000 reason='Kafka did not take them in time'"
    ]


def test_memory_is_bounded_while_kafka_is_away(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest records are dropped and counted."""
    monkeypatch.setattr(module, "MOST_QUEUED", 10)
    recorder = make(config_for("127.0.0.1:9", "away"))
    for number in range(25):
        hooks.slot(slot_event(number))
    assert (recorder.queued, recorder.dropped) == (10, 15)


def test_history_resumes_when_kafka_is_back(request: pytest.FixtureRequest, make: Make) -> None:
    """What was told in the meantime is recorded, too."""
    with EmbeddedKafka() as kafka:
        config = config_for(kafka.bootstrap_servers, request.node.name)
        recorder = make(config)
        hooks.slot(slot_event(0))
        wait_for(lambda: recorder.queued == 0)
        kafka.broker_down()
        for number in range(1, 6):
            hooks.slot(slot_event(number))
        time.sleep(2.0)
        assert recorder.queued == 5
        kafka.broker_up()
        wait_for(lambda: recorder.queued == 0)
        assert recorder.dropped == 0
        assert len(read_runs(config, log=LOG)) == 6


def test_a_topic_that_is_deleted_is_made_again(request: pytest.FixtureRequest, make: Make) -> None:
    """Records go on; those that were in it are gone."""
    with EmbeddedKafka() as kafka:
        config = config_for(kafka.bootstrap_servers, request.node.name)
        recorder = make(config)
        hooks.slot(slot_event(0))
        wait_for(lambda: recorder.queued == 0)
        kafka.delete_topic(config.history_topic)
        number = 1

        def recorded() -> bool:
            nonlocal number
            hooks.slot(slot_event(number))
            number += 1
            time.sleep(0.3)
            try:
                return len(read_runs(config, log=LOG, timeout=2.0)) > 0
            except NeliError:
                return False

        wait_for(recorded, 30.0)


def test_a_record_that_cannot_be_written_is_dropped_alone(config: Config, make: Make) -> None:
    """As one of an entry with a name of ten thousand characters."""
    recorder = make(config)
    hooks.slot(slot_event(0, entry="x" * 10_000))
    hooks.slot(slot_event(1))
    wait_for(lambda: recorder.queued == 0)
    assert recorder.dropped == 1
    assert [run.slot for run in read_runs(config, log=LOG)] == [1001.0]


def test_a_forked_child_records_nothing(config: Config, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """It inherits the hooks' receivers, and the clients are not its own."""
    recorder = make(config)
    pid = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: pid + 1)
    hooks.slot(slot_event(0))
    assert recorder.queued == 0
    monkeypatch.undo()


def test_one_setting_switches_it_off(broker: EmbeddedKafka) -> None:
    """Then nothing listens."""
    app = Celery("shop", set_as_current=False)
    app.conf.update(neli_group="shop", neli_kafka=broker.bootstrap_servers, neli_history=False)
    assert start(app, FakeLeadership()) is None
    assert recorder_of(app, "beat") is None
    assert not hooks.slot


def test_a_beat_and_a_worker_write_to_the_topic_of_the_beats(broker: EmbeddedKafka) -> None:
    """By the member's own name; the metrics find each recorder."""
    app = Celery("shop", set_as_current=False)
    app.conf.update(neli_group="both", neli_kafka=broker.bootstrap_servers)
    beat, worker = FakeLeadership(), FakeLeadership()
    worker.election = "worker"
    made = [start(app, beat), start(app, worker)]
    try:
        assert [recorder_of(app, each) for each in ("beat", "worker")] == made
        hooks.slot(slot_event(0))
        hooks.run(RunEvent(entry="e", task="t", slot=1000.0, id="id-0", state="started", worker="w"))
    finally:
        for each in made:
            assert each is not None
            each.stop()
    config = Config(group="both.beat", kafka=broker.bootstrap_servers)
    (run,) = read_runs(config, log=LOG)
    assert (run.member, run.worker) == ("me", "w")
