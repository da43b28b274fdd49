"""The wrapped schedulers under test, each with one entry that is due at once and then not for half an hour."""

from __future__ import annotations

import contextlib
import json
import queue
import shelve
import threading
import time
import uuid
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from celery import Celery, beat
from celery.schedules import schedule

from celery_neli.beat.scheduler import Scheduler
from tests.unit.fakes import FakeLeadership, FakeTopic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

HALF_AN_HOUR = 1800.0


def an_hour_ago() -> datetime:
    return datetime.now(timezone.utc) - timedelta(hours=1)


def eventually(condition: Callable[[], Any], *, what: str, timeout: float = 5.0) -> Any:
    """Wait for `condition` and return its value."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {timeout} s"
        time.sleep(0.005)
    return value


def make_app(**conf: Any) -> Celery:
    """An app on a broker in memory, with a queue of its own."""
    app = Celery("test", broker="memory://", set_as_current=False, changes={})
    conf.setdefault("neli_scheduler", "celery.beat.Scheduler")
    app.conf.update({"task_default_queue": f"q-{uuid.uuid4().hex}", "result_expires": None, **conf})
    return app


class Beat:
    """A scheduler, ticking on a thread of its own as `celery beat` does, and what it sent."""

    def __init__(
        self,
        app: Celery,
        *,
        leadership: FakeLeadership | None = None,
        topic: FakeTopic | None = None,
        **options: Any,
    ) -> None:
        self.app = app
        self.leadership = leadership or FakeLeadership()
        self.topic = topic or FakeTopic()
        options.setdefault("max_interval", 0.02)
        scheduler: Any = type("Scheduler", (Scheduler,), {"topic_factory": staticmethod(lambda *_: self.topic)})
        self.scheduler = scheduler(app=app, leadership=self.leadership, **options)
        self.raised: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="beat", daemon=True)
        self._stopping = False
        self._messages: list[Any] = []

    def _run(self) -> None:
        try:
            while not self._stopping:
                self.scheduler.tick()
        except BaseException as exc:  # noqa: BLE001 - what celery beat would end with
            self.raised = exc
        finally:
            self.scheduler.close()
            with contextlib.suppress(Exception):
                from django.db import connections

                connections.close_all()

    def start(self) -> Beat:
        self._thread.start()
        return self

    def ended(self) -> bool:
        return not self._thread.is_alive()

    def stop(self) -> None:
        self._stopping = True
        if self._thread.ident is not None:
            self.scheduler.close()
            self._thread.join(10)
            assert not self._thread.is_alive()

    def __enter__(self) -> Beat:
        return self.start()

    def __exit__(self, *args: object) -> None:
        self.stop()

    def sent(self) -> list[Any]:
        """Headers of all messages that reached the broker, oldest first."""
        with self.app.connection_for_read() as connection:
            simple = connection.SimpleQueue(self.app.conf.task_default_queue)
            with contextlib.suppress(queue.Empty):
                while True:
                    message = simple.get_nowait()
                    message.ack()
                    self._messages.append(message.headers)
            simple.close()
        return list(self._messages)

    def sends(self, count: int) -> list[Any]:
        """Wait until `count` messages are out."""
        return eventually(lambda: len(self.sent()) >= count and self.sent(), what=f"{count} messages")

    def turns(self, count: int = 3) -> None:
        """Wait until the owner's loop came round `count` times more."""
        goal = self.leadership.turns + count
        eventually(lambda: self.leadership.turns >= goal, what=f"{count} turns")


class Kind:
    """One wrapped scheduler: its settings, and what its store says was run."""

    name = "celery.beat.Scheduler"
    #: Whether another process could read what ran.
    stored = False

    def __init__(self, directory: Path, redis_url: str | None = None) -> None:
        self.directory = directory
        self.redis_url = redis_url
        self.leadership = FakeLeadership()
        # Entries without a store count as run an hour ago.
        self.leadership.predecessor_active = an_hour_ago()

    def conf(self) -> dict[str, Any]:
        return {"beat_schedule": {"entry": {"task": "t", "schedule": HALF_AN_HOUR}}}

    def prepare(self, app: Celery) -> None:
        """Fill the store."""

    def runs(self) -> int:
        """Runs that the store knows of."""
        return 0

    def beat(self, **conf: Any) -> Beat:
        app = make_app(**{"neli_scheduler": self.name, **self.conf(), **conf})
        self.prepare(app)
        return Beat(app, leadership=self.leadership, schedule_filename=str(self.directory / "schedule"))


class Persistent(Kind):
    name = "celery.beat.PersistentScheduler"
    stored = True

    def prepare(self, app: Celery) -> None:
        entry = beat.ScheduleEntry("entry", "t", an_hour_ago(), 0, schedule(HALF_AN_HOUR, app=app), app=app)
        with shelve.open(str(self.directory / "schedule")) as shelf:  # noqa: S301 - our own file
            shelf.update(entries={"entry": entry}, __version__="1", tz=None, utc_enabled=True)

    def runs(self) -> int:
        with shelve.open(str(self.directory / "schedule"), flag="r") as shelf:  # noqa: S301
            return int(shelf["entries"]["entry"].total_run_count)


class Database(Kind):
    name = "django_celery_beat.schedulers.DatabaseScheduler"
    stored = True

    def conf(self) -> dict[str, Any]:
        return {"beat_schedule": {}}

    def prepare(self, app: Celery) -> None:
        from django_celery_beat.models import IntervalSchedule, PeriodicTask

        PeriodicTask.objects.all().delete()
        interval, _ = IntervalSchedule.objects.get_or_create(every=30, period=IntervalSchedule.MINUTES)
        PeriodicTask.objects.create(name="entry", task="t", interval=interval, last_run_at=an_hour_ago())

    def runs(self) -> int:
        from django_celery_beat.models import PeriodicTask

        return int(PeriodicTask.objects.get(name="entry").total_run_count)


class RedBeat(Kind):
    name = "redbeat.RedBeatScheduler"
    stored = True

    def conf(self) -> dict[str, Any]:
        return {**super().conf(), "redbeat_redis_url": self.redis_url, "redbeat_redis_options": {}}

    def prepare(self, app: Celery) -> None:
        from redbeat import RedBeatSchedulerEntry

        RedBeatSchedulerEntry("entry", "t", schedule(HALF_AN_HOUR, app=app), last_run_at=an_hour_ago(), app=app).save()

    def runs(self) -> int:
        import redis

        assert self.redis_url is not None
        with redis.Redis.from_url(self.redis_url) as client:
            meta = client.hget("redbeat:entry", "meta")
        return int(json.loads(meta).get("total_run_count") or 0) if meta else 0


@contextlib.contextmanager
def in_mid_dispatch(app: Celery, then: Callable[[], Any]) -> Iterator[list[str]]:
    """Run `then` on the ticking thread between the advance of an entry and its message; yields the tasks seen."""
    from celery.signals import before_task_publish

    seen: list[str] = []

    def receiver(sender: str, headers: dict[str, Any], **kwargs: Any) -> None:
        seen.append(sender)
        then()

    before_task_publish.connect(receiver, weak=False, dispatch_uid=id(seen))
    try:
        yield seen
    finally:
        before_task_publish.disconnect(dispatch_uid=id(seen))
