"""The Celery app of the fleets: the smoke tests' (settings, records of the lease), with tasks that write their runs.

For each role ROLE of `neli_roles` (by default one, `leader`) there are `fleet.ROLE.late`, acknowledged after the run,
and `fleet.ROLE.early`, before; `fleet.anywhere` is an ordinary task. Each takes the seconds that its body lasts.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from celery.signals import task_received

from celery_neli import current_term, leader_only, still_leader
from tests.fleet.runs import RunLog
from tests.smoke.project import app

LOG = RunLog(Path(os.environ["SMOKE_RECORDS"]), os.environ["SMOKE_NAME"])


def make_task(name: str, *, acks_late: bool, **options: Any) -> None:
    """A leader task that writes its runs."""

    @app.task(name=name, bind=True, acks_late=acks_late)
    @leader_only(**options)
    def lead(task: Any, seconds: float) -> None:
        term = current_term()
        LOG.start(task.request.id, term)
        time.sleep(seconds)
        LOG.end(task.request.id, term, still=still_leader())


@app.task(name="fleet.anywhere", bind=True, acks_late=True)
def work(task: Any, seconds: float) -> None:
    """An ordinary task that writes its runs."""
    LOG.start(task.request.id, None)
    time.sleep(seconds)
    LOG.end(task.request.id, None, still=False)


for role in app.conf.get("neli_roles") or [None]:
    for acks in ("late", "early"):
        make_task(f"fleet.{role or 'leader'}.{acks}", acks_late=acks == "late", **({"role": role} if role else {}))


@task_received.connect
def in_hand(request: Any, **_: Any) -> None:
    LOG.received(request.id)
