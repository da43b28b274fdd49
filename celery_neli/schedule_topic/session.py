"""One process's connection to the schedule topic: what is asked of it and changed, one partition at a time.

A `Session` has a reader and a writer. Between two questions it fetches nothing; what it read of a partition stays known
(partition.py), so the next question reads only what was added. It ends with the first error: `HeldTopic` makes another.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final

from confluent_kafka import KafkaError

from celery_neli.config import Config
from celery_neli.exceptions import NeliError
from celery_neli.kafka.causes import DENIED
from celery_neli.kafka.client_log import ClientLog
from celery_neli.kafka.properties import schedule_producer_properties, schedule_reader_properties
from celery_neli.kafka.reader import BEGINNING, EndOfLog, Event, OutOfRange, RawRecord, Reader
from celery_neli.kafka.topic_spec import SCHEDULE_PARTITIONS
from celery_neli.kafka.writer import Writer
from celery_neli.schedule_topic.codec import (
    ENTRY,
    ENTRY_PARTITIONS,
    PAUSE,
    Kind,
    key_of,
    kind_of,
    outdated,
    partition_of,
)
from celery_neli.schedule_topic.partition import Partition
from celery_neli.schedule_topic.topic import find_topic
from celery_neli.schedule_topic.versions import head_of, is_void
from celery_neli.schedule_topic.write import Write

# Seconds:
TIMEOUT: Final = 10.0  # for one question or one change
DEAF: Final = 3.0  # without a record or an answer, after which another session is tried
#: While this young, what is known of a partition may be guessed to be all. A definition that stands for an entry which
#: was removed stays for twice as long: who did not see it writes what is void.
RECENT: Final = 30.0
SLICE: Final = 0.05  # of waiting at a time, after which reports are taken

SCAN_FROM: Final = 64  # values of one partition for which it is read as a whole: one by one would take longer
KEPT_BYTES: Final = 1 << 20  # of the values that were read or written last
#: Small: it reads little at a time, and what librdkafka fetches beyond that lies in memory.
_READER: Mapping[str, Any] = {
    "fetch.wait.max.ms": 1,  # a partition that is added waits for the fetch that is under way
    "fetch.queue.backoff.ms": 1,
    "fetch.message.max.bytes": 1 << 15,
    "queued.max.messages.kbytes": 1024,
}
_WRITER: Mapping[str, Any] = {"linger.ms": 0, "delivery.timeout.ms": round(TIMEOUT * 1000)}
_ENTRIES: Final = range(ENTRY_PARTITIONS)


class SessionLostError(Exception):
    """The session hears nothing, or the log is not the one that it knows: another session may do."""


class Session:
    """For one thread at a time. Everything blocks until `end` (monotonic seconds) at most, and raises `NeliError`,
    `KafkaException` or `SessionLostError`.
    """

    def __init__(self, config: Config, log: logging.Logger) -> None:
        self._config, self._topic = config, config.schedule_topic
        self.log = ClientLog(log, config.properties, one_shot=True)
        self._reader = Reader(config, self.log, self._topic, {**schedule_reader_properties(config), **_READER})
        try:
            self._writer = Writer(config, self.log, self._topic, {**schedule_producer_properties(config), **_WRITER})
        except BaseException:
            self._reader.close()
            raise
        self._found = self._fit = False  # the topic exists; it was checked, and may be written
        self._partitions: dict[int, Partition] = {}
        self._asked: dict[int, float] = {}  # when each was read to its end (monotonic seconds)
        self._values: OrderedDict[bytes, tuple[int, bytes]] = OrderedDict()  # with their offsets; the latest last
        self._bytes = 0
        self._rules: dict[str, bytes] = {}  # pauses of many entries, by name
        self._awaited: set[str] = set()  # the versions that were written, and not read yet
        self._void: set[str] = set()  # ... those that were read, and do not count

    def close(self) -> None:
        """End; takes milliseconds. What was not acknowledged is dropped."""
        self._reader.close()
        self._writer.close()

    def size(self, name: str) -> int:
        """Return about how many keys the partition of a name has, 0 if it was not read."""
        known = self._partitions.get(partition_of(ENTRY, name))
        return 0 if known is None else len(known)

    def look(
        self, wanted: Collection[tuple[Kind, str]], end: float, *, fresh: bool = True
    ) -> dict[tuple[Kind, str], bytes]:
        """Return the values that count now, with all that was acknowledged anywhere before; if not `fresh`, those that
        counted when this session last read their partitions, half a minute ago at most.
        """
        if not self._exists(end):
            return {}
        numbers = {partition_of(kind, name) for kind, name in wanted}
        now = time.monotonic()
        self._catch_up({each for each in numbers if fresh or now - self._asked.get(each, -RECENT) >= RECENT}, end)
        found: dict[tuple[Kind, str], bytes] = {}
        missing: dict[int, dict[int, tuple[Kind, str]]] = {}
        for kind, name in wanted:
            key, number = key_of(kind, name), partition_of(kind, name)
            offset = self._partitions[number].offset(key)
            kept = self._values.get(key)
            if offset is not None and kept is not None and kept[0] == offset:
                found[kind, name] = kept[1]
            elif offset is not None:
                missing.setdefault(number, {})[offset] = kind, name
        for number, offsets in missing.items():
            read = self._scan if len(offsets) > SCAN_FROM else self._seek
            found.update((offsets[offset], value) for offset, value in read(number, offsets, end).items())
        return found

    def read_all(self, keep: Callable[[str], bool] | None, end: float) -> dict[tuple[Kind, str], bytes]:
        """Return the definitions and states that count, in no order; `keep` says of which names."""
        values: dict[bytes, bytes] = {}
        if not self._exists(end):
            return {}
        for number in _ENTRIES:
            self._reader.place(number, BEGINNING)
        ended: set[int] = set()

        def take(event: Event) -> None:
            if isinstance(event, RawRecord):
                _fold(values, event.key or b"", event.value)
            elif isinstance(event, EndOfLog):
                ended.add(event.partition)

        self._read(take, lambda: len(ended) == len(_ENTRIES), end)
        found = ((kind_of(key), value) for key, value in values.items())
        return {entry: value for entry, value in found if entry is not None and (keep is None or keep(entry[1]))}

    def pauses(self, end: float) -> dict[str, bytes]:
        """Return the pauses of many entries, by name, with all that was acknowledged before."""
        if not self._exists(end):
            return {}
        self._catch_up([ENTRY_PARTITIONS], end)
        return dict(self._rules)

    def write(self, writes: Sequence[Write], end: float) -> set[str]:
        """Write the records, and return the versions that are void once all are acknowledged: another definition than
        their `base` was there.
        """
        if not self._fit:
            find_topic(self._config, self.log, self._writer, end)
            self._found = self._fit = True
        waiting, unsaid, failed = deque(writes), len(writes), list[KafkaError]()

        def delivered(error: KafkaError | None) -> None:
            nonlocal unsaid
            unsaid -= 1
            if error is not None:
                failed.append(error)

        def hand_over() -> None:
            try:
                while waiting and not failed:
                    kind, name, value, _ = waiting[0]
                    self._writer.send(partition_of(kind, name), key_of(kind, name), value, delivered)
                    waiting.popleft()
            except BufferError:
                pass  # it takes the rest later
            if failed:
                denied = failed[0].name() in DENIED
                why = self.log.lacks(["Write"], "topic", self._topic) if denied else self.log.reason(failed[0])
                raise NeliError(f"the schedule topic {self._topic} was not written: {why}")

        def done() -> bool:
            hand_over()
            return not waiting and not self._awaited and (versioned or not unsaid)

        versioned = all(each.version for each in writes)  # what is read back was acknowledged, too
        self._awaited, self._void = {each.version for each in writes if each.version}, set()
        # The reader waits for the records before they are on their way, which saves it a question.
        self._begin({partition_of(each.kind, each.name) for each in writes if each.version})
        self._read(self._take, done, end, "was not written: no answer from Kafka")
        return self._void

    def _exists(self, end: float) -> bool:
        if not self._found:
            self._found = self._reader.partitions(min(TIMEOUT, _left(end))) >= SCHEDULE_PARTITIONS
        return self._found

    def _catch_up(self, numbers: Collection[int], end: float) -> None:
        """Read what was added to these partitions."""
        behind = {}
        self._asked.update(dict.fromkeys(numbers, time.monotonic()))
        for number in numbers:
            known = self._partitions.setdefault(number, Partition())
            low, high = self._reader.bounds(number, min(DEAF, _left(end)))
            if high < known.next:
                raise SessionLostError("lost records")
            if high > max(known.next, low):
                behind[number] = high
        self._begin(behind)
        known_to = self._partitions
        self._read(self._take, lambda: all(known_to[each].next >= high for each, high in behind.items()), end)
        for number in behind:
            known_to[number].settle()

    def _begin(self, numbers: Iterable[int]) -> None:
        """Let the reader read these partitions on: from the last record that was read, which tells whether it is still
        the same log.
        """
        for number in numbers:
            last = self._partitions.setdefault(number, Partition()).last
            self._reader.place(number, BEGINNING if last is None else last[0])

    def _read(
        self, take: Callable[[Event], None], done: Callable[[], bool], end: float, what: str = "was not read to its end"
    ) -> None:
        """Take what is read, until `done`, and read nothing any more then."""
        heard = time.monotonic()
        while not done():
            for event in self._reader.read(min(SLICE, _left(end))):
                heard = time.monotonic()
                if isinstance(event, OutOfRange):
                    raise SessionLostError("lost records while it was read")
                take(event)
            self._writer.poll()
            if time.monotonic() > min(end, heard + DEAF):
                raise SessionLostError(what)
        self._reader.drop()

    def _take(self, event: Event) -> None:
        known = self._partitions[event.partition]
        if isinstance(event, OutOfRange):
            return
        if isinstance(event, EndOfLog):
            known.skip(event.offset)
            return
        if known.last is not None and event.offset == known.last[0]:
            if event.time != known.last[1]:
                raise SessionLostError("was deleted and made again")
            return
        entry = kind_of(event.key)
        if entry is None or event.key is None:
            known.skip(event.offset + 1)
            return
        if entry[0] == PAUSE:
            self._rules.pop(entry[1], None)
            if event.value is not None:
                self._rules[entry[1]] = event.value
        counts = known.add(event.offset, event.time, event.key, entry[0], event.value)
        if self._awaited and entry[0] == ENTRY and event.value is not None:
            version = head_of(event.value).version
            if version in self._awaited:
                self._awaited.discard(version)
                if counts:
                    self._keep(event.key, event.offset, event.value)
                else:
                    self._void.add(version)

    def _keep(self, key: bytes, offset: int, value: bytes) -> None:
        _, before = self._values.pop(key, (0, b""))
        self._values[key] = offset, value
        self._bytes += len(value) - len(before)
        while self._bytes > KEPT_BYTES:
            _, (_, oldest) = self._values.popitem(last=False)
            self._bytes -= len(oldest)

    def _seek(self, number: int, offsets: Mapping[int, tuple[Kind, str]], end: float) -> dict[int, bytes]:
        """Return the values at these offsets, each fetched by itself."""
        values: dict[int, bytes] = {}
        for offset in offsets:
            self._reader.place(number, offset)
            read: list[Event] = []
            self._read(read.append, lambda read=read: bool(read), end)  # type: ignore[misc]
            for event in read[:1]:
                if isinstance(event, RawRecord) and event.offset == offset and event.value is not None:
                    values[offset] = event.value
        return self._checked(values, offsets)

    def _scan(self, number: int, offsets: Mapping[int, tuple[Kind, str]], end: float) -> dict[int, bytes]:
        """Return the values at these offsets, by reading all of the partition."""
        values: dict[int, bytes] = {}
        last, position = max(offsets), -1

        def take(event: Event) -> None:
            nonlocal position
            if not isinstance(event, OutOfRange):
                position = event.offset
            if isinstance(event, RawRecord) and event.offset in offsets and event.value is not None:
                values[event.offset] = event.value

        self._reader.place(number, BEGINNING)
        self._read(take, lambda: position >= last, end)
        return self._checked(values, offsets)

    def _checked(self, values: dict[int, bytes], offsets: Mapping[int, tuple[Kind, str]]) -> dict[int, bytes]:
        if len(values) < len(offsets):
            # Kafka keeps the last record of a key only, and that was void; no writer has repaired it.
            raise SessionLostError("was compacted")
        for offset, value in values.items():
            self._keep(key_of(*offsets[offset]), offset, value)
        return values


def _fold(values: dict[bytes, bytes], key: bytes, value: bytes | None) -> None:
    """Put a record that was read into `values`, if it counts. One of a new key needs no look into it."""
    before = values.get(key)
    if before is not None:
        if key[:2] == b"e/" and is_void(None if value is None else head_of(value), head_of(before).mark):
            return
        if key[:2] == b"s/" and outdated(value, by=before):
            return
    if value is None:
        values.pop(key, None)
    else:
        values[key] = value


def _left(end: float) -> float:
    return max(0.01, end - time.monotonic())
