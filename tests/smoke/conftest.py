"""Members of an election as processes, and what they sent."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka import KafkaException

from tests.smoke.members import SCHEDULE, Members, members

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.kafka.cluster import KafkaCluster


@pytest.fixture
def election(tmp_path: Path, names: Callable[[str], str], redis_url: str) -> Iterator[Members]:
    """An election without members, by default settings; `neli_kafka` is for the test to fill in. Tasks go to Redis."""
    with members(tmp_path, neli_group=names("g"), broker_url=redis_url, beat_schedule=SCHEDULE) as started:
        yield started


@pytest.fixture
def on_cluster(election: Members, kafka_cluster: KafkaCluster) -> Members:
    """An election on three brokers, which may be killed."""
    election.settings["neli_kafka"] = kafka_cluster.bootstrap_servers
    return election


@pytest.fixture
def on_node(election: Members, kafka: str) -> Members:
    """An election on the one broker that all tests share."""
    election.settings["neli_kafka"] = kafka
    return election


@pytest.fixture
def terms(redis_url: str) -> Callable[[], list[int]]:
    """Read the terms of all messages that beats have sent, in the order of their arrival."""
    import redis

    def read() -> list[int]:
        with redis.Redis.from_url(redis_url) as client:
            newest_first = client.lrange("celery", 0, -1)
        headers: list[dict[str, Any]] = [json.loads(each)["headers"] for each in reversed(newest_first)]
        return [each["neli_beat_term"] for each in headers]

    return read


@pytest.fixture
def in_group(request: pytest.FixtureRequest) -> Callable[[str], set[str]]:
    """Ask Kafka for the names of a consumer group's members; the empty set while it is rebalancing."""

    def describe(group: str) -> set[str]:
        cluster = request.getfixturevalue("_kafka_cluster" if "kafka_cluster" in request.fixturenames else "kafka_node")
        try:
            found = cluster.admin().describe_consumer_groups([group], request_timeout=5)[group].result(10)
        except KafkaException:
            return set()
        return {each.client_id for each in found.members} if found.state.name == "STABLE" else set()

    return describe
