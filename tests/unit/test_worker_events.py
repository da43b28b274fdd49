"""Worker events of leadership: who watches the workers hears of it, and nobody waits for that."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from celery.bootsteps import CLOSE, RUN
from celery.signals import worker_shutdown

from celery_neli import signals
from celery_neli.worker.events import KEPT, Outbox, send_transitions
from tests.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


class Broker:
    """Where an outbox sends to."""

    def __init__(self) -> None:
        self.arrived: list[Any] = []
        self.refusals = 0
        self.open = threading.Event()
        self.open.set()

    @contextmanager
    def connect(self) -> Iterator[Any]:
        self.open.wait(10)
        if self.refusals:
            self.refusals -= 1
            raise ConnectionRefusedError
        yield self.arrived.append


def wait(condition: Any) -> None:
    wait_until(condition, timeout=10, what="it", interval=0.005)


def test_putting_does_not_wait_for_a_broker_that_hangs() -> None:
    """The handover goes on; the events arrive once the broker answers, in their order."""
    broker = Broker()
    broker.open.clear()
    outbox = Outbox(broker.connect)
    for number in range(5):
        outbox.put({"type": number})
    assert broker.arrived == []
    broker.open.set()
    wait(lambda: len(broker.arrived) == 5)
    assert [each["type"] for each in broker.arrived] == [0, 1, 2, 3, 4]


def test_a_broker_that_refuses_is_tried_again() -> None:
    """Nothing is lost by it, and nothing doubled."""
    broker = Broker()
    broker.refusals = 3
    outbox = Outbox(broker.connect, retry=0.001)
    outbox.put({"type": "first"})
    wait(lambda: broker.arrived)
    outbox.put({"type": "second"})
    wait(lambda: len(broker.arrived) == 2)
    assert [each["type"] for each in broker.arrived] == ["first", "second"]


def test_no_more_than_so_many_events_wait() -> None:
    """A broker that is away for days costs no memory."""
    broker = Broker()
    broker.open.clear()
    outbox = Outbox(broker.connect)
    for number in range(3 * KEPT):
        outbox.put({"type": number})
    broker.open.set()
    wait(lambda: len(broker.arrived) >= KEPT)
    outbox.close()
    assert len(broker.arrived) <= KEPT + 1
    assert broker.arrived[0] == {"type": 0}


def test_the_end_sends_what_is_left_and_waits_for_no_broker() -> None:
    """At once with a broker; without one it gives up, though the next attempt would be in an hour."""
    broker = Broker()
    outbox = Outbox(broker.connect)
    outbox.put({"type": "last"})
    outbox.close(timeout=60)
    assert broker.arrived == [{"type": "last"}]

    broker.refusals = 1_000_000
    outbox = Outbox(broker.connect, retry=3600)
    outbox.put({"type": "lost"})
    began = time.monotonic()
    outbox.close(timeout=60)
    assert time.monotonic() - began < 30
    outbox.put({"type": "too late"})
    assert broker.arrived == [{"type": "last"}]


class Worker(SimpleNamespace):
    """What is read of a worker; signals know it by identity."""

    __hash__ = object.__hash__


class Watched:
    """A worker on a broker in memory, and what `celery events` would know of it."""

    def __init__(self, *, groups: set[str] | None = None, enabled: bool = True) -> None:
        self.app = Celery("shop", broker="memory://", set_as_current=False)
        dispatcher = SimpleNamespace(enabled=enabled, groups=groups or set())
        self.worker = Worker(
            app=self.app,
            hostname="one@here",
            consumer=SimpleNamespace(event_dispatcher=dispatcher),
            blueprint=SimpleNamespace(state=RUN),
        )
        self.leadership = object()
        self.seen: list[dict[str, Any]] = []
        self.state = self.app.events.State()
        send_transitions(self.worker, self.leadership)  # type: ignore[arg-type]

    def transition(self, kind: str, role: str = "leader", term: int = 7) -> None:
        signal = getattr(signals, f"leadership_{kind}")
        signal.send(sender=self.leadership, election="worker", role=role, term=term)

    def end(self) -> None:
        worker_shutdown.send(sender=self.worker)

    def receive(self, connection: Any) -> Any:
        def note(event: dict[str, Any]) -> None:
            self.seen.append(event)
            self.state.event(event)

        return self.app.events.Receiver(connection, handlers={"*": note})


@contextmanager
def watching(watched: Watched) -> Iterator[None]:
    """Receive what is sent within."""
    with (
        watched.app.connection_for_read() as mine,
        watched.receive(mine).consumer_context(wakeup=False) as (connection, _, _),
    ):
        yield
        watched.end()
        while True:
            try:
                connection.drain_events(timeout=0.01)
            except TimeoutError:
                return


def test_transitions_are_seen_as_worker_events() -> None:
    """With election, role and term; Celery's State keeps them at the worker."""
    watched = Watched()
    with watching(watched):
        watched.transition("acquired")
        watched.transition("revoked")
        watched.transition("fenced", role="mail", term=12)
    told = [(each["type"], each["hostname"], each["election"], each["role"], each["term"]) for each in watched.seen]
    assert told == [
        ("worker-neli-acquired", "one@here", "worker", "leader", 7),
        ("worker-neli-revoked", "one@here", "worker", "leader", 7),
        ("worker-neli-fenced", "one@here", "worker", "mail", 12),
    ]
    kept = watched.state.workers["one@here"]
    assert (kept.role, kept.term) == ("mail", 12)


def test_another_worker_in_the_process_tells_nothing_of_it() -> None:
    """Tests start several workers in one process; each tells of its own leadership."""
    watched = Watched()
    with watching(watched):
        signals.leadership_acquired.send(sender=object(), election="worker", role="leader", term=7)
    assert watched.seen == []


@pytest.mark.parametrize("settings", [{"enabled": False}, {"groups": {"task"}}])
def test_a_worker_that_sends_no_worker_events_sends_none_of_these(settings: dict[str, Any]) -> None:
    """`celery worker --without-gossip --without-heartbeat`."""
    watched = Watched(**settings)
    with watching(watched):
        watched.transition("acquired")
    assert watched.seen == []


def test_a_worker_that_has_gone_offline_stays_offline() -> None:
    """Its last transition may be told after its `worker-offline`; who watches must not take it for alive by that."""
    watched = Watched()
    with watching(watched):
        watched.worker.blueprint.state = CLOSE
        watched.transition("revoked")
    assert [each["type"] for each in watched.seen] == ["worker-neli-revoked", "worker-offline"]
    assert list(watched.state.alive_workers()) == []
