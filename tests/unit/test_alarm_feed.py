"""What the watcher reads of the schedule topic, on the embedded Kafka."""

from __future__ import annotations

import logging
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from celery_neli.config import Config
from celery_neli.schedule_topic.codec import STATE, State, encode_state
from celery_neli.schedule_topic.feed import ScheduleFeed
from celery_neli.schedule_topic.topic import write
from tests.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_neli.embedded import EmbeddedKafka

LOG = logging.getLogger(__name__)


@pytest.fixture
def config(embedded_kafka: EmbeddedKafka) -> Config:
    return Config(group="shop.beat", kafka=embedded_kafka.bootstrap_servers)


@pytest.fixture
def feed(config: Config) -> Iterator[ScheduleFeed]:
    with closing(ScheduleFeed(config, LOG)) as made:
        yield made


def write_states(config: Config, *names: str) -> None:
    value = encode_state(State(last=1_800_000_000.0, runs=1, epoch=5))
    write(config, [(STATE, name, value) for name in names], log=LOG)


def read(feed: ScheduleFeed, names: set[str]) -> None:
    """Read until these names have come."""
    found: set[str] = set()

    def came() -> bool:
        found.update(name for _, name, _ in feed.poll(0.1))
        return found >= names

    wait_until(came, timeout=20, what=f"{names}, not only {found}")


def test_all_is_read_from_the_first_record_on_and_then_what_is_new(config: Config, feed: ScheduleFeed) -> None:
    write_states(config, "a", "b")
    read(feed, {"a", "b"})
    write_states(config, "c")
    read(feed, {"c"})


def test_what_was_written_and_not_read_yet_is_known_to_be_missing(config: Config, feed: ScheduleFeed) -> None:
    """Of a slot whose state is on its way, no alarm may be raised."""
    write_states(config, "a")
    read(feed, {"a"})
    asked = time.time()
    assert feed.read_until() >= asked
    write_states(config, "b")
    before = feed.read_until()
    assert before < time.time()
    written = time.time()
    feed_is_behind = feed.read_until()
    assert feed_is_behind < written
    read(feed, {"b"})
    wait_until(lambda: feed.read_until() >= written, timeout=5, what="all is read")


def test_a_topic_that_does_not_exist_holds_nothing(feed: ScheduleFeed) -> None:
    """All of it is read, then, in a fleet whose beats have never started."""

    def known() -> bool:
        assert feed.poll(0.05) == []
        return feed.read_until() > time.time() - 1

    wait_until(known, timeout=20, what="an answer")


def test_without_an_answer_it_is_not_known_how_far_was_read(
    config: Config, feed: ScheduleFeed, embedded_kafka: EmbeddedKafka
) -> None:
    write_states(config, "a")
    read(feed, {"a"})
    until = feed.read_until()
    embedded_kafka.broker_down()
    asked = time.time()
    assert until <= feed.read_until() < asked
    embedded_kafka.broker_up()
    wait_until(lambda: feed.poll(0.05) == [] and feed.read_until() > asked, timeout=30, what="an answer")


def test_a_topic_that_is_made_again_is_read_again(
    config: Config, feed: ScheduleFeed, embedded_kafka: EmbeddedKafka
) -> None:
    write_states(config, "a", "b", "c")
    read(feed, {"a", "b", "c"})
    generation = feed.generation
    embedded_kafka.delete_topic(config.schedule_topic)
    embedded_kafka.create_topic(config.schedule_topic, partitions=17)
    write_states(config, "d")
    found: list[Any] = []

    def came() -> bool:
        found.extend(feed.poll(0.1))
        feed.read_until()
        return "d" in [name for _, name, _ in found]

    wait_until(came, timeout=30, what="the new topic's record")
    assert feed.generation > generation
