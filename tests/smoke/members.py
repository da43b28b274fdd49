"""Starts the members of one election as processes, sends them signals, and reads what they recorded."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery_neli.election.lease import boottime
from tests.processes import start_process, stop_process, wait_until
from tests.smoke import judge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
SCHEDULE = {"tick": {"task": "smoke.tick", "schedule": 0.2}}
#: Seconds that a process has to end. A worker of Celery's may need 30, with or without celery-neli: billiard's children
#: wait so long for the worker to read their last results (`Worker._ensure_messages_consumed`), which it may not do.
ENDS = 45.0


@dataclass(eq=False, kw_only=True)
class Process:
    """One member: a process with a log and a record of its lease."""

    name: str
    election: str
    directory: Path
    process: subprocess.Popen[Any]
    frozen: bool = False

    @property
    def alive(self) -> bool:
        """Whether the process exists, frozen or not."""
        return self.process.poll() is None

    @property
    def log(self) -> str:
        """All that it said."""
        return (self.directory / f"{self.name}.log").read_text(errors="replace")

    def of_role(self, role: str) -> Process:
        """The same process as a candidate for `role`, in an election of several roles."""
        return replace(self, election=f"{self.election}.{role}")

    def held(self) -> list[judge.Held]:
        """When its lease held."""
        return self._read()[0]

    def transitions(self, kind: str = "acquired") -> list[judge.Transition]:
        """Its transitions of one kind."""
        return [each for each in self._read()[1] if each.kind == kind]

    def terms(self, kind: str) -> list[int]:
        """The terms of its transitions of one kind."""
        return [each.term for each in self.transitions(kind)]

    def holds(self) -> bool:
        """Whether its lease held when last recorded (some 0.05 s ago), and it is there to use it."""
        path = self.directory / f"{self.name}.{self.election}"
        if not self.alive or self.frozen or not path.exists():
            return False
        lines = [line for line in path.read_text().split("\n")[:-1] if line.startswith(("held", "free"))]
        return bool(lines) and lines[-1].startswith("held")

    def signal(self, number: int) -> float:
        """Send a signal, and return the time just before (CLOCK_BOOTTIME)."""
        at = boottime()
        self.process.send_signal(number)
        self.frozen = number == signal.SIGSTOP
        return at

    def wait_end(self, timeout: float = ENDS) -> int:
        """Wait for its end; the exit status."""
        return self.process.wait(timeout)

    def _read(self) -> tuple[list[judge.Held], list[judge.Transition]]:
        return judge.read(self.directory / f"{self.name}.{self.election}", self.name)


@dataclass(eq=False, kw_only=True)
class Members:
    """The processes of one election, past and present, in the order of their start."""

    directory: Path
    settings: dict[str, Any]
    project: str = "tests.smoke.project"
    all: list[Process] = field(default_factory=list)

    @property
    def group(self) -> str:
        """The setting neli_group."""
        return str(self.settings["neli_group"])

    def celery(
        self, *arguments: str, name: str, election: str, environment: dict[str, str] | None = None, **settings: Any
    ) -> Process:
        """Start `celery ARGUMENTS` with settings of its own."""
        told = self.environment(settings={"neli_name": name, **settings}, SMOKE_NAME=name, **environment or {})
        return self._start(name, election, self.command(*arguments), told)

    def beat(self, *arguments: str, name: str | None = None, **settings: Any) -> Process:
        """Start a `celery beat` that sends a task five times a second."""
        name = name or f"beat{len(self.all) + 1}"
        if not {"-S", "--scheduler"} & set(arguments) and "beat_scheduler" not in settings:
            arguments = ("-S", "celery_neli.Scheduler", *arguments)
        return self.celery("beat", "-l", "INFO", *arguments, name=name, election="beat", **settings)

    def light(self, *, name: str, election: str = "beat") -> Process:
        """Start a member without Celery (member.py)."""
        record = self.directory / f"{name}.{election}"
        group, kafka = f"{self.group}.{election}", str(self.settings["neli_kafka"])
        command = [sys.executable, "-m", "tests.smoke.member", name, group, kafka, str(record)]
        return self._start(name, election, command, self.environment())

    def worker(self, *arguments: str, name: str, **settings: Any) -> Process:
        """Start a worker that takes part in the election; `imports` installs celery-neli in it."""
        arguments = ("worker", "-n", f"{name}@%h", "-l", "INFO", *arguments)
        return self.celery(*arguments, name=name, election="worker", imports=["celery_neli.auto"], **settings)

    def _start(self, name: str, election: str, command: list[str], environment: dict[str, str]) -> Process:
        with (self.directory / f"{name}.log").open("ab") as log:
            process = start_process(command, env=environment, stdout=log, stderr=log, cwd=self.directory)
        self.all.append(Process(name=name, election=election, directory=self.directory, process=process))
        return self.all[-1]

    def run(self, *arguments: str, timeout: float = 60.0, **settings: Any) -> subprocess.CompletedProcess[str]:
        """Run a `celery` command to its end."""
        return subprocess.run(
            self.command(*arguments), env=self.environment(SMOKE_NAME="command", settings=settings),
            capture_output=True, text=True, timeout=timeout, cwd=self.directory, check=False,
        )  # fmt: skip

    def command(self, *arguments: str) -> list[str]:
        """Celery's command line for the project."""
        return [sys.executable, "-m", "celery", "-A", self.project, *arguments]

    def environment(self, *, settings: dict[str, Any] | None = None, **extra: str) -> dict[str, str]:
        """Of a process of this election."""
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        told = {**self.settings, **(settings or {})}
        own = {"PYTHONPATH": path, "SMOKE_SETTINGS": json.dumps(told), "SMOKE_RECORDS": str(self.directory)}
        return {**os.environ, **own, **extra}

    @property
    def alive(self) -> list[Process]:
        """Those whose process exists."""
        return [each for each in self.all if each.alive]

    def wait_leader(self, *, timeout: float = 60.0, but: Process | None = None) -> Process:
        """Wait until one holds, other than `but`."""

        def leader() -> Process | None:
            holding = [each for each in self.alive if each is not but and each.holds()]
            return holding[0] if len(holding) == 1 else None

        return wait_until(leader, timeout=timeout, what=f"a leader, see {self.directory}", interval=0.02)

    def wait_acquired(
        self, since: float, *, timeout: float = 60.0, but: Process | None = None
    ) -> tuple[Process, judge.Transition]:
        """Wait for the first acquisition later than `since` by another than `but`."""

        def acquired() -> tuple[Process, judge.Transition] | None:
            found = [
                (each, told) for each in self.all if each is not but for told in each.transitions() if told.at > since
            ]
            return min(found, key=lambda pair: pair[1].at) if found else None

        return wait_until(acquired, timeout=timeout, what=f"an acquisition, see {self.directory}", interval=0.02)

    def wait_joined(self, describe: Callable[[str], set[str]], *, timeout: float = 60.0) -> None:
        """Wait until `describe(consumer group)` names every living member."""
        group = f"{self.group}.{self.all[0].election}"
        wait_until(
            lambda: {each.name for each in self.alive if not each.frozen} <= describe(group),
            timeout=timeout, what=f"all members in the group, see {self.directory}", interval=0.1,
        )  # fmt: skip

    def held(self) -> list[judge.Held]:
        """When which member's lease held."""
        return [each for process in self.all for each in process.held()]

    def assert_one_at_most(self) -> None:
        """No two held at the same time, and somebody did hold."""
        held = self.held()
        assert held, f"nobody ever held, see {self.directory}"
        assert judge.overlaps(held) == []

    def stop(self) -> None:
        """End all, at once."""
        for each in self.all:
            stop_process(each.process, force=True)


@contextmanager
def members(directory: Path, *, project: str = "tests.smoke.project", **settings: Any) -> Iterator[Members]:
    """Members with these settings, ended at the end."""
    started = Members(directory=directory, settings=settings, project=project)
    try:
        yield started
    finally:
        started.stop()
