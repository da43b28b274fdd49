"""The schedulers that are compared, each with a number of entries, which can be made due at will."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from datetime import timedelta
from itertools import islice
from typing import Any

import celery.beat

from benchmarks.brokers import Broker, schedule_of
from benchmarks.leaders import LedScheduler, SteadyLeadership
from celery_neli.beat.replicated.standalone import ReplicatedScheduler
from celery_neli.beat.scheduler import Scheduler
from celery_neli.embedded import EmbeddedKafka

AGO = timedelta(days=1, seconds=5)
#: Message headers that beat's own messages have (Celery 5.7).
HEADERS = {"celery_beat_task": True}


class Contender(ABC):
    """`count` entries on `broker`, none of them due. Call `build` first, and `close` at the end."""

    def __init__(self, broker: Broker, count: int) -> None:
        self.broker, self.count = broker, count
        self.app = broker.app(schedule_of(count), **self.settings())

    def settings(self) -> dict[str, Any]:
        return {}

    @abstractmethod
    def build(self) -> None:
        """From the configuration to the end of the first tick."""

    @abstractmethod
    def overdue(self, due: int) -> None:
        """Make so many entries due."""

    @abstractmethod
    def tick(self) -> float:
        """One turn; seconds until the next one is wanted."""

    def send(self, due: int) -> None:
        """Let what is due leave, until the broker has it."""
        turns = 0
        while True:
            wait = self.tick()
            turns += 1
            if (turns >= due or wait > 0) and self.broker.waiting() >= due:
                return

    @abstractmethod
    def close(self) -> None:
        """Drop connections."""


class SendTask(Contender):
    """No scheduler: `send_task` in a loop, with one producer. What a scheduler cannot beat on one connection."""

    def build(self) -> None:
        self._connection = self.app.connection_for_write()
        self._producer = self.app.amqp.Producer(self._connection, auto_declare=False)

    def overdue(self, due: int) -> None: ...

    def tick(self) -> float:
        self.app.send_task("bench.task", (), {}, producer=self._producer, headers=HEADERS)
        return 0.0

    def send(self, due: int) -> None:
        for _ in range(due):
            self.tick()
        while self.broker.waiting() < due:
            pass

    def close(self) -> None:
        self._connection.release()


class Celerys(Contender):
    """Celery's own."""

    cls: type[Any] = celery.beat.Scheduler

    def build(self) -> None:
        self.scheduler: Any = self.cls(self.app)
        self.scheduler.tick()

    @property
    def inner(self) -> Any:
        return self.scheduler

    def overdue(self, due: int) -> None:
        for entry in islice(self.inner.schedule.values(), due):
            entry.last_run_at -= AGO
        self.inner.populate_heap()

    def tick(self) -> float:
        return float(self.inner.tick())

    def close(self) -> None:
        self.inner.close()
        self.inner.connection.release()


class Neli(Celerys):
    """Ours, bare: without a leader and without Kafka. It sends on one connection."""

    cls = ReplicatedScheduler

    def settings(self) -> dict[str, Any]:
        return {"neli_enabled": False}  # where there is an election, it refuses to run by itself


class NeliLed(Celerys):
    """Ours as `celery beat` runs it, under a leader that is never lost, without Kafka; on one connection."""

    inner_name = "celery_neli.ReplicatedScheduler"
    parallel = 1

    def settings(self) -> dict[str, Any]:
        return {"neli_scheduler": self.inner_name, "neli_publish_parallel": self.parallel}

    def build(self) -> None:
        self.scheduler = self.make()
        while not self.scheduler._serving:
            self.scheduler.tick()
        self.scheduler.tick()

    def make(self) -> Any:
        return LedScheduler(self.app, leadership=SteadyLeadership(), max_interval=0.001)

    @property
    def inner(self) -> Any:
        return self.scheduler._serving[0]

    def send(self, due: int) -> None:
        """By the outer scheduler's turns, each of which sends many, waits by itself when nothing is due, and always
        returns 0.
        """
        heap = self.inner._heap
        while heap and heap[0].time <= time.time():
            self.scheduler.tick()
            heap = self.inner._heap
        while self.broker.waiting() < due:
            self.scheduler.tick()

    def close(self) -> None:
        self.scheduler.close()


class NeliParallel(NeliLed):
    """The same on four connections."""

    parallel = 4


class NeliKafka(NeliParallel):
    """Ours as it comes: with a real election, and its state in Kafka (the embedded one)."""

    def settings(self) -> dict[str, Any]:
        self._kafka = EmbeddedKafka().start()
        told = {"neli_kafka": self._kafka.bootstrap_servers, "neli_group": f"bench-{uuid.uuid4()}"}
        return {**super().settings(), **told}

    def make(self) -> Any:
        return Scheduler(self.app, max_interval=0.001)

    def close(self) -> None:
        super().close()
        self._kafka.close()


class CelerysLed(NeliLed):
    """Celery's own under the same leader."""

    inner_name = "celery.beat.Scheduler"


class RedBeat(Contender):
    """RedBeat, its schedule in Redis; without its lock."""

    def settings(self) -> dict[str, Any]:
        assert self.broker.redis is not None
        prefix = f"redbeat:{uuid.uuid4()}:"
        return {"redbeat_redis_url": self.broker.redis, "redbeat_redis_options": {}, "redbeat_key_prefix": prefix}

    def build(self) -> None:
        from redbeat import RedBeatScheduler

        self.scheduler = RedBeatScheduler(self.app)
        self.scheduler.lock_key = None
        self.scheduler.tick()

    def overdue(self, due: int) -> None:
        from redbeat.schedulers import get_redis

        for key in get_redis(self.app).zrange(self.app.redbeat_conf.schedule_key, 0, due - 1):
            entry = self.scheduler.Entry.from_key(key, app=self.app)
            entry.reschedule(entry.last_run_at - AGO)

    def tick(self) -> float:
        return float(self.scheduler.tick())

    def send(self, due: int) -> None:
        """One turn sends all."""
        self.tick()
        while self.broker.waiting() < due:
            pass

    def close(self) -> None:
        self.scheduler.connection.release()


CONTENDERS: dict[str, type[Contender]] = {
    "send_task": SendTask,
    "celery": Celerys,
    "celery led": CelerysLed,
    "redbeat": RedBeat,
    "neli": Neli,
    "neli led": NeliLed,
    "neli parallel": NeliParallel,
    "neli kafka": NeliKafka,
}
