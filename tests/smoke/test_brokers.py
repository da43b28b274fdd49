"""Brokers are stopped, killed and frozen under three beats, on three brokers with the default settings."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import pytest
from confluent_kafka.cimpl import NewTopic

from celery_neli.election.lease import boottime
from tests.processes import wait_until
from tests.smoke import judge

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kafka.cluster import KafkaCluster
    from tests.kafka.node import KafkaNode
    from tests.smoke.members import Members, Process

pytestmark = [pytest.mark.smoke, pytest.mark.slow]
OUTAGE = 30.0


@pytest.fixture
def beats(on_cluster: Members) -> Members:
    """Three beats, one of which leads. All are expected to survive."""
    return start_beats(on_cluster)


def start_beats(members: Members) -> Members:
    """Start three beats, and wait until one leads and the others follow."""
    for _ in range(3):
        members.beat()
    members.wait_leader()
    for each in members.all:
        wait_until(lambda each=each: "beat: Starting..." in each.log, timeout=60, what=f"the start of {each.name}")
    return members


def place_log(cluster: KafkaCluster, members: Members, replicas: list[KafkaNode]) -> None:
    """Make the leader topic on these brokers, led by the first one."""
    topic = f"{members.group}.beat.neli"
    made = NewTopic(topic, num_partitions=1, replica_assignment=[[node.id for node in replicas]])
    cluster.admin().create_topics([made])[topic].result(30)


def log_leader(cluster: KafkaCluster, members: Members) -> KafkaNode:
    """The broker that leads the leader topic's partition."""
    return wait_until(lambda: cluster.leader_of(f"{members.group}.beat.neli"), timeout=30, what="a partition leader")


def active_controller(cluster: KafkaCluster) -> KafkaNode:
    """The node that leads the quorum of controllers: the last one that told so. Clients cannot ask for it."""

    def epoch(node: KafkaNode) -> int:
        told = re.findall(r"Becoming the active controller at epoch (\d+)", node.log.read_text(errors="replace"))
        return int(told[-1]) if told else -1

    return max(cluster.nodes, key=epoch)


def assert_sound(members: Members, terms: list[int], processes: int = 3) -> None:
    """One leader at most at all times, no message from a deposed one, and nobody died."""
    members.assert_one_at_most()
    assert judge.falls(terms) == []
    assert len(members.alive) == processes


def wait_sent(terms: Callable[[], list[int]], more: int = 15) -> None:
    """Wait until further tasks were sent."""
    sent = len(terms())
    wait_until(lambda: len(terms()) >= sent + more, timeout=60, what=f"{more} further tasks")


def margin_since(leader: Process, at: float) -> float:
    """The least that was left of the leader's lease after `at`, seconds."""
    path = leader.directory / f"{leader.name}.{leader.election}"
    lines = [line.split() for line in path.read_text().split("\n")[:-1] if line.startswith("held")]
    return min(float(margin) for _, _, _, end, margin in lines if float(end) > at)


def test_the_leader_outlives_the_groups_coordinator(
    on_cluster: Members, kafka_cluster: KafkaCluster, terms: Callable[[], list[int]]
) -> None:
    """Killed hard, and not one of the log's replicas: the term stays, and tasks go on."""
    coordinator = kafka_cluster.coordinator_of(f"{on_cluster.group}.beat")
    place_log(kafka_cluster, on_cluster, [node for node in kafka_cluster.nodes if node is not coordinator])
    leader, at = start_beats(on_cluster).wait_leader(), boottime()
    coordinator.kill()
    wait_until(lambda: boottime() - at > 12, timeout=30, what="more than a session, and a broker's fencing")
    wait_sent(terms)
    print(f"\ncoordinator killed: least left of the lease: {margin_since(leader, at):.2f} s of 4")
    assert len(set(terms())) == 1
    assert leader.holds()
    assert not leader.transitions("fenced")
    assert_sound(on_cluster, terms())


def test_the_leader_outlives_a_clean_stop_of_the_logs_broker(
    beats: Members, kafka_cluster: KafkaCluster, terms: Callable[[], list[int]]
) -> None:
    """The partition's leader moves first; the term stays, and tasks go on."""
    leader, broker, at = beats.wait_leader(), log_leader(kafka_cluster, beats), boottime()
    broker.terminate()
    wait_sent(terms, 30)
    print(f"\nlog's broker stopped cleanly: least left of the lease: {margin_since(leader, at):.2f} s of 4")
    assert leader.holds()
    assert len(leader.transitions()) == 1
    assert not leader.transitions("fenced")
    assert_sound(beats, terms())


@pytest.mark.parametrize(("fault", "controls"), [("kill", False), ("freeze", False), ("kill", True)])
def test_the_logs_broker_is_lost(
    fault: str, controls: bool, on_cluster: Members, kafka_cluster: KafkaCluster, terms: Callable[[], list[int]]
) -> None:
    """One leader at most; one again within 12 s.

    The log stands still until the controllers give the broker up: 9 s, and some 3 s more if they lost their own leader
    with it (`controls`). Of a frozen broker nobody is told: its connections stay open, and silent.
    """
    controller = active_controller(kafka_cluster)
    place_log(kafka_cluster, on_cluster, sorted(kafka_cluster.nodes, key=lambda node: (node is controller) != controls))
    beats = start_beats(on_cluster)
    broker, at = log_leader(kafka_cluster, beats), boottime()
    assert (broker is controller) == controls
    getattr(broker, fault)()
    _, acquired = beats.wait_acquired(at)
    fenced = [f"{told.at - at:.2f}" for each in beats.all for told in each.transitions("fenced")]
    what = f"log's broker, {fault}{' (active controller)' if controls else ''}"
    print(f"\n{what}: fenced after {fenced}, led again after {acquired.at - at:.2f} s (target 12)")
    assert acquired.at - at < 30
    wait_sent(terms)
    kafka_cluster.start()
    wait_sent(terms)
    print(f"  broker back: acquisitions by each since the start: {[len(each.transitions()) for each in beats.all]}")
    assert_sound(beats, terms())


def test_all_brokers_are_lost_and_come_back(
    beats: Members, kafka_cluster: KafkaCluster, terms: Callable[[], list[int]]
) -> None:
    """For 30 s. Nobody leads meanwhile, nobody dies or floods the log; one leads again within 10 s of the return."""
    said = [len(each.log.splitlines()) for each in beats.all]
    gone = boottime()
    for node in kafka_cluster.nodes:
        node.kill()
    wait_until(lambda: not any(each.holds() for each in beats.all), timeout=15, what="nobody leads")
    time.sleep(max(0.0, OUTAGE - (boottime() - gone)))
    lines = [each.log.splitlines()[before:] for each, before in zip(beats.all, said, strict=True)]
    lines = [[line for line in each if "Sending due task" not in line] for each in lines]
    assert not any(told.at > gone for each in beats.all for told in each.transitions())
    for node in kafka_cluster.nodes:
        node.start()
    for node in kafka_cluster.nodes:
        node.wait_ready()
    back = boottime()
    _, acquired = beats.wait_acquired(gone)
    print(f"\nall brokers gone for {OUTAGE:g} s: led again {acquired.at - back:.2f} s after all answered (target 10)")
    print(f"  log lines during the outage: {[len(each) for each in lines]}")
    print("  e.g.", *lines[0], sep="\n    ")
    assert acquired.at - back < 30
    assert max(map(len, lines)) <= 15
    wait_sent(terms)
    assert_sound(beats, terms())
