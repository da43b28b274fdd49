"""Asking a result backend costs the scheduler little, whatever state the backend is in."""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from celery.backends.base import KeyValueStoreBackend
from celery.beat import ScheduleEntry

from celery_neli.beat.replicated.overlap_check import OverlapCheck
from celery_neli.exceptions import ConfigurationError
from tests.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOW = 1_767_225_600.0


class Store:
    """What a fake result backend knows, and how it behaves: `answers` cleared, it hangs; `error` set, it raises."""

    def __init__(self) -> None:
        self.states: dict[str, str] = {}
        self.asked: list[str] = []
        self.threads: set[int] = set()
        self.answers = threading.Event()
        self.answers.set()
        self.error: Exception | None = None
        self.delay: Callable[[], None] = lambda: None

    def state(self, task_id: str) -> str:
        self.asked.append(task_id)
        self.threads.add(threading.get_ident())
        self.delay()
        self.answers.wait(10)
        if self.error is not None:
            raise self.error
        return self.states.get(task_id, "PENDING")


class FakeBackend(KeyValueStoreBackend):
    """The face of its app's `Store`."""

    def _get_task_meta_for(self, task_id: str) -> dict[str, Any]:
        return {"status": self.app.store.state(task_id), "result": None}


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """A gate over a fake backend, and an entry with `skip`."""

    def __init__(self) -> None:
        self.store, self.clock = Store(), Clock()
        self.app: Any = Celery("gate", broker="memory://", backend=f"{__name__}:FakeBackend", set_as_current=False)
        self.app.store = self.store
        self.gate = OverlapCheck(self.app, patience=10.0, clock=self.clock)

    def entry(self, name: str = "hourly", **options: Any) -> ScheduleEntry:
        given = {"neli_overlap": "skip", **options}
        return ScheduleEntry(name=name, task="import", schedule=60.0, options=given, app=self.app)

    def holds(
        self, task_id: str | None = "1", *, name: str = "hourly", started: float = NOW - 60, **options: Any
    ) -> bool:
        return self.gate.holds(self.entry(name, **options), task_id, started, NOW)

    def impatient(self) -> None:
        """Have a gate that waits a hundredth of a second, by the real clock."""
        self.gate = OverlapCheck(self.app, patience=0.01)


@pytest.fixture
def bench() -> Iterator[Bench]:
    before = set(threading.enumerate())
    made = Bench()
    yield made
    made.store.answers.set()
    made.gate.close()
    wait_until(lambda: set(threading.enumerate()) <= before, timeout=5, what="the end of its thread")


def test_a_slot_is_held_until_the_last_task_has_finished(bench: Bench) -> None:
    """The task that was sent last decides, whoever sent it."""
    assert bench.holds("1")
    bench.clock.now += 1
    assert bench.holds("1")
    bench.store.states["1"] = "SUCCESS"
    bench.clock.now += 1
    assert not bench.holds("1")
    assert bench.holds("2")


def test_the_first_task_is_not_held(bench: Bench) -> None:
    """Nothing was ever sent: there is nobody to ask for."""
    assert not bench.holds(None)
    assert bench.store.asked == []


def test_entries_that_allow_overlaps_cost_nothing(bench: Bench) -> None:
    """No question, no thread."""
    before = set(threading.enumerate())
    assert not bench.holds(neli_overlap="allow")
    assert not bench.gate.holds(ScheduleEntry(name="plain", task="import", schedule=1.0, app=bench.app), "1", NOW, NOW)
    assert bench.store.asked == []
    assert set(threading.enumerate()) <= before


def test_tasks_that_run_in_beat_itself_are_not_asked_for(bench: Bench) -> None:
    """With `task_always_eager` a task has finished before the next slot, and its result is stored nowhere."""
    bench.app.conf.task_always_eager = True
    assert not bench.holds()
    assert bench.gate.unanswered == 0


def test_an_unfinished_task_counts_for_its_age_only(bench: Bench) -> None:
    """Lost tasks look unfinished; the age is the entry's own."""
    assert bench.holds(started=NOW - 59, neli_overlap_age=60)
    assert not bench.holds(started=NOW - 61, neli_overlap_age=60)


def test_a_held_entry_does_not_ask_on_every_tick(bench: Bench) -> None:
    """An answer is good for half a second; that a task has finished stays true."""
    assert [bench.holds() for _ in range(5)] == [True] * 5
    assert bench.store.asked == ["1"]
    bench.clock.now += 0.6
    bench.store.states["1"] = "SUCCESS"
    assert [bench.holds() for _ in range(5)] == [False] * 5
    bench.clock.now += 3600
    assert not bench.holds()
    assert bench.store.asked == ["1", "1"]


def test_what_was_sent_goes_before_what_the_caller_says(bench: Bench) -> None:
    """A slot that was left out has an id that nobody sent, and a late slot an age that its task has not."""
    bench.gate.sent("hourly", "sent", NOW - 10)
    bench.store.states["sent"] = "SUCCESS"
    assert not bench.holds("left out")
    bench.gate.sent("hourly", "sent late", NOW - 1)
    assert bench.holds("sent late", started=NOW - 86400)
    assert bench.store.asked == ["sent", "sent late"]


