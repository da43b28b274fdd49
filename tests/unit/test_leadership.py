"""Leadership: one per process and election, its transitions as Celery signals; and the step that embeds it."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from celery.concurrency import solo
from celery.exceptions import WorkerShutdown
from celery.signals import worker_shutdown

from celery_neli import ConfigurationError, install, signals
from celery_neli.config import Config
from celery_neli.election.leadership import Leadership, leadership_for
from celery_neli.election.role_state import Payload
from celery_neli.election.shared_lease import shared
from celery_neli.kafka import connect
from celery_neli.worker.bootsteps import ElectionStep, LeaseStep
from tests.processes import wait_until
from tests.unit.memory_log import MemoryLog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

QUICK: dict[str, Any] = {
    "heartbeat_interval": 0.05,
    "heartbeat_timeout": 0.4,
    "takeover_delay": 0.02,
    "drain_timeout": 2.0,
    "stall_timeout": 1.0,
}


@pytest.fixture
def app() -> Celery:
    app = Celery("shop", set_as_current=False)
    app.conf.update(neli_group="shop", neli_kafka="127.0.0.1:1")
    return app


@pytest.fixture
def log() -> MemoryLog:
    return MemoryLog()


@pytest.fixture
def make(app: Celery, log: MemoryLog) -> Iterator[Callable[..., Leadership]]:
    made: list[Leadership] = []

    def make(*, owned: bool = False, on: MemoryLog = log, **settings: Any) -> Leadership:
        config = Config(group="shop.worker", name=f"m{len(made)}", **{**QUICK, **settings})
        made.append(Leadership(app, "beat" if owned else "worker", config, connect=on.connect))
        return made[-1]

    yield make
    for leadership in made:
        leadership.stop()


@pytest.fixture
def heard() -> Iterator[list[tuple[str, Any, str, Any]]]:
    """What the signals said: name, sender, thread, standing at that moment."""
    seen: list[tuple[str, Any, str, Any]] = []

    def receiver(sender: Leadership, signal: Any, **arguments: Any) -> None:
        assert arguments["election"] == "worker"
        assert arguments["role"] == "leader"
        seen.append((signal.name, sender, threading.current_thread().name, sender.role().standing()))

    names = ("leadership_acquired", "leadership_revoked", "leadership_fenced")
    for name in names:
        getattr(signals, name).connect(receiver, weak=False)
    yield seen
    for name in names:
        getattr(signals, name).disconnect(receiver)


def wait(condition: Callable[[], Any], what: str = "it") -> None:
    wait_until(condition, timeout=10, what=what, interval=0.01)


def test_signals_tell_what_changed_after_it_did(make: Callable[..., Leadership], heard: list[Any]) -> None:
    """Acquired: leading already. Revoked: leading no more, still held. All on the leadership's own thread."""
    leadership = make()
    leadership.start()
    wait(lambda: heard)
    leadership.stop()
    assert [(name, sender) for name, sender, _, _ in heard] == [
        ("leadership_acquired", leadership),
        ("leadership_revoked", leadership),
    ]
    assert {thread for _, _, thread, _ in heard} == {"neli-worker"}
    acquired, revoked = heard[0][3], heard[1][3]
    assert (acquired.leading, acquired.held) == (True, True)
    assert (revoked.leading, revoked.held) == (False, True)
    assert acquired.term == revoked.term
    assert not leadership.role().may_finish()
    assert leadership.stopped


def test_a_fence_is_told_when_nothing_is_held_any_more(
    make: Callable[..., Leadership], log: MemoryLog, heard: list[Any]
) -> None:
    """A leader that is cut off from the log hears of it once its lease has run out."""
    leadership = make()
    leadership.start()
    wait(leadership.role().may_start)
    log.reachable = False
    wait(lambda: heard and heard[-1][0] == "leadership_fenced")
    assert not heard[-1][3].held


