"""Records in the history topic what a beat tells of slots and a worker of their tasks, on a thread of its own.

What happens elsewhere costs an append to a bounded deque there. The thread looks at the deque twice a second, and makes
its Kafka client when the first record is there: a beat that stands by has none. While Kafka takes no records they wait
in memory, the oldest are dropped when there are too many, and one line says so.
"""

from __future__ import annotations

import logging
import os
import time
import weakref
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from confluent_kafka import KafkaError, KafkaException

from celery_neli import hooks
from celery_neli.config import Config, from_app, setting
from celery_neli.exceptions import NeliError, RecordError, TopicError
from celery_neli.history.records import (
    Record,
    RunRecord,
    WorkerRecord,
    encode,
    encode_slot,
    key_of,
    partition_of,
)
from celery_neli.history.records import key as key_of_name
from celery_neli.hooks import RunEvent, SlotEvent, WorkerEvent
from celery_neli.kafka.causes import DENIED, GONE
from celery_neli.kafka.client_log import ClientLog
from celery_neli.kafka.properties import history_producer_properties
from celery_neli.kafka.topic_admin import TopicAdmin
from celery_neli.kafka.topic_spec import history_topic
from celery_neli.kafka.writer import Writer
from celery_neli.logs import LogLimit, escaping
from celery_neli.threads import Thread, original, spawn

if TYPE_CHECKING:
    from celery import Celery

    from celery_neli.election.leadership import Leadership

MOST_QUEUED: Final = 100_000  # events that wait for Kafka, some 40 MB
MOST_SENT: Final = 5_000  # records at a time that librdkafka has
# Events that one turn takes at least, and this share of what waits: after a burst the thread that sends slots goes on
# with what it has to do, and the history follows within seconds.
LEAST: Final = 500
SHARE: Final = 4

# Seconds:
LOOK_EVERY: Final = 0.5  # between two looks at the queue; a Kafka client is polled as often
SEARCH: Final = 0.05  # the same while the topic is searched for
PAUSE: Final = 10.0  # after what somebody must mend
FLUSH: Final = 1.0  # that `stop` waits for acknowledgements
JOIN: Final = 0.5  # … and then for the thread
REPEAT: Final = 600.0  # between two lines that say the same
YIELD: Final = 0.000_1  # for other threads after so many records:
AT_ONCE: Final = 20

Event: TypeAlias = "SlotEvent | RunEvent | WorkerEvent"

logger = escaping(logging.getLogger(__name__))


def _sleep(seconds: float) -> None:
    original("time", "sleep")(seconds)


def start(app: Celery, leadership: Leadership) -> Recorder | None:
    """Begin to record what this process tells, for one leadership; None if `neli_history` is off. Returns at once."""
    if not setting(app, "neli_history"):
        return None
    config = replace(from_app(app, "beat"), name=leadership.config.name)
    recorder = Recorder(config, retention=setting(app, "neli_history_retention"))
    recorder.start(hooks.slot if leadership.election == "beat" else hooks.run, hooks.worker)
    vars(app).setdefault("neli_recorders", {})[leadership.election] = recorder
    return recorder


def recorder_of(app: Celery, election: str) -> Recorder | None:
    """Return the recorder of this process in `election` ("beat" or "worker"); None if there is none."""
    found: Recorder | None = vars(app).get("neli_recorders", {}).get(election)
    return found if found is not None and found.pid == os.getpid() else None


