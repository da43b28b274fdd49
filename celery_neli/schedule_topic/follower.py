"""Reads the schedule topic from its beginning and follows it: the work of a beat's thread for it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import closing
from typing import Final

from confluent_kafka import KafkaException

from celery_neli.config import Config
from celery_neli.election.lease import boottime
from celery_neli.exceptions import TopicError
from celery_neli.kafka.client_log import ClientLog
from celery_neli.kafka.properties import schedule_producer_properties, schedule_reader_properties
from celery_neli.kafka.reader import BEGINNING, OutOfRange, RawRecord, Reader
from celery_neli.kafka.topic_admin import TopicAdmin
from celery_neli.kafka.topic_spec import SCHEDULE_PARTITIONS, schedule_topic
from celery_neli.kafka.writer import Writer
from celery_neli.schedule_topic.pending import PendingReads, PendingWrites

_ALL: Final = range(SCHEDULE_PARTITIONS)
BATCH: Final = 500  # messages that are taken at a time

# Seconds:
SLICE: Final = 0.25  # that the thread waits for a record before it looks at anything else
SEARCH: Final = 0.05  # the same while it searches for the topic
PAUSE: Final = 1.0  # between two looks at a topic that an operator must mend
ASK: Final = 0.5  # for one question
WATCH_EVERY: Final = 5.0  # between two looks if the log still holds what was read
IDENTIFY_EVERY: Final = 20.0  # ... and if it is still the same topic, which costs a connection
AWAY: Final = 60.0  # without a word from Kafka: the topic may be another one by now
STOOD_STILL: Final = 5.0  # ... or since this thread took its last turn, which takes less
CUT_OFF: Final = 3600.0  # after which removals may have been missed: Kafka keeps tombstones for a day


class Follower:
    """Reads the topic into `reads`, and gives `writes` a writer while the topic is there and fit. For one real thread,
    on which `on_read` is called after each step, with True if there is something new in `reads`.
    """

    def __init__(
        self,
        config: Config,
        log: ClientLog,
        reads: PendingReads,
        writes: PendingWrites,
        on_read: Callable[[bool], None],
    ) -> None:
        self._config, self._log, self._reads, self._writes, self._on_read = config, log, reads, writes, on_read
        self.stopping = False  # any thread may set it; `serve` and `rest` return within a second
        self.next = [-1] * SCHEDULE_PARTITIONS  # the offsets of the records to be read next: replaced, never changed
        self.whole = -1  # the generation of `reads` that was last read to its end
        self.torn = False  # the present generation began because records were lost; False: they may have been missed
        self.away = False  # ... because this process was away: what others removed then, it may not know
        self.fit = False  # the topic was found, and as far as is known it can be read and written
        self._first: dict[int, int] = {}  # the first offset that was read of each partition in this generation
        self._open: set[int] = set()  # the partitions of which no end was reached in it yet
        self._heard = self._turned = boottime()  # when something was read, and when this was last tried
        self._watch_at = self._identify_at = 0.0
        self._identity: str | None = None  # Kafka's id of the topic that is read; "": to be asked for; None: not known
        self._trouble: TopicError | None = None  # what was logged

    def rest(self, seconds: float) -> None:
        """Wait."""
        end = time.monotonic() + seconds
        while not self.stopping and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, SLICE))

    def serve(self) -> None:
        """Follow the topic until `stopping`. May be called again after it raised."""
        config, log, name = self._config, self._log, self._config.schedule_topic
        with (
            closing(Reader(config, log, name, schedule_reader_properties(config), report=log.remark)) as reader,
            closing(Writer(config, log, name, schedule_producer_properties(config))) as writer,
        ):
            self._reader, self._writer = reader, writer
            self._topic = TopicAdmin(config, log, reader, schedule_topic(config))
            try:
                while not self.stopping:
                    self._turn()
            finally:
                self._writes.use(None)

    def _turn(self) -> None:
        replaced = self._reader.heal()
        if self._writer.is_lost():
            self._writes.use(None)
            self._writer.replace()
            self._writes.use(self._writer if self._topic.found else None)
        if not self._topic.found:
            self._find()
        elif replaced and max(self.next) > 0:
            self._come_back("this process could not read the topic")
        else:
            self._read()
            if self._reader.missing:
                self._look_for_topic()
            else:
                self._watch_log()
        self._writes.serve()
        if self._reader.denied or self._writes.denied:
            self._topic.deny("Read" if self._reader.denied else "Write")
            self._reader.denied = self._writes.denied = False
            self._reader.drop()
            self._topic.search()

    def _find(self) -> None:
        for _ in self._reader.read(SEARCH):
            pass  # nothing is read yet but log lines and errors
        try:
            if not self._topic.poll():
                return
        except TopicError as problem:
            self.fit = False
            self._writes.use(None)
            if problem is not self._trouble:
                self._trouble = problem
                self._log.say(logging.ERROR, f"{problem}; this beat does not lead")
            self.rest(PAUSE)
            return
        self._topic.allow("Read")
        self._reader.missing, self._trouble, self.fit = "", None, True
        if max(self.next) > 0:
            self._come_back("this process could not read the topic")
        else:
            self._begin()
        self._identity, self._identify_at = self._topic.identity, time.monotonic() + IDENTIFY_EVERY
        self._writes.use(self._writer)
        self._on_read(False)

    def _begin(self) -> None:
        self.next, self._first, self._open = [-1] * SCHEDULE_PARTITIONS, {}, set(_ALL)
        for partition in _ALL:
            self._reader.place(partition, BEGINNING)

    def _begin_again(self, reason: str, *, torn: bool = True, away: bool = False) -> None:
        level, what = (logging.INFO if torn else logging.WARNING, "missed") if away else (logging.WARNING, "lost")
        name = self._config.schedule_topic
        self._log.say(level, f"schedule {what} topic={name} reason={reason!r}: reading it again")
        self.torn, self.away = torn, away
        if self._identity is not None:
            self._identity = ""
        self._begin()  # first: a thread that sees the new generation sees that nothing of it was read
        self._reads.begin_again()
        self._on_read(False)

    def _come_back(self, why: str) -> None:
        """Read from the beginning again. After long, what is missing was removed, unless the log lost records."""
        long = boottime() - self._heard > CUT_OFF
        lost = self._what_is_lost() if long else ""
        self._heard = boottime()
        what = "removals may have been missed" if long and not lost else lost or "the topic may be another one by now"
        self._begin_again(f"{why}: {what}", torn=not long or lost != "", away=True)

    def _read(self) -> None:
        gap, self._turned = boottime() - self._turned, boottime()
        if gap > STOOD_STILL and max(self.next) > 0:
            self._come_back(f"this process stood still for {gap:.0f} s")
            return
        following, event, new = self.next[:], None, False
        for event in self._reader.read(SLICE, BATCH):
            if isinstance(event, OutOfRange):
                self._heard = boottime()
                self._begin_again(event.reason)
                return
            if isinstance(event, RawRecord):
                new |= self._reads.add(event.key, event.value)
                following[event.partition] = event.offset + 1
                if event.partition not in self._first:
                    self._first[event.partition] = event.offset
            else:
                following[event.partition] = max(following[event.partition], event.offset)
                self._open.discard(event.partition)
        if event is None:
            return
        silence, self._heard = boottime() - self._heard, boottime()
        if silence > AWAY and max(self.next) > 0:
            self._heard -= silence
            self._come_back(f"this process heard nothing for {silence:.0f} s")
            return
        self.next = following
        if not self._open and self.whole != self._reads.generation:
            new |= self.whole >= 0  # that some records are gone is news, too
            self.whole = self._reads.generation
        self._on_read(new)

    def _watch_log(self) -> None:
        """Read from the beginning again if the log lost what was read, as Kafka does not say. Takes half a second."""
        if time.monotonic() < self._watch_at or not self._first:
            return
        self._watch_at = time.monotonic() + WATCH_EVERY
        if lost := self._what_is_lost() or self._is_another():
            self._begin_again(lost)

    def _what_is_lost(self) -> str:
        try:
            begins, ends = self._reader.begins(_ALL, ASK), self._reader.ends(_ALL, ASK)
        except KafkaException:
            return ""  # the topic is gone, or brokers are: others find out
        for partition, (low, high, read) in enumerate(zip(begins, ends, self.next, strict=True)):
            if low > self._first.get(partition, low):
                return f"records before offset {low} of partition {partition} were deleted; is cleanup.policy compact?"
            if high < read:
                return f"the log of partition {partition} ends at offset {high}, and was read to {read}"
        return ""

    def _is_another(self) -> str:
        """Return that this is another topic than the one that was read: one that was deleted and created again at once
        may hold more records by now, and then its offsets prove nothing.
        """
        before = self._identity
        if before is None or time.monotonic() < self._identify_at:
            return ""
        self._identify_at = time.monotonic() + IDENTIFY_EVERY
        now = self._topic.identify(ASK)
        self._identity = now or before
        return "the topic was deleted and created again" if before and now not in (None, before) else ""

    def _look_for_topic(self) -> None:
        """Create it again if brokers say that it is gone; if not, another member may have: the old position says
        nothing.
        """
        gone = self._topic.is_gone()
        if gone is None:
            return
        self._reader.missing = ""
        self._begin_again("the topic is, or was, gone")
        if gone:
            self._reader.drop()
            self._writes.use(None)
