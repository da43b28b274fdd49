"""Workers with celery-neli installed, under each of Celery's pools: join, lead, work, hand over."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
import redis
from confluent_kafka import Consumer, TopicPartition

from tests.processes import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.smoke.members import Members, Process

pytestmark = [pytest.mark.smoke, pytest.mark.slow]
POOLS = ("prefork", "threads", "solo", "gevent")
BY_HAND, BY_SETTINGS = "install", "imports"


def worker(members: Members, pool: str, name: str, *arguments: str, how: str = BY_HAND, **settings: Any) -> Process:
    """Start a worker with two slots."""
    environment = {"SMOKE_INSTALL": "1"} if how == BY_HAND else {}
    if how == BY_SETTINGS:
        settings["imports"] = ["celery_neli.auto"]
    return members.celery(
        "worker", "-P", pool, "-c", "2", "-n", f"{name}@%h", "-l", "INFO", *arguments,
        name=name, election="worker", environment=environment, **settings,
    )  # fmt: skip


def run_task(members: Members, path: Path) -> None:
    """Send a task that leaves a trace, and wait for it."""
    sent = members.run("call", "smoke.write", "--args", json.dumps([str(path)]))
    assert sent.returncode == 0, sent.stderr
    wait_until(path.exists, timeout=30, what="the task's trace")


def releases(members: Members, election: str = "worker") -> list[str]:
    """The names of those who wrote a release, in order."""
    reader = Consumer({"bootstrap.servers": members.settings["neli_kafka"], "group.id": "reader"})
    topic = f"{members.group}.{election}.neli"
    try:
        _, high = reader.get_watermark_offsets(TopicPartition(topic, 0), timeout=10)
        reader.assign([TopicPartition(topic, 0, 0)])
        records: list[dict[str, Any]] = []

        def whole() -> bool:
            records.extend(json.loads(each.value()) for each in reader.consume(500, 0.2))
            return len(records) >= high

        wait_until(whole, timeout=20, what=f"{high} records")
    finally:
        reader.close()
    return [each["member"].rpartition("/")[0] for each in records if each["kind"] == "release"]


@pytest.mark.parametrize(
    ("pool", "how"), [("prefork", BY_SETTINGS), ("threads", BY_HAND), ("solo", BY_SETTINGS), ("gevent", BY_HAND)]
)
def test_a_worker_leads_works_and_hands_over(pool: str, how: str, on_node: Members, tmp_path: Path) -> None:
    """One of two leads; on SIGTERM it releases, so the other leads at once and not after a lease."""
    if pool == "gevent":
        pytest.importorskip("gevent")
    for name in ("one", "two"):
        worker(on_node, pool, name, how=how)
    leader = on_node.wait_leader()
    for each in on_node.all:
        wait_until(lambda each=each: f"{each.name}@" in each.log and " ready." in each.log, timeout=30, what="a worker")
    run_task(on_node, tmp_path / "trace")
    at = leader.signal(signal.SIGTERM)
    _, acquired = on_node.wait_acquired(at, but=leader)
    assert leader.wait_end() == 0
    assert releases(on_node) == [leader.name]
    of_it = acquired.at - leader.held()[-1].end
    print(f"\n{pool}, {how}: handover {acquired.at - at:.3f} s after SIGTERM, {of_it:.3f} s after the lease's end")
    assert acquired.at - at < 3.5
    run_task(on_node, tmp_path / "trace2")
    (other,) = on_node.alive
    assert other.holds()
    other.signal(signal.SIGTERM)
    assert other.wait_end() == 0
    assert "Traceback" not in leader.log + other.log
    on_node.assert_one_at_most()


def test_eventlet_is_refused(on_node: Members, tmp_path: Path) -> None:
    """A clear error in place of a worker that freezes; eventlet itself need not be installed to see it."""
    package = tmp_path / "fake" / "eventlet"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("def monkey_patch(): pass\n")
    (package / "debug.py").write_text("")
    (package / "greenthread.py").write_text("getcurrent = spawn_n = spawn_after = None\n")
    (package / "greenpool.py").write_text("class GreenPool:\n    def __init__(self, size): pass\n")
    path = os.pathsep.join([str(package.parent), on_node.environment()["PYTHONPATH"]])
    refused = on_node.celery(
        "worker", "-P", "eventlet",
        name="one", election="worker", environment={"SMOKE_INSTALL": "1", "PYTHONPATH": path},
    )  # fmt: skip
    assert refused.wait_end() != 0
    assert "celery-neli runs with prefork, threads, solo and gevent" in refused.log


def test_switched_off_a_worker_and_a_beat_are_ordinary(on_node: Members, tmp_path: Path, redis_url: str) -> None:
    """Without a broker to be found, and without a word about one."""
    off: dict[str, Any] = {"neli_enabled": False, "neli_kafka": "127.0.0.1:1"}
    one = worker(on_node, "solo", "one", **off)
    beat = on_node.beat(**off, beat_schedule={})
    run_task(on_node, tmp_path / "trace")
    wait_until(lambda: "beat: Starting..." in beat.log, timeout=30, what="beat")
    for each in (one, beat):
        each.signal(signal.SIGTERM)
        assert each.wait_end() == 0
        assert "kafka" not in each.log.lower().replace(str(tmp_path), "")


@pytest.mark.parametrize("command", ["worker", "beat"])
def test_a_misspelt_setting_ends_the_start(command: str, on_node: Members) -> None:
    """With the right name in the last words, and a status that a supervisor sees."""
    wrong: dict[str, Any] = {"neli_hartbeat_timeout": 5}
    refused = worker(on_node, "solo", "one", **wrong) if command == "worker" else on_node.beat(name="one", **wrong)
    assert refused.wait_end() != 0
    assert "neli_hartbeat_timeout is not a setting of celery-neli; did you mean neli_heartbeat_timeout?" in refused.log


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_beat_embedded_in_a_worker_leads(pool: str, on_node: Members, redis_url: str) -> None:
    """`-B` forks a beat; the election is the fork's. Beat and worker lead each their own."""
    one = worker(on_node, pool, "one", "-B", "--scheduler", "celery_neli.Scheduler")
    one.election = "beat"
    on_node.wait_leader()
    one.election = "worker"
    on_node.wait_leader()
    wait_until(lambda: "smoke.tick" in one.log and "succeeded" in one.log, timeout=30, what="a task of beat's")
    one.signal(signal.SIGTERM)
    wait_until(lambda: releases(on_node) == ["one"], timeout=15, what="the worker's release, before its pool ends")
    assert one.wait_end() == 0
    assert releases(on_node, "beat") == releases(on_node) == ["one"]
    assert "Traceback" not in one.log
    with redis.Redis.from_url(redis_url) as client:
        assert client.ping()
