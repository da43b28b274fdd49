"""celery-neli's steps among those of a worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import click
import pytest
from celery import bootsteps
from celery._state import _set_task_join_will_block
from celery.signals import worker_shutting_down
from celery.worker import WorkController

from celery_neli import install, leader_only
from celery_neli.config import Config
from celery_neli.election.shared_lease import shared
from celery_neli.exceptions import ConfigurationError
from celery_neli.worker.bootsteps import ElectionStep, LeaseStep
from celery_neli.worker.consumer_step import RoleQueues
from celery_neli.worker.in_flight import in_flight_of
from tests.unit.leases import Lease, make_app


@pytest.fixture
def make_worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Workers that are made and never started."""
    monkeypatch.setattr("celery.loaders.base.BaseLoader.init_worker", lambda _: None)

    def make(pool: str = "solo", **settings: Any) -> WorkController:
        app = install(make_app("steps", neli_kafka="127.0.0.1:1", **settings))
        return WorkController(app=app, pool=pool, concurrency=1, hostname="one@here")

    yield make
    _set_task_join_will_block(False)  # the pool has said that this process runs tasks


def place(steps: list[Any], kind: type | str) -> int:
    """Where the step is in the order of starting; steps stop in the reverse order."""
    return next(n for n, each in enumerate(steps) if kind in (type(each), type(each).__name__))


def test_the_lease_is_there_before_the_pool_and_released_after_it(make_worker: Callable[..., Any]) -> None:
    """The children of the pool inherit it; the election is joined once they are forked."""
    worker = make_worker()
    assert place(worker.steps, LeaseStep) == 0
    assert place(worker.steps, "Pool") < place(worker.steps, ElectionStep) < place(worker.steps, "Consumer")
    assert shared(worker.app) is not None
    assert in_flight_of(worker.app) is not None


def test_the_queues_come_after_the_consumer_of_tasks_and_before_the_loop(make_worker: Callable[..., Any]) -> None:
    """It is made anew with each connection, and the loop does not return."""
    steps = make_worker().consumer.steps
    assert place(steps, "Tasks") < place(steps, RoleQueues) < place(steps, "Evloop")


def test_switched_off_there_is_no_step(make_worker: Callable[..., Any]) -> None:
    """And no lease."""
    worker = make_worker(neli_enabled=False)
    assert not any(isinstance(each, (LeaseStep, ElectionStep)) for each in worker.steps)
    assert not any(isinstance(each, RoleQueues) for each in worker.consumer.steps)
    assert shared(worker.app) is None


def test_a_worker_that_cannot_do_what_is_asked_is_not_made(make_worker: Callable[..., Any]) -> None:
    """Before anything has started."""
    with pytest.raises(ConfigurationError, match="neli_fence_kills = True with worker_pool = 'solo'"):
        make_worker(neli_fence_kills=True)
    with pytest.raises(ConfigurationError, match="task_default_queue names it"):
        make_worker(task_default_queue="steps.leader.leader")


def test_the_command_says_in_one_line_why_it_is_not(make_worker: Callable[..., Any]) -> None:
    """As beat does: click prints its own errors without a traceback."""
    for wrong in (
        {"neli_fence_kills": True},
        {"task_default_queue": "steps.leader.leader"},
        {"neli_stall_timeout": -1},
    ):
        with pytest.raises(ConfigurationError) as refusal:
            make_worker(**wrong)
        assert isinstance(refusal.value, click.ClickException)
        assert refusal.value.format_message() == str(refusal.value)


