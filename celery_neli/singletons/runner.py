"""The singletons of a worker: when each runs, what failures cost, and what transitions mean to them.

`Runner` waits for the role, on a thread of its own, and begins a session each time it is led; the session calls the
user's functions. It is safe because the lease is checked right before each call (R3), never because of a signal:
signals only wake a runner.
"""

from __future__ import annotations

import logging
import math
import random
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from celery import bootsteps
from celery.signals import worker_shutdown

from celery_neli import signals
from celery_neli.config import enabled, setting
from celery_neli.election.leadership import Leadership, leadership_for
from celery_neli.election.shared_lease import SharedLease, shared
from celery_neli.exceptions import ConfigurationError
from celery_neli.kafka import connect
from celery_neli.logs import Lines, escaping
from celery_neli.singletons import Singleton, registered
from celery_neli.singletons.session import ChildFailed, ProcessSession, Session, ThreadSession, can_find
from celery_neli.worker.bootsteps import ElectionStep, pool_of
from celery_neli.worker.leader_only import Lease, Unelected
from celery_neli.worker.task_marking import role_of

POLL_INTERVAL = 0.5
"""Seconds between two looks at the lease, for a runner that receives no signal."""
BACKOFF_LEAST, BACKOFF_MOST = 0.1, 10.0
"""Seconds between a failure and the next run."""
REST_LEAST, REST_MOST = 10.0, 300.0
"""Seconds between giving up and the next session: the first time in a row, and at most. The role moves each time."""

logger = escaping(logging.getLogger(__name__))


def doubled(least: float, most: float, times: int) -> float:
    """Return `least` doubled so many times, and at most `most`."""
    return min(most, least * 2.0 ** min(times, 30))


def backoff(failures: int, every: float, share: float) -> float:
    """Return the seconds to wait after so many failures in a row: doubled each time, capped, never less than `every`,
    and spread over the upper half by `share` (0..1), so that what failed together is not retried together.
    """
    return max(every, doubled(BACKOFF_LEAST, BACKOFF_MOST, failures - 1) * (1 + share) / 2)


@dataclass(eq=False)
class Runner:
    """Runs one singleton whenever its role is led, on the thread that calls `run`.

    `begin` makes the session of a term. `resign` requests a handover of the role; without it, as there is no election,
    failures are retried without an end. `wait` waits up to so many seconds, by default to be woken.
    """

    singleton: Singleton
    lease: Lease
    begin: Callable[[int], Session]
    resign: Callable[[], None] | None
    wait: Callable[[float], object] | None = None
    clock: Callable[[], float] = time.monotonic
    jitter: Callable[[], float] = random.random
    _closed = False
    _gave_up: int | None = field(default=None, init=False)
    """The term in which it gave up."""
    _in_a_row = 0
    """How often it gave up since a run last returned."""
    _rest_until = -math.inf

    def __post_init__(self) -> None:
        self.role = self.lease.name
        self._woken, self._idle = threading.Event(), threading.Event()
        self._idle.set()

    def wake(self) -> None:
        """Look at the lease now. Any thread."""
        self._woken.set()

    def close(self) -> None:
        """Begin no more runs; `run` tears down and returns. Returns at once; any thread."""
        self._closed = True
        self.wake()

    def wait_idle(self, end: float) -> bool:
        """Wait until nothing runs, and return True, or until `end` (monotonic seconds). Once the role is lost, or after
        `close`, nothing will start either.
        """
        return self._idle.wait(max(0.0, end - time.monotonic()))

    def run(self) -> None:
        """Wait for the role, run while it is led, and repeat until `close`. Blocks; its thread calls the functions."""
        while not self._closed:
            self._idle.clear()  # before the lease is checked: see wait_idle
            term = self.lease.leading_term()
            if term is not None:
                self._lead(term)
            self._idle.set()
            self._sleep(POLL_INTERVAL)

    def _lead(self, term: int) -> None:
        if term != self._gave_up:
            if self.clock() < self._rest_until:
                return
            self._run_session(term)
        if term == self._gave_up and self.resign is not None:
            self.resign()  # again as long as it is led: a fence may have come between, and taken the first with it

    def _run_session(self, term: int) -> None:
        name, failures = self.singleton.name, 0
        logger.info("singleton started singleton=%s role=%s term=%s", name, self.role, term)
        session = self.begin(term)
        try:
            while self._may_start(term):
                try:
                    if not session.run():
                        break
                except BaseException as exc:  # noqa: BLE001 - logged; SystemExit, too: it must not end the worker
                    failures += 1
                    pause = backoff(failures, self.singleton.every, self.jitter())
                    self._report(exc, term, failures)
                    if failures >= self.singleton.max_failures and self.resign is not None:
                        self._gave_up = term
                        break
                else:
                    failures, pause, self._in_a_row = 0, self.singleton.every, 0
                self._pause(term, pause)
        finally:
            session.end()
        logger.info("singleton ended singleton=%s role=%s term=%s", name, self.role, term)
        if self._gave_up == term:
            rest = doubled(REST_LEAST, REST_MOST, self._in_a_row)
            self._in_a_row, self._rest_until = self._in_a_row + 1, self.clock() + rest
            line = (
                "singleton gave up singleton=%s role=%s term=%s: %d failures in a row (max_failures); resigning, "
                "and not starting again here for %g s"
            )
            logger.error(line, name, self.role, term, failures, rest)

    def _report(self, exc: BaseException, term: int, failures: int) -> None:
        """Log a failure with one traceback: of the process where it failed."""
        elsewhere = isinstance(exc, ChildFailed)
        line = f"singleton failed singleton=%s role=%s term=%s failures=%d: {'%s' if elsewhere else '%r'}"
        arguments = self.singleton.name, self.role, term, failures, Lines(exc) if elsewhere else exc
        logger.error(line, *arguments, exc_info=None if elsewhere else exc)

    def _may_start(self, term: int) -> bool:
        return not self._closed and self.lease.may_start(term)

    def _pause(self, term: int, seconds: float) -> None:
        end = self.clock() + seconds
        while (left := end - self.clock()) > 0 and self._may_start(term):
            self._sleep(min(left, POLL_INTERVAL))

    def _sleep(self, seconds: float) -> None:
        (self.wait or self._woken.wait)(seconds)
        self._woken.clear()


