"""A message goes on to its role's queue, or back to where it came from: whole, and never lost.

It is published on the channel that it came by, before it is acknowledged there: AMQP brokers do both in this order or,
when the connection breaks, neither or the first. A crash in between doubles the task, with the same id.
"""

from __future__ import annotations

import logging
from typing import Any, cast

from kombu import compression
from kombu.entity import PERSISTENT_DELIVERY_MODE, Queue

from celery_neli.logs import escaping

logger = escaping(logging.getLogger(__name__))
_compress: Any = compression.compress  # kombu's comes without types

_PROPERTIES = (
    "correlation_id", "reply_to", "delivery_mode", "expiration", "message_id", "timestamp", "type", "app_id",
)  # fmt: skip
"""Of AMQP, beside the priority; the others are the broker's, or (user_id) refused when another user sends them."""
_BROKERS_HEADERS = ("x-death", "x-delivery-count", "x-acquired-count")
DELIVERIES = 10
"""RabbitMQ drops a quorum queue's message that was returned 20 times (its delivery limit); published anew it starts at
none.
"""


def forward(message: Any, queue: Queue) -> None:
    """Publish `message` to `queue`, which is there (`consuming.LeaderQueues`), then acknowledge it. On the consumer's
    thread; blocks as a publish and an acknowledgement do.

    Nothing here may wait for the broker's answer: py-amqp takes further deliveries while it waits, and each of them
    would come here and wait in turn.

    Id, headers (ETA, expiry, retries, links), body, priority and the other properties stay as they came, whether they
    make sense or not: below kombu's Producer, which would convert them, and stumble. What the publish raises is raised,
    and then the message is not acknowledged.
    """
    headers = {key: value for key, value in message.headers.items() if not str(key).startswith(_BROKERS_HEADERS)}
    body = message.body
    if headers.get("compression"):  # the body was decompressed on arrival
        body, headers["compression"] = _compress(body, headers["compression"])
    given, exchange = message.properties, cast("Any", queue.exchange)
    properties = {key: given[key] for key in _PROPERTIES if given.get(key) is not None}
    properties.setdefault("delivery_mode", exchange.delivery_mode or PERSISTENT_DELIVERY_MODE)
    priority = given.get("priority")
    channel = message.channel
    copy = channel.prepare_message(
        body,
        priority if isinstance(priority, int) else 0,  # kombu makes an int of it, and cannot of infinity
        message.content_type,
        message.content_encoding,
        headers,
        properties,
    )
    channel.basic_publish(copy, exchange=exchange.name, routing_key=queue.routing_key)
    message.ack()


def give_back(message: Any, queue: Queue) -> None:
    """Return an unstarted message to the queue that it came by; to `queue`, the role's own, where the broker cannot.

    On the consumer's thread. What goes wrong is logged: the message stays unacknowledged, and comes back with the end
    of the connection.
    """
    try:
        if returnable(message):
            message.requeue()
        else:
            forward(message, queue)
    except Exception as exc:  # noqa: BLE001 - on a connection that is gone kombu's Redis raises AttributeError
        logger.warning("message not returned id=%s: %r; the broker redelivers it", message.headers.get("id"), exc)


def returnable(message: Any) -> bool:
    """Whether the broker takes a message back. kombu's Kafka transport seeks in place of that, to the last message
    acknowledged: it would run others again.
    """
    if getattr(message.channel.connection, "driver_type", None) == "kafka":
        return False
    deliveries = message.headers.get("x-delivery-count", 0)
    return not isinstance(deliveries, int) or deliveries < DELIVERIES
