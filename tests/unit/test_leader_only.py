"""`@leader_only` where it is called: in the process that leads, or not."""

from __future__ import annotations

import contextvars
import inspect
import os
import pickle
import signal
import threading
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery

import celery_neli
from celery_neli import (
    ConfigurationError,
    LeadershipLost,
    NotLeader,
    current_term,
    leader_only,
    roles,
    still_leader,
)
from celery_neli.worker.leader_only import in_term
from tests.unit.leases import Lease, make_app, own_world

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Celery:
    """The current app."""
    app = make_app()
    own_world(monkeypatch, app)
    return app


@pytest.fixture
def lease(app: Celery) -> Lease:
    return Lease(app)


class TestFunctions:
    """Plain ones, which are no task."""

    def test_they_run_where_the_role_is_led(self, lease: Lease):
        """And hand on what goes in and comes out."""
        lease.lead(term=12)

        @leader_only
        def term(a: int, *, b: int) -> tuple[int, int, int]:
            return a, b, current_term()

        assert term(1, b=2) == (1, 2, 12)

    def test_elsewhere_they_do_not(self, lease: Lease):
        """NotLeader, which names the function and the role."""
        ran: list[int] = []
        with pytest.raises(NotLeader, match=r"test_leader_only\..*append.* does not lead 'leader'"):
            leader_only(_appending(ran))()
        lease.lead()
        lease.drain()
        with pytest.raises(NotLeader):
            leader_only(_appending(ran))()
        lease.lose()
        with pytest.raises(NotLeader):
            leader_only(_appending(ran))()
        assert ran == []

    @pytest.mark.parametrize("default", [None, 3, NotLeader])
    def test_a_default_in_place_of_the_error(self, lease: Lease, default: Any):
        """None is one too."""
        assert leader_only(default=default)(_appending([]))() is default

    def test_a_process_without_an_election_leads_nothing(self, app: Celery):
        """The error says what to do."""
        with pytest.raises(NotLeader, match=r"not a worker in an election.*neli_enabled = False.*celery_neli\.install"):
            leader_only(_appending([]))()

    def test_the_app_may_be_named(self, lease: Lease):
        """Instead of the current one."""
        other = make_app("other")
        lease.lead()
        with pytest.raises(NotLeader):
            leader_only(app=other)(_appending([]))()
        Lease(other).lead(term=3)
        assert leader_only(app=other)(current_term)() == 3

    def test_the_current_app_may_be_named(self, lease: Lease):
        """Celery's proxy of it."""
        from celery import current_app

        lease.lead(term=4)
        assert leader_only(app=current_app)(current_term)() == 4

    def test_they_look_like_themselves(self):
        """Name, documentation, signature, and the function within."""

        def report(day: int) -> str:
            """Send the report."""
            return str(day)

        closed = leader_only(report)
        assert (closed.__name__, closed.__doc__) == ("report", "Send the report.")
        assert inspect.signature(closed) == inspect.signature(report)
        assert closed.__wrapped__ is report  # type: ignore[attr-defined]

    def test_methods(self, lease: Lease):
        """As functions of their class."""

        class Report:
            @leader_only
            def send(self, day: int) -> tuple[Any, int]:
                return self, day

            @staticmethod
            @leader_only
            def term() -> int:
                return current_term()

        lease.lead(term=2)
        report = Report()
        assert report.send(3) == (report, 3)
        assert Report.term() == 2

    def test_what_they_raise_comes_out(self, lease: Lease):
        """And the work is over then."""
        lease.lead()

        @leader_only
        def fails() -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fails()
        with pytest.raises(LookupError):
            current_term()

    def test_a_key_error_of_their_own_is_no_unknown_role(self, lease: Lease):
        """The gate reads roles from a mapping."""
        lease.lead()
        with pytest.raises(KeyError, match="mine"):
            leader_only(lambda: {}["mine"])()


