"""The singletons of one worker: a thread each, what their leadership tells them, and the step that runs them."""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from celery import bootsteps
from celery.signals import worker_shutdown

from celery_neli import signals
from celery_neli.config import enabled
from celery_neli.election.leadership import leadership_for
from celery_neli.election.shared_lease import shared
from celery_neli.exceptions import ConfigurationError
from celery_neli.kafka.connect import connect
from celery_neli.logs import escaping
from celery_neli.singletons.process import Isolated, can_find
from celery_neli.singletons.registry import Singleton, registered
from celery_neli.singletons.runner import Lease, Runner, Tenure, Turns, Unelected
from celery_neli.worker.queues import roles_of

if TYPE_CHECKING:
    from celery_neli.election.leadership import Leadership

ELECTION = "celery_neli.Election"
UNELECTED_DRAIN = 10.0
"""Seconds that a shutdown waits for a turn where there is no `neli_drain_timeout`: its default."""

logger = escaping(logging.getLogger(__name__))


class Crew:
    """Runners, and the leadership whose hand-overs wait for them (None: there is no election)."""

    def __init__(self, runners: Sequence[Runner], leadership: Leadership | None, *, drain_timeout: float) -> None:
        self._runners, self._leadership, self._drain_timeout = tuple(runners), leadership, drain_timeout
        self._end = math.inf

    def start(self) -> None:
        """Begin to wait for the roles. Returns at once."""
        if self._leadership is not None:
            self._connect(signals.leadership_acquired, self._look)
            self._connect(signals.leadership_fenced, self._look)
            self._connect(signals.leadership_revoked, self._drain)
        for runner in self._runners:
            # Not threads.spawn: under gevent the user's function expects to run in a greenlet.
            threading.Thread(target=runner.run, name=f"singleton-{runner.singleton.name}", daemon=True).start()

    def close(self) -> None:
        """Begin no more turns. Returns at once, may be repeated."""
        self._end = min(self._end, time.monotonic() + self._drain_timeout)
        for runner in self._runners:
            runner.close()

    def finish(self) -> None:
        """Wait for the running turns and teardowns, up to `drain_timeout` after `close`. What runs then ends with this
        process: its thread is a daemon, and a child of its own sees to it (`child.Guard`).
        """
        self.close()
        for runner in self._runners:
            if not runner.wait_idle(max(0.0, self._end - time.monotonic())):
                line = "singleton still running singleton=%s role=%s: the worker ends without it (neli_drain_timeout)"
                logger.warning(line, runner.singleton.name, runner.role)

    def _connect(self, signal: Any, receiver: Any) -> None:
        signal.connect(receiver, sender=self._leadership, weak=False, dispatch_uid=(id(self), signal.name))

    def _look(self, role: str, **_: Any) -> None:
        for runner in self._runners:
            if runner.role == role:
                runner.ring()

    def _drain(self, role: str, **_: Any) -> None:
        """Hold up the hand-over until nothing runs; all runners of the role wrap up at the same time."""
        self._look(role)
        end = time.monotonic() + self._drain_timeout
        for runner in self._runners:
            if runner.role == role:
                runner.wait_idle(max(0.0, end - time.monotonic()))