def test_a_wrong_mark_is_found_before_the_task_broker_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be away for hours."""
    app = make_app("marks")

    @app.task(name="work", shared=False)
    @leader_only(role="none")
    def work() -> None:
        pass

    monkeypatch.setattr("celery_neli.worker.bootsteps.leadership_for", lambda *_: Leadership())
    worker = SimpleNamespace(app=app, pool_cls="prefork")
    with pytest.raises(ConfigurationError, match=r"work: .*no such role"):
        LeaseStep(worker).include_if(worker)


@pytest.mark.parametrize(("pool", "inline"), [("solo", True), ("prefork", False), ("threads", False)])
def test_only_solo_runs_tasks_on_the_consumers_thread(pool: str, inline: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long task there is no hang of the consumer."""
    app = make_app("inline")
    Lease(app)
    monkeypatch.setattr("celery_neli.worker.bootsteps.leadership_for", lambda *_: Leadership())
    worker = SimpleNamespace(app=app, pool_cls=pool, steps=[])
    assert LeaseStep(worker).include_if(worker)
    in_flight = in_flight_of(app)
    assert in_flight is not None
    assert in_flight.inline is inline


class Leadership:
    """Notes what is asked of it, and whether something runs meanwhile."""

    working = None
    config = Config(group="g")

    def __init__(self) -> None:
        self.runs: Callable[[str], bool] = lambda _: True
        self.told: list[str] = []

    def start(self) -> None:
        self.told.append("start")

    def close(self) -> None:
        self.told.append("close")

    def stop(self) -> None:
        self.told.append("stop, running" if self.runs("leader") else "stop")


class Request:
    role, term, job, ended = "leader", None, None, False


@pytest.mark.parametrize(
    ("pool", "end", "told"),
    [
        ("prefork", "stop", "stop"),
        ("threads", "stop", "stop"),
        ("prefork", "terminate", "stop"),  # its children are dead
        ("threads", "terminate", "stop, running"),  # threads cannot be killed: they are waited for
    ],
)
def test_the_release_waits_for_what_may_still_run(
    pool: str, end: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the pool was joined nothing can; nor after its processes were killed."""
    app = make_app("office")
    lease, leadership = Lease(app), Leadership()
    lease.lead()
    monkeypatch.setattr("celery_neli.worker.bootsteps.leadership_for", lambda *_: leadership)
    worker = SimpleNamespace(app=app, pool_cls=pool, steps=[])
    office = LeaseStep(worker)
    assert office.include_if(worker)
    in_flight = in_flight_of(app)
    assert in_flight is not None
    leadership.runs = in_flight.runs
    request = Request()
    in_flight.arrived(request)
    assert in_flight.begin(request)
    office.close(worker)
    getattr(office, end)(worker)
    assert leadership.told == ["close", told]


@pytest.mark.parametrize(
    ("pool", "running", "told"),
    [("gevent", 1, ["start", "close"]), ("solo", 0, ["start", "close"]), ("solo", 1, ["start"])],
)
def test_a_signal_to_stop_begins_the_handover(
    pool: str, running: int, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under gevent, Celery's loop notices seconds later; solo's ends the task first, for which it needs the lease."""
    leadership = Leadership()
    monkeypatch.setattr("celery_neli.worker.bootsteps.leadership_for", lambda *_: leadership)
    monkeypatch.setattr("celery_neli.worker.bootsteps.original", lambda *_: lambda call, args: call(*args))
    monkeypatch.setattr("celery.worker.state.active_requests", {object() for _ in range(running)})
    worker = SimpleNamespace(app=make_app("signal"), pool_cls=pool, steps=[], hostname=f"{pool}@here")
    worker.neli_observability = worker.neli_runs = SimpleNamespace(start=lambda *_: None)
    ElectionStep(worker).start(worker)
    worker_shutting_down.send(sender=worker.hostname, sig="SIGTERM", how="Warm", exitcode=0)
    worker_shutting_down.send(sender="another@here", sig="SIGTERM", how="Warm", exitcode=0)
    assert leadership.told == told


def test_a_step_of_ours_is_one_of_celerys() -> None:
    """`celery graph bootsteps` and `inspect stats` treat it as such."""
    assert all(issubclass(each, bootsteps.StartStopStep) for each in (LeaseStep, ElectionStep, RoleQueues))
