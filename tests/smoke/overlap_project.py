"""The Celery app of the smoke tests of overlaps and failures: what tasks do is a line of JSON in the file TASKS."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from celery import Celery

from celery_neli import install

RECORDS = Path(os.environ["SMOKE_RECORDS"])

app = Celery("overlaps")
app.conf.update(json.loads(os.environ["SMOKE_SETTINGS"]))
install(app)


def note(task: Any, event: str) -> None:
    """Leave a line."""
    line = {"id": task.request.id, "event": event, "at": time.time(), "slot": task.request.get("neli_beat_slot")}
    with (RECORDS / "tasks").open("a") as file:
        file.write(json.dumps(line) + "\n")


@app.task(name="overlaps.held", bind=True)
def held(self: Any) -> None:
    """Go on until the test releases this very task."""
    note(self, "began")
    while not (RECORDS / f"release-{self.request.id}").exists():
        time.sleep(0.02)
    note(self, "ended")


@app.task(name="overlaps.fails", bind=True)
def fails(self: Any) -> None:
    """Fail, until told otherwise."""
    note(self, "began")
    if not (RECORDS / "good").exists():
        raise ValueError("no stock")
