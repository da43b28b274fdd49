"""The log of every role, read and appended over Kafka: partition *k* of the leader topic is the journal of role *k*.

The reader keeps its own positions. A position that is not in the log any more is told (`Lost`), never mended in
silence: librdkafka is set to `auto.offset.reset=error`, and positions are assigned with their leader epoch, so that a
truncated log shows too (R9).

A reader that hears nothing is assigned again, then replaced; a producer that finds no broker is replaced (deaf.py).
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from celery_neli.election.ports import End, Entry, Event, Lost, Started
from celery_neli.exceptions import TopicError
from celery_neli.kafka.causes import OF_NO_READER, is_denied
from celery_neli.kafka.client_log import KafkaLog
from celery_neli.kafka.liveness import QUIET, Brokers, Step, Watch, hears, let_go
from celery_neli.kafka.properties import producer_properties, reader_properties
from celery_neli.kafka.topic_admin import GONE, TopicCheck
from celery_neli.kafka.trouble import Trouble
from celery_neli.kafka.validate import making

if TYPE_CHECKING:
    from celery_neli.config import Config

TAIL = 200  # records read at first, from the end
FURTHER = 1_000  # records that `look_back` goes back
BATCH = 500  # events returned by one `read`
FLUSH = 1.0  # seconds that `close` waits for appends under way
OFFSET_TAIL_BASE = -2_000  # librdkafka's logical offset RD_KAFKA_OFFSET_TAIL(n) is this minus n
NO_EPOCH = -1

_OF_PARTITION = frozenset({"_PARTITION_EOF", "_AUTO_OFFSET_RESET"})


@dataclass(slots=True)
class _Position:
    """Where the reader is in one role's log."""

    role: int
    assigned: bool = False
    reading: bool = False  # Started was told
    whole: bool = False  # assigned at the log's beginning
    start: int = 0  # the offset that Started told
    next: int = 0  # the offset after the last record read
    epoch: int = NO_EPOCH  # leader epoch of the last record read
    awaited: bytes | None = None  # last own append, until it is read
    asked: bool = False  # an end was asked for and not told yet
    sought: int = OFFSET_BEGINNING  # where reading was to begin
    heard: float = 0.0  # when anything was last told of it, or it was begun anew (monotonic seconds)


