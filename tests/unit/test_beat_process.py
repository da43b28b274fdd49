"""`celery beat` as a process of its own, with a real SIGTERM."""

from __future__ import annotations

import os
import shelve
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.processes import start_process, stop_process
from tests.unit.schedulers import Persistent, make_app

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]

PROJECT = """
import sys, time
from celery import Celery
from celery.signals import after_task_publish, before_task_publish
from celery_neli.beat.scheduler import Scheduler
from tests.unit.fakes import FakeLeadership


class Leadership(FakeLeadership):
    def start(self):
        super().start()
        self.grant(1)

    def stop(self):
        super().stop()
        print("stopped", flush=True)


class Led(Scheduler):
    leadership_factory = staticmethod(lambda app: Leadership())


app = Celery("project", broker="memory://")
app.conf.update(
    beat_schedule={"entry": {"task": "t", "schedule": 1800.0}}, neli_scheduler="celery.beat.PersistentScheduler",
    result_expires=None, worker_redirect_stdouts=False, neli_group="test",
)


@before_task_publish.connect
def dispatch(**kwargs):
    print("dispatching", flush=True)
    if sys.argv[-1] == "hang":
        time.sleep(60)


@after_task_publish.connect
def published(**kwargs):
    print("sent", flush=True)
"""


@pytest.fixture
def beat_process(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[subprocess.Popen[Any]]:
    """A leading `celery beat` with an entry that is due; with parameter "hang" its message never leaves."""
    (tmp_path / "project.py").write_text(PROJECT)
    Persistent(tmp_path).prepare(make_app())
    code = "import sys; from project import app; app.start(sys.argv[1:-1])"
    command = [sys.executable, "-c", code, "beat", "-S", "project.Led", "-s", str(tmp_path / "schedule"), request.param]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), str(tmp_path)]), PYTHONWARNINGS="ignore")
    process = start_process(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=tmp_path
    )
    try:
        yield process
    finally:
        stop_process(process, force=True)
        process.stdout.close()


def lines_until(process: subprocess.Popen[Any], word: str) -> list[str]:
    lines = []
    for line in process.stdout:
        lines.append(line.strip())
        if word == line.strip():
            return lines
    pytest.fail(f"no {word!r} in {lines}")


@pytest.mark.parametrize(("beat_process", "runs"), [("hang", 0), ("wait", 1)], indirect=["beat_process"])
def test_sigterm_ends_beat_at_once_and_its_store_tells_the_truth(
    beat_process: subprocess.Popen[Any], runs: int, tmp_path: Path
) -> None:
    """In mid-dispatch (what was not sent is not written) and in mid-wait; the handover is done both times."""
    lines_until(beat_process, "dispatching" if runs == 0 else "sent")
    beat_process.send_signal(signal.SIGTERM)
    lines_until(beat_process, "stopped")
    assert beat_process.wait(10) == 0
    with shelve.open(str(tmp_path / "schedule"), flag="r") as shelf:  # noqa: S301 - our own file
        assert shelf["entries"]["entry"].total_run_count == runs
