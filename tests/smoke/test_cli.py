"""`celery neli status` and `celery neli resign` with real beats."""

from __future__ import annotations

import json
import signal
import time
from typing import TYPE_CHECKING

import pytest
from confluent_kafka.admin import AdminClient

from tests.processes import free_ports, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.smoke.members import Members

pytestmark = [pytest.mark.smoke, pytest.mark.slow]


def test_status_tells_who_leads(on_node: Members, in_group: Callable[[str], set[str]]) -> None:
    """Leader, term, since when, members; exit status 1 without a leader. Target: under 2 s, Python's start included."""
    leaderless = on_node.run("neli", "status", "--json")
    assert leaderless.returncode == 1
    assert json.loads(leaderless.stdout)["led"] is False

    for _ in range(3):
        on_node.beat()
    on_node.wait_joined(in_group)
    leader = on_node.wait_leader()
    began = time.monotonic()
    as_json = on_node.run("neli", "status", "--json")
    took = time.monotonic() - began
    began = time.monotonic()
    in_words = on_node.run("neli", "status", "--election", "beat")
    took_too = time.monotonic() - began
    print(f"\nstatus took {took:.2f} s with --json, {took_too:.2f} s in words (target 2):\n{in_words.stdout}")
    assert as_json.returncode == in_words.returncode == 0, as_json.stderr + in_words.stderr
    assert took < 8
    (election,) = json.loads(as_json.stdout)["elections"]
    (role,) = election["roles"]
    assert election["election"] == "beat"
    assert (role["leader"], role["term"]) == (leader.name, leader.terms("acquired")[0])
    assert 0 < time.time() - role["since"] < 120
    assert 0 <= role["heartbeat_age"] < 4
    assert {each["name"] for each in election["members"]} == {"beat1", "beat2", "beat3"}
    assert leader.name in in_words.stdout

    for each in on_node.all:
        each.signal(signal.SIGTERM)
    for each in on_node.all:
        assert each.wait_end() == 0
    after = on_node.run("neli", "status")
    assert after.returncode == 1
    assert "NO LEADER" in after.stdout


def test_resign_hands_over(on_node: Members, in_group: Callable[[str], set[str]]) -> None:
    """To any member, or to the one that is named. No process ends, and a member that resigned can lead again."""
    for _ in range(3):
        on_node.beat()
    on_node.wait_joined(in_group)
    first = on_node.wait_leader()
    done = on_node.run("neli", "resign")
    assert done.returncode == 0, done.stdout + done.stderr
    second = on_node.wait_leader(but=first)
    third = next(each for each in on_node.all if each not in (first, second))
    # Each stands back from claiming for a lease after it resigned; the one named below has to be ready.
    for name in (third.name, first.name, second.name):
        done = on_node.run("neli", "resign", "--to", name)
        assert done.returncode == 0, done.stdout + done.stderr
        assert wait_until(
            lambda name=name: next((each for each in on_node.all if each.holds()), None), timeout=20, what="a leader"
        ).name == name  # fmt: skip
        print(done.stdout.strip())
    refused = on_node.run("neli", "resign", "--to", "stranger")
    assert refused.returncode == 1
    assert "stranger" in refused.stderr
    assert len(on_node.alive) == 3
    on_node.assert_one_at_most()


def test_an_ordinary_beat_starts_only_where_no_elected_one_runs(on_node: Members, tmp_path: Path) -> None:
    """Beside elected beats each task would be sent twice; a worker's embedded beat (-B) counts alike. Where the elected
    ones have ended it starts, with one warning that it takes part in no election.
    """
    elected = on_node.beat()
    on_node.wait_leader()
    ordinary = ("beat", "-l", "INFO", "-s", str(tmp_path / "schedule"))
    beside = on_node.celery(*ordinary, name="beside", election="beat")
    embedded = on_node.celery(
        "worker", "-B", "-c", "1", "-s", str(tmp_path / "other"), name="embedded", election="worker"
    )
    for process in (beside, embedded):
        assert process.wait_end() == 1
        assert "--scheduler celery_neli.Scheduler" in process.log
        assert "Traceback" not in process.log
        assert "Sending due task" not in process.log
    misspelt = on_node.celery("beat", "-S", "celery_neli.Schedular", name="misspelt", election="beat")
    assert misspelt.wait_end() == 1
    assert len(misspelt.log.splitlines()) == 1
    elected.signal(signal.SIGTERM)
    elected.wait_end()
    alone = on_node.celery(*ordinary, name="alone", election="beat")
    wait_until(lambda: "Sending due task" in alone.log, timeout=30, what="a task of the ordinary beat")
    (warning,) = [line for line in alone.log.splitlines() if "WARNING" in line]
    assert "takes part in no election" in warning


def test_embedded_kafka_has_a_partition_for_each_role(election: Members) -> None:
    """Members cannot add partitions to it. The first member creates the topic of a single role: `celery neli status`
    takes an existing topic as a sign that some member should lead.
    """
    (port,) = free_ports(1)
    election.settings["neli_roles"] = list("abcdef")
    kafka = election.celery("neli", "kafka", "--port", str(port), name="kafka", election="worker")
    wait_until(lambda: "embedded Kafka on" in kafka.log, timeout=30, what="the embedded Kafka")
    topics = AdminClient({"bootstrap.servers": f"127.0.0.1:{port}"}).list_topics(timeout=10).topics
    assert {name.removeprefix(election.group): len(topic.partitions) for name, topic in topics.items()} == {
        ".worker.neli": 6,
        ".beat.neli.history": 4,
        ".beat.neli.schedule": 17,
    }
