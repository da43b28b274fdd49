"""RabbitMQ, apart from any other one on this machine: own node, data, cookie and port mapper, all on 127.0.0.1."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
from typing import TYPE_CHECKING

from tests.brokers.server import Server
from tests.processes import free_ports, start_process, stop_process

if TYPE_CHECKING:
    from pathlib import Path

# A node's name has an address in place of a host's name, so nothing needs to be resolved.
NODE = "rabbit@127.0.0.1"
# Erlang's connections between nodes listen on every address by default.
LOOPBACK = "-kernel inet_dist_use_interface {127,0,0,1}"
# The protocol's header of AMQP 0-9-1; the broker answers with a frame.
_GREETING = b"AMQP\x00\x00\x09\x01"


class RabbitMQServer(Server):
    """RabbitMQ without plugins; takes some ten seconds to start. Runs as any user, without Debian's wrapper scripts."""

    def __init__(self, program: str, directory: Path) -> None:
        super().__init__(directory)
        self._program = program
        self.port, self._nodes_port, self._mapper_port = free_ports(3)
        self.url = self.vhost_url("%2F")
        self._mapper: subprocess.Popen[bytes] | None = None
        cookie = directory / ".erlang.cookie"
        cookie.write_text(secrets.token_hex(20))
        cookie.chmod(0o400)
        (directory / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\nlog.console = true\nlog.file = false\n"
        )
        (directory / "enabled_plugins").write_text("[].\n")

    def vhost_url(self, vhost: str) -> str:
        """The URL of a virtual host; it is not made by this."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/{vhost}"

    def start(self, *, timeout: float = 90.0) -> None:
        """Start the port mapper (in the foreground, so that it ends with the tests), then the broker."""
        if self._mapper is None or self._mapper.poll() is not None:
            command = [_erlang("epmd"), "-address", "127.0.0.1", "-port", str(self._mapper_port)]
            with self.log.open("ab") as log:
                self._mapper = start_process(command, stdout=log, stderr=log)
        super().start(timeout=timeout)

    def command(self) -> tuple[list[str], dict[str, str]]:
        """The server's own script, kept from the system's configuration."""
        own = {
            "RABBITMQ_NODENAME": NODE,
            "RABBITMQ_USE_LONGNAME": "true",
            "RABBITMQ_DIST_PORT": str(self._nodes_port),
            "RABBITMQ_MNESIA_BASE": str(self.directory / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.directory),
            "RABBITMQ_CONF_ENV_FILE": str(self.directory / "none"),
            "RABBITMQ_CONFIG_FILE": str(self.directory / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.directory / "enabled_plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": LOOPBACK,
            # The script becomes the broker, in place of waiting for it: signals reach the broker.
            "RUNNING_UNDER_SYSTEMD": "true",
        }
        return [self._program], {**self._environment(), **own}

    def answers(self) -> bool:
        """Whether it speaks AMQP."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection:
                connection.sendall(_GREETING)
                return bool(connection.recv(1))
        except OSError:
            return False

    def make_vhost(self, name: str) -> str:
        """Make a virtual host (letters, digits and hyphens), and return its URL. Takes half a second."""
        user, vhost, all_ = '<<"guest">>', f'<<"{name}">>', '<<".*">>'
        self._call(f"rabbit_vhost, add, [{vhost}, {user}]")
        self._call(f"rabbit_auth_backend_internal, set_permissions, [{user}, {vhost}, {all_}, {all_}, {all_}, {user}]")
        return self.vhost_url(name)

    def delete_vhost(self, name: str) -> None:
        """Delete a virtual host with its queues; closes its connections."""
        self._call(f'rabbit_vhost, delete, [<<"{name}">>, <<"guest">>]')

    def _call(self, function: str) -> None:
        """Call a function of the broker's. `rabbitmqctl` would do it in three times the time, and needs a host name."""
        expression = f"ok = rpc:call('{NODE}', {function}), halt(0)."
        name = f"tests-{secrets.token_hex(4)}@127.0.0.1"
        done = subprocess.run(
            [_erlang("erl"), "-name", name, "-hidden", "-noinput", *LOOPBACK.split(), "-eval", expression],
            env=self._environment(), capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise RuntimeError(f"{function}: {done.stdout}{done.stderr}")

    def _environment(self) -> dict[str, str]:
        """Erlang finds the cookie in HOME."""
        mapper = {"ERL_EPMD_PORT": str(self._mapper_port), "ERL_EPMD_ADDRESS": "127.0.0.1"}
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("RABBITMQ_", "ERL_"))}
        return {**inherited, "HOME": str(self.directory), **mapper}

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        if self._mapper is not None:
            stop_process(self._mapper)


def _erlang(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise RuntimeError(f"{program}: not found, though RabbitMQ is there")
    return path
