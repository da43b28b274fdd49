"""The runtime schedule changed by several processes at once, and through the death of processes and of brokers."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery

from celery_neli import periodic
from celery_neli.config import from_app
from celery_neli.exceptions import NeliError
from celery_neli.kafka.reader import RawRecord
from celery_neli.periodic.store import Topic
from celery_neli.schedule_topic import topic as schedule_client
from celery_neli.schedule_topic.codec import ENTRY, decode_definition, key_of
from tests.integration.periodic_user import NAME, TASK, app_of
from tests.kafka.cluster import KafkaCluster

pytestmark = pytest.mark.integration
CHANGES = 1_000


@pytest.fixture
def group(names: Callable[[str], str]) -> str:
    return names("group")


@pytest.fixture
def app(kafka: str, group: str) -> Celery:
    return app_of(kafka, group)


def user(what: str, servers: str, group: str, number: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.integration.periodic_user", what, servers, group, str(number)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def end(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        process.communicate(timeout=300)
        assert process.returncode == 0


def effective(app: Celery) -> list[Any]:
    """The definitions of the shared entry that count, in the order of the log."""
    records: list[RawRecord] = []
    log = logging.getLogger("celery_neli.periodic.api")
    schedule_client.read_all(from_app(app, "beat"), log=log, timeout=60, each=records.append)
    found: list[Any] = []
    for record in records:
        if record.key == key_of(ENTRY, NAME) and record.value is not None:
            each = decode_definition(record.value)
            if not found or each.base == found[-1].version:
                found.append(each)
    return found


@pytest.mark.slow
def test_no_change_is_lost_of_two_that_expect_what_they_read(app: Celery, kafka: str, group: str) -> None:
    """Two processes count to 1,000 each on one entry: it says 2,000, and so does the log."""
    periodic.put(app, NAME, TASK, "PT1M", args=[0])
    end(*(user("count", kafka, group, CHANGES) for _ in range(2)))
    found = periodic.get(app, NAME)
    assert found is not None
    assert found.args == (2 * CHANGES,)
    counted = [each.args[0] for each in effective(app) if each.version != each.base]
    assert counted == [*range(2 * CHANGES + 1)] or counted == [*range(1, 2 * CHANGES + 1)]


@pytest.mark.slow
def test_no_change_is_lost_of_two_that_expect_nothing(app: Celery, kafka: str, group: str) -> None:
    """One process puts 1,000 times, one pauses and resumes: the log has each change, made from the one before."""
    periodic.put(app, NAME, TASK, "PT1M", args=["put", -1], note="first")
    end(user("put", kafka, group, CHANGES), user("pause", kafka, group, CHANGES))
    notes = [each.changes[-1].note for each in effective(app)]
    wanted = {f"{what} {turn}" for what in ("put", "pause") for turn in range(CHANGES)}
    assert wanted - set(notes) == set()
    found = periodic.get(app, NAME)
    assert found is not None
    assert (found.args, found.paused) == (("put", CHANGES - 1), False)


def test_a_batch_that_is_killed_leaves_whole_entries(app: Celery, kafka: str, group: str) -> None:
    """And the same batch again writes the others only."""
    many = 60_000
    process = user("batch", kafka, group, many)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    topic, deadline = Topic(app), time.monotonic() + 60
    while len(topic.read()) < many / 20 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    left = list(periodic.list(app, prefix="e"))
    assert 0 < len(left) < many
    for each in left:
        assert (each.problem, each.args) == (None, (int(each.name[1:]),))
    versions = {each.name: each.version for each in left}
    end(user("batch", kafka, group, many))
    again = {each.name: each.version for each in periodic.list(app, prefix="e")}
    assert len(again) == many
    assert {name: again[name] for name in versions} == versions


def test_ten_thousand_puts_take_seconds(app: Celery) -> None:
    """In a batch, and so does the list of them."""
    began = time.monotonic()
    with periodic.batch(app) as batch:
        for number in range(10_000):
            batch.put(f"e{number:05}", TASK, "PT1M", args=[number])
    assert time.monotonic() - began < 10
    assert sum(1 for _ in periodic.list(app)) == 10_000


def test_threads_share_what_is_held(app: Celery) -> None:
    """No change is lost, and each sees its own."""

    def work(name: str) -> None:
        put.extend(periodic.put(app, name, TASK, "PT1M", args=[turn]).args == (turn,) for turn in range(20))

    put: list[bool] = []
    threads = [threading.Thread(target=work, args=(f"e{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert put == [True] * 160
    assert sum(1 for _ in periodic.list(app, prefix="e")) == 8


def test_greenlets_run_while_kafka_is_asked(kafka: str, group: str) -> None:
    """In a process that gevent has patched."""
    code = f"""
from gevent import monkey; monkey.patch_all()
import gevent
from celery_neli import periodic
from tests.integration.periodic_user import TASK, app_of
app, ticks = app_of({kafka!r}, {group!r}), []
def tick():
    while True:
        ticks.append(1)
        gevent.sleep(0.005)
ticking = gevent.spawn(tick)
gevent.joinall([gevent.spawn(periodic.put, app, f"e{{n}}", TASK, "PT1M") for n in range(20)], raise_error=True)
ticking.kill()
print(len(list(periodic.list(app))), len(ticks) > 20)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert (said.stdout, said.returncode) == ("20 True\n", 0), said.stderr


@pytest.mark.slow
def test_changes_go_on_when_a_broker_dies(kafka_cluster: KafkaCluster, group: str) -> None:
    """The one that leads the entry's partition is killed, and comes back. Until another one leads, which Kafka decides
    after nine seconds, a change may end with one line; then it is made, by the same process.
    """
    app = app_of(kafka_cluster.bootstrap_servers, group)
    periodic.put(app, NAME, TASK, "PT1M", args=[0])
    number = schedule_client.partition_of(ENTRY, NAME)
    for turn in range(1, 3):
        leader = kafka_cluster.leader_of(from_app(app, "beat").schedule_topic, number)
        assert leader is not None
        leader.kill()
        put, began = False, time.monotonic()
        while not put and time.monotonic() - began < 60:
            asked = time.monotonic()
            try:
                put = periodic.put(app, NAME, TASK, "PT1M", args=[turn]).args == (turn,)
            except NeliError as error:
                assert len(str(error).splitlines()) == 1  # noqa: PT017
            assert time.monotonic() - asked < 15
        assert put
        kafka_cluster.start()
    assert [each.args for each in periodic.list(app)] == [(2,)]
    found = periodic.get(app, NAME)
    assert found is not None
    assert [each.what for each in found.changes] == ["added", "changed args", "changed args"]
