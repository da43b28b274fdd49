"""One term of leadership, as the code that sends tasks sees it: may it start, may it finish, or is it over.

A :class:`Tenure` is bound to the term that was in force when it was made. A later term of the same process is another
tenure, so that what was begun in one is never finished in the next. The `Wakeup` is what a beat hears of its terms
while it waits: nothing is safe because of it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from celery.beat import SchedulingError
from celery.utils.log import get_logger

from celery_neli import signals
from celery_neli.election.leadership import Leadership
from celery_neli.election.neli import Role
from celery_neli.logs import escaping
from celery_neli.threads import patched

logger = escaping(get_logger(__name__))

#: Seconds that a greenlet waits at a time.
GREEN_WAIT = 0.05


class LeaseEnded(BaseException):
    """The term ended while a tick was running: nothing more may be sent.

    It is no :exc:`Exception`, because Celery's ``apply_async`` and ``apply_entry`` and RedBeat's ``maybe_due`` swallow
    every one of those after the entry was advanced: the task would count as run. It never leaves ``Scheduler.tick``.
    """


class Wakeup:
    """Wakes the thread that ticks, and holds a handover until its hosts have ended, at the leadership's signals."""

    def __init__(self, roles: Iterable[str]) -> None:
        # Not a condition: put() is reentrant, so a signal handler may call wake in whatever the owner is doing.
        self._calls: queue.SimpleQueue[None] = queue.SimpleQueue()
        #: True once the beat is closing: it starts nothing more. A plain attribute, for a signal handler sets it.
        self.closing = False
        self._drain_timeout = 0.0
        #: The last term of each role that was fenced.
        self.fenced: dict[str, int] = {}
        #: By role: set while a handover has nothing to wait for.
        self.ended = {role: threading.Event() for role in roles}
        for each in self.ended.values():
            each.set()

    def wake(self, **_: Any) -> None:
        """Wake the thread that ticks. Any thread, and signal handlers."""
        self._calls.put(None)

    def wait(self, timeout: float) -> None:
        """Wait until `wake` is called or ``timeout`` seconds are over. The thread that ticks."""
        if patched():
            timeout = min(timeout, GREEN_WAIT)  # a real thread cannot wake a greenlet
        try:
            self._calls.get(timeout=timeout)
            while True:
                self._calls.get_nowait()
        except queue.Empty:
            return

    def connect(self, leader: Leadership) -> None:
        """Listen to the signals of ``leader``; hold its handovers for its `drain_timeout` at most."""
        self._drain_timeout = leader.config.drain_timeout
        for signal, receiver in self._receivers():
            signal.connect(receiver, sender=leader, weak=False, dispatch_uid=id(self))

    def disconnect(self, leader: Leadership) -> None:
        """Stop listening."""
        for signal, _ in self._receivers():
            signal.disconnect(sender=leader, dispatch_uid=id(self))

    def _receivers(self) -> tuple[tuple[Any, Callable[..., None]], ...]:
        return (
            (signals.leadership_acquired, self.wake),
            (signals.leadership_revoked, self._revoked),
            (signals.leadership_fenced, self._fenced),
        )

    def _revoked(self, role: str, **_: Any) -> None:
        self.wake()
        self.ended[role].wait(self._drain_timeout)

    def _fenced(self, role: str, term: int, **_: Any) -> None:
        self.fenced[role] = term  # even if late heartbeats bring the term back: what was done in it was to stop
        self.wake()


class Tenure:
    """Term ``term`` of ``role``, for the beat that ``wakeup`` wakes: once that is closing, it starts nothing more.

    Reading it takes no lock and never blocks; any thread may. It also knows the entry that is being sent
    (:attr:`headers`) and whether its message has left (:attr:`left`): both belong to the thread that sends.
    """

    def __init__(self, role: Role, term: int, *, wakeup: Wakeup, progress: Callable[[], None]) -> None:
        self.role, self.term = role, term
        self._wakeup, self._progress = wakeup, progress
        #: The neli_beat_* headers of the entry that is being sent; None between entries.
        self.headers: dict[str, Any] | None = None
        #: How many messages of the entry have left.
        self.left = 0
        #: True if the entry was given to the transport: unless it has left, it is unknown whether it arrives.
        self.wired = False
        #: True while the transport is at work on the entry: it connects, declares, or sends what has not left.
        self.in_transport = False

    def reset(self, headers: dict[str, Any]) -> None:
        """Begin to send the entry that has these headers."""
        self.headers, self.left, self.wired, self.in_transport = headers, 0, False, False

    def may_start(self) -> bool:
        """Return True if new work may start in this term (R3, *leading*)."""
        return self.role.may_start(self.term) and not self._wakeup.closing

    def may_finish(self) -> bool:
        """Return True if work in flight may finish in this term (R3, *held*: also while a handover drains)."""
        return self.role.may_finish(self.term)

    def is_fenced(self) -> bool:
        """Return True if the term was lost; late heartbeats may have brought it back since."""
        return self._wakeup.fenced.get(self.role.name) == self.term

    def ask_start(self) -> None:
        """Raise `LeaseEnded` unless :meth:`may_start`."""
        if not self.may_start():
            raise LeaseEnded(f"term {self.term} of role {self.role.name} may start nothing more")

    def ask_finish(self) -> None:
        """Raise `LeaseEnded` unless :meth:`may_finish`."""
        if not self.may_finish():
            raise LeaseEnded(f"term {self.term} of role {self.role.name} is over")

    def twin(self) -> Tenure:
        """Return the same tenure for another thread that sends: it has an entry of its own in flight."""
        return Tenure(self.role, self.term, wakeup=self._wakeup, progress=self._progress)

    def message_left(self) -> None:
        """Note that a message of the entry went to the task broker: the owner makes progress."""
        self.left += 1
        self.in_transport = False
        self._progress()

    @contextmanager
    def outliving(self, entry: str) -> Iterator[None]:
        """Raise `SchedulingError` if what sends ``entry`` inside raises something that must not end the beat.

        An application's `apply_async` may raise what is no Exception, as a timeout of gevent's is: the next beat would
        send the same slot and end as well. What asks for an end is raised as it is. `sys.exit` does, too, and is logged
        because nothing else says why the beat ended.
        """
        try:
            yield
        except (Exception, LeaseEnded, KeyboardInterrupt):
            raise
        except BaseException as exc:
            if self.in_transport or not self.may_start():
                raise
            if isinstance(exc, SystemExit):
                logger.error("beat: ends entry=%s: what sends it raised %s", entry, repr(exc))
                raise
            raise SchedulingError(f"Couldn't apply scheduled task {entry}: {exc!r}") from exc
