"""The last question before a leader-only task's body, in a worker: through Celery's own request and tracer."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery, Task, states
from celery.app.trace import build_tracer, reset_worker_optimizations, setup_worker_optimizations
from celery.concurrency.solo import TaskPool
from celery.worker.request import Request
from kombu import Queue

from celery_neli import NotLeader, current_term, leader_only, still_leader
from celery_neli.election.shared_lease import share
from celery_neli.worker.redelivery import counts
from tests.unit.leases import Lease, make_app, own_world

if TYPE_CHECKING:
    from collections.abc import Callable

ROLE_QUEUE = "shop.leader.leader"


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Celery:
    """The current app, on an empty broker."""
    app = make_app()
    own_world(monkeypatch, app)
    with app.connection_for_read() as connection:
        connection.transport.state.clear()
        connection.default_channel.queues.clear()
    return app


@pytest.fixture
def lease(app: Celery) -> Lease:
    return Lease(app)


@pytest.fixture(autouse=True)
def _no_counts() -> None:
    for each in (counts.forwarded, counts.skipped):
        each.clear()


@dataclass
class Delivery:
    """What became of a message."""

    acknowledged: int = 0
    requeued: list[bool] = field(default_factory=list)

    def ack(self, *_: Any) -> None:
        self.acknowledged += 1

    def reject(self, logger: Any, errors: Any, requeue: bool) -> None:
        self.requeued.append(requeue)


def take(app: Celery, queue: str = ROLE_QUEUE) -> Any:
    """The one message of a queue, as a worker gets it; None: it has none."""
    with app.connection_for_read() as connection:
        channel = connection.default_channel
        payload = channel.basic_get(queue, no_ack=True) if queue in channel.queues else None
        if payload is None:
            return None
        assert channel.queue_declare(queue, passive=True).message_count == 0
        return payload


def work(app: Celery, message: Any) -> Delivery:
    """Do as a worker does with a message that its strategy lets through."""
    delivery = Delivery()
    task = app.tasks[message.headers["task"]]
    request = Request(
        message, app=app, task=task, hostname="w@h", on_ack=delivery.ack, on_reject=delivery.reject,
        connection_errors=(), eventer=None,
    )  # fmt: skip
    pool = TaskPool(app=app)
    pool.on_start()
    request.execute_using_pool(pool)
    return delivery


def state(app: Celery, message: Any) -> str:
    return str(app.AsyncResult(message.headers["id"]).state)


Make = Any
"""A task that returns its term, made in one of the ways; its options."""


def below(app: Celery, closed: dict[str, Any] | None = None, **options: Any) -> Any:
    def term(*args: Any, **kwargs: Any) -> int:
        return current_term()

    return app.task(name="term", **options)(leader_only(**closed or {})(term))


def above(app: Celery, closed: dict[str, Any] | None = None, **options: Any) -> Any:
    def term(*args: Any, **kwargs: Any) -> int:
        return current_term()

    return leader_only(**closed or {})(app.task(name="term", **options)(term))


def retried(app: Celery, closed: dict[str, Any] | None = None, **options: Any) -> Any:
    return above(app, closed, autoretry_for=(Exception,), max_retries=2, **options)


def class_based(app: Celery, closed: dict[str, Any] | None = None, **options: Any) -> Any:
    class Term(app.Task):
        def run(self, *args: Any, **kwargs: Any) -> int:
            return current_term()

    for name, value in {"name": "term", **options}.items():
        setattr(Term, name, value)
    return app.register_task(leader_only(**closed or {})(Term))


EVERY_WAY = pytest.mark.parametrize("make", [below, above, retried, class_based])


@EVERY_WAY
def test_the_leader_runs_it(app: Celery, lease: Lease, make: Make):
    """In the lease's term; acknowledged once."""
    lease.lead(term=31)
    result = make(app).delay(1)
    delivery = work(app, take(app))
    assert (result.get(timeout=1), delivery.acknowledged, delivery.requeued) == (31, 1, [])
    assert take(app) is None


@EVERY_WAY
@pytest.mark.parametrize("lost", ["never led", "drains", "fenced"])
@pytest.mark.parametrize("acks_late", [False, True])
def test_a_lost_lease_sends_it_back(app: Celery, lease: Lease, make: Make, lost: str, acks_late: bool):
    """To the role's queue: acknowledged, not requeued, nothing stored, and the next leader runs it."""
    if lost == "drains":
        lease.drain()
    elif lost == "fenced":
        lease.lose()
    make(app, acks_late=acks_late).delay(1, b=2)
    first = take(app)
    delivery = work(app, first)
    assert (delivery.acknowledged, delivery.requeued) == (1, [])
    assert state(app, first) == states.PENDING
    assert counts.forwarded == {"leader": 1}
    again = take(app)
    assert again.headers["id"] == first.headers["id"]
    lease.lead(term=8)
    work(app, again)
    assert app.AsyncResult(first.headers["id"]).get(timeout=1) == 8
    assert take(app) is None


