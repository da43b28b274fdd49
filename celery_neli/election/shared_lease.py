"""The leases of one worker process, as every child of it may read them: a pool's child is where a task's body runs, and
the lease is in its parent.

A page of shared memory, made before any fork, written by the thread that renews and read by anybody: no lock, no system
call but the clock's. The clock (R8) is the machine's, so an `until` means the same in every process; when the parent is
killed or frozen nobody renews, and the lease ends by itself.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery_neli.election.clock import boottime
from celery_neli.election.lease import NEVER
from celery_neli.election.presence import Presence

if TYPE_CHECKING:
    from celery_neli.election.grant import Grant

_TERM, _LEADING, _HELD, _CELLS = 0, 1, 2, 3
_NO_TERM = -1.0


@dataclass(frozen=True, slots=True)
class Standing:
    """The lease at one moment: `until` is the curator's clock (seconds); R3 for `leading` and `held`."""

    term: int | None
    until: float
    leading: bool
    held: bool


class SharedLease:
    """For each role the term, until when new work may start, and until when work begun in that term may finish."""

    def __init__(self, roles: tuple[str, ...], *, fd: int | None = None) -> None:
        """`fd`: of the process that shares (its attribute of this name), in a child that did not inherit this object
        but the descriptor.
        """
        self.roles = roles
        size = len(roles) * _CELLS * 8
        fresh = fd is None
        self.fd = _file(size) if fd is None else fd
        """Of the memory; for `pass_fds` of a child that is not forked."""
        self._cells = memoryview(mmap.mmap(self.fd, size)).cast("d")
        self._presence = Presence(self.fd)
        self._at = {role: index * _CELLS for index, role in enumerate(roles)}
        if fresh:
            for at in self._at.values():
                self._cells[at + _TERM], self._cells[at + _LEADING], self._cells[at + _HELD] = _NO_TERM, NEVER, NEVER

    def write(self, index: int, grant: Grant) -> None:
        """What the lease of the role number `index` allows. For one thread of one process, the one that renews."""
        cells, at = self._cells, index * _CELLS
        term = _NO_TERM if grant.term is None else float(grant.term)
        if cells[at + _TERM] != term:  # ends before the term changes: nobody takes one term's end for another's
            cells[at + _LEADING] = cells[at + _HELD] = NEVER
            cells[at + _TERM] = term
        cells[at + _LEADING] = NEVER if grant.resigning else grant.until
        cells[at + _HELD] = grant.until

    @contextmanager
    def at_work(self, role: str) -> Iterator[int | None]:
        """What `leading` says, in a context that a hand-over waits for (`anybody`): for work that the worker's main
        process does not know of. Takes a lock for a moment, and a system call.
        """
        with self._presence.at_work(self._at[role] // _CELLS):
            yield self.leading(role)

    def anybody(self, role: str) -> bool:
        """Whether any process or thread is `at_work`. In the process that made this."""
        return self._presence.anybody(self._at[role] // _CELLS)

    def leading(self, role: str) -> int | None:
        """The term, if new work may start as `role` now (R3), else None. KeyError: an unknown role."""
        cells, at = self._cells, self._at[role]
        term = cells[at]
        if boottime() < cells[at + _LEADING] and cells[at] == term:
            return int(term)
        return None

    def held(self, role: str, term: int) -> bool:
        """Whether work that began in `term` may finish now: also while a hand-over drains (R3)."""
        cells, at = self._cells, self._at[role]
        return boottime() < cells[at + _HELD] and cells[at] == term

    def standing(self, role: str) -> Standing:
        """All of it, for people."""
        cells, at, now = self._cells, self._at[role], boottime()
        term, leading, held = cells[at + _TERM], cells[at + _LEADING], cells[at + _HELD]
        return Standing(
            term=None if term == _NO_TERM else int(term), until=held, leading=now < leading, held=now < held
        )


def _file(size: int) -> int:
    """A descriptor of `size` bytes of memory without a name."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("celery-neli")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, size)
    return fd


def share(app: Any, lease: SharedLease) -> SharedLease:
    """Let `lease` be what this process, and every child forked from now on, knows of `app`'s worker election."""
    app.neli_lease = lease  # found in a tenth of the time that a WeakKeyDictionary takes, and through `current_app`
    return lease


def shared(app: Any) -> SharedLease | None:
    """The leases of `app`'s worker election in this process or the one that forked it; None: it takes part in none."""
    lease: SharedLease | None = getattr(app, "neli_lease", None)
    return lease
