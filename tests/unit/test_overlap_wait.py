"""The helper threads of the overlap policies: one asks for slots that wait, the other revokes."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery

from celery_neli.beat.replicated import overlap_wait, revoker
from celery_neli.beat.replicated.overlap_wait import Last, WaitingSlots
from celery_neli.beat.replicated.revoker import Revoker
from tests.processes import wait_until
from tests.unit.test_overlap_check import FakeBackend, Store

if TYPE_CHECKING:
    from collections.abc import Iterator


class Ticks:
    """A clock of which the test takes the hand off: real time, and what the test adds."""

    added = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.added


class Bench:
    def __init__(self) -> None:
        self.store, self.ticks = Store(), Ticks()
        self.app: Any = Celery("waiting", backend=f"{FakeBackend.__module__}:FakeBackend", set_as_current=False)
        self.app.store = self.store
        self.waiting = WaitingSlots(self.app, ticks=self.ticks)

    def add(self, name: str, *, age: float = 1000.0) -> None:
        self.waiting.add(name, Last(f"id of {name}", "import", time.time(), age))

    def ended(self, *, timeout: float = 5.0) -> list[str]:
        return wait_until(self.waiting.ended, timeout=timeout, what="the end of a task", interval=0.01)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.store.answers.set()
    made.waiting.close()
    wait_until(lambda: "neli-overlap-wait" not in [each.name for each in threading.enumerate()], timeout=5, what="end")


def test_the_end_of_a_task_is_found_within_a_second(bench: Bench) -> None:
    """And told once. The result backend is asked on one thread, which is not the one that ticks."""
    bench.add("a")
    bench.add("b")
    time.sleep(0.1)
    assert bench.waiting.ended() == []
    bench.store.states["id of b"] = "SUCCESS"
    began = time.monotonic()
    assert bench.ended() == ["b"]
    assert time.monotonic() - began < 1.0
    assert bench.waiting.ended() == []
    assert bench.waiting.last("a") is not None
    assert len(bench.store.threads) == 1
    assert threading.get_ident() not in bench.store.threads


def test_many_slots_that_wait_share_the_questions(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has its turn, and all together ask no more often than so many times a second."""
    monkeypatch.setattr(overlap_wait, "MOST", 50)
    for number in range(100):
        bench.add(str(number))
    began = time.monotonic()
    wait_until(lambda: len(set(bench.store.asked)) == 100, timeout=10, what="a question for each", interval=0.01)
    took = time.monotonic() - began
    assert len(bench.store.asked) == 100, "none twice before the others had their turn"
    assert took > 1.5


def test_what_waits_no_more_is_not_asked_for(bench: Bench) -> None:
    """Nor is its end told, if the answer was on its way."""
    bench.store.answers.clear()
    bench.add("a")
    wait_until(lambda: bench.store.asked, timeout=5, what="a question")
    bench.waiting.drop("a")
    bench.store.states["id of a"] = "SUCCESS"
    bench.store.answers.set()
    bench.add("b")
    bench.store.states["id of b"] = "SUCCESS"
    assert bench.ended() == ["b"]
    assert bench.store.asked.count("id of a") == 1
    bench.add("c")
    wait_until(lambda: "id of c" in bench.store.asked, timeout=5, what="a question")
    bench.waiting.drop("c")
    asked = bench.store.asked.count("id of c")
    time.sleep(3 * overlap_wait.EVERY)
    assert bench.store.asked.count("id of c") == asked


def test_a_task_that_is_too_old_has_ended(bench: Bench) -> None:
    """Its slot waits no longer, whatever the result backend says."""
    bench.add("a", age=0.0)
    assert bench.ended() == ["a"]
    assert bench.store.asked == []


