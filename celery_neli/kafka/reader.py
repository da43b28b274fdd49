"""Read partitions of a topic, each from a position of its own: the one reader under everything that reads Kafka.

A position that is not in the log any more is reported, never mended in silence: librdkafka is set to
`auto.offset.reset=error`, and positions are assigned with their leader epoch, so that a truncated log shows too (R9).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, Consumer, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import ClusterMetadata  # type: ignore[attr-defined]  # documented there

from celery_neli.config import Config
from celery_neli.kafka.causes import GONE, OF_NO_READER
from celery_neli.kafka.client_log import ClientLog, Report
from celery_neli.kafka.liveness import QUIET, Brokers, Step, Watch

BEGINNING: Final = OFFSET_BEGINNING  # the position of the oldest record that the log holds
ASK: Final = 0.5  # seconds that one question for the topic may block, if it may be asked again
_TAIL_BASE = -2_000  # librdkafka's logical offset RD_KAFKA_OFFSET_TAIL(n) is this minus n
_NO_EPOCH = -1
_OF_PARTITION = frozenset({"_PARTITION_EOF", "_AUTO_OFFSET_RESET"})


class RawRecord(NamedTuple):
    """One record."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    time: float  # its timestamp in Unix seconds


class EndOfLog(NamedTuple):
    """Everything before `offset` was read of a partition, and it held no more at some moment since it was placed."""

    partition: int
    offset: int


class OutOfRange(NamedTuple):
    """The position is not in the log any more, or the records that were asked for are not."""

    partition: int
    reason: str


Event = RawRecord | EndOfLog | OutOfRange


def tail(count: int) -> int:
    """Return the position of the last `count` records of a log."""
    return _TAIL_BASE - count


@dataclass(slots=True)
class _Position:
    next: int  # the offset of the record to read next, or librdkafka's word for where to begin
    heard: float  # when anything was last reported of it, or it was placed (monotonic seconds)
    epoch: int = _NO_EPOCH  # the leader epoch of the last record that was read