class SingletonsStep(bootsteps.StartStopStep):
    """Runs the app's singletons in a worker. Handovers wait for them, and the worker when all else has stopped, as the
    pool drains at the same time.
    """

    name = "celery_neli.SingletonsStep"
    label = "Singletons"
    requires = ("celery.worker.components:Pool", "celery.worker.components:Beat")

    runners: Sequence[Runner]
    leadership: Leadership | None = None
    """None: there is no election."""
    drain_timeout: float
    _end = math.inf

    def include_if(self, worker: Any) -> bool:
        """Return True if the app has singletons. Raises `ConfigurationError`, which ends the worker's start."""
        app, found = worker.app, registered(worker.app)
        if not found:
            return False
        refuse_isolated([each for each in found if each.isolate], pool_of(worker), sys.version_info[:2])
        if enabled(app):
            if ElectionStep.name not in worker.blueprint.steps:
                raise ConfigurationError(
                    f"@singleton on {found[0].name}: this worker takes part in no election; call "
                    "celery_neli.install(app), or add 'celery_neli.auto' to the setting imports, or set "
                    "neli_enabled = False"
                )
            self.leadership = leadership_for(app, "worker", connect)
        self.runners = [make_runner(each, worker, self.leadership) for each in found]
        self.drain_timeout = setting(app, "neli_drain_timeout")
        return True

    def start(self, worker: Any) -> None:
        """Begin to wait for the roles; the pool's children have been forked by now."""
        if self.leadership is not None:
            signals.leadership_acquired.connect(self._wake, sender=self.leadership, weak=False)
            signals.leadership_fenced.connect(self._wake, sender=self.leadership, weak=False)
            signals.leadership_revoked.connect(self._drain, sender=self.leadership, weak=False)
        worker_shutdown.connect(self.finish, sender=worker, weak=False)
        for runner in self.runners:
            # Not threads.spawn: under gevent the user's function expects to run in a greenlet.
            threading.Thread(target=runner.run, name=f"singleton-{runner.singleton.name}", daemon=True).start()

    def close(self, worker: Any = None) -> None:
        """Begin no more runs, as the worker begins to stop. Returns at once, may be repeated."""
        self._end = min(self._end, time.monotonic() + self.drain_timeout)
        for runner in self.runners:
            runner.close()

    def finish(self, **_: Any) -> None:
        """Wait for the runs and teardowns, up to `drain_timeout` after `close`. What still runs then ends with this
        process: its thread is a daemon, and a child of its own ends by itself.
        """
        self.close()
        for runner in self.runners:
            if not runner.wait_idle(self._end):
                line = "singleton still running singleton=%s role=%s: the worker ends without it (neli_drain_timeout)"
                logger.warning(line, runner.singleton.name, runner.role)

    def _wake(self, role: str, **_: Any) -> list[Runner]:
        woken = [each for each in self.runners if each.role == role]
        for runner in woken:
            runner.wake()
        return woken

    def _drain(self, role: str, **_: Any) -> None:
        """Delay the handover until nothing runs; all runners of the role end their sessions at the same time."""
        end = time.monotonic() + self.drain_timeout
        for runner in self._wake(role):
            runner.wait_idle(end)


def refuse_isolated(isolated: Iterable[Singleton], pool: str, python: tuple[int, ...]) -> None:
    """Raise `ConfigurationError` for a module that no new process would find, at which all workers would fail in turn;
    and for gevent before Python 3.11, whose interpreter crashes at its exit (seen with gevent 26.9; cause unknown).
    """
    for each in isolated:
        if pool == "gevent" and python < (3, 11):
            raise ConfigurationError(
                f"@singleton(isolate=True) on {each.name} with worker_pool = 'gevent': that needs Python 3.11 or "
                "newer; choose another pool, or leave isolate out"
            )
        if not can_find(each):
            raise ConfigurationError(
                f"@singleton(isolate=True) on {each.name}: a new process cannot find that module, by the sys.path with "
                "which it was imported here; put its directory on PYTHONPATH, or leave isolate out"
            )


def make_runner(singleton: Singleton, worker: Any, leadership: Leadership | None) -> Runner:
    """Make a runner whose sessions happen where the singleton wants them."""
    role = role_of(worker.app, singleton.role, f"@singleton on {singleton.name}")
    log = {"loglevel": worker.loglevel, "logfile": worker.logfile, "hostname": worker.hostname}
    lease: Lease = Unelected(role)
    leases: SharedLease | None = None
    resign: Callable[[], None] | None = None
    if leadership is not None:
        leases = shared(leadership.app)
        assert leases is not None, "a worker's leadership shares its leases"
        lease, resign = leases.role(role), leadership.role(role).resign

    def begin(term: int) -> Session:
        if singleton.isolate:
            return ProcessSession(singleton, lease, term, shared=leases, log=log)
        return ThreadSession(singleton, lease, term)

    return Runner(singleton, lease, begin, resign)