def test_a_revoked_receiver_holds_up_the_hand_over(make: Callable[..., Leadership]) -> None:
    """The next leader comes only when every receiver has returned."""
    first, second = make(), make()
    assert first.role().leader() is None
    first.start()
    wait(first.leading)
    second.start()
    wait(lambda: second.role().leader() == first.role().leader() == "m0", "the leader's name at both")
    go, waiting = threading.Event(), threading.Event()

    def receiver(sender: Leadership, **_: Any) -> None:
        if sender is first:
            waiting.set()
            go.wait(10)

    signals.leadership_revoked.connect(receiver)
    first.role().resign()
    assert waiting.wait(10)
    assert first.role().may_finish()
    assert first.held("leader")
    assert not first.leading("leader"), "as docs/reference.md has receivers ask"
    assert not second.role().may_start()
    go.set()
    wait(second.role().may_start)
    assert not first.role().may_finish()


def test_the_owners_barrier_comes_after_all_receivers(make: Callable[..., Leadership]) -> None:
    """It may take its time: no receiver hears of the revocation later for it, and the role is held until it returns."""
    leadership = make()
    seen: list[str] = []

    def receiver(**_: Any) -> None:
        seen.append("receiver")

    def barrier(role: str) -> None:
        seen.append(role)
        assert leadership.role().may_finish()
        assert not leadership.role().may_start()
        seen.append("held")

    leadership.barrier = barrier
    signals.leadership_revoked.connect(receiver, sender=leadership)
    leadership.start()
    wait(leadership.role().may_start)
    leadership.stop()
    assert seen == ["receiver", "leader", "held"]


def test_an_owner_offers_data_and_hears_when_they_were_read_back(make: Callable[..., Leadership]) -> None:
    """Of the first role, unless it names another; a stranger to the election is a ValueError."""
    leadership = make(on=MemoryLog(roles=2), roles=("leader", "second"))
    heard = threading.Event()
    leadership.on_readback = heard.set
    assert leadership.role().last_payload == Payload()
    leadership.start()
    wait(lambda: leadership.role().may_start() and leadership.role("second").may_start())
    for role, marks in ((None, {"claimed": 1.0}), ("second", {"claimed": 2.0})):
        heard.clear()
        term = leadership.role(role).standing().term
        assert term is not None
        leadership.role(role).set_payload(term, marks, now=True)
        assert heard.wait(5)
        wait(lambda role=role, marks=marks: leadership.role(role).last_payload.data == marks)
        assert leadership.role(role).last_payload.own
    with pytest.raises(ValueError, match="third"):
        leadership.role("third").ask()


def test_a_role_that_another_leads_can_be_asked_for(make: Callable[..., Leadership]) -> None:
    """Without an argument the first role."""
    first, second = make(), make()
    first.start()
    wait(first.role().may_start)
    second.start()
    wait(second.role().leader)
    second.role().ask()
    wait(second.role().may_start)
    assert not first.role().may_finish()


def test_a_receiver_that_does_not_return_does_not_hold_up_the_end(make: Callable[..., Leadership]) -> None:
    """The role is released after drain_timeout, and stop returns soon after: a supervisor's patience is short."""
    leadership = make()
    go = threading.Event()

    def receiver(sender: Leadership, **_: Any) -> None:
        go.wait(60)

    signals.leadership_revoked.connect(receiver)
    leadership.start()
    wait(leadership.role().may_start)
    began = time.monotonic()
    leadership.stop()
    took = time.monotonic() - began
    go.set()
    assert leadership.stopped
    assert took < QUICK["drain_timeout"] + 8


def test_an_owned_leadership_resigns_when_its_owner_makes_no_progress(make: Callable[..., Leadership]) -> None:
    """A hung scheduler is not kept in office by a thread that renews; one that goes on may lead again."""
    leadership = make(owned=True)
    leadership.start()
    wait(leadership.role().may_start)
    wait(lambda: not leadership.role().may_start(), "resignation")

    def turned() -> bool:
        leadership.progress()
        return leadership.role().may_start()

    wait(turned, "leadership after progress")


