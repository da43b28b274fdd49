"""The run history of real processes: what beats sent, what workers of each pool did, and Kafka frozen and restarted."""

from __future__ import annotations

import json
import logging
import signal
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from celery_neli.config import Config
from celery_neli.exceptions import NeliError
from celery_neli.history.runs import ENDS
from celery_neli.history.topic import HistoryFollower, read_runs
from tests import services
from tests.kafka.cluster import KafkaCluster
from tests.processes import wait_until
from tests.smoke.test_workers import POOLS, worker

if TYPE_CHECKING:
    from pathlib import Path

    from celery_neli.history.records import Record
    from celery_neli.history.runs import Run
    from tests.smoke.members import Members

pytestmark = [pytest.mark.smoke, pytest.mark.slow]
LOG = logging.getLogger("celery_neli.test")


def runs(members: Members, **asked: Any) -> list[Run]:
    config = Config(group=f"{members.group}.beat", kafka=members.settings["neli_kafka"])
    try:
        return read_runs(config, log=LOG, **asked)
    except NeliError:
        return []


def entry(task: str, queue: str, every: float = 1.0) -> dict[str, Any]:
    return {"task": f"smoke.{task}", "schedule": every, "options": {"queue": queue, "expires": 20}}


def test_each_pool_tells_what_its_tasks_did(on_node: Members) -> None:
    """Success, failure and a retry, with runtime and worker; the workers' starts and ends; a leader-only task."""
    pytest.importorskip("gevent")
    what = {"tick": "succeeded", "fail": "failed", "once_more": "succeeded"}
    on_node.settings["beat_schedule"] = {
        **{f"{pool} {task}": entry(task, f"q-{pool}") for pool in POOLS for task in what},
        "lead": {"task": "smoke.lead", "schedule": 1.0},
    }
    for pool in POOLS:
        worker(on_node, pool, pool, "-Q", f"q-{pool}")
    on_node.beat(name="beat")

    def whole() -> dict[str, list[Run]] | None:
        found: dict[str, list[Run]] = {}
        for run in runs(on_node, limit=2000):
            if run.outcome == "sent" and run.state in ENDS:
                found.setdefault(run.entry, []).append(run)
        missing = on_node.settings["beat_schedule"].keys() - {name for name, each in found.items() if len(each) > 1}
        return None if missing else found

    found = wait_until(whole, timeout=90, what="runs of all entries", interval=0.5)
    for pool in POOLS:
        for task, state in what.items():
            for run in found[f"{pool} {task}"]:
                assert (run.state, run.worker.partition("@")[0], run.term is not None) == (state, pool, True), run
                assert run.runtime is not None
                assert 0 <= run.runtime < 10
                assert run.retries == (task == "once_more")
                assert ("as it should" in run.error) == (task == "fail")
    assert {run.state for run in found["lead"]} == {"succeeded"}
    shown = on_node.run("neli", "schedule", "runs", "prefork fail", "--failed", "--json", "--limit", "5")
    assert shown.returncode == 0, shown.stderr
    assert {each["state"] for each in json.loads(shown.stdout)} == {"failed"}
    print("\n" + on_node.run("neli", "schedule", "runs", "--limit", "30").stdout)
    for each in on_node.all:
        each.signal(signal.SIGTERM)
    for each in on_node.all:
        each.wait_end()
    config = Config(group=f"{on_node.group}.beat", kafka=on_node.settings["neli_kafka"])
    follower = HistoryFollower(config, LOG, since=0.0)
    told: list[Record] = []
    try:
        while (more := follower.poll(2.0)) or not told:
            told += more
    finally:
        follower.close()
    workers = [(each.worker.partition("@")[0], each.stopped) for each in told if hasattr(each, "stopped")]
    assert sorted(workers) == sorted((pool, stopped) for pool in POOLS for stopped in (False, True))


def test_kafka_frozen_and_restarted_delays_no_slot(election: Members, kafka_libs: Path, tmp_path: Path) -> None:
    """While Kafka is frozen, for less than the lease, slots go out in time; what was told of them is recorded later.

    After a restart of Kafka history goes on by itself. The scheduler is Celery's own, which needs Kafka for the lease
    alone: no slot of it waits for a claim.
    """
    cluster = KafkaCluster(nodes=1, java=services.java() or "", libs=kafka_libs, directory=tmp_path / "kafka")
    election.settings.update(
        neli_kafka=cluster.bootstrap_servers,
        neli_scheduler="celery.beat:PersistentScheduler",
        beat_max_loop_interval=1,
    )
    try:
        cluster.start()
        beat = election.beat(name="beat")
        election.wait_leader()
        wait_until(lambda: len(runs(election)) > 10, timeout=30, what="runs")
        frozen = []
        for _ in range(3):
            began = time.time()
            cluster.node(1).freeze()
            time.sleep(2.0)
            cluster.node(1).thaw()
            frozen.append((began, time.time()))
            time.sleep(4.0)
        wait_until(
            lambda: [run for run in runs(election, limit=5) if run.when > frozen[-1][1] + 2], timeout=20, what="runs"
        )
        found = sorted(runs(election, limit=1000), key=lambda run: run.when)
        late = [run.late or 0.0 for run in found if any(begin < run.when < end for begin, end in frozen)]
        gaps = [after.when - before.when for before, after in pairwise(found[10:])]
        print(
            f"\nfrozen for 3 × 2 s: {len(late)} slots, the latest {max(late):.3f} s late, longest gap {max(gaps):.3f} s"
        )
        assert len(late) > 20
        assert max(late) < 0.25
        assert max(gaps) < 0.45
        assert len(beat.terms("acquired")) == 1
        cluster.node(1).kill()
        time.sleep(8.0)
        cluster.start()
        again = time.time()
        wait_until(lambda: [run for run in runs(election, limit=5) if run.when > again], timeout=60, what="history")
        assert "Traceback" not in beat.log
    finally:
        election.stop()
        cluster.stop()
