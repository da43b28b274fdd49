"""What happens to the leading beat, or to the brokers under it. Each waits until it is over."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from celery_neli.election.lease import boottime
from tests.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.failover.rig import Rig
    from tests.smoke.members import Process

    Strike = Callable[[Rig, Process], None]

LEASE = 4.0
"""neli_heartbeat_timeout as it is by default."""
A_WHILE = 1.5
"""Seconds that something is to last at least: every entry has a slot in them."""


def pause(seconds: float) -> None:
    """Let that much time pass: the fault's own."""
    until = boottime() + seconds
    wait_until(lambda: boottime() >= until, timeout=seconds + 10, what=f"{seconds} s to pass")


def sigterm(rig: Rig, leader: Process) -> None:
    """The leader is asked to end, hands over, and ends by itself."""
    at = leader.signal(signal.SIGTERM)
    assert leader.wait_end() == 0, leader.log[-2000:]
    rig.members.wait_acquired(at, but=leader)


def sigkill(rig: Rig, leader: Process) -> None:
    """The leader is killed, as when memory runs out."""
    at = leader.signal(signal.SIGKILL)
    leader.wait_end()
    rig.members.wait_acquired(at, but=leader)


def sigkill_twice(rig: Rig, leader: Process) -> None:
    """The leader is killed, and so is its successor as soon as it leads."""
    at = leader.signal(signal.SIGKILL)
    successor, _ = rig.members.wait_acquired(at, but=leader)
    sigkill(rig, successor)


def freeze(rig: Rig, leader: Process) -> None:
    """The leader is frozen until a successor has led for a while; then it goes on, and sees that it leads no more."""
    at = leader.signal(signal.SIGSTOP)
    rig.members.wait_acquired(at, but=leader)
    pause(A_WHILE)
    leader.signal(signal.SIGCONT)
    rig.wait_standby(leader)


def restart_kafka(rig: Rig, leader: Process) -> None:
    """All Kafka ends, and comes back when the lease is over: for a while nobody leads."""
    at = boottime()
    for node in rig.kafka.nodes:
        node.terminate()
    wait_until(lambda: boottime() > at + LEASE + 1, timeout=30, what="the end of the lease")
    rig.kafka.start()
    rig.members.wait_acquired(at)


def kill_kafka_node(rig: Rig, leader: Process) -> None:
    """The node of three that leads the leader topic is killed, and comes back."""
    node = rig.kafka.leader_of(f"{rig.members.group}.beat.neli")
    assert node is not None
    node.kill()
    pause(LEASE)
    rig.kafka.start()
    rig.members.wait_leader()


def restart_broker(rig: Rig, leader: Process) -> None:
    """The task broker ends, and comes back with all that it had; every connection is lost."""
    rig.broker_goes()
    pause(A_WHILE)
    rig.broker_comes()


def sigkill_without_broker(rig: Rig, leader: Process) -> None:
    """The leader is killed while there is no task broker. A successor comes before the broker does."""
    rig.broker_goes()
    pause(A_WHILE)
    sigkill(rig, leader)
    pause(A_WHILE)
    rig.broker_comes()


def sigterm_without_broker(rig: Rig, leader: Process) -> None:
    """The leader is asked to end while there is no task broker."""
    rig.broker_goes()
    pause(A_WHILE)
    sigterm(rig, leader)
    pause(A_WHILE)
    rig.broker_comes()


def sigkill_with_mute_broker(rig: Rig, leader: Process) -> None:
    """The leader is killed while the task broker does not answer. What the leader had sent by then arrives later."""
    with rig.mute_broker():
        pause(A_WHILE)
        sigkill(rig, leader)


def mute_broker(rig: Rig, leader: Process) -> None:
    """The task broker does not answer for a while; no connection is lost."""
    with rig.mute_broker():
        pause(A_WHILE)


def mute_kafka(rig: Rig, leader: Process) -> None:
    """Kafka does not answer until the lease is over. Heartbeats that were on their way may give the term back."""
    for node in rig.kafka.nodes:
        node.freeze()
    pause(LEASE + 1)
    rig.kafka.start()
    rig.members.wait_leader()


def resign(rig: Rig, leader: Process) -> None:
    """An operator asks for another leader."""
    at = boottime()
    told = rig.members.run("neli", "resign")
    assert told.returncode == 0, told.stderr
    rig.members.wait_acquired(at, but=leader)


SHORT: tuple[Strike, ...] = (sigterm, sigkill, freeze, restart_broker, sigkill_without_broker, mute_kafka)
STRIKES = (
    *SHORT, restart_kafka, sigkill_with_mute_broker, sigkill_twice, sigterm_without_broker, mute_broker, resign
)  # fmt: skip
