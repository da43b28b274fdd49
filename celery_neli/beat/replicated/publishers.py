"""The pool of publishers: sends entries side by side, while more is due than one connection can send in time.

Only what goes by a template is sent so: no code of the application runs there, but for what is around
`apply_entry`. An entry has one run in the pool at a time, so its slots stay in order; until it is settled, the
watermark *settled* stays below it.

Each publisher is a thread (under gevent's monkey patching a greenlet) with a connection of its own. The thread that
ticks hands out jobs and collects what became of them; it never waits for a broker unless it asks to. A publisher sends
several messages before it asks what became of them. How, the transport decides:

- AMQP with publisher confirms: messages leave at once, and the broker's confirms are awaited together;
- Redis, with kombu 5.7 or newer: kombu's publish batch, which sends all commands in one pipeline;
- all others: each message waits for itself.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from itertools import pairwise
from typing import Any, Generic, TypeVar

from amqp import Channel as AmqpChannel
from amqp.exceptions import MessageNacked, RecoverableConnectionError
from celery.utils.log import get_logger
from kombu.messaging import Producer

from celery_neli.beat.publish import DROP_TIMEOUT, drop_connection, leased_producer
from celery_neli.beat.replicated.ledger import Run
from celery_neli.logs import escaping
from celery_neli.schedule.heap import DueHeap

Job = TypeVar("Job")

logger = escaping(get_logger(__name__))

#: Seconds for which they are left out after one of them failed: the thread that ticks waits for a broker that is gone.
CALM = 2.0
#: How many a publisher sends before it waits for the broker's answers, where the transport can.
BATCH = 20
#: Seconds after which a run that is not completed counts as stuck.
STUCK = 5.0
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
            with suppress(queue.Empty):
                self._seen += self._done.get(timeout=max(timeout, 0))
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
        refusal = MessageNacked("the broker refused the message")
        channel.events["basic_ack"].add(self._answered)
        channel.events["basic_nack"].add(partial(self._answered, refusal=refusal))
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

    def _answered(self, tag: int, multiple: bool, refusal: BaseException | None = None) -> None:
        named = {each for each in self._unconfirmed if each <= tag} if multiple else {tag}
        self._unconfirmed -= named
        if refusal is not None:
            self._failures.update(dict.fromkeys(named, refusal))


class Pool:
    """The runs of one scheduler and term that publishers send. The thread that ticks.

    ``send`` sends one run, on one of up to ``count`` publishers' threads, by a ``producer`` that asks ``tenure``. With
    a count of one, the thread that ticks sends everything.
    """

    def __init__(
        self, app: Any, send: Callable[[Run, Any], None], *, count: int, producer: Any = None, tenure: Any = None
    ) -> None:
        self._app, self._send, self._count, self._producer, self._tenure = app, send, count, producer, tenure
        self.publishers: Publishers[Run] = Publishers(
            count=count, connect=self._connect, send=self._send_all, batch=BATCH
        )
        #: The runs that are not settled, by entry.
        self.runs: dict[str, Run] = {}
        self._calm_until = 0.0

    @property
    def stuck(self) -> bool:
        """True if a run was submitted a while ago, and nothing has come of it."""
        first = next(iter(self.runs.values()), None)  # in the order of submission
        return first is not None and time.monotonic() - first.at > STUCK

    def is_wanted(self, heap: DueHeap, moment: float) -> bool:
        """Return True if another entry, too, is due at ``moment``, so that they should be sent side by side."""
        if self._count < 2 or time.monotonic() < self._calm_until:
            return False
        second = heap.second()
        return second is not None and second <= moment

    def submit(self, run: Run) -> None:
        """Have a publisher send the run; one is free. Does not block."""
        self.runs[run.entry.name] = run
        self.publishers.submit(run)

    def completed(self) -> list[tuple[Run, BaseException | None]]:
        """Return the runs completed since the last call, each with None if its message left or was `refused`, or with
        what went wrong. The caller takes them out of `runs` when it has dealt with them. Does not block.
        """
        finished = self.publishers.finished()
        if any(isinstance(error, Exception) and not isinstance(error, Unsent) for _, error in finished):
            self._calm_until = time.monotonic() + CALM
        return finished

    # -- on a publisher's thread --

    def _connect(self) -> Any:
        connection = self._app.connection_for_write()
        connection.ensure_connection(max_retries=1, interval_start=0.2)
        producer: Any = leased_producer(self._producer, self._tenure.twin())(connection, auto_declare=False)
        producer.neli_batch = batch_of(producer)
        return producer

    def _send_all(self, runs: list[Run], producer: Any) -> list[BaseException | None]:
        """Return what came of each: None if its message left (and the broker said so if it can), or was `refused`."""
        batch: Batch = producer.neli_batch
        batch.begin()
        marks = [batch.mark]
        outcomes: list[BaseException | None] = []
        for run in runs:
            try:
                self._send(run, producer)
                outcomes.append(None)
            except BaseException as exc:  # noqa: BLE001 - the thread that ticks judges it
                outcomes.append(exc)
            marks.append(batch.mark)
            if outcomes[-1] is not None:  # the connection may be gone
                break
        batch.settle(producer.neli_tenure.ask_finish)
        for n, (since, until) in enumerate(pairwise(marks)):
            if outcomes[n] is None and runs[n].refused is None:
                outcomes[n] = batch.failure(since, until)
                if isinstance(outcomes[n], Exception):
                    text = "beat: entry=%s was not confirmed by the task broker: %r"
                    logger.error(text, runs[n].entry.name, outcomes[n])
        return outcomes + [Unsent("another one failed before it")] * (len(runs) - len(outcomes))
