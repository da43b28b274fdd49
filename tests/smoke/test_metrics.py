"""Real beats and a worker, scraped as Prometheus would, while the leader is killed and the next one frozen."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from celery_neli.election.lease import boottime
from tests.processes import free_ports, wait_until
from tests.smoke import judge

if TYPE_CHECKING:
    from tests.smoke.members import Members, Process

pytestmark = [pytest.mark.smoke, pytest.mark.slow]
LEASE = 4.0


@dataclass(eq=False)
class Scraped:
    """A process and the port of its metrics."""

    process: Process
    port: int

    def value(self, name: str, **labels: str) -> float | None:
        """The sum of what has these labels, at this moment; None if nothing has, or there is no answer. Without an
        election, of all but that of the watch.
        """
        try:
            with urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as answer:
                text = answer.read().decode()
        except OSError:
            return None
        found = [
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == f"celery_neli_{name}"
            and labels.items() <= sample.labels.items()
            and ("election" in labels or sample.labels.get("election") != "watch")
        ]
        return sum(found) if found else None

    def reaches(self, least: float, name: str, **labels: str) -> float:
        """Wait until the value is that much."""

        def there() -> list[float]:
            value = self.value(name, **labels)
            return [value] if value is not None and value >= least else []

        what = f"{name} {labels} of {self.process.name} >= {least:g}"
        return wait_until(there, timeout=40, what=what, interval=0.1)[0]


def test_metrics_tell_of_a_failover(on_node: Members) -> None:
    """Who leads, why terms end, how long the gap was, what was sent late, and what the tasks did."""
    on_node.project = "tests.smoke.metrics_project"
    ports = iter(free_ports(4))

    def start(command: str, *arguments: str, name: str, **settings: Any) -> Scraped:
        port = next(ports)
        environment = {"SMOKE_METRICS_PORT": str(port)}
        process = on_node.celery(
            command, "-l", "INFO", *arguments, name=name, election=command, environment=environment, **settings
        )
        return Scraped(process, port)

    beats = [start("beat", "-S", "celery_neli.Scheduler", name=name) for name in ("one", "two")]
    leader = on_node.wait_leader()
    worker = start("worker", "-c", "1", "-n", "w@%h", name="worker", imports=["celery_neli.auto"])
    first = next(each for each in beats if each.process is leader)
    second = next(each for each in beats if each is not first)
    first.reaches(5, "slots_total", outcome="sent", role="leader")
    assert first.value("leader", election="beat", role="leader", group=on_node.group) == 1
    second.reaches(0, "without_leader_seconds")
    assert (second.value("leader"), second.value("without_leader_seconds")) == (0, 0)
    first.reaches(3, "heartbeat_round_trip_seconds_count")
    assert 0 < (first.value("lease_margin_seconds") or 0) <= LEASE == first.value("lease_seconds")
    assert second.value("lease_margin_seconds") is None
    worker.reaches(3, "runs_total", state="succeeded")
    worker.reaches(1, "leader", election="worker")
    (term,) = leader.terms("acquired")
    assert first.value("term") == second.value("term") == term

    killed = leader.signal(signal.SIGKILL)
    longest = 0.0
    while not second.process.transitions() and boottime() - killed < 30:
        longest = max(longest, second.value("without_leader_seconds") or 0.0)
        time.sleep(0.02)
    acquired = second.process.transitions()[0]
    took = acquired.at - killed
    second.reaches(1, "leader")
    assert second.value("terms_begun_total", after="expired") == 1
    assert second.value("terms_begun_total") == 1
    gap = second.value("leaderless_seconds_total") or 0.0
    print(f"\nfailover {took:.2f} s; without a leader {gap:.3f} s, seen {longest:.3f} s; lease {LEASE:g} s")
    # From the end of the last lease, which was bought between a heartbeat's interval before the end and the end.
    assert took - LEASE - 0.5 <= gap <= took - LEASE + 1.0
    assert gap > 0
    assert longest <= gap + 0.5
    assert second.value("term") == acquired.term > term
    assert second.value("without_leader_seconds") == 0
    second.reaches(1, "slots_total", outcome="sent")
    missed = second.value("slots_total", outcome="skipped", policy="misfire") or 0.0
    assert 10 <= missed <= took / 0.2 + 5, "one of the slots of the failover runs for all"

    third = start("beat", "-S", "celery_neli.Scheduler", name="three")
    third.reaches(acquired.term, "term")
    second.process.signal(signal.SIGSTOP)
    try:
        third.reaches(1, "leader")
    finally:
        second.process.signal(signal.SIGCONT)
    second.reaches(1, "terms_ended_total", cause="frozen")
    assert (second.value("leader"), second.value("lease_margin_seconds")) == (0, 0)
    assert second.value("terms_ended_total") == 1
    assert third.value("terms_begun_total", after="expired") == 1
    assert sum(each.value("leader", election="beat") or 0 for each in (second, third)) == 1
    assert judge.overlaps([held for each in (first, second, third) for held in each.process.held()]) == []
