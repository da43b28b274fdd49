"""Task brokers of this machine, started for the run: the memory transport, Redis and RabbitMQ."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from amqp.exceptions import ChannelError
from celery import Celery
from kombu import Connection

QUEUE = "celery"


def schedule_of(count: int) -> dict[str, Any]:
    """So many entries, none of which is due today."""
    return {f"e{n}": {"task": "bench.task", "schedule": timedelta(days=1)} for n in range(count)}


@dataclass
class Broker:
    """Where the messages go. `redis`: the URL of a Redis for RedBeat's schedule, if there is one."""

    name: str
    url: str
    redis: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def app(self, schedule: dict[str, Any], **conf: Any) -> Celery:
        """An app that sends here."""
        made = Celery("bench", broker=self.url, set_as_current=False)
        made.conf.update(
            result_expires=None, beat_schedule=schedule, broker_transport_options=self.options,
            **{"neli_group": "bench", **conf},
        )  # fmt: skip
        return made

    def __enter__(self) -> Broker:
        self._connection = Connection(self.url)
        self._channel = self._connection.channel()
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.release()

    def waiting(self) -> int:
        """How many messages wait in the queue, which exists once one was sent."""
        try:
            return int(self._channel.queue_declare(QUEUE, passive=True).message_count)
        except ChannelError:  # Redis knows no empty ones
            return 0

    def purge(self) -> None:
        """Forget them."""
        self._channel.queue_purge(QUEUE)


@contextlib.contextmanager
def redis_url() -> Iterator[str | None]:
    """An empty Redis, None if there is no redis-server here."""
    program = shutil.which("redis-server")
    if program is None:
        yield None
        return
    from tests.brokers.redis_server import RedisServer

    with tempfile.TemporaryDirectory() as directory, RedisServer(program, Path(directory, "redis")) as server:
        yield server.url


@contextlib.contextmanager
def broker(name: str, *, redis: bool = True) -> Iterator[Broker | None]:
    """A running broker of this transport, None if it is not installed; and a Redis for RedBeat."""
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(redis_url()) if redis or name == "redis" else None
        beats = None if url is None else url.removesuffix("/0") + "/1"
        if name == "memory":
            yield stack.enter_context(Broker(name, "memory://", beats))
        elif name == "redis":
            yield None if url is None else stack.enter_context(Broker(name, url, beats))
        else:
            program = shutil.which("/usr/lib/rabbitmq/bin/rabbitmq-server") or shutil.which("rabbitmq-server")
            if program is None:
                yield None
                return
            from tests.brokers.rabbitmq_server import RabbitMQServer

            directory = stack.enter_context(tempfile.TemporaryDirectory())
            server = stack.enter_context(RabbitMQServer(program, Path(directory, "rabbitmq")))
            options = {"confirm_publish": True} if name == "rabbitmq-confirm" else {}
            yield stack.enter_context(Broker(name, server.url, beats, options))
