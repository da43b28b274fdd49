"""Publishers on real brokers: every job arrives once; a broker that goes away costs the jobs in flight only."""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
import redis
from amqp.exceptions import MessageNacked
from celery import Celery
from celery.beat import ScheduleEntry
from celery.beat import Scheduler as CelerysScheduler
from kombu import Exchange, Queue
from kombu.messaging import Producer

from celery_neli.beat.publish import drop_connection
from celery_neli.beat.replicated.publishers import Publishers, batch_of
from celery_neli.beat.replicated.standalone import ReplicatedScheduler
from celery_neli.beat.replicated.templates import Templates
from celery_neli.beat.tenure import LeaseEnded

if TYPE_CHECKING:
    from tests.brokers.redis_server import RedisServer

QUEUE = "q"
LONG = 30.0


class Side:
    """Entries published side by side on the broker at ``url``, by id."""

    def __init__(self, url: str, *, count: int = 4) -> None:
        self.app = Celery("test", broker=url, set_as_current=False, changes={})
        self.app.conf.update(
            task_default_queue=QUEUE,
            result_expires=None,
            task_publish_retry=False,
            broker_transport_options={"confirm_publish": True} if url.startswith("amqp") else {"socket_timeout": 2},
        )
        self.scheduler = ReplicatedScheduler(app=self.app, lazy=True)
        self.fast = Templates(self.app)
        self.publishers: Publishers[ScheduleEntry] = Publishers(
            count=count, connect=self.connect, send=self.send, batch=20
        )

    def ask(self) -> None:
        """Asked before what waits in this process leaves."""

    def connect(self) -> Any:
        connection = self.app.connection_for_write(connect_timeout=2)
        try:
            connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0)
            producer = self.app.amqp.Producer(connection, auto_declare=False)
            producer.batch_of_it = batch_of(producer)
        except BaseException:
            drop_connection(connection)
            raise
        return producer

    def send(self, entries: list[ScheduleEntry], producer: Any) -> list[Any]:
        batch = producer.batch_of_it
        batch.begin()
        marks, ids = [batch.mark], []
        for entry in entries:
            ids.append(self.send_one(entry, producer))
            marks.append(batch.mark)
        batch.settle(self.ask)
        return [batch.failure(marks[n], marks[n + 1]) or each for n, each in enumerate(ids)]

    def send_one(self, entry: ScheduleEntry, producer: Any) -> str:
        kind = self.fast.key(self.scheduler, entry, producer)
        assert kind is not None
        template = self.fast.get(kind)
        if template is not None:
            return str(self.fast.send(template, entry, producer).id)
        with self.fast.recording(kind, producer) as recorder:
            return str(CelerysScheduler.apply_async(self.scheduler, entry, producer=recorder, advance=False).id)

    def entry(self, task_id: str) -> ScheduleEntry:
        return ScheduleEntry(
            name=task_id, task="t", schedule=timedelta(seconds=60), last_run_at=datetime.now(timezone.utc),
            app=self.app, args=(task_id,), options={"task_id": task_id},
        )  # fmt: skip

    def publish(self, ids: list[str]) -> dict[str, Any]:
        """What became of each."""
        outcomes: dict[str, Any] = {}
        waiting = list(reversed(ids))
        deadline = time.monotonic() + LONG
        while len(outcomes) < len(ids):
            assert time.monotonic() < deadline, f"{len(outcomes)} of {len(ids)}"
            while waiting and self.publishers.free():
                self.publishers.submit(self.entry(waiting.pop()))
            self.publishers.wait(1.0)
            outcomes.update((entry.name, outcome) for entry, outcome in self.publishers.finished())
        return outcomes

    def arrived(self) -> list[str]:
        """The ids of the messages in the queue, which are taken out."""
        found = []
        with self.app.connection_for_read() as connection:
            queue = self.app.amqp.queues[QUEUE].bind(connection.default_channel)
            while (message := queue.get(no_ack=True)) is not None:
                found.append(message.headers["id"])
        return found


