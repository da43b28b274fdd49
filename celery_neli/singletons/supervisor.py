"""All singletons of one worker: a thread each, and what transitions mean to them."""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from celery import bootsteps
from celery.signals import worker_shutdown

from celery_neli import signals
from celery_neli.config import enabled, setting
from celery_neli.election.leadership import Leadership, leadership_for
from celery_neli.election.shared_lease import SharedLease, shared
from celery_neli.exceptions import ConfigurationError
from celery_neli.kafka import connect
from celery_neli.logs import escaping
from celery_neli.singletons.decorator import Singleton, registered
from celery_neli.singletons.process import ProcessSession, can_find
from celery_neli.singletons.runner import Runner, Session, ThreadSession
from celery_neli.worker.bootsteps import ElectionStep, pool_of
from celery_neli.worker.leader_only import Lease, Unelected
from celery_neli.worker.task_marking import role_of

logger = escaping(logging.getLogger(__name__))


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
