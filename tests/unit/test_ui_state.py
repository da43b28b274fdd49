"""The state of the page: what follows Kafka fails and comes back, and visitors are told of news."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import anyio

from celery_neli.exceptions import NeliError
from celery_neli.timeline import EXPIRED
from celery_neli.ui.state import ENTRIES, LEADER, RUNS, State
from tests.processes import wait_until
from tests.ui.example import app_of, fill_terms, page_of, state_of

if TYPE_CHECKING:
    import pytest


class Follower:
    """Answers what the test says."""

    def __init__(self, answers: list[Any]) -> None:
        self._answers = answers
        self.problem = ""
        self.closed = False

    def poll(self, timeout: float) -> str:
        if not self._answers:
            time.sleep(0.01)
            return ""
        found = self._answers.pop(0)
        if isinstance(found, Exception):
            raise found
        self.problem, kind = found
        return str(kind)

    def close(self) -> None:
        self.closed = True


def following(*answers: Any) -> tuple[State, list[Follower]]:
    left, made = list(answers), []

    def make(_: State) -> Follower:
        made.append(Follower(left))
        return made[-1]

    return State(app_of(), followers=lambda _: {"it": make}), made


def test_what_fails_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    """With a new client; the page keeps since when it is old, and one line is logged for one problem."""
    state, made = following(("", RUNS), NeliError("no brokers"), ("", ENTRIES))
    state.start()
    try:
        wait_until(lambda: state.sources["it"].problem, timeout=5, what="the problem")
        good = state.sources["it"].good
        assert good is not None
        assert "no brokers" in state.sources["it"].problem
        assert made[0].closed
        wait_until(lambda: not state.sources["it"].problem, timeout=5, what="the next attempt")
        assert len(made) == 2
        assert (state.sources["it"].good or 0) > good
        assert state.news.counts[RUNS] == 1
    finally:
        state.stop()
    assert made[1].closed
    assert [each.getMessage() for each in caplog.records if each.levelname == "WARNING"] == [
        "the page does not follow source=it: NeliError: no brokers"
    ]


def test_it_follows_once_and_not_after_its_end() -> None:
    """Every request asks for it; a state that was stopped stays so."""
    state, made = following()
    threads = [threading.Thread(target=state.start) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    wait_until(lambda: made, timeout=5, what="a follower")
    state.stop()
    state.start()
    assert len(made) == 1


def test_a_new_leader_is_announced() -> None:
    """And that there is none; what was read before is history, not news."""
    state = state_of(app_of())
    fill_terms(state, now=time.time())
    terms = state.terms["beat"]
    state.terms = {}
    state.set_terms("beat", terms, tell=False)
    assert state.news.announced == []
    gone = {"leader": [*terms["leader"][:-1], replace(terms["leader"][-1], ended=time.time(), end=EXPIRED)]}
    state.set_terms("beat", gone, tell=True)
    state.set_terms("beat", gone, tell=True)
    following = replace(terms["leader"][-1], term=12_000, leader="beat-3\n")
    state.set_terms("beat", {"leader": [*gone["leader"], following]}, tell=True)
    assert [each.text for each in state.news.announced] == [
        "beat, role leader: it has no leader",
        "beat, role leader: beat-3\\n leads it now, in term 12000",
    ]
    assert state.news.counts[LEADER] == 2


def test_visitors_are_told_of_news() -> None:
    """By server-sent events: a leader at once, runs after a while, and the stream ends with the page."""
    state = state_of(app_of())
    page = page_of(state)
    got: list[str] = []

    async def read() -> None:
        sent = anyio.Event()

        async def receive() -> dict[str, Any]:
            await sent.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            got.append(message.get("body", b"").decode())
            if len(got) == 2:
                state.notify(LEADER, "beat, role leader: beat-2 leads it now, in term 7")
                state.notify(RUNS)
            elif len(got) == 3:
                state.notify(RUNS)
            elif len(got) == 4:
                state.stop()

        scope = {
            "type": "http", "method": "GET", "path": "/events", "headers": [(b"host", b"page")], "query_string": b"",
            "root_path": "", "scheme": "http", "server": ("page", 80), "client": ("1.2.3.4", 5), "http_version": "1.1",
        }  # fmt: skip
        await page(scope, receive, send)

    anyio.run(read)
    assert got[1] == "retry: 2000\n\n"
    first, later = (json.loads(each.partition("data: ")[2]) for each in got[2:4])
    assert first == {"kinds": [LEADER, RUNS], "say": "beat, role leader: beat-2 leads it now, in term 7"}
    assert later == {"kinds": [RUNS], "say": ""}
