"""What waits in the pool asks before it begins: a frozen worker wakes with a queue of tasks that are another's now."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tests.fleet import judge
from tests.fleet.conftest import REDIS, a_fleet
from tests.fleet.judge import Fault
from tests.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.brokers.redis_server import RedisServer
    from tests.fleet.fleet import Fleet
    from tests.kafka.cluster import KafkaCluster

pytestmark = [pytest.mark.smoke, pytest.mark.slow]
TASKS = 60


@pytest.fixture
def fleet(tmp_path: Path, own_redis: RedisServer, fleet_kafka: KafkaCluster) -> Iterator[Fleet]:
    """Without workers yet, which will take everything that there is."""
    with a_fleet(tmp_path, own_redis, fleet_kafka, own_redis.url, REDIS, worker_prefetch_multiplier=0) as fleet:
        yield fleet


def test_a_woken_worker_begins_nothing(fleet: Fleet) -> None:
    """Its threads have all tasks before them, and nobody but they can send them back. None is lost."""
    fleet.top_up("-P", "threads", count=2)
    leader = fleet.members.wait_leader()
    fleet.stream("ahead", "fleet.leader.late", count=TASKS, rate=1000, seconds=0.1)
    fleet.wait_sent("ahead")
    fleet.stream("after", "fleet.leader.late", count=TASKS, rate=10, seconds=0.02)
    at = leader.signal(signal.SIGSTOP)
    fault = Fault(at=at, worker=leader.name, frozen=True, began_until=at)
    fleet.wait_done("after", 10, but=leader)
    woken = leader.signal(signal.SIGCONT)
    sent = {*fleet.sent("ahead"), *fleet.wait_sent("after")}
    wait_until(lambda: sent <= judge.done(fleet.records()[0]), timeout=60, what="the tasks", interval=0.3)
    ran = fleet.records()[0]
    pairs = judge.overlaps(ran)
    print(f"\n{len(pairs)} overlaps of what was running; {len(judge.twice(ran))} of {len(sent)} ran twice")
    assert [pair for pair in pairs if not judge.excused(pair, [fault])] == []
    assert [run for run in ran if run.worker == leader.name and woken < run.start] == []
