"""The tests' own brokers: apart from others, gone with the tests, and able to be stopped without loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

import kombu
import pytest

if TYPE_CHECKING:
    from tests.brokers.rabbitmq_server import RabbitMQServer
    from tests.brokers.redis_server import RedisServer
    from tests.brokers.server import Server

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def put(url: str, text: str) -> None:
    with kombu.Connection(url) as connection:
        queue = connection.SimpleQueue("letters")
        queue.put(text)
        queue.close()


def get(url: str) -> str:
    with kombu.Connection(url) as connection:
        queue = connection.SimpleQueue("letters")
        message = queue.get(timeout=10)
        message.ack()
        queue.close()
    return str(message.payload)


def assert_keeps(server: Server, url: str, end: str) -> None:
    """What was put before an end, by `stop` or `kill`, is there after the next start, at the same address."""
    put(url, end)
    getattr(server, end)()
    assert not server.running
    assert not server.answers()
    server.start()
    assert get(url) == end


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_redis_keeps_what_it_has(own_redis: RedisServer, end: str) -> None:
    """Over an end of either kind."""
    assert_keeps(own_redis, own_redis.url, end)


def test_rabbitmq_keeps_what_it_has(rabbitmq_server: RabbitMQServer, rabbitmq_url: str) -> None:
    """Queues and messages of a virtual host."""
    assert_keeps(rabbitmq_server, rabbitmq_url, "stop")


def test_virtual_hosts_do_not_mix(rabbitmq_server: RabbitMQServer, rabbitmq_url: str) -> None:
    """A test finds no queue of another's."""
    other = rabbitmq_server.make_vhost("another")
    try:
        put(other, "for the other")
        put(rabbitmq_url, "for this")
        assert get(rabbitmq_url) == "for this"
        assert get(other) == "for the other"
    finally:
        rabbitmq_server.delete_vhost("another")
