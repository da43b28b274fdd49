"""The leader-only requests that a worker process has received and not finished, and what a handover does with them.

A request is *waiting* from its arrival until it is handed to the pool: for its ETA, its rate limit or a free slot. From
then on it is *running*, as far as the main process can know, until the pool reports its end. When this worker no longer
leads, waiting requests go back to their queue on the consumer's thread. Running ones delay the release while the lease
is held; with `neli_fence_kills`, a fence kills them. In the pool's child, `leader_only.py` sends back a task whose body
has not begun.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from billiard.einfo import ExceptionInfo
from celery.worker import state

from celery_neli.election.leadership import Leadership
from celery_neli.election.shared_lease import SharedLease
from celery_neli.exceptions import LeadershipLost
from celery_neli.logs import escaping
from celery_neli.threads import patched
from celery_neli.worker.redelivery import counts, give_back
from celery_neli.worker.task_marking import role_queue

POLL_INTERVAL = 0.02
"""Seconds between two looks at the lease while a handover waits."""
LOOP_TIMEOUT = 5.0
"""Seconds after which a consumer's loop that did not turn hangs; without an event loop it waits 2 s for a message."""

logger = escaping(logging.getLogger(__name__))


class InFlight:
    """The leader-only requests of one worker process.

    A request is entered as running before the lease is asked, so a handover that begins after the lease was revoked
    sees each one that may have begun.
    """

    def __init__(
        self, app: Any, leadership: Leadership, leases: SharedLease, *, fence_kills: bool = False, inline: bool = False
    ) -> None:
        """`inline`: tasks run on the consumer's own thread (solo). `fence_kills`: of prefork only."""
        self.app, self.leadership, self.leases = app, leadership, leases
        self.fence_kills, self.inline = fence_kills, inline
        self.consumer: Any = None
        """Celery's consumer while it is connected to the task broker, else None."""
        self._pool: Any = None
        self._waiting: dict[Any, None] = {}  # in the order of arrival
        self._running: dict[Any, None] = {}
        self._dying: dict[str, float] = {}  # role: until when (monotonic seconds) a child that is killed may run
        self._fenced: dict[str, tuple[int, float]] = {}  # role: term, when (monotonic seconds)
        self._changed = threading.Event()
        self._loop_turned = time.monotonic()
        self._loop_asked = False

    def connected(self, consumer: Any) -> None:
        """Note that the task broker is connected and that `consumer`'s loop is about to begin. On its thread."""
        self.consumer, self._pool = consumer, consumer.pool
        self._note_turn()  # an earlier question may have gone with the last loop

    def call_soon(self, call: Callable[..., None], *args: Any) -> None:
        """Have the consumer's thread make this call, if it is connected. From any thread; returns at once."""
        consumer = self.consumer
        if consumer is not None:
            consumer.call_soon(call, *args)

    def progressing(self) -> bool:
        """Return False if no leader task can be received: without a task broker, or if the consumer's loop hangs.

        A long task in a solo worker is no hang. Call it repeatedly, from any thread.
        """
        if not self._loop_asked:
            self._loop_asked = True
            self.call_soon(self._note_turn)
        return self.consumer is not None and self._loop_turns()

    def _note_turn(self) -> None:
        self._loop_turned, self._loop_asked = time.monotonic(), False
        self.leadership.turned_at = self._loop_turned

    def excused(self) -> bool:
        """Return True while the consumer's loop may stand still: it waits for the task broker, or for a task to end.

        A solo worker runs tasks on it; a gevent one waits for a free greenlet on it, unlike the other pools.
        """
        return self.consumer is None or ((self.inline or patched()) and len(state.active_requests) > 0)

    def unready(self) -> str:
        """Return why this worker cannot receive a leader task, "" if it can."""
        return "the task broker is not connected" if self.consumer is None else ""

    def _loop_turns(self) -> bool:
        return time.monotonic() - self._loop_turned < LOOP_TIMEOUT or (self.inline and len(state.active_requests) > 0)

    # The life of a request

    def arrived(self, request: Any) -> None:
        """Enter a request as waiting."""
        self._waiting[request] = None

    def begin(self, request: Any) -> bool:
        """Return True if the request may be handed to the pool. If this worker does not lead, it goes back soon."""
        self._running[request] = None
        if self.leave(request):  # else it went back, or the broker has it as its connection is gone
            request.term = self.leases.role(request.role).leading_term()
            if request.term is not None:
                return True
            self._waiting[request] = None
            self.call_soon(self.send_back)
        self._running.pop(request, None)
        self._changed.set()
        return False

    def submitted(self, request: Any, job: Any) -> None:
        """Note the pool's `job`; None if the task ran at once (solo), or if the pool was closed and took nothing."""
        if job is None:
            self.ended(request)
        elif request in self._running:  # a thread may have finished it by now
            request.job = job

    def ended(self, request: Any) -> None:
        """Note that the request no longer runs."""
        request.ended = True
        self._running.pop(request, None)
        request.job = None  # which refers to the request
        self._changed.set()

    def leave(self, request: Any) -> bool:
        """Take a request from those that wait. Return True on one thread only, which decides what becomes of it."""
        return self._waiting.pop(request, False) is None

    def accepted(self, request: Any, time_accepted: float) -> None:
        """Note that the pool began to run the request at `time_accepted` (monotonic seconds)."""
        if request.ended:
            return
        self._running[request] = None  # even if it was taken for dropped with the connection
        fenced = self._fenced.get(request.role)
        if fenced is not None and fenced[0] == request.term and time_accepted <= fenced[1]:
            self._kill(request)

    def dying(self, request: Any, seconds: float) -> None:
        """Let the request be over in `seconds`: its child is being killed, and will not report an end."""
        self._dying[request.role] = time.monotonic() + seconds
        self.ended(request)

    def message_rejected(self, message: Any) -> None:
        """Forget a message that was rejected before it ran. On the consumer's thread."""
        for request in [each for each in list(self._waiting) if each.message is message]:
            self.leave(request)
            state.task_ready(request)

    # Sending back

    def send_back(self, *, everything: bool = False) -> None:
        """Return the waiting requests of roles that this worker does not lead, or all. On the consumer's thread."""
        consumer = self.consumer
        if consumer is None:
            return
        withdrawn = self._withdraw(consumer, lambda each: everything or not self.leases.role(each.role).may_start())
        for request in withdrawn:
            give_back(request.message, role_queue(self.app, request.role))
            counts.add("sent_back", request.role)
        if withdrawn:
            logger.info("leader tasks sent back number=%d", len(withdrawn))

    def disconnected(self) -> None:
        """Note on the consumer's thread that the connection is lost: what was not acknowledged is delivered again."""
        consumer, self.consumer = self.consumer, None
        self._withdraw(consumer, lambda _: True)
        for request in list(self._running):
            # Prefork's pool drops a job of which no child has got anything (`AsynPool.flush`).
            if all(getattr(request.job, each, True) is None for each in ("_write_to", "_scheduled_for")):
                self._running.pop(request, None)
        for role, (term, _) in self._fenced.items():
            self._abandon_all(role, term, broker_lost=True)  # what this thread was asked may have gone as well
        self._changed.set()

    def _withdraw(self, consumer: Any, chosen: Callable[[Any], bool]) -> list[Any]:
        """Undo what the worker knows of the chosen waiting requests, and return them: their timers, with their share of
        the prefetch count; their places in a bucket, where they would use up tokens; their entries in the worker's
        state. They give up their slots of the pool by themselves (`strategy.LeaderRequest`).
        """
        timers = {id(each.entry.args[0]): each for each in list(consumer.timer.queue) if each.entry.args}
        found = []
        for request in list(self._waiting):
            if not chosen(request) or not self.leave(request):
                continue
            found.append(request)
            if (item := timers.get(id(request))) is not None:
                # Under gevent the item is a greenlet that only its own `cancel` stops.
                getattr(item, "cancel", item.entry.cancel)()
                consumer.qos.decrement_eventually()
            bucket = consumer.task_buckets.get(request.task.name)
            if bucket is not None:
                with suppress(ValueError, IndexError):  # it waits for something else
                    bucket.contents.remove((request, 1))
            state.task_ready(request)
        return found

    # Handover

    def wait_until_idle(self, role: str) -> None:
        """Return when no task of `role` runs, or when the lease has ended. On the leadership's thread."""
        while self.runs(role) and self.leases.role(role).may_finish():
            self._changed.clear()
            if self.runs(role):
                self._changed.wait(POLL_INTERVAL)

    def runs(self, role: str) -> bool:
        """Return True if a request of `role` may be running, or leader-only work that is called in another task."""
        ours = any(each.role == role for each in list(self._running))  # before those dying: one moves there
        return ours or time.monotonic() < self._dying.get(role, 0.0) or self.leases.role(role).anyone_at_work()

    def pool_ended(self) -> None:
        """Note that nothing runs: the pool has stopped, or its processes were killed."""
        self._running.clear()
        self._dying.clear()
        self._changed.set()

    # Fences

    def fenced(self, role: str, term: int) -> None:
        """Kill the tasks that run in `term` of `role`, if `neli_fence_kills` is on. On the leadership's thread."""
        if self.fence_kills:
            self._fenced[role] = (term, time.monotonic())
            disconnected = self.consumer is None
            self.call_soon(self._kill_all, role, term)
            if disconnected or not self._loop_turns():  # the consumer's thread hangs, who knows for how long
                self._abandon_all(role, term, broker_lost=disconnected)

    def _kill_all(self, role: str, term: int) -> None:
        for request in self._begun(role, term):
            self._kill(request)

    def _abandon_all(self, role: str, term: int, *, broker_lost: bool) -> None:
        """Kill the children while the consumer's thread hangs or the task broker is away. Any thread.

        Without the broker, a message that was to be acknowledged late is the broker's again. Otherwise Celery finds the
        child dead when it can, and the task fails (`WorkerLostError`), unless `_kill` comes first.
        """
        for request in self._begun(role, term):
            try:
                os.kill(request.worker_pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            request.killed = broker_lost and bool(request.task.acks_late)
            _log_kill(request)

    def _begun(self, role: str, term: int) -> list[Any]:
        return [
            each
            for each in list(self._running)
            if each.role == role and each.term == term and each.time_start is not None and not each.killed
        ]

    def _kill(self, request: Any) -> None:
        """Kill the child that runs the request, and report what became of the task. On the consumer's thread.

        By SIGKILL: SIGTERM is an exception in the body, which may catch it. With acks_late the message goes back to its
        queue; acknowledged early, it is gone, and the task fails with `LeadershipLost`. Celery's own ways would
        acknowledge either (`terminate`) or announce a retry (`cancel`, 5.5).
        """
        if request.killed:
            return
        self._pool.terminate_job(request.worker_pid, signal.SIGKILL)
        if request.job is not None:
            request.job.terminate(signal.SIGKILL)  # so that the pool does not wonder where its child is
        if request.task.acks_late:
            state.task_ready(request)
            request.reject(requeue=True)
        else:
            try:
                raise LeadershipLost(f"{request.humaninfo()} was killed: this worker lost role {request.role!r}")
            except LeadershipLost:
                request.on_failure(ExceptionInfo())
        request.killed = True
        _log_kill(request)


def _log_kill(request: Any) -> None:
    logger.warning("leader task killed id=%s name=%s role=%s", request.id, request.name, request.role)


def in_flight_of(app: Any) -> InFlight | None:
    """Return what `bootsteps.LeaseStep` made for the worker of `app`; None if it takes part in no election."""
    found: InFlight | None = getattr(app, "neli_in_flight", None)
    return found
