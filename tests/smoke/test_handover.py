"""The leading beat is stopped, killed and frozen, on three brokers with the default settings.

Times run from the moment of the signal to the successor's `leadership_acquired`, both on CLOCK_BOOTTIME of one machine.
NELI_SMOKE_ROUNDS sets how often each is done (the frozen one, which takes longer, a third of that).
"""

from __future__ import annotations

import os
import signal
import statistics
from typing import TYPE_CHECKING

import pytest

from celery_neli.election.lease import boottime
from tests.processes import wait_until
from tests.smoke import judge

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.smoke.members import Members

pytestmark = [pytest.mark.smoke, pytest.mark.slow]
ROUNDS = int(os.environ.get("NELI_SMOKE_ROUNDS", "3"))
HEARTBEAT_TIMEOUT = 4.0


def report(what: str, times: list[float], target: str) -> None:
    """Print measured times."""
    shown = " ".join(f"{each:.3f}" for each in times)
    print(
        f"\n{what}: median {statistics.median(times):.3f} min {min(times):.3f} max {max(times):.3f} s "
        f"of {len(times)} (target {target}): {shown}"
    )


def test_sigterm_hands_over_at_once(
    on_cluster: Members, in_group: Callable[[str], set[str]], terms: Callable[[], list[int]]
) -> None:
    """Target: 0.25 s, median of ten. The stopped process ends by itself, with status 0."""
    for _ in range(3):
        on_cluster.beat()
    times, ends = [], []
    for _ in range(ROUNDS):
        on_cluster.wait_joined(in_group)
        leader = on_cluster.wait_leader()
        at = leader.signal(signal.SIGTERM)
        _, acquired = on_cluster.wait_acquired(at, but=leader)
        times.append(acquired.at - at)
        assert leader.wait_end() == 0
        ends.append(acquired.at - leader.held()[-1].end)
        on_cluster.beat()
    report("SIGTERM of the leading beat", times, "median 0.25")
    report("  of it since the old lease ended", ends, "-")
    assert statistics.median(times) < 1.5
    on_cluster.assert_one_at_most()
    assert judge.falls(terms()) == []


def test_sigkill_hands_over_when_the_lease_has_run_out(
    on_cluster: Members, in_group: Callable[[str], set[str]], terms: Callable[[], list[int]]
) -> None:
    """Target: the heartbeat timeout and 0.5 s, each time; never so early that the killed one could still have led."""
    for _ in range(3):
        on_cluster.beat()
    times = []
    for _ in range(ROUNDS):
        on_cluster.wait_joined(in_group)
        leader = on_cluster.wait_leader()
        at = leader.signal(signal.SIGKILL)
        _, acquired = on_cluster.wait_acquired(at, but=leader)
        times.append(acquired.at - at)
        leader.wait_end()
        on_cluster.beat()
    report("SIGKILL of the leading beat", times, f"each {HEARTBEAT_TIMEOUT + 0.5}")
    assert max(times) < HEARTBEAT_TIMEOUT + 4
    on_cluster.assert_one_at_most()
    assert judge.falls(terms()) == []


def test_a_frozen_leader_sends_nothing_more_when_it_wakes(
    on_cluster: Members, in_group: Callable[[str], set[str]], terms: Callable[[], list[int]]
) -> None:
    """Frozen for twice the timeout, it wakes with tasks overdue: none leaves in its old term. It is a standby then."""
    for _ in range(3):
        on_cluster.beat()
    times = []
    for _ in range(max(1, ROUNDS // 3)):
        on_cluster.wait_joined(in_group)
        frozen = on_cluster.wait_leader()
        at = frozen.signal(signal.SIGSTOP)
        successor, acquired = on_cluster.wait_acquired(at, but=frozen)
        times.append(acquired.at - at)
        wait_until(lambda at=at: boottime() - at >= 2 * HEARTBEAT_TIMEOUT, timeout=30, what="twice the timeout")
        wait_until(lambda new=acquired.term: new in terms(), timeout=20, what="tasks of the new term")
        old, sent = frozen.held()[-1].term, len(terms())
        frozen.signal(signal.SIGCONT)
        wait_until(lambda term=old, who=frozen: term in who.terms("fenced"), timeout=20, what="the woken one is fenced")
        wait_until(lambda sent=sent: len(terms()) > sent + 10, timeout=20, what="further tasks")
        assert judge.falls(terms()) == []
        assert successor.holds()
        # The others leave: the woken one leads again.
        on_cluster.wait_joined(in_group)
        for other in [each for each in on_cluster.alive if each is not frozen and each is not successor]:
            other.signal(signal.SIGTERM)
            other.wait_end()
        successor.signal(signal.SIGTERM)
        assert on_cluster.wait_leader(but=successor) is frozen
        on_cluster.beat()
        on_cluster.beat()
    report("SIGSTOP of the leading beat", times, f"each {HEARTBEAT_TIMEOUT + 0.5}")
    assert max(times) < HEARTBEAT_TIMEOUT + 4
    on_cluster.assert_one_at_most()
    assert judge.falls(terms()) == []
