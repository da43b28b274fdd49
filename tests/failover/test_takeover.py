"""How long a beat with many entries takes to send again when the leader is killed.

NELI_FAILOVER_ENTRIES: how many; 100,000, say. Then the bound is that of the README, which a busy machine may miss.
"""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.failover.strikes import LEASE
from tests.processes import wait_until

if TYPE_CHECKING:
    from tests.failover.conftest import Rigs
    from tests.failover.rig import Rig
    from tests.smoke.members import Process

pytestmark = [pytest.mark.smoke, pytest.mark.slow]
BY_HAND = "NELI_FAILOVER_ENTRIES" in os.environ
ENTRIES = int(os.environ.get("NELI_FAILOVER_ENTRIES", "2000"))
ROUNDS = 5 if BY_HAND else 1
BOUND = LEASE + (1.0 if BY_HAND else 20.0)


def wait_idle(beat: Process) -> None:
    """Wait until a beat has done what there is to do at its start."""
    process = psutil.Process(beat.process.pid)
    wait_until(lambda: process.cpu_percent(0.5) < 25, timeout=120, what=f"{beat.name} to be idle, see {beat.directory}")


def wait_later_term(rig: Rig, read: int, term: int) -> float:
    """When the first message, of those after the `read` first ones, of a later term than `term` arrived; Unix time."""
    return wait_until(
        lambda: next((each.at for each in rig.reader.messages[read:] if each.term > term), None),
        timeout=BOUND + 30, what=f"a message of a successor, see {rig.members.directory}", interval=0.01,
    )  # fmt: skip


def test_a_successor_sends_soon_however_many_entries_there_are(rigs: Rigs) -> None:
    """From the kill to the arrival of the successor's first message."""
    times = []
    with rigs("redis", failover_hourly=ENTRIES) as rig:
        for _ in range(ROUNDS):
            rig.top_up()
            leader = rig.members.wait_leader()
            rig.wait_flow()
            for beat in rig.members.alive:
                wait_idle(beat)
            read, at = len(rig.reader.messages), time.time()
            leader.signal(signal.SIGKILL)
            leader.wait_end()
            times.append(wait_later_term(rig, read, leader.terms("acquired")[-1]) - at)
            rig.wait_flow()
        verdict = rig.verdict()
    print(f"{ENTRIES} entries: {' '.join(f'{each:.2f}' for each in times)} s from SIGKILL to the next task; {verdict}")
    assert not verdict.faults, verdict.story
    assert max(times) < BOUND