def test_a_process_that_is_not_fit_neither_claims_nor_leads(make: Callable[..., Leadership]) -> None:
    """A beat that may not read its schedule would lead and send nothing. Another leads, or it does once it is fit."""
    fit = threading.Event()
    unfit = make()
    unfit.fit = fit.is_set
    unfit.start()
    other = make()
    other.start()
    wait(other.role().may_start, "the other leads")
    other.stop()
    fit.set()
    wait(unfit.role().may_start, "it leads")
    fit.clear()
    wait(lambda: not unfit.role().may_finish(), "it leads no more")


def test_an_unowned_leadership_needs_no_owner(make: Callable[..., Leadership], heard: list[Any]) -> None:
    """A worker's leadership looks after itself: three stall timeouts later it has not resigned."""
    leadership = make()
    leadership.start()
    wait(leadership.role().may_start)
    end = leadership.role().standing().until + 3 * QUICK["stall_timeout"]
    wait(lambda: leadership.role().standing().until > end)
    assert "leadership_revoked" not in [name for name, *_ in heard]


def test_a_leadership_that_does_not_work_resigns(
    make: Callable[..., Leadership], caplog: pytest.LogCaptureFixture
) -> None:
    """A worker whose task broker is gone must not keep the role from others; when it is back it may lead again. The log
    says where the main thread is, which should be at work.
    """
    leadership = make()
    working = threading.Event()
    working.set()
    leadership.working = working.is_set
    leadership.start()
    wait(leadership.role().may_start)
    working.clear()
    wait(lambda: not leadership.role().may_start(), "resignation")
    wait(lambda: "neli_stall_timeout" in caplog.text, "the log, which another thread writes")
    (line,) = [each.getMessage() for each in caplog.records if "neli_stall_timeout" in each.getMessage()]
    assert line.startswith("task broker out of reach, or the main thread hangs, for 1 s (neli_stall_timeout)")
    assert "the main thread is here:" in line
    assert __file__ in line
    working.set()
    wait(leadership.role().may_start, "leadership after work")


def test_roles_do_not_wait_for_each_other(make: Callable[..., Leadership]) -> None:
    """While one role's handover drains, another role is acquired, announced and handed over."""
    leadership = make(on=MemoryLog(roles=2), roles=("mail", "billing"))
    go, draining = threading.Event(), threading.Event()
    told: list[tuple[str, str]] = []

    def receiver(sender: Leadership, signal: Any, role: str, **_: Any) -> None:
        told.append((role, signal.name.partition("_")[2]))
        if told[-1] == ("mail", "revoked"):
            draining.set()
            go.wait(10)

    for each in (signals.leadership_acquired, signals.leadership_revoked):
        each.connect(receiver, sender=leadership)
    leadership.start()
    wait(lambda: leadership.role("mail").may_start() and leadership.role("billing").may_start(), "both roles")
    leadership.role("mail").resign()
    assert draining.wait(10)
    leadership.role("billing").resign()
    wait(lambda: told.count(("billing", "acquired")) == 2, "billing, handed over and led again")
    assert leadership.role("mail").may_finish()
    assert not leadership.role("mail").may_start()
    go.set()
    wait(lambda: told.count(("mail", "acquired")) == 2, "mail again")
    of_billing = [kind for role, kind in told if role == "billing"]
    assert of_billing[:3] == ["acquired", "revoked", "acquired"]


def test_a_worker_shares_its_leases_with_its_children(make: Callable[..., Leadership], app: Celery) -> None:
    """What a forked child reads is what the leadership says: leading, then nothing."""
    leadership = make()
    lease = shared(app)
    assert lease is not None
    assert lease.role("leader").leading_term() is None
    leadership.start()
    wait(lambda: lease.role("leader").leading_term() is not None)
    assert lease.role("leader").leading_term() == leadership.role().term
    leadership.stop()
    assert lease.role("leader").standing().held is False


