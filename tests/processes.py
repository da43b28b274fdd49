"""Processes that end with the test run, however it ends, and waiting for a condition."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

# Reads "+pid" and "-pid" lines; at the end of its input the starter is gone, and so must be what it started.
_REAPER = """
import os, signal, sys
pids = set()
for line in sys.stdin:
    (pids.add if line[0] == "+" else pids.discard)(int(line[1:]))
for pid in pids:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
"""
_reaper: subprocess.Popen[str] | None = None
_reaper_owner = 0


def _tell_reaper(line: str) -> None:
    global _reaper, _reaper_owner
    if _reaper is None or _reaper_owner != os.getpid():
        _reaper = subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", _REAPER], stdin=subprocess.PIPE, text=True, start_new_session=True
        )
        _reaper_owner = os.getpid()
    assert _reaper.stdin is not None
    _reaper.stdin.write(line + "\n")
    _reaper.stdin.flush()


def start_process(command: list[str], **options: Any) -> subprocess.Popen[Any]:
    """Start a process in a session of its own, which is killed when this process ends, even by SIGKILL.

    Takes what `subprocess.Popen` takes. Hand the process to `stop_process` when done with it. Any thread.
    """
    process = subprocess.Popen(command, start_new_session=True, **options)
    _tell_reaper(f"+{process.pid}")
    return process


def stop_process(process: subprocess.Popen[Any], *, timeout: float = 15.0, force: bool = False) -> int:
    """End a process of `start_process` and its group: SIGTERM, then SIGKILL after `timeout` seconds, or at once.

    A frozen process is killed too. Idempotent. Returns the exit status.
    """
    if process.poll() is None and not force:
        process.terminate()
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            pass
    try:
        # The group, for its leader may have left children behind.
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    status = process.wait(timeout)
    _tell_reaper(f"-{process.pid}")
    return status


def free_ports(count: int) -> list[int]:
    """Return so many free TCP ports of 127.0.0.1, below the range from which the system hands out ports by itself.

    A server that is stopped finds its port again: no outgoing connection can have taken it meanwhile.
    """
    ports: list[int] = []
    start = 10_000 + (os.getpid() * 37) % 15_000
    for port in range(start, 32_000):
        with socket.socket() as probe:
            # As servers do: connections in TIME_WAIT do not matter.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in _handed_out:
            _handed_out.add(port)
            ports.append(port)
        if len(ports) == count:
            return ports
    raise OSError(f"no {count} free ports between {start} and 32000")


_handed_out: set[int] = set()


def wait_until(condition: Callable[[], T | None], *, timeout: float, what: str, interval: float = 0.05) -> T:
    """Poll `condition` until it returns something true, and return that.

    Raises `TimeoutError`, naming `what` was waited for, after `timeout` seconds. Blocks.
    """
    deadline = time.monotonic() + timeout
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() >= deadline:
            raise TimeoutError(f"not within {timeout:g} s: {what}")
        time.sleep(interval)
