"""The leader-only work that runs in this thread or greenlet: its role, its term, and if it may go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

from celery_neli.election.shared_lease import RoleLease
from celery_neli.exceptions import LeadershipLost


@dataclass(frozen=True)
class Unelected:
    """The lease of a role where `neli_enabled` is off: every process leads, in term 0. See `RoleLease`."""

    name: str

    def leading_term(self) -> int:
        """Return term 0."""
        return 0

    def may_finish(self, term: int | None = None) -> bool:
        """Return True."""
        return True

    may_start = may_finish


Lease = RoleLease | Unelected

Work = tuple[Lease, int, bool, object]
"""Lease, term, True if a loss is raised, and the mark of what began the work."""

WORK: Final[ContextVar[Work | None]] = ContextVar("celery_neli_work", default=None)


@contextmanager
def in_term(lease: Lease, term: int) -> Iterator[None]:
    """Let what runs inside be leader-only work of the role, begun in `term`. The caller has checked the lease."""
    token = WORK.set((lease, term, False, None))
    try:
        yield
    finally:
        WORK.reset(token)


def current_term() -> int:
    """Return the term in which the calling leader-only work began: a fencing token for whatever the work writes to.

    The term rises from one leader of the role to the next; with `neli_enabled = False` it is 0.

    Raises:
        LookupError: no leader-only work calls it. A thread that such work starts must be run in
            `contextvars.copy_context()`.
    """
    return _work()[1]


def still_leader() -> bool:
    """Return True if the calling leader-only work may go on: its lease holds, or a handover waits for it (R3).

    After a fence it returns False for good, since another process may lead already. It takes no lock and does not
    block.

    Raises:
        LeadershipLost: instead of returning False, with `stop_on_loss`.
        LookupError: as `current_term`.
    """
    lease, term, stop_on_loss, _ = _work()
    if lease.may_finish(term):
        return True
    if stop_on_loss:
        raise LeadershipLost(f"the lease of {lease.name!r}, term {term}, ended while its work ran: stopped")
    return False


def _work() -> Work:
    work = WORK.get()
    if work is None:
        raise LookupError("no leader-only work runs here: call it in a @leader_only task or function, or a singleton")
    return work
