"""Services for every test: real Kafka, Redis and RabbitMQ, and names that keep tests apart. See `CONTRIBUTING.md`."""

from __future__ import annotations

import importlib.util
import sys
import uuid
from typing import TYPE_CHECKING

import pytest

from tests import services
from tests.brokers.rabbitmq_server import RabbitMQServer
from tests.brokers.redis_server import RedisServer
from tests.kafka import libs
from tests.kafka.cluster import KafkaCluster
from tests.kafka.secured import SecuredKafka

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
# The fixture `embedded_kafka`, as users get it; and which test runs beside which.
pytest_plugins = ["celery_neli.testing", "tests.lanes"]


def pytest_report_header() -> list[str]:
    """Say which services the tests have."""
    if services.java() is None:
        kafka = "MISSING (no Java 17 or newer)"
    elif libs.fetched():
        kafka = f"real, {libs.version()}"
    elif services.maven():
        kafka = f"real, {libs.version()}, to be fetched by Maven"
    else:
        kafka = "MISSING (no Maven to fetch it)"
    redis = "real" if services.redis_server() else "MISSING (no redis-server)"
    rabbitmq = "real" if services.rabbitmq_server() else "MISSING (no rabbitmq-server)"
    promtool = "yes" if services.promtool() else "MISSING (no prometheus)"
    embedded = "yes" if importlib.util.find_spec("confluent_kafka") else "MISSING (no confluent-kafka)"
    browser = "yes" if services.chromium() else "MISSING (no chromium, or no chromedriver)"
    policy = "fails" if services.in_ci() else "is skipped"
    found = f"services: kafka {kafka}; embedded kafka {embedded}; redis {redis}; rabbitmq {rabbitmq}"
    found += f"; promtool {promtool}; browser {browser}"
    return [found, f"what lacks its service {policy}"]


@pytest.fixture(autouse=True)
def sessions_end() -> Iterator[None]:
    """No session of the schedule topic outlives its test: each has a dozen sockets and files, for a minute."""
    yield
    if (held := sys.modules.get("celery_neli.schedule_topic.held")) is not None:
        held.close_all()


@pytest.fixture(scope="session")
def kafka_libs() -> Path:
    """The directory of Kafka's jars, fetched once."""
    services.require("Java 17 or newer, for Apache Kafka", services.java())
    maven = services.maven()
    services.require("Maven, to fetch Apache Kafka", maven or libs.fetched())
    try:
        return libs.fetch(maven or "")
    except RuntimeError as error:
        services.require(f"Apache Kafka ({error})", present=False)
        raise


@pytest.fixture(scope="session")
def kafka_node(kafka_libs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    """One real broker for the session. For reading and writing only: tests of faults take `kafka_cluster`."""
    with _kafka(1, kafka_libs, tmp_path_factory.mktemp("kafka-node")) as cluster:
        yield cluster


@pytest.fixture
def kafka(kafka_node: KafkaCluster) -> str:
    """The bootstrap servers of one real broker, which all tests share: take names from `names`."""
    return kafka_node.bootstrap_servers


@pytest.fixture(scope="session")
def secured_kafka(kafka_libs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredKafka]:
    """One real broker with TLS, SASL and the authorizer, which all tests share: take users and topics from `names`."""
    java = services.java()
    assert java is not None, "kafka_libs has asked for it"
    with SecuredKafka(java=java, libs=kafka_libs, directory=tmp_path_factory.mktemp("kafka-secured")) as node:
        yield node


@pytest.fixture(scope="session")
def _kafka_cluster(kafka_libs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    with _kafka(3, kafka_libs, tmp_path_factory.mktemp("kafka-cluster")) as cluster:
        yield cluster


@pytest.fixture
def kafka_cluster(_kafka_cluster: KafkaCluster) -> Iterator[KafkaCluster]:
    """Three real brokers, to be killed, frozen and stopped. Found whole by every test, whatever the one before did."""
    _kafka_cluster.start()
    yield _kafka_cluster
    _kafka_cluster.start()


def _kafka(nodes: int, jars: Path, directory: Path) -> KafkaCluster:
    java = services.java()
    assert java is not None, "kafka_libs has asked for it"
    return KafkaCluster(nodes=nodes, java=java, libs=jars, directory=directory)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis for the session, which keeps nothing on disk. Tests share it: `redis_url` empties it first."""
    program = services.require("redis-server", services.redis_server())
    with RedisServer(program, tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The URL of an empty Redis."""
    redis_server.empty()
    return redis_server.url


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of the test's own, to be stopped, killed and started again: it loses nothing."""
    program = services.require("redis-server", services.redis_server())
    with RedisServer(program, tmp_path / "redis", durable=True) as server:
        yield server


@pytest.fixture(scope="session")
def _rabbitmq_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQServer]:
    program = services.require("rabbitmq-server", services.rabbitmq_server())
    with RabbitMQServer(program, tmp_path_factory.mktemp("rabbitmq")) as server:
        yield server


@pytest.fixture
def rabbitmq_server(_rabbitmq_server: RabbitMQServer) -> RabbitMQServer:
    """A RabbitMQ for the session, which takes long to start. It may be stopped and killed: every test finds it running,
    whatever the one before did.
    """
    _rabbitmq_server.start()
    return _rabbitmq_server


@pytest.fixture
def rabbitmq_url(rabbitmq_server: RabbitMQServer) -> Iterator[str]:
    """The URL of a virtual host of the test's own: nobody else's queues. It survives the broker's end."""
    vhost = f"test-{uuid.uuid4().hex[:12]}"
    yield rabbitmq_server.make_vhost(vhost)
    rabbitmq_server.start()
    rabbitmq_server.delete_vhost(vhost)


@pytest.fixture
def names(request: pytest.FixtureRequest) -> Callable[[str], str]:
    """Return a maker of names (`names("topic")`) for topics and groups, that no other test has: tests share brokers.

    The same word gives the same name within a test, another in the next test, and in the next run.
    """
    nonce = uuid.uuid4().hex[:8]
    test = "".join(c if c.isalnum() else "-" for c in request.node.name)[:60]
    return lambda word: f"{test}.{word}.{nonce}"
