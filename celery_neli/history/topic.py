"""The history topic, read: the latest runs for one question, or what is written from now on.

Nothing here waits longer than it says, whatever the topic's size: a question for the latest runs reads the end of the
log, in larger and larger pieces, and one for the runs since a time begins at the first record of that time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import closing
from itertools import islice
from typing import Final

from confluent_kafka import KafkaError, KafkaException

from celery_neli.config import Config
from celery_neli.exceptions import ConfigurationError, NeliError, RecordError
from celery_neli.history.records import Record, WorkerRecord, decode, key, partition_of
from celery_neli.history.runs import MOST_PER_ENTRY, Run, Runs
from celery_neli.kafka.causes import DENIED
from celery_neli.kafka.client_log import ClientLog
from celery_neli.kafka.properties import history_reader_properties
from celery_neli.kafka.reader import BEGINNING, EndOfLog, OutOfRange, RawRecord, Reader

LIMIT_MOST: Final = 100_000  # runs that one question may ask for
SLACK: Final = 60.0  # seconds by which the clocks of brokers and of those who ask may differ
FIRST_PIECE: Final = 1_000  # records; each further piece is four times as long
MOST_READ: Final = 400_000  # records of a partition that one question reads at most
SLICE: Final = 0.2  # seconds that one read waits
ASK: Final = 0.5  # seconds that one question for the topic may block
LOOK_EVERY: Final = 2.0  # seconds between two looks for a topic that is missing
MOST_AT_ONCE: Final = 5_000  # records that one `poll` returns


class NoHistory(NeliError):
    """There is no history topic: no beat or worker has recorded anything yet, or `neli_history` is off."""


def read_runs(
    config: Config,
    *,
    log: logging.Logger,
    name: str | None = None,
    limit: int = 100,
    since: float | None = None,
    only: Callable[[Run], bool] | None = None,
    timeout: float = 10.0,
) -> list[Run]:
    """Return the latest runs, at most `limit`, newest first: of the entry `name`, or of all entries.

    Args:
        config: The configuration of the beat election.
        log: Takes what Kafka's client reports.
        name: Of which entry; only its partition is read.
        limit: How many runs.
        since: Unix seconds; runs of which nothing happened since then are left out.
        only: Says which runs are counted, if not all.
        timeout: Seconds. If not everything could be read by then, the runs that were found are returned, as long as
            they are the newest ones.

    Blocks for `timeout` seconds and a little more at most. Memory is bounded.

    Raises:
        NoHistory: The topic does not exist.
        NotAllowed: A right is missing.
        NeliError: Kafka did not answer in time.
        ConfigurationError: `limit` is not between 1 and 100,000.
    """
    if not 1 <= limit <= LIMIT_MOST:
        raise ConfigurationError(f"limit = {limit}: give 1 to {LIMIT_MOST}")
    topic = config.history_topic
    client_log = ClientLog(log, config.properties, one_shot=True)
    deadline = time.monotonic() + timeout
    with closing(Reader(config, client_log, topic, history_reader_properties(config, wait=10))) as reader:
        try:
            count = reader.partitions(timeout)
            if not count:
                raise NoHistory(
                    f"there is no history topic {topic}: no beat or worker has recorded anything yet, as they do "
                    "unless neli_history = False"
                )
            wanted = list(range(count)) if name is None else [partition_of(key(name))]
            search = _Search(reader, name, limit, since, only or _any, deadline)
            found = [run for each in wanted if each < count for run in search.partition(each)]
        except KafkaException as exception:
            raise client_log.failure(exception.args[0], topic) from None
    found.sort(key=lambda run: run.when, reverse=True)
    return found[:limit]


class _Search:
    """One question, partition by partition."""

    def __init__(
        self,
        reader: Reader,
        name: str | None,
        limit: int,
        since: float | None,
        only: Callable[[Run], bool],
        deadline: float,
    ) -> None:
        self._reader, self._limit, self._since, self._only, self._deadline = reader, limit, since, only, deadline
        self._key = None if name is None else key(name)

    def partition(self, number: int) -> list[Run]:
        """Return the newest runs of a partition, `limit` at most."""
        low, high = self._reader.bounds(number, max(ASK, self._deadline - time.monotonic()))
        runs = Runs(max(MOST_PER_ENTRY, self._limit))
        lowest = max(low, high - MOST_READ)
        if self._since is not None:
            found = self._reader.offset_at(number, self._since - SLACK, max(ASK, self._deadline - time.monotonic()))
            lowest = max(lowest, lowest if found is None else found)
        end, piece, further = high, FIRST_PIECE, 1
        while end > lowest:
            start = max(lowest, end - piece)
            if not self._read(number, start, end, runs) and end == high:
                raise NeliError(f"the end of partition {number} of the history topic was not read in time")
            if time.monotonic() >= self._deadline:
                break
            end, piece = start, 4 * piece
            chosen = self._chosen(runs)
            if len(chosen) >= self._limit:
                # The records of one run lie apart: a beat's may be in the piece before.
                if not further or all(run.outcome is not None for run in chosen):
                    break
                further -= 1
        return self._chosen(runs)

    def _read(self, number: int, start: int, end: int, runs: Runs) -> bool:
        """Fold the records of `start` up to `end`; return True if all were read in time."""
        self._reader.drop()  # what is left over of another partition is not reported then
        self._reader.place(number, start)
        while (left := self._deadline - time.monotonic()) > 0:
            for event in self._reader.read(min(left, SLICE)):
                if isinstance(event, OutOfRange):  # it was deleted by its age in between: what is there begins later
                    return True
                if event.offset >= end or isinstance(event, EndOfLog):
                    return True
                record = read(event) if self._key in (None, event.key) else None
                if record is not None and not isinstance(record, WorkerRecord):
                    runs.add(record)
                if event.offset == end - 1:
                    return True
        return False

    def _chosen(self, runs: Runs) -> list[Run]:
        since = self._since
        chosen = (run for run in runs if (since is None or run.latest >= since) and self._only(run))
        return list(islice(chosen, self._limit))


def _any(_: Run) -> bool:
    return True


def read(event: RawRecord) -> Record | None:
    """Return the record, None if it cannot be read: it is skipped alone."""
    try:
        return decode(event.value)
    except RecordError:
        return None


class HistoryFollower:
    """What is written to the history topic, live. For one thread, never in a forked child.

    A topic that is missing, may not be read or is deleted is looked for again; Kafka may be away. `problem` says why
    there is nothing to read, "" if there is something.
    """

    def __init__(self, config: Config, log: logging.Logger, since: float | None = None) -> None:
        """Begin with the records of the time `since` (Unix seconds), or with what is written from now on. Does not
        wait. Raises `ConfigurationError`.
        """
        self._config, self._since = config, since
        self._log = ClientLog(log, config.properties, one_shot=True)
        self._reader = Reader(
            config, self._log, config.history_topic, history_reader_properties(config), report=self._on_error
        )
        self._placed = False
        self._look_at = float("-inf")
        self.problem = "not read yet"

    def poll(self, timeout: float) -> list[Record]:
        """Return what was read, after `timeout` seconds at most where nothing is. Raises nothing."""
        deadline = time.monotonic() + timeout
        if not self._placed and not self._place(deadline):
            time.sleep(max(0.0, min(SLICE, deadline - time.monotonic())))
            return []
        found: list[Record] = []
        while not found:
            for event in self._reader.read(max(0.0, min(SLICE, deadline - time.monotonic())), MOST_AT_ONCE):
                if isinstance(event, OutOfRange):
                    self._reader.place(event.partition, BEGINNING)
                elif isinstance(event, RawRecord) and (record := read(event)) is not None:
                    found.append(record)
            if self._reader.missing or self._reader.denied:
                self._lose()
                break
            if not found:  # while records come, a partition may wait long for its turn
                self._reader.heal()
            if time.monotonic() >= deadline:
                break
        return found

    def close(self) -> None:
        """End; takes milliseconds."""
        self._reader.close()

    def _place(self, deadline: float) -> bool:
        """Begin to read if the topic is there; return True if so. Waits for half a second at a time at most."""
        if time.monotonic() < self._look_at:
            return False
        self._look_at = time.monotonic() + LOOK_EVERY
        try:
            count = self._reader.partitions(max(0.01, min(ASK, deadline - time.monotonic())))
            starts = {number: self._start(number) for number in range(count)}
        except KafkaException as exception:
            error = exception.args[0]
            denied = error.name() in DENIED
            self.problem = self._log.lacks(["Read"], "topic", self._config.history_topic) if denied else error.str()
            return False
        if not starts:
            self.problem = f"there is no history topic {self._config.history_topic}"
            return False
        for number, start in starts.items():
            self._reader.place(number, start)
        self._placed, self.problem = True, ""
        self._since = None if self._since is None else max(self._since, time.time() - SLACK)
        return True

    def _start(self, number: int) -> int:
        low, high = self._reader.bounds(number, ASK)
        if self._since is None:
            return high
        found = self._reader.offset_at(number, self._since - SLACK, ASK)
        if found is None:
            found = low if self._reader.offset_at(number, 0.0, ASK) is None else high
        return max(found, high - MOST_READ, low)

    def _lose(self) -> None:
        """Look for the topic again: it is gone, or may not be read any more."""
        denied = self._reader.denied
        self.problem = (
            self._log.lacks(["Read"], "topic", self._config.history_topic) if denied else self._reader.missing
        )
        self._reader.missing, self._reader.denied = "", False
        self._reader.drop()
        self._placed, self._look_at = False, time.monotonic() + LOOK_EVERY

    def _on_error(self, error: KafkaError) -> None:
        """Note an error that concerns the connection: librdkafka goes on by itself."""
