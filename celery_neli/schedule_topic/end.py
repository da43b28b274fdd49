"""Where the schedule topic ends, by the brokers' word."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from confluent_kafka import Consumer, KafkaException, TopicPartition

from celery_neli.kafka.properties import schedule_reader_properties
from celery_neli.kafka.topic_spec import SCHEDULE_PARTITIONS

if TYPE_CHECKING:
    from celery_neli.config import Config
    from celery_neli.kafka.client_log import KafkaLog

ASK = 2.0  # seconds for one question
ASK_AGAIN = 0.05


class Question:
    """Where the ends are, asked while `generation` was read, and to be answered by `deadline` (monotonic seconds)."""

    def __init__(self, generation: int, deadline: float) -> None:
        self.generation, self.deadline = generation, deadline
        self.ends: list[int] | None = None
        """The offsets after the last record of each partition; None: not answered."""

    def answered(self, following: list[int]) -> bool:
        """Whether a reader whose next records are these has read everything that was there."""
        return self.ends is not None and all(map(int.__le__, self.ends, following))


class End:
    """Asks for the ends, on a connection of its own: the reader's is busy waiting for records, up to a fifth of a
    second. It is kept: a successor that asks should not have to connect first.
    """

    def __init__(self, config: Config, klog: KafkaLog) -> None:
        self._config, self._klog = config, klog
        self._client: Consumer | None = None
        self._closed = False

    def answer(self, question: Question) -> None:
        """Ask until it is answered, or its time is over. Blocks; any real thread."""
        while question.ends is None and not self._closed and (left := question.deadline - time.monotonic()) > 0:
            try:
                question.ends = self._ends(min(left, ASK))
            except KafkaException as exception:
                self._klog.say(logging.DEBUG, f"schedule's end not told: {exception}")
                self._client = None  # one that has lost its brokers may never find them again (deaf.py)
                time.sleep(min(left, ASK_AGAIN))

    def close(self) -> None:
        """Let go of the client; it ends when nobody asks it any more."""
        self._closed, self._client = True, None

    def _ends(self, timeout: float) -> list[int]:
        client = self._client
        if client is None:
            extra: dict[str, Any] = {"logger": self._klog, "error_cb": self._klog.remark}
            client = self._client = Consumer({**schedule_reader_properties(self._config), **extra})
        topic = self._config.schedule_topic
        partitions = [TopicPartition(topic, partition) for partition in range(SCHEDULE_PARTITIONS)]
        return [client.get_watermark_offsets(each, timeout=timeout)[1] for each in partitions]
