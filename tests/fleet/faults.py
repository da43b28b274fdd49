"""What happens to a leading worker, or to the brokers under it. Each waits until it is over, and tells what it was."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from celery_neli.election.lease import boottime
from tests.brokers.redis_server import RedisServer
from tests.fleet.judge import Fault
from tests.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fleet.fleet import Fleet
    from tests.smoke.members import Process

    Strike = Callable[[Fleet, Process, str], Fault]

LEASE = 4.0
"""neli_heartbeat_timeout as it is by default."""


def in_flight(fleet: Fleet) -> int:
    """How many messages a broken connection may cost: only the leader consumes."""
    return 1 if isinstance(fleet.broker, RedisServer) else 0


def sigterm(fleet: Fleet, leader: Process, prefix: str) -> Fault:
    """A warm shutdown: the leader hands over, and ends by itself."""
    at = leader.signal(signal.SIGTERM)
    assert leader.wait_end() == 0, leader.log[-2000:]
    return Fault(at=at, worker=leader.name)


def sigkill(fleet: Fleet, leader: Process, prefix: str) -> Fault:
    """The main process is killed, as when memory runs out. Its children die with it: Celery asks Linux for that."""
    at = leader.signal(signal.SIGKILL)
    leader.wait_end()
    return Fault(at=at, worker=leader.name, lost_until=at, in_flight=in_flight(fleet))


def freeze_main(fleet: Fleet, leader: Process, prefix: str) -> Fault:
    """The main process is frozen until a successor has worked; the pool's children go on, while the lease lasts."""
    at = leader.signal(signal.SIGSTOP)
    fleet.wait_done(prefix, 10, but=leader)
    leader.signal(signal.SIGCONT)
    return Fault(at=at, worker=leader.name, frozen=True, began_until=at + LEASE)


def freeze_all(fleet: Fleet, leader: Process, prefix: str) -> Fault:
    """The worker is frozen with its pool until a successor has worked."""
    at = boottime()
    os.killpg(leader.process.pid, signal.SIGSTOP)
    leader.frozen = True
    fleet.wait_done(prefix, 10, but=leader)
    os.killpg(leader.process.pid, signal.SIGCONT)
    leader.frozen = False
    return Fault(at=at, worker=leader.name, frozen=True, began_until=at)


def restart_broker(fleet: Fleet, leader: Process, prefix: str) -> Fault:
    """The task broker ends cleanly and comes back with all that it had; every connection is lost."""
    at = boottime()
    fleet.broker.stop()
    gone = boottime()
    fleet.broker.start()
    return Fault(at=at, lost_until=gone, in_flight=in_flight(fleet))


def restart_kafka(fleet: Fleet, leader: Process, prefix: str) -> Fault:
    """The only Kafka node ends cleanly, and comes back when the lease is over: for a while nobody leads."""
    at = boottime()
    (node,) = fleet.kafka.nodes
    node.terminate()
    wait_until(lambda: boottime() > at + LEASE + 1, timeout=30, what="the end of the lease")
    node.start()
    node.wait_ready()
    return Fault(at=at)


STRIKES: tuple[Strike, ...] = (sigterm, sigkill, freeze_main, freeze_all, restart_broker, restart_kafka)
