"""What workers write of the tasks that they get and run, and how it is read.

Every process appends to a file of its own, `runs.WORKER.PID`, one whole line for each event:

    received TASK AT                the worker has it in hand (its main process)
    start TASK TERM AT              its body begins (a process of the pool)
    end TASK TERM AT STILL          its body ends; STILL: what still_leader() says, 1 or 0

Times are CLOCK_BOOTTIME, which all processes of a machine share. TERM is "-" for a task that needs none.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from celery_neli.clock import boottime


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
        self._write(f"start {task} {_word(term)} {boottime():.6f}")

    def end(self, task: str, term: int | None, *, still: bool) -> None:
        """A body ends."""
        self._write(f"end {task} {_word(term)} {boottime():.6f} {int(still)}")

    def _write(self, line: str) -> None:
        if self._pid != os.getpid():
            path = self._directory / f"runs.{self._worker}.{os.getpid()}"
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            self._pid = os.getpid()
        os.write(self._file, f"{line}\n".encode())


def read(directory: Path) -> tuple[list[Run], list[Received]]:
    """All that the workers of a directory wrote so far, up to each file's last whole line."""
    runs: list[Run] = []
    received: list[Received] = []
    for path in sorted(directory.glob("runs.*.*")):
        _, worker, pid = path.name.split(".")
        _read(path.read_text().split("\n")[:-1], worker, int(pid), runs, received)
    return runs, received


def _read(lines: Iterable[str], worker: str, pid: int, runs: list[Run], received: list[Received]) -> None:
    begun: dict[str, Run] = {}  # under threads, several at a time
    for line in lines:
        word, task, *values = line.split()
        if word == "received":
            received.append(Received(task, worker, float(values[0])))
            continue
        term, at = None if values[0] == "-" else int(values[0]), float(values[1])
        if word == "start":
            if task in begun:
                runs.append(begun[task])
            begun[task] = Run(task, worker, term, at, pid=pid)
        else:
            runs.append(Run(task, worker, term, begun.pop(task).start, at, values[2] == "1", pid=pid))
    runs.extend(begun.values())


def _word(term: int | None) -> str:
    return "-" if term is None else str(term)
