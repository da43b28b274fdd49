"""The leader's work that runs here: its role and its term, and whether it may go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

from celery_neli.election.shared_lease import SharedLease, shared
from celery_neli.exceptions import LeadershipLost

Work = tuple[SharedLease | None, str, int, bool, object]
"""Lease (None: celery-neli is off), role, term, whether a loss is raised, and what began it."""

WORK: Final[ContextVar[Work | None]] = ContextVar("celery_neli_work", default=None)
"""Of this thread or greenlet."""


@contextmanager
def in_term(app: Any, role: str, term: int, *, stop_on_loss: bool = False, mark: object = None) -> Iterator[None]:
    """What runs inside is the leader's work of `role`, begun in `term`, for `current_term` and `still_leader`. Asks
    nothing: `shared(app).leading(role)` was asked right before; with `neli_enabled = False` the term is 0.
    """
    token = WORK.set((shared(app), role, term, stop_on_loss, mark))
    try:
        yield
    finally:
        WORK.reset(token)


def current_term() -> int:
    """The term in which the leader's work that calls this was begun: a fencing token, for whatever it writes to. It
    rises from one leader of the role to the next; 0 with `neli_enabled = False`. LookupError outside of such work, and
    in a thread that it started: run that in `contextvars.copy_context()`.
    """
    return _work()[2]


def still_leader() -> bool:
    """Whether the leader's work that calls this may go on: its lease holds, or a hand-over waits for it (R3). After a
    fence it is False for good: another may lead already. With `stop_on_loss` raises `LeadershipLost` instead.

    Takes no lock and does not block. LookupError as `current_term`.
    """
    lease, role, term, stop_on_loss, _ = _work()
    if lease is None or lease.held(role, term):
        return True
    if stop_on_loss:
        raise LeadershipLost(f"the lease of {role!r}, term {term}, ended while its work ran: stopped")
    return False


def _work() -> Work:
    work = WORK.get()
    if work is None:
        raise LookupError("no leader's work runs here: ask inside a @leader_only task or function, or a singleton")
    return work
