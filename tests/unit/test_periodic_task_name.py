"""The header by which django-celery-results shows the entry of a result: on what each of our beats sends."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, ClassVar

import pytest
from celery import Celery
from celery.app.trace import build_tracer
from celery.concurrency.solo import TaskPool
from celery.worker.request import Request

from celery_neli.beat.publish import leased_producer
from celery_neli.beat.replicated.standalone import ReplicatedScheduler
from tests.unit.leases import make_app, own_world
from tests.unit.test_templates import NOON, app_on_a_wire, messages


def due(app: Celery, **options: Any) -> ReplicatedScheduler:
    """The scheduler by itself, with two entries that are due."""
    entry: dict[str, Any] = {
        "task": "plain",
        "schedule": timedelta(minutes=1),
        "last_run_at": NOON - timedelta(hours=1),
    }
    entry["options"] = options
    app.conf.update(beat_schedule={"one": entry, "two": entry}, result_expires=None)
    return ReplicatedScheduler(app)


def test_the_scheduler_by_itself_sends_it() -> None:
    """By a template or not: each message has the name of its own entry."""
    app, out = app_on_a_wire()
    scheduler = due(app)
    for _ in range(2):
        scheduler.tick()
        scheduler.tick()
        for entry in scheduler.schedule.values():
            entry.last_run_at -= timedelta(hours=1)
        scheduler.populate_heap()
    names = [each[0]["headers"]["periodic_task_name"] for each in messages(out)]
    assert sorted(names) == ["one", "one", "two", "two"]
    assert "neli_beat_entry" not in messages(out)[0][0]["headers"]


def test_an_entrys_own_header_stays() -> None:
    """As django-celery-beat's scheduler sets it."""
    app, out = app_on_a_wire()
    scheduler = due(app, headers={"periodic_task_name": "its own"})
    scheduler.tick()
    assert messages(out)[0][0]["headers"]["periodic_task_name"] == "its own"


class Tenure:
    """A lease that lasts, while an entry is sent."""

    headers: ClassVar = {
        "neli_beat_term": 7,
        "neli_beat_entry": "nightly",
        "neli_beat_slot": "2026-12-01T07:00:00+00:00",
    }

    def ask_finish(self) -> None: ...

    def message_left(self) -> None: ...


@pytest.mark.parametrize(("own", "name"), [({}, "nightly"), ({"periodic_task_name": "mine"}, "mine")])
def test_a_leader_sends_it(own: dict[str, str], name: str) -> None:
    """Beside its own headers, which nothing replaces."""
    app, out = app_on_a_wire()
    with app.connection_for_write() as connection:
        producer = leased_producer(app.amqp.Producer, Tenure())(connection)  # type: ignore[arg-type]
        app.send_task("plain", producer=producer, headers={**own, "neli_beat_entry": "forged"})
    headers = messages(out)[0][0]["headers"]
    assert (headers["periodic_task_name"], headers["neli_beat_entry"]) == (name, "nightly")


@pytest.mark.usefixtures("django_tables")
def test_django_celery_results_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the real backend: a message of a beat, run by Celery's tracer."""
    from django_celery_results.models import TaskResult

    app = make_app(result_backend="django-db", result_extended=True)
    own_world(monkeypatch, app)

    @app.task(name="plain", shared=False)
    def plain() -> int:
        return 5

    task = app.tasks["plain"]
    with app.connection_for_write() as connection:
        connection.default_channel.queues.clear()
        producer = leased_producer(app.amqp.Producer, Tenure())(connection)  # type: ignore[arg-type]
        sent = task.apply_async(producer=producer)
        message = connection.default_channel.basic_get("celery", no_ack=True)
    task.__trace__ = build_tracer("plain", task, app=app)
    request = Request(
        message, app=app, task=task, hostname="w@h", on_ack=lambda *_: None, on_reject=lambda *_: None,
        connection_errors=(), eventer=None,
    )  # fmt: skip
    pool = TaskPool(app=app)
    pool.on_start()
    request.execute_using_pool(pool)
    found = TaskResult.objects.get(task_id=sent.id)
    assert (found.periodic_task_name, found.status, found.result) == ("nightly", "SUCCESS", "5")
