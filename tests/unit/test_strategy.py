"""What becomes of a leader-only task's message in a worker's main process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import InvalidTaskError, WorkerShutdown
from celery.worker import state
from kombu import Producer

from celery_neli import leader_only
from celery_neli.exceptions import ConfigurationError
from celery_neli.worker.redelivery import counts
from celery_neli.worker.strategy import check_all
from tests.unit.leases import make_app
from tests.unit.workers import Worker


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    yield
    state.reset_state()


def task_of(app: Celery, *, on_standby: str = "forward", **options: Any) -> Any:
    @app.task(name="work", shared=False, **options)
    @leader_only(on_standby=on_standby)
    def work(number: int, pause: float = 0.0) -> int:
        return number

    return app.tasks["work"]


def plain(message: Any) -> dict[str, Any]:
    """What must survive: who it is, when and how often it may run, what follows."""
    return {
        **{key: value for key, value in message.headers.items() if key != "origin"},
        **{key: message.properties.get(key) for key in ("correlation_id", "reply_to", "priority", "delivery_mode")},
        "body": message.decode(),
    }


def test_a_leader_runs_what_its_queue_has() -> None:
    """The pool gets it, as of any task."""
    worker = Worker()
    task = task_of(worker.app)
    worker.lease.lead()
    worker.connect()
    sent = task.delay(1)
    worker.receive()
    assert [each.id for each in worker.pool.jobs] == [sent.id]


def test_a_call_that_reaches_a_standby_is_forwarded_whole() -> None:
    """To the role's own queue, with its id, headers and body; then it is acknowledged, and not run."""
    worker = Worker()
    task = task_of(worker.app)
    worker.connect()
    before = counts.forwarded["leader"]
    options = {
        "queue": worker.ordinary, "countdown": 60, "expires": 120, "retries": 2, "priority": 6, "time_limit": 9,
        "link": task.s(2), "headers": {"mine": "kept"}, "task_id": "one",
    }  # fmt: skip
    task.apply_async((1,), {"pause": 0.5}, **options)
    (original,) = worker.messages(worker.ordinary)
    task.apply_async((1,), {"pause": 0.5}, **{**options, "task_id": "one"})
    worker.receive()
    (forwarded,) = worker.messages(worker.queue())
    was, became = plain(original), plain(forwarded)
    moving = {"eta", "expires"}  # computed at the call
    assert {k: v for k, v in became.items() if k not in moving} == {k: v for k, v in was.items() if k not in moving}
    assert became["eta"] is not None
    assert became["expires"] is not None
    assert (became["id"], became["mine"], became["retries"], became["priority"]) == ("one", "kept", 2, 6)
    assert worker.pool.jobs == []
    assert worker.unacked() == 0
    assert counts.forwarded["leader"] == before + 1


@pytest.mark.parametrize("queue", ["its own", "another"])
def test_a_standby_asks_nothing_of_the_broker_while_messages_are_delivered(queue: str) -> None:
    """py-amqp delivers the next ones inside of a wait for the answer, and mixes up the answers."""
    worker = Worker()
    task = task_of(worker.app)
    worker.lease.lead()
    worker.connect()
    worker.lease.drain()
    task.apply_async((1,), **({} if queue == "its own" else {"queue": worker.ordinary}))
    channel, asked = worker.consumer.task_consumer.channel, []
    for name in ("queue_declare", "exchange_declare", "queue_bind", "basic_consume", "basic_cancel"):
        setattr(channel, name, lambda *_, name=name, **__: asked.append(name))
    worker.consumer.connection.drain_events(timeout=0.01)
    assert asked == []


def test_a_compressed_body_arrives_readable() -> None:
    """It is decompressed on arrival; the header that says it was compressed stays."""
    worker = Worker(task_compression="gzip")
    task = task_of(worker.app)
    worker.connect()
    task.apply_async((1,), queue=worker.ordinary)
    worker.receive()
    (forwarded,) = worker.messages(worker.queue())
    assert not forwarded.errors
    assert forwarded.decode()[0] == [1]


def test_what_cannot_be_forwarded_is_kept_and_breaks_the_connection() -> None:
    """Celery reconnects, with a pause, and the broker hands it out again. Other errors would end the worker."""
    worker = Worker()
    task = task_of(worker.app)
    worker.connect()
    task.apply_async((1,), queue=worker.ordinary)
    (message,) = worker.messages(worker.ordinary)

    class Channel:
        no_ack_consumers = None
        acknowledged = False

        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("OOM command not allowed")

        def basic_ack(self, *_: Any, **__: Any) -> None:
            self.acknowledged = True

    message.channel = channel = Channel()
    with pytest.raises(ConnectionResetError, match="OOM"):
        worker.consumer.strategies["work"](message, None, None, None, ())
    assert not channel.acknowledged


def test_what_came_by_the_role_queue_goes_back_there() -> None:
    """A standby that still consumes it leaves it first: it would get the same message again at once."""
    worker = Worker()
    task = task_of(worker.app)
    worker.lease.lead()
    worker.connect()
    before = counts.sent_back["leader"]
    worker.lease.drain()
    task.delay(1)
    worker.consumer.connection.drain_events(timeout=0.01)
    assert worker.unacked() == 1
    worker.turn()
    assert worker.consumes() == {worker.ordinary}
    assert worker.size(worker.queue()) == 1
    assert worker.pool.jobs == []
    assert worker.unacked() == 0
    assert counts.sent_back["leader"] == before + 1


