"""One broker process: what Redis and RabbitMQ have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from tests.processes import start_process, stop_process, wait_until

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path


class Server(ABC):
    """A server on free ports of 127.0.0.1, which it keeps over restarts, as it does its data. Context manager.

    Not thread-safe. Methods that start or stop block, for at most half a minute or so.
    """

    url: str
    """For `broker_url`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> tuple[list[str], dict[str, str] | None]:
        """What to run, and in which environment (None: this process's)."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether it answers a client now."""

    @property
    def running(self) -> bool:
        """Whether its process exists."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> Path:
        """The file of everything that it says."""
        return self.directory / "log"

    def start(self, *, timeout: float = 90.0) -> None:
        """Start the process if it does not run, and wait until it answers. Raises `TimeoutError`, `RuntimeError`."""
        if not self.running:
            command, environment = self.command()
            with self.log.open("ab") as log:
                self._process = start_process(command, env=environment, stdout=log, stderr=log, cwd=self.directory)

        def answers() -> bool:
            if not self.running:
                raise RuntimeError(f"{command_name(self)} ended, see {self.log}")
            return self.answers()

        wait_until(answers, timeout=timeout, what=f"an answer of {command_name(self)}, see {self.log}")

    def stop(self) -> None:
        """Stop it cleanly (SIGTERM), and wait for its end. Does nothing if it does not run."""
        self._end(force=False)

    def kill(self) -> None:
        """Kill it, and wait for its end."""
        self._end(force=True)

    def _end(self, *, force: bool) -> None:
        if self._process is not None:
            stop_process(self._process, timeout=30, force=force)
        self._process = None

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def command_name(server: Server) -> str:
    """For messages."""
    return type(server).__name__
