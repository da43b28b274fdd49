"""Messages that go on to a role's queue, or back."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from kombu import Connection, Exchange, Producer, Queue

from celery_neli.worker.redelivery import forward, give_back, published_to

_number = itertools.count()


class Broker:
    """kombu's memory transport, with a queue that messages come by and one that they go to."""

    def __init__(self, connection: Connection) -> None:
        number = next(_number)
        self.channel: Any = connection.default_channel
        self.source = Queue(f"source{number}", Exchange(f"source{number}"), f"source{number}")(self.channel)
        self.target = Queue(f"target{number}", Exchange(f"target{number}"), f"target{number}")
        self.source.declare()
        self.target(self.channel).declare()

    def take(self, **options: Any) -> Any:
        """A message that was sent to the source, unacknowledged."""
        options.setdefault("headers", {"id": "one"})
        Producer(self.channel).publish({"a": 1}, exchange=self.source.exchange, routing_key=self.source.name, **options)
        return self.source.get()

    def at(self, queue: Queue) -> Any:
        """The message at the queue, if any."""
        return queue(self.channel).get(no_ack=True)


@pytest.fixture
def broker() -> Iterator[Broker]:
    with Connection("memory://") as connection:
        yield Broker(connection)


def test_properties_of_the_message_stay(broker: Broker) -> None:
    """Also how long the broker shall keep it: milliseconds on the wire, seconds to kombu."""
    message = broker.take(
        priority=3, correlation_id="one", reply_to="caller", expiration=60, delivery_mode=1, message_id="m"
    )
    forward(message, broker.target)
    forwarded = broker.at(broker.target)
    kept = ("priority", "correlation_id", "reply_to", "expiration", "delivery_mode", "message_id")
    assert {key: forwarded.properties[key] for key in kept} == {key: message.properties[key] for key in kept}
    assert forwarded.properties["expiration"] == "60000"
    assert (forwarded.content_type, forwarded.content_encoding) == (message.content_type, message.content_encoding)
    assert message.acknowledged


def test_nothing_waits_for_an_answer(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """py-amqp would take the next delivery while it waits, which comes here again, until answers are mixed up."""
    message = broker.take()
    for name in ("queue_declare", "exchange_declare", "queue_bind"):
        monkeypatch.setattr(broker.channel, name, None)
    forward(message, broker.target)
    assert message.acknowledged


def test_what_the_broker_wrote_on_it_stays_behind(broker: Broker) -> None:
    """Its count of deliveries begins anew."""
    forward(broker.take(headers={"id": "one", "x-delivery-count": 3, "x-death": [{}]}), broker.target)
    assert broker.at(broker.target).headers == {"id": "one"}


def test_a_message_goes_back_to_where_it_came_from(broker: Broker) -> None:
    """The broker keeps its place."""
    give_back(broker.take(), broker.target)
    assert broker.at(broker.source).payload == {"a": 1}


def test_a_message_that_came_back_often_is_published_anew(broker: Broker) -> None:
    """RabbitMQ drops what was returned to a quorum queue twenty times."""
    give_back(broker.take(headers={"id": "one", "x-delivery-count": 10}), broker.target)
    assert broker.at(broker.source) is None
    assert broker.at(broker.target).headers == {"id": "one"}


def test_kafka_takes_nothing_back(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """What kombu does would run others again: published anew instead."""
    message = broker.take()
    monkeypatch.setattr(message.channel.connection, "driver_type", "kafka")
    give_back(message, broker.target)
    assert broker.at(broker.source) is None
    assert broker.at(broker.target).payload == {"a": 1}


@pytest.mark.parametrize("error", [ConnectionResetError("gone"), AttributeError("hostname")])
def test_a_broken_connection_returns_messages_by_itself(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """No reason to fail, but to say so. kombu's Redis raises any error on a connection that was closed."""

    class Gone:
        headers: dict[str, Any] = {"id": "one"}  # noqa: RUF012 - a fake
        channel = SimpleNamespace(connection=None)

        def requeue(self) -> None:
            raise error

    with caplog.at_level(logging.WARNING):
        give_back(Gone(), Queue("target"))
    assert "id=one" in caplog.text


def test_where_a_message_came_by_is_told_by_exchange_and_key() -> None:
    """Also if RabbitMQ held it back until its ETA (quorum queues)."""
    queue = Queue("shop.leader.leader", Exchange("shop.leader.leader", type="topic"), "shop.leader.leader")

    def by(exchange: str, key: str) -> bool:
        return published_to(SimpleNamespace(delivery_info={"exchange": exchange, "routing_key": key}), queue)

    assert by("shop.leader.leader", "shop.leader.leader")
    assert by("celery_delayed_0", "0.0.1.1.shop.leader.leader")
    assert by("celery_delayed_delivery", "0.1.shop.leader.leader")
    assert not by("celery", "celery")
    assert not by("celery_delayed_0", "0.0.1.1.celery")
