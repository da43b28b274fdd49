"""What a worker tells of the tasks of entries: through Celery's own requests, in the ways in which they end."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from billiard.einfo import ExceptionInfo
from billiard.exceptions import Terminated, TimeLimitExceeded, WorkerLostError
from celery import Celery, Task
from celery.app.trace import build_tracer, reset_worker_optimizations, setup_worker_optimizations
from celery.concurrency.solo import TaskPool
from celery.exceptions import Ignore, Reject
from celery.signals import task_received
from celery.worker import state as worker_state
from celery.worker.request import Request, create_request_cls

from celery_neli import hooks
from celery_neli.hooks import RunEvent, WorkerEvent
from celery_neli.worker.run_events import RunEvents
from tests.unit.leases import make_app, own_world

WORKER = "w@h"
SLOT = datetime(2026, 12, 1, 7, tzinfo=timezone.utc)
HEADERS = {"neli_beat_entry": "nightly", "neli_beat_slot": SLOT.isoformat(), "neli_beat_term": 7}


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Iterator[Celery]:
    app = make_app()
    own_world(monkeypatch, app)
    with app.connection_for_read() as connection:
        connection.transport.state.clear()
        connection.default_channel.queues.clear()
    yield app
    worker_state.revoked.clear()


@pytest.fixture
def told(app: Celery) -> Iterator[list[RunEvent]]:
    """What is told, by a worker that has started."""
    events: list[RunEvent] = []
    hooks.run.add(events.append)
    running = RunEvents(WORKER)
    running.start(("celery",))
    yield events
    running.stop()
    hooks.run.remove(events.append)


class Pool(TaskPool):
    """Keeps what it is given until the test says what becomes of it."""

    def apply_async(self, target: Any, args: Any = (), **callbacks: Any) -> None:
        self.given = callbacks


def received(app: Celery, task: Any, pool: Any = None, **options: Any) -> Any:
    """The request of a message of the task, as Celery makes and announces it; the message was sent as a beat does."""
    options.setdefault("headers", dict(HEADERS))
    sent = task.apply_async(**options)
    with app.connection_for_read() as connection:
        message = connection.default_channel.basic_get("celery", no_ack=True)
    pool = pool or Pool(app=app)
    made = create_request_cls(
        task.Request if isinstance(task.Request, type) else Request, task, pool, WORKER, None, app=app
    )
    request = made(
        message, app=app, task=task, hostname=WORKER, on_ack=lambda *_: None, on_reject=lambda *_: None,
        connection_errors=(), eventer=None,
    )  # fmt: skip
    assert request.id == sent.id
    if request.revoked():
        return request
    task_received.send(sender=None, request=request)
    request.execute_using_pool(pool)
    return request


def begin(app: Celery, task: Any, **options: Any) -> dict[str, Any]:
    pool = Pool(app=app)
    received(app, task, pool, **options)
    pool.given["accept_callback"](os.getpid(), time.monotonic())
    return pool.given


def info(error: BaseException) -> ExceptionInfo:
    try:
        raise error
    except BaseException:  # noqa: BLE001 - whatever it is
        return ExceptionInfo()


def states(told: list[RunEvent]) -> list[str]:
    return [each.state for each in told]


@pytest.fixture
def task(app: Celery) -> Any:
    @app.task(name="t")
    def t() -> None: ...

    return app.tasks["t"]


def test_a_task_that_succeeds(app: Celery, task: Any, told: list[RunEvent]) -> None:
    """It started, and how long it took; with entry, slot, id, worker and task."""
    run = begin(app, task, task_id="x")
    run["callback"]((0, None, 1.5))
    started, succeeded = told
    assert (started.state, started.runtime) == ("started", None)
    assert (succeeded.state, succeeded.runtime, succeeded.error) == ("succeeded", 1.5, "")
    for each in told:
        assert (each.entry, each.slot, each.id, each.worker, each.task) == (
            "nightly", SLOT.timestamp(), "x", WORKER, "t",
        )  # fmt: skip


def test_a_message_of_no_entry_is_left_alone(app: Celery, task: Any, told: list[RunEvent]) -> None:
    """Nothing is told of it, and its request stays as it is."""
    request = received(app, task, headers={})
    assert not {"on_success", "on_failure", "on_accepted"} & vars(request).keys()
    assert told == []


def test_a_request_is_its_own_again_after_its_end(app: Celery, task: Any, told: list[RunEvent]) -> None:
    """Nothing keeps it but Celery."""
    pool = Pool(app=app)
    request = received(app, task, pool)
    assert "on_success" in vars(request)
    pool.given["callback"]((0, None, 1.5))
    assert not {"on_success", "on_failure", "on_accepted", "on_timeout", "reject"} & vars(request).keys()


@pytest.mark.parametrize(
    ("error", "state", "says"),
    [
        (ValueError("no \x1b[31m"), "failed", "ValueError: no \\x1b[31m"),
        (WorkerLostError("gone"), "failed", "WorkerLostError: gone"),
        (TimeLimitExceeded(3), "failed", "TimeLimitExceeded"),
        (Ignore(), "ignored", ""),
        (Reject("bad", requeue=False), "rejected", "bad"),
        (Reject("later", requeue=True), "retried", "later"),
    ],
)
def test_a_task_that_does_not_succeed(
    app: Celery, task: Any, told: list[RunEvent], error: Exception, state: str, says: str
) -> None:
    """Each end has its state, and the error in one printable line."""
    begin(app, task)["error_callback"](info(error))
    assert states(told) == ["started", state]
    assert says in told[-1].error


def test_a_failure_has_its_runtime_although_celery_measures_none(app: Celery, task: Any, told: list[RunEvent]) -> None:
    """From the time at which the pool began it. Celery hands a failure that the child reports to `on_success`."""
    pool = Pool(app=app)
    received(app, task, pool)
    pool.given["accept_callback"](os.getpid(), time.monotonic() - 2.0)
    pool.given["callback"]((1, info(KeyError("x")), None))
    assert (states(told), told[-1].error) == (["started", "failed"], "KeyError: 'x'")
    assert told[-1].runtime == pytest.approx(2.0, abs=0.5)


def test_a_lost_child_whose_message_goes_back_is_retried(app: Celery, task: Any, told: list[RunEvent]) -> None:
    """With `acks_late` and `reject_on_worker_lost` the task runs again."""
    task.acks_late = task.reject_on_worker_lost = True
    begin(app, task)["error_callback"](info(WorkerLostError("gone")))
    assert states(told) == ["started", "retried"]


def test_a_hard_time_limit_is_told_once(app: Celery, task: Any, told: list[RunEvent]) -> None:
    """Celery reports it twice."""
    run = begin(app, task)
    run["timeout_callback"](True, 1.0)
    run["timeout_callback"](False, 2.0)
    run["error_callback"](info(TimeLimitExceeded(2.0)))
    assert states(told) == ["started", "failed"]


def test_a_task_that_was_revoked_before_it_began(app: Celery, task: Any, told: list[RunEvent]) -> None:
    """Before its message came: Celery says so by its signal."""
    worker_state.revoked.add("gone")
    received(app, task, task_id="gone")
    assert [(each.state, each.error, each.entry, each.slot) for each in told] == [
        ("revoked", "", "nightly", SLOT.timestamp())
    ]


def test_a_message_that_has_expired(app: Celery, task: Any, told: list[RunEvent]) -> None:
    """It is revoked, and the error says why."""
    received(app, task, expires=datetime.now(timezone.utc) - timedelta(minutes=1))
    assert [(each.state, each.error) for each in told] == [("revoked", "expired")]


def test_a_task_that_is_terminated_is_revoked(app: Celery, task: Any, told: list[RunEvent]) -> None:
    """The end that its child reports then tells nothing more."""
    begin(app, task)["error_callback"](info(Terminated("SIGTERM")))
    assert [(each.state, each.error) for each in told] == [("started", ""), ("revoked", "terminated")]


def test_a_message_of_another_worker_of_this_process_is_not_told_twice(
    app: Celery, task: Any, told: list[RunEvent]
) -> None:
    """Each worker tells of its own."""
    other = RunEvents("other@h")
    other.start(())
    try:
        begin(app, task)
    finally:
        other.stop()
    assert states(told) == ["started"]


@pytest.mark.parametrize(
    "headers",
    [
        {"neli_beat_entry": 5},
        {"neli_beat_entry": ["nightly"]},
        {"neli_beat_entry": "x" * 9000},
    ],
)
def test_hostile_headers_are_not_told(app: Celery, task: Any, told: list[RunEvent], headers: dict[str, Any]) -> None:
    """Anyone may send a message; the task runs all the same."""
    run = begin(app, task, headers=headers)
    run["callback"]((0, None, 0.1))
    assert told == []


@pytest.mark.parametrize("slot", [5, None, "yesterday", "x" * 100, "0001-01-01T00:00:00+23:59"])
def test_a_slot_that_is_none_is_unknown(app: Celery, task: Any, told: list[RunEvent], slot: Any) -> None:
    """As in a message that was sent by hand, without one."""
    begin(app, task, headers={**HEADERS, "neli_beat_slot": slot})
    assert (told[0].entry, told[0].slot is None or told[0].slot < -6e10) == ("nightly", True)


def test_a_requests_own_class_keeps_its_say(app: Celery, told: list[RunEvent]) -> None:
    """What an application does in the callbacks of its own request class is done, before Celery's."""
    seen: list[str] = []

    class Own(Request):
        def on_accepted(self, *args: Any) -> None:
            seen.append("accepted")
            super().on_accepted(*args)

        def on_failure(self, *args: Any, **kwargs: Any) -> None:
            seen.append("failure")
            super().on_failure(*args, **kwargs)

    class Owned(app.Task):
        Request = Own
        name = "owned"

    begin(app, app.register_task(Owned()))["error_callback"](info(ValueError()))
    assert (seen, states(told)) == (["accepted", "failure"], ["started", "failed"])


