"""The tasks of the workers: pytest-celery copies this module into their application."""

import os
import time
from pathlib import Path

from celery import shared_task

from celery_neli import current_term, leader_only, still_leader
from tests.fleet.runs import RunLog

LOG = RunLog(Path(os.environ.get("FLEET_RECORDS", ".")), os.environ.get("FLEET_NAME", "tests"))


@shared_task(bind=True, acks_late=True, name="fleet.leader")
@leader_only
def lead(task, seconds):
    """Write down that it runs, as `seconds` pass."""
    term = current_term()
    LOG.start(task.request.id, term)
    time.sleep(seconds)
    LOG.end(task.request.id, term, still=still_leader())
