"""A client that a Redis channel of kombu's keeps, in place of a new one for each message.

kombu makes a `redis.Redis` object for every command, on one pool of connections. Making it takes longer than all else
that happens in Python between a message and its way out. It has no state but the pool, so the next message can have the
same one.
"""

from __future__ import annotations

import sys
from typing import Any

from celery_neli.beat.replicated.unpatched import is_genuine, source_of

__all__ = ["keep_client"]

_TRANSPORT = "kombu.transport.redis"


def keep_client(channel: Any) -> None:
    """Let ``channel`` keep its client, if it is a channel of kombu's own to Redis, with nothing of this overridden.

    Never blocks; for the thread that uses the channel.
    """
    transport = sys.modules.get(_TRANSPORT)
    if transport is None or not isinstance(channel, transport.Channel):
        return
    source = source_of(transport)
    if not (is_genuine(channel, "_create_client", source) and "_create_client" not in vars(channel)):
        return
    make = channel._create_client
    kept: Any = None

    def create_client(asynchronous: bool = False) -> Any:
        nonlocal kept
        if asynchronous:
            return make(asynchronous=True)
        if kept is None or kept.connection_pool is not channel.pool:  # the pool is made anew after a disconnect
            kept = make()
        return kept

    channel._create_client = create_client
