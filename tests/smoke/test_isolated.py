"""A singleton's process of its own, without a worker: what it is told, what it tells, and when it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

import celery_neli
from celery_neli.election.lease import boottime
from celery_neli.election.role_state import Grant
from celery_neli.election.shared_lease import SharedLease
from celery_neli.singletons import Singleton
from celery_neli.singletons.session import ChildFailed, ProcessSession
from celery_neli.worker.leader_only import Unelected
from tests.processes import start_process, stop_process, wait_until

pytestmark = pytest.mark.smoke
MODULE = "tests.smoke.singletons"


@pytest.fixture
def lease() -> SharedLease:
    """Held in term 7 by this process."""
    lease = SharedLease(("mail", "leader"))
    lease.write(1, Grant(7, boottime() + 1000.0))
    return lease


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child's environment."""
    monkeypatch.setenv("SMOKE_SETTINGS", json.dumps({"neli_group": "shop"}))
    monkeypatch.setenv("SMOKE_RECORDS", str(tmp_path))
    monkeypatch.setenv("SMOKE_NAME", "one")
    monkeypatch.setenv("SMOKE_TURN", "0.001")
    monkeypatch.setenv("SMOKE_SINGLETONS", json.dumps({"relay": {}, "crash": {}, "log": {}}))


def isolated(
    name: str, shared: SharedLease | None, term: int = 7, lease: Any = None, module: str = MODULE
) -> ProcessSession:
    singleton = Singleton(function=print, name=f"{module}:{name}", isolate=True)
    lease = lease or (Unelected("leader") if shared is None else shared.role("leader"))
    return ProcessSession(singleton, lease, term, shared=shared, log={"loglevel": 20})


def did(directory: Path) -> list[str]:
    """What the functions wrote, with the term."""
    return [" ".join(line.split()[:2]) for line in (directory / "relay").read_text().splitlines()]


def pids(directory: Path) -> set[int]:
    return {int(line.split()[2]) for line in (directory / "relay").read_text().splitlines()}


def test_turns_happen_in_one_process_from_setup_to_teardown(lease: SharedLease, tmp_path: Path) -> None:
    """Another one than this, which is gone after the end."""
    session = isolated("relay", lease)
    assert session.run()
    assert session.run()
    session.end()
    assert did(tmp_path) == ["setup 7", "began 7", "turn 7", "began 7", "turn 7", "teardown 7"]
    (pid,) = pids(tmp_path)
    assert pid != os.getpid()
    assert not psutil.pid_exists(pid)


def test_no_process_is_started_without_the_lease(lease: SharedLease, tmp_path: Path) -> None:
    """Nor is a turn begun in one that there is."""
    session = isolated("relay", lease, term=6)
    assert not session.run()
    session.end()
    assert not (tmp_path / "relay").exists()


def test_the_child_asks_the_lease_itself(lease: SharedLease, tmp_path: Path) -> None:
    """What the worker believed when it gave the command may be over when it arrives."""
    session = isolated("relay", lease, lease=Unelected("leader"))  # here it is led for longer than there
    assert session.run()
    lease.write(1, Grant(7, boottime() + 1000.0, resigning=True))
    assert not session.run()
    session.end()
    assert did(tmp_path) == ["setup 7", "began 7", "turn 7", "teardown 7"]


def test_a_process_that_dies_is_a_failure_and_replaced(lease: SharedLease, tmp_path: Path) -> None:
    """The new one is set up like the first."""
    session = isolated("crash", lease)
    with pytest.raises(ChildFailed, match="its process died with status 3"):
        session.run()
    assert session.run()
    session.end()
    assert did(tmp_path) == [*["setup 7", "began 7", "turn 7"] * 2, "teardown 7"]
    assert len(pids(tmp_path)) == 2


