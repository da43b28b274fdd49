"""The schedule topic: what the entries are, and where they are. Compacted, it holds the latest record of each key.

A beat reads it from the beginning and follows it on a thread of its own (`ScheduleTopic`). `read_all`, `read_notes` and
`write` are for one question or one change from any process: each makes its clients, blocks, and ends them. A topic that
does not exist is an empty one; a write creates it.
"""

from __future__ import annotations

import logging
import os
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from typing import Any, Final

from confluent_kafka import KafkaException

from celery_neli.config import Config
from celery_neli.exceptions import ConfigurationError, NeliError, RecordError
from celery_neli.kafka.client_log import ClientLog
from celery_neli.kafka.properties import schedule_producer_properties, schedule_reader_properties
from celery_neli.kafka.reader import BEGINNING, EndOfLog, RawRecord, Reader
from celery_neli.kafka.topic_admin import TopicAdmin
from celery_neli.kafka.topic_spec import SCHEDULE_PARTITIONS, schedule_topic
from celery_neli.kafka.writer import Writer
from celery_neli.logs import BackgroundLog
from celery_neli.printable import printable
from celery_neli.schedule_topic.codec import (
    ENTRY_PARTITIONS,
    MEMBER,
    PAUSE,
    Kind,
    Note,
    decode_note,
    key_of,
    kind_of,
    partition_of,
)
from celery_neli.schedule_topic.follower import Follower
from celery_neli.schedule_topic.latest import Latest
from celery_neli.schedule_topic.pending import Entries, PendingReads, PendingWrites
from celery_neli.schedule_topic.rules import Pause, decode_pause
from celery_neli.threads import Bell, Thread, spawn

# Seconds:
FLUSH: Final = 1.0  # that `stop` waits for acknowledgements
JOIN: Final = 2.0  # ... and for the thread
RETRY_LEAST, RETRY_MOST = 1.0, 30.0  # between two attempts after an unforeseen error
ASK_END: Final = 2.0  # for one question for the end of the topic
ASK_END_AGAIN: Final = 0.05
SLICE: Final = 0.05  # between two steps of the search for the topic


