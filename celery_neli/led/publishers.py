"""Publishers side by side: jobs go to threads with a connection of their own each, outcomes to the coordinator.

While one publisher waits for the task broker's answer, the others send. The coordinator, the thread that ticks, hands
out jobs and collects what became of them; it never waits for a broker unless it asks to.

Under gevent's monkey patching the threads are greenlets, as gevent wants all that waits for sockets to be.
"""

from __future__ import annotations

import queue
import threading
import time
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from celery.utils.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Publishers", "Unsent", "drop_connection"]

logger = get_logger(__name__)

Job = TypeVar("Job")
_Item = TypeVar("_Item")

#: Jobs that a publisher has at hand: the one that it sends, and one so that it does not run dry.
AHEAD = 2
#: Seconds without a job after which a publisher ends and its connection is closed.
IDLE = 30.0
#: Seconds that dropping a connection may take, which waits for nobody but a socket.
DROP_TIMEOUT = 2.0

_NOTHING: Any = object()
_dropping = threading.Lock()


class Unsent(Exception):
    """The outcome of a job that `Publishers.close` came before: it was not begun."""


class Publishers(Generic[Job]):
    """Up to ``count`` publishers. Threads and connections are made as jobs need them, and end after ``idle`` seconds.

    ``connect()`` returns a kombu Producer that is connected; ``send(job, producer)`` sends. Both run on a publisher's
    thread, may block and raise anything: what they raise, a BaseException too, is the outcome of the job. The
    connection is dropped then, and made anew for the publisher's next job. What hangs in ``connect`` does not hold up
    `close`; what hangs in ``send`` does, for its timeout.

    Jobs begin in the order of `submit`, but overtake each other: whatever must stay in order has one in flight at a
    time. All methods belong to the one thread that coordinates; none blocks but `wait` and `close`.
    """

    def __init__(
        self, *, count: int, connect: Callable[[], Any], send: Callable[[Job, Any], Any], idle: float = IDLE
    ) -> None:
        self._count, self._connect, self._send, self._idle = count, connect, send, idle
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[Job, Any]] = queue.SimpleQueue()
        self._seen: list[tuple[Job, Any]] = []
        self._in_flight = 0
        self._lock = threading.Lock()
        # Behind the lock:
        self._publishers: list[_Publisher] = []
        self._closed = False

    @property
    def in_flight(self) -> int:
        """Jobs that were submitted and not yet returned by `finished` or `close`."""
        return self._in_flight

    def free(self) -> int:
        """How many jobs may be submitted now: enough that no publisher runs dry; 0 once closed."""
        return 0 if self._closed else max(0, AHEAD * self._count - self._in_flight)

    def submit(self, job: Job) -> None:
        """Hand out a job. :raises RuntimeError: none is `free`."""
        if not self.free():
            raise RuntimeError("no publisher is free: ask free() first")
        with self._lock:
            self._in_flight += 1
            self._jobs.put(job)
            if len(self._publishers) < min(self._count, self._in_flight):
                publisher = _Publisher(self._run)
                self._publishers.append(publisher)
                publisher.thread.start()

    def finished(self) -> list[tuple[Job, Any]]:
        """The jobs that finished since the last call, each with its result or with the BaseException that it raised."""
        finished = self._seen + _emptied(self._done)
        self._seen = []
        self._in_flight -= len(finished)
        return finished

    def wait(self, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds until a job has finished; whether one has. At once if none is in flight."""
        if not self._seen and self._in_flight:
            try:
                self._seen.append(self._done.get(timeout=max(timeout, 0)))
            except queue.Empty:
                return False
        return bool(self._seen)

    def close(self, timeout: float) -> list[Job]:
        """Begin nothing more, wait up to ``timeout`` seconds for what is being sent, and drop the connections.

        Jobs that were not begun come back from `finished` as `Unsent`. Returned are those that hang in their broker:
        whether they leave is unknown; their threads are abandoned, and end when the broker lets them. Twice is fine.
        """
        deadline = time.monotonic() + timeout
        with self._lock:
            self._closed = True
            publishers, self._publishers = self._publishers, []
            for job in _emptied(self._jobs):
                self._done.put((job, Unsent("closed before it was begun")))
            for publisher in publishers:
                self._jobs.put(_NOTHING)
                if publisher.job is not _NOTHING and not publisher.sending:
                    publisher.abandoned = True
                    self._done.put((publisher.job, Unsent("closed while its publisher was connecting")))
        waited = [publisher for publisher in publishers if not publisher.abandoned]
        for publisher in waited:
            publisher.thread.join(max(deadline - time.monotonic(), 0))
        with self._lock:
            hanging = [publisher for publisher in waited if publisher.job is not _NOTHING]
            for publisher in hanging:
                publisher.abandoned = True
        deadline = time.monotonic() + DROP_TIMEOUT
        for publisher in waited:
            if publisher not in hanging:
                publisher.thread.join(max(deadline - time.monotonic(), 0))
        self._in_flight -= len(hanging)
        return [publisher.job for publisher in hanging]

    # -- on a publisher's thread --

    def _run(self, publisher: _Publisher) -> None:
        producer = None
        try:
            while (job := self._next(publisher)) is not _NOTHING:
                producer = self._do(publisher, job, producer)
        finally:
            if producer is not None:
                drop_connection(producer.connection)

    def _next(self, publisher: _Publisher) -> Job:
        while True:
            try:
                return self._jobs.get(timeout=self._idle)
            except queue.Empty:
                with self._lock:
                    if not self._jobs.empty():
                        continue  # it came this very moment, and counts on this publisher
                    if publisher in self._publishers:
                        self._publishers.remove(publisher)
                return _NOTHING  # type: ignore[no-any-return]

    def _do(self, publisher: _Publisher, job: Job, producer: Any) -> Any:
        """Send and report; the producer for the next job, None if there is to be another."""
        outcome: Any
        try:
            if producer is None:
                self._begin(publisher, job, sending=False)
                producer = self._connect()
            self._begin(publisher, job, sending=True)
            outcome = self._send(job, producer)
        except BaseException as exc:  # noqa: BLE001 - the coordinator's to judge
            outcome = exc
        with self._lock:
            publisher.job = _NOTHING
            if not publisher.abandoned:
                self._done.put((job, outcome))
        if isinstance(outcome, BaseException) and producer is not None:
            drop_connection(producer.connection)
            return None
        return producer

    def _begin(self, publisher: _Publisher, job: Job, *, sending: bool) -> None:
        with self._lock:
            if self._closed:
                raise Unsent("closed before it was begun")
            publisher.job, publisher.sending = job, sending


class _Publisher:
    """A publisher's thread, and what it is at; all but the thread belongs to the lock."""

    def __init__(self, run: Callable[[_Publisher], None]) -> None:
        self.thread = threading.Thread(target=run, args=(self,), name="celery-neli-publisher", daemon=True)
        self.job: Any = _NOTHING
        #: Whether the job may have left, at least in part.
        self.sending = False
        #: The coordinator knows all that it will know of the job.
        self.abandoned = False


def _emptied(full: queue.SimpleQueue[_Item]) -> list[_Item]:
    taken = []
    try:
        while True:
            taken.append(full.get_nowait())
    except queue.Empty:
        return taken


def drop_connection(connection: Any) -> None:
    """Drop a kombu connection without waiting for the broker, on the thread that used it. Never raises."""
    # One at a time: kombu sets the whole process's default timeout of sockets meanwhile, and back to what it found.
    with _dropping:
        try:
            connection.collect(socket_timeout=1.0)
        except Exception as exc:  # noqa: BLE001 - any transport's; it is being thrown away
            logger.debug("beat: closing the task broker's connection: %r", exc)