def test_a_callback_that_fails_is_told_all_the_same(app: Celery, task: Any, told: list[RunEvent]) -> None:
    """The result backend may be gone; Celery gets the error as before."""

    def broken(*_: Any, **__: Any) -> None:
        raise OSError("backend")

    task.backend.mark_as_failure = broken
    with pytest.raises(OSError, match="backend"):
        begin(app, task)["error_callback"](info(WorkerLostError("gone")))
    assert states(told) == ["started", "failed"]


def test_a_real_run_with_retries(app: Celery, told: list[RunEvent]) -> None:
    """Through Celery's tracer: the task asks for a retry, the second attempt succeeds, both with entry and slot."""

    @app.task(name="again", bind=True, max_retries=2, default_retry_delay=0)
    def again(self: Task) -> None:
        if self.request.retries == 0:
            raise self.retry(exc=ValueError("not yet"))

    task = app.tasks["again"]
    task.__trace__ = build_tracer("again", task, app=app)
    setup_worker_optimizations(app)
    try:
        pool = TaskPool(app=app)
        pool.on_start()
        received(app, task, pool, task_id="r")
        with app.connection_for_read() as connection:
            message = connection.default_channel.basic_get("celery", no_ack=True)
        request = Request(
            message, app=app, task=task, hostname=WORKER, on_ack=lambda *_: None, on_reject=lambda *_: None,
            connection_errors=(), eventer=None,
        )  # fmt: skip
        task_received.send(sender=None, request=request)
        request.execute_using_pool(pool)
    finally:
        reset_worker_optimizations(app)
    assert [(each.state, each.retries, each.id, each.slot) for each in told] == [
        ("started", 0, "r", SLOT.timestamp()),
        ("retried", 0, "r", SLOT.timestamp()),
        ("started", 1, "r", SLOT.timestamp()),
        ("succeeded", 1, "r", SLOT.timestamp()),
    ]
    assert "not yet" in told[1].error


def test_a_worker_tells_of_its_start_and_its_end(app: Celery) -> None:
    """Once each, whichever way it ends."""
    events: list[WorkerEvent] = []
    hooks.worker.add(events.append)
    try:
        running = RunEvents(WORKER)
        running.stop()
        running.start(("celery", "slow"))
        running.stop()
        running.stop()
    finally:
        hooks.worker.remove(events.append)
    assert [(each.worker, each.queues, each.stopped) for each in events] == [
        (WORKER, ("celery", "slow"), False), (WORKER, (), True),
    ]  # fmt: skip


def test_a_forked_child_tells_nothing(app: Celery, task: Any, told: list[RunEvent], monkeypatch: Any) -> None:
    """The pool's children inherit the receivers, and must not touch Kafka; nor do they tell that the worker ends."""
    worker_state.revoked.add("gone")
    monkeypatch.setattr(os, "getpid", lambda: -1)
    received(app, task, task_id="gone")
    assert told == []