def test_a_receiver_that_exits_ends_nothing(
    make: Callable[..., Leadership], heard: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    """`raise WorkerShutdown` in a receiver ends no worker from there, and must not end the leadership's thread."""

    def receiver(sender: Leadership, **_: Any) -> None:
        raise WorkerShutdown

    signals.leadership_acquired.connect(receiver)
    leadership = make()
    leadership.start()
    wait(lambda: any("raised WorkerShutdown" in record.getMessage() for record in caplog.records))
    leadership.stop()
    assert "leadership_revoked" in [name for name, *_ in heard]


def test_there_is_one_leadership_per_election_and_process(app: Celery) -> None:
    """Asked twice, it is the same; another election, another; after a stop, a new one."""
    beat = leadership_for(app, "beat", connect)
    assert leadership_for(app, "beat", connect) is beat
    assert leadership_for(app, "worker", connect) is not beat
    beat.stop()
    assert leadership_for(app, "beat", connect) is not beat


def test_a_forked_child_gets_a_leadership_of_its_own(app: Celery) -> None:
    """`beat -B` forks: the child must not touch its parent's clients."""
    parent = leadership_for(app, "beat", connect)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, b"own" if leadership_for(app, "beat", connect) is not parent else b"parent's")
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(read, 20) == b"own"
    os.close(read)
    os.close(write)


def worker(app: Celery, pool_cls: Any = solo.TaskPool) -> Any:
    """What a step sees of a worker."""
    parent = type("Worker", (), {})()
    parent.app, parent.pool_cls, parent.steps, parent.hostname = app, pool_cls, [], "worker@host"
    return parent


def test_install_adds_the_steps_once_and_does_not_load_the_configuration() -> None:
    """It may be repeated, and it may stand at the top of a module."""
    app = Celery("shop", set_as_current=False)
    assert install(install(app)) is app
    assert app.steps["worker"] == {LeaseStep, ElectionStep}
    assert app.steps["consumer"] == {"celery_neli.worker.consumer_step:RoleQueues"}
    assert not app.configured


def test_a_worker_with_neli_off_has_no_step(app: Celery) -> None:
    """neli_enabled = False: an ordinary worker."""
    app.conf.neli_enabled = False
    assert not LeaseStep(worker(app)).include(worker(app))
    assert not ElectionStep(worker(app)).include(worker(app))


def test_a_worker_refuses_eventlet(app: Celery) -> None:
    """Said before anything starts, with what to do."""
    pool = type("TaskPool", (), {"__module__": "celery.concurrency.eventlet"})
    with pytest.raises(ConfigurationError, match=r"worker_pool = 'eventlet'.*Choose another pool"):
        LeaseStep(worker(app)).include(worker(app, pool))


def test_a_worker_refuses_bad_settings_before_it_starts(app: Celery) -> None:
    """A worker that would never lead must not look as if it could."""
    app.conf.neli_heartbeat_timeout = 1
    with pytest.raises(ConfigurationError, match="neli_heartbeat_timeout = 1 s"):
        LeaseStep(worker(app)).include(worker(app))


def start_steps(app: Celery, leadership: Leadership, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, LeaseStep]:
    """A worker's steps, with nothing between them; they lead."""
    monkeypatch.setattr("celery_neli.worker.bootsteps.leadership_for", lambda *_: leadership)
    parent = worker(app)
    office, election = LeaseStep(parent), ElectionStep(parent)
    assert election.include(parent)
    assert office.include(parent)
    assert parent.steps == [office, election]
    for step in parent.steps:
        step.start(parent)
    wait(leadership.role().may_start)
    return parent, office


@pytest.mark.parametrize("end", ["stop", "terminate"])
def test_the_steps_hand_over_when_the_worker_has_stopped(
    end: str, app: Celery, make: Callable[..., Leadership], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The handover begins with the worker's stop, and is awaited by the last step to stop: also a cold shutdown's."""
    leadership = make()
    parent, office = start_steps(app, leadership, monkeypatch)
    assert office.info(parent)["neli"]["leading"]
    for step in parent.steps:
        step.close(parent)
    for step in reversed(parent.steps):
        getattr(step, end)(parent)
    assert leadership.stopped


def test_a_start_that_was_cut_short_hands_over_too(
    app: Celery, make: Callable[..., Leadership], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Celery stops no step then, but sends `worker_shutdown`."""
    leadership = make()
    parent, _ = start_steps(app, leadership, monkeypatch)
    worker_shutdown.send(sender=parent)
    assert leadership.stopped
