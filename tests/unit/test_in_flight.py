"""Leader-only tasks that a worker has, when it leads no more: unstarted ones go back, running ones are waited for."""

from __future__ import annotations

import gc
import signal
import subprocess
import threading
import time
import weakref
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from billiard.einfo import ExceptionInfo
from billiard.exceptions import TimeLimitExceeded
from celery.exceptions import WorkerLostError
from celery.worker import state

from celery_neli import leader_only
from celery_neli.exceptions import ConfigurationError, LeadershipLost
from celery_neli.worker.bootsteps import refuse_pool
from tests.processes import wait_until
from tests.unit.workers import Worker


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    yield
    state.reset_state()


def leader(**options: Any) -> tuple[Worker, Any]:
    """A worker that leads, connected, and a task of its."""
    worker = Worker(**options.pop("settings", {}))

    @worker.app.task(name="work", shared=False, **options)
    @leader_only
    def work() -> None:
        pass

    worker.lease.lead()
    worker.connect()
    return worker, worker.app.tasks["work"]


def revoke(worker: Worker) -> None:
    """The lease is resigned, and the consumer's thread has its turn."""
    worker.lease.drain()
    worker.in_flight.send_back()


def error(exc: BaseException) -> ExceptionInfo:
    try:
        raise exc
    except type(exc):
        return ExceptionInfo()


def test_tasks_waiting_for_a_slot_go_back_in_their_order() -> None:
    """Those in the pool stay; a slot that becomes free later starts nothing and stays free."""
    worker, task = leader(settings={"slots": 1})
    ids = [task.delay().id for _ in range(3)]
    worker.receive()
    revoke(worker)
    assert [each.headers["id"] for each in worker.messages(worker.queue())] == ids[1:]
    assert list(state.requests) == ids[:1]
    worker.pool.jobs[0].accept()
    worker.pool.jobs[0].succeed()
    worker.controller.semaphore.release()  # what the pool does after each task
    worker.turn()
    assert [each.id for each in worker.pool.jobs] == ids[:1]
    assert worker.controller.semaphore.value == 1
    assert worker.unacked() == 0
    assert not state.requests
    assert not state.reserved_requests


def test_tasks_waiting_for_their_time_go_back() -> None:
    """Once; the prefetch count that was raised for each comes down; at the time nothing runs."""
    worker, task = leader()
    before = worker.consumer.qos.value
    task.apply_async(countdown=60)
    worker.receive()
    assert worker.consumer.qos.value == before + 1
    revoke(worker)
    revoke(worker)
    assert worker.size(worker.queue()) == 1
    assert worker.consumer.qos.value == before
    worker.tick(100)
    assert worker.pool.jobs == []
    assert worker.consumer.qos.value == before
    assert worker.unacked() == 0


@pytest.mark.parametrize("countdown", [None, 60])
def test_tasks_waiting_for_their_rate_go_back(countdown: float | None) -> None:
    """Also those that wait for their time first."""
    worker, task = leader(rate_limit="1/h")
    before = worker.consumer.qos.value
    for _ in range(3):
        task.apply_async(countdown=countdown)
    worker.receive()
    running = len(worker.pool.jobs)
    revoke(worker)
    assert worker.size(worker.queue()) == 3 - running
    assert not worker.consumer.task_buckets["work"].contents  # each would use up a token
    worker.tick(10_000)
    assert len(worker.pool.jobs) == running
    assert worker.consumer.qos.value == before


def test_a_task_whose_time_comes_after_the_lease_goes_back() -> None:
    """The timer may be faster than the news."""
    worker, task = leader()
    task.apply_async(countdown=60)
    worker.receive()
    worker.lease.drain()
    worker.tick(100)
    assert worker.pool.jobs == []
    worker.turn()
    assert worker.size(worker.queue()) == 1
    assert worker.unacked() == 0


