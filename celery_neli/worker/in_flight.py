"""What happens to the leader-only tasks in a worker when it leads no more.

A request is *waiting* from its arrival until it is handed to the pool: reserved, for its ETA, for its rate limit, for a
free slot. From then it is *running*, as far as the main process can know, until the pool says that it is over. Those
waiting go back to their queue on the consumer's thread; those running hold up the release, as long as the lease is
held. In the pool's child the gate sends back what has not begun.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from celery.worker import state

from celery_neli.logs import escaping
from celery_neli.worker.counters import counts
from celery_neli.worker.kill import abandon, kill
from celery_neli.worker.queues import leader_queue
from celery_neli.worker.redelivery import give_back

if TYPE_CHECKING:
    from celery_neli.election.leadership import Leadership
    from celery_neli.election.shared_lease import SharedLease

LOOK_EVERY = 0.02
TURN = 5.0
"""Seconds within which the consumer's loop turns: it waits 2 s at most for a message (pools without an event loop)."""

logger = escaping(logging.getLogger(__name__))


class Drain:
    """The leader-only requests of one worker process.

    A request changes hands by `del self._waiting[request]`, which one thread only can do. It is entered as running
    before the lease is asked: a barrier that begins after the lease was revoked sees each one that may have begun.
    """

    def __init__(self, app: Any, leadership: Leadership, lease: SharedLease) -> None:
        self.app, self.leadership, self.lease = app, leadership, lease
        self._waiting: dict[Any, None] = {}  # in the order of arrival
        self._running: dict[Any, None] = {}
        self._dying: dict[str, float] = {}  # role: until when (monotonic seconds) a child that is killed may run
        self._changed = threading.Event()
        self.consumer: Any = None
        """While it is connected to the task broker."""
        self.inline = False
        """Whether tasks run on the consumer's own thread (solo)."""
        self.fence_kills = False
        self._pool: Any = None
        self._fenced: dict[str, tuple[int, float]] = {}  # role: term, when (monotonic seconds)
        self._turned = time.monotonic()
        self._asked = False

    def connected(self, consumer: Any) -> None:
        """The task broker is there, and `consumer`'s loop is about to begin. On its thread."""
        self.consumer, self._pool = consumer, consumer.pool
        self._turned, self._asked = time.monotonic(), False  # what the last loop was asked may have gone with it

    def working(self) -> bool:
        """Whether leader tasks can be got at all: False without the task broker, or if the consumer's loop hangs. A
        long task is no standstill. Any thread; to be asked every now and then.
        """
        consumer = self.consumer
        if consumer is None:
            return False
        if not self._asked:
            self._asked = True
            consumer.call_soon(self._turn)
        return self._turning()

    def _turn(self) -> None:
        self._turned, self._asked = time.monotonic(), False

    def _turning(self) -> bool:
        return time.monotonic() - self._turned < TURN or (self.inline and len(state.active_requests) > 0)

    # The way of a request

    def arrived(self, request: Any) -> None:
        """It waits."""
        self._waiting[request] = None

    def begin(self, request: Any) -> bool:
        """Whether it may be handed to the pool now. If this worker does not lead, it goes back soon."""
        self._running[request] = None
        if self._claim(request):  # else it went back, or its connection is gone: the broker has it
            request.term = self.lease.leading(request.role)
            if request.term is not None:
                return True
            self._waiting[request] = None
            self.soon()
        self._running.pop(request, None)
        self._changed.set()
        return False

    def handed(self, request: Any, job: Any) -> None:
        """The pool has it, as `job`; with None it ran right there (solo), or the pool was closed and took nothing."""
        if job is None:
            self.over(request)
        elif request in self._running:  # a thread may be done with it by now
            request.job = job

    def over(self, request: Any) -> None:
        """It runs no more."""
        request.ended = True
        self._running.pop(request, None)
        request.job = None  # which refers to the request
        self._changed.set()

    def dropped(self, request: Any) -> None:
        """It was acknowledged or rejected: if it still waited, nobody will run it."""
        self._claim(request)

    def accepted(self, request: Any, time_accepted: float) -> None:
        """Something in the pool has taken it, at `time_accepted` (monotonic seconds)."""
        if request.ended:
            return
        self._running[request] = None  # even if it was taken for dropped with the connection
        fenced = self._fenced.get(request.role)
        if fenced is not None and fenced[0] == request.term and time_accepted <= fenced[1]:
            self._kill(request)

    def linger(self, request: Any, seconds: float) -> None:
        """It is over in `seconds`: what runs it is being killed, and nobody will tell of its end."""
        self._dying[request.role] = time.monotonic() + seconds
        self.over(request)

    def rejected(self, message: Any) -> None:
        """Forget a message that was rejected before it ran. On the consumer's thread."""
        for request in [each for each in list(self._waiting) if each.message is message]:
            self.dropped(request)
            state.task_ready(request)

    def _claim(self, request: Any) -> bool:
        try:
            del self._waiting[request]
        except KeyError:
            return False
        return True

    # Going back

    def soon(self) -> None:
        """Let the consumer's thread send back what this worker may not run."""
        consumer = self.consumer
        if consumer is not None:
            consumer.call_soon(self.send_back)

    def send_back(self, *, everything: bool = False) -> None:
        """Return those waiting whose role this worker does not lead; or `everything`, as it stops. On the consumer's
        thread.
        """
        consumer = self.consumer
        if consumer is None:
            return
        leave = [each for each in list(self._waiting) if everything or self.lease.leading(each.role) is None]
        timers = _timers(consumer, leave)
        number = 0
        for request in leave:
            if not self._claim(request):
                continue
            number += 1
            _forget(consumer, request, timers.get(id(request)))
            give_back(request.message, leader_queue(self.app, request.role))
            counts.sent_back[request.role] += 1
        if number:
            logger.info("leader tasks sent back number=%d", number)

    def disconnected(self) -> None:
        """The connection to the task broker is lost, and what was not acknowledged with it: the broker hands it out
        anew. On the consumer's thread.
        """
        consumer, self.consumer = self.consumer, None
        gone = [each for each in list(self._waiting) if self._claim(each)]
        timers = _timers(consumer, gone)
        for request in gone:
            _forget(consumer, request, timers.get(id(request)))
        for request in list(self._running):
            if request.job is not None and _never_written(request.job):
                self._running.pop(request, None)
        for role, (term, _) in self._fenced.items():
            self._abandon_all(role, term, gone=True)  # what this thread was asked may have gone with the connection
        self._changed.set()

    # Barriers

    def wait(self, role: str) -> None:
        """Return when none of `role` runs, or the lease is no longer held. On the leadership's thread; the hand-over
        waits for it.
        """
        while self.runs(role) and self.leadership.held(role):
            self._changed.clear()
            if self.runs(role):
                self._changed.wait(LOOK_EVERY)

    def runs(self, role: str) -> bool:
        """Whether a request of `role` may be running, or work that its tasks' messages do not tell of."""
        ours = any(each.role == role for each in list(self._running))  # before those dying: one moves there
        return ours or time.monotonic() < self._dying.get(role, 0.0) or self.lease.anybody(role)

    def pool_ended(self) -> None:
        """Nothing runs any more: the pool has stopped, or its processes were killed."""
        self._running.clear()
        self._dying.clear()
        self._changed.set()

    # Fencing

    def fenced(self, role: str, term: int) -> None:
        """Kill those that run in `term` of `role`, if `neli_fence_kills` says so. Only with prefork. On the
        leadership's thread.
        """
        if self.fence_kills:
            self._fenced[role] = (term, time.monotonic())
            consumer = self.consumer
            if consumer is not None:
                consumer.call_soon(self._kill_all, role, term)
            if consumer is None or not self._turning():  # its thread is stuck, for who knows how long
                self._abandon_all(role, term, gone=consumer is None)

    def _kill_all(self, role: str, term: int) -> None:
        for request in self._begun(role, term):
            self._kill(request)

    def _abandon_all(self, role: str, term: int, *, gone: bool) -> None:
        for request in self._begun(role, term):
            if not request.killed:
                abandon(request, gone=gone)

    def _begun(self, role: str, term: int) -> list[Any]:
        return [
            each
            for each in list(self._running)
            if each.role == role and each.term == term and each.time_start is not None
        ]

    def _kill(self, request: Any) -> None:
        if not request.killed:
            kill(request, self._pool)


