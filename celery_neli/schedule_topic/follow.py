"""Reads the schedule topic from its beginning and follows it: the work of a beat's thread for it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from celery_neli.election.clock import boottime
from celery_neli.exceptions import TopicError
from celery_neli.kafka.causes import OF_NO_READER
from celery_neli.kafka.liveness import Brokers, hears
from celery_neli.kafka.properties import schedule_producer_properties, schedule_reader_properties
from celery_neli.kafka.topic_admin import GONE, TopicCheck
from celery_neli.kafka.topic_spec import SCHEDULE_PARTITIONS, schedule_topic
from celery_neli.kafka.validate import making

if TYPE_CHECKING:
    from celery_neli.config import Config
    from celery_neli.kafka.client_log import KafkaLog
    from celery_neli.schedule_topic.found import Found
    from celery_neli.schedule_topic.pending import Writes

BATCH = 500  # records taken at a time
SLICE = 0.25  # seconds that the thread waits for a record before it looks at anything else
PAUSE = 1.0  # seconds between two looks at a topic that an operator must mend
ASK = 0.5  # seconds for one question
CHECK_EVERY = 5.0  # seconds between two looks whether clients that say nothing can still be told anything
CHECK_AGAIN = 1.0  # ... if one is in doubt
WATCH_EVERY = 5.0  # seconds between two looks whether the log still holds what was read
IDENTIFY_EVERY = 20.0  # ... and whether it is still the same topic, which costs a connection
AWAY = 60.0  # seconds without a record, of which there are four a minute: the topic may have been made anew since
STOOD_STILL = 5.0  # ... or since this thread made its last turn, which takes less
CUT_OFF = 3600.0  # seconds after which removals may have been missed: Kafka keeps tombstones for a day


class Follower:
    """Puts what it reads into `found`, and gives `writes` a producer while the topic is there and fit.

    For one real thread, but for the public attributes. `told` is called on it after each step of the reading, with
    whether there is something new in `found`.
    """

    def __init__(
        self, config: Config, klog: KafkaLog, found: Found, writes: Writes, told: Callable[[bool], None]
    ) -> None:
        self._config, self._klog = config, klog
        self._found, self._writes, self._told = found, writes, told
        self.stopping = False
        """Set by anybody; `serve` and `rest` return within a second."""
        self.next = [-1] * SCHEDULE_PARTITIONS
        """The offsets of the records to be read next: replaced, never changed."""
        self.whole = -1
        """The generation of `found` that was last read to its end."""
        self.torn = False
        """Why the present generation began: records were lost, or (False) may have been missed."""
        self.away = False
        """The present generation began because this process was away: what others removed then, it may not know."""
        self._first = -1  # the first offset of the entries that was read of this generation
        self._heard = self._turned = boottime()  # when something was read, and when this was last tried
        self._watch_at = self._identify_at = 0.0
        self._identity: str | None = None  # Kafka's id of the topic that is read; "": to be asked for; None: never told
        self.fit = False
        """The topic was found, and as far as is known it can be read and written."""
        self._denied = ""  # the right that is missing, as a broker said when it refused
        self._check: TopicCheck | None = None
        self._missing = False
        self._look_at = 0.0
        self._said = ""
        self._brokers = Brokers(config, klog, config.schedule_topic)
        self._check_at = 0.0
        self._before = self.next  # what was to be read next at the last look
        self._doubted = ""  # why a client was in doubt then

    def rest(self, seconds: float) -> None:
        """Wait."""
        end = time.monotonic() + seconds
        while not self.stopping and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, SLICE))

    def serve(self) -> None:
        """Follow the topic until `stopping`, or until the clients must be made anew. Raises what it cannot help. To be
        called again in either case.
        """
        extra: dict[str, Any] = {"logger": self._klog, "error_cb": self._on_error}
        with making(self._config.properties):
            reader = Consumer({**schedule_reader_properties(self._config), **extra})
            producer = Producer({**schedule_producer_properties(self._config), **extra})
        self._search(self._make_check(reader))
        self._check_at = time.monotonic() + CHECK_EVERY
        try:
            while not self.stopping and not self._deaf(reader, producer):
                if self._check is not None:
                    self._find(reader, producer, self._check)
                else:
                    self._read(reader)
                    if self._missing:
                        self._look_for_topic(reader)
                    elif self._check is None:
                        self._watch_log(reader)
                self._writes.serve()
                if self._denied or self._writes.denied:
                    self._deny(reader)
        finally:
            self._writes.use(None)
            producer.purge(in_queue=True, in_flight=True, blocking=False)
            producer.close()
            reader.close()

    def _deaf(self, reader: Consumer, producer: Producer) -> bool:
        """Whether one of the clients hears nothing although brokers answer (deaf.py), or the reader stands still before
        the end that they tell. Asks only those that are silent; takes a second at most.
        """
        if time.monotonic() < self._check_at:
            return False
        # Looked at twice: what came just now is not heard yet, and brokers may have come back just now.
        answered = self._brokers.told()
        why = self._doubt(reader, producer)
        deaf = why != "" and why == self._doubted and answered is True
        if why:
            self._brokers.ask()
        self._doubted, self._before = why, self.next
        self._check_at = time.monotonic() + (CHECK_AGAIN if why else CHECK_EVERY)
        if deaf:
            self._doubted = ""
            self._klog.say(logging.WARNING, f"kafka client deaf: schedule {why}, though brokers answer: replaced")
        return deaf

    def _doubt(self, reader: Consumer, producer: Producer) -> str:
        topic = self._config.schedule_topic
        if self._check is not None or self.next is self._before:
            if not hears(reader, topic, ASK):
                return "reader finds no broker"
            if self._check is None and self._behind(reader):
                return "reader stands still"
        if self._writes.unsaved and not hears(producer, topic, ASK):
            return "producer finds no broker"
        return ""

    def _behind(self, reader: Consumer) -> bool:
        parts = [TopicPartition(self._config.schedule_topic, each) for each in range(SCHEDULE_PARTITIONS)]
        try:
            ends = [reader.get_watermark_offsets(part, timeout=ASK)[1] for part in parts]
        except KafkaException:
            return False
        return any(end > max(0, following) for end, following in zip(ends, self.next, strict=True))

    def _make_check(self, reader: Consumer) -> TopicCheck:
        return TopicCheck(self._config, self._klog, reader=reader, topic=schedule_topic(self._config))

    def _search(self, check: TopicCheck) -> None:
        self._writes.use(None)
        self._check = check

    def _find(self, reader: Consumer, producer: Producer, check: TopicCheck) -> None:
        reader.poll(0.05)  # for its log lines and errors
        try:
            if not check.poll():
                return
        except TopicError as exception:
            self._unfit(reader, str(exception))
            return
        if self._said:
            self._klog.say(logging.INFO, f"schedule topic usable again topic={self._config.schedule_topic}")
        self._check, self._missing, self._said, self.fit = None, False, "", True
        if max(self.next) > 0:
            self._come_back(reader, "this process could not read the topic")
        else:
            self._begin(reader)
        self._identity, self._identify_at = check.identity, time.monotonic() + IDENTIFY_EVERY
        self._writes.use(producer)
        self._told(False)

    def _unfit(self, reader: Consumer, why: str) -> None:
        """Log once what an operator must do, and look again after a pause."""
        self.fit = False
        self._search(self._make_check(reader))
        if why != self._said:
            self._said = why
            self._klog.say(logging.ERROR, f"{why}; this beat does not lead")
        self.rest(PAUSE)

    def _deny(self, reader: Consumer) -> None:
        """Report that a broker refused to let this client read or write."""
        operation = self._denied or "Write"
        self._denied, self._writes.denied = "", False
        reader.unassign()
        self._unfit(reader, self._klog.denied([operation], "schedule topic", self._config.schedule_topic))

    def _begin(self, reader: Consumer) -> None:
        self.next, self._first = [-1] * SCHEDULE_PARTITIONS, -1
        topic = self._config.schedule_topic
        reader.assign([TopicPartition(topic, each, OFFSET_BEGINNING) for each in range(SCHEDULE_PARTITIONS)])

    def _begin_anew(self, reader: Consumer, reason: str, *, torn: bool = True, away: bool = False) -> None:
        level, what = (logging.INFO if torn else logging.WARNING, "missed") if away else (logging.WARNING, "lost")
        self._klog.say(
            level, f"schedule {what} topic={self._config.schedule_topic} reason={reason!r}: reading it again"
        )
        self.torn, self.away = torn, away
        if self._identity is not None:
            self._identity = ""
        self._begin(reader)  # first: who sees the new generation sees that nothing of it was read
        self._found.begin_again()
        self._told(False)

    def _watch_log(self, reader: Consumer) -> None:
        """Read from the beginning again if the log lost records that were read, which Kafka does not tell a reader that
        is past them. Asks every few seconds; takes half a second at most.
        """
        if time.monotonic() < self._watch_at or self._first < 0:
            return
        self._watch_at = time.monotonic() + WATCH_EVERY
        if lost := self._what_is_lost(reader) or self._is_another(reader):
            self._begin_anew(reader, lost)

    def _is_another(self, reader: Consumer) -> str:
        """Return that this is another topic than the one that was read. One that was deleted and created again at once
        may hold more records by now than the one before; then its offsets tell nothing.
        """
        before = self._identity
        if before is None or time.monotonic() < self._identify_at:
            return ""
        self._identify_at = time.monotonic() + IDENTIFY_EVERY
        now = self._make_check(reader).identify(ASK)
        self._identity = now or before
        return "the topic was deleted and created again" if before and now not in (None, before) else ""

    def _what_is_lost(self, reader: Consumer) -> str:
        try:
            low, high = reader.get_watermark_offsets(TopicPartition(self._config.schedule_topic, 0), timeout=ASK)
        except KafkaException:
            return ""  # the topic is gone, or brokers are: others find out
        if low > self._first >= 0:
            return f"records before offset {low} were deleted; is cleanup.policy compact?"
        return f"the log ends at offset {high}, and was read to {self.next[0]}" if high < self.next[0] else ""

    def _read(self, reader: Consumer) -> None:
        gap, self._turned = boottime() - self._turned, boottime()
        if gap > STOOD_STILL and max(self.next) > 0:
            self._come_back(reader, f"this process stood still for {gap:.0f} s")
            return
        try:
            first = reader.poll(SLICE)
            messages = [] if first is None else [first, *reader.consume(BATCH, 0)]
        except KafkaException as exception:
            self._on_error(exception.args[0])
            return
        read, found, lost, ended = self.next[:], False, "", False
        for message in messages:
            error = message.error()
            partition, offset = message.partition() or 0, message.offset() or 0
            if error is None:
                found |= self._take(message)
                read[partition] = offset + 1
                if partition == 0 and self._first < 0:
                    self._first = offset
            elif error.name() == "_PARTITION_EOF":
                read[partition] = max(read[partition], offset)
                ended |= partition == 0
            elif error.name() == "_AUTO_OFFSET_RESET":
                lost = error.str()
                break
            else:
                self._on_error(error)
        silence = boottime() - self._heard
        if lost:
            self._heard = boottime()
            self._begin_anew(reader, lost)
        elif messages and silence > AWAY and max(self.next) > 0:
            self._come_back(reader, f"this process heard nothing for {silence:.0f} s")
        elif messages:
            self._heard = boottime()
            self.next, self._writes.quiet = read, False
            if ended and self.whole != self._found.generation:
                found |= self.whole >= 0  # that some records are gone is news, too
                self.whole = self._found.generation
            self._told(found)

    def _come_back(self, reader: Consumer, why: str) -> None:
        """Read from the beginning again: the topic may be another one by now, whose records were never read up to this
        position. After long, what is missing was removed, unless the log shows that it lost records.
        """
        long = boottime() - self._heard > CUT_OFF
        lost = self._what_is_lost(reader) if long else ""
        self._heard = boottime()
        what = "removals may have been missed" if long and not lost else lost or "the topic may be another one by now"
        self._begin_anew(reader, f"{why}: {what}", torn=not long or lost != "", away=True)

    def _take(self, message: Message) -> bool:
        key, value = message.key(), message.value()
        assert not isinstance(value, str)
        return self._found.add(key if isinstance(key, bytes) else None, value)

    def _on_error(self, error: KafkaError) -> None:
        """What is wrong with more than one position; called by librdkafka, too, while it is polled."""
        if error.name() in OF_NO_READER:
            return
        if error.name() in GONE:
            self._missing = True
        if error.name() == "_ALL_BROKERS_DOWN":
            self._writes.quiet = True
        if error.name() == "TOPIC_AUTHORIZATION_FAILED":
            self._denied = "Read"
        else:
            self._klog.remark(error)

    def _look_for_topic(self, reader: Consumer) -> None:
        """The topic seems to be gone. If brokers say so when asked, it is made anew; if not, another may have made it
        anew meanwhile, and the old position says nothing.
        """
        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + 1.0
        check = self._make_check(reader)
        present = check.present()
        if present is None:
            return
        self._missing = False
        self._begin_anew(reader, "the topic is, or was, gone")
        if not present:
            reader.unassign()
            self._search(check)
