"""Leader tasks flow through a fleet of four workers whose leader, or whose brokers, are struck; on Redis and RabbitMQ.

Whatever happens: no two leaders work at the same time. Acknowledged late, every task runs. Acknowledged early, only
those can be lost that a kill or a lost connection caught in hand. Redis can cost one more, see `Fault.in_flight`.

NELI_FLEET_ROUNDS rounds of every fault in every setting, with NELI_FLEET_TASKS tasks in all: 5 and 2000, say. By
default one short round of a selection.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from celery_neli.election.lease import boottime
from tests.fleet import judge
from tests.fleet.faults import STRIKES, freeze_all, freeze_main, restart_broker, restart_kafka, sigkill, sigterm
from tests.processes import wait_until

if TYPE_CHECKING:
    from tests.fleet.faults import Strike
    from tests.fleet.fleet import Fleet
    from tests.fleet.judge import Fault

pytestmark = [pytest.mark.smoke, pytest.mark.slow]
BY_HAND = "NELI_FLEET_ROUNDS" in os.environ
ROUNDS = int(os.environ.get("NELI_FLEET_ROUNDS", "1"))
TASKS = int(os.environ.get("NELI_FLEET_TASKS", "100"))
EVERY = {(broker, acks): STRIKES for broker in ("redis", "rabbitmq") for acks in ("late", "early")}
SHORT = {
    ("redis", "late"): (sigterm, sigkill, freeze_main, restart_broker),
    ("redis", "early"): (sigterm, sigkill, restart_broker),
    ("rabbitmq", "late"): (sigterm, sigkill, freeze_all, restart_broker, restart_kafka),
    ("rabbitmq", "early"): (sigkill, restart_broker),
}
RETURN = 8.0 if BY_HAND else 0.0
"""When a task in a killed worker's hand has come back, if it comes back: after Redis' visibility timeout."""


@pytest.mark.parametrize(
    ("fleet", "acks", "strike"),
    [
        pytest.param(broker, acks, strike, id=f"{broker}-{acks}-{strike.__name__}")
        for (broker, acks), strikes in (EVERY if BY_HAND else SHORT).items()
        for strike in strikes
    ],
    indirect=["fleet"],
)
def test_leader_tasks_under_a_fault(fleet: Fleet, acks: str, strike: Strike) -> None:
    """Rounds of: a stream of tasks, the fault in the middle of it, and the end of all tasks."""
    for number in range(ROUNDS):
        try:
            play(fleet, acks, strike, f"{acks}-{strike.__name__}-{number}")
        except BaseException:
            fleet.stop()  # the next one begins with a fresh fleet
            raise


def play(fleet: Fleet, acks: str, strike: Strike, prefix: str) -> None:
    """One round."""
    count = max(TASKS // ROUNDS, 50)
    if strike is restart_kafka:
        count *= 2  # more than can be done before the lease is over
    fleet.top_up()
    fleet.members.wait_leader()
    began = boottime()
    fleet.stream(prefix, f"fleet.leader.{acks}", count=count)
    fleet.wait_done(prefix, count // 4)
    leader = fleet.members.wait_leader()
    fleet.wait_long(prefix, leader)  # or it may be over before a successor comes, and nothing be shown
    fault = strike(fleet, leader, prefix)
    if acks == "late":
        fault = replace(fault, lost_until=None)  # nothing may be lost
    sent = fleet.wait_sent(prefix)

    def missing() -> set[str]:
        return set(sent) - judge.done(fleet.records()[0])

    def unaccounted() -> set[str]:
        return judge.unaccounted(sent, *fleet.records(), [fault])

    for expected, timeout in ((unaccounted, 60.0), (missing, RETURN)):
        try:
            wait_until(lambda left=expected: not left(), timeout=timeout, what="the tasks", interval=0.3)
        except TimeoutError:
            break  # judged below, with what is known
    assert_sound(fleet, fault, sent, began)


def assert_sound(fleet: Fleet, fault: Fault, sent: list[str], began: float) -> None:
    """Judge the round, and print what became of its tasks."""
    ran, received = fleet.records()
    ours = [run for run in ran if run.start >= began]
    pairs = judge.overlaps(ours)
    wrong = [pair for pair in pairs if not judge.excused(pair, [fault])]
    lost = set(sent) - judge.done(ran)
    begun = lost & {run.task for run in ran}
    terms = sorted({run.term for run in ours if run.term is not None})
    print(
        f"\n{sent[0].rpartition('-')[0]}: {len(sent)} sent, {len(judge.twice(ours))} ran twice, {len(lost)} lost, "
        f"of which {len(begun)} had begun; "
        f"{len(pairs) - len(wrong)} overlaps excused, {len(wrong)} not; terms {terms}; "
        f"{boottime() - began:.1f} s, the fault at {fault.at - began:.1f} s"
    )
    where = f"see {fleet.members.directory}"
    assert not wrong, f"{len(wrong)} overlaps, {where}, the first: {wrong[0]}"
    wrongly = judge.unaccounted(sent, ran, received, [fault])
    assert not wrongly, f"lost without a reason, {where}: {story(wrongly, fleet)}"


def story(tasks: set[str], fleet: Fleet) -> str:
    """What is known of the first of some tasks."""
    ran, received = fleet.records()
    chosen = sorted(tasks)[:3]
    return f"{len(tasks)} tasks, e.g. " + "; ".join(
        str((task, [each for each in [*received, *ran] if each.task == task])) for task in chosen
    )


@pytest.mark.parametrize("fleet", ["redis"], indirect=True)
def test_ordinary_tasks_overlap(fleet: Fleet) -> None:
    """The control: without the decorator every worker runs tasks, at the same time, and the judge sees it."""
    fleet.top_up()
    fleet.stream("ordinary", "fleet.anywhere", count=100)
    sent = set(fleet.wait_sent("ordinary"))
    wait_until(lambda: sent <= judge.done(fleet.records()[0]), timeout=60, what="the tasks", interval=0.2)
    ran = [run for run in fleet.records()[0] if run.task in sent]
    assert len({run.worker for run in ran}) >= 2
    assert judge.overlaps(ran)