class Recorder:
    """Writes records in the background. Only `stop` blocks, and nothing raises; `put` may be called from any thread."""

    def __init__(self, config: Config, *, retention: float, log: logging.Logger = logger) -> None:
        """`retention`: seconds, if it makes the topic."""
        self._config, self._log = config, log
        self._spec = history_topic(config, retention)
        self._client_log = ClientLog(log, config.properties, one_shot=True)
        self._limit = LogLimit(REPEAT)
        self._queue: deque[Event] = deque(maxlen=MOST_QUEUED)
        self._hooks: tuple[hooks.Hook, ...] = ()
        self._wake: Any = original("_thread", "allocate_lock")()  # held until `stop` wakes the thread
        self._wake.acquire()
        self._thread: Thread | None = None
        self._stopping: float | None = None  # until when to flush (monotonic seconds)
        self._writer: Writer | None = None
        self._topic: TopicAdmin | None = None
        self._done_count = 0  # of those that librdkafka got, how many it has no more
        self._refused_before = 0
        self._given = 0  # how many records librdkafka got
        self._given_at: deque[tuple[int, float]] = deque()  # after how many, and when the first of the turn was told
        self._refused = 0  # records that Kafka did not take
        self._overflowed = 0  # records that did not fit into memory
        self._reported = 0  # how many of both the log knows of
        self._reason = ""
        self.pid = os.getpid()

    @property
    def queued(self) -> int:
        """Return how many records are not acknowledged by Kafka yet, as far as is known here. Any thread."""
        return len(self._queue) + self._in_flight()

    @property
    def lag(self) -> float:
        """Return the age in seconds of the oldest record that is not acknowledged yet, 0 if there is none."""
        oldest: float | None = None
        try:
            if self._in_flight():
                oldest = self._given_at[0][1]
            elif self._queue:
                oldest = self._queue[0].at
        except IndexError:  # the thread was faster
            pass
        return 0.0 if oldest is None else max(0.0, time.time() - oldest)

    def _in_flight(self) -> int:
        return self._given_at[-1][0] - self._done_count if self._given_at else 0

    @property
    def dropped(self) -> int:
        """Return how many records were lost so far. Any thread."""
        return self._refused + self._overflowed

    def put(self, event: Event) -> None:
        """Have it recorded. Any thread; returns at once; void in a forked child."""
        if os.getpid() != self.pid:
            return
        if len(self._queue) == MOST_QUEUED:
            self._overflowed += 1
        self._queue.append(event)

    def start(self, *told: hooks.Hook) -> None:
        """Record what these hooks tell from now on. Returns at once."""
        self._hooks = told
        for hook in told:
            hook.add(self.put)
        _alive.add(self)
        self._thread = spawn(self._run, name="neli-history")

    def stop(self) -> None:
        """Write what is left for up to a second, and end. Repeatable."""
        for hook in self._hooks:
            hook.remove(self.put)
        self._hooks = ()
        if self._thread is None or self._stopping is not None or os.getpid() != self.pid:
            return
        self._stopping = time.monotonic() + FLUSH
        self._wake.release()
        self._thread.join(FLUSH + JOIN)

    # On its own thread

    def _run(self) -> None:
        pause = LOOK_EVERY
        while self._stopping is None:
            self._wake.acquire(timeout=pause)
            try:
                pause = self._turn()
            except TopicError as trouble:
                self._trouble(str(trouble))
                pause = PAUSE
            except NeliError as trouble:  # a file that librdkafka needs is gone by now
                self._trouble(str(trouble))
                self._drop_client()
                pause = PAUSE
            except Exception as error:  # noqa: BLE001 - whatever it was, the beat or worker goes on
                if self._limit.allows(repr(type(error))):
                    self._log.exception("run history failed topic=%s", self._spec.name)
                self._drop_client()
                pause = PAUSE
        try:
            self._finish(self._stopping)
        except Exception:  # noqa: BLE001 - nothing waits for it
            self._log.exception("run history did not end well topic=%s", self._spec.name)

    def _turn(self, *, all_: bool = False) -> float:
        """Send what there is, or a part of much; return after how many seconds to look again."""
        if self._writer is None:
            if not self._queue:
                return LOOK_EVERY
            self._make_client()
        writer, topic = self._writer, self._topic
        assert writer is not None, "it was made"
        assert topic is not None, "it was made"
        writer.poll()
        self._note(writer, topic)
        if not topic.poll():
            return SEARCH
        if self._queue or self._given_at:
            if writer.is_lost():
                writer.replace()
            self._send(writer, len(self._queue) if all_ else max(LEAST, len(self._queue) // SHARE))
        self._report()
        return LOOK_EVERY

    def _note(self, writer: Writer, topic: TopicAdmin) -> None:
        """Note what Kafka took: librdkafka reports errors only, and says how many records it still has."""
        before, self._done_count = self._done_count, max(self._done_count, self._given - len(writer))
        while self._given_at and self._given_at[0][0] <= self._done_count:
            self._given_at.popleft()
        if self._done_count - before > self._refused - self._refused_before:
            topic.allow("Write")
        self._refused_before = self._refused

    def _make_client(self) -> None:
        properties = history_producer_properties(self._config)
        self._writer = Writer(self._config, self._client_log, self._spec.name, properties)
        self._topic = TopicAdmin(self._config, self._client_log, self._writer, self._spec)

    def _drop_client(self) -> None:
        writer, self._writer, self._topic = self._writer, None, None
        if writer is not None:
            writer.close()  # what it had is reported as refused
        self._done_count = self._given
        self._given_at.clear()

    def _send(self, writer: Writer, most: int) -> None:
        oldest, member, key, value = None, self._config.name, b"", b""
        for number in range(1, min(most, MOST_SENT - len(writer)) + 1):
            if not self._queue:
                break
            if number % AT_ONCE == 0:
                _sleep(YIELD)  # a thread that has a slot to send must not wait for Python's lock
            event = self._queue.popleft()
            try:
                if isinstance(event, SlotEvent):
                    key, value = key_of_name(event.entry), encode_slot(event, member)
                else:
                    record = record_of(event)
                    key, value = key_of(record), encode(record)
                writer.send(partition_of(key), key, value, self._failed)
            except BufferError:
                self._queue.appendleft(event)
                break
            except (RecordError, KafkaException) as exc:
                self._refused += 1
                self._reason = str(exc)
                continue
            self._given += 1
            oldest = event.at if oldest is None else oldest
        if oldest is not None:
            self._given_at.append((self._given, oldest))

    def _failed(self, error: KafkaError | None) -> None:
        topic = self._topic
        if error is None:
            return
        self._refused += 1
        self._reason = error.str()
        if topic is None:
            return
        if error.name() in DENIED:
            topic.deny("Write")
        elif error.name() in GONE and topic.found:
            topic.search()

    def _trouble(self, reason: str) -> None:
        if self._limit.allows(reason):
            self._log.warning("run history not recorded topic=%s: %s", self._spec.name, reason)

    def _report(self) -> None:
        """Log that records were lost, in one line for many."""
        if (dropped := self.dropped) > self._reported and self._limit.allows("dropped"):
            self._log.warning(
                "run history records dropped topic=%s number=%d reason=%r",
                self._spec.name, dropped - self._reported, self._reason or "Kafka did not take them in time",
            )  # fmt: skip
            self._reported = dropped

    def _finish(self, deadline: float) -> None:
        while (self._queue or self._given_at) and (left := deadline - time.monotonic()) > 0:
            try:
                self._turn(all_=True)
            except NeliError:
                break
            if self._writer is not None and self._given_at:
                self._writer.flush(min(SEARCH, left))
            elif self._queue:
                self._wake.acquire(timeout=min(SEARCH, left))
        self._refused += len(self._queue)
        self._queue.clear()
        self._drop_client()
        self._report()


def record_of(event: RunEvent | WorkerEvent) -> Record:
    """Return the record that tells of a worker's event."""
    if isinstance(event, RunEvent):
        return RunRecord(
            entry=event.entry, task=event.task, slot=event.slot, id=event.id, state=event.state, at=event.at,
            worker=event.worker, runtime=event.runtime, retries=event.retries, error=event.error,
        )  # fmt: skip
    return WorkerRecord(worker=event.worker, at=event.at, queues=event.queues, stopped=event.stopped)


_alive: weakref.WeakSet[Recorder] = weakref.WeakSet()
_inherited: list[Any] = []


def _after_fork() -> None:
    """In a child: keep the recorders for ever, for the clients' finalisers must not run here."""
    _inherited.append(list(_alive))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