class KafkaJournal:
    """The journals of all roles. After the constructor for one thread only, and never in a forked child.

    `log`: a `logging.Logger` or alike whose calls only enqueue. The constructor waits for nothing. It raises
    `ConfigurationError` if the Kafka properties are malformed or contradict an election's needs.
    """

    def __init__(self, config: Config, *, log: logging.Logger) -> None:
        self._config = config
        self._klog = KafkaLog(log, config.properties)
        self._closed = False
        self._trouble = Trouble(config.topic, self._klog)
        self._missing: str | None = None  # why the topic seems to be gone
        self._ask_missing_at = 0.0
        self._positions = {role: _Position(role) for role in range(len(config.roles))}
        self._reader_properties, self._producer_properties = reader_properties(config), producer_properties(config)
        self._hearing = Watch(Brokers(config, KafkaLog(log, config.properties), config.topic), placing=True)
        self._sending = Watch(Brokers(config, KafkaLog(log, config.properties), config.topic))
        self._sent_at = time.monotonic()  # when a record was last acknowledged
        self._doubted = False  # whether the producer reaches brokers; records were lost
        self._ask_producer_at = 0.0
        self._reader = self._make_reader()
        self._producer = self._make_producer()
        self._check: TopicCheck | None = self._make_check()

    def read(self, timeout: float) -> list[Event]:
        """Wait up to `timeout` seconds for the first event, then take what is there, some 500 events at most.

        Until the topic was found (at first, and after it was deleted) it may take half a second instead. Raises
        `TopicError` if the operator must do something to the topic; each later call looks again, and raises the same
        object for as long as it is the same trouble.
        """
        if self._closed:
            return []
        self._producer.poll(0)
        self._listen()
        if self._doubted:
            self._listen_to_producer()
        self._trouble.tell()
        if self._check is not None:
            # Waiting in the reader's poll serves its log lines and errors meanwhile.
            self._poll_reader(min(timeout, 0.05))
            if not self._topic_ready(self._check):
                return []
            for position in self._positions.values():
                self._assign_tail(position)
        events: list[Event] = []
        for number in range(BATCH):
            message = self._poll_reader(0 if number else timeout)
            if message is None:
                break
            self._take(message, events)
        if self._missing is not None:
            self._look_for_topic(self._missing, events)
        return events

    def append(self, role: int, key: str, value: bytes) -> None:
        """Hand a record of `role` to the producer. Never blocks, never raises.

        A record that is lost, now or later, is said at most every ten seconds.
        """
        if self._closed:
            return
        try:
            self._producer.produce(self._config.topic, value, key, partition=role, on_delivery=self._delivered)
        except BufferError:
            self._klog.say(logging.WARNING, f"append dropped role={role} reason='queue full'")
        except KafkaException as exception:
            error = exception.args[0]
            if is_denied(error.name()):
                self._trouble.deny("Write")
            else:
                self._klog.say(logging.WARNING, f"append dropped role={role} reason={error.name()} {error.str()}")
            if error.fatal() or error.name() == "_FATAL":
                self._renew_producer()
        else:
            self._positions[role].awaited = value

    def look_back(self, role: int) -> None:
        """Read `role` again from 1000 records before its start, or from the log's beginning; a `Started` follows.

        Its offset is lower, or it is the same and `oldest` is set.
        """
        position = self._positions[role]
        if not position.reading:
            return
        if position.start > FURTHER:
            self._assign(position, position.start - FURTHER)
        else:
            self._assign_beginning(position)

    def ask_end(self, role: int) -> None:
        """Have the broker say anew where the end is; an `End` follows after whatever is before it.

        Asking again before it was told changes nothing: it would only put the answer off.
        """
        position = self._positions[role]
        if position.reading and not position.asked:
            self._ask_end(position)

    def close(self) -> None:
        """Send what was appended, waiting for a second at most, and end."""
        if self._closed:
            return
        self._closed = True
        if self._check is not None:
            self._check.close()
        try:
            if self._producer.flush(FLUSH):
                self._producer.purge(in_queue=True, in_flight=True, blocking=False)
                self._producer.flush(0)
            self._producer.close()
            self._reader.close()
        except (KafkaException, RuntimeError) as exception:
            self._klog.say(logging.WARNING, f"journal close failed: {exception}")

    def _make_reader(self) -> Consumer:
        with making(self._config.properties):
            return Consumer({**self._reader_properties, "logger": self._klog, "error_cb": self._on_error})

    def _make_producer(self) -> Producer:
        with making(self._config.properties):
            return Producer({**self._producer_properties, "logger": self._klog, "error_cb": self._klog.remark})

    def _make_check(self) -> TopicCheck:
        return TopicCheck(self._config, self._klog, reader=self._reader, producer=self._producer)

    def _listen(self) -> None:
        """Heal a reader, or one position of it, of which nothing is heard though brokers answer. Does not wait."""
        if self._check is None:
            heard = min(position.heard for position in self._positions.values())
        else:
            heard = self._check.heard
        step = self._hearing.look(heard)
        if step is Step.PLACE:
            for position in self._positions.values():
                if position.assigned and position.heard <= time.monotonic() - QUIET:
                    self._place_anew(position)
        elif step is Step.RENEW:
            self._renew_reader(heard)

    def _place_anew(self, position: _Position) -> None:
        if position.reading:
            self._ask_end(position)
        else:
            self._place(position, position.sought, NO_EPOCH)

    def _renew_reader(self, heard: float) -> None:
        self._tell_deaf(self._hearing, f"reader hears nothing for {time.monotonic() - heard:.1f} s")
        let_go(self._reader)
        self._reader = self._make_reader()
        self._hearing.renewed()
        for position in self._positions.values():
            if position.assigned:
                position.assigned = False
                self._place_anew(position)
        if self._check is not None:
            self._check.close()
            self._check = self._make_check()

    def _listen_to_producer(self) -> None:
        """Heal a producer that finds no broker though brokers answer. Waits for half a second at most, while records
        are being lost.
        """
        if time.monotonic() < self._ask_producer_at:
            return
        wait = min(0.5, self._config.heartbeat_timeout / 8)
        self._ask_producer_at = time.monotonic() + 4 * wait
        if hears(self._producer, self._config.topic, wait):
            self._sent_at, self._doubted = time.monotonic(), False
        elif self._sending.look(self._sent_at) is Step.RENEW:
            self._tell_deaf(self._sending, "producer finds no broker")
            self._renew_producer()
            self._sending.renewed()

    def _renew_producer(self) -> None:
        # What it had is lost, or too late: a record is worth nothing after the lease that it was to buy.
        self._producer.purge(in_queue=True, in_flight=True, blocking=False)
        self._producer.flush(0)
        let_go(self._producer)
        self._producer, self._doubted = self._make_producer(), False
        if self._check is not None:
            self._check.close()
            self._check = self._make_check()

    def _tell_deaf(self, watch: Watch, what: str) -> None:
        level = logging.WARNING if watch.first else logging.DEBUG
        self._klog.say(level, f"kafka client deaf: {what}, though brokers answer: replaced")

    def _topic_ready(self, check: TopicCheck) -> bool:
        try:
            ready = check.poll()
        except TopicError as problem:
            self._check = self._make_check()
            raise self._trouble.same(problem) from None
        if ready:
            self._check = None
            self._trouble.found()
        return ready

    def _poll_reader(self, timeout: float) -> Message | None:
        try:
            return self._reader.poll(timeout)
        except KafkaException as exception:
            self._klog.error(exception.args[0])
            return None

    def _take(self, message: Message, events: list[Event]) -> None:
        role = message.partition()
        position = None if role is None else self._positions.get(role)
        error = message.error()
        if error is not None and error.name() in OF_NO_READER:
            return
        if position is not None and (error is None or error.name() in _OF_PARTITION or error.name()[0] != "_"):
            position.heard = time.monotonic()
        if error is not None and error.name() not in _OF_PARTITION:
            self._on_error(error)
        elif position is None or not position.assigned:
            pass  # left over from before it was moved
        elif error is None or error.name() == "_PARTITION_EOF":
            offset = message.offset()
            assert offset is not None
            self._klog.reachable()
            self._trouble.allow("Read")
            self._start(position, offset, events)
            if error is None:
                self._take_record(position, offset, message, events)
            else:
                self._take_end(position, offset, events)
        else:
            self._out_of_range(position, error, events)

    def _on_error(self, error: KafkaError) -> None:
        """What is wrong with more than one position. Called inside the reader's poll, or for what that returned."""
        if error.name() in GONE and self._check is None:
            self._missing = error.str()
        if error.name() == "TOPIC_AUTHORIZATION_FAILED":
            self._trouble.deny("Read")
        else:
            self._klog.error(error)

    def _take_record(self, position: _Position, offset: int, message: Message, events: list[Event]) -> None:
        position.next = offset + 1
        epoch = message.leader_epoch()
        position.epoch = NO_EPOCH if epoch is None else epoch
        value = message.value() or b""
        if value == position.awaited:
            position.awaited = None
        key = message.key()
        events.append(Entry(position.role, offset, value, None if key is None else key.decode(errors="replace")))

    def _take_end(self, position: _Position, offset: int, events: list[Event]) -> None:
        position.next = max(position.next, offset)
        if position.awaited is not None:
            # Found before the own append, maybe: look anew.
            self._ask_end(position)
        else:
            position.asked = False
            events.append(End(position.role))

    def _ask_end(self, position: _Position) -> None:
        # Positioned anew where it stands, librdkafka drops what it fetched or asked before, and tells the end that it
        # then finds.
        position.asked = True
        position.awaited = None
        self._place(position, position.next, position.epoch)

    def _start(self, position: _Position, offset: int, events: list[Event]) -> None:
        if position.reading:
            return
        position.reading = True
        position.start = position.next = offset
        position.awaited = None
        events.append(Started(position.role, offset, position.whole or offset == 0))

    def _out_of_range(self, position: _Position, error: KafkaError, events: list[Event]) -> None:
        if position.reading:
            events.append(Lost(position.role, error.str()))
            self._assign_tail(position)
        else:
            # The log holds fewer records than were asked for, or loses them while it is being asked.
            if position.sought >= 0:
                # The log has lost what was to be read again: it may be another log by now.
                events.append(Lost(position.role, error.str()))
            if position.whole:
                self._klog.say(logging.WARNING, f"role={position.role} not read yet: {error.str()}")
            self._assign_beginning(position)

    def _look_for_topic(self, reason: str, events: list[Event]) -> None:
        """The topic seems to be gone: if brokers say so when asked, every position is lost, and the topic is made anew.

        One broker's stale view must not cost a leader its term, so this asks first; it may block for half a second.
        """
        if time.monotonic() < self._ask_missing_at:
            return
        self._ask_missing_at = time.monotonic() + 1.0
        check = self._make_check()
        present = check.present()
        if present is None:
            return
        self._missing = None
        if present:
            return
        for position in self._positions.values():
            events.append(Lost(position.role, f"leader topic gone: {reason}"))
            self._unassign(position)
            position.reading = False
        self._check = check

    def _assign_tail(self, position: _Position) -> None:
        self._assign(position, OFFSET_TAIL_BASE - TAIL)

    def _assign_beginning(self, position: _Position) -> None:
        self._assign(position, OFFSET_BEGINNING)
        position.whole = True

    def _assign(self, position: _Position, offset: int) -> None:
        """Begin anew at `offset`; a `Started` follows."""
        position.reading = position.whole = position.asked = False
        position.epoch = NO_EPOCH
        position.sought, position.heard = offset, time.monotonic()
        self._place(position, offset, NO_EPOCH)

    def _place(self, position: _Position, offset: int, epoch: int) -> None:
        """Move the reader; other roles are not disturbed. Local to librdkafka: does not wait for a broker."""
        self._unassign(position)
        self._reader.incremental_assign([TopicPartition(self._config.topic, position.role, offset, "", epoch)])
        position.assigned = True

    def _unassign(self, position: _Position) -> None:
        if position.assigned:
            position.assigned = False
            self._reader.incremental_unassign([TopicPartition(self._config.topic, position.role)])

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is None:
            self._sent_at, self._doubted = time.monotonic(), False
            self._trouble.allow("Write")
        elif is_denied(error.name()):
            self._trouble.deny("Write")
        elif not self._closed:
            self._doubted |= error.name() in ("_MSG_TIMED_OUT", "_TIMED_OUT", "_TRANSPORT")
            level = logging.DEBUG if self._klog.unreachable else logging.WARNING
            self._klog.say(level, f"append lost role={message.partition()} reason={error.name()} {error.str()}")
