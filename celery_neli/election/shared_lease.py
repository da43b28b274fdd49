"""The leases of one process in shared memory, as every thread of it and every child that it forks may read them.

A pool's child runs the body of a task, and the lease is renewed in its parent. So the leases are in a page of shared
memory, made before any fork: the thread that renews writes it, and everybody reads it, with no lock. The clock (R8) is
the machine's. When the parent is killed or frozen, nothing renews the lease, and it ends by itself.
"""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from celery_neli.election.lease import FOREVER, NEVER, boottime
from celery_neli.election.role_state import Grant

if sys.platform == "win32":  # Celery has no pool with children there: the threads of this process are all
    LOCK_EX = LOCK_NB = LOCK_SH = LOCK_UN = 0

    def lockf(fd: int, operation: int, length: int = 0, start: int = 0, /) -> None:
        """Lock nothing."""
else:
    from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, LOCK_UN, lockf

_TERM, _START, _FINISH, _CELLS = 0, 1, 2, 3
_NO_TERM = -1.0


@dataclass(frozen=True, slots=True)
class Standing:
    """A lease at one moment: `leading` is `may_start` and `held` is `may_finish`, `until` when on its clock."""

    term: int | None
    until: float
    leading: bool
    held: bool


class _Presence:
    """Who does the leader's work where the worker's main process does not see it, by role.

    That is an ordinary task that calls a leader-only function, in a pool's child. Its process holds a shared lock on
    the role's byte of the memory of the leases, which a handover waits for. The kernel gives it up with the process.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._start()

    def _start(self) -> None:
        self._pid, self._lock, self._here = os.getpid(), threading.Lock(), Counter[int]()

    @contextmanager
    def at_work(self, index: int) -> Iterator[None]:
        """Be at work as that role. Enter it before the lease is asked: a handover looks after the end of the lease."""
        if self._pid != os.getpid():
            self._start()  # forked: these locks are the parent's
        with self._lock:
            self._here[index] += 1
            if self._here[index] == 1:
                lockf(self._fd, LOCK_SH, 1, index)  # waits for a process that looks, for that moment
        try:
            yield
        finally:
            with self._lock:
                self._here[index] -= 1
                if not self._here[index]:
                    lockf(self._fd, LOCK_UN, 1, index)

    def anyone(self, index: int) -> bool:
        """Return True if any thread or process is at work as that role. Does not block."""
        with self._lock:
            if self._here[index]:
                return True
            try:
                lockf(self._fd, LOCK_EX | LOCK_NB, 1, index)
            except OSError:
                return True
            lockf(self._fd, LOCK_UN, 1, index)
            return False


def own_clock(clock: Callable[[], float], owner: Any) -> float:
    """Return the time; anywhere but in the process `pid` of the `owner`, where no lease may be used, its end."""
    return clock() if os.getpid() == owner.pid else FOREVER


class RoleLease:
    """The lease of one role, to be read in the process that leads and in its forked children.

    Each question may be asked from any thread and in a signal handler. It takes no lock and does not block.
    """

    def __init__(self, leases: SharedLease, name: str, *, clock: Callable[[], float] | None = None) -> None:
        """`clock` takes the place of the clock of the leases."""
        self.name = name
        self._index = leases.roles.index(name)
        self._cells, self._presence, self._clock = leases.cells(self._index), leases.presence, clock or leases.clock

    @property
    def term(self) -> int | None:
        """The term of the lease in force, or of the last one; None before the first."""
        return _term(self._cells[_TERM])

    def leading_term(self) -> int | None:
        """Return the term in which new work may start now (R3), or None if none may."""
        term = self.term
        return term if term is not None and self.may_start(term) else None

    def may_start(self, term: int | None = None) -> bool:
        """Return True if new work may start now (R3), in this `term` if one is given."""
        return self._clock() < self._cells[_START] and term in (None, self._cells[_TERM])

    def may_finish(self, term: int | None = None) -> bool:
        """Return True if work of this `term`, or of the one in force, may finish now, also in a handover (R3)."""
        return self._clock() < self._cells[_FINISH] and term in (None, self._cells[_TERM])

    def standing(self) -> Standing:
        """Return term, end and answers of one moment."""
        now, cells = self._clock(), self._cells
        term, start, finish = None, NEVER, NEVER
        while cells[_TERM] != term:  # the writer was between two terms
            term, start, finish = cells
        return Standing(term=_term(term), until=finish, leading=now < start, held=now < finish)

    @contextmanager
    def at_work(self) -> Iterator[int | None]:
        """Give what `leading_term` returns, in a context that a handover waits for (`anyone_at_work`). It locks."""
        with self._presence.at_work(self._index):
            yield self.leading_term()

    def anyone_at_work(self) -> bool:
        """Return True if any process or thread is `at_work`. Only the process that made the memory may ask."""
        return self._presence.anyone(self._index)


class SharedLease:
    """The leases of all roles of one process in one election."""

    def __init__(self, roles: tuple[str, ...], *, fd: int | None = None, clock: Callable[[], float] = boottime) -> None:
        """Make the memory for `roles`, or map that of another process, given its `fd`; `clock` is the writer's."""
        self.roles, self.clock = roles, clock
        size = len(roles) * _CELLS * 8
        self.fd = _file(size) if fd is None else fd  # for `pass_fds` of a child that is not forked
        self._cells = memoryview(mmap.mmap(self.fd, size)).cast("d")
        self.presence = _Presence(self.fd)
        if fd is None:
            weakref.finalize(self.presence, _close, self.fd, os.getpid()).atexit = False  # the last to need it
            for index in range(len(roles)):
                self.write(index, Grant())
        self._roles = {role: RoleLease(self, role) for role in roles}

    def role(self, name: str) -> RoleLease:
        """Return the lease of one role. Raises KeyError if it is not in `roles`."""
        return self._roles[name]

    def cells(self, index: int) -> memoryview[float]:
        """Return the cells of the role number `index`: its term, until when work may start, and until when finish."""
        return self._cells[index * _CELLS : (index + 1) * _CELLS]

    def write(self, index: int, grant: Grant) -> None:
        """Write what the lease of the role number `index` allows. Only the thread that renews may call it."""
        cells = self.cells(index)
        term = _NO_TERM if grant.term is None else float(grant.term)
        if cells[_TERM] != term:  # the ends go first: no reader may take one term's end for another's
            cells[_START] = cells[_FINISH] = NEVER
            cells[_TERM] = term
        cells[_START] = NEVER if grant.resigning else grant.until
        cells[_FINISH] = grant.until


def _term(cell: float) -> int | None:
    return None if cell == _NO_TERM else int(cell)


def _file(size: int) -> int:
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("celery-neli")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, size)
    return fd


def _close(fd: int, pid: int) -> None:
    """Close it, but not in a forked child, where the number may stand for another file by now."""
    if os.getpid() == pid:
        os.close(fd)


def share(app: Any, lease: SharedLease) -> SharedLease:
    """Let `lease` be what this process, and every child forked from now on, knows of `app`'s worker election."""
    app.neli_lease = lease  # found in a tenth of the time that a WeakKeyDictionary takes, and through `current_app`
    return lease


def shared(app: Any) -> SharedLease | None:
    """Return the leases of `app`'s worker election, in this process or the one that forked it; None without one."""
    lease: SharedLease | None = getattr(app, "neli_lease", None)
    return lease
