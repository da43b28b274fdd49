"""Leader's work beside the messages: a handover waits for it, wherever in the worker it runs."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from celery_neli.election.shared_lease import SharedLease
from celery_neli.worker.leader_only import leader_only
from tests.processes import wait_until
from tests.unit.leases import Lease, make_app
from tests.unit.workers import Worker

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a pool's children are forked")


@contextmanager
def child(lease: SharedLease, role: str) -> Iterator[int]:
    """A forked process that is at work until it is killed; its pid."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            with lease.role(role).at_work():
                os.write(write, b".")
                signal.pause()
        finally:
            os._exit(1)
    try:
        assert os.read(read, 1) == b"."
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(read)
        os.close(write)


def test_a_child_at_work_is_seen_until_it_is_gone() -> None:
    """By its role alone; a killed one leaves nothing behind."""
    lease = SharedLease(("mail", "billing"))
    with child(lease, "billing"), child(lease, "billing"):
        assert lease.role("billing").anyone_at_work()
        assert not lease.role("mail").anyone_at_work()
        with child(lease, "mail"):
            assert lease.role("mail").anyone_at_work()
        assert not lease.role("mail").anyone_at_work()
        assert lease.role("billing").anyone_at_work()
    assert not lease.role("billing").anyone_at_work()


def test_looking_leaves_those_at_work_alone() -> None:
    """A thread of the very process that looks stays at work, and so does a child."""
    lease = SharedLease(("mail",))
    with lease.role("mail").at_work(), lease.role("mail").at_work():
        assert lease.role("mail").anyone_at_work()
        assert lease.role("mail").anyone_at_work()
    assert not lease.role("mail").anyone_at_work()
    with child(lease, "mail"):
        for _ in range(3):
            assert lease.role("mail").anyone_at_work()


def test_a_fork_takes_no_work_along() -> None:
    """What a thread of the main process does is not the child's work, nor its lock the child's."""
    lease = SharedLease(("mail",))
    with lease.role("mail").at_work():
        with child(lease, "mail"):
            pass
        assert lease.role("mail").anyone_at_work()
    assert not lease.role("mail").anyone_at_work()


def test_a_hand_over_waits_for_a_direct_call() -> None:
    """An ordinary task that calls a leader-only function: the main process has no message that tells of it."""
    worker = Worker()
    app = worker.app
    Lease.lead(worker.lease)
    go, began = threading.Event(), threading.Event()

    @leader_only(app=app)
    def work() -> None:
        began.set()
        go.wait(10)

    running = threading.Thread(target=work, daemon=True)
    running.start()
    assert began.wait(5)
    assert worker.in_flight.runs("leader")
    handed = threading.Thread(target=worker.in_flight.wait_until_idle, args=("leader",), daemon=True)
    handed.start()
    handed.join(0.2)
    assert handed.is_alive()
    go.set()
    handed.join(5)
    assert not handed.is_alive()


def test_one_that_comes_too_late_does_not_begin() -> None:
    """It is at work for the moment in which it asks, and the lease says no."""
    app = make_app()
    lease = Lease(app)
    lease.drain()
    ran: list[int] = []

    @leader_only(app=app, default=None)
    def work() -> None:
        ran.append(1)

    work()
    assert ran == []
    wait_until(lambda: not lease.shared.role("leader").anyone_at_work(), timeout=5, what="nobody at work")