@pytest.mark.parametrize("make", [below, above])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"priority": 5},
        {"headers": {"tenant": "a"}},
        {"expires": 600},
        {"time_limit": 50, "soft_time_limit": 40},
        {"retries": 2},
        {"shadow": "other name"},
        {"ignore_result": True},
        {"reply_to": "somebody"},
        {"root_id": "r", "parent_id": "p"},
        {"group_id": "g", "group_index": 3},
        {"replaced_task_nesting": 1},
        {"stamped_headers": ["tenant"], "tenant": "a"},
    ],
    ids=str,
)
def test_it_stays_the_same_message(app: Celery, lease: Lease, make: Make, options: dict[str, Any]):
    """Id, arguments, headers and properties, except for who sent it and when."""
    task = make(app)
    task.apply_async((1, "two"), {"three": 3}, link=task.si(1), link_error=task.si(2), **options)
    first = take(app)
    work(app, first)
    again = take(app)
    assert again.payload == first.payload
    for each in (first, again):
        for key in ("origin", "argsrepr", "kwargsrepr"):
            each.headers.pop(key)
        each.headers["expires"] = (each.headers["expires"] or "")[:19]
    assert again.headers == first.headers
    changing = ("delivery_tag", "delivery_info", "expiration", "origin")
    kept = [{k: v for k, v in each.properties.items() if k not in changing} for each in (first, again)]
    assert kept[0] == kept[1]
    assert again.delivery_info == first.delivery_info


def test_canvases_stay_whole(app: Celery, lease: Lease):
    """A chain's rest and a chord's end go with it."""
    task = below(app)
    (task.s(1) | task.s(2) | task.s(3)).apply_async()
    first = take(app)
    work(app, first)
    assert take(app).payload[2] == first.payload[2] != {}
    task.apply_async((1,), group_id="g", chord=task.s(4))
    first = take(app)
    work(app, first)
    again = take(app)
    assert again.payload[2]["chord"] == first.payload[2]["chord"] is not None


def test_a_task_is_not_its_own_child(app: Celery, lease: Lease):
    """Celery makes what a task sends its child; this is the task itself."""
    below(app).delay()
    first = take(app)
    work(app, first)
    again = take(app)
    assert first.headers["parent_id"] is None
    assert again.headers["parent_id"] is None
    assert again.headers["root_id"] == first.headers["id"]


def test_a_base_class_that_refuses_doubles_does_not_lose_it(app: Celery, lease: Lease):
    """Such a class (celery-singleton's) finds the id of this very task in its lock, and would publish nothing."""

    class Once(Task):
        abstract = True

        def apply_async(self, *args: Any, **options: Any) -> Any:
            return None if self.request.id else super().apply_async(*args, **options)

    below(app, base=Once).delay(1)
    first = take(app)
    work(app, first)
    assert take(app).headers["id"] == first.headers["id"]


def test_an_eta_that_has_come_is_not_waited_for_again(app: Celery, lease: Lease):
    """The worker has waited for it."""
    below(app).apply_async(countdown=30)
    work(app, take(app))
    assert take(app).headers["eta"] is None


