"""A message of Celery's, looked at as it leaves, and what of it is the same in the next one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from celery_neli.beat.replicated.redis_client import keep_client

__all__ = ["Held", "Recorder", "Template"]


class Recorder:
    """A producer that notes what is published through it."""

    def __init__(self, producer: Any) -> None:
        self.published: list[tuple[Any, dict[str, Any]]] = []
        self._producer = producer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._producer, name)

    def publish(self, body: Any, **kwargs: Any) -> Any:
        """Note a copy, for compressing and sending add headers of their own; then publish."""
        self.published.append((body, dict(kwargs, headers=dict(kwargs["headers"]))))
        return self._producer.publish(body, **kwargs)


@dataclass(frozen=True, slots=True)
class Template:
    """A message without id, arguments, `expires` and the entry's headers."""

    headers: dict[str, Any]
    embed: dict[str, Any]
    publish: dict[str, Any]
    queue: Any
    task: Any
    expires: float | None
    routes: Any


class Held:
    """What of a channel is kept from one message to the next. Belongs to the thread of the channel's producer."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel
        self._declared: dict[str, Declared] = {}
        keep_client(channel)

    def declared(self, queue: Any) -> Declared:
        """``queue``, to be declared with a message."""
        found = self._declared.get(queue.name)
        if found is None or found.queue is not queue:
            found = self._declared[queue.name] = Declared(queue)
        return found


class Declared:
    """A queue to be declared with a message, which is bound to a channel once and not for each message.

    Given to kombu unbound, as Celery gives it: a publish that is retried on a new channel binds it to that one.
    """

    is_bound = False

    def __init__(self, queue: Any) -> None:
        self.queue = queue
        self._bound: Any = None

    def bind(self, channel: Any) -> Any:
        """The queue bound to ``channel``."""
        bound = self._bound
        if bound is None or bound.channel is not channel:
            bound = self._bound = self.queue.bind(channel)
        return bound

    def __hash__(self) -> int:
        return hash(self.queue)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.queue, name)
