"""Services for every test: real Kafka, Redis, and names that keep tests apart. See `CONTRIBUTING.md`."""

from __future__ import annotations

import importlib.util
import uuid
from typing import TYPE_CHECKING

import pytest

from tests import services
from tests.kafka import libs
from tests.kafka.cluster import KafkaCluster
from tests.processes import free_ports, start_process, stop_process, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
# The fixture `embedded_kafka`, as users get it.
pytest_plugins = ["celery_neli.testing"]


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
    embedded = "yes" if importlib.util.find_spec("confluent_kafka") else "MISSING (no confluent-kafka)"
    policy = "fails" if services.in_ci() else "is skipped"
    return [f"services: kafka {kafka}; embedded kafka {embedded}; redis {redis}", f"what lacks its service {policy}"]


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
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Redis for the session, which keeps nothing on disk. Tests share it: `redis_url` empties it first."""
    server = services.redis_server()
    services.require("redis-server", server)
    assert server is not None
    (port,) = free_ports(1)
    directory = tmp_path_factory.mktemp("redis")
    with (directory / "log").open("wb") as log:
        settings = f"--bind 127.0.0.1 --port {port} --appendonly no --dir {directory}".split()
        process = start_process([server, "--save", "", *settings], stdout=log, stderr=log)
    url = f"redis://127.0.0.1:{port}/0"
    try:
        wait_until(lambda: _redis_answers(url), timeout=20, what=f"Redis, see {directory}/log")
        yield url
    finally:
        stop_process(process)


@pytest.fixture
def redis_url(redis_server: str) -> str:
    """The URL of an empty Redis."""
    import redis

    with redis.Redis.from_url(redis_server) as client:
        client.flushall()
    return redis_server


def _redis_answers(url: str) -> bool:
    import redis

    with redis.Redis.from_url(url) as client:
        try:
            return bool(client.ping())
        except redis.ConnectionError:
            return False


@pytest.fixture
def names(request: pytest.FixtureRequest) -> Callable[[str], str]:
    """Return a maker of names (`names("topic")`) for topics and groups, that no other test has: tests share brokers.

    The same word gives the same name within a test, another in the next test, and in the next run.
    """
    nonce = uuid.uuid4().hex[:8]
    test = "".join(c if c.isalnum() else "-" for c in request.node.name)[:60]
    return lambda word: f"{test}.{word}.{nonce}"
