"""What pytest-celery asks of a Docker container, done by a process of this machine."""

from __future__ import annotations

import os
import secrets
import shlex
import signal as signals
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_celery import RedisContainer

from tests.processes import start_process, stop_process

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).parents[2]


class LocalContainer:
    """The part of `docker.models.containers.Container` that pytest-celery uses. Context manager.

    `content` is what the container would find in its volume; the process runs there.
    """

    def __init__(
        self, command: list[str], *, directory: Path, environment: Mapping[str, str], content: Mapping[str, bytes]
    ) -> None:
        self.id = secrets.token_hex(32)
        self.name = f"local-{self.id[:12]}"
        self._directory = directory / self.name
        for path, data in {"log": b"", **content}.items():
            file = self._directory / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        # A container's host name is its id; here all share one.
        self._command = [word.replace("%h", self.id[:12]) for word in command]
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        modules = os.pathsep.join([str(self._directory), str(ROOT)])
        self._environment = {**os.environ, "PATH": path, **environment, "PYTHONPATH": modules}
        # Neither networks nor ports: the wrapper then takes a running container for one that can be reached.
        self.attrs: dict[str, Any] = {
            "Config": {"Hostname": "localhost", "Env": [f"{key}={value}" for key, value in environment.items()]},
            "HostConfig": {"PortBindings": {}},
            "NetworkSettings": {"Networks": {}, "Ports": {}},
        }
        self._process: subprocess.Popen[bytes]
        self.start()

    def start(self) -> None:
        """Start the process."""
        with (self._directory / "log").open("ab") as log:
            self._process = start_process(
                self._command, env=self._environment, cwd=self._directory, stdout=log, stderr=log
            )

    @property
    def status(self) -> str:
        """Docker's word for it."""
        return "running" if self._process.poll() is None else "exited"

    def reload(self) -> None:
        """Nothing is cached."""

    def logs(self) -> bytes:
        """All that it said."""
        return (self._directory / "log").read_bytes()

    def kill(self, signal: str | int | None = None) -> None:
        """Send a signal; SIGKILL, the default, ends every process of the container, as it does in Docker."""
        number = signals.Signals[signal] if isinstance(signal, str) else signals.Signals(signal or signals.SIGKILL)
        if number is signals.SIGKILL:
            stop_process(self._process, force=True)
        else:
            self._process.send_signal(number)

    def stop(self, timeout: float = 10) -> None:
        """End it: SIGTERM, then SIGKILL."""
        stop_process(self._process, timeout=timeout)

    def restart(self, timeout: float = 10) -> None:
        """End it, and start it again."""
        self.stop(timeout)
        self.start()

    def exec_run(self, cmd: str) -> tuple[int, bytes]:
        """Run a command beside it."""
        done = subprocess.run(
            shlex.split(cmd), env=self._environment, cwd=self._directory, capture_output=True, check=False
        )
        return done.returncode, done.stdout + done.stderr

    def __enter__(self) -> LocalContainer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class LocalRedis(RedisContainer):  # type: ignore[misc]
    """Redis, found at the port that its command names (the last word)."""

    @property
    def port(self) -> int:
        """Of 127.0.0.1."""
        return int(self._container._command[-1])  # noqa: SLF001 - a container's own wrapper

    @property
    def url(self) -> str:
        """The same for workers and tests."""
        return str(self.host_url)


class LocalRabbitMQ:
    """A RabbitMQ that is running already, for the time of one test: what pytest-celery asks of a broker's container."""

    status = "running"

    def __init__(self, url: str) -> None:
        self.celeryconfig = {"url": url, "host_url": url}

    def ready(self) -> bool:
        """It was waited for."""
        return True

    def teardown(self) -> None:
        """Others need it."""
