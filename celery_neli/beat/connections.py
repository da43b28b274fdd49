"""Dropping the connection to a task broker without waiting for the broker."""

from __future__ import annotations

import threading
from typing import Any

from celery.utils.log import get_logger

from celery_neli.logs import escaping

__all__ = ["DROP_TIMEOUT", "drop_connection"]

logger = escaping(get_logger(__name__))

#: Seconds that dropping one connection may take, which waits for nobody but a socket.
DROP_TIMEOUT = 2.0

_dropping = threading.Lock()


def drop_connection(connection: Any) -> None:
    """Drop a kombu connection, on the thread that used it: within `DROP_TIMEOUT` seconds, and those of others that are
    being dropped. Never raises.
    """
    # One at a time: kombu sets the whole process's default timeout of sockets meanwhile, and back to what it found.
    with _dropping:
        try:
            connection.collect(socket_timeout=1.0)
        except Exception as exc:  # noqa: BLE001 - any transport's; it is being thrown away
            logger.debug("beat: closing the task broker's connection: %r", exc)