class TestOnStandby:
    """What reaches a worker that does not lead."""

    @pytest.fixture
    def send(self, app: Celery) -> Callable[..., Any]:
        """Send by another queue than the role's, and work on it."""

        def send(task: Any, *, queue: str | None = "other", **options: Any) -> tuple[Any, Delivery]:
            app.amqp.queues.add(Queue("other", routing_key="other"))
            task.apply_async((1,), **{**({"queue": queue} if queue else {}), **options})
            message = take(app, queue or ROLE_QUEUE)
            return message, work(app, message)

        return send

    @EVERY_WAY
    def test_forward(self, app: Celery, lease: Lease, make: Make, send: Any):
        """The default."""
        message, delivery = send(make(app))
        assert take(app).headers["id"] == message.headers["id"]
        assert delivery.acknowledged == 1

    @EVERY_WAY
    def test_skip(self, app: Celery, lease: Lease, make: Make, send: Any):
        """Acknowledged and counted."""
        task = make(app, {"on_standby": "skip"}, ignore_result=True)
        _, delivery = send(task)
        assert (delivery.acknowledged, delivery.requeued) == (1, [])
        assert counts.skipped == {"leader": 1}
        assert take(app) is None

    @pytest.mark.parametrize("waits", ["caller", "chord"])
    def test_what_is_awaited_is_not_skipped(self, app: Celery, lease: Lease, waits: str, send: Any):
        """Whoever waits for it, a caller or a chord, is told by a failure: an ignored task never ends."""
        task = below(app, {"on_standby": "skip"}, ignore_result=True, store_errors_even_if_ignored=True)
        chord = {"chord": task.s(9).set(task_id="callback"), "group_id": "group"}
        message, _ = send(task, **({"ignore_result": False} if waits == "caller" else chord))
        assert isinstance(app.AsyncResult(message.headers["id"]).result, NotLeader)
        assert counts.skipped == {}

    @pytest.mark.parametrize("make", [below, above, class_based])
    def test_fail(self, app: Celery, lease: Lease, make: Make, send: Any):
        """NotLeader is stored, and the errback called; a default is for direct calls."""
        task = make(app, {"on_standby": "fail", "default": 3})

        @app.task(name="errback")
        def errback(task_id: str) -> None: ...

        message, delivery = send(task, link_error=errback.s())
        assert state(app, message) == states.FAILURE
        with pytest.raises(NotLeader, match=r"term\[.*does not lead 'leader'"):
            app.AsyncResult(message.headers["id"]).get(timeout=1)
        assert delivery.acknowledged == 1
        assert take(app) is None
        assert take(app, "celery").payload[0] == [message.headers["id"]]

    @pytest.mark.parametrize("on_standby", ["skip", "fail"])
    def test_what_came_by_the_roles_queue_always_goes_back(self, app: Celery, lease: Lease, on_standby: str, send: Any):
        """It was sent to the leader, and this worker was it a moment ago."""
        message, _ = send(below(app, {"on_standby": on_standby}, ignore_result=True), queue=None)
        assert take(app).headers["id"] == message.headers["id"]

    def test_without_an_election_it_fails(self, app: Celery, send: Any):
        """And says what the worker lacks, rather than send it in circles."""
        message, _ = send(below(app), queue=None)
        with pytest.raises(NotLeader, match=r"celery_neli\.install"):
            app.AsyncResult(message.headers["id"]).get(timeout=1)
        assert take(app) is None


@pytest.mark.parametrize("make", [below, above, class_based])
@pytest.mark.parametrize("acks_late", [True, False])
def test_a_broker_that_takes_nothing(
    app: Celery, lease: Lease, make: Make, acks_late: bool, monkeypatch: pytest.MonkeyPatch
):
    """The message goes back by itself if it is not acknowledged yet; else the task fails, for all to see."""
    make(app, acks_late=acks_late).delay(1)
    message = take(app)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError("connection refused")

    monkeypatch.setattr(app.amqp, "send_task_message", refuse)
    delivery = work(app, message)
    if acks_late:
        assert (delivery.acknowledged, delivery.requeued) == (0, [True])
        assert state(app, message) == states.PENDING
    else:
        assert (delivery.acknowledged, delivery.requeued) == (1, [])
        with pytest.raises(NotLeader, match=r"'shop\.leader\.leader' failed: .*connection refused"):
            app.AsyncResult(message.headers["id"]).get(timeout=1)
    assert counts.forwarded == {}


class TestRetries:
    """Celery's own, of a body that ran."""

    @pytest.fixture(params=["below", "above", "autoretry", "class"])
    def task(self, request: pytest.FixtureRequest, app: Celery) -> Any:
        def fails(self: Task, number: int) -> None:
            raise self.retry(countdown=5, exc=ZeroDivisionError())

        def breaks(number: int) -> None:
            raise ZeroDivisionError

        if request.param == "below":
            return app.task(bind=True, name="t")(leader_only(fails))
        if request.param == "above":
            return leader_only(app.task(bind=True, name="t")(fails))
        if request.param == "autoretry":
            return leader_only(app.task(autoretry_for=(ZeroDivisionError,), name="t")(breaks))
        return app.register_task(leader_only(type("T", (app.Task,), {"name": "t", "run": fails})))

    @pytest.mark.parametrize("create_missing", [True, False])
    @pytest.mark.parametrize("queue", [None, "other"])
    def test_go_to_the_roles_queue(self, app: Celery, lease: Lease, task: Any, create_missing: bool, queue: str | None):
        """By whatever queue it came, and without a queue of this name in the app, which any worker may consume."""
        app.conf.task_queues = [Queue("celery"), Queue("other")]
        app.conf.task_create_missing_queues = create_missing
        lease.lead()
        task.apply_async((1,), **({"queue": queue} if queue else {}))
        message = take(app, queue or ROLE_QUEUE)
        work(app, message)
        again = take(app)
        assert (again.headers["id"], again.headers["retries"]) == (message.headers["id"], 1)
        assert state(app, message) == states.RETRY
        assert set(app.amqp.queues) == {"celery", "other"}

    def test_are_ordinary_when_it_is_off(self, app: Celery, task: Any):
        """neli_enabled=False: back to the queue that it came by."""
        app.conf.neli_enabled = False
        task.apply_async((1,), queue="celery")
        work(app, take(app, "celery"))
        assert take(app, "celery").headers["retries"] == 1

    def test_a_lost_lease_takes_no_try(self, app: Celery, lease: Lease, task: Any):
        """What did not begin did not fail."""
        task.apply_async((1,), retries=1)
        work(app, take(app))
        assert take(app).headers["retries"] == 1


