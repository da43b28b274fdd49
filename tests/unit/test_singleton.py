"""`@singleton`: when the function is called, what failures cost, what a handover waits for, what is refused."""

from __future__ import annotations

import logging
import threading
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery, current_app, shared_task

from celery_neli import ConfigurationError, current_term, install, signals, singleton, still_leader
from celery_neli.election.lease import boottime
from celery_neli.election.role_state import Grant
from celery_neli.election.shared_lease import SharedLease, share
from celery_neli.singletons import Singleton, find, registered
from celery_neli.singletons.runner import (
    BACKOFF_MOST,
    POLL_INTERVAL,
    REST_LEAST,
    REST_MOST,
    Runner,
    SingletonsStep,
    backoff,
    refuse_isolated,
)
from celery_neli.singletons.session import ChildFailed, ThreadSession
from celery_neli.worker.leader_only import Unelected
from tests.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

EVERY = 0.25


def work() -> None:
    """A function that can be registered."""


def sought() -> None:
    """Likewise, in one test."""


class Scene:
    """A runner on the test's own thread: whenever it waits, the next of `then` happens; after the last, it is closed.

    `done` is what was called, with the term in force: "setup 5", "run 5", "teardown 5", "resign".
    """

    def __init__(self, **options: Any) -> None:
        self.app = Celery("scene", set_as_current=False)
        self.lease = SharedLease(("leader", "other"))
        share(self.app, self.lease)
        self.done: list[str] = []
        self.pauses: list[float] = []
        self.now = 0.0
        self.inside: dict[str, Callable[[], None]] = {}
        self.then: list[Callable[[], None]] = []
        calls = {"function": self.call("run"), "setup": self.call("setup"), "teardown": self.call("teardown")}
        self.singleton = Singleton(name="scene:work", **{**calls, "every": EVERY, **options})
        self.runner = self.make()

    def make(self, *, resign: bool = True, lease: Any = None) -> Runner:
        lease = lease or self.lease.role("leader")
        return Runner(
            self.singleton, lease,
            lambda term: ThreadSession(self.singleton, lease, term),
            (lambda: self.done.append("resign")) if resign else None,
            wait=self.wait, clock=lambda: self.now, jitter=lambda: 1.0,
        )  # fmt: skip

    def call(self, what: str) -> Callable[[], None]:
        def called() -> None:
            self.done.append(f"{what} {current_term()}")
            self.inside.get(what, lambda: None)()

        return called

    def lead(self, term: int) -> None:
        self.lease.write(0, Grant(term, boottime() + 1000.0))

    def lapse(self) -> None:
        self.lease.write(0, Grant())

    def wait(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds
        if self.then:
            self.then.pop(0)()
        else:
            self.runner.close()

    def run(self, *then: Callable[[], None]) -> list[str]:
        """Run to the end; what was called."""
        self.then = list(then)
        self.runner.run()
        return self.done


def nothing() -> None:
    """Happens while a runner waits."""


def failing() -> None:
    raise RuntimeError("no")


def test_it_runs_while_the_role_is_led() -> None:
    """Not before, not after; set up before the first and wrapped up after the last, anew in each stretch."""
    scene = Scene()
    done = scene.run(nothing, lambda: scene.lead(5), nothing, scene.lapse, nothing, lambda: scene.lead(9))
    assert done == ["setup 5", "run 5", "run 5", "teardown 5", "setup 9", "run 9", "teardown 9"]


def test_every_is_the_pause_from_the_end_of_a_run() -> None:
    """However long the run took."""
    scene = Scene()
    scene.lead(1)

    def take_long() -> None:
        scene.now += 7.0

    scene.inside["run"] = take_long
    scene.run(nothing, nothing)
    assert scene.pauses[:3] == [EVERY, EVERY, EVERY]


def test_a_long_pause_ends_with_the_lease() -> None:
    """Within POLL_INTERVAL, though no signal tells of it."""
    scene = Scene(every=3600.0)
    scene.lead(1)
    assert scene.run(nothing, scene.lapse) == ["setup 1", "run 1", "teardown 1"]
    assert scene.pauses[:2] == [POLL_INTERVAL, POLL_INTERVAL]


@pytest.mark.parametrize("when", ["setup", "run"])
def test_nothing_is_called_after_the_lease_ended(when: str) -> None:
    """The lease is asked before each call, also between the setup and the first run. What was set up is wrapped up."""
    scene = Scene()
    scene.lead(1)
    scene.inside[when] = scene.lapse
    done = scene.run(nothing)
    assert done == [*["setup 1", "run 1"][: 1 if when == "setup" else 2], "teardown 1"]


def test_a_tenure_of_another_term_sets_nothing_up() -> None:
    """In a process of its own the command may arrive late."""
    scene = Scene()
    scene.lead(2)
    assert not ThreadSession(scene.singleton, scene.lease.role("leader"), 1).run()
    assert scene.done == []


def test_another_term_is_another_stretch() -> None:
    """Also when the runner has not seen the role being lost in between, and at once, however long the pause is."""
    scene = Scene(every=3600.0)
    scene.lead(1)
    done = scene.run(lambda: scene.lead(2), nothing)
    assert done == ["setup 1", "run 1", "teardown 1", "setup 2", "run 2", "teardown 2"]


def test_a_run_may_ask_whether_it_still_leads() -> None:
    """`still_leader` is the lease of the run's own term."""
    scene = Scene()
    scene.lead(1)
    seen = []

    def ask() -> None:
        seen.append(still_leader())
        scene.lapse()
        seen.append(still_leader())

    scene.inside["run"] = ask
    scene.run()
    assert seen == [True, False]


def test_failures_are_retried_with_a_growing_pause_until_one_succeeds(caplog: pytest.LogCaptureFixture) -> None:
    """0.1 s, doubled, not less than `every`; after a success it begins anew. Each is logged with its traceback."""
    scene = Scene(every=0.15)
    scene.lead(1)
    outcomes = [failing, failing, failing, nothing, failing]
    scene.inside["run"] = lambda: outcomes.pop(0)()
    scene.run(*[nothing] * 4)
    assert scene.pauses[:5] == pytest.approx([0.15, 0.2, 0.4, 0.15, 0.15])
    assert scene.done.count("setup 1") == 1
    told = [each for each in caplog.records if "singleton failed" in each.message]
    assert ["failures=1" in each.message for each in told] == [True, False, False, True]
    assert all(each.exc_info and each.levelno == logging.ERROR for each in told)


def test_the_pause_is_capped_and_spread() -> None:
    """By the half, and never below `every`."""
    assert backoff(50, 0.1, 1.0) == BACKOFF_MOST
    assert backoff(50, 0.1, 0.0) == BACKOFF_MOST / 2
    assert backoff(10_000, 60.0, 0.0) == 60.0


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("where", ["setup", "run"])
def test_after_max_failures_in_a_row_the_role_is_resigned(where: str, error: type[BaseException]) -> None:
    """Whatever is raised, in the setup or the run; after the teardown, if there was a setup. Asked for again while it
    is led; no more runs in this term, and a new count in the next.
    """
    scene = Scene(max_failures=3)
    scene.lead(1)

    def fail() -> None:
        raise error("no")

    def lead_later() -> None:
        scene.now += REST_LEAST
        scene.lead(2)

    scene.inside[where] = fail
    done = scene.run(nothing, nothing, nothing, lead_later, nothing)
    tried = {"setup": ["setup 1"] * 3, "run": ["setup 1", "run 1", "run 1", "run 1", "teardown 1"]}[where]
    again = {"setup": ["setup 2"] * 2, "run": ["setup 2", "run 2", "run 2", "teardown 2"]}[where]
    assert done == [*tried, "resign", "resign", *again]


def test_after_giving_up_it_rests_longer_each_time() -> None:
    """10 s, doubled up to 5 min, whatever is led meanwhile, which is not resigned; workers with the same fault do not
    pass the role to and fro. A run that returns ends the row.
    """
    scene = Scene(max_failures=1)
    outcomes = [failing] * 7 + [nothing] + [failing] * 2
    began: list[float] = []

    def run() -> None:
        began.append(scene.now)
        outcomes.pop(0)()

    def lead_again() -> None:
        if scene.done[-1:] == ["resign"]:  # a new term, at once
            scene.done.clear()
            scene.lead(int(scene.now * 10) + 2)

    scene.inside["run"] = run
    scene.lead(1)
    scene.run(*[lead_again] * 2500)
    rests = [10, 20, 40, 80, 160, 300, 300, EVERY, 10]
    assert (REST_LEAST, REST_MOST) == (10, 300)
    waited = [later - sooner for sooner, later in pairwise(began)]
    assert waited[: len(rests)] == pytest.approx(rests, abs=2 * POLL_INTERVAL)


def test_what_failed_in_another_process_is_logged_as_that_tells_it(caplog: pytest.LogCaptureFixture) -> None:
    """With the traceback from there and none of here; readable, not as a literal."""
    scene = Scene()
    scene.lead(1)

    def fail() -> None:
        raise ChildFailed("RuntimeError('no') in its process\nTraceback (most recent call last):\n  there")

    scene.inside["run"] = fail
    scene.run()
    assert caplog.text.count("singleton failed") == 1
    assert caplog.text.count("Traceback") == 1
    assert "failures=1: RuntimeError('no') in its process\nTraceback (most recent call last):\n  there" in caplog.text


def test_a_teardown_that_fails_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """And costs nothing else."""
    scene = Scene()
    scene.lead(1)
    scene.inside["teardown"] = failing
    done = scene.run(scene.lapse, lambda: scene.lead(2))
    assert done == ["setup 1", "run 1", "teardown 1", "setup 2", "run 2", "teardown 2"]
    assert "singleton teardown failed" in caplog.text


def test_without_elections_it_runs_in_term_0_and_never_gives_up() -> None:
    """There is nobody to hand over to."""
    scene = Scene(max_failures=1)
    scene.runner = scene.make(resign=False, lease=Unelected("leader"))
    scene.inside["run"] = failing
    assert scene.run(nothing, nothing) == ["setup 0", "run 0", "run 0", "run 0", "teardown 0"]


def test_a_closed_runner_calls_nothing() -> None:
    """Whoever leads."""
    scene = Scene()
    scene.lead(1)
    scene.runner.close()
    assert scene.run() == []


@pytest.fixture
def deaf(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runners look by themselves once a minute only."""
    monkeypatch.setattr("celery_neli.singletons.runner.POLL_INTERVAL", 60.0)


def test_a_runner_that_waits_is_woken(deaf: None) -> None:
    """By `ring` once for each, by `close` for good."""
    asked: list[str] = []

    class Counting(Unelected):
        def leading_term(self) -> Any:
            asked.append(self.name)

    runner = Runner(Scene().singleton, Counting("leader"), lambda term: pytest.fail("led"), None)
    thread = threading.Thread(target=runner.run, daemon=True)
    thread.start()
    for count in (1, 2, 3):
        wait_until(lambda count=count: len(asked) == count, timeout=10, what=f"look {count}", interval=0.001)
        wait_until(lambda: runner.wait_idle(0.001), timeout=10, what="it to wait again")
        runner.wake() if count < 3 else runner.close()
    thread.join(10)
    assert not thread.is_alive()
    assert len(asked) == 3


def test_a_runner_is_idle_only_while_nothing_can_begin() -> None:
    """Busy before it asks the lease: who saw it idle after the lease ended knows that nothing starts any more."""
    idle: list[bool] = []

    scene = Scene()
    lease = scene.lease.role("leader")

    class Watched(Unelected):
        def leading_term(self) -> Any:
            idle.append(scene.runner.wait_idle(0))
            return lease.leading_term()

        def may_start(self, term: int | None = None) -> bool:
            idle.append(scene.runner.wait_idle(0))
            return lease.may_start(term)

    scene.runner = scene.make(lease=Watched("leader"))
    scene.lead(1)
    scene.inside["teardown"] = lambda: idle.append(scene.runner.wait_idle(0))
    scene.run(nothing, scene.lapse, lambda: idle.append(not scene.runner.wait_idle(0)))
    assert len(idle) > 6
    assert not any(idle)
    assert scene.runner.wait_idle(0)


# The supervisor


class Sender:
    """Whose signals they are."""


def supervisor(runner: Any, leadership: Any, drain_timeout: float) -> SingletonsStep:
    step = SingletonsStep(None)
    step.runners, step.leadership, step.drain_timeout = [runner], leadership, drain_timeout
    return step


class Blocked:
    """A supervisor of one runner, in a run that does not return until `go` is set."""

    def __init__(self, *, drain_timeout: float) -> None:
        self.scene = Scene()
        self.entered, self.go = threading.Event(), threading.Event()
        self.scene.inside["run"] = self.run
        self.leadership: Any = Sender()
        lease = self.scene.lease.role("leader")
        runner = Runner(
            self.scene.singleton, lease, lambda term: ThreadSession(self.scene.singleton, lease, term), None
        )
        self.supervisor = supervisor(runner, self.leadership, drain_timeout)
        self.scene.lead(1)
        self.supervisor.start(Sender())
        assert self.entered.wait(10)

    def run(self) -> None:
        self.entered.set()
        self.go.wait(10)

    def revoke(self, role: str = "leader") -> threading.Thread:
        self.scene.lease.write(0, Grant(1, boottime() + 1000.0, resigning=True))
        told = {"sender": self.leadership, "election": "worker", "role": role, "term": 1}
        thread = threading.Thread(target=signals.leadership_revoked.send, kwargs=told, daemon=True)
        thread.start()
        return thread


def test_a_hand_over_waits_for_the_run_and_the_teardown() -> None:
    """The receivers of `leadership_revoked` return when it has wrapped up."""
    blocked = Blocked(drain_timeout=60.0)
    hand_over = blocked.revoke()
    hand_over.join(0.05)
    assert hand_over.is_alive()
    blocked.go.set()
    hand_over.join(10)
    assert not hand_over.is_alive()
    assert blocked.scene.done == ["setup 1", "run 1", "teardown 1"]
    blocked.supervisor.finish()


@pytest.mark.parametrize(("role", "drain_timeout"), [("leader", 0.05), ("other", 60.0)])
def test_a_hand_over_does_not_wait_for_ever(role: str, drain_timeout: float) -> None:
    """`neli_drain_timeout` at most, and not at all for another role."""
    blocked = Blocked(drain_timeout=drain_timeout)
    hand_over = blocked.revoke(role)
    hand_over.join(10)
    assert not hand_over.is_alive()
    assert blocked.scene.done == ["setup 1", "run 1"]
    blocked.go.set()
    blocked.supervisor.finish()


def test_a_shutdown_waits_for_the_run_but_not_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    """The worker ends without it, and says so."""
    blocked = Blocked(drain_timeout=0.05)
    blocked.supervisor.finish()
    assert "singleton still running singleton=scene:work role=leader" in caplog.text
    blocked.go.set()
    wait_until(lambda: "teardown 1" in blocked.scene.done, timeout=10, what="its end")


def test_an_acquisition_is_heard_at_once() -> None:
    """By the runners of this role, and of this leadership; so is a fence."""
    leadership: Any = Sender()
    rung: list[int] = []
    runner: Any = SimpleNamespace(role="leader", singleton=Scene().singleton, run=nothing, wake=lambda: rung.append(1))
    supervisor(runner, leadership, 1.0).start(Sender())
    for signal in (signals.leadership_acquired, signals.leadership_fenced):
        signal.send(sender=leadership, election="worker", role="leader", term=1)
        signal.send(sender=leadership, election="worker", role="other", term=1)
        signal.send(sender=object(), election="worker", role="leader", term=1)
    assert rung == [1, 1]


# Registration


@pytest.fixture
def app() -> Celery:
    app = Celery("shop", set_as_current=False)
    app.conf.update(neli_group="shop", neli_kafka="127.0.0.1:1")
    return app


def worker(app: Celery, *steps: str) -> Any:
    """What a step sees of a worker."""
    blueprint = SimpleNamespace(steps=dict.fromkeys(steps))
    return SimpleNamespace(
        app=app, blueprint=blueprint, loglevel=20, logfile=None, hostname="one@host", pool_cls="prefork"
    )


def test_the_function_is_returned_as_it_is(app: Celery) -> None:
    """A direct call is an ordinary call. The configuration is not loaded, and no thread is started."""
    lazy = Celery("lazy", config_source="no.such.module", set_as_current=False)
    threads = threading.active_count()
    assert singleton(lazy)(work) is work
    assert [each.function for each in registered(lazy)] == [work]
    assert "celery_neli.singletons.runner:SingletonsStep" in lazy.steps["worker"]
    assert threading.active_count() == threads


def test_a_module_that_is_loaded_again_replaces_its_registration(app: Celery) -> None:
    """The same name and role; lambdas have no name of their own."""
    singleton(app, every=1)(work)
    singleton(app, every=2)(work)
    singleton(app, role="other")(work)
    singleton(app)(lambda: None)
    singleton(app)(lambda: None)
    assert [(each.role, each.every) for each in registered(app)][:2] == [(None, 2.0), ("other", 0.1)]
    assert len(registered(app)) == 4


def test_an_isolated_process_finds_it_by_name(app: Celery) -> None:
    """Or learns what is missing."""
    singleton(app, isolate=True)(sought)
    assert find(f"{__name__}:sought", None) == (app, registered(app)[0])
    with pytest.raises(ConfigurationError, match="an import of its module does not register it"):
        find(f"{__name__}:play", None)


def test_the_current_app_is_an_app() -> None:
    """Celery's proxy stands for it."""
    app = Celery("current")
    singleton(current_app)(work)
    assert registered(app)


async def coroutine() -> None: ...


@shared_task
def task() -> None: ...


@pytest.mark.parametrize(
    ("options", "function", "message"),
    [
        ({"every": 0}, work, "every = 0: give a number of seconds above 0"),
        ({"every": float("nan")}, work, "every = nan"),
        ({"every": True}, work, "every = True"),
        ({"max_failures": 0}, work, "max_failures = 0: give a whole number, at least 1"),
        ({"max_failures": 2.5}, work, "max_failures = 2.5"),
        ({"role": 7}, work, "role = 7"),
        ({"isolate": "yes"}, work, "isolate = 'yes'"),
        ({"setup": 3}, work, "setup = 3: give a function"),
        ({"teardown": lambda term: None}, work, r"teardown = .* needs arguments"),
        ({}, "work", "function = 'work': give a function"),
        ({}, lambda term: None, r"function = .* needs arguments"),
        ({}, coroutine, "is a coroutine function"),
        ({}, task, "function is a Celery task: give a function, with @singleton below @app.task"),
        ({"isolate": True}, lambda: None, "a new process must find it by import"),
    ],
)
def test_what_cannot_work_is_refused_at_registration(
    options: dict[str, Any], function: Any, message: str, app: Celery
) -> None:
    """With the parameter, its value and what to do."""
    with pytest.raises(ConfigurationError, match=message):
        singleton(app, **options)(function)
    assert registered(app) == ()


def test_a_script_s_function_cannot_be_isolated(app: Celery) -> None:
    """A new process would not find it in its own `__main__`."""

    def script() -> None: ...

    script.__module__, script.__qualname__ = "__main__", "script"
    with pytest.raises(ConfigurationError, match="move the function into a module that the script imports"):
        singleton(app, isolate=True)(script)


def test_it_takes_an_app() -> None:
    """`@singleton` without parentheses is an easy mistake."""
    with pytest.raises(ConfigurationError, match=r"give the Celery app, as in @singleton\(app\)"):
        singleton(work)  # type: ignore[arg-type]


def test_a_worker_without_an_election_is_refused(app: Celery) -> None:
    """With what to add; one of another app has nothing to do with it."""
    singleton(app)(work)
    with pytest.raises(ConfigurationError, match=r"call celery_neli.install\(app\), or add 'celery_neli.auto'"):
        SingletonsStep(worker(app)).include_if(worker(app))
    other = worker(install(Celery("other", set_as_current=False)))
    assert not SingletonsStep(other).include_if(other)


def test_gevent_with_a_process_needs_python_3_11(app: Celery) -> None:
    """Before, the worker would crash at its end."""
    singleton(app, isolate=True)(work)
    with pytest.raises(ConfigurationError, match=r"@singleton\(isolate=True\) on .*:work with worker_pool = 'gevent'"):
        refuse_isolated(registered(app), "gevent", (3, 10))
    for pool, python in (("gevent", (3, 11)), ("prefork", (3, 10))):
        refuse_isolated(registered(app), pool, python)


def test_a_module_that_no_new_process_would_find_is_refused(
    app: Celery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the path of the import that registered it, which may have been another than now; only if it is isolated."""

    def relay() -> None: ...

    relay.__qualname__, relay.__module__ = "relay", "neli_sought.shop"
    singleton(app)(relay)
    off = worker(app, "celery_neli.ElectionStep")
    assert SingletonsStep(off).include_if(off)
    singleton(app, isolate=True)(relay)
    with pytest.raises(ConfigurationError, match=r"neli_sought\.shop:relay: a new process cannot find that module"):
        SingletonsStep(worker(app)).include_if(worker(app))
    (tmp_path / "neli_sought").mkdir()
    (tmp_path / "neli_sought" / "__init__.py").touch()
    with monkeypatch.context() as importing:
        importing.syspath_prepend(tmp_path)
        singleton(app, isolate=True)(relay)
    refuse_isolated(registered(app), "prefork", (3, 10))


@pytest.mark.parametrize("role", [None, "mial"])
def test_a_role_that_is_unknown_is_refused(role: str | None, app: Celery) -> None:
    """With the known ones. With several, one must be named."""
    app.conf.neli_roles = ["billing", "mail"]
    singleton(app, role=role)(work)
    of = worker(app, "celery_neli.ElectionStep")
    with pytest.raises(ConfigurationError, match=r"@singleton on .*:work .* neli_roles has .*'billing', 'mail'"):
        SingletonsStep(of).include_if(of)


def test_switched_off_a_worker_runs_it_without_an_election(app: Celery) -> None:
    """In term 0, from the worker's start to its end."""
    app.conf.neli_enabled = False
    entered: list[int] = []
    began = threading.Event()

    def function() -> None:
        entered.append(current_term())
        began.set()

    singleton(app)(function)
    of = worker(app)
    step = SingletonsStep(of)
    assert step.include_if(of)
    step.start(of)
    assert began.wait(10)
    step.close(of)
    assert set(entered) == {0}
