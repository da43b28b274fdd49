"""Kafka is not there yet, or the task broker goes away: no process ends, and all go on by themselves when it comes."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import redis

from celery_neli.election.lease import boottime
from tests import services
from tests.kafka.cluster import KafkaCluster
from tests.processes import free_ports, start_process, stop_process, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.smoke.members import Members

pytestmark = [pytest.mark.smoke, pytest.mark.slow]


def test_kafka_unreachable_at_the_start(election: Members, kafka_libs: Path, tmp_path: Path) -> None:
    """A beat stays up as a standby and says so once; it leads when Kafka comes."""
    cluster = KafkaCluster(nodes=1, java=services.java() or "", libs=kafka_libs, directory=tmp_path / "kafka")
    election.settings["neli_kafka"] = cluster.bootstrap_servers
    beat = election.beat()
    wait_until(lambda: "kafka unreachable" in beat.log, timeout=30, what="a word about Kafka")
    began, lines = boottime(), len(beat.log.splitlines())
    wait_until(lambda: boottime() - began > 8, timeout=20, what="some time")
    assert beat.alive
    assert beat.log.count("kafka unreachable") == 1
    assert len(beat.log.splitlines()) <= lines + 2
    try:
        cluster.start()
        ready = boottime()
        _, acquired = election.wait_acquired(0)
        print(f"\nKafka came: led {acquired.at - ready:.2f} s after it answered")
        assert "Traceback" not in beat.log
    finally:
        election.stop()
        cluster.stop()


@contextmanager
def redis_at(port: int, directory: Path) -> Iterator[None]:
    """A Redis of the test's own."""
    server = services.require("redis-server", services.redis_server())
    command = f"{server} --bind 127.0.0.1 --port {port} --appendonly no --dir {directory}".split()
    with (directory / "redis.log").open("ab") as log:
        process = start_process([*command, "--save", ""], stdout=log, stderr=log)

    def answers() -> bool:
        with redis.Redis(port=port) as client:
            try:
                return bool(client.ping())
            except redis.ConnectionError:
                return False

    try:
        wait_until(answers, timeout=20, what="Redis")
        yield
    finally:
        stop_process(process, force=True)


def test_a_dead_task_broker_does_not_keep_a_leader_in_office(on_node: Members, tmp_path: Path) -> None:
    """Without progress for `neli_stall_timeout` the leader logs its stack and resigns; later, tasks go on."""
    (port,) = free_ports(1)
    on_node.settings.update(broker_url=f"redis://127.0.0.1:{port}/0", neli_stall_timeout=5)
    with redis_at(port, tmp_path):
        for _ in range(2):
            on_node.beat()
        leader = on_node.wait_leader()
        with redis.Redis(port=port) as client:
            wait_until(lambda: client.llen("celery") > 3, timeout=30, what="tasks")
    at = boottime()
    _, acquired = on_node.wait_acquired(at, but=leader)
    print(f"\ntask broker dead: the next one leads after {acquired.at - at:.1f} s (stall timeout 5)")
    assert 4 < acquired.at - at < 25
    wait_until(lambda: "no progress for 5 s" in leader.log, timeout=10, what="the reason in the log")
    assert "in _ensure_connected" in leader.log
    assert leader.terms("revoked") or leader.terms("fenced")
    assert len(on_node.alive) == 2
    with redis_at(port, tmp_path):
        back = boottime()
        with redis.Redis(port=port) as client:
            wait_until(lambda: client.llen("celery") > 10, timeout=60, what="tasks again")
            sent = [json.loads(each)["headers"]["neli_beat_term"] for each in client.lrange("celery", 0, -1)]
        print(f"  tasks again {boottime() - back:.1f} s after its return, terms {sorted(set(sent))}")
        assert min(sent) > leader.terms("acquired")[0]
    assert len(on_node.alive) == 2
    on_node.assert_one_at_most()
