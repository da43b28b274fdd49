"""A rig on each task broker."""

from __future__ import annotations

import uuid
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests import services
from tests.brokers.redis_server import RedisServer
from tests.failover.rig import Rig, a_rig
from tests.kafka.cluster import KafkaCluster

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    Rigs = Callable[..., AbstractContextManager[Rig]]


@pytest.fixture(scope="module")
def failover_kafka(kafka_libs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    """A Kafka node that may be restarted."""
    java = services.java()
    assert java is not None, "kafka_libs has asked for it"
    directory = tmp_path_factory.mktemp("kafka-failover")
    with KafkaCluster(nodes=1, java=java, libs=kafka_libs, directory=directory) as cluster:
        yield cluster


@pytest.fixture
def rigs(request: pytest.FixtureRequest, tmp_path: Path) -> Rigs:
    """Make a rig: `rigs(broker, nodes=1, **settings)` on `redis` or `rabbitmq`, and one Kafka node or three. The task
    broker may be restarted, and loses nothing that it has confirmed.
    """

    @contextmanager
    def make(broker: str, *, nodes: int = 1, **settings: Any) -> Iterator[Rig]:
        kafka = request.getfixturevalue("failover_kafka" if nodes == 1 else "kafka_cluster")
        kafka.start()
        with ExitStack() as stack:
            server: Any
            if broker == "redis":
                program = services.require("redis-server", services.redis_server())
                server = stack.enter_context(RedisServer(program, tmp_path / "redis", durable=True))
                url, options = server.url, {}
            else:
                server = request.getfixturevalue("rabbitmq_server")
                url, options = request.getfixturevalue("rabbitmq_url"), {"confirm_publish": True}
            group = f"failover-{uuid.uuid4().hex[:8]}"
            yield stack.enter_context(a_rig(tmp_path, server, kafka, url, options, neli_group=group, **settings))

    return make
