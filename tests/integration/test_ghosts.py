"""The schedule topic on a real broker is deleted, cut or emptied while two beats follow it: they notice, the leader
writes back what was lost, and what is removed then is gone for all.
"""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource
from confluent_kafka.cimpl import NewTopic

from celery_neli.config import Config
from celery_neli.schedule_topic import follower
from celery_neli.schedule_topic import topic as schedule_client
from celery_neli.schedule_topic.codec import ENTRY, STATE, Definition, encode_definition
from celery_neli.schedule_topic.topic import ScheduleTopic
from tests.processes import wait_until
from tests.unit.beats import START, World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.kafka.cluster import KafkaCluster
    from tests.unit.beats import Process

pytestmark = pytest.mark.integration
LOG = logging.getLogger("celery_neli.schedule")
NAMES = [f"r{n}" for n in range(20)]


class Beats:
    """A leader and a standby of a world whose schedule topic is on a real broker."""

    def __init__(self, config: Config, stack: ExitStack) -> None:
        self.config = config
        self.world = World({"e": 3600.0})
        self.leader, self.standby = self.world.leader(), self.world.beat()
        self.topics = [self._join(beat, stack) for beat in self.world.beats]
        self.put(*NAMES)
        self.until(lambda: all(self.running(beat) == {"e", *NAMES} for beat in self.world.beats), "the entries")

    def _join(self, beat: Process, stack: ExitStack) -> ScheduleTopic:
        topic = ScheduleTopic(self.config, log=LOG)
        stack.callback(topic.stop)
        topic.start()
        beat.use(topic)
        return topic

    def put(self, *names: str) -> None:
        value = encode_definition(Definition(task="t", schedule="PT1H", since=START))
        schedule_client.write(self.config, [(ENTRY, name, value) for name in names], log=LOG)

    def remove(self, name: str) -> None:
        schedule_client.write(self.config, [(ENTRY, name, None), (STATE, name, None)], log=LOG)

    def until(self, condition: Callable[[], Any], what: str) -> None:
        """Let both turn until that is so."""

        def turned() -> Any:
            self.world.election.catch_up()
            for beat in self.world.beats:
                beat.turn()
            return condition()

        wait_until(turned, timeout=40, what=what)

    def running(self, beat: Process) -> set[str]:
        return beat.names()

    def shown(self) -> set[str]:
        """What `list` reads."""
        return {name for kind, name in schedule_client.read_all(self.config, log=LOG) if kind == ENTRY}

    def noticed(self) -> bool:
        """Both read the topic from its beginning again, to its end."""
        return all(topic.generation > 0 and topic.whole == topic.generation for topic in self.topics)

    def check(self) -> None:
        """All is there again; a removal is one for both, and for the next leader."""
        self.until(lambda: self.noticed() and self.shown() == set(NAMES), "what was lost")
        self.remove("r0")
        left = {"e", *NAMES[1:]}
        self.until(lambda: all(self.running(beat) == left for beat in self.world.beats), "the removal")
        self.leader.hand_over()
        self.standby.member.lead()
        self.until(lambda: self.standby.leads, "the successor")
        assert self.running(self.standby) == left
        assert self.shown() == set(NAMES[1:])


@pytest.fixture
def beats(kafka: str, names: Callable[[str], str]) -> Iterator[Beats]:
    with ExitStack() as stack:
        yield Beats(Config(group=names("group"), kafka=kafka), stack)


def configure(node: KafkaCluster, topic: str, **settings: str) -> None:
    changes = [
        ConfigEntry(name.replace("_", "."), value, incremental_operation=AlterConfigOpType.SET)
        for name, value in settings.items()
    ]
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=changes)
    node.admin().incremental_alter_configs([resource])[resource].result(10)


def test_a_topic_that_is_deleted_is_written_again(
    beats: Beats, kafka_node: KafkaCluster, caplog: pytest.LogCaptureFixture
) -> None:
    """With a loud line of the leader; the standby may read the topic when all is there again."""
    topic = beats.config.schedule_topic
    kafka_node.admin().delete_topics([topic])[topic].result(10)
    beats.check()
    assert "schedule lost entries=20" in caplog.text


def test_a_topic_that_is_emptied_is_written_again(beats: Beats, kafka_node: KafkaCluster) -> None:
    """kafka-delete-records: Kafka reports nothing to a reader that is past what is deleted."""
    topic = beats.config.schedule_topic
    configure(kafka_node, topic, cleanup_policy="compact,delete")
    for partition in range(17):
        place = TopicPartition(topic, partition, -1)
        kafka_node.admin().delete_records([place])[place].result(10)
    configure(kafka_node, topic, cleanup_policy="compact")
    beats.check()


def test_a_topic_that_is_made_again_at_once_is_noticed(beats: Beats, kafka_node: KafkaCluster) -> None:
    """By another client, or by a beat that found it missing."""
    topic = beats.config.schedule_topic
    kafka_node.admin().delete_topics([topic])[topic].result(10)

    def made() -> bool:
        new = NewTopic(topic, 17, replication_factor=1, config={"cleanup.policy": "compact"})
        try:
            kafka_node.admin().create_topics([new])[topic].result(10)
        except KafkaException as exc:
            return bool(exc.args[0].name() == "TOPIC_ALREADY_EXISTS")  # a beat was faster, or it is there still
        return True

    wait_until(made, timeout=20, what="another topic")
    beats.check()


def test_a_beat_that_was_cut_off_for_long_makes_up_for_removals(
    beats: Beats, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It reads all of the topic again. What is not there was removed, and nothing is written back."""
    monkeypatch.setattr(follower, "boottime", lambda: time.monotonic() + 2 * follower.CUT_OFF)
    beats.put("another")
    beats.until(beats.noticed, "another reading")
    everything = {*NAMES, "another"}
    beats.until(lambda: all(beats.running(beat) == {"e", *everything} for beat in beats.world.beats), "the entries")
    assert beats.shown() == everything
    assert "schedule missed" in caplog.text
    assert "schedule lost" not in caplog.text
