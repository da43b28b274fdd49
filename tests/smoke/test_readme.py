"""The README's commands, as a new user types them, with its own lines as the app."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.processes import free_ports, start_process, stop_process, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

README = Path(__file__).parents[2] / "README.md"

pytestmark = pytest.mark.smoke


class Desk:
    """A directory with the README's `shop.py`, and the processes started there."""

    def __init__(self, directory: Path) -> None:
        (self.port,) = free_ports(1)
        self.directory = directory
        self.environment = {**os.environ, "PYTHONPATH": str(README.parent)}
        self.processes: list[subprocess.Popen[bytes]] = []
        pattern = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
        adopted = pattern.findall(README.read_text(encoding="utf-8"))[0]
        assert "localhost:9092" in adopted
        (directory / "shop.py").write_text(adopted.replace("localhost:9092", f"localhost:{self.port}"))

    def command(self, arguments: str) -> list[str]:
        return [sys.executable, "-m", "celery", "-A", "shop", *arguments.split()]

    def start(self, arguments: str) -> subprocess.Popen[bytes]:
        """Start `celery -A shop …`; ended with the test."""
        with (self.directory / f"{len(self.processes)}.log").open("wb") as log:
            process = start_process(
                self.command(arguments), cwd=self.directory, env=self.environment, stdout=log, stderr=log
            )
        self.processes.append(process)
        return process

    def run(self, arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `celery -A shop …` to its end."""
        return subprocess.run(
            self.command(arguments),
            cwd=self.directory, env=self.environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A desk with nothing running."""
    made = Desk(tmp_path)
    yield made
    for process in reversed(made.processes):
        stop_process(process)


def test_first_steps(desk: Desk) -> None:
    """Kafka, two beats, status, resign: each command of the README does, and exits, as the README says."""
    assert desk.run("neli status").returncode == 1, "no Kafka yet"
    kafka = desk.start(f"neli kafka --port {desk.port}")
    for name in ("one", "two"):
        desk.start(f"beat --loglevel INFO --pidfile= -n {name}@here")
    led = wait_until(lambda: if_done(desk.run("neli status")), timeout=60, what="a leader")
    assert re.search(r"role leader: \S+ leads  term \d+ ", led)
    assert desk.run("neli status --election beat --json").returncode == 0
    handed_over = desk.run("neli resign")
    assert handed_over.returncode == 0, handed_over.stderr
    assert "handed over to" in handed_over.stdout
    assert desk.run("neli status --nonsense").returncode == 2
    for beat in desk.processes[1:]:
        stop_process(beat)
    assert desk.run("neli status --election beat").returncode == 1, "the last beat has gone"
    assert stop_process(kafka) == 0


def if_done(done: subprocess.CompletedProcess[str]) -> str | None:
    """What it printed, if it ended with status 0."""
    return done.stdout if done.returncode == 0 else None
