"""Publishers side by side: what becomes of jobs and connections, whatever the broker does."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from celery_neli.beat.replicated.publishers import Publishers, Unsent
from celery_neli.beat.tenure import LeaseEnded
from tests.unit.schedulers import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LONG = 30.0


class FakeConnection:
    """What a producer has of a connection, dropped as kombu's are."""

    def __init__(self) -> None:
        self.dropped_by: str | None = None

    def collect(self, socket_timeout: float | None = None) -> None:
        assert self.dropped_by is None, "dropped twice"
        self.dropped_by = threading.current_thread().name


class FakeProducer:
    """Sends for one thread."""

    def __init__(self) -> None:
        self.connection = FakeConnection()
        self.thread = threading.get_ident()


class Broker:
    """Jobs are callables: sending one calls it. ``connecting`` is called first for every connection."""

    def __init__(self) -> None:
        self.producers: list[FakeProducer] = []
        self.batches: list[int] = []
        self.connecting: Callable[[], Any] = lambda: None
        self.release, self.hanging = threading.Event(), threading.Event()

    def connect(self) -> FakeProducer:
        self.connecting()
        self.producers.append(FakeProducer())
        return self.producers[-1]

    def send(self, jobs: list[Callable[[], Any]], producer: FakeProducer) -> list[Any]:
        assert producer.thread == threading.get_ident(), "a producer belongs to one thread"
        assert producer.connection.dropped_by is None
        self.batches.append(len(jobs))
        return [job() for job in jobs]

    def open(self) -> int:
        return sum(each.connection.dropped_by is None for each in self.producers)

    def hang(self) -> str:
        self.hanging.set()
        assert self.release.wait(LONG), "a test lets it go"
        return "late"


@pytest.fixture
def broker() -> Iterator[Broker]:
    """A broker that nothing hangs in after the test."""
    broker = Broker()
    yield broker
    broker.release.set()


def make(broker: Broker, *, count: int = 2, **options: Any) -> Publishers[Callable[[], Any]]:
    return Publishers(count=count, connect=broker.connect, send=broker.send, **options)


def outcomes(publishers: Publishers[Any], jobs: int) -> list[Any]:
    """What became of so many jobs, in the order in which they finished."""
    found: list[Any] = []
    while len(found) < jobs:
        assert publishers.wait(LONG), f"{found} of {jobs}"
        found += publishers.finished()
    return [outcome for _, outcome in found]


def raising(exc: BaseException) -> Callable[[], Any]:
    def job() -> None:
        raise exc

    return job


def test_as_many_as_allowed_send_at_a_time_each_on_its_own_connection(broker: Broker) -> None:
    """Jobs that wait for one another pass only side by side."""
    publishers = make(broker, count=3)
    together = threading.Barrier(3, timeout=LONG)
    for _ in range(6):
        publishers.submit(together.wait)
    assert sorted(outcomes(publishers, 6)) == [0, 0, 1, 1, 2, 2]
    assert len(broker.producers) == 3
    assert publishers.close(LONG) == []


def test_threads_and_connections_are_made_when_they_are_needed(broker: Broker) -> None:
    """One job after the other needs one; the connection is kept."""
    publishers = make(broker, count=4)
    before = set(threading.enumerate())
    assert broker.producers == []
    for n in range(5):
        publishers.submit(lambda n=n: n)
        assert outcomes(publishers, 1) == [n]
    assert len(broker.producers) == 1
    assert len(set(threading.enumerate()) - before) == 1
    publishers.close(LONG)


def test_what_is_raised_comes_back_also_the_end_of_the_lease(broker: Broker) -> None:
    """On the coordinator's thread, as a value."""
    publishers = make(broker, count=1)
    faults = [ValueError("bad"), LeaseEnded("over"), SystemExit(3)]
    for fault in faults:
        publishers.submit(raising(fault))
        assert outcomes(publishers, 1) == [fault]
    publishers.close(LONG)


def test_a_connection_that_failed_is_dropped_and_the_next_job_has_a_new_one(broker: Broker) -> None:
    """Nobody knows what state it is in."""
    publishers = make(broker, count=1)
    publishers.submit(raising(ConnectionResetError()))
    publishers.submit(lambda: "sent")
    assert outcomes(publishers, 2)[1] == "sent"
    assert [each.connection.dropped_by is None for each in broker.producers] == [False, True]
    publishers.close(LONG)


def test_a_broker_that_refuses_gives_each_job_back(broker: Broker) -> None:
    """And is asked again for the next one."""
    publishers = make(broker, count=1)
    refusal = ConnectionRefusedError()
    broker.connecting = raising(refusal)
    for _ in range(2):
        publishers.submit(lambda: "sent")
        assert outcomes(publishers, 1) == [refusal]
    broker.connecting = lambda: None
    publishers.submit(lambda: "sent")
    assert outcomes(publishers, 1) == ["sent"]
    publishers.close(LONG)