class TestBodies:
    """What a body sees."""

    def test_the_lease_is_asked_inside_of_other_decorators(self, app: Celery, lease: Lease):
        """Right before the body: one that waits for a lock first changes nothing."""
        lease.lead()

        def waits(function: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(function)
            def wrapper(*args: Any) -> Any:
                lease.lose()
                return function(*args)

            return wrapper

        ran: list[int] = []
        task = app.task(name="t")(waits(leader_only(ran.append)))
        task.delay(1)
        first = take(app)
        work(app, first)
        assert ran == []
        assert take(app).headers["id"] == first.headers["id"]

    @pytest.mark.parametrize("stop", [False, True])
    def test_a_long_body_may_ask(self, app: Celery, lease: Lease, stop: bool):
        """A drain waits for it; a fence does not, and stop_on_loss makes that the task's failure."""

        @app.task(name="t")
        @leader_only(stop_on_loss=stop)
        def task() -> list[bool]:
            said = [still_leader()]
            lease.drain()
            said.append(still_leader())
            lease.lose()
            return [*said, still_leader()]

        lease.lead()
        task.delay()
        message = take(app)
        work(app, message)
        result = app.AsyncResult(message.headers["id"])
        if stop:
            assert (result.state, type(result.result).__name__) == (states.FAILURE, "LeadershipLost")
        else:
            assert result.get(timeout=1) == [True, True, False]

    def test_a_leader_only_function_called_by_another_task(self, app: Celery, lease: Lease):
        """Is no task that could be forwarded: NotLeader, in the task that calls it."""
        part = leader_only(current_term)

        @app.task(name="t")
        def task() -> int:
            return part()

        task.delay()
        message = take(app, "celery")
        work(app, message)
        assert isinstance(app.AsyncResult(message.headers["id"]).result, NotLeader)
        assert take(app) is None

    def test_a_leader_only_task_called_by_another(self, app: Celery, lease: Lease):
        """As a function: its caller is told, and nothing is sent."""
        inner = below(app)

        @app.task(name="t")
        def task() -> Any:
            return inner(1)

        task.delay()
        message = take(app, "celery")
        work(app, message)
        assert isinstance(app.AsyncResult(message.headers["id"]).result, NotLeader)
        assert take(app) is None

    def test_a_task_that_calls_itself(self, app: Celery, lease: Lease):
        """The inner call is no message that could be forwarded: it is told, and the outer one goes on."""

        @app.task(bind=True, name="t")
        @leader_only
        def task(self: Task, deeper: bool) -> str:
            if deeper:
                lease.lose()
                with pytest.raises(NotLeader):
                    self(False)
            return "ran"

        lease.lead()
        result = task.delay(True)
        work(app, take(app))
        assert result.get(timeout=1) == "ran"
        assert take(app) is None

    def test_a_task_with_a_call_of_its_own(self, app: Celery, lease: Lease):
        """Celery's tracer goes through `__call__` then: it is the message's call all the same."""

        @leader_only
        class Called(app.Task):
            name = "t"

            def __call__(self, *args: Any) -> Any:
                return super().__call__(*args)

            def run(self) -> int:
                return current_term()

        task = app.register_task(Called())
        task.delay()
        first = take(app)
        setup_worker_optimizations(app)
        task.__trace__ = build_tracer(task.name, task, app=app)  # as a worker does when it starts
        try:
            work(app, first)
        finally:
            reset_worker_optimizations(app)
        assert take(app).headers["id"] == first.headers["id"]

    def test_a_late_lease_is_taken(self, app: Celery):
        """A worker that has joined again shares another lease: nothing keeps the old one."""
        old = Lease(app)
        old.lead(term=3)
        task = below(app)
        assert task() == 3
        new = Lease(app)
        with pytest.raises(NotLeader):
            task()
        share(app, old.shared)
        assert task() == 3
        assert new.shared.role("leader").leading_term() is None


def test_switched_off_every_worker_runs_it(app: Celery):
    """neli_enabled=False: an ordinary task of an ordinary worker."""
    app.conf.neli_enabled = False
    result = below(app).delay(1)
    work(app, take(app, "celery"))
    assert result.get(timeout=1) == 0
