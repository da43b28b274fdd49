"""The commands of the documents, as a new user types them, with their own lines as the app."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.processes import free_ports, start_process, stop_process, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

README = Path(__file__).parents[2] / "README.md"
WORKERS, SCHEDULE = README.parent / "docs" / "workers.md", README.parent / "docs" / "schedule.md"

pytestmark = pytest.mark.smoke


class Desk:
    """A directory with the first Python of a page as `shop.py`, and the processes started there."""

    def __init__(self, directory: Path, page: Path, redis_url: str = "") -> None:
        (self.port,) = free_ports(1)
        self.directory = directory
        self.environment = {**os.environ, "PYTHONPATH": str(README.parent)}
        self.processes: list[subprocess.Popen[bytes]] = []
        pattern = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
        adopted = pattern.findall(page.read_text(encoding="utf-8"))[0]
        for there, here in (("localhost:9092", f"localhost:{self.port}"), ("redis://localhost:6379/0", redis_url)):
            assert there in adopted
            adopted = adopted.replace(there, here or there)
        (directory / "shop.py").write_text(adopted)

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
        return self.do(self.command(arguments))

    def do(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        """Run `command` there to its end."""
        return subprocess.run(
            command,
            cwd=self.directory, env=self.environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip


@pytest.fixture
def sit_down(tmp_path: Path) -> Iterator[Callable[..., Desk]]:
    """Make a desk with nothing running."""
    made: list[Desk] = []

    def make(page: Path, redis_url: str = "") -> Desk:
        made.append(Desk(tmp_path, page, redis_url))
        return made[-1]

    yield make
    for desk in made:
        for process in reversed(desk.processes):
            stop_process(process)


def test_first_steps(sit_down: Callable[..., Desk]) -> None:
    """Kafka, two beats, status, resign: each command of the README does, and exits, as the README says."""
    desk = sit_down(README)
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


def test_entries_at_runtime(sit_down: Callable[..., Desk], redis_url: str) -> None:
    """Each command of the page, in its order, does what it says, and says what the page shows, but for the times."""
    desk = sit_down(README, redis_url)
    desk.start(f"neli kafka --port {desk.port}")
    text = SCHEDULE.read_text(encoding="utf-8").partition("### On the command line")[2].partition("### Import")[0]
    times = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ")
    said = {}
    for command, shown in re.findall(r"^\$ (celery .+)\n((?:(?!\$|```).*\n)*)", text, re.MULTILINE):
        words = shlex.split(command)
        done = desk.do([sys.executable, "-m", *words])
        assert done.returncode == 0, f"{command}: {done.stderr}"
        said[words[5]] = done.stdout
        if words[5] == "add":
            assert times.sub("then", done.stdout) == times.sub("then", shown)
    assert set(said) == {"add", "list", "show", "pause", "resume", "run", "remove", "next", "pauses"}
    assert {"new-year", "tidy", "tidy-more"} <= {line.split()[0] for line in said["list"].splitlines()}
    assert "every 5 min" in said["show"]
    assert "paused" in said["pause"]
    assert "alice" in desk.run("neli schedule show new-year").stdout
    left = {each["name"] for each in json.loads(desk.run("neli schedule list --json").stdout)}
    assert "new-year" in left
    assert "tidy-more" not in left
    assert desk.run("neli schedule add broken shop.tidy every-now-and-then").returncode == 1
    assert desk.run("neli schedule add").returncode == 2


def test_first_steps_of_workers(sit_down: Callable[..., Desk], redis_url: str) -> None:
    """Two workers: a call finds the one that leads, by name too; it says so when asked, and hands over when asked."""
    desk = sit_down(WORKERS, redis_url)
    desk.start(f"neli kafka --port {desk.port}")
    for name in ("one", "two"):
        desk.start(f"worker --loglevel INFO --concurrency 1 -n {name}@here")

    def told() -> dict[str, Any]:
        return json.loads(if_done(desk.run("inspect neli --json --timeout 2")) or "{}")

    def leaders() -> list[str]:
        return [name for name, reply in told().items() if reply["roles"]["leader"]["leading"]]

    (first,) = wait_until(leaders, timeout=60, what=f"a leader, see {desk.directory}")
    (shown,) = re.findall(r"^\$ (python -c .+)$", WORKERS.read_text(encoding="utf-8"), re.MULTILINE)
    called = desk.do([sys.executable, *shlex.split(shown)[1:]]), desk.run("call shop.rebuild_index")
    log = desk.directory / ("1.log" if first == "one@here" else "2.log")
    for task in (each.stdout.strip() for each in called):
        assert task, [each.stderr for each in called]
        wait_until(
            lambda done=f"shop.rebuild_index[{task}] succeeded": done in log.read_text(), timeout=30,
            what=f"the task {task} in {log}",
        )  # fmt: skip
    handed_over = desk.run("control neli_resign")
    assert handed_over.returncode == 0, handed_over.stderr
    assert "hands over leader (term " in handed_over.stdout
    assert "leads nothing" in handed_over.stdout
    wait_until(lambda: leaders() not in ([], [first]), timeout=60, what="another leader")


def if_done(done: subprocess.CompletedProcess[str]) -> str | None:
    """What it printed, if it ended with status 0."""
    return done.stdout if done.returncode == 0 else None
