"""The Celery app of the smoke tests: its settings are the JSON in SMOKE_SETTINGS, its records go into SMOKE_RECORDS."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery import Celery
from celery.signals import beat_embedded_init, beat_init, worker_ready

from celery_neli import install, leader_only, signals
from celery_neli.config import enabled
from celery_neli.election.leadership import leadership_for
from celery_neli.kafka import connect
from celery_neli.threads import original
from celery_neli.worker.bootsteps import ElectionStep
from tests.smoke.recorder import Recorder

if TYPE_CHECKING:
    from celery_neli.election.leadership import Leadership

app = Celery("smoke")
app.conf.update(json.loads(os.environ["SMOKE_SETTINGS"]))
if os.environ.get("SMOKE_INSTALL"):
    install(app)


@app.task(name="smoke.tick")
def tick() -> None:
    """Sent by beat; nobody need run it."""


@app.task(name="smoke.sleep")
def sleep(seconds: float) -> None:
    """Take some time."""
    time.sleep(seconds)


@app.task(name="smoke.write")
def write(path: str) -> None:
    """Leave a trace that it ran."""
    Path(path).write_text("ran")


@app.task(name="smoke.fail")
def fail() -> None:
    """Raise."""
    raise ValueError("as it should")


@app.task(name="smoke.once_more", bind=True, max_retries=1, default_retry_delay=0)
def once_more(self: Any) -> None:
    """Ask for a second attempt, which succeeds."""
    if not self.request.retries:
        raise self.retry(exc=ValueError("not yet"))


if not app.conf.get("neli_roles"):

    @app.task(name="smoke.lead")
    @leader_only
    def lead() -> None:
        """Run on the worker that leads."""


def record(election: str) -> None:
    """Begin to record this process's leases in `election`: into the file NAME.ELECTION, or, if there are several roles,
    NAME.ELECTION.ROLE.
    """
    directory = os.environ.get("SMOKE_RECORDS")
    if not directory or not enabled(app):
        return
    leadership = leadership_for(app, election, connect)
    for role in leadership.roles:
        suffix = f".{role}" if len(leadership.roles) > 1 else ""
        path = Path(directory, f"{os.environ['SMOKE_NAME']}.{election}{suffix}")
        # Many recorders in one process take their turns less often: they must not be what slows it down.
        recorder = Recorder(path, leadership.role(role).standing, interval=0.005 * len(leadership.roles))
        record_role(leadership, role, recorder)


def record_role(leadership: Leadership, recorded: str, recorder: Recorder) -> None:
    """Note the transitions of one role."""

    def noter(kind: str) -> Any:
        def note(role: str, term: int, **_: Any) -> None:
            if role == recorded:
                recorder.note(kind, term)

        return note

    for kind in ("acquired", "revoked", "fenced"):
        getattr(signals, f"leadership_{kind}").connect(noter(kind), sender=leadership, weak=False)


def hang(*_: Any) -> None:
    """Have the main thread, and gevent's hub, stand still for longer than any test."""
    original("time", "sleep")(300)


@beat_init.connect
@beat_embedded_init.connect
def beat_starts(**_: Any) -> None:
    signal.signal(signal.SIGUSR2, hang)
    record("beat")


@worker_ready.connect
def worker_is_ready(**_: Any) -> None:
    signal.signal(signal.SIGUSR2, hang)
    if ElectionStep in app.steps["worker"]:
        record("worker")
