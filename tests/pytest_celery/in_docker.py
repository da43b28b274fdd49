"""pytest-celery's nodes as Docker containers, on the host's network, where the tests' Kafka is."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import docker
import pytest
from pytest_celery import RABBITMQ_CONTAINER_TIMEOUT, CeleryWorkerContainer, RabbitMQContainer, RedisContainer
from pytest_docker_tools import container, fxtr, volume

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
DOCKERFILE = """
FROM python:3.12-slim
RUN pip install --no-cache-dir "celery[redis]" confluent-kafka psutil
COPY . /src
RUN pip install --no-cache-dir /src
WORKDIR /app
"""
PARTS = ("celery_neli", "pyproject.toml", "README.md", "LICENSE")


class OnHost(CeleryWorkerContainer):  # type: ignore[misc]
    """A worker on the host's network: it has no address of its own, for which the wrapper would wait."""

    def ready(self) -> bool:
        """It runs, and says that it is ready."""
        self.reload()
        return self.status == "running" and bool(self._wait_ready())


class PublishedRedis(RedisContainer):  # type: ignore[misc]
    """Redis, reached by workers as by tests: at the port that the host publishes."""

    @property
    def url(self) -> str:
        """The host's."""
        return str(self.host_url)


class PublishedRabbitMQ(RabbitMQContainer):  # type: ignore[misc]
    """RabbitMQ, reached in the same way."""

    @property
    def url(self) -> str:
        """The host's."""
        return str(self.host_url)


@pytest.fixture(scope="session")
def worker_image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An image with this checkout's package."""
    context = tmp_path_factory.mktemp("image")
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, context / part)
    (context / "Dockerfile").write_text(DOCKERFILE)
    client = docker.from_env()
    try:
        image, _ = client.images.build(path=str(context), tag="celery-neli/tests-worker", rm=True)
        yield image.id
    finally:
        client.close()


default_redis_broker = container(
    image="{default_redis_broker_image}",
    ports=fxtr("default_redis_broker_ports"),
    command=fxtr("default_redis_broker_command"),
    wrapper_class=PublishedRedis,
)
default_rabbitmq_broker = container(
    image="{default_rabbitmq_broker_image}",
    ports=fxtr("default_rabbitmq_broker_ports"),
    environment=fxtr("default_rabbitmq_broker_env"),
    wrapper_class=PublishedRabbitMQ,
    timeout=RABBITMQ_CONTAINER_TIMEOUT,
)


def _worker(number: int) -> object:
    return container(
        image="{worker_image}",
        command=fxtr("default_worker_command"),
        environment=fxtr(f"environment_{number}"),
        volumes={
            "{default_worker_volume.name}": {"bind": "/app", "mode": "rw"},
            "{records}": {"bind": "{records}", "mode": "rw"},
        },
        network_mode="host",
        wrapper_class=OnHost,
    )


default_worker_volume = volume(initial_content=fxtr("default_worker_initial_content"))
worker_1, worker_2, worker_3 = (_worker(number) for number in (1, 2, 3))


@pytest.fixture
def worker_containers(worker_1: OnHost, worker_2: OnHost, worker_3: OnHost) -> list[OnHost]:
    """Three workers."""
    return [worker_1, worker_2, worker_3]
