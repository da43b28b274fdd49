"""The history topic on a real broker: made as it should be, read by time, and made again if it is deleted."""

from __future__ import annotations

import logging
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka.admin import ConfigResource

from celery_neli import hooks
from celery_neli.config import Config
from celery_neli.exceptions import NeliError
from celery_neli.history.recorder import Recorder
from celery_neli.history.topic import HistoryFollower, read_runs
from celery_neli.hooks import SlotEvent
from tests.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from celery_neli.history.records import Record
    from tests.kafka.cluster import KafkaCluster

pytestmark = pytest.mark.integration
LOG = logging.getLogger("celery_neli.test")


@pytest.fixture
def config(kafka: str, names: Callable[[str], str]) -> Config:
    return Config(group=names("g"), kafka=kafka, name="beat-1")


@pytest.fixture
def recorder(config: Config) -> Iterator[Recorder]:
    found = Recorder(config, retention=7200.0, log=LOG)
    found.start(hooks.slot)
    yield found
    found.stop()


def sent(recorder: Recorder, *entries: str) -> float:
    """Tell that a slot of each was sent now, and wait until that is in Kafka; return the time before."""
    began = time.time()
    for name in entries:
        told: dict[str, Any] = {"entry": name, "task": "t", "outcome": "sent", "role": "leader", "term": 1}
        hooks.slot(SlotEvent(**told, slot=time.time(), id=f"{name} {time.time()}"))
    wait_until(lambda: recorder.queued == 0, timeout=30, what="acknowledgements")
    return began


def test_the_topic_is_made_with_its_retention(config: Config, recorder: Recorder, kafka_node: KafkaCluster) -> None:
    """Four partitions, kept for as long as the setting says."""
    sent(recorder, "e")
    admin = kafka_node.admin()
    assert len(admin.list_topics(config.history_topic, timeout=10).topics[config.history_topic].partitions) == 4
    resource = ConfigResource(ConfigResource.Type.TOPIC, config.history_topic)
    found = admin.describe_configs([resource])[resource].result(10)
    assert (found["retention.ms"].value, found["cleanup.policy"].value) == ("7200000", "delete")


def test_runs_since_a_time_begin_there(config: Config, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker tells the offset of that time, in each partition; a follower begins there, too."""
    monkeypatch.setattr("celery_neli.history.topic.SLACK", 0.0)
    names = [f"e{number}" for number in range(12)]
    sent(recorder, *names)
    time.sleep(0.5)
    later = sent(recorder, *names[:3])
    assert len(read_runs(config, log=LOG)) == 15
    assert {run.entry for run in read_runs(config, log=LOG, since=later)} == set(names[:3])
    assert read_runs(config, log=LOG, since=time.time() + 60) == []
    for since, count in ((later, 3), (0.0, 15), (time.time() + 60, 0), (None, 0)):
        with closing(HistoryFollower(config, LOG, since=since)) as follower:
            found: list[Record] = []
            end = time.monotonic() + 3.0
            while time.monotonic() < end:
                found += follower.poll(0.2)
            assert len(found) == count, since


def test_a_topic_that_is_deleted_is_made_again(config: Config, recorder: Recorder, kafka_node: KafkaCluster) -> None:
    """The recorder makes it again, and a follower goes on with what is written there."""
    sent(recorder, "before")
    with closing(HistoryFollower(config, LOG, since=0.0)) as follower:
        wait_until(lambda: follower.poll(0.2), timeout=20, what="the first record")
        kafka_node.admin().delete_topics([config.history_topic])[config.history_topic].result(30)
        number = 0

        def recorded() -> bool:
            nonlocal number
            number += 1
            hooks.slot(SlotEvent(entry="after", task="t", slot=float(number), outcome="sent", role="leader", term=1))
            time.sleep(0.2)
            try:
                return bool(read_runs(config, log=LOG, name="after", timeout=2.0))
            except NeliError:
                return False

        wait_until(recorded, timeout=60, what="a record in the new topic", interval=0.2)
        assert read_runs(config, log=LOG, name="before") == []
        wait_until(lambda: follower.poll(0.2), timeout=60, what="a record of the new topic")