def test_a_task_that_begins_meanwhile_stays() -> None:
    """The timer has a thread of its own under some pools."""
    worker, task = leader()
    for _ in range(2):
        task.apply_async(countdown=60)
    worker.receive()
    decrement = worker.consumer.qos.decrement_eventually

    def fire() -> None:
        worker.consumer.qos.decrement_eventually = decrement
        worker.tick(100)

    worker.consumer.qos.decrement_eventually = fire  # called for the first that goes back
    worker.in_flight.send_back(everything=True)
    assert len(worker.pool.jobs) == 1
    assert worker.size(worker.queue()) == 1


def test_tasks_that_begin_while_others_are_sent_back_disturb_nothing() -> None:
    """On the timer's thread, while the consumer's looks for those that go."""
    worker, task = leader()
    ids = [task.apply_async(countdown=60 + number).id for number in range(3)]
    worker.receive()
    worker.lease.drain()
    leases, first = worker.in_flight.leases, worker.timer.queue[0].entry.args[0]
    (later,) = [each.entry.args[0] for each in worker.timer.queue if each.entry.args[0].id == ids[2]]

    class Meanwhile:
        def role(self, name: str) -> Any:
            worker.in_flight.leave(later)
            return leases.role(name)

    assert first is not later
    worker.in_flight.leases = Meanwhile()  # type: ignore[assignment]
    worker.in_flight.send_back()
    assert [each.headers["id"] for each in worker.messages(worker.queue())] == ids[:2]


def test_a_task_that_went_back_is_not_begun_by_a_timer_that_had_it_already() -> None:
    """On its own thread, too late to be cancelled."""
    worker, task = leader()
    task.apply_async(countdown=60)
    worker.receive()
    (item,) = worker.timer.queue
    revoke(worker)
    item.entry()
    assert worker.pool.jobs == []
    assert not state.requests
    assert worker.size(worker.queue()) == 1


def test_a_task_that_celery_drops_neither_waits_nor_goes_back() -> None:
    """Expired when it came; revoked while it waited."""
    worker, task = leader()
    task.apply_async(expires=datetime.now(timezone.utc) - timedelta(seconds=1))
    sent = task.apply_async(countdown=60)
    worker.receive()
    state.revoked.add(sent.id)
    worker.tick(100)
    assert not waits(worker)
    revoke(worker)
    worker.turn()
    assert worker.size(worker.queue()) == 0
    assert worker.unacked() == 0


def test_other_roles_keep_their_tasks() -> None:
    """A role's leadership moves alone."""
    worker = Worker(neli_roles=["billing", "mail"])

    @worker.app.task(name="bill", shared=False)
    @leader_only(role="billing")
    def bill() -> None:
        pass

    @worker.app.task(name="post", shared=False)
    @leader_only(role="mail")
    def post() -> None:
        pass

    worker.lease.lead(role="billing")
    worker.lease.lead(role="mail")
    worker.connect()
    for name in ("bill", "post"):
        worker.app.tasks[name].apply_async(countdown=60)
    worker.receive()
    worker.lease.drain(role="mail")
    worker.in_flight.call_soon(worker.in_flight.send_back)
    worker.turn()
    assert worker.size(worker.queue("mail")) == 1
    assert worker.size(worker.queue("billing")) == 0
    worker.tick(100)
    assert len(worker.pool.jobs) == 1


def waits(worker: Worker) -> bool:
    """Whether a barrier would wait now."""
    return worker.in_flight.runs("leader")


def test_a_barrier_waits_for_what_the_pool_has() -> None:
    """From the handover to the pool, not from its acceptance, to the end."""
    worker, task = leader()
    task.delay()
    worker.receive()
    assert waits(worker)
    worker.pool.jobs[0].accept()
    assert waits(worker)
    worker.pool.jobs[0].succeed()
    assert not waits(worker)


@pytest.mark.parametrize("end", ["failed", "refused", "lost"])
def test_every_end_of_a_task_ends_the_wait(end: str) -> None:
    """Also a child that died, and a pool that took nothing."""
    worker, task = leader()
    if end == "refused":
        worker.pool.closed = True
    task.delay()
    worker.receive()
    if end != "refused":
        worker.pool.jobs[0].accept()
        worker.pool.jobs[0].fail(error(ValueError("no") if end == "failed" else WorkerLostError("gone")))
    assert not waits(worker)


