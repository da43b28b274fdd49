"""pytest-celery's setup: one Redis or RabbitMQ, three workers with celery-neli, no result backend.

Its nodes are Docker containers where Docker answers, else processes of this machine. With NELI_DOCKER=1 the lack of
Docker is an error.
"""

from __future__ import annotations

import gc
import os
import warnings
from typing import TYPE_CHECKING, Any

import docker
import pytest
from pytest_celery import (
    CELERY_RABBITMQ_BROKER,
    CELERY_REDIS_BROKER,
    CeleryTestWorker,
    CeleryWorkerCluster,
    CeleryWorkerContainer,
)

from tests.pytest_celery import tasks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from celery import Celery


def docker_answers() -> bool:
    """Whether there is a Docker to start containers with."""
    with warnings.catch_warnings():
        # A client that nobody answers leaves its socket to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            client = docker.from_env(timeout=5)
            answers = bool(client.ping())
            client.close()
        except docker.errors.DockerException:
            answers = False
        gc.collect()
    return answers


DOCKER = docker_answers()
if DOCKER:
    from tests.pytest_celery.in_docker import *  # noqa: F403 - fixtures
else:
    from tests.pytest_celery.as_processes import *  # noqa: F403 - fixtures


def pytest_report_header() -> str:
    return f"pytest-celery's nodes: {'Docker containers' if DOCKER else 'processes (no Docker)'}"


@pytest.fixture(autouse=True)
def _docker_if_demanded() -> None:
    if os.environ.get("NELI_DOCKER") == "1" and not DOCKER:
        pytest.fail("NELI_DOCKER=1, and no Docker answers", pytrace=False)


@pytest.fixture(params=[CELERY_REDIS_BROKER, CELERY_RABBITMQ_BROKER])
def celery_broker(request: pytest.FixtureRequest) -> Any:
    """One of them."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def celery_backend_cluster() -> None:
    """No results."""


@pytest.fixture
def default_worker_tasks(default_worker_tasks: set[Any]) -> set[Any]:
    """Ours, and what they need."""
    from tests.fleet import runs

    return {*default_worker_tasks, runs, tasks}


@pytest.fixture
def celery_setup_app(celery_setup_app: Celery, kafka: str, names: Callable[[str], str]) -> Celery:
    """The settings of the workers, and of the app that the test sends with."""
    celery_setup_app.conf.update(
        neli_kafka=kafka,
        neli_group=names("g"),
        imports=["celery_neli.auto"],
        task_ignore_result=True,
    )
    if celery_setup_app.conf.broker_url.startswith("redis"):
        celery_setup_app.conf.broker_transport_options = {
            "visibility_timeout": 5,
            "unacked_restore_interval": 1,
            "unacked_restore_throttle": 1,
        }
    return celery_setup_app


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """Where the workers write their runs."""
    directory = tmp_path / "records"
    directory.mkdir()
    return directory


def _environment(number: int) -> Any:
    @pytest.fixture(name=f"environment_{number}")
    def environment(default_worker_env: dict[str, str], records: Path) -> dict[str, str]:
        """Of one worker."""
        return {**default_worker_env, "FLEET_RECORDS": str(records), "FLEET_NAME": f"worker{number}"}

    return environment


environment_1, environment_2, environment_3 = (_environment(number) for number in (1, 2, 3))


@pytest.fixture
def default_worker_command(default_worker_container_cls: type[CeleryWorkerContainer]) -> list[str]:
    """Two slots a worker."""
    return list(default_worker_container_cls.command("-c", "2"))


@pytest.fixture
def celery_worker_cluster(
    worker_containers: list[CeleryWorkerContainer],
    default_worker_cls: type[CeleryTestWorker],
    default_worker_app: Celery,
) -> Iterator[CeleryWorkerCluster]:
    """All three."""
    cluster = CeleryWorkerCluster(*(default_worker_cls(each, default_worker_app) for each in worker_containers))
    yield cluster
    cluster.teardown()