class TestRoles:
    """Which of them is meant."""

    @pytest.fixture
    def two(self, app: Celery) -> Lease:
        app.conf.neli_roles = ["billing", "mail"]
        return Lease(app, "billing", "mail")

    def test_each_apart(self, two: Lease):
        """Leading one is not leading the other."""
        two.lead(5, "mail")
        assert leader_only(role="mail")(current_term)() == 5
        with pytest.raises(NotLeader, match="'billing'"):
            leader_only(role="billing")(current_term)()
        assert roles() == ("mail",)
        two.lead(2, "billing")
        assert roles() == ("billing", "mail")
        two.drain(2, "billing")
        assert roles() == ("mail",)

    def test_unknown(self, two: Lease):
        """The error lists the known ones, whether or not something is led."""
        two.lead(5, "mail")
        with pytest.raises(ConfigurationError, match=r"male.*'billing', 'mail'"):
            leader_only(role="male")(current_term)()

    def test_none_of_several(self, two: Lease):
        """It must be said which."""
        two.lead(5, "mail")
        with pytest.raises(ConfigurationError, match="'billing', 'mail'"):
            leader_only(current_term)()

    def test_the_only_one_needs_no_name(self, app: Celery):
        """Whatever it is called."""
        app.conf.neli_roles = ["mail"]
        Lease(app, "mail").lead(6, "mail")
        assert leader_only(current_term)() == 6
        assert leader_only(role="mail")(current_term)() == 6

    def test_a_process_without_an_election_has_none(self, app: Celery):
        """An empty tuple, not an error."""
        assert roles() == ()

    def test_work_of_one_role_within_another(self, two: Lease):
        """Asks for its own; the outer one's term is back when it is over."""
        two.lead(5, "mail")
        two.lead(8, "billing")
        inner = leader_only(role="billing")(current_term)

        @leader_only(role="mail")
        def outer() -> tuple[int, int, int]:
            return current_term(), inner(), current_term()

        assert outer() == (5, 8, 5)


class TestTasks:
    """Called in place of sent."""

    @pytest.fixture(params=["below", "above"])
    def task(self, request: pytest.FixtureRequest, app: Celery) -> Any:
        def term(x: int = 0) -> int:
            return current_term()

        if request.param == "below":
            return app.task(autoretry_for=(ArithmeticError,))(leader_only(term))
        return leader_only(app.task(autoretry_for=(ArithmeticError,))(term))

    @pytest.fixture(params=["call", "apply", "eager", "signature"])
    def call(self, request: pytest.FixtureRequest, app: Celery) -> Callable[[Any], Any]:
        if request.param == "call":
            return lambda task: task(1)
        if request.param == "apply":
            return lambda task: task.apply((1,)).get()
        if request.param == "signature":
            return lambda task: task.s(1)()
        app.conf.update(task_always_eager=True, neli_group=None)  # nothing is sent: no queue is asked for
        return lambda task: task.delay(1).get()

    def test_the_leader_runs_them(self, task: Any, call: Callable[[Any], Any], lease: Lease):
        """In its term."""
        lease.lead(term=9)
        assert call(task) == 9

    def test_others_get_an_error(self, task: Any, call: Callable[[Any], Any], lease: Lease):
        """Nothing is sent instead: the caller waits for the result here."""
        with pytest.raises(NotLeader):
            call(task)

    @pytest.mark.parametrize("order", ["below", "above"])
    def test_others_may_get_a_default(self, app: Celery, call: Callable[[Any], Any], lease: Lease, order: str):
        """As of a function."""

        def free(x: int = 0) -> str:
            return "ran"

        closed = leader_only(default="nothing")
        assert call(app.task(closed(free)) if order == "below" else closed(app.task(free))) == "nothing"

    def test_everybody_runs_them_when_it_is_off(self, app: Celery, task: Any, call: Callable[[Any], Any]):
        """neli_enabled=False: term 0, and nothing is ever lost."""
        app.conf.neli_enabled = False
        assert call(task) == 0


def test_off_it_is_open_to_everybody(app: Celery):
    """neli_enabled=False: for tests and development."""
    app.conf.update(neli_enabled=False, neli_roles=["a", "b"])
    assert leader_only(role="a", stop_on_loss=True)(lambda: (current_term(), still_leader()))() == (0, True)
    assert roles() == ("a", "b")