def test_a_task_over_its_time_limit_is_waited_for_until_it_is_dead() -> None:
    """Celery reports it, in two steps, and kills then."""
    worker, task = leader(acks_late=True)
    task.delay()
    worker.receive()
    (job,) = worker.pool.jobs
    job.accept()
    job.fail(error(TimeLimitExceeded(1)))
    assert waits(worker)
    job.exceed()
    assert waits(worker)
    wait_until(lambda: not waits(worker), timeout=5, what="the child's death")


@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_a_task_over_its_time_limit_is_forgotten(pool: str) -> None:
    """Its message may be large. gevent reports in one step."""
    worker, task = leader()
    task.delay()
    worker.receive()
    job = worker.pool.jobs.pop()
    request = weakref.ref(job.request)
    job.accept()
    if pool == "prefork":
        job.fail(error(TimeLimitExceeded(1)))
    job.exceed()
    del job
    gc.collect()
    assert request() is None


def test_a_hand_over_returns_when_nothing_runs() -> None:
    """At once when the last one is over; and not before."""
    worker, task = leader()
    task.delay()
    worker.receive()
    worker.lease.drain()
    leases, looks = worker.in_flight.leases, []

    class Watched:
        def role(self, name: str) -> Any:
            looks.append(name)
            return leases.role(name)

    worker.in_flight.leases = Watched()  # type: ignore[assignment]
    receivers = worker.step
    barrier = threading.Thread(target=receivers.hand_over, kwargs={"role": "leader"}, daemon=True)
    barrier.start()
    wait_until(lambda: len(looks) > 3, timeout=5, what="the barrier")
    assert barrier.is_alive()
    worker.pool.jobs[0].accept()
    worker.pool.jobs[0].succeed()
    barrier.join(5)
    assert not barrier.is_alive()


@pytest.mark.parametrize("kind", ["changed", "fenced"])
def test_a_change_of_the_lease_sends_back(kind: str) -> None:
    """With the consumer's next turn."""
    worker, task = leader()
    task.apply_async(countdown=60)
    worker.receive()
    worker.lease.lose()
    getattr(worker.step, kind)(role="leader", term=7)
    worker.turn()
    assert worker.size(worker.queue()) == 1


def test_a_hand_over_returns_when_the_lease_ends() -> None:
    """A task that does not end holds nobody up for longer."""
    worker, task = leader()
    task.delay()
    worker.receive()
    worker.lease.lose()
    worker.step.hand_over(role="leader")
    assert waits(worker)


