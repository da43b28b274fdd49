"""The example app under observation: the demo runs `celery -A example_project.witness beat` and `… worker`.

The app itself knows nothing of it. In a beat, each message is stamped with the time at which the beat began to send
it. In the worker, each message leaves a line in a file just before its task runs. Beats also note when they were told
that they lead; that is shown, and judged by nobody.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from celery.signals import before_task_publish, task_prerun

from celery_neli.signals import leadership_acquired
from example_project.app import app
from example_project.receipts import Notice, Receipt, append, epoch

__all__ = ["app"]

SENT = "example_sent"  # header: seconds since 1970, by the sender's clock
FILE = Path(os.environ["EXAMPLE_RECEIPTS"])


@before_task_publish.connect
def stamp(headers: dict[str, Any], **_: Any) -> None:
    # Before the scheduler asks its lease for the last time: what it lets pass was sent at this moment or later.
    headers[SENT] = time.time()


@task_prerun.connect
def note_receipt(task_id: str, task: Any, **_: Any) -> None:
    headers = task.request
    append(
        FILE,
        Receipt(
            task_id=task_id,
            term=headers.get("neli_beat_term"),
            slot=epoch(headers.get("neli_beat_slot")),
            entry=headers.get("neli_beat_entry"),
            sent=headers.get(SENT),
            sender=headers.get("origin"),
            received=time.time(),
        ),
    )


@leadership_acquired.connect
def note_leadership(election: str, term: int, **_: Any) -> None:
    if election == "beat":
        append(FILE, Notice(term=term, pid=os.getpid(), at=time.time()))