def test_in_a_new_term_the_caller_knows_better(bench: Bench) -> None:
    """Another beat may have sent since."""
    bench.gate.sent("hourly", "mine", NOW - 100)
    bench.gate.begin()
    bench.store.states["theirs"] = "SUCCESS"
    assert not bench.holds("theirs")


def test_the_backend_is_asked_by_one_other_thread(bench: Bench) -> None:
    """Not by the thread that ticks, which it might keep for minutes; one thread has one connection."""
    for number in range(5):
        bench.holds(str(number))
    assert len(bench.store.threads) == 1
    assert threading.get_ident() not in bench.store.threads


def test_a_silent_backend_is_waited_for_once(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Its silence counts as finished; nobody waits for it again before it has answered. One warning a minute.

    The thread that asks makes the result backend first, and finalises the app, which takes longer than all these calls
    now and then: what it asked is known for certain when it has ended.
    """
    before = set(threading.enumerate())
    bench.impatient()
    bench.store.answers.clear()
    began = time.monotonic()
    assert not any(bench.holds(name=f"entry {number}") for number in range(1000))
    assert time.monotonic() - began < 5
    assert bench.gate.unanswered == 1000
    bench.gate.close()
    bench.store.answers.set()
    wait_until(lambda: set(threading.enumerate()) <= before, timeout=5, what="the end of its thread")
    assert bench.store.asked == ["1"]
    (warning,) = caplog.records
    assert warning.levelname == "WARNING"
    assert "overlap unknown entry=entry 0 unanswered=1" in warning.getMessage()


def test_the_backend_is_asked_again_when_it_has_answered(bench: Bench) -> None:
    """The late answer is not lost, either."""
    bench.impatient()
    bench.store.answers.clear()
    bench.store.states["1"] = "SUCCESS"
    assert not bench.holds("1")

    def has_answered() -> bool:
        before = bench.gate.unanswered
        return not bench.holds("1") and bench.gate.unanswered == before

    assert not has_answered()
    bench.store.answers.set()
    wait_until(has_answered, timeout=5, what="an answer")
    assert bench.store.asked == ["1"]
    wait_until(lambda: bench.holds("2"), timeout=5, what="the next answer")


def test_warnings_come_once_a_minute(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """With the number of those that were not made."""
    bench.store.error = OSError("no route")
    for _ in range(61):
        assert not bench.holds()
        bench.clock.now += 1
    assert ["unanswered=1:" in each.getMessage() for each in caplog.records] == [True, False]
    assert "unanswered=61: " in caplog.records[1].getMessage()
    assert "OSError('no route')" in caplog.records[0].getMessage()


def test_a_slow_backend_takes_a_tenth_of_the_time_at_most(bench: Bench) -> None:
    """Whose every answer takes just less than the patience would otherwise bring a busy scheduler to a stop."""
    clock = bench.clock
    gate = bench.gate = OverlapCheck(bench.app, patience=1.0, clock=clock)
    waits: list[float] = []

    def slow() -> None:
        waits.append(0.9)
        clock.now += 0.9

    bench.store.delay = slow
    assert bench.holds("1")
    assert gate.unanswered == 0
    bench.store.answers.clear()  # what it has left to wait is a tenth of a second
    began = time.monotonic()
    assert not bench.holds("2")
    assert time.monotonic() - began < 0.8
    assert gate.unanswered == 1


def test_an_entry_that_was_never_checked_is_refused(bench: Bench) -> None:
    """Its options were changed in place."""
    with pytest.raises(ConfigurationError, match="beat entry 'hourly': neli_overlap = 'perhaps'"):
        bench.holds(neli_overlap="perhaps")


def test_a_closed_gate_can_be_asked_again(bench: Bench) -> None:
    """A scheduler may be closed twice, and ticked after that."""
    assert bench.holds("1")
    bench.gate.close()
    bench.gate.close()
    assert bench.holds("2")


@pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")  # Celery calls it
def test_a_real_redis_tells(redis_url: str) -> None:
    """From beat's side and from a worker's, which are two apps."""
    beat = Celery("beat", broker="memory://", backend=redis_url, set_as_current=False)
    worker = Celery("worker", broker="memory://", backend=redis_url, set_as_current=False)
    entry = ScheduleEntry(name="hourly", task="import", schedule=60.0, options={"neli_overlap": "skip"}, app=beat)
    gate = OverlapCheck(beat, patience=10.0)
    try:
        assert gate.holds(entry, "first", NOW - 60, NOW)
        worker.backend.mark_as_started("second")
        assert gate.holds(entry, "second", NOW - 60, NOW)
        worker.backend.mark_as_done("third", None)
        assert not gate.holds(entry, "third", NOW - 60, NOW)
        assert gate.unanswered == 0
    finally:
        gate.close()


def test_a_redis_that_hangs_does_not_hold_up_the_scheduler() -> None:
    """It accepts connections and answers nothing, as a frozen host does: Celery would wait for two minutes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"redis://127.0.0.1:{server.getsockname()[1]}/0"
        app = Celery("beat", broker="memory://", backend=url, set_as_current=False)
        entry = ScheduleEntry(name="hourly", task="import", schedule=60.0, options={"neli_overlap": "skip"}, app=app)
        gate = OverlapCheck(app, patience=0.1)
        began = time.monotonic()
        assert not any(gate.holds(entry, str(number), NOW - 60, NOW) for number in range(100))
        assert time.monotonic() - began < 2
        gate.close()
