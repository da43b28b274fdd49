"""A pytest plug-in: Celery's scheduler is ours, for as long as pytest runs. `pytest -p tests.conformance.plugin`."""

from __future__ import annotations

import celery.beat

from celery_neli.beat.replicated.standalone import ReplicatedScheduler

celery.beat.Scheduler = ReplicatedScheduler
# Its PersistentScheduler, too, stands on ours.
celery.beat.PersistentScheduler.__bases__ = (ReplicatedScheduler,)


def pytest_report_header() -> str:
    """Say so."""
    return f"celery.beat.Scheduler is {celery.beat.Scheduler.__name__}"