@pytest.fixture(params=["redis_url", "rabbitmq_url"])
def url(request: pytest.FixtureRequest) -> str:
    """Of an empty broker."""
    return str(request.getfixturevalue(request.param))


def test_every_message_arrives_once(url: str) -> None:
    """From four connections at a time."""
    side = Side(url)
    ids = [f"id-{n}" for n in range(500)]
    assert side.publish(ids) == {each: each for each in ids}
    assert sorted(side.arrived()) == sorted(ids)
    assert side.publishers.close(5.0) == []


def test_a_broker_that_is_away_for_a_while_is_found_again(own_redis: RedisServer) -> None:
    """Meanwhile every job comes back with what went wrong; what was reported as sent is there."""
    side = Side(own_redis.url)
    before, meanwhile, after = ([f"{when}-{n}" for n in range(40)] for when in ("before", "meanwhile", "after"))
    assert side.publish(before) == {each: each for each in before}
    own_redis.stop()
    assert all(isinstance(outcome, Exception) for outcome in side.publish(meanwhile).values())
    own_redis.start()
    assert side.publish(after) == {each: each for each in after}
    assert sorted(side.arrived()) == sorted(before + after)
    assert side.publishers.close(5.0) == []


def test_what_rabbitmq_refuses_is_told_and_nothing_else(rabbitmq_url: str) -> None:
    """A full queue that refuses: exactly what was reported as sent is there, though confirms are awaited together."""
    side = Side(rabbitmq_url, count=2)
    full = {"x-max-length": 30, "x-overflow": "reject-publish"}
    side.app.conf.task_queues = [Queue(QUEUE, Exchange(""), routing_key=QUEUE, queue_arguments=full)]
    ids = [f"id-{n}" for n in range(60)]
    outcomes = side.publish(ids)
    sent = [each for each in ids if outcomes[each] == each]
    assert 30 <= len(sent) < 60
    assert all(isinstance(outcomes[each], MessageNacked) for each in ids if each not in sent)
    assert sorted(side.arrived()) == sorted(sent)
    assert side.publishers.close(5.0) == []


def test_what_a_full_redis_refuses_is_told(own_redis: RedisServer) -> None:
    """Nothing is reported as sent that is not there; when there is room again, all is."""
    side = Side(own_redis.url)
    ids = [f"id-{n}" for n in range(60)]
    with redis.Redis.from_url(own_redis.url) as client:
        client.config_set("maxmemory", 1)
        assert all(isinstance(outcome, Exception) for outcome in side.publish(ids).values())
        client.config_set("maxmemory", 0)
    assert side.arrived() == []
    assert side.publish(ids) == {each: each for each in ids}
    assert sorted(side.arrived()) == sorted(ids)
    assert side.publishers.close(5.0) == []


@pytest.mark.skipif(not hasattr(Producer, "batch"), reason="kombu sends batches to Redis from 5.7 on")
def test_what_waits_for_a_pipeline_does_not_leave_after_the_lease(redis_url: str) -> None:
    """It is asked once more, right before the pipeline."""

    class Ended(Side):
        def ask(self) -> None:
            raise LeaseEnded("over")

    side = Ended(redis_url)
    outcomes = side.publish([f"id-{n}" for n in range(40)])
    assert {type(outcome) for outcome in outcomes.values()} == {LeaseEnded}
    assert side.arrived() == []
    assert side.publishers.close(5.0) == []


GREEN = """
from gevent import monkey
monkey.patch_all()
import sys
from tests.integration.test_publishers import Side
side = Side(sys.argv[1])
ids = [f"id-{n}" for n in range(100)]
assert side.publish(ids) == {each: each for each in ids}
assert sorted(side.arrived()) == sorted(ids)
assert side.publishers.close(5.0) == []
print("done")
"""


def test_under_gevent_they_are_greenlets(url: str) -> None:
    """That wait for sockets as all else there."""
    pytest.importorskip("gevent")
    told = subprocess.run([sys.executable, "-c", GREEN, url], capture_output=True, text=True, timeout=60, check=False)
    assert told.stdout.endswith("done\n"), told.stderr
