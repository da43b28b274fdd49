"""One node of Apache Kafka, broker and controller in one: a local process to be killed, frozen and restarted."""

from __future__ import annotations

import os
import signal
import socket
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.processes import start_process, stop_process, wait_until

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

# Small and quick to start rather than fast.
JVM = ["-Xms64m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto"]
LOG4J = """
Configuration:
  Appenders: {Console: {name: STDOUT, PatternLayout: {pattern: "[%d] %p %m (%c)%n"}}}
  Loggers: {Root: {level: INFO, AppenderRef: [{ref: STDOUT}]}}
"""
# The simplest request of Kafka's protocol: length, ApiVersions (18), version 0, correlation id 1, no client id.
_API_VERSIONS = struct.pack(">ihhih", 10, 18, 0, 1, -1)


@dataclass(kw_only=True, eq=False)
class KafkaNode:
    """A node. Its ports, data and identity stay the same over restarts.

    Not thread-safe; methods of different nodes may run on different threads.
    """

    id: int
    port: int
    java: str = field(repr=False)
    libs: Path = field(repr=False)
    directory: Path
    properties: dict[str, Any] = field(repr=False)
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    frozen: bool = field(default=False, init=False)

    @property
    def address(self) -> str:
        """The broker's `host:port`."""
        return f"127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        """Whether its process exists, frozen or not."""
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self.process is not None
        return self.process.pid

    def format(self, cluster_id: str) -> subprocess.Popen[bytes]:
        """Begin to write the node's identity into its directory. The caller waits for the process that is returned."""
        self.directory.mkdir(parents=True)
        self._properties_file.write_text("".join(f"{key}={value}\n" for key, value in self.properties.items()))
        (self.directory / "log4j2.yaml").write_text(LOG4J)
        with self.log.open("wb") as log:
            tool = ["kafka.tools.StorageTool", "format", "-t", cluster_id, "-c", str(self._properties_file)]
            return start_process(self._java(*tool), stdout=log, stderr=log)

    def start(self) -> None:
        """Start the process; returns at once. Does nothing if it runs."""
        if self.running:
            return
        self.frozen = False
        with self.log.open("ab") as log:
            self.process = start_process(self._java("kafka.Kafka", str(self._properties_file)), stdout=log, stderr=log)

    def terminate(self, *, timeout: float = 30.0) -> None:
        """Stop the node cleanly (SIGTERM: it hands its partitions over first), and wait `timeout` seconds for its end.

        Killed if it has not ended by then.
        """
        self.thaw()
        self._end(timeout=timeout)

    def kill(self) -> None:
        """Kill the process, frozen or not, and wait for its end."""
        self._end(force=True)

    def freeze(self) -> None:
        """Stop the process's time; its connections stay open, and silent."""
        os.kill(self.pid, signal.SIGSTOP)
        self.frozen = True

    def thaw(self) -> None:
        """Let a frozen process go on. Does nothing to any other."""
        if self.frozen and self.running:
            os.kill(self.pid, signal.SIGCONT)
        self.frozen = False

    def wait_ready(self, *, timeout: float = 90.0) -> None:
        """Wait until the broker answers requests.

        Raises `RuntimeError` with the log's end if the process ended, `TimeoutError` after `timeout` seconds.
        """

        def answers() -> bool:
            if not self.running:
                raise RuntimeError(f"Kafka node {self.id} ended:\n{self.log_tail()}")
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection:
                    connection.sendall(_API_VERSIONS)
                    return len(connection.recv(4)) == 4
            except OSError:
                return False

        wait_until(
            answers, timeout=timeout, what=f"an answer of Kafka node {self.id} at {self.address}, see {self.log}"
        )

    @property
    def log(self) -> Path:
        """The file of everything that the node says."""
        return self.directory / "node.log"

    def log_tail(self, lines: int = 20) -> str:
        """Return the last lines of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    @property
    def _properties_file(self) -> Path:
        return self.directory / "server.properties"

    def _java(self, *arguments: str) -> list[str]:
        log4j = f"-Dlog4j2.configurationFile={self.directory}/log4j2.yaml"
        return [self.java, *JVM, log4j, "-cp", f"{self.libs}/*", *arguments]

    def _end(self, **how: Any) -> None:
        if self.process is not None:
            stop_process(self.process, **how)
        self.process = None
        self.frozen = False
