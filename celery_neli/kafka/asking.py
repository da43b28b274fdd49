"""Ask brokers one question with a client that was made for it, and stop when an answer is not to be expected."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from confluent_kafka import Consumer, KafkaException

if TYPE_CHECKING:
    from celery_neli.kafka.client_log import KafkaLog

__all__ = ["is_hopeless", "metadata"]

SLICE: Final = 0.5
GUESS: Final = 2.0
"""Seconds after which a cause that is only a guess is believed."""


def is_hopeless(klog: KafkaLog, began: float) -> bool:
    """Return True if an answer to what was asked at `began` (monotonic seconds) is not worth waiting for."""
    cause = klog.reachability.cause
    return cause is not None and cause.lasting and (not cause.guess or time.monotonic() - began > GUESS)


def metadata(client: Consumer, klog: KafkaLog, topic: str, timeout: float) -> Any:
    """Return what brokers know of `topic` (confluent_kafka's `TopicMetadata`); the caller must look for an error in it.

    Blocks for `timeout` seconds at most, or less if the brokers cannot be used and waiting would not help.
    Raises `KafkaException`.
    """
    began = time.monotonic()
    deadline = began + timeout
    while True:
        try:
            return client.list_topics(topic, timeout=max(0.01, min(SLICE, deadline - time.monotonic()))).topics[topic]
        except KafkaException:
            client.poll(0)  # delivers the log lines and errors
            if time.monotonic() >= deadline or is_hopeless(klog, began):
                raise
