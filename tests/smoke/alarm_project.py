"""The Celery app of the smoke tests of alarms: each alarm is a line of JSON in the file ALARMS."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from celery import Celery

from celery_neli import install, signals

app = Celery("alarms")
app.conf.update(json.loads(os.environ["SMOKE_SETTINGS"]))
install(app)


@signals.slot_overdue.connect
@signals.run_overdue.connect
def note(signal: Any, **told: Any) -> None:
    """Leave a line."""
    told.pop("sender")
    line = {"alarm": signal.name, "at": time.time(), "by": os.environ["SMOKE_NAME"], **told}
    with Path(os.environ["SMOKE_RECORDS"], "alarms").open("a") as file:
        file.write(json.dumps(line) + "\n")


@app.task(name="alarms.quick")
def quick() -> None:
    """Be done."""


@app.task(name="alarms.slow")
def slow() -> None:
    """Take long."""
    time.sleep(60)


class Refuses(app.Task):  # type: ignore[name-defined,misc]
    """A task that the application refuses to send."""

    name = "alarms.refuses"

    def apply_async(self, *args: Any, **kwargs: Any) -> Any:
        """Raise."""
        raise ValueError("not today")

    def run(self) -> None:
        """Never run."""


app.register_task(Refuses())
