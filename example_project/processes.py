"""The demo's processes: a log file each, stopped by pid, none left behind however the demo ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

# A process of its own. Reads "+pid" and "-pid" lines; when they end, the demo has ended, be it by SIGKILL, and its
# processes follow, each with its group. Then the directory that the guard was given is removed.
GUARD = """
import os, shutil, signal, sys
pids = set()
for line in sys.stdin:
    (pids.add if line[0] == "+" else pids.discard)(int(line[1:]))
for pid in pids:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
for directory in sys.argv[1:]:
    shutil.rmtree(directory, ignore_errors=True)
"""
PATIENCE = 4.0  # seconds that processes have to end before they are killed


class ProcessDied(Exception):
    """A process of the demo ended, and nobody had asked it to."""


class Process:
    """One of them. A restart begins another process under the same name, in the same log."""

    def __init__(self, *, name: str, command: list[str], log: Path, expendable: bool) -> None:
        self.name = name
        self.expendable = expendable
        self.command = command
        self.log = log
        self.child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self.child is not None, "not started"
        return self.child.pid

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to this process alone, by its pid."""
        os.kill(self.pid, number)

    def wait(self, timeout: float) -> None:
        """Wait for its end. :raises subprocess.TimeoutExpired: it did not."""
        assert self.child is not None, "not started"
        self.child.wait(timeout)

    def tail(self, lines: int = 15) -> str:
        """The last lines of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


class Fleet:
    """All processes of the demo; a context manager that ends them."""

    def __init__(self, *, directory: Path, keep: bool, environment: Mapping[str, str], cwd: Path) -> None:
        self.directory = directory
        self.environment = dict(environment)
        self._cwd = cwd
        self._running: list[Process] = []
        self._guard = subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", GUARD, *([] if keep else [str(directory)])],
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __enter__(self) -> Fleet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def start(self, name: str, command: list[str], *, expendable: bool = False) -> Process:
        """Start a process in a session of its own, so that a Ctrl-C at the terminal reaches the demo alone.

        The first one is what the others depend on: it ends last. An expendable one is killed when all end.
        """
        process = Process(name=name, command=command, log=self.directory / f"{name}.log", expendable=expendable)
        self.restart(process)
        return process

    def restart(self, process: Process) -> None:
        """Start a process that has ended once more."""
        with process.log.open("ab") as log:
            process.child = subprocess.Popen(
                process.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._cwd,
                env=self.environment,
                start_new_session=True,
            )
        self._tell_guard(f"+{process.pid}")
        self._running.append(process)

    def expect_end(self, process: Process) -> None:
        """From now on this process may end."""
        self._running.remove(process)

    def ended(self, process: Process) -> None:
        """It has ended, and its pid means nothing any more."""
        self._tell_guard(f"-{process.pid}")

    def check(self) -> None:
        """:raises ProcessDied: one of them did, by itself; with the end of its log."""
        for process in self._running:
            assert process.child is not None
            status = process.child.poll()
            if status is not None:
                who = f"{process.name} (pid {process.pid})"
                raise ProcessDied(f"{who} ended by itself, status {status}; its log ends:\n{process.tail()}")

    def close(self) -> None:
        """End all: those that do not follow SIGTERM are killed. A second Ctrl-C leaves the rest to the guard."""
        try:
            self._stop(self._running[1:])
            self._stop(self._running[:1])
            self._running.clear()
        finally:
            assert self._guard.stdin is not None
            self._guard.stdin.close()
            self._guard.wait(PATIENCE)

    def _stop(self, processes: list[Process]) -> None:
        for process in processes:
            if process.child is not None and process.child.poll() is None:
                process.signal(signal.SIGKILL if process.expendable else signal.SIGTERM)
                process.signal(signal.SIGCONT)  # a frozen one cannot follow
        deadline = time.monotonic() + PATIENCE
        for process in processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(PATIENCE)
            self.ended(process)

    def _tell_guard(self, line: str) -> None:
        assert self._guard.stdin is not None
        self._guard.stdin.write(line + "\n")
        self._guard.stdin.flush()