def test_an_error_in_a_hand_over_does_not_release_early(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and the lease kept to its end."""
    worker, _ = leader()

    def broken(_: str) -> None:
        raise RuntimeError("a bug")

    worker.in_flight.wait_until_idle = broken  # type: ignore[method-assign]
    ends = time.monotonic() + 0.1
    worker.lease.lead(until=0.1, resigning=True)
    worker.step.hand_over(role="leader")
    assert time.monotonic() >= ends
    assert "a bug" in caplog.text


def test_a_lost_connection_drops_what_waits() -> None:
    """The broker hands it out anew: here it runs no more, and raises no prefetch count."""
    worker, task = leader()
    task.apply_async(countdown=60)
    worker.receive()
    worker.step.stop(worker.consumer)
    assert not worker.in_flight.progressing()
    worker.connect()
    value = worker.consumer.qos.value
    worker.tick(100)
    assert worker.pool.jobs == []
    assert worker.consumer.qos.value == value
    assert worker.in_flight.progressing()


def test_a_lost_connection_drops_what_no_child_has() -> None:
    """The pool forgets what it has not written; what a child may have is waited for."""
    worker, task = leader()
    task.delay()
    task.delay()
    worker.receive()
    first, second = worker.pool.jobs
    first.written()
    worker.step.stop(worker.consumer)
    assert waits(worker)
    first.accept()
    first.succeed()
    assert not waits(worker)
    second.accept()  # after all
    assert waits(worker)


def test_a_worker_that_stops_sends_back_before_it_waits_for_its_pool() -> None:
    """Whether it leads or not."""
    worker, task = leader()
    task.apply_async(countdown=60)
    worker.receive()
    worker.consumer.blueprint.state = 3  # CLOSE
    worker.step.stop(worker.consumer)
    assert worker.size(worker.queue()) == 1


def test_a_pool_that_has_ended_runs_nothing() -> None:
    """Killed children tell nobody."""
    worker, task = leader()
    task.delay()
    worker.receive()
    worker.in_flight.pool_ended()
    assert not waits(worker)


def fence(worker: Worker) -> None:
    worker.lease.lose()
    worker.step.fenced(role="leader", term=7)
    worker.turn()


def killing(**options: Any) -> tuple[Worker, Any]:
    worker, task = leader(**options)
    worker.in_flight.fence_kills = True
    return worker, task


def test_a_fenced_worker_kills_if_told_so() -> None:
    """With acks_late the task goes back, unacknowledged; what the child's death says later changes nothing."""
    worker, task = killing(acks_late=True)
    task.delay()
    worker.receive()
    (job,) = worker.pool.jobs
    job.accept()
    fence(worker)
    worker.turn()
    assert worker.pool.killed == [(4242, 9)]
    assert worker.size(worker.queue()) == 1
    job.fail(error(SystemExit(-9)))
    worker.turn()
    assert worker.size(worker.queue()) == 1
    assert not state.requests


def test_a_task_killed_after_its_acknowledgement_has_failed(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody else has it: that must be seen."""
    worker, task = killing()
    sent = task.delay()
    worker.receive()
    (job,) = worker.pool.jobs
    job.accept()
    fence(worker)
    assert worker.pool.killed == [(4242, 9)]
    assert isinstance(worker.app.AsyncResult(sent.id).result, LeadershipLost)
    assert worker.size(worker.queue()) == 0
    job.fail(error(SystemExit(-9)))
    assert isinstance(worker.app.AsyncResult(sent.id).result, LeadershipLost)


def test_a_task_taken_after_the_fence_is_left_to_the_gate() -> None:
    """Which sends it back from the child. One taken before, of which the news is late, is killed."""
    worker, task = killing()
    task.delay()
    task.delay()
    worker.receive()
    before, after = worker.pool.jobs
    early = time.monotonic()
    fence(worker)
    after.accept()
    assert worker.pool.killed == []
    before.accept(at=early)
    assert worker.pool.killed == [(4242, 9)]


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that a test may kill."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def begun(worker: Worker, task: Any, child: subprocess.Popen[bytes]) -> tuple[Any, str]:
    """A task that runs in `child`."""
    sent = task.delay()
    worker.receive()
    job = worker.pool.jobs[-1]
    job.accept(pid=child.pid)
    return job, str(sent.id)


@pytest.mark.parametrize("order", ["connection, lease", "lease, connection"])
def test_a_fence_kills_with_the_task_broker_away(order: str, child: subprocess.Popen[bytes]) -> None:
    """The consumer's thread is busy with reconnecting, or gets to do so before it kills. The broker has the task."""
    worker, task = killing(acks_late=True)
    job, sent = begun(worker, task, child)
    steps = [
        lambda: worker.step.stop(worker.consumer),
        lambda: worker.step.fenced(role="leader", term=7),
    ]
    worker.lease.lose()
    for step in steps if order == "connection, lease" else reversed(steps):
        step()
    assert child.wait(5) == -signal.SIGKILL
    job.fail(error(WorkerLostError("gone")))
    assert worker.app.AsyncResult(sent).state == "PENDING"
    assert not waits(worker)


def test_a_task_killed_with_the_task_broker_away_has_failed_if_it_was_acknowledged(
    child: subprocess.Popen[bytes],
) -> None:
    """Nobody else has it."""
    worker, task = killing()
    job, sent = begun(worker, task, child)
    worker.step.stop(worker.consumer)
    fence(worker)
    assert child.wait(5) == -signal.SIGKILL
    job.fail(error(WorkerLostError("gone")))
    assert isinstance(worker.app.AsyncResult(sent).result, WorkerLostError)


def test_a_lost_connection_kills_nothing_of_a_later_term(child: subprocess.Popen[bytes]) -> None:
    """An earlier one was fenced."""
    worker, task = killing()
    fence(worker)
    worker.lease.lead(8)
    worker.step.changed()
    begun(worker, task, child)
    worker.step.stop(worker.consumer)
    assert child.poll() is None


def test_news_from_before_a_fence_without_the_task_broker_kill_when_they_come() -> None:
    """They are read with the next connection."""
    worker, task = killing()
    task.delay()
    worker.receive()
    (job,) = worker.pool.jobs
    job.written()
    worker.step.stop(worker.consumer)
    early = time.monotonic()
    fence(worker)
    job.accept(at=early)
    assert worker.pool.killed == [(4242, 9)]


def test_a_fence_kills_while_the_consumer_hangs(
    child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once; when it goes on, the task goes back."""
    monkeypatch.setattr("celery_neli.worker.in_flight.LOOP_TIMEOUT", 0.0)
    worker, task = killing(acks_late=True)
    begun(worker, task, child)
    worker.lease.lose()
    worker.step.fenced(role="leader", term=7)
    assert child.wait(5) == -signal.SIGKILL
    assert worker.size(worker.queue()) == 0
    worker.turn()
    worker.turn()
    assert worker.size(worker.queue()) == 1


def test_a_consumer_that_hangs_makes_no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until its loop turns again."""
    monkeypatch.setattr("celery_neli.worker.in_flight.LOOP_TIMEOUT", 0.05)
    worker, _ = leader()
    assert worker.in_flight.progressing()
    wait_until(lambda: not worker.in_flight.progressing(), timeout=5, what="the hang")
    worker.turn()
    assert worker.in_flight.progressing()


def test_a_consumer_is_asked_once_until_it_answers() -> None:
    """One that hangs for hours collects nothing. What a lost connection took along is asked again."""
    worker, _ = leader()
    asked: list[Any] = []
    worker.consumer.call_soon = asked.append
    for _ in range(3):
        worker.in_flight.progressing()
    assert len(asked) == 1
    asked.pop()()
    worker.in_flight.progressing()
    assert len(asked) == 1
    worker.step.stop(worker.consumer)
    worker.connect()
    worker.in_flight.progressing()
    assert len(asked) == 2


def test_a_long_task_on_the_consumers_thread_is_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """Solo, whatever the task."""
    monkeypatch.setattr("celery_neli.worker.in_flight.LOOP_TIMEOUT", 0.0)
    worker, task = leader()
    task.delay()
    worker.receive()
    worker.pool.jobs[0].accept()
    assert not worker.in_flight.progressing()
    worker.in_flight.inline = True
    assert worker.in_flight.progressing()
    worker.pool.jobs[0].succeed()
    assert not worker.in_flight.progressing()


def test_nothing_is_killed_unless_told_so() -> None:
    """`neli_fence_kills` is off by default."""
    worker, task = leader()
    task.delay()
    worker.receive()
    worker.pool.jobs[0].accept()
    fence(worker)
    assert worker.pool.killed == []


def test_pools_that_cannot_do_it_are_refused() -> None:
    """With the reason, and what to do."""
    refuse_pool("prefork", fence_kills=True, spawn=False)
    for pool in ("threads", "solo", "gevent"):
        refuse_pool(pool, fence_kills=False, spawn=True)
        with pytest.raises(ConfigurationError, match=f"neli_fence_kills = True with worker_pool = '{pool}'"):
            refuse_pool(pool, fence_kills=True, spawn=False)
    with pytest.raises(ConfigurationError, match="eventlet"):
        refuse_pool("eventlet", fence_kills=False, spawn=False)
    with pytest.raises(ConfigurationError, match="worker_pool_start_method = 'spawn'"):
        refuse_pool("prefork", fence_kills=False, spawn=True)
