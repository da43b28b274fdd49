"""Let a Redis channel of kombu's keep its client, in place of a new one for each message.

kombu makes a `redis.Redis` object for every command, on one pool of connections. Making it takes longer than everything
else that happens in Python between a message and its way out. It has no state but the pool, so the next message can
have the same one.
"""

from __future__ import annotations

import sys
from typing import Any

from celery_neli.beat.replicated.unpatched import is_unpatched, source_of

__all__ = ["keep_client"]

_TRANSPORT = "kombu.transport.redis"


def keep_client(producer: Any) -> None:
    """Let the channel of a kombu producer keep its client, if it is kombu's own to Redis, with nothing overridden.

    Any number of times; never blocks, and does not connect: a producer that has no channel yet is left alone. For the
    thread that uses the producer.
    """
    transport = sys.modules.get(_TRANSPORT)
    channel = getattr(producer, "_channel", None)  # `channel` would connect, outside Celery's own retries
    if transport is None or not isinstance(channel, transport.Channel) or "_create_client" in vars(channel):
        return
    if not is_unpatched(channel, "_create_client", source_of(transport)):
        return
    make = channel._create_client
    kept: Any = None

    def create_client(asynchronous: bool = False) -> Any:
        nonlocal kept
        if asynchronous:
            return make(asynchronous=True)
        if kept is None or kept.connection_pool is not channel.pool:  # a disconnect replaces the pool
            kept = make()
        return kept

    channel._create_client = create_client
