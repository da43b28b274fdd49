"""The tests' own processes and ports."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import free_ports, start_process, stop_process, wait_until

ROOT = Path(__file__).parents[2]
STARTER = """
import os, signal, subprocess
from tests.processes import start_process
child = start_process(["sleep", "60"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
os.kill(child.pid, signal.SIGSTOP)
print(child.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def exists(pid: int) -> bool:
    try:
        # A zombie whose parent does not reap it is as good as gone.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="reads /proc")
def test_nothing_outlives_a_killed_starter() -> None:
    """A process of `start_process` ends with its starter, even if that is killed and the process is frozen."""
    done = subprocess.run([sys.executable, "-c", STARTER], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    pid = int(done.stdout)
    wait_until(lambda: not exists(pid), timeout=10, what="the end of the orphan")


def test_stop_takes_the_children_along() -> None:
    """`stop_process` ends the whole group, frozen or not, and tells the exit status."""
    process = start_process(["sh", "-c", "sleep 600 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as told:
        child = int(told.readline())
    os.killpg(process.pid, signal.SIGSTOP)
    assert stop_process(process, force=True) == -signal.SIGKILL
    wait_until(lambda: not exists(child), timeout=10, what="the end of the child")
    assert stop_process(process) == -signal.SIGKILL


def test_ports_are_free_and_differ() -> None:
    """`free_ports` never gives a port twice, nor one that is taken."""
    with socket.socket() as taken:
        (port,) = free_ports(1)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        more = free_ports(20)
    assert port not in more
    assert len(set(more)) == 20


def test_waiting_says_what_for() -> None:
    """`wait_until` returns what it found, or names what did not come."""
    assert wait_until(lambda: "found", timeout=0, what="a word") == "found"
    with pytest.raises(TimeoutError, match="a word"):
        wait_until(lambda: None, timeout=0.01, what="a word")
