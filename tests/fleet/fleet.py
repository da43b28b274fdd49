"""A fleet: workers of one election, a task broker, Kafka, streams of tasks, and what became of them."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from celery_neli.election.lease import boottime
from tests.fleet import judge, runs
from tests.fleet.streams import LONG, is_long
from tests.processes import start_process, stop_process, wait_until

if TYPE_CHECKING:
    import subprocess

    from tests.brokers.server import Server
    from tests.kafka.cluster import KafkaCluster
    from tests.smoke.members import Members, Process

WORKERS = 4
BODY = 0.04
"""Seconds that most tasks last. Two run at a time in the leader, so RATE builds up a queue, and every hand is full."""
RATE = 60.0


@dataclass(kw_only=True)
class Fleet:
    """Workers, which come and go, on brokers, which do too. Not thread-safe; most methods block."""

    members: Members
    broker: Server
    kafka: KafkaCluster
    streams: dict[str, subprocess.Popen[Any]] = field(default_factory=dict)
    _reader: runs.Reader | None = None

    def top_up(self, *arguments: str, count: int = WORKERS) -> None:
        """Start workers until `count` live and consume. `arguments`: of `celery worker`."""
        while len(self.members.alive) < count:
            name = f"worker{len(self.members.all) + 1}"
            self.members.worker("-P", "prefork", "-c", "2", *arguments, name=name)
        for each in self.members.alive:
            self.wait_ready(each)

    def wait_ready(self, worker: Process) -> None:
        """Wait until a worker consumes."""
        what = f"worker {worker.name}, see {self.members.directory}"

        def ready() -> bool:
            if not worker.alive:
                raise RuntimeError(f"it ended: {what}\n{worker.log[-2000:]}")
            return " ready." in worker.log

        wait_until(ready, timeout=60, what=what)

    def stream(self, prefix: str, *names: str, count: int, rate: float = RATE, seconds: float = BODY) -> None:
        """Begin to send `count` tasks, named `names` in turn, with the ids PREFIX-0, PREFIX-1, ..."""
        # As careful as a publisher can be: RabbitMQ confirms what it has.
        options = {**self.members.settings.get("broker_transport_options", {}), "confirm_publish": True}
        environment = self.members.environment(settings={"broker_transport_options": options}, SMOKE_NAME="publisher")
        command = [sys.executable, "-m", "tests.fleet.publisher", prefix, str(count), str(rate), str(seconds), *names]
        directory = self.members.directory
        with (directory / f"{prefix}.log").open("ab") as log:
            self.streams[prefix] = start_process(command, env=environment, stdout=log, stderr=log, cwd=directory)

    def sent(self, prefix: str) -> list[str]:
        """The ids that the broker has confirmed so far."""
        path = self.members.directory / f"sent.{prefix}"
        return path.read_text().split() if path.exists() else []

    def wait_sent(self, prefix: str, *, timeout: float = 120.0) -> list[str]:
        """Wait for the end of the stream; its ids."""
        status = self.streams[prefix].wait(timeout)
        assert status == 0, (self.members.directory / f"{prefix}.log").read_text()
        return self.sent(prefix)

    def wait_done(self, prefix: str, count: int, *, timeout: float = 60.0, but: Process | None = None) -> None:
        """Wait until `count` tasks of a stream have run that began later than now, by others than `but`."""
        since = boottime()

        def enough() -> bool:
            ran = [run for run in self.records()[0] if run.start > since and (but is None or run.worker != but.name)]
            return sum(task.startswith(f"{prefix}-") for task in judge.done(ran)) >= count

        wait_until(enough, timeout=timeout, what=f"{count} tasks, see {self.members.directory}", interval=0.2)

    def wait_long(self, prefix: str, worker: Process, *, timeout: float = 60.0) -> None:
        """Wait until a long task of a stream has just begun at a worker."""

        def begun() -> bool:
            return any(
                run.end is None and run.worker == worker.name and boottime() - run.start < BODY * LONG / 4
                for run in self.records()[0]
                if run.task.startswith(f"{prefix}-") and is_long(int(run.task.rpartition("-")[2]))
            )

        wait_until(begun, timeout=timeout, what=f"a long task, see {self.members.directory}", interval=0.02)

    def records(self) -> tuple[list[runs.Run], list[runs.Received]]:
        """All that the workers wrote."""
        if self._reader is None:
            self._reader = runs.Reader(self.members.directory)
        return self._reader.read()

    def stop(self) -> None:
        """End all workers and streams, at once. What they wrote stays."""
        for stream in self.streams.values():
            stop_process(stream, force=True)
        self.streams.clear()
        self.members.stop()
