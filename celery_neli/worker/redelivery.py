"""Move a message that this worker must not run: on to its role's queue, or back to where it came from.

A message is published on the channel that it came from before it is acknowledged there. When the connection breaks, an
AMQP broker has done both, the first or neither, so no message is lost. A crash in between doubles the task, with the
same id.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any, Final, cast

from kombu import compression
from kombu.entity import PERSISTENT_DELIVERY_MODE, Queue

from celery_neli import hooks
from celery_neli.logs import escaping

logger = escaping(logging.getLogger(__name__))
_compress: Any = compression.compress  # kombu's comes without types

_PROPERTIES: Final = (
    "correlation_id", "reply_to", "delivery_mode", "expiration", "message_id", "timestamp", "type", "app_id",
)  # fmt: skip
"""The AMQP properties that are copied; the broker sets the others, or refuses them of another user (user_id)."""
_BROKERS_HEADERS: Final = ("x-death", "x-delivery-count", "x-acquired-count")
DELIVERIES: Final = 10
"""RabbitMQ drops a quorum queue's message after 20 returns (its delivery limit). Publishing it resets the count."""


@dataclass(frozen=True, slots=True)
class Counts:
    """How many messages this worker's main process did not run since it started, by role. Any thread may read them."""

    forwarded: Counter[str] = field(default_factory=Counter)
    """They reached a standby through another queue, and were published to the role's queue."""
    sent_back: Counter[str] = field(default_factory=Counter)
    """They returned to their queue unstarted, as this worker no longer leads."""
    skipped: Counter[str] = field(default_factory=Counter)
    """They were acknowledged unrun (`on_standby="skip"`)."""

    def add(self, what: str, role: str) -> None:
        """Count one message of `role`; `what` is the name of one of the numbers."""
        numbers: Counter[str] = getattr(self, what)
        numbers[role] += 1
        if hooks.leader_task:
            hooks.leader_task(what, role)

    def of_role(self, role: str) -> dict[str, int]:
        """Return the three numbers of `role` by their names."""
        return {each.name: getattr(self, each.name)[role] for each in fields(self)}


counts = Counts()


def published_to(message: Any, queue: Queue) -> bool:
    """Return True if this message (or that of a request) was published to `queue`, maybe for RabbitMQ to delay it."""
    info = message.delivery_info if isinstance(message.delivery_info, dict) else {}
    exchange, key = (info.get(name) or "" for name in ("exchange", "routing_key"))
    if not isinstance(exchange, str) or not isinstance(key, str):
        return False
    if exchange in ("", queue.exchange.name) and key == queue.routing_key:  # "": what Celery makes of a direct exchange
        return True
    return exchange.startswith("celery_delayed") and key.endswith(f".{queue.routing_key}")


def forward(message: Any, queue: Queue) -> None:
    """Publish `message` to `queue`, which `consumer_step.py` has declared, then acknowledge it.

    Headers (id, ETA, expiry, retries, links), body, priority and the other properties stay as they came, whether they
    make sense or not: kombu's Producer would convert them, and fail.

    Call it on the consumer's thread. It must not wait for an answer of the broker: py-amqp takes further deliveries
    while it waits, and each of them would come here and wait in turn. If the publish raises, the error is passed on,
    and the message is not acknowledged.
    """
    headers = {key: value for key, value in message.headers.items() if not str(key).startswith(_BROKERS_HEADERS)}
    body = message.body
    if headers.get("compression"):  # the body was decompressed on arrival
        body, headers["compression"] = _compress(body, headers["compression"])
    given, exchange = message.properties, cast("Any", queue.exchange)
    properties = {key: given[key] for key in _PROPERTIES if given.get(key) is not None}
    properties.setdefault("delivery_mode", exchange.delivery_mode or PERSISTENT_DELIVERY_MODE)
    priority = given.get("priority")
    priority = priority if isinstance(priority, int) else 0  # kombu makes an int of it, and cannot of infinity
    kind, channel = (message.content_type, message.content_encoding), message.channel
    copy = channel.prepare_message(body, priority, *kind, headers, properties)
    channel.basic_publish(copy, exchange=exchange.name, routing_key=queue.routing_key)
    message.ack()


def give_back(message: Any, queue: Queue) -> None:
    """Return an unstarted message to the queue that it came from, or to `queue`, the role's, where the broker cannot.

    Call it on the consumer's thread. An error is logged: the broker redelivers the message when the connection ends.
    """
    try:
        deliveries = message.headers.get("x-delivery-count", 0)
        worn = isinstance(deliveries, int) and deliveries >= DELIVERIES
        # kombu's Kafka transport would seek to the last message acknowledged, and run others again.
        if worn or getattr(message.channel.connection, "driver_type", None) == "kafka":
            forward(message, queue)
        else:
            message.requeue()
    except Exception as exc:  # noqa: BLE001 - on a connection that is gone kombu's Redis raises AttributeError
        logger.warning("message not returned id=%s: %r; the broker redelivers it", message.headers.get("id"), exc)
