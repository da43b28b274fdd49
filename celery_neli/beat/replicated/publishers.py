"""Publishers side by side: jobs go to threads with a connection of their own each, outcomes to the coordinator.

While one publisher waits for the task broker's answer, the others send. The coordinator, the thread that ticks, hands
out jobs and collects what became of them; it never waits for a broker unless it asks to. Under gevent's monkey patching
the threads are greenlets, as gevent wants everything that waits for sockets to be.

A publisher sends several messages before it asks what became of them. How, the transport decides:

- AMQP with publisher confirms: messages leave at once, and the broker's confirms are awaited together;
- Redis, with kombu 5.7 or newer: kombu's publish batch, which sends all commands in one pipeline;
- all others: each message waits for itself.

Sources: py-amqp's `Channel.basic_publish_confirm`, kombu's `Producer.batch`.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Generic, TypeVar

from amqp import Channel as AmqpChannel
from amqp.exceptions import MessageNacked, RecoverableConnectionError
from kombu.messaging import Producer

from celery_neli.beat.publish import DROP_TIMEOUT, drop_connection

Job = TypeVar("Job")

#: Batches that a publisher has at hand: the one that it sends, and one so that it does not run dry.
AHEAD = 2
#: Seconds without a job after which a publisher ends and its connection is closed.
IDLE = 30.0
#: Commands after which kombu would send by itself; a publisher takes far fewer jobs at a time.
_MOST = 10_000

_batch_of_kombus: Any = getattr(Producer, "batch", None)


class Unsent(Exception):
    """The outcome of a job that `Publishers.close` came before: it was not begun."""


class Publishers(Generic[Job]):
    """Up to ``count`` publishers. Threads and connections are made as jobs need them, and end after ``idle`` seconds.

    ``connect()`` returns a kombu Producer that is connected; ``send(jobs, producer)`` sends up to ``batch`` jobs and
    returns what became of each. Both run on a publisher's thread, and may block and raise anything: what they raise, a
    BaseException too, is the outcome of all these jobs. If one of the outcomes is an exception, the connection is
    dropped, and the publisher's next jobs get another. What hangs in ``connect`` does not hold up `close`; what hangs
    in ``send`` does, for its timeout.

    Jobs begin in the order of `submit` but overtake each other, so what must stay in order has one in flight at a time.
    All methods belong to the one thread that coordinates; none blocks but `wait` and `close`.
    """

    def __init__(
        self,
        *,
        count: int,
        connect: Callable[[], Any],
        send: Callable[[list[Job], Any], list[Any]],
        batch: int = 1,
        idle: float = IDLE,
    ) -> None:
        self._count, self._connect, self._send, self._batch, self._idle = count, connect, send, batch, idle
        self._done: queue.SimpleQueue[list[tuple[Job, Any]]] = queue.SimpleQueue()
        self._seen: list[tuple[Job, Any]] = []
        #: How many jobs were submitted and not yet returned by `finished` or `close`.
        self.in_flight = 0
        self._changed = threading.Condition()
        # Behind its lock:
        self._jobs: deque[Job] = deque()
        self._publishers: list[_Publisher] = []
        self._closed = False

    def free(self) -> int:
        """Return how many jobs may be submitted now: enough that no publisher runs dry; 0 once closed."""
        return 0 if self._closed else max(0, AHEAD * self._batch * self._count - self.in_flight)

    def submit(self, job: Job) -> None:
        """Hand out a job. Raises `RuntimeError` if none may be submitted."""
        if not self.free():
            raise RuntimeError("no publisher is free: ask free() first")
        publisher = None
        with self._changed:
            self.in_flight += 1
            self._jobs.append(job)
            self._changed.notify()
            if len(self._publishers) < min(self._count, self.in_flight):
                publisher = _Publisher(self._run)
                self._publishers.append(publisher)
        if publisher is not None:  # outside of the lock, so that it begins at once
            publisher.thread.start()

    def finished(self) -> list[tuple[Job, Any]]:
        """Return the jobs that finished since the last call, each with its result or the BaseException it raised."""
        finished, self._seen = self._seen, []
        while not self._done.empty():
            finished += self._done.get()
        self.in_flight -= len(finished)
        return finished

    def wait(self, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds, if any job is in flight, until one has finished; return True if one has."""
        if not self._seen and self.in_flight:
            try:
                self._seen += self._done.get(timeout=max(timeout, 0))
            except queue.Empty:
                return False
        return bool(self._seen)

    def close(self, timeout: float) -> list[Job]:
        """Begin nothing more, wait up to ``timeout`` seconds for what is being sent, and drop the connections.

        `finished` returns jobs that were not begun as `Unsent`. The jobs returned here hang in their broker, and it is
        unknown whether they leave; their threads are abandoned, and end when the broker lets them. Safe to call twice.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            self._closed = True
            publishers, self._publishers = self._publishers, []
            unsent = list(self._jobs)
            self._jobs.clear()
            for publisher in publishers:
                if publisher.jobs and not publisher.sending:  # it is connecting
                    publisher.abandoned = True
                    unsent += publisher.jobs
            if unsent:
                self._done.put([(job, Unsent("closed before it was begun")) for job in unsent])
            self._changed.notify_all()
        waited = [publisher for publisher in publishers if not publisher.abandoned]
        for publisher in waited:
            publisher.thread.join(max(deadline - time.monotonic(), 0))
        with self._changed:
            hanging = [publisher for publisher in waited if publisher.jobs]
            for publisher in hanging:
                publisher.abandoned = True
            lost = [job for publisher in hanging for job in publisher.jobs]
        deadline = time.monotonic() + DROP_TIMEOUT
        for publisher in waited:
            if publisher not in hanging:
                publisher.thread.join(max(deadline - time.monotonic(), 0))
        self.in_flight -= len(lost)
        return lost

    # -- on a publisher's thread --

    def _run(self, publisher: _Publisher) -> None:
        producer = None
        try:
            while jobs := self._next(publisher):
                producer = self._do(publisher, jobs, producer)
        finally:
            if producer is not None:
                drop_connection(producer.connection)

    def _next(self, publisher: _Publisher) -> list[Job]:
        """Return the next jobs, no more than this publisher's share; none if it is to end."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._jobs or self._closed, self._idle):
                self._publishers.remove(publisher)
            share = min(self._batch, 1 + (len(self._jobs) - 1) // self._count)
            return [self._jobs.popleft() for _ in range(share)]

    def _do(self, publisher: _Publisher, jobs: list[Job], producer: Any) -> Any:
        """Send and report; return the producer for the next jobs, or None if they need another."""
        outcomes: list[Any]
        try:
            if producer is None:
                self._begin(publisher, jobs, sending=False)
                producer = self._connect()
            self._begin(publisher, jobs, sending=True)
            outcomes = self._send(jobs, producer)
        except BaseException as exc:  # noqa: BLE001 - the coordinator's to judge
            outcomes = [exc] * len(jobs)
        with self._changed:
            publisher.jobs = []
            if not publisher.abandoned:
                self._done.put(list(zip(jobs, outcomes, strict=True)))
        if producer is not None and any(isinstance(outcome, BaseException) for outcome in outcomes):
            drop_connection(producer.connection)
            return None
        return producer

    def _begin(self, publisher: _Publisher, jobs: list[Job], *, sending: bool) -> None:
        with self._changed:
            if self._closed:
                raise Unsent("closed before it was begun")
            publisher.jobs, publisher.sending = jobs, sending


class _Publisher:
    """A publisher's thread and what it is doing; the lock protects everything but the thread."""

    def __init__(self, run: Callable[[_Publisher], None]) -> None:
        self.thread = threading.Thread(target=run, args=(self,), name="celery-neli-publisher", daemon=True)
        self.jobs: list[Any] = []
        #: True if the jobs may have left, at least in part.
        self.sending = False
        #: True once the coordinator knows everything that it will know of the jobs.
        self.abandoned = False


class Batch:
    """Messages that are published through one producer between `begin` and `settle`, again and again.

    This one lets each message wait for itself.
    """

    #: A mark between two messages.
    mark = 0

    def begin(self) -> None:
        """Wait for no message from now on, if that is possible."""

    def settle(self, ask: Callable[[], None]) -> None:
        """Wait until the broker has answered for every message since `begin`. Never raises.

        ``ask`` is called before the messages that are still here leave; if it raises, none of them leaves.
        """

    def failure(self, since: int, until: int) -> BaseException | None:
        """Return what went wrong with the messages between two marks, once they are settled; None if they arrived.

        After a failure the producer is not used again.
        """
        return None


def batch_of(producer: Any) -> Batch:
    """Return how this kombu producer, connected and not used before, can send many. Blocks for the broker's answer."""
    channel = producer.channel
    if isinstance(channel, AmqpChannel) and channel.connection.confirm_publish:
        return _Confirms(channel)
    if getattr(producer, "supports_batch_publish", False):
        return _Pipeline(producer)
    return Batch()


class _Pipeline(Batch):
    """kombu's publish batch: nothing leaves before the end, and if that fails, it is unknown what arrived."""

    def __init__(self, producer: Any) -> None:
        self._producer = producer
        self._stack = ExitStack()
        self._failure: BaseException | None = None

    def begin(self) -> None:
        self._failure = None
        # Not the leased producer's own `batch`, which lets nothing wait: here the lease is asked once more.
        self._stack.enter_context(_batch_of_kombus(self._producer, max_size=_MOST))

    def settle(self, ask: Callable[[], None]) -> None:
        try:
            with self._stack:
                ask()
        except BaseException as exc:  # noqa: BLE001 - LeaseEnded, or any of the transport's: `failure` tells
            self._failure = exc

    def failure(self, since: int, until: int) -> BaseException | None:
        return self._failure


class _Confirms(Batch):
    """Publisher confirms of AMQP. Marks are the delivery tags of the channel: its messages, counted from 1."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._unconfirmed: set[int] = set()
        self._failures: dict[int, BaseException] = {}
        channel.events["basic_ack"].add(self._confirmed)
        channel.events["basic_nack"].add(self._refused)
        channel.confirm_select()
        channel.basic_publish = self._publish  # as py-amqp does itself, for a publish that waits

    def settle(self, ask: Callable[[], None]) -> None:
        try:
            while self._unconfirmed:
                connection = self._channel.connection
                if connection is None:
                    raise RecoverableConnectionError("the channel was closed before the broker confirmed")
                connection.drain_events()
        except BaseException as exc:  # noqa: BLE001 - any of the transport's: `failure` tells
            self._failures.update(dict.fromkeys(self._unconfirmed, exc))
            self._unconfirmed.clear()

    def failure(self, since: int, until: int) -> BaseException | None:
        return next((self._failures[tag] for tag in range(since + 1, until + 1) if tag in self._failures), None)

    def _publish(self, message: Any, **kwargs: Any) -> Any:
        self.mark += 1
        self._unconfirmed.add(self.mark)
        try:
            return self._channel._basic_publish(message, **kwargs)
        except BaseException:
            self._unconfirmed.discard(self.mark)  # what is raised says so; the broker may have nothing to confirm
            raise

    def _confirmed(self, tag: int, multiple: bool) -> None:
        self._unconfirmed -= self._named(tag, multiple)

    def _refused(self, tag: int, multiple: bool) -> None:
        refused = self._named(tag, multiple)
        self._failures.update(dict.fromkeys(refused, MessageNacked("the broker refused the message")))
        self._unconfirmed -= refused

    def _named(self, tag: int, multiple: bool) -> set[int]:
        return {each for each in self._unconfirmed if each <= tag} if multiple else {tag}
