"""Workers watched by Celery's own means: `celery inspect`, `celery control`, worker events."""

from __future__ import annotations

import json
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery

from tests.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.smoke.members import Members, Process

pytestmark = [pytest.mark.smoke, pytest.mark.slow]


class Watch:
    """What `celery events` sees."""

    def __init__(self, url: str) -> None:
        self.app = Celery("watch", broker=url, set_as_current=False)
        self.state = self.app.events.State()
        self.seen: list[tuple[str, str, int]] = []  # type, worker, term

    def receive(self, ready: threading.Event, ended: threading.Event) -> None:
        with (
            self.app.connection_for_read() as mine,
            self.app.events.Receiver(mine, handlers={"*": self.note}).consumer_context() as (connection, _, _),
        ):
            ready.set()
            while not ended.is_set():
                try:
                    connection.drain_events(timeout=0.1)
                except TimeoutError:
                    pass

    def note(self, event: dict[str, Any]) -> None:
        self.state.event(event)
        if event["type"].startswith("worker-neli-"):
            assert event["election"] == "worker"
            assert event["role"] == "leader"
            self.seen.append((event["type"], event["hostname"].partition("@")[0], event["term"]))

    def wait(self, kind: str, process: Process) -> int:
        """Wait for the event; its term."""

        def found() -> list[int]:
            return [term for what, name, term in self.seen if (what, name) == (f"worker-neli-{kind}", process.name)]

        wait_until(found, timeout=20, what=f"{kind} of {process.name} among {self.seen}")
        return found()[-1]

    def alive(self) -> set[str]:
        return {each.hostname.partition("@")[0] for each in self.state.alive_workers()}


@contextmanager
def watching(url: str) -> Iterator[Watch]:
    watch, ready, ended = Watch(url), threading.Event(), threading.Event()
    thread = threading.Thread(target=watch.receive, args=(ready, ended))
    thread.start()
    try:
        assert ready.wait(20)
        yield watch
    finally:
        ended.set()
        thread.join()


def answers(members: Members, *words: str) -> dict[str, Any]:
    """What the workers answer, by name."""
    done = members.run(*words, "--json", "--timeout", "5")
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    each = told.items() if isinstance(told, dict) else (pair for reply in told for pair in reply.items())
    return {hostname.partition("@")[0]: reply for hostname, reply in each}


@pytest.mark.parametrize(("pool", "broker"), [("prefork", "rabbitmq"), ("threads", "redis")])
def test_who_watches_the_workers_sees_who_leads(
    pool: str, broker: str, on_node: Members, request: pytest.FixtureRequest
) -> None:
    """And may ask for a handover; every transition is told, also the last of a worker that stops."""
    url = on_node.settings["broker_url"] = request.getfixturevalue(f"{broker}_url")
    with watching(url) as watch:
        for name in ("one", "two"):
            on_node.celery(
                "worker", "-P", pool, "-c", "1", "-n", f"{name}@%h", "-l", "INFO",
                name=name, election="worker", environment={"SMOKE_INSTALL": "1"},
            )  # fmt: skip
        first = on_node.wait_leader()
        wait_until(lambda: watch.alive() == {"one", "two"}, timeout=30, what="both workers online")
        second = next(each for each in on_node.all if each is not first)
        term = watch.wait("acquired", first)

        told = answers(on_node, "inspect", "neli")
        leads, stands_by = told[first.name]["roles"]["leader"], told[second.name]["roles"]["leader"]
        assert (leads["leading"], leads["held"], leads["term"]) == (True, True, term)
        assert leads["leader"] == stands_by["leader"] == first.name
        assert 0 < leads["until"] <= 4
        assert (stands_by["leading"], stands_by["held"], stands_by["until"]) == (False, False, None)
        assert told[first.name]["name"] == first.name

        refused = answers(on_node, "control", "neli_resign", "mail")
        assert {each["error"] for each in refused.values()} == {"unknown role 'mail': neli_roles has leader"}
        handed_over = answers(on_node, "control", "neli_resign")
        assert handed_over == {
            first.name: {"ok": f"hands over leader (term {term})"},
            second.name: {"ok": "leads nothing"},
        }
        assert watch.wait("revoked", first) == term
        later = watch.wait("acquired", second)
        assert later > term

        second.signal(signal.SIGTERM)
        assert second.wait_end() == 0
        assert watch.wait("revoked", second) == later
        assert watch.wait("acquired", first) > later
        assert watch.alive() == {first.name}
        on_node.assert_one_at_most()


def test_a_worker_without_an_election_says_so(on_node: Members) -> None:
    """It has no lease to tell of, and hands over nothing."""
    off: dict[str, Any] = {"neli_enabled": False}
    on_node.celery("worker", "-P", "solo", "-n", "one@%h", "-l", "INFO", name="one", election="worker", **off)
    wait_until(lambda: " ready." in on_node.all[0].log, timeout=30, what="the worker")
    for words in (("inspect", "neli"), ("control", "neli_resign")):
        assert "takes part in no election" in answers(on_node, *words)["one"]["error"]
