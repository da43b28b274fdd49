"""A `State` filled with an invented fleet, without Kafka: for tests, for screenshots, and to look at by hand.

python -m tests.ui.example [ENTRIES] [PORT]
"""

from __future__ import annotations

import random
import sys
import time
from typing import Any

from celery import Celery

from celery_neli.history.records import FAILED, STARTED, SUCCEEDED, RunRecord, SlotRecord
from celery_neli.schedule_topic.codec import (
    Change,
    Definition,
    encode_definition,
    encode_state,
)
from celery_neli.schedule_topic.codec import (
    State as EntryState,
)
from celery_neli.status import ElectionStatus, MemberStatus, RoleStatus
from celery_neli.timeline import DEPOSED, EXPIRED, HANDED_OVER, LIVES, RELEASED, Term
from celery_neli.ui.access import Access
from celery_neli.ui.page import Page
from celery_neli.ui.state import State

TASKS = ("shop.tasks.tidy_up", "shop.tasks.send_digest", "billing.invoices.collect", "search.reindex", "stock.sync")
NAMES = ("tidy-up", "digest", "collect-invoices", "reindex", "sync-stock", "refresh-rates", "expire-carts", "backup")
SCHEDULES = ("PT30S", "PT5M", "PT1H", "*/10 * * * *", "0 7 * * mon-fri", "15 3 * * *")
TOKEN = "a token of the tests"


def app_of(**settings: Any) -> Celery:
    """An app that nothing can reach."""
    app = Celery("example", set_as_current=False)
    app.conf.update(neli_group="shop-production", neli_kafka="127.0.0.1:1", broker_url="memory://", **settings)
    return app


def state_of(app: Celery) -> State:
    """A state that follows nothing."""
    return State(app, followers=lambda _: {})


def page_of(state: State, **access: Any) -> Page:
    """The page of a state."""
    changes = {"changes": access.pop("changes")} if "changes" in access else {}
    return Page(state.app, state, Access(**access), **changes)


def fill_terms(state: State, *, now: float, leader: str = "beat-2") -> None:
    """An hour with a handover, a crash, and a release."""

    def term(number: int, name: str, began: float, ended: float | None, end: str, gap: float | None) -> Term:
        more: dict[str, Any] = {"heard": now - 0.3, "lease": 4.0} if end == LIVES else {}
        return Term(
            role="leader", term=number, leader=name, member=f"{name}/x", began=now + began,
            ended=None if ended is None else now + ended, end=end, gap=gap, **more,
        )  # fmt: skip

    beats = [
        term(1204, "beat-1", -5_000, -2_500, HANDED_OVER, None),
        term(6311, "beat-3", -2_499.8, -1_400, EXPIRED, 0.2),
        term(8520, "beat-1", -1_395.7, -700, RELEASED, 4.3),
        term(9933, leader, -699.9, None, LIVES, 0.1),
    ]
    workers = [
        term(310, "worker-a", -4_000, -1_000, DEPOSED, None),
        term(2311, "worker-b", -999, None, LIVES, 1.0),
    ]
    state.terms = {"beat": {"leader": beats}, "worker": {"leader": workers}}
    state.elections = (
        ElectionStatus(
            election="beat", topic="shop-production.beat.neli", group="shop-production.beat", exists=True,
            roles=[RoleStatus(role="leader", leader=leader, term=9933, heartbeat_age=0.3, lease=4.0)],
            members=[
                MemberStatus(name="beat-1", host="/10.1.4.11", leads=[], induced=[]),
                MemberStatus(name="beat-2", host="/10.1.4.12", leads=["leader"], induced=["leader"]),
                MemberStatus(name="beat-3", host="/10.1.4.13", leads=[], induced=[], answers=False),
            ],
        ),
        ElectionStatus(
            election="worker", topic="shop-production.worker.neli", group="shop-production.worker", exists=True,
            roles=[RoleStatus(role="leader", leader="worker-b", term=2311, heartbeat_age=0.1, lease=4.0)],
            members=[
                MemberStatus(name="worker-a", host="/10.1.4.21", leads=[], induced=[]),
                MemberStatus(name="worker-b", host="/10.1.4.22", leads=["leader"], induced=["leader"]),
            ],
        ),
    )  # fmt: skip