class Reader:
    """A consumer of one topic's partitions. For one thread, never in a forked child. The constructor does not wait."""

    def __init__(
        self, config: Config, log: ClientLog, topic: str, properties: Mapping[str, Any], *, report: Report | None = None
    ) -> None:
        """`report` is called with errors that concern more than one partition; without it `read` raises them."""
        self._log, self._topic, self._properties, self._report = log, topic, properties, report
        self._positions: dict[int, _Position] = {}
        self._watch = Watch(Brokers(config, log, topic), rereads=True)
        self._answered = time.monotonic()  # when brokers last answered a question for metadata
        self.missing = ""  # why the topic may not exist any more; brokers must be asked
        self.denied = False  # a broker refused to let this client read the topic
        self._client = self._make()

    def place(self, partition: int, offset: int) -> None:
        """Read this partition from `offset` on; others are not disturbed. Local to librdkafka: waits for no broker."""
        self._place(partition, _Position(offset, time.monotonic()))

    def place_again(self, partition: int) -> None:
        """Read it again from where it stands: librdkafka drops what it fetched or asked, and reports the end again."""
        self._place(partition, self._positions[partition])

    def drop(self) -> None:
        """Read nothing any more."""
        for partition in self._positions:
            self._client.incremental_unassign([TopicPartition(self._topic, partition)])
        self._positions.clear()
        self._answered = time.monotonic()

    def read(self, timeout: float, most: int = 1_000, *, singly: bool = False) -> Iterator[Event]:
        """Wait up to `timeout` seconds for the first message, then take what is there, at most `most` messages.

        `singly`: take each message when the iterator is advanced, so that a partition that is placed in between gives
        nothing from where it stood before; all at once is faster. Raises `KafkaException` without a `report`.
        """
        try:
            message = self._client.poll(timeout)
            rest = iter(() if singly or message is None else self._client.consume(most - 1, 0))
            for number in range(most):
                if number:
                    message = self._client.poll(0) if singly else next(rest, None)
                if message is None:
                    return
                if (event := self._event(message)) is not None:
                    yield event
        except KafkaException as exception:
            if self._report is None:
                raise
            self._on_error(exception.args[0])

    def bounds(self, partition: int, timeout: float) -> tuple[int, int]:
        """Return the offsets of the oldest record and of the next one. Blocks. Raises `KafkaException`."""
        low, high = self._client.get_watermark_offsets(TopicPartition(self._topic, partition), timeout=timeout)
        return low, high

    def begins(self, partitions: Iterable[int], timeout: float) -> list[int]:
        """Return the offset of the oldest record of each, in one question. Blocks. Raises `KafkaException`."""
        return self._offsets(partitions, OFFSET_BEGINNING, timeout)

    def ends(self, partitions: Iterable[int], timeout: float) -> list[int]:
        """Return the offset after the last record of each, in one question. Blocks. Raises `KafkaException`."""
        return self._offsets(partitions, OFFSET_END, timeout)

    def _offsets(self, partitions: Iterable[int], place: int, timeout: float) -> list[int]:
        # Brokers take these two in the place of a time (ListOffsets in Kafka's protocol), and librdkafka passes them
        # on: a request for each broker, where watermarks take two for each partition.
        asked = [TopicPartition(self._topic, partition, place) for partition in partitions]
        found = self._client.offsets_for_times(asked, timeout=timeout)
        for each in found:
            if each.error is not None:
                raise KafkaException(each.error)
        return [each.offset for each in found]

    def offset_at(self, partition: int, moment: float, timeout: float) -> int | None:
        """Return the offset of the first record that is not older than `moment` (Unix seconds), None if there is none,
        or if the broker does not tell (the embedded Kafka). Blocks. Raises `KafkaException`.
        """
        asked = TopicPartition(self._topic, partition, max(0, int(moment * 1000)))
        (found,) = self._client.offsets_for_times([asked], timeout=timeout)
        if found.error is not None:
            raise KafkaException(found.error)
        return found.offset if found.offset >= 0 else None

    def metadata(self, timeout: float) -> ClusterMetadata:
        """Return what brokers know of the topic. Blocks for `timeout` seconds at most. Raises `KafkaException`."""
        metadata: ClusterMetadata = self._client.list_topics(self._topic, timeout=timeout)
        self._answered = time.monotonic()
        return metadata

    def partitions(self, timeout: float) -> int:
        """Return how many partitions the topic has, 0 if it does not exist. Blocks for `timeout` seconds at most, or
        until it is clear that brokers cannot be used. Raises `KafkaException`.
        """
        began = time.monotonic()
        deadline = began + timeout
        metadata = None
        while metadata is None:
            try:
                metadata = self.metadata(max(0.01, min(ASK, deadline - time.monotonic())))
            except KafkaException:
                self._client.poll(0)  # delivers log lines and errors, which say why there is no answer
                if time.monotonic() >= deadline or self._log.reachability.is_hopeless(began):
                    raise
        found = metadata.topics[self._topic]
        if found.error is not None and found.error.name() not in GONE:
            raise KafkaException(found.error)
        return 0 if found.error is not None else len(found.partitions)

    def heal(self) -> bool:
        """Read again, or replace the client, where nothing was heard of for long although brokers answer. Never waits.
        Return True if the client was replaced; it reads on from where the other one stood.
        """
        now = time.monotonic()
        heard = min((each.heard for each in self._positions.values()), default=self._answered)
        step = self._watch.look(heard)
        if step is Step.REREAD:
            for partition, position in self._positions.items():
                if position.heard <= now - QUIET:
                    self.place_again(partition)
        if step is not Step.REPLACE:
            return False
        lost, self._client = self._client, self._make()
        what = f"the reader has heard nothing for {now - heard:.1f} s, though brokers answer"
        self._watch.let_go(lost, self._log, what)
        positions, self._positions = self._positions, {}
        for partition, position in positions.items():
            self._place(partition, position)
        return True

    def close(self) -> None:
        """End; takes milliseconds."""
        self._log.close(self._client)

    def _make(self) -> Consumer:
        return self._log.client(Consumer, self._properties, self._on_error if self._report else None)

    def _place(self, partition: int, position: _Position) -> None:
        if partition in self._positions:
            self._client.incremental_unassign([TopicPartition(self._topic, partition)])
        self._positions[partition] = position
        place = TopicPartition(self._topic, partition, position.next, "", position.epoch)
        self._client.incremental_assign([place])

    def _event(self, message: Message) -> Event | None:
        partition, error = message.partition(), message.error()
        position = None if partition is None else self._positions.get(partition)
        name = "" if error is None else error.name()
        if name in OF_NO_READER:
            return None
        if position is not None and (name[:1] != "_" or name in _OF_PARTITION):
            position.heard = time.monotonic()
        if error is not None and name not in _OF_PARTITION:
            self._on_error(error)
            return None
        if partition is None or position is None:
            return None  # left over from before it was dropped
        offset = message.offset() or 0
        if error is None:
            key: Any = message.key()
            value: Any = message.value()
            epoch = message.leader_epoch()
            position.next, position.epoch = offset + 1, _NO_EPOCH if epoch is None else epoch
            return RawRecord(partition, offset, key, value, message.timestamp()[1] / 1000)
        if name == "_PARTITION_EOF":
            position.next = max(position.next, offset)
            return EndOfLog(partition, offset)
        return OutOfRange(partition, error.str())

    def _on_error(self, error: KafkaError) -> None:
        """Take an error that concerns more than one partition, from a callback or a message of librdkafka."""
        if error.name() in OF_NO_READER:
            return
        if self._report is None:
            raise KafkaException(error)
        if error.name() in GONE:
            self.missing = error.str()
        if error.name() == "TOPIC_AUTHORIZATION_FAILED":
            self.denied = True
        else:
            self._report(error)
