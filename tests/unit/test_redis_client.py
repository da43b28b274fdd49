"""A Redis channel keeps its client from one message to the next: with kombu's own channel, and clients that connect to
nothing.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import kombu
import pytest
from kombu.transport.memory import Channel as MemoryChannel

from celery_neli.beat.replicated.templates import keep_client

if TYPE_CHECKING:
    from collections.abc import Iterator

transport = pytest.importorskip("kombu.transport.redis")
pytest.importorskip("redis")


class Client:
    """A `redis.Redis` without a server."""

    def __init__(self, connection_pool: Any) -> None:
        self.connection_pool = connection_pool

    def ping(self) -> None: ...

    def pubsub(self) -> Client:
        return self


class Channel(transport.Channel):  # type: ignore[misc,name-defined]
    """kombu's, with such clients."""

    def _get_client(self) -> Any:
        return Client

    def fork(self) -> None:
        """What kombu does in a child: the pools are made anew."""
        self._after_fork()

    def new_client(self) -> Any:
        """A client as each command gets one."""
        with self.conn_or_acquire() as client:
            return client


@pytest.fixture
def connection() -> Iterator[Any]:
    with kombu.Connection("redis://127.0.0.1:1//") as connection:
        yield connection


@pytest.fixture
def channel(connection: Any) -> Channel:
    return Channel(connection.transport)


def test_kombu_makes_a_client_for_each_command(channel: Channel) -> None:
    """What there is to save; if it keeps one itself some day, nobody need."""
    assert channel.new_client() is not channel.new_client()


def test_the_client_is_kept_between_messages(channel: Channel) -> None:
    """It is one of kombu's, on the channel's pool."""
    keep_client(SimpleNamespace(_channel=channel))
    client = channel.new_client()
    assert channel.new_client() is client
    assert type(client) is Client
    assert client.connection_pool is channel.pool


def test_a_client_is_made_anew_when_the_pool_is_another(channel: Channel) -> None:
    """After a fork, or a disconnect, the old one leads to connections that are closed, or another process's."""
    keep_client(SimpleNamespace(_channel=channel))
    before = channel.new_client()
    channel.fork()
    client = channel.new_client()
    assert client is not before
    assert client.connection_pool is channel.pool
    assert channel.new_client() is client, "kept in its turn"


def test_clients_of_the_other_pool_are_not_kept(channel: Channel) -> None:
    """Those that consumers listen with: each has its state."""
    keep_client(SimpleNamespace(_channel=channel))
    kept = channel.new_client()
    listening = channel.subclient
    assert listening is not kept
    assert listening.connection_pool is channel.async_pool
    assert channel.new_client() is kept


def test_what_a_class_overrides_is_left_alone(connection: Any) -> None:
    """Somebody wants to see each client."""
    made: list[Any] = []

    class Own(Channel):
        def _create_client(self, asynchronous: bool = False) -> Any:
            made.append(super()._create_client(asynchronous=asynchronous))
            return made[-1]

    channel = Own(connection.transport)
    made.clear()
    keep_client(SimpleNamespace(_channel=channel))
    assert [channel.new_client(), channel.new_client()] == made
    assert made[0] is not made[1]


def test_what_a_channel_overrides_is_left_alone(channel: Channel) -> None:
    """The same, put on the channel itself; `keep_client` does so, and may come twice."""
    clients = iter(range(3))
    vars(channel)["_create_client"] = lambda asynchronous=False: next(clients)
    keep_client(SimpleNamespace(_channel=channel))
    assert [channel.new_client(), channel.new_client()] == [0, 1]


def test_a_patched_method_is_left_alone(channel: Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    """By Sentry and the like, on kombu's class."""
    original = transport.Channel._create_client  # noqa: SLF001 - the seam
    seen: list[bool] = []

    def create_client(self: Any, asynchronous: bool = False) -> Any:
        seen.append(asynchronous)
        return original(self, asynchronous=asynchronous)

    monkeypatch.setattr(transport.Channel, "_create_client", create_client)
    keep_client(SimpleNamespace(_channel=channel))
    channel.new_client()
    channel.new_client()
    assert seen == [False, False]


def test_other_channels_are_left_alone() -> None:
    """Those to other brokers, though Redis's transport is loaded."""
    with kombu.Connection("memory://") as connection:
        channel = connection.channel()
        assert type(channel) is MemoryChannel
        before = dict(vars(channel))
        keep_client(SimpleNamespace(_channel=channel))
        assert vars(channel) == before


def test_a_producer_without_a_channel_is_left_alone(connection: Any) -> None:
    """To ask it for one would connect, outside Celery's own retries. Later messages find one."""
    producer = connection.Producer(auto_declare=False)
    before = dict(vars(producer))
    keep_client(producer)
    assert vars(producer) == before
