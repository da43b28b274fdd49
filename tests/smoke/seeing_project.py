"""The project of the smoke tests, with tasks that write down for themselves which slot they run for.

With SEEING_NOTHING, a process runs nothing beside its election: no history, no metrics, no health, no alarms.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

import redis

from celery_neli import observability
from tests.smoke.project import app

__all__ = ["app"]

if os.environ.get("SEEING_NOTHING"):
    observability.PARTS = ()  # type: ignore[misc]


def note(task: Any) -> None:
    """Append what the message says of itself, and who runs it, to the list SEEING_LIST in the broker's Redis."""
    request = task.request
    told = {
        "id": request.id,
        "entry": request.neli_beat_entry,
        "slot": request.neli_beat_slot,
        "term": request.neli_beat_term,
        "worker": request.hostname,
        "at": time.time(),
    }
    with redis.Redis.from_url(app.conf.broker_url) as client:
        client.rpush(os.environ["SEEING_LIST"], json.dumps(told))


@app.task(name="seeing.good", bind=True)
def good(self: Any) -> None:
    """Succeed."""
    note(self)


@app.task(name="seeing.bad", bind=True)
def bad(self: Any) -> None:
    """Fail."""
    note(self)
    raise ValueError("as it should")
