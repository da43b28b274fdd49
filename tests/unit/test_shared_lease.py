"""The leases of a worker as its children read them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from celery_neli.election import shared_lease as module
from celery_neli.election.lease import boottime
from celery_neli.election.role_state import Grant
from celery_neli.election.shared_lease import SharedLease, share, shared
from tests.processes import wait_until
from tests.unit.leases import make_app

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


def in_child(answer: Callable[[], object]) -> str:
    """What a forked child says, by its `repr`."""
    reads, writes = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writes, repr(answer()).encode())
        finally:
            os._exit(0)
    os.close(writes)
    with os.fdopen(reads, encoding="utf-8") as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    return said


def test_nothing_is_led_before_the_first_lease():
    """A fresh one answers no to every question, also for the term that stands for none."""
    lease = SharedLease(("a", "b"))
    assert lease.role("a").leading_term() is None
    assert not lease.role("a").may_finish(0)
    assert not lease.role("a").may_finish(-1)
    assert lease.role("b").standing().term is None


def test_roles_are_apart():
    """What is written for one role says nothing of another."""
    lease = SharedLease(("a", "b"))
    lease.write(1, Grant(5, boottime() + 100))
    assert (lease.role("a").leading_term(), lease.role("b").leading_term()) == (None, 5)


def test_an_unknown_role_is_a_key_error():
    """For the caller to say which roles there are."""
    lease = SharedLease(("a",))
    with pytest.raises(KeyError):
        lease.role("x").leading_term()
    with pytest.raises(KeyError):
        lease.role("x").may_finish(1)


def test_a_drain_ends_new_work_and_lets_the_old_finish():
    """R3: resigning, `leading` ends at once and `held` goes on."""
    lease = SharedLease(("a",))
    lease.write(0, Grant(5, boottime() + 100, resigning=True))
    assert lease.role("a").leading_term() is None
    assert lease.role("a").may_finish(5)
    standing = lease.role("a").standing()
    assert (standing.term, standing.leading, standing.held) == (5, False, True)


def test_the_lease_ends_by_itself():
    """Nobody has to write that it is over."""
    lease = SharedLease(("a",))
    lease.write(0, Grant(5, boottime() - 0.001))
    assert lease.role("a").leading_term() is None
    assert not lease.role("a").may_finish(5)


def test_work_of_an_earlier_term_is_not_held_by_a_later_one():
    """This process lost the role and has it again: what began before must not go on."""
    lease = SharedLease(("a",))
    lease.write(0, Grant(5, boottime() + 100))
    lease.write(0, Grant(9, boottime() + 100))
    assert not lease.role("a").may_finish(5)
    assert lease.role("a").may_finish(9)


def test_no_term_gets_anothers_end():
    """Asked between any two steps of a write: the old term or the new one or none, never one with the other's end."""
    lease = SharedLease(("a",))
    seen: list[tuple[int | None, bool, bool]] = []

    def between(frame: FrameType, event: str, arg: object) -> Any:
        if frame.f_code is SharedLease.write.__code__:
            seen.append((lease.role("a").leading_term(), lease.role("a").may_finish(5), lease.role("a").may_finish(9)))
            return between
        return None

    def write(grant: Grant) -> None:
        traced = sys.gettrace()
        sys.settrace(between)
        try:
            lease.write(0, grant)
        finally:
            sys.settrace(traced)

    lease.write(0, Grant(5, boottime() + 100))
    write(Grant(9, boottime() - 1))  # a term that is over when it is told
    assert {leading for leading, *_ in seen} == {5, None}
    assert not any(held for *_, held in seen)
    seen.clear()
    write(Grant(5, boottime() + 100))
    assert {leading for leading, *_ in seen} <= {5, None}
    assert not any(held for *_, held in seen)


@needs_fork
def test_a_forked_child_sees_what_its_parent_writes_later():
    """The child was forked before the role was won, and reads the lease without a call to its parent."""
    lease = SharedLease(("a",))
    asks, answers = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            while os.read(asks[0], 1):
                os.write(answers[1], repr((lease.role("a").leading_term(), lease.role("a").may_finish(5))).encode())
        finally:
            os._exit(0)

    def said() -> str:
        os.write(asks[1], b"?")
        return os.read(answers[0], 100).decode()

    try:
        assert said() == "(None, False)"
        lease.write(0, Grant(5, boottime() + 100))
        assert said() == "(5, True)"
        lease.write(0, Grant(5, boottime() + 100, resigning=True))
        assert said() == "(None, True)"
        lease.write(0, Grant(5, boottime() - 1))
        assert said() == "(None, False)"
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        for each in (*asks, *answers):
            os.close(each)


@needs_fork
def test_the_childs_lease_ends_when_its_parent_was_killed():
    """Nobody renews any more: the orphan leads until the end of the lease, and no longer."""
    lease = SharedLease(("a",))
    reads, writes = os.pipe()
    parent = os.fork()
    if parent == 0:
        try:
            lease.write(0, Grant(5, boottime() + 0.5))
            if os.fork() == 0:
                before = lease.role("a").leading_term()
                os.write(writes, b"?")
                wait_until(lambda: lease.role("a").leading_term() is None, timeout=10, what="the end of the lease")
                os.write(writes, repr((before, lease.role("a").may_finish(5))).encode())
                os._exit(0)
            signal.pause()
        finally:
            os._exit(1)
    os.close(writes)
    with os.fdopen(reads, "rb", buffering=0) as pipe:
        assert pipe.read(1) == b"?"
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        assert pipe.read() == b"(5, False)"


@needs_fork
def test_what_is_shared_is_known_to_children_forked_later():
    """`share` before the fork is enough; other apps share nothing."""
    app, other = make_app(), make_app("other")
    share(app, SharedLease(("a",))).write(0, Grant(5, boottime() + 100))

    def answer() -> object:
        lease = shared(app)
        return lease is not None and (lease.role("a").leading_term(), shared(other))

    assert in_child(answer) == "(5, None)"


def test_a_spawned_child_reads_it_by_its_descriptor():
    """For a child that inherits no memory: the descriptor is passed to it."""
    lease = SharedLease(("a",))
    lease.write(0, Grant(5, boottime() + 100))
    code = (
        f"from {module.__name__} import SharedLease; print(SharedLease(('a',), fd={lease.fd}).role('a').leading_term())"
    )
    done = subprocess.run([sys.executable, "-c", code], pass_fds=[lease.fd], capture_output=True, text=True, check=True)
    assert done.stdout == "5\n"
