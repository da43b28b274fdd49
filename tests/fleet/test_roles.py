"""Eight roles over four workers: two each, one's end moves two, and a fresh worker gets its share."""

from __future__ import annotations

import signal
from collections import defaultdict
from typing import TYPE_CHECKING

import pytest

from celery_neli.election.lease import boottime
from tests.fleet import judge
from tests.fleet.conftest import REDIS, a_fleet
from tests.fleet.faults import LEASE, in_flight
from tests.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.brokers.redis_server import RedisServer
    from tests.fleet.fleet import Fleet
    from tests.kafka.cluster import KafkaCluster
    from tests.smoke.judge import Transition
    from tests.smoke.members import Process

pytestmark = [pytest.mark.smoke, pytest.mark.slow]
ROLES = ["billing", "export", "import", "mail", "prices", "report", "search", "stock"]
REBALANCE_AFTER = 2.0
#: Seconds without a change after which the roles are where they are to be: the workers may lead two each, and the group
#: have told two of them to swap.
REST = REBALANCE_AFTER + 1.0


@pytest.fixture
def fleet(tmp_path: Path, own_redis: RedisServer, fleet_kafka: KafkaCluster) -> Iterator[Fleet]:
    """Without workers yet."""
    roles = {"neli_roles": ROLES, "neli_rebalance_after": REBALANCE_AFTER}
    with a_fleet(tmp_path, own_redis, fleet_kafka, own_redis.url, REDIS, **roles) as fleet:
        yield fleet


def leads(fleet: Fleet) -> dict[str, list[str]]:
    """The roles that each living worker leads."""
    return {each.name: [role for role in ROLES if each.of_role(role).holds()] for each in fleet.members.alive}


def wait_spread(fleet: Fleet, *, share: int, timeout: float = 60.0) -> dict[str, list[str]]:
    """Wait until every living worker leads `share` roles, and no role moves any more; who leads which."""
    seen: dict[str, list[str]] = {}
    since = boottime()

    def at_rest() -> bool:
        nonlocal seen, since
        found = leads(fleet)
        if found != seen:
            seen, since = found, boottime()
        return all(len(roles) == share for roles in seen.values()) and boottime() - since > REST

    try:
        wait_until(at_rest, timeout=timeout, what=f"{share} roles each, see {fleet.members.directory}", interval=0.1)
    except TimeoutError as error:
        raise AssertionError(f"{error}: {seen}") from error
    return seen


def changes(workers: list[Process], role: str, *, since: float) -> list[Transition]:
    """What happened to a role at these workers, in order."""
    told = [
        each
        for worker in workers
        for kind in ("acquired", "revoked", "fenced")
        for each in worker.of_role(role).transitions(kind)
        if each.at > since
    ]
    return sorted(told, key=lambda each: each.at)


def test_roles_are_spread_move_alone_and_come_back(fleet: Fleet) -> None:
    """No two workers run tasks of a role at once; no task is lost but one that Redis just gave to whom is killed."""
    fleet.top_up()
    spread = wait_spread(fleet, share=2)
    fleet.stream("roles", *(f"fleet.{role}.late" for role in ROLES), count=320, rate=16, seconds=0.02)
    fleet.wait_done("roles", 40)

    victim, *others = fleet.members.alive
    at = victim.signal(signal.SIGKILL)
    victim.wait_end()
    took = {}
    for role in spread[victim.name]:
        what = f"a new leader of {role}, see {fleet.members.directory}"
        first, *_ = wait_until(lambda role=role: changes(others, role, since=at), timeout=20, what=what)
        took[role] = first.at - at
    shown = ", ".join(f"{role} {seconds:.2f} s" for role, seconds in took.items())
    print(f"\nroles of the killed worker: {shown} (target {LEASE + 0.5:g} s)")
    assert max(took.values()) < LEASE + 0.5
    for each in others:
        for role in spread[each.name]:
            assert changes(others, role, since=at) == [], f"{each.name} led {role}, which nothing happened to"

    started = boottime()
    fleet.top_up()
    back = wait_spread(fleet, share=2)
    print(f"a fresh worker has its share {boottime() - started - REST:.1f} s after its start: {back}")

    sent = fleet.wait_sent("roles")
    what = f"the tasks, see {fleet.members.directory}"
    killed = judge.Fault(at=at, worker=victim.name, in_flight=in_flight(fleet))
    wait_until(lambda: not judge.unaccounted(sent, *fleet.records(), [killed]), timeout=60, what=what, interval=0.3)
    of_role = defaultdict(list)
    for run in fleet.records()[0]:
        of_role[int(run.task.rpartition("-")[2]) % len(ROLES)].append(run)
    assert len(of_role) == len(ROLES)
    for runs in of_role.values():
        assert judge.overlaps(runs) == []