def _timers(consumer: Any, requests: Iterable[Any]) -> dict[int, Callable[[], None]]:
    """What cancels the timers that would start one of `requests`, by the request's id()."""
    wanted = {id(each) for each in requests}
    found: dict[int, Callable[[], None]] = {}
    if wanted:
        for item in list(consumer.timer.queue):
            if item.entry.args and id(item.entry.args[0]) in wanted:
                # Under gevent the item is a greenlet that only its own `cancel` stops.
                found[id(item.entry.args[0])] = getattr(item, "cancel", item.entry.cancel)
    return found


def _forget(consumer: Any, request: Any, cancel: Callable[[], None] | None) -> None:
    """Undo what the worker knows of a waiting request: its timer, with its share of the prefetch count; its place in a
    bucket, where it would use up a token; its entry in the worker's state. A slot of the pool it gives up by itself,
    see `Tracked`.
    """
    if cancel is not None:
        cancel()
        consumer.qos.decrement_eventually()
    bucket = consumer.task_buckets.get(request.task.name)
    if bucket is not None:
        try:
            bucket.contents.remove((request, 1))
        except (ValueError, IndexError):
            pass  # it waits for something else
    state.task_ready(request)


def _never_written(job: Any) -> bool:
    """Whether prefork's pool dropped it with the connection (`AsynPool.flush`) before a child got any of it."""
    return getattr(job, "_write_to", job) is None and getattr(job, "_scheduled_for", job) is None


_drains: weakref.WeakKeyDictionary[Any, Drain] = weakref.WeakKeyDictionary()


def drain_of(app: Any) -> Drain | None:
    """The `Drain` of this worker; None: it takes part in no election."""
    return _drains.get(app)


def begin_drain(app: Any, leadership: Leadership, lease: SharedLease) -> Drain:
    """Make the `Drain` of this worker; a second worker of the same process gets its own."""
    _drains[app] = drain = Drain(app, leadership, lease)
    return drain