class Singletons(bootsteps.StartStopStep):
    """Runs the app's singletons in a worker: they begin after the pool has forked, and are awaited when all else has
    stopped, for the pool drains at the same time.
    """

    name = "celery_neli.Singletons"
    label = "Singletons"
    requires = ("celery.worker.components:Pool", "celery.worker.components:Beat")

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        self._crew: Crew | None = None

    def include_if(self, worker: Any) -> bool:
        """Whether the app has singletons. Raises `ConfigurationError`, which ends the worker's start."""
        found = registered(worker.app)
        if not found:
            return False
        from celery_neli.worker.bootsteps import pool_of  # whoever only registers need not load Celery's worker

        refuse_isolation(found, pool_of(worker), sys.version_info[:2])
        refuse_unfindable(found)
        log = {"loglevel": worker.loglevel, "logfile": worker.logfile, "hostname": worker.hostname}
        roles = [role_for(worker.app, each) for each in found]
        if not enabled(worker.app):
            runners = [
                make_runner(worker.app, each, role, Unelected(), None, log)
                for each, role in zip(found, roles, strict=True)
            ]
            self._crew = Crew(runners, None, drain_timeout=UNELECTED_DRAIN)
            return True
        if ELECTION not in worker.blueprint.steps:
            raise ConfigurationError(
                f"@singleton on {found[0].name}: this worker takes part in no election; call celery_neli.install(app), "
                "or add 'celery_neli.auto' to the setting imports, or set neli_enabled = False"
            )
        leadership = leadership_for(worker.app, "worker", connect)
        lease = shared(worker.app)
        assert lease is not None, "the leadership shares it"
        runners = [
            make_runner(worker.app, each, role, lease, leadership, log) for each, role in zip(found, roles, strict=True)
        ]
        self._crew = Crew(runners, leadership, drain_timeout=leadership.config.drain_timeout)
        return True

    def start(self, worker: Any) -> None:
        """Begin; the pool's children have been forked by now."""
        if self._crew is not None:
            self._crew.start()
            worker_shutdown.connect(self._finish, sender=worker, weak=False)

    def close(self, worker: Any) -> None:
        """The worker begins to stop: no more turns."""
        if self._crew is not None:
            self._crew.close()

    def stop(self, worker: Any) -> None:
        """Nothing yet: the pool is still draining."""

    def terminate(self, worker: Any) -> None:
        """Nothing: a cold shutdown waits for no more than a hand-over does (`leadership_revoked`)."""

    def _finish(self, **_: Any) -> None:
        if self._crew is not None:
            self._crew.finish()


def refuse_isolation(singletons: Iterable[Singleton], pool: str, python: tuple[int, ...]) -> None:
    """Raise `ConfigurationError` for gevent before Python 3.11 with a child process: the interpreter crashes at exit
    (seen with gevent 26.9; cause unknown).
    """
    isolated = next((each for each in singletons if each.isolate), None)
    if isolated is not None and pool == "gevent" and python < (3, 11):
        raise ConfigurationError(
            f"@singleton(isolate=True) on {isolated.name} with worker_pool = 'gevent': that needs Python 3.11 or "
            "newer; choose another pool, or leave isolate out"
        )


def refuse_unfindable(singletons: Iterable[Singleton]) -> None:
    """Raise `ConfigurationError` for a module that no new process would find: all workers would fail at it in turn."""
    for each in singletons:
        if each.isolate and not can_find(each):
            raise ConfigurationError(
                f"@singleton(isolate=True) on {each.name}: a new process cannot find that module, by the sys.path with "
                "which it was imported here; put its directory on PYTHONPATH, or leave isolate out"
            )


def role_for(app: Any, singleton: Singleton) -> str:
    """The singleton's role, or the only one there is. Raises `ConfigurationError`, which names the known ones."""
    known = roles_of(app)
    if singleton.role is None and len(known) == 1:
        return known[0]
    if singleton.role in known:
        return singleton.role
    raise ConfigurationError(
        f"@singleton(role={singleton.role!r}) on {singleton.name}: name one of the roles in neli_roles: "
        f"{', '.join(map(repr, known))}"
    )


def make_runner(
    app: Any, singleton: Singleton, role: str, lease: Lease, leadership: Leadership | None, log: dict[str, Any]
) -> Runner:
    """A runner whose turns happen where the singleton wants them."""

    def begin(term: int) -> Turns:
        if singleton.isolate:
            return Isolated(singleton, role, lease, term, log=log)
        return Tenure(app, singleton, role, lease, term)

    def resign() -> None:
        assert leadership is not None
        leadership.resign(role)

    return Runner(singleton, role, lease, begin, None if leadership is None else resign)
