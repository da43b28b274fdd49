"""Leader tasks flow through three workers, and the leader is killed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.fleet import judge, runs
from tests.processes import wait_until
from tests.pytest_celery.tasks import lead

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_celery import CeleryTestSetup, CeleryTestWorker

pytestmark = [pytest.mark.smoke, pytest.mark.slow]
TASKS = 60


def test_nothing_overlaps_and_nothing_is_lost(celery_setup: CeleryTestSetup, records: Path) -> None:
    """Half of the tasks are sent before the leader is killed, half after; another worker takes over."""
    assert celery_setup.ready(docker=True)
    assert len(celery_setup.worker_cluster) == 3

    log = runs.Reader(records)

    def send(first: int, last: int) -> None:
        celery_setup.app.set_current()
        for number in range(first, last):
            lead.apply_async((0.05,), task_id=f"t{number}")

    def done() -> set[str]:
        return judge.done(log.read()[0])

    send(0, TASKS // 2)
    wait_until(lambda: len(done()) >= 5, timeout=60, what="the first tasks")
    leader = leading(celery_setup)
    leader.kill()
    assert leader.container.status == "exited"
    send(TASKS // 2, TASKS)
    wait_until(lambda: len(done()) == TASKS, timeout=60, what="all tasks", interval=0.2)

    ran, _ = log.read()
    assert judge.overlaps(ran) == []
    assert len({run.worker for run in ran}) == len({run.term for run in ran}) == 2
    successor = leading(celery_setup)
    assert successor is not leader


def leading(setup: CeleryTestSetup) -> CeleryTestWorker:
    """The living worker that said last that it leads."""
    (found,) = (
        worker
        for worker in setup.worker_cluster
        if worker.container.status == "running" and "leadership acquired" in worker.logs()
    )
    return found