def test_what_a_turn_raises_and_logs_arrives(
    lease: SharedLease, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The traceback with the failure, log lines of the worker's level on standard error; SystemExit ends nothing."""
    session = isolated("log", lease)
    for _ in range(2):
        with pytest.raises(ChildFailed, match=r"(?s)Traceback.*in log.*SystemExit: as told"):
            session.run()
    session.end()
    told = capfd.readouterr().err
    assert told.count("here is 7") == 2
    assert f"INFO/singleton-{MODULE}:log" in told
    assert "not to be seen" not in told
    assert did(tmp_path) == ["setup 7", "teardown 7"]


def test_a_function_that_is_not_there_is_a_failure(lease: SharedLease) -> None:
    """With what to do, in one line."""
    session = isolated("play", lease)
    with pytest.raises(ChildFailed, match=r"^its process cannot load .*: an import of its module does not .*\Z"):
        session.run()
    session.end()


def test_a_module_that_cannot_be_imported_is_a_failure_in_one_line(lease: SharedLease) -> None:
    """With the name of what is missing, which may be another one that it imports; the next turn tries again."""
    session = isolated("relay", lease, module="no_such.shop")
    for _ in range(2):
        with pytest.raises(ChildFailed) as failed:
            session.run()
        told = "its process cannot load no_such.shop:relay: ModuleNotFoundError(\"No module named 'no_such'\")"
        assert str(failed.value) == told
    session.end()


def test_an_interpreter_that_does_not_start_is_a_failure(lease: SharedLease, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process ends before it has heard what to do; told in one line."""
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    session = isolated("relay", lease)
    for _ in range(2):
        with pytest.raises(ChildFailed, match=r"^its process died with status 1; standard error may say why\Z"):
            session.run()
    session.end()


def test_the_working_directory_shadows_nothing_that_the_child_needs(
    lease: SharedLease, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A project's own `celery.py` or `json.py` beside it is none of ours."""
    (tmp_path / "celery.py").write_text("raise RuntimeError('the wrong one')")
    (tmp_path / "json.py").write_text("raise RuntimeError('the wrong one')")
    monkeypatch.chdir(tmp_path)
    session = isolated("relay", lease)
    assert session.run()
    session.end()


SHOP = """
import os
from pathlib import Path

from celery import Celery

import celery_neli
import prices

app = Celery("shop", broker="memory://")
app.conf.neli_enabled = False


@celery_neli.singleton(app, isolate=True)
def relay():
    Path("turns").write_text(f"{os.getpid()} {prices.TEA}")
"""


@pytest.mark.parametrize("how", ["script", "module", "workdir"])
def test_it_runs_under_celerys_own_command(how: str, tmp_path: Path) -> None:
    """The console script, and `python -m celery`: in the project's directory, of which nothing but that tells; then
    Celery finds the app by its working directory, which is on the path only while it imports.
    """
    project = tmp_path / "project"
    project.mkdir()
    (project / "shop.py").write_text(SHOP)
    (project / "prices.py").write_text("TEA = 3")
    script = Path(sys.executable).with_name("celery")
    command = {
        "script": [str(script)],
        "module": [sys.executable, "-m", "celery"],
        "workdir": [str(script), "--workdir", str(project)],
    }[how]
    # celery_neli must be found wherever the tests have it, and the project must not.
    library = tmp_path / "library"
    library.mkdir()
    (library / "celery_neli").symlink_to(Path(celery_neli.__file__).parent)
    environment = {**os.environ, "PYTHONPATH": str(library)}
    log_path = tmp_path / "log"
    with log_path.open("wb") as log:
        worker = start_process(
            [*command, "-A", "shop", "worker", "-P", "solo", "-l", "INFO"],
            cwd=tmp_path if how == "workdir" else project, env=environment, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        turns = project / "turns"
        wait_until(lambda: turns.exists() or worker.poll() is not None, timeout=40, what=f"a turn, see {log_path}")
        assert turns.exists(), log_path.read_text()
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 0
    finally:
        stop_process(worker, force=True)
    pid, price = turns.read_text().split()
    assert (int(pid) != worker.pid, price) == (True, "3")
    assert "singleton failed" not in log_path.read_text()


def test_without_elections_it_runs_in_term_0(tmp_path: Path) -> None:
    """There is no lease to ask."""
    session = isolated("relay", None, term=0)
    assert session.run()
    session.end()
    assert did(tmp_path) == ["setup 0", "began 0", "turn 0", "teardown 0"]


def test_a_turn_is_terminated_when_the_lease_ends(
    lease: SharedLease, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is no failure: the role is lost."""
    monkeypatch.setenv("SMOKE_TURN", "60")
    lease.write(1, Grant(7, boottime() + 3.0))
    session = isolated("relay", lease)
    assert not session.run()
    session.end()
    assert did(tmp_path) == ["setup 7", "began 7"]
    (pid,) = pids(tmp_path)
    assert not psutil.pid_exists(pid)
