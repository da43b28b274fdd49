"""The log of every role, read and appended over Kafka: partition *k* of the leader topic is the journal of role *k*.

A position that is not in the log any more is reported (`Lost`), never mended in silence (reader.py, R9).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from typing import Final

from confluent_kafka import KafkaError, KafkaException

from celery_neli.config import Config
from celery_neli.election.records import End, Entry, Event, Lost, Started
from celery_neli.kafka.causes import DENIED
from celery_neli.kafka.client_log import ClientLog
from celery_neli.kafka.properties import producer_properties, reader_properties
from celery_neli.kafka.reader import BEGINNING, EndOfLog, OutOfRange, Reader, tail
from celery_neli.kafka.topic_admin import TopicAdmin
from celery_neli.kafka.topic_spec import leader_topic
from celery_neli.kafka.writer import Writer

TAIL: Final = 200  # records that are read at first, from the end
FURTHER: Final = 1_000  # records that `look_back` goes back
BATCH: Final = 500  # messages that one `read` takes
FLUSH: Final = 1.0  # seconds that `close` waits for appends under way
SEARCH: Final = 0.05  # seconds that one `read` waits while the topic is searched for


@dataclass(slots=True)
class _Log:
    """How far the log of one role was read."""

    role: int
    sought: int = BEGINNING  # where reading was to begin: an offset, or librdkafka's word for one
    started: int | None = None  # the offset that `Started` reported; None: it was not reported yet
    awaited: bytes | None = None  # the last own append, until it is read
    asked: bool = False  # the end was asked for, and is not reported yet


class KafkaJournal:
    """The journals of all roles. After the constructor for one thread only, and never in a forked child. `log` only
    enqueues. The constructor waits for nothing; it raises `ConfigurationError`.
    """

    def __init__(self, config: Config, *, log: logging.Logger) -> None:
        self._log = ClientLog(log, config.properties)
        self._closed = False
        self._logs = [_Log(role) for role in range(len(config.roles))]
        self._reader = Reader(config, self._log, config.topic, reader_properties(config), report=self._log.error)
        self._writer = Writer(config, self._log, config.topic, producer_properties(config))
        self._topic = TopicAdmin(config, self._log, self._reader, leader_topic(config))

    def read(self, timeout: float) -> list[Event]:
        """Wait up to `timeout` seconds for the first event, then take what is there, some 500 events at most.

        Until the topic is found it may take half a second instead, and while records are being lost half a second more.
        Raises `TopicError` if an operator must mend the topic; later calls raise the same object for the same trouble.
        """
        if self._closed:
            return []
        self._writer.poll()
        self._reader.heal()
        if self._writer.is_lost():
            self._writer.replace()
        if self._reader.denied:
            self._reader.denied = False
            self._topic.deny("Read")
        events: list[Event] = []
        searching = not self._topic.found
        if searching:
            self._take(min(timeout, SEARCH), events)  # serves librdkafka's log lines and errors
        if not self._topic.poll():
            return events
        if searching:
            self._reader.missing = ""
            for each in self._logs:
                self._begin(each, tail(TAIL))
        self._take(timeout, events)
        if self._reader.missing:
            self._look_for_topic(events)
        return events

    def append(self, role: int, key: str, value: bytes) -> None:
        """Hand a record of `role` to the writer. Never blocks, never raises; a loss, now or later, is logged."""
        if self._closed:
            return
        try:
            self._writer.send(role, key, value, partial(self._delivered, role))
        except BufferError:
            self._log.say(logging.WARNING, f"append dropped role={role} reason='queue full'")
        except KafkaException as exception:
            error = exception.args[0]
            if error.name() in DENIED:
                self._topic.deny("Write")
            else:
                self._log.say(logging.WARNING, f"append dropped role={role} reason={error.name()} {error.str()}")
        else:
            self._logs[role].awaited = value

    def look_back(self, role: int) -> None:
        """Read `role` again from 1000 records earlier; a `Started` follows, with a lower offset, or with `oldest`."""
        log = self._logs[role]
        if log.started is not None:
            self._begin(log, log.started - FURTHER if log.started > FURTHER else BEGINNING)

    def ask_end(self, role: int) -> None:
        """Have the broker say again where the end is; an `End` follows. To ask once more before it does nothing."""
        log = self._logs[role]
        if log.started is not None and not log.asked:
            self._ask_end(log)

    def close(self) -> None:
        """Send what was appended, waiting for a second at most, and end."""
        if self._closed:
            return
        self._closed = True
        self._topic.search()  # drops its admin client
        self._writer.close(FLUSH)
        self._reader.close()

    def _take(self, timeout: float, events: list[Event]) -> None:
        for event in self._reader.read(timeout, BATCH, singly=True):
            log = self._logs[event.partition]
            if isinstance(event, OutOfRange):
                self._out_of_range(log, event.reason, events)
                continue
            self._log.reachable()
            self._topic.allow("Read")
            if log.started is None:
                log.started, log.awaited = event.offset, None
                oldest = log.sought == BEGINNING or event.offset == 0
                events.append(Started(log.role, event.offset, oldest))
            if not isinstance(event, EndOfLog):
                value = event.value or b""
                if value == log.awaited:
                    log.awaited = None
                key = None if event.key is None else event.key.decode(errors="replace")
                events.append(Entry(log.role, event.offset, value, key))
            elif log.awaited is not None:
                self._ask_end(log)  # this one may have been found before the own append
            else:
                log.asked = False
                events.append(End(log.role))

    def _ask_end(self, log: _Log) -> None:
        log.asked, log.awaited = True, None
        self._reader.place_again(log.role)

    def _out_of_range(self, log: _Log, reason: str, events: list[Event]) -> None:
        if log.started is not None:
            events.append(Lost(log.role, reason))
            self._begin(log, tail(TAIL))
            return
        # The log holds fewer records than were asked for, or loses them while it is being asked.
        if log.sought >= 0:
            events.append(Lost(log.role, reason))  # what was to be read again is lost: it may be another log by now
        if log.sought == BEGINNING:
            self._log.say(logging.WARNING, f"role={log.role} not read yet: {reason}")
        self._begin(log, BEGINNING)

    def _look_for_topic(self, events: list[Event]) -> None:
        """If brokers say that the topic is gone, every position is lost. One broker's stale view must not cost a leader
        its term, so this asks first; it may block for half a second.
        """
        gone = self._topic.is_gone()
        if gone is None:
            return
        reason, self._reader.missing = self._reader.missing, ""
        if not gone:
            return
        self._reader.drop()
        for log in self._logs:
            events.append(Lost(log.role, f"leader topic gone: {reason}"))
            log.started = None

    def _begin(self, log: _Log, position: int) -> None:
        log.started, log.asked, log.sought = None, False, position
        self._reader.place(log.role, position)

    def _delivered(self, role: int, error: KafkaError | None) -> None:
        if error is None:
            self._topic.allow("Write")
        elif error.name() in DENIED:
            self._topic.deny("Write")
        elif not self._closed:
            level = logging.DEBUG if self._log.reachability.unreachable else logging.WARNING
            self._log.say(level, f"append lost role={role} reason={error.name()} {error.str()}")