def fill_entries(state: State, count: int, *, now: float, runs: int = 50, seed: int = 7) -> None:
    """So many entries, with so many runs each."""
    choice = random.Random(seed)
    for number in range(count):
        name = NAMES[number % len(NAMES)] + (f"-{number}" if count > len(NAMES) else "")
        task, schedule = TASKS[number % len(TASKS)], SCHEDULES[number % len(SCHEDULES)]
        every = 30.0 if number % 6 == 0 else 300.0
        last = now - now % every
        changes = (
            Change(at=now - 90_000, by="ana@desk", what="added"),
            Change(at=now - 4_000, by="ben (page)", what="paused"),
            Change(at=now - 3_500, by="ben (page)", what="resumed"),
        )
        definition = Definition(
            task=task, schedule=schedule, args=[number], kwargs={"shop": "north", "api_token": "abc"},
            options={"queue": "slow"}, paused=number % 11 == 6, since=now - 90_000, changes=changes,
        )  # fmt: skip
        state.schedule.add("e", name, encode_definition(definition))
        state.schedule.add("s", name, encode_state(EntryState(last, 4_000 + number, 9933, now - 90_000)))
        for index in range(runs):
            add_run(state, name, task, last - every * (runs - 1 - index), choice, last=index == runs - 1)


def add_run(state: State, name: str, task: str, slot: float, choice: random.Random, *, last: bool = False) -> None:
    """One run, as a beat and a worker tell of it."""
    made: dict[str, Any] = {"entry": name, "task": task, "slot": slot}
    ident = f"{name}-{slot:.0f}-3f6c2a9e41d8"
    fate = choice.random()
    told: dict[str, Any] = {**made, "role": "leader", "term": 9933, "member": "beat-2", "at": slot + 0.02}
    if fate < 0.02:
        state.runs.add(SlotRecord(**told, outcome="skipped", policy="overlap"))
        return
    if fate < 0.03:
        state.runs.add(SlotRecord(**told, outcome="in_doubt", policy="skip", id=ident))
        return
    if fate < 0.04:
        state.runs.add(SlotRecord(**told, outcome="in_doubt", policy="send", id=ident))
    state.runs.add(SlotRecord(**told, outcome="sent", id=ident))
    work: dict[str, Any] = {**made, "id": ident, "worker": f"worker-{choice.choice('ab')}@node"}
    state.runs.add(RunRecord(**work, state=STARTED, at=slot + 0.1))
    if last and fate > 0.8:
        return
    took = choice.lognormvariate(0.2, 0.5)
    error = "ConnectionError: payment.example did not answer" if fate > 0.97 else ""
    state.runs.add(
        RunRecord(**work, state=FAILED if error else SUCCEEDED, at=slot + 0.1 + took, runtime=took, error=error)
    )


def example(entries: int = len(NAMES), *, runs: int = 50, **access: Any) -> tuple[State, Page]:
    """A fleet with so many entries, and its page."""
    state = state_of(app_of())
    now = time.time()
    fill_terms(state, now=now)
    fill_entries(state, entries, now=now, runs=runs)
    return state, page_of(state, **access)


if __name__ == "__main__":
    import uvicorn

    counts = [int(each) for each in sys.argv[1:]]
    began = time.monotonic()
    _, page = example(counts[0] if counts else 8, write=True, token=TOKEN)
    print(f"filled in {time.monotonic() - began:.1f} s; token: {TOKEN}", flush=True)
    uvicorn.run(page, port=counts[1] if len(counts) > 1 else 8765, log_level="warning")
