"""Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING

import redis

from tests.brokers.server import Server
from tests.processes import free_ports

if TYPE_CHECKING:
    from pathlib import Path


class RedisServer(Server):
    """Redis; with `durable`, what it has acknowledged survives its end, however it ends (an append-only file)."""

    def __init__(self, program: str, directory: Path, *, durable: bool = False) -> None:
        super().__init__(directory)
        self._program, self._durable = program, durable
        (self.port,) = free_ports(1)
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> tuple[list[str], None]:
        """It writes the file before it answers; the system has the data then, even if Redis is killed."""
        keep = ["--appendonly", "yes" if self._durable else "no", "--save", ""]
        place = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.directory)]
        return [self._program, *place, *keep], None

    def answers(self) -> bool:
        """Not while it loads its file."""
        with redis.Redis.from_url(self.url) as client:
            try:
                return bool(client.ping())
            except (redis.ConnectionError, redis.BusyLoadingError):
                return False

    def empty(self) -> None:
        """Forget everything."""
        with redis.Redis.from_url(self.url) as client:
            client.flushall()
