"""A message of Celery's, looked at as it leaves, and what of it is the same in the next one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Recorder", "Template"]


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
    expires: float | None
    routes: Any
    #: The queue bound to a channel: [channel, queue].
    bound: list[Any]