class TestInside:
    """What work may ask while it runs."""

    def test_still_leader(self, lease: Lease):
        """Through a handover; no more after the lease, and not in a later term."""
        said: list[bool] = []

        @leader_only
        def work() -> None:
            said.append(still_leader())
            lease.drain()
            said.append(still_leader())
            lease.lose()
            said.append(still_leader())
            lease.lead(term=8)
            said.append(still_leader())
            assert current_term() == 7

        lease.lead(term=7)
        work()
        assert said == [True, True, False, False]

    def test_stop_on_loss(self, lease: Lease):
        """It raises instead, and not before."""

        @leader_only(stop_on_loss=True)
        def work() -> None:
            assert still_leader()
            lease.drain()
            assert still_leader()
            lease.lose()
            still_leader()

        lease.lead()
        with pytest.raises(LeadershipLost, match="'leader', term 7"):
            work()

    def test_parts_of_the_work_go_on_during_a_hand_over(self, lease: Lease):
        """A leader-only function called by leader's work is part of it: of the same role, until the lease ends."""
        part = leader_only(current_term)

        @leader_only
        def work() -> None:
            lease.drain()
            assert part() == 7
            lease.lose()
            with pytest.raises(NotLeader):
                part()
            lease.lead(term=8)
            with pytest.raises(NotLeader):  # begun in another term
                part()

        lease.lead()
        work()
        assert part() == 8

    def test_outside_there_is_no_term(self, lease: Lease):
        """Also in a process that leads: LookupError, which says where to ask."""
        lease.lead()
        for ask in (current_term, still_leader):
            with pytest.raises(LookupError, match="@leader_only"):
                ask()

    def test_in_term_is_the_same_for_other_work(self, app: Celery, lease: Lease):
        """What leads by other means tells its work the same."""
        lease.lead(term=3)
        with in_term(lease.shared.role("leader"), 3):
            assert (current_term(), still_leader()) == (3, True)
            lease.lose(term=3)
            assert not still_leader()
        with pytest.raises(LookupError):
            current_term()

    def test_threads_have_work_of_their_own(self, app: Celery):
        """At the same time, each in its term; a thread that the work starts is told with a copied context."""
        app.conf.neli_roles = ["a", "b"]
        lease = Lease(app, "a", "b")
        lease.lead(1, "a")
        lease.lead(2, "b")
        both = threading.Barrier(2, timeout=10)
        seen: dict[str, Any] = {}

        def work() -> int:
            both.wait()
            term = current_term()
            both.wait()
            return term

        def run(role: str) -> None:
            seen[role] = leader_only(role=role, app=app)(work)()

        threads = [threading.Thread(target=run, args=(role,)) for role in ("a", "b")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert seen == {"a": 1, "b": 2}

        def inherits() -> None:
            thread = threading.Thread(
                target=contextvars.copy_context().run, args=(lambda: seen.update(c=current_term()),)
            )
            thread.start()
            thread.join()

        leader_only(role="b")(inherits)()
        assert seen["c"] == 2

    def test_greenlets_have_work_of_their_own(self, app: Celery):
        """On one thread, in turns."""
        gevent = pytest.importorskip("gevent")
        app.conf.neli_roles = ["a", "b"]
        lease = Lease(app, "a", "b")
        lease.lead(1, "a")
        lease.lead(2, "b")

        def work() -> list[int]:
            terms = []
            for _ in range(3):
                terms.append(current_term())
                gevent.sleep(0)
            return terms

        greenlets = [gevent.spawn(leader_only(role=role, app=app)(work)) for role in ("a", "b")]
        gevent.joinall(greenlets, raise_error=True, timeout=10)
        assert [each.value for each in greenlets] == [[1, 1, 1], [2, 2, 2]]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_asks_its_parents_lease(lease: Lease):
    """As a pool's child does: what the parent lost, the child lost."""
    closed = leader_only(default=None)(current_term)
    lease.lead(term=6)
    reads, writes = os.pipe()
    asks, asked = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            while os.read(asks, 1):
                os.write(writes, repr(closed()).encode())
        finally:
            os._exit(0)
    os.write(asked, b"?")
    assert os.read(reads, 10) == b"6"
    lease.lose(term=6)
    os.write(asked, b"?")
    assert os.read(reads, 10) == b"None"
    os.close(asks)
    os.close(asked)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(reads)
    os.close(writes)


@pytest.mark.parametrize("error", [NotLeader("why"), LeadershipLost("why")])
def test_errors_are_pickled_with_their_message(error: Exception):
    """They travel from a pool's child, and from a result backend."""
    assert str(pickle.loads(pickle.dumps(error))) == "why"  # noqa: S301 - our own


def test_the_public_names():
    """As the package exports them."""
    assert (celery_neli.leader_only, celery_neli.roles) == (leader_only, roles)


def _appending(ran: list[int]) -> Callable[[], None]:
    def append() -> None:
        ran.append(1)

    return append