@pytest.mark.parametrize("how", ["raises", "hangs"])
def test_a_backend_that_is_silent_lets_all_slots_go_after_a_while(
    bench: Bench, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A blip does not. One line says so."""
    if how == "raises":
        bench.store.error = OSError("no route")
    else:
        bench.store.answers.clear()
    bench.add("a")
    bench.add("b")
    wait_until(lambda: bench.store.asked, timeout=5, what="a question")
    time.sleep(0.05)
    assert bench.waiting.ended() == []
    bench.ticks.added = overlap_wait.GIVE_UP + 1
    assert sorted(bench.waiting.ended()) == ["a", "b"]
    assert len(bench.waiting) == 0
    (line,) = [each.getMessage() for each in caplog.records]
    assert line.startswith("beat: overlap unknown waiting=2: ")
    assert ("no route" in line) is (how == "raises")


def test_while_nothing_waits_nobody_asks(bench: Bench) -> None:
    bench.add("a")
    bench.store.states["id of a"] = "FAILURE"
    assert bench.ended() == ["a"]
    asked = len(bench.store.asked)
    bench.ticks.added = 100.0
    assert bench.waiting.ended() == []
    time.sleep(0.1)
    assert len(bench.store.asked) == asked


# -- revoking --


class Wire:
    """Stands in for a connection to the task broker."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent: list[str] = []
        self.free = threading.Event()
        self.free.set()
        self.error: Exception | None = None
        outer = self

        class Fake:
            def __init__(self, app: Any) -> None: ...

            def send(self, each: Any, ticks: Any) -> bool:
                outer.free.wait(10)
                if outer.error is not None:
                    raise outer.error
                if ticks() > each.until:
                    return False
                if each.allowed():
                    outer.sent.append(each.task_id)
                return True

            def close(self) -> None: ...

        monkeypatch.setattr(revoker, "_Wire", Fake)


def test_revoking_waits_for_nothing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A broker that hangs holds up the helper thread alone; what is late by then is dropped, and said once."""
    wire, ticks = Wire(monkeypatch), Ticks()
    wire.free.clear()
    made = Revoker(None, ticks=ticks)
    began = time.monotonic()
    for number in range(100):
        made.revoke("e", str(number), allowed=lambda: True)
    assert time.monotonic() - began < 0.5
    ticks.added = revoker.LIMIT + 1
    made.revoke("e", "in time", allowed=lambda: True)
    wire.free.set()
    wait_until(lambda: wire.sent == ["in time"], timeout=5, what="the one that is in time")
    made.close()
    (line,) = [each.getMessage() for each in caplog.records]
    assert line.startswith("beat: not revoked entry=e id=0: the task goes on beside the new one: the task broker")


def test_a_revoke_that_fails_is_logged_and_the_next_one_leaves(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wire = Wire(monkeypatch)
    wire.error = OSError("no route")
    made = Revoker(None)
    made.revoke("e", "1", allowed=lambda: True)
    wait_until(lambda: caplog.records, timeout=5, what="a warning")
    wire.error = None
    made.revoke("e", "2", allowed=lambda: True)
    wait_until(lambda: wire.sent == ["2"], timeout=5, what="the next one")
    made.close()
    assert "no route" in caplog.text


def test_a_broker_that_answers_nothing_makes_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    """The real client, on a port where nobody listens. Nothing is raised, and nothing is tried for ever."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    made = Revoker(Celery("revokes", broker=f"redis://127.0.0.1:{port}/0", set_as_current=False))
    made.revoke("e", "1", allowed=lambda: True)
    wait_until(lambda: caplog.records, timeout=20, what="a warning")
    made.close()
    assert "beat: not revoked entry=e id=1" in caplog.text
    wait_until(lambda: "neli-revoke" not in [each.name for each in threading.enumerate()], timeout=10, what="end")


@pytest.mark.parametrize("allowed", [True, False])
def test_a_revoke_reaches_the_workers_unless_the_lease_is_lost_by_then(redis_url: str, allowed: bool) -> None:
    """The lease is asked last, when the connection is there."""
    app = Celery("revokes", broker=redis_url, set_as_current=False)
    got: list[Any] = []
    with app.connection_for_read() as connection:
        node = app.control.mailbox(connection).Node("w@host", handlers={"revoke": lambda _, **told: got.append(told)})
        consumer = node.listen(channel=connection.default_channel)
        asked: list[int] = []
        made = Revoker(app)
        made.revoke("e", "x", allowed=lambda: bool(asked.append(1)) or (allowed or len(asked) < 2))
        deadline = time.monotonic() + (10 if allowed else 1.5)
        while not got and time.monotonic() < deadline:
            with suppress(TimeoutError):
                connection.drain_events(timeout=0.1)
        made.close()
        consumer.cancel()
    assert len(asked) >= 2
    assert got == ([{"task_id": "x", "terminate": True, "signal": "SIGTERM"}] if allowed else [])


def test_a_broker_that_goes_away_costs_one_revoke_and_one_warning(
    own_redis: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Kombu would try for ever to send what it has begun to send, and it would arrive long after it is of use."""
    made = Revoker(Celery("revokes", broker=own_redis.url, set_as_current=False))
    asked: list[str] = []

    def revoke(task_id: str) -> None:
        made.revoke("e", task_id, allowed=lambda: asked.append(task_id) is None)

    revoke("1")
    wait_until(lambda: asked.count("1") == 2, timeout=10, what="a revoke on its way")
    own_redis.stop()
    revoke("2")
    wait_until(lambda: caplog.records, timeout=20, what="a warning")
    own_redis.start()
    revoke("3")
    wait_until(lambda: asked.count("3") == 2, timeout=10, what="a further revoke")
    made.close()
    wait_until(lambda: "neli-revoke" not in [each.name for each in threading.enumerate()], timeout=10, what="end")
    assert [each.getMessage().split(": the task")[0] for each in caplog.records if "revoked" in each.getMessage()] == [
        "beat: not revoked entry=e id=2"
    ]
