"""Members come and go around a leading beat, half of them killed: it does not notice. NELI_SMOKE_MEMBERS: how many."""

from __future__ import annotations

import os
import random
import signal
import time
from typing import TYPE_CHECKING

import pytest

from celery_neli.election.lease import boottime

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.smoke.members import Members

pytestmark = [pytest.mark.smoke, pytest.mark.slow]
MEMBERS = int(os.environ.get("NELI_SMOKE_MEMBERS", "30"))
SPAN = 60.0 * MEMBERS / 30


def test_joining_and_leaving_does_not_move_the_leader(on_cluster: Members, terms: Callable[[], list[int]]) -> None:
    """Thirty within a minute, each there for four to ten seconds; every other one is killed."""
    leader = on_cluster.beat(name="leader")
    on_cluster.wait_leader()
    (term,) = leader.terms("acquired")
    rnd, began, least = random.Random(30), boottime(), SPAN / (MEMBERS + 5)
    ends: list[tuple[float, int]] = []
    for number in range(MEMBERS):
        time.sleep(max(0.0, began + number * least - boottime()))
        on_cluster.light(name=f"light{number}")
        ends.append((boottime() + rnd.uniform(4, 10), number))
        for at, which in [each for each in ends if each[0] < boottime()]:
            ends.remove((at, which))
            on_cluster.all[1 + which].signal(signal.SIGKILL if which % 2 else signal.SIGTERM)
    for at, which in sorted(ends):
        time.sleep(max(0.0, at - boottime()))
        on_cluster.all[1 + which].signal(signal.SIGKILL if which % 2 else signal.SIGTERM)
    members = on_cluster.all[1:]
    ended = [each.wait_end() for each in members]
    took = boottime() - began
    held = leader.held()
    print(
        f"\n{MEMBERS} members in {took:.0f} s: least left of the lease: {min(each.margin for each in held):.2f} s of 4"
    )
    assert ended == [-signal.SIGKILL if number % 2 else 0 for number in range(MEMBERS)]
    assert all("Traceback" not in each.log for each in members)
    assert leader.holds()
    assert leader.terms("acquired") == [term]
    assert not leader.terms("revoked") + leader.terms("fenced")
    assert set(terms()) == {term}
    assert not any(each.held() for each in members)
    on_cluster.assert_one_at_most()
