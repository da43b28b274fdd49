"""What an operator must fix about the leader topic. It is logged once, and once more when the topic is usable again."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from celery_neli.exceptions import TopicError

if TYPE_CHECKING:
    from celery_neli.kafka.client_log import KafkaLog

__all__ = ["Trouble"]


class Trouble:
    """The trouble that a journal has with its topic. For one thread; never waits."""

    def __init__(self, topic: str, klog: KafkaLog) -> None:
        self._topic, self._klog = topic, klog
        self._denied: set[str] = set()  # the rights that are missing, as brokers said when they refused
        self._news: TopicError | None = None
        self._last: TopicError | None = None  # what was raised last

    def deny(self, operation: str) -> None:
        """A broker refused to let this member "Read" or "Write"; `tell` raises it."""
        self._denied.add(operation)
        self._news = TopicError(self._klog.denied([operation], "leader topic", self._topic))

    def allow(self, operation: str) -> None:
        """Note that this member could "Read" or "Write"."""
        if self._last is None:
            return
        self._denied.discard(operation)
        if not self._denied:
            self._last = None
            self._klog.say(logging.INFO, f"leader topic usable again topic={self._topic}")

    def found(self) -> None:
        """Note that the topic was checked and is fit. A right that is still missing is denied again."""
        self._denied.clear()

    def tell(self) -> None:
        """Raise the `TopicError` of what was denied since the last call, if anything was."""
        if self._news is not None:
            news, self._news = self._news, None
            raise self.same(news)

    def same(self, problem: TopicError) -> TopicError:
        """Return `problem`, or the error that was raised before if it says the same, so that it is logged only once."""
        if self._last is None or str(self._last) != str(problem):
            self._last = problem
        return self._last.with_traceback(None)