def test_skipping_acknowledges_and_counts() -> None:
    """Where nobody waits for the end."""
    worker = Worker()
    task = task_of(worker.app, on_standby="skip", ignore_result=True)
    worker.connect()
    before = counts.skipped["leader"]
    task.apply_async((1,), queue=worker.ordinary)
    worker.receive()
    assert worker.pool.jobs == []
    assert worker.size(worker.queue()) == worker.unacked() == 0
    assert counts.skipped["leader"] == before + 1


@pytest.mark.parametrize("waits", ["caller", "chord"])
def test_skipping_fails_where_somebody_waits(waits: str) -> None:
    """IGNORED is no end: `get()` and a chord would wait for ever. The check before the body fails the task."""
    worker = Worker()
    task = task_of(worker.app, on_standby="skip", ignore_result=True)
    worker.connect()
    before = counts.skipped["leader"]
    chord = {"chord": task.s(9).set(task_id="callback"), "group_id": "group"}
    options = {"ignore_result": False} if waits == "caller" else chord
    sent = task.apply_async((1,), queue=worker.ordinary, **options)
    worker.receive()
    assert [each.id for each in worker.pool.jobs] == [sent.id]
    worker.pool.jobs[0].accept()
    worker.pool.jobs[0].succeed()
    assert worker.unacked() == 0
    assert counts.skipped["leader"] == before


def test_failing_is_left_to_the_check_before_the_body() -> None:
    """In the pool, where links and retries of a failure are at home."""
    worker = Worker()
    task = task_of(worker.app, on_standby="fail")
    worker.connect()
    sent = task.apply_async((1,), queue=worker.ordinary)
    worker.receive()
    worker.turn()
    assert [each.id for each in worker.pool.jobs] == [sent.id]


NO_TASKS_BODY: list[Any] = [{}, [], [[], {}], [[], {}, 5], "x", "xyz", 5, {"kwargs": {}}]


@pytest.mark.parametrize("awaited", [False, None])
@pytest.mark.parametrize("body", NO_TASKS_BODY)
def test_a_malformed_message_that_is_to_be_skipped_is_discarded(body: Any, awaited: bool | None) -> None:
    """As Celery discards messages that it takes for invalid: it comes never again, and ends nothing."""
    worker = Worker()
    task_of(worker.app, on_standby="skip", ignore_result=True)
    worker.connect()
    before = counts.skipped["leader"]
    publish(worker, body, {"task": "work", "id": "one", "ignore_result": awaited})
    worker.receive()
    assert worker.size(worker.ordinary) == worker.unacked() == 0
    assert worker.pool.jobs == []
    assert counts.skipped["leader"] == before


def test_a_malformed_header_of_a_message_that_is_to_be_skipped_is_the_same() -> None:
    """Where it is looked at: for a result that somebody waits for."""
    worker = Worker()
    task_of(worker.app, on_standby="skip", ignore_result=True)
    worker.connect()
    publish(worker, [[1], {}, {}], {"task": "work", "ignore_result": False})
    (message,) = worker.messages(worker.ordinary)
    with pytest.raises(InvalidTaskError, match="'id'"):
        worker.consumer.strategies["work"](message, None, None, None, ())


def test_a_message_without_what_follows_is_skipped() -> None:
    """Other publishers leave it empty."""
    worker = Worker()
    task_of(worker.app, on_standby="skip", ignore_result=True)
    worker.connect()
    before = counts.skipped["leader"]
    publish(worker, [[1], {}, None], {"task": "work", "id": "one"})
    publish(worker, {"task": "work", "id": "two", "args": [1], "kwargs": {}}, {})  # protocol 1
    worker.receive()
    assert worker.size(worker.ordinary) == worker.unacked() == 0
    assert counts.skipped["leader"] == before + 2


def publish(worker: Worker, body: Any, headers: dict[str, Any]) -> None:
    Producer(worker.consumer.connection.default_channel).publish(
        body, exchange="", routing_key=worker.ordinary, serializer="json", headers=headers
    )


def test_a_worker_outside_the_election_ends(caplog: pytest.LogCaptureFixture) -> None:
    """It would forward for ever; one line says what to do, without a traceback."""
    app = make_app("outside")
    task = task_of(app)
    with pytest.raises(WorkerShutdown) as ended:
        task.start_strategy(app, None)
    assert ended.value.code == 1
    (record,) = caplog.records
    assert "work is @leader_only" in record.message
    assert "celery_neli.install(app)" in record.message
    assert record.exc_info is None


def test_a_task_that_contradicts_its_mark_ends_the_worker(caplog: pytest.LogCaptureFixture) -> None:
    """At its start, not when somebody waits; and it is found without a worker."""
    worker = Worker()
    task_of(worker.app, on_standby="skip")
    with pytest.raises(ConfigurationError, match="ignore_result=True"):
        check_all(worker.app)
    with pytest.raises(WorkerShutdown):
        worker.connect()
    assert "ignore_result=True" in caplog.text


def test_an_unknown_role_is_told_with_the_task() -> None:
    """Of many tasks one is wrong."""
    app = make_app("roles", neli_roles=["billing"])
    for role in ("billing", "biling"):

        @app.task(name=f"task of {role}", shared=False)
        @leader_only(role=role)
        def work() -> None:
            pass

    with pytest.raises(ConfigurationError, match=r"task of biling: .*no such role.*'billing'"):
        check_all(app)


def test_switched_off_it_is_any_task() -> None:
    """`neli_enabled=False`: runs wherever it comes."""
    worker = Worker()
    worker.app.conf.neli_enabled = False
    task = task_of(worker.app)
    worker.connect()
    sent = task.apply_async((1,), queue=worker.ordinary)
    worker.receive()
    assert [each.id for each in worker.pool.jobs] == [sent.id]
