"""Run what a page shows as a new user would paste it: in an empty directory, with a fresh environment."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests import services
from tests.processes import start_process, stop_process

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT = Path(__file__).parents[2]
_NAMES = (
    (r"\b[\w.-]+_\d+_\d{10}\b", "NAME"),
    (r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:[.,]\d+)?(?: UTC|Z)?", "TIME"),
    (r"\[[0-9a-f]{8}-[0-9a-f-]{27}\]", "[ID]"),
    (r"ForkPoolWorker-\d+", "CHILD"),
    (r"\bschedule [0-9a-f]{8}\b", "schedule HASH"),
    (r"\d+(?:\.\d+(?:e-\d+)?)?(?= ?(?:s|min|h)\b)", "N"),
    (r"\bterm \d+", "term N"),
)


def blocks(page: Path, language: str, *, after: str = "") -> list[str]:
    """Return the fenced code blocks of a language, in their order; of what follows the heading `after`."""
    text = page.read_text(encoding="utf-8").partition(after)[2] if after else page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(block: str) -> list[tuple[str, str]]:
    """Return each command of a console block, with the output that the page shows for it."""
    return [(command, shown) for command, shown in re.findall(r"^\$ (.+)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)]


def but_for_names_and_times(text: str) -> str:
    """Return `text` with the names, times and ids that differ from run to run replaced by words."""
    for pattern, word in _NAMES:
        text = re.sub(pattern, word, text)
    return text


def lines_but_for_names_and_times(text: str) -> list[str]:
    """Return the lines of `text` as above; members, which are shown in the order of their names, in one order."""
    lines = but_for_names_and_times(text).splitlines()
    members = sorted(line for line in lines if line.startswith("    NAME"))
    return [members.pop(0) if line.startswith("    NAME") else line for line in lines]


class FreshEnvironment:
    """A virtual environment and an empty directory. `install` may use the network; `run` has one of its own, in which
    every port is free and nothing outside can be reached.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "empty"
        self.directory.mkdir()
        subprocess.run([sys.executable, "-m", "venv", directory / "venv"], check=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV_"))}
        self._environment = {**kept, "PATH": f"{directory / 'venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"}

    def install(self, lines: Iterable[str]) -> None:
        """Run the lines in the directory."""
        script = "set -e\n" + "\n".join(lines)
        subprocess.run(
            ["bash", "-c", script], cwd=self.directory, env=self._environment, check=True, capture_output=True
        )

    def run(self, lines: Iterable[str], *, timeout: float = 120.0) -> list[str]:
        """Run the lines in one shell, with a Redis on port 6379, and return what each printed. Ends all that they
        started. Blocks.
        """
        services.require("unshare and ip, for a network of its own", shutil.which("unshare") and shutil.which("ip"))
        services.require("redis-server", services.redis_server())
        script = "ip link set lo up\nredis-server --port 6379 --bind 127.0.0.1 --save '' >redis.log &\n"
        script += "until redis-cli ping >/dev/null 2>&1; do sleep 0.1; done\n"
        script += "".join(f"echo; echo '@@ {number}'\n{line}\n" for number, line in enumerate(lines))
        command = ["unshare", "--net", "--map-root-user", "--pid", "--fork", "--kill-child", "bash", "-c", script]
        output = self.directory / "output.log"
        with output.open("wb") as log:
            process = start_process(command, cwd=self.directory, env=self._environment, stdout=log, stderr=log)
            try:
                process.wait(timeout)
            finally:
                stop_process(process)
        text = output.read_text(encoding="utf-8")
        return re.split(r"\n@@ \d+\n", text)[1:]