def test_no_more_is_taken_than_keeps_the_publishers_busy(broker: Broker) -> None:
    """Two for each, until what finished was collected."""
    publishers = make(broker, count=3)
    assert publishers.free() == 6
    for left in range(5, -1, -1):
        publishers.submit(broker.hang)
        assert publishers.free() == left
    with pytest.raises(RuntimeError, match="no publisher is free"):
        publishers.submit(broker.hang)
    broker.release.set()
    assert publishers.wait(LONG)
    assert publishers.free() == 0, "not collected yet"
    assert outcomes(publishers, 6) == ["late"] * 6
    assert publishers.free() == 6
    assert publishers.in_flight == 0
    publishers.close(LONG)


def test_an_idle_publisher_ends_and_closes_its_connection_itself(broker: Broker) -> None:
    """On its own thread. The next job finds another."""
    publishers = make(broker, idle=0.01)
    before = set(threading.enumerate())
    for n in range(3):
        publishers.submit(lambda n=n: n)
        assert outcomes(publishers, 1) == [n]
        eventually(lambda: set(threading.enumerate()) <= before, what="the publisher's end")
        assert broker.open() == 0
    assert [each.connection.dropped_by for each in broker.producers] == ["celery-neli-publisher"] * 3
    publishers.close(LONG)


def test_every_job_is_done_once_though_publishers_end_all_the_time(broker: Broker) -> None:
    """A publisher that is about to end takes what comes that moment, or another does."""
    publishers = make(broker, count=2, idle=0.0)
    done: list[int] = []
    for n in range(300):
        publishers.submit(lambda n=n: done.append(n))
        assert outcomes(publishers, 1) == [None]
    assert done == list(range(300))
    publishers.close(LONG)


def test_closing_waits_for_what_is_being_sent_and_begins_nothing_more(broker: Broker) -> None:
    """Each job comes back once; no thread and no connection is left."""
    before = set(threading.enumerate())
    publishers = make(broker, count=1)
    publishers.submit(broker.hang)
    publishers.submit(lambda: "never")
    assert broker.hanging.wait(LONG)
    threading.Timer(0.05, broker.release.set).start()
    assert publishers.close(LONG) == []
    unsent, sent = outcomes(publishers, 2)
    assert isinstance(unsent, Unsent)
    assert sent == "late"
    assert publishers.in_flight == publishers.free() == broker.open() == 0
    eventually(lambda: set(threading.enumerate()) <= before, what="the end of all threads")
    assert publishers.close(LONG) == []


def test_a_job_that_hangs_is_given_up_and_never_told_of_again(broker: Broker) -> None:
    """Closing takes no longer than it may."""
    before = set(threading.enumerate())
    publishers = make(broker, count=1)
    publishers.submit(broker.hang)
    assert broker.hanging.wait(LONG)
    began = time.monotonic()
    assert publishers.close(0.05) == [broker.hang]
    assert time.monotonic() - began < LONG / 2
    broker.release.set()
    eventually(lambda: set(threading.enumerate()) <= before, what="the end of the thread")
    assert publishers.finished() == []
    assert broker.open() == 0, "dropped when the broker let go"


def test_a_connect_that_hangs_does_not_hold_up_closing(broker: Broker) -> None:
    """Nothing of its job has left, and nothing will."""
    before = set(threading.enumerate())
    publishers = make(broker, count=1)
    broker.connecting = broker.hang
    sent: list[str] = []
    publishers.submit(lambda: sent.append("after the end"))
    assert broker.hanging.wait(LONG)
    began = time.monotonic()
    assert publishers.close(LONG) == []
    assert time.monotonic() - began < LONG / 2
    (outcome,) = outcomes(publishers, 1)
    assert isinstance(outcome, Unsent)
    broker.release.set()
    eventually(lambda: set(threading.enumerate()) <= before, what="the end of the thread")
    assert publishers.finished() == sent == []
    assert broker.open() == 0


def test_waiting_ends_when_a_job_does_or_at_once_if_there_is_none(broker: Broker) -> None:
    """The coordinator has other things to do."""
    publishers = make(broker, count=1)
    began = time.monotonic()
    assert not publishers.wait(LONG)
    publishers.submit(broker.hang)
    assert not publishers.wait(0.01)
    threading.Timer(0.02, broker.release.set).start()
    assert publishers.wait(LONG)
    assert publishers.wait(LONG), "until it was collected"
    assert time.monotonic() - began < LONG / 2
    assert [outcome for _, outcome in publishers.finished()] == ["late"]
    publishers.close(LONG)
