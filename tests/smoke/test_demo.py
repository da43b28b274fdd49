"""`make demo`, in short, as a user runs it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.processes import start_process, stop_process, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
DEMO = [sys.executable, "-m", "example_project.demo"]
KINDS = ("SIGTERM", "SIGKILL", "SIGSTOP")

pytestmark = pytest.mark.smoke


def environment(tmp_path: Path, **settings: str) -> dict[str, str]:
    """The demo's directories are made below `tmp_path`."""
    return {**os.environ, "JSON": "1", "KEEP": "", "TMPDIR": str(tmp_path), **settings}


@pytest.mark.slow
def test_demo(tmp_path: Path) -> None:
    """Three handovers, each to the next leader within wide bounds; one leads at all times; nothing is left behind."""
    done = subprocess.run(
        DEMO,
        cwd=ROOT,
        env=environment(tmp_path, SECONDS="25"),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert summary["ok"] is True
    assert summary["overlaps"] == []
    assert len(summary["terms"]) >= 1 + len(KINDS)
    assert summary["messages"]["received"] >= 8
    assert summary["messages"]["without_term"] == 0
    assert summary["slots"]["sent"] == summary["slots"]["due"] > 20
    assert summary["slots"]["missed_in_handovers"] == summary["slots"]["missed_otherwise"] == 0
    assert summary["slots"]["doubled"] == 0
    for kind in KINDS:
        assert summary["handovers"][kind], f"no handover after {kind}"
    assert all(0 < took < 10 for took in summary["handovers"]["SIGTERM"])
    # Never before the lease is over: a heartbeat of up to 0.5 s earlier bought 4 s.
    assert all(3 < took < 20 for kind in ("SIGKILL", "SIGSTOP") for took in summary["handovers"][kind])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seconds", ["24.9", "soon", "nan", "-60"])
def test_too_short(tmp_path: Path, seconds: str) -> None:
    """A duration in which the leader cannot be stopped in three ways is refused, naming it and the least one."""
    done = subprocess.run(
        DEMO, cwd=ROOT, env=environment(tmp_path, SECONDS=seconds), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    error = json.loads(done.stdout.splitlines()[-1])["error"]
    assert f"SECONDS={seconds}" in error
    assert "25" in error


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A demo that has started its processes."""
    log = tmp_path / "demo.out"
    with log.open("w") as out:
        process = start_process(
            DEMO, cwd=ROOT, env=environment(tmp_path, SECONDS="60"), stdout=out, stderr=out, text=True
        )
    try:
        wait_until(lambda: "started worker" in log.read_text(), timeout=30, what="the demo's processes")
        yield process
    finally:
        stop_process(process, force=True)


def started(tmp_path: Path) -> dict[str, int]:
    """The pids that the demo told, by name (Kafka's by its address)."""
    told = re.findall(r"(\S+) \(pid (\d+)\)", (tmp_path / "demo.out").read_text())
    assert len(told) == 5, told
    return {name: int(pid) for name, pid in told}


def running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie that nobody reaps has ended, too.
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_an_interrupted_demo_leaves_nothing(
    tmp_path: Path, demo: subprocess.Popen[str], number: signal.Signals
) -> None:
    """However the demo is ended, by Ctrl-C or worse, its processes end and its directory goes."""
    pids = started(tmp_path)
    assert all(running(pid) for pid in pids.values())
    demo.send_signal(number)
    assert demo.wait(30) == {signal.SIGINT: 130, signal.SIGTERM: 143}.get(number, -number)
    wait_until(lambda: not any(running(pid) for pid in pids.values()), timeout=10, what="the end of all")
    wait_until(
        lambda: [each.name for each in tmp_path.iterdir()] == ["demo.out"], timeout=10, what="the directory's end"
    )


def test_a_process_that_dies(tmp_path: Path, demo: subprocess.Popen[str]) -> None:
    """If a process dies that nobody stopped, the demo ends with status 2, names it and shows the end of its log."""
    pid = started(tmp_path)["beat-2"]
    os.kill(pid, signal.SIGKILL)
    assert demo.wait(30) == 2
    error = json.loads((tmp_path / "demo.out").read_text().splitlines()[-1])["error"]
    assert f"beat-2 (pid {pid}) ended by itself, status -9" in error