class ScheduleTopic:
    """The schedule topic of `config`, for one beat. Any thread, but no signal handler; only `read_to_end`, `flush` and
    `stop` block, and nothing raises. It is void in a forked child.
    """

    def __init__(self, config: Config, *, log: logging.Logger, changed: Callable[[], None] | None = None) -> None:
        """`log` names the logger; its handlers run on another thread. `changed` is called on the topic's own thread
        when there is something to drain; it must not block.
        """
        self._config, self._changed = config, changed
        self._lines = BackgroundLog()
        self._log = self._lines.logger(log.name)
        self._client_log = ClientLog(self._log, config.properties)
        self._writes = PendingWrites(self._client_log)
        self._reads = PendingReads(self._writes.is_own, self._log)
        self._follower = Follower(config, self._client_log, self._reads, self._writes, self._on_read)
        self._bell = Bell()
        self._thread: Thread | None = None
        self.stopping = False
        self.inherited = False  # this is a forked child: no client, thread or lock may be touched
        # On a connection of its own: the follower's is busy waiting for records, up to a fifth of a second. It is kept:
        # a successor that asks should not have to connect first.
        self._end_reader: Reader | None = None

    @property
    def unsaved(self) -> int:
        """How many keys have a value that was written and is not acknowledged."""
        return self._writes.unsaved

    def saved(self, kind: Kind, name: str) -> bool:
        """Return True if what was last written here of this key is acknowledged. Any thread; takes no lock."""
        return self._writes.saved(key_of(kind, name))

    @property
    def generation(self) -> int:
        """How often it was read from its beginning again: what does not come again before its end is gone."""
        return self._reads.generation

    @property
    def drained(self) -> int:
        """The generation of what `drain` returned last. For the thread that drains."""
        return self._reads.taken

    @property
    def whole(self) -> int:
        """The generation that was last read to its end; -1 before the first. Ask before `drain`."""
        return self._follower.whole

    @property
    def torn(self) -> bool:
        """Return True if what is missing in this generation was lost, False if others may have removed it."""
        return self._follower.torn

    @property
    def away(self) -> bool:
        """Return True if it began because this process was away: some of what is missing may have been removed."""
        return self._follower.away

    def fit(self) -> bool:
        """Return True if the topic can be used, as far as is known; else this beat should not lead. Takes no lock."""
        return self._follower.fit

    def unready(self) -> str:
        """Return why a beat could not begin a term now, "" if it could: it has read the topic to its end."""
        name = self._config.schedule_topic
        if not self.fit():
            return f"the schedule topic {name} was not found yet, or cannot be used"
        return "" if self.whole == self.generation else f"the schedule topic {name} was not read to its end yet"

    def start(self) -> None:
        """Begin to read; returns at once, may be repeated. Kafka need not be there, nor the topic."""
        if self._thread is None and not self.stopping:
            _alive.add(self)
            self._lines.start()
            self._thread = spawn(self._run, name="neli-schedule")

    def drain(self) -> Entries:
        """Return what was read since the last call: the latest value of each key, None where it was deleted, in the
        order of reading. Of two states of one entry that of the higher epoch counts; of definitions all are given, in
        a tuple, that may count (versions.py). Own states and notes are left out.
        """
        return {} if self.inherited else self._reads.take()

    def refuse(self, kind: Kind, name: str, error: RecordError) -> None:
        """Log that a drained value cannot be read: one line a minute about each, at most twenty of a kind."""
        self._reads.refuse(kind, f"kind={kind} name={printable(repr(name))}: {error}")

    def read_to_end(self, timeout: float) -> bool:
        """Wait until all is read that is in the topic now, and return True if it is. Takes about a round trip."""
        deadline = time.monotonic() + timeout
        asked: int | None = None  # the generation whose ends were asked for
        ends: list[int] = []
        while not self.stopping:
            seen = self._bell.rings
            if asked != self.generation:
                asked, ends = self.generation, []
                spawn(partial(self._ask_ends, ends, deadline), name="neli-schedule-end")
            elif ends and all(map(int.__le__, ends, self._follower.next)):
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                break
            self._bell.wait(seen, left)
        return False

    def write(self, kind: Kind, name: str, value: bytes | None) -> None:
        """Write it soon, None to delete. While Kafka is away the latest value of each key is kept, and sent later."""
        if not self.stopping:
            self._writes.put(key_of(kind, name), partition_of(kind, name), value)

    def flush(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds until everything written is acknowledged, and return True if it is."""
        return not self.inherited and self._writes.flush(timeout)

    def forget_unsaved(self) -> None:
        """Do not write states and definitions any more that are not on their way: the term is over. Notes stay."""
        if not self.inherited:
            self._writes.forget(lambda key: not key.startswith(key_of(MEMBER, "")))

    def stop(self) -> None:
        """Write what is left for up to a second, and end. May be repeated."""
        if self.stopping:
            return
        if self._thread is None:
            self.stopping = True
            return
        self._writes.flush(FLUSH)
        self.stopping = self._follower.stopping = True
        self._end_reader = None  # it ends when no thread asks it any more
        self._bell.ring()
        self._thread.join(JOIN)

    # On threads of its own

    def _run(self) -> None:
        pause = RETRY_LEAST
        try:
            while not self.stopping:
                began = time.monotonic()
                try:
                    self._follower.serve()
                except ConfigurationError as exc:  # a file that librdkafka needs is gone by now
                    self._log.error("schedule topic not read topic=%s: %s", self._config.schedule_topic, exc)
                    self._follower.rest(RETRY_MOST)
                except Exception:  # noqa: BLE001 - whatever it was, the beat goes on with what it knows
                    self._log.exception("schedule topic failed topic=%s: trying again", self._config.schedule_topic)
                    pause = RETRY_LEAST if time.monotonic() - began > RETRY_MOST else min(2 * pause, RETRY_MOST)
                    self._follower.rest(pause)
        finally:
            self._lines.stop()

    def _on_read(self, new: bool) -> None:
        self._bell.ring()
        if new and self._changed is not None:
            self._changed()

    def _ask_ends(self, ends: list[int], deadline: float) -> None:
        """Fill in the offsets after the last record of each partition, by the broker's word."""
        config, log = self._config, self._client_log
        try:
            while not ends and not self.stopping and (left := deadline - time.monotonic()) > 0:
                try:
                    reader = self._end_reader or Reader(
                        config, log, config.schedule_topic, schedule_reader_properties(config)
                    )
                    self._end_reader, timeout = reader, min(left, ASK_END)
                    ends[:] = reader.ends(range(SCHEDULE_PARTITIONS), timeout)
                except (KafkaException, NeliError) as exception:
                    log.say(logging.DEBUG, f"the end of the schedule topic is not known: {exception}")
                    self._end_reader = None  # one that has lost its brokers may never find them again (liveness.py)
                    time.sleep(min(left, ASK_END_AGAIN))
        finally:
            self._bell.ring()


_alive: weakref.WeakSet[ScheduleTopic] = weakref.WeakSet()
_inherited: list[Any] = []


def _after_fork() -> None:
    """In a child: keep the topics for ever, for the clients' finalisers must not run here."""
    _inherited.append(list(_alive))
    for topic in _alive:
        topic.inherited = topic.stopping = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


# For one question or one change


def read_all(
    config: Config, *, log: logging.Logger, timeout: float = 10.0, each: Callable[[RawRecord], None] | None = None
) -> dict[tuple[Kind, str], bytes]:
    """Return every state and definition that counts; those of one partition in the order in which they were last
    written. `each` is called with every record that counts, also those that later ones replace, as far as Kafka has not
    compacted them. Raises `NeliError`.
    """
    return _read(config, range(ENTRY_PARTITIONS), log, timeout, each)


def read_notes(config: Config, *, log: logging.Logger, timeout: float = 1.5) -> dict[str, Note]:
    """Return the members' notes, by name of the member; without those that cannot be read. Raises as `read_all`."""
    return read_notes_and_pauses(config, log=log, timeout=timeout)[0]


def read_notes_and_pauses(
    config: Config, *, log: logging.Logger, timeout: float = 1.5
) -> tuple[dict[str, Note], list[Pause]]:
    """Return the members' notes, as `read_notes`, and the pauses of many entries, also those that have ended."""
    notes, pauses = {}, []
    for (kind, name), value in _read(config, [ENTRY_PARTITIONS], log, timeout).items():
        try:
            if kind == MEMBER:
                notes[name] = decode_note(value)
            elif kind == PAUSE:
                pauses.append(decode_pause(name, value))
        except RecordError:
            pass  # a newer version's, or a stranger's: nothing rests on it here
    return notes, pauses


def write(
    config: Config, records: Sequence[tuple[Kind, str, bytes | None]], *, log: logging.Logger, timeout: float = 10.0
) -> None:
    """Write the records, None to delete, and wait until Kafka has acknowledged every one. Raises `NeliError` if it did
    not in time; some may have been written nevertheless, or will be yet.
    """
    deadline = time.monotonic() + timeout
    client_log = ClientLog(log, config.properties, one_shot=True)
    properties = {
        **schedule_producer_properties(config),
        "linger.ms": 0,
        "delivery.timeout.ms": max(1, round(timeout * 1000)),
        "queue.buffering.max.messages": len(records) + 1,
    }
    with closing(Writer(config, client_log, config.schedule_topic, properties)) as writer:
        find_topic(config, client_log, writer, deadline)
        encoded = [(partition_of(kind, name), key_of(kind, name), value) for kind, name, value in records]
        reason = writer.send_all(encoded, deadline - time.monotonic())
    if reason:
        raise NeliError(f"the schedule topic {config.schedule_topic} was not written: {reason}")


def find_topic(config: Config, log: ClientLog, writer: Writer, deadline: float) -> None:
    """Wait for the topic, or create it. Raises `TopicError` if it is unfit, `NeliError` if time is over."""
    began = time.monotonic()
    topic = TopicAdmin(config, log, writer, schedule_topic(config))
    while not topic.poll():
        writer.poll()  # takes its log lines and errors, which say why there is no answer
        if time.monotonic() > deadline or log.reachability.is_hopeless(began):
            cause = log.reachability.explanation()
            raise NeliError(
                f"the schedule topic {config.schedule_topic} was not found and not created in time: Kafka at "
                f"{config.properties['bootstrap.servers']} does not answer{'' if cause is None else f': {cause}'}"
            )
        time.sleep(SLICE)


def _read(
    config: Config,
    partitions: Sequence[int],
    log: logging.Logger,
    timeout: float,
    each: Callable[[RawRecord], None] | None = None,
) -> dict[tuple[Kind, str], bytes]:
    deadline = time.monotonic() + timeout
    topic = config.schedule_topic
    client_log = ClientLog(log, config.properties, one_shot=True)
    properties = {**schedule_reader_properties(config), "fetch.wait.max.ms": 10}
    with closing(Reader(config, client_log, topic, properties)) as reader:
        try:
            there = reader.partitions(timeout)
            left = {partition for partition in partitions if partition < there}
            for partition in left:
                reader.place(partition, BEGINNING)
            latest = Latest()
            while left and (remaining := deadline - time.monotonic()) > 0:
                for event in reader.read(remaining):
                    if isinstance(event, EndOfLog):
                        left.discard(event.partition)
                    elif isinstance(event, RawRecord):
                        entry = kind_of(event.key)
                        if entry is not None and latest.add(entry, event.value) and each is not None:
                            each(event)
            if not left:
                return latest.values()
        except KafkaException as exception:
            raise client_log.failure(exception.args[0], topic) from None
    raise NeliError(f"the schedule topic {topic} was not read to its end within {timeout:g} s")
