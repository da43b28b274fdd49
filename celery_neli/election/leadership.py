"""Leadership: what one process has to do with one election, and its transitions as Celery signals."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable

from celery import Celery

from celery_neli import signals
from celery_neli.config import Config, from_app
from celery_neli.election.member import Connect
from celery_neli.election.neli import Neli, Role
from celery_neli.election.renewal import State
from celery_neli.election.role_state import LeaderAcquired, LeaderEvent, LeaderFenced, LeaderRevoked
from celery_neli.election.shared_lease import share
from celery_neli.logs import escaping

DELIVER_EVERY = 1.0
JOIN = 1.0

_SIGNALS = {
    LeaderAcquired: signals.leadership_acquired,
    LeaderRevoked: signals.leadership_revoked,
    LeaderFenced: signals.leadership_fenced,
}

logger = escaping(logging.getLogger(__name__))


class Leadership:
    """One election, seen from this process. Making it starts nothing; `start` joins.

    All methods may be called from any thread, none but `progress` from a signal handler. The leases of a worker are
    shared with the children that it forks from now on.
    """

    working: Callable[[], bool] | None = None
    """Called about once a second on the leadership's thread: while it returns False, the owner makes no progress."""
    barrier: Callable[[str], None] | None = None
    """Called with a revoked role after all receivers of the signal, on the same thread. The handover waits for it."""
    on_readback: Callable[[], None] | None = None
    """As for `Neli`; it must not block."""
    fit: Callable[[], bool] | None = None
    """As for `Neli`; it must neither block nor raise."""

    turned_at: float = 0.0
    """When the owner's loop last made a turn (`time.monotonic`), whether or not its work got on. The owner sets it."""
    excused: Callable[[], bool] | None = None
    """Returns True while the owner's loop may stand still without hanging. Any thread calls it; it must not block."""
    unready: Callable[[], str] | None = None
    """Returns why the owner could not work yet if it led, "" if it could. Any thread calls it; it must not block."""

    def __init__(self, app: Celery, election: str, config: Config, *, connect: Connect) -> None:
        """In the election "beat", a scheduler calls `progress`; else the leadership's thread does, while `working`."""
        self.app, self.election, self.config, self.roles = app, election, config, config.roles
        self._neli = Neli(
            config,
            self._announce,
            connect=connect,
            on_readback=lambda: None if self.on_readback is None else self.on_readback(),
            fit=lambda: self.fit is None or self.fit(),
        )
        if election == "worker":
            share(app, self._neli.leases)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Join the election, as `Neli.start` does; return at once. May be repeated."""
        with self._lock:
            if self._thread is None:
                self._neli.start()
                self._start_thread()

    def role(self, name: str | None = None) -> Role:
        """Return the handle of one role, or of the first one. Raises ValueError for a role that is not configured."""
        return self._neli.role(self.roles[0] if name is None else name)

    def leading(self, role: str | None = None) -> bool:
        """Return True if new work may start in `role` now. Takes no lock."""
        return self.role(role).may_start()

    def held(self, role: str | None = None) -> bool:
        """Return True if work of `role` in flight may finish now. Takes no lock."""
        return self.role(role).may_finish()

    def progress(self) -> None:
        """Say that the owner's loop made a turn, or a leader resigns (`neli_stall_timeout`). Takes no lock."""
        self.turned_at = time.monotonic()
        self._neli.progress()

    @property
    def renewer_turned_at(self) -> float:
        """As of `Neli`."""
        return self._neli.renewer_turned_at

    def missing(self) -> str:
        """Return why this process could not take a role over and serve it, "" if it could or does. Takes no lock."""
        return self._neli.unready or ("" if self.unready is None else self.unready())

    @property
    def live(self) -> bool:
        """True from the start until it is closed: then its threads end, and what they do is no sign of anything."""
        return self._thread is not None and self._neli.state is State.LIVE

    def close(self) -> None:
        """Start to stop: claim no more, drain what is held. Return at once."""
        self._neli.request_close()

    def stop(self) -> None:
        """Hand over and end the threads, as `Neli.close` does; in a receiver of a signal, only start it. Repeatable."""
        self._neli.request_close()
        thread = self._thread
        if thread is not None and not self._neli.delivering and thread.is_alive():
            self._neli.wait_closed(self._neli.close_timeout)
            thread.join(JOIN)  # a receiver that does not return cannot hold up the end any more

    @property
    def stopped(self) -> bool:
        """True if it was stopped: it cannot start again."""
        return self._neli.state is State.CLOSED

    def _start_thread(self) -> None:
        self._thread = threading.Thread(target=self._run, name=f"neli-{self.election}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while self._neli.state is not State.CLOSED and self._thread is threading.current_thread():
            if self.election != "beat":
                if self.working is None or self.working():
                    self._neli.progress()
                else:
                    self._neli.hindered("task broker out of reach, or the main thread hangs,")
            self._neli.deliver(min(DELIVER_EVERY, self.config.stall_timeout / 3))
        self._neli.deliver(0)

    def _announce(self, event: LeaderEvent) -> None:
        signal = _SIGNALS[type(event)]
        revoked = isinstance(event, LeaderRevoked)
        if revoked and len(self.roles) > 1 and self._thread is threading.current_thread():
            self._start_thread()  # a handover may take its time; another thread goes on with the other roles
        try:
            signal.send(sender=self, election=self.election, role=event.role, term=event.term)
        except SystemExit as exc:  # Celery lets it pass (WorkerShutdown is one), and it would only end this thread
            logger.error("a receiver of %s raised %r: ignored; nothing ends by that here", signal.name, exc)
        if revoked and self.barrier is not None:
            self.barrier(event.role)


_made: weakref.WeakSet[Leadership] = weakref.WeakSet()
_making = threading.Lock()
_inherited: list[Leadership] = []


def leadership_for(app: Celery, election: str, connect: Connect) -> Leadership:
    """Return this process's leadership in `election` ("beat" or "worker") of `app`; make it at the first call.

    A forked child gets its own, and a stopped one is replaced. Nothing is started. Raises `ConfigurationError`.
    """
    with _making:
        of_app: dict[tuple[str, int], Leadership] = vars(app).setdefault("neli_leaderships", {})
        key = (election, os.getpid())
        found = of_app.get(key)
        if found is None or found.stopped:
            found = of_app[key] = Leadership(app, election, from_app(app, election), connect=connect)
            _made.add(found)
        return found


def _after_fork() -> None:
    """In a child: make another lock, and keep the parent's clients for ever, for their finalisers must not run here."""
    global _making
    _making = threading.Lock()
    _inherited.extend(_made)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
