"""What shows a fleet does not delay it: Kafka stands still for two fleets at once, of which one is seen, the other not.

Both live on one machine and one Kafka at the same time, so that they meet the same load and the same outage, and only
what they do about it differs. Celery's own scheduler sends the slots: it needs Kafka for the lease alone, so that its
slots go out while Kafka stands still. The bounds are wide, for each fleet is measured once: what waits for Kafka waits
for the seconds that Kafka stands still, and its clients' timeouts are of 10 s and more.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import redis

from celery_neli.election.lease import boottime
from tests import services
from tests.kafka.cluster import KafkaCluster
from tests.processes import free_ports, wait_until
from tests.smoke.members import Members, Process, members

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [pytest.mark.smoke, pytest.mark.slow]

EVERY = 0.2  # seconds between two slots
LEASE = 4.0
SHORT, TIMES = 2.0, 3  # Kafka stands still for less than the lease: no leader loses it
LONG = 7.0  # … and for longer: each leader loses it
#: Seconds by which what is seen may be later. What waited for Kafka would be as late as Kafka stood still, at least.
LATER = 0.5
#: The least that is left of a lease may differ by a heartbeat's interval (0.5 s), as Kafka stops between two of them.
PHASE = 0.75
HANDOVER = 2.0
#: Seconds that a beat may take longer to end while Kafka does not answer: each of the four parts may wait for one.
ENDING = 5.0


@dataclass(eq=False)
class Fleet:
    """Two beats and a worker."""

    members: Members
    key: str
    seen: bool
    beats: list[Process] = field(default_factory=list)

    def start(self) -> None:
        ports = free_ports(3)
        environment = {"SEEING_LIST": self.key, "SMOKE_INSTALL": "1"}
        if not self.seen:
            environment["SEEING_NOTHING"] = "1"
        for number, command in enumerate(("worker", "beat", "beat")):
            options = ("-P", "solo", "-n", "w@%h") if command == "worker" else ("-S", "celery_neli.Scheduler")
            http = {"neli_http": f"127.0.0.1:{ports[number]}"} if self.seen else {}
            process = self.members.celery(
                command, "-l", "INFO", *options, name=f"{command}{number}", election=command, environment=environment,
                **http,
            )  # fmt: skip
            if command == "beat":
                self.beats.append(process)

    @property
    def leader(self) -> Process | None:
        return next((each for each in self.beats if each.holds()), None)

    def ran(self) -> list[tuple[float, float]]:
        """When each task ran, and how late after its slot, the oldest first."""
        with redis.Redis.from_url(self.members.settings["broker_url"]) as client:
            found = [json.loads(each) for each in client.lrange(self.key, 0, -1)]
        return sorted((each["at"], each["at"] - datetime.fromisoformat(each["slot"]).timestamp()) for each in found)

    def acquired(self, since: float) -> float | None:
        """When the role was first taken after this moment (CLOCK_BOOTTIME)."""
        found = [told.at for each in self.beats for told in each.transitions() if told.at > since]
        return min(found) if found else None

    def margin(self, since: float, until: float) -> float:
        """The least that was left of a lease between these moments."""
        return min(each.margin for beat in self.beats for each in beat.held() if each.start < until > since)


@pytest.fixture
def cluster(kafka_libs: Path, tmp_path: Path) -> Iterator[KafkaCluster]:
    started = KafkaCluster(nodes=1, java=services.java() or "", libs=kafka_libs, directory=tmp_path / "kafka")
    try:
        started.start()
        yield started
    finally:
        started.stop()


@pytest.fixture
def fleets(
    tmp_path: Path, names: Callable[[str], str], redis_url: str, cluster: KafkaCluster
) -> Iterator[tuple[Fleet, Fleet]]:
    """One that is seen, and one that is not, both started."""
    with ExitStack() as stack:
        made = []
        for seen in (True, False):
            directory = tmp_path / ("seen" if seen else "unseen")
            directory.mkdir()
            key = names("seen" if seen else "unseen")
            settings: dict[str, Any] = {
                "neli_group": key, "neli_kafka": cluster.bootstrap_servers, "broker_url": redis_url,
                "task_default_queue": key, "neli_scheduler": "celery.beat:PersistentScheduler",
                "neli_health_dir": str(directory), "beat_max_loop_interval": 1,
                "beat_schedule": {"tick": {"task": "seeing.good", "schedule": EVERY}},
            }  # fmt: skip
            fleet = stack.enter_context(members(directory, project="tests.smoke.seeing_project", **settings))
            made.append(Fleet(fleet, f"ran-{key}", seen))
            made[-1].start()
        yield made[0], made[1]


def test_kafka_that_stands_still_delays_nothing_because_it_is_seen(
    fleets: tuple[Fleet, Fleet], cluster: KafkaCluster
) -> None:
    """Slots in time, leases as long, takeover and stop as fast: with history, metrics, alarms and health as without."""
    for fleet in fleets:
        wait_until(lambda fleet=fleet: fleet.leader and len(fleet.ran()) > 20, timeout=90, what="a leader and tasks")
    time.sleep(3)  # the history and the watcher of alarms have begun

    # For less than the lease: nobody loses it, and slots go out in time.
    began, began_at = boottime(), time.time()
    for _ in range(TIMES):
        cluster.node(1).freeze()
        time.sleep(SHORT)
        cluster.node(1).thaw()
        time.sleep(2.0)
    ended, ended_at = boottime(), time.time()
    late, gaps, counts, margins = [], [], [], []
    for fleet in fleets:
        assert fleet.acquired(began) is None, "a lease was lost"
        found = [(at, late) for at, late in fleet.ran() if began_at < at < ended_at]
        counts.append(len(found))
        late.append(sorted(each for _, each in found)[int(len(found) * 0.95)])
        gaps.append(max(after[0] - before[0] for before, after in pairwise(found)))
        margins.append(fleet.margin(began, ended))
    print(f"\nshort, seen and unseen: late {late}, gaps {gaps}, slots {counts}, margins {margins}")
    assert counts[0] >= 0.9 * counts[1]
    assert late[0] <= late[1] + LATER
    assert gaps[0] <= max(gaps[1], EVERY) + LATER
    assert margins[0] >= margins[1] - PHASE

    # For longer than the lease: all lose it, and one has it again soon after Kafka is back.
    cluster.node(1).freeze()
    time.sleep(LONG)
    assert [fleet.leader for fleet in fleets] == [None, None]
    back = boottime()
    cluster.node(1).thaw()
    took = []
    for fleet in fleets:
        at = wait_until(lambda fleet=fleet: fleet.acquired(back), timeout=60, what="a leader again", interval=0.02)
        took.append(at - back)
    print(f"long, seen and unseen: a leader {took} s after Kafka is back")
    assert took[0] <= took[1] + HANDOVER

    # The leader is killed; the other one takes over.
    for fleet in fleets:
        wait_until(lambda fleet=fleet: fleet.leader, timeout=60, what="a leader")
    time.sleep(3)
    took, killed = [], {}
    for fleet in fleets:
        leader = fleet.leader
        assert leader is not None
        killed[fleet] = leader.signal(signal.SIGKILL)
    for fleet in fleets:
        at = wait_until(lambda fleet=fleet: fleet.acquired(killed[fleet]), timeout=60, what="another", interval=0.02)
        took.append(at - killed[fleet])
    print(f"killed, seen and unseen: another leader after {took} s")
    assert took[0] <= took[1] + HANDOVER

    # A stop while Kafka stands still: what is not recorded by then is lost, and holds nothing up.
    time.sleep(2)
    cluster.node(1).freeze()
    time.sleep(1)
    leaders = [next(each for each in fleet.beats if each.alive) for fleet in fleets]
    asked = [each.signal(signal.SIGTERM) for each in leaders]
    ends: dict[Process, float] = {}

    def ended_all() -> bool:
        ends.update({each: boottime() for each in leaders if not each.alive and each not in ends})
        return len(ends) == len(leaders)

    wait_until(ended_all, timeout=60, what="their ends")
    took = [ends[leader] - at for leader, at in zip(leaders, asked, strict=True)]
    cluster.node(1).thaw()
    print(f"stopped, seen and unseen: ended after {took} s")
    assert took[0] <= took[1] + ENDING
    for fleet in fleets:
        assert all("Traceback" not in each.log for each in fleet.members.all)
