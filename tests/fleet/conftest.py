"""A fleet on each task broker."""

from __future__ import annotations

import uuid
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests import services
from tests.brokers.redis_server import RedisServer
from tests.fleet.fleet import Fleet
from tests.kafka.cluster import KafkaCluster
from tests.smoke.members import members

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.brokers.server import Server

REDIS = {
    # What a killed worker held comes back after 5 s and not after an hour.
    "visibility_timeout": 5,
    # And is looked for every second and not every hundred (kombu 5.7; earlier ones cannot be told).
    "unacked_restore_interval": 1,
    "unacked_restore_throttle": 1,
}


@pytest.fixture(scope="module")
def fleet_kafka(kafka_libs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    """A Kafka node that may be restarted."""
    java = services.java()
    assert java is not None, "kafka_libs has asked for it"
    with KafkaCluster(nodes=1, java=java, libs=kafka_libs, directory=tmp_path_factory.mktemp("kafka-fleet")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def _fleets(
    request: pytest.FixtureRequest, fleet_kafka: KafkaCluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Fleet]]:
    made: dict[str, Fleet] = {}

    def get(kind: str) -> Fleet:
        for other in made.keys() - {kind}:
            made[other].stop()
        if kind not in made:
            directory = tmp_path_factory.mktemp(f"fleet-{kind}")
            if kind == "redis":
                program = services.require("redis-server", services.redis_server())
                server: Any = stack.enter_context(RedisServer(program, directory / "redis", durable=True))
                made[kind] = stack.enter_context(a_fleet(directory, server, fleet_kafka, server.url, REDIS))
            else:
                server = request.getfixturevalue("_rabbitmq_server")
                server.start()
                url = server.make_vhost(f"fleet-{uuid.uuid4().hex[:8]}")
                made[kind] = stack.enter_context(a_fleet(directory, server, fleet_kafka, url, {}))
        return made[kind]

    with ExitStack() as stack:
        yield get


@pytest.fixture
def fleet(request: pytest.FixtureRequest, _fleets: Callable[[str], Fleet]) -> Fleet:
    """The fleet of the module on one task broker (the parameter: redis, rabbitmq), as the test before left it. The
    broker may be restarted, and loses nothing then.
    """
    return _fleets(request.param)


@contextmanager
def a_fleet(
    directory: Path, broker: Server, kafka: KafkaCluster, url: str, options: dict[str, Any], **settings: Any
) -> Iterator[Fleet]:
    """A fleet with these settings, ended at the end."""
    with members(
        directory, project="tests.fleet.project", neli_group=f"fleet-{uuid.uuid4().hex[:8]}",
        neli_kafka=kafka.bootstrap_servers, broker_url=url, broker_transport_options=options,
        broker_connection_retry_on_startup=True, task_ignore_result=True, **settings,
    ) as started:  # fmt: skip
        fleet = Fleet(members=started, broker=broker, kafka=kafka)
        try:
            yield fleet
        finally:
            fleet.stop()
