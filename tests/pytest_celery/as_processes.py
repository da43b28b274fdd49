"""pytest-celery's nodes as processes of this machine."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from pytest_celery import CeleryWorkerContainer

from tests import services
from tests.processes import free_ports
from tests.pytest_celery.local import LocalContainer, LocalRabbitMQ, LocalRedis

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def default_redis_broker(default_redis_broker_command: list[str], tmp_path: Path) -> Iterator[LocalRedis]:
    """Redis."""
    services.require("redis-server", services.redis_server())
    (port,) = free_ports(1)
    command = [*default_redis_broker_command, "--bind", "127.0.0.1", "--port", str(port)]
    with LocalContainer(command, directory=tmp_path, environment={}, content={}) as process:
        redis = LocalRedis(process)
        assert redis.ready()
        yield redis


@pytest.fixture
def default_rabbitmq_broker(rabbitmq_url: str) -> LocalRabbitMQ:
    """RabbitMQ: a virtual host of the one that all tests share, for it takes ten seconds to start."""
    return LocalRabbitMQ(rabbitmq_url)


@pytest.fixture
def worker_containers(
    default_worker_command: list[str],
    default_worker_initial_content: dict[str, bytes],
    environment_1: dict[str, str],
    environment_2: dict[str, str],
    environment_3: dict[str, str],
    tmp_path: Path,
) -> Iterator[list[CeleryWorkerContainer]]:
    """Three workers."""
    with ExitStack() as stack:
        workers = []
        for environment in (environment_1, environment_2, environment_3):
            process = LocalContainer(
                default_worker_command,
                directory=tmp_path,
                environment=environment,
                content=default_worker_initial_content,
            )
            workers.append(CeleryWorkerContainer(stack.enter_context(process)))
        assert all(worker.ready() for worker in workers)
        yield workers
