"""What workers write of the tasks that they get and run, and how it is read.

Every process appends to a file of its own, `runs.WORKER.PID`, one whole line for each event:

    received TASK AT                the worker has it in hand (its main process)
    start TASK TERM THREAD AT       its body begins (a process of the pool)
    end TASK TERM THREAD AT STILL   its body ends; STILL: what still_leader() says, 1 or 0

Times are CLOCK_BOOTTIME, which all processes of a machine share. TERM is "-" for a task that needs none. THREAD (a
number) tells which start an end belongs to: a task that came twice may be run by two threads at once.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from pathlib import Path

from celery_neli.election.lease import boottime


@dataclass(frozen=True, slots=True)
class Run:
    """One body of a task, from `start` to `end` (seconds, CLOCK_BOOTTIME), or to nobody knows when (None)."""

    task: str
    worker: str
    term: int | None
    start: float
    end: float | None = None
    still: bool | None = None
    pid: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Received:
    """`worker` had `task` in hand at `at`."""

    task: str
    worker: str
    at: float


class RunLog:
    """Writes the lines of this process, whichever it is: forked children write to files of their own."""

    def __init__(self, directory: Path, worker: str) -> None:
        self._directory, self._worker = directory, worker
        self._pid = self._file = -1

    def received(self, task: str) -> None:
        """The worker got a task."""
        self._write(f"received {task} {boottime():.6f}")

    def start(self, task: str, term: int | None) -> None:
        """A body begins."""
        self._write(f"start {task} {_word(term)} {threading.get_ident()} {boottime():.6f}")

    def end(self, task: str, term: int | None, *, still: bool) -> None:
        """A body ends."""
        self._write(f"end {task} {_word(term)} {threading.get_ident()} {boottime():.6f} {int(still)}")

    def _write(self, line: str) -> None:
        if self._pid != os.getpid():
            path = self._directory / f"runs.{self._worker}.{os.getpid()}"
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            self._pid = os.getpid()
        os.write(self._file, f"{line}\n".encode())


class Reader:
    """Reads what the workers of a directory write, each byte once: it is asked many times a second."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: dict[Path, _File] = {}

    def read(self) -> tuple[list[Run], list[Received]]:
        """All that was written so far, up to each file's last whole line."""
        for path in sorted(self._directory.glob("runs.*.*")):
            self._files.setdefault(path, _File(path)).read_on()
        files = self._files.values()
        runs = [run for each in files for run in (*each.runs, *each.begun.values())]
        return runs, [received for each in files for received in each.received]


class _File:
    """What one process wrote."""

    def __init__(self, path: Path) -> None:
        self._path = path
        _, self._worker, pid = path.name.split(".")
        self._pid, self._at = int(pid), 0
        self.runs: list[Run] = []
        self.begun: dict[str, Run] = {}  # by thread
        self.received: list[Received] = []

    def read_on(self) -> None:
        with self._path.open("rb") as file:
            file.seek(self._at)
            whole = file.read().rpartition(b"\n")[0]
        if whole:
            self._at += len(whole) + 1
            for line in whole.decode().split("\n"):
                self._take(line)

    def _take(self, line: str) -> None:
        word, task, *values = line.split()
        if word == "received":
            self.received.append(Received(task, self._worker, float(values[0])))
            return
        term, thread, at = None if values[0] == "-" else int(values[0]), values[1], float(values[2])
        begun = self.begun.pop(thread, None)
        if word == "start":
            if begun is not None:  # the thread went on without its end: it raised
                self.runs.append(begun)
            self.begun[thread] = Run(task, self._worker, term, at, pid=self._pid)
        else:
            assert begun is not None, f"{self._path}: {line}"
            assert begun.task == task, f"{self._path}: {line} after the start of {begun.task}"
            self.runs.append(Run(task, self._worker, term, begun.start, at, values[3] == "1", pid=self._pid))


def _word(term: int | None) -> str:
    return "-" if term is None else str(term)
