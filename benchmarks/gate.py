"""What the open gate costs a leader-only body: asking the lease, and all of it, alone and through Celery's tracer."""

from __future__ import annotations

import statistics
import time
import timeit
from collections.abc import Callable
from typing import Any

from celery import Celery
from celery.app.trace import build_tracer

from benchmarks.results import Results
from celery_neli.election.lease import boottime
from celery_neli.election.role_state import Grant
from celery_neli.election.shared_lease import SharedLease, share
from celery_neli.worker.leader_only import leader_only

ROUNDS, CALLS, TRACED = 15, 20_000, 500


def app() -> Celery:
    made = Celery("bench", broker="memory://", set_as_current=False)
    made.conf.update(neli_group="bench", task_ignore_result=True)
    share(made, SharedLease(("leader",))).write(0, Grant(1, boottime() + 3600))
    return made


def body() -> None: ...


def other() -> None: ...


def seconds(function: Callable[[], Any], calls: int) -> float:
    return timeit.timeit(function, timer=time.thread_time, number=calls) / calls


def traced(task: Any) -> Callable[[], Any]:
    trace = build_tracer(task.name, task, app=task.app)
    request = {"id": "1", "delivery_info": {}}
    return lambda: trace("1", (), {}, request)


def run(bench: Results) -> None:
    made = app()
    lease = made.neli_lease
    plain, gated = made.task(body), made.task(leader_only(other))
    one, two = traced(plain), traced(gated)
    direct = statistics.median(seconds(gated.run, CALLS) - seconds(plain.run, CALLS) for _ in range(ROUNDS))
    gated.push_request(called_directly=False)  # from here on, as a message's task
    rows = [  # each figure against its neighbour in time
        (
            seconds(lambda: lease.role("leader").leading_term(), CALLS) - seconds(lambda: None, CALLS),
            seconds(gated.run, CALLS) - seconds(plain.run, CALLS),
            seconds(two, TRACED) / seconds(one, TRACED),
        )
        for _ in range(ROUNDS)
    ]
    ask, gate, ratio = (statistics.median(row[n] for row in rows) for n in range(3))
    values = {
        "asking the shared lease, µs": ask * 1e6,
        "the open gate, µs": gate * 1e6,
        "the open gate of a direct call, µs": direct * 1e6,
        "an empty body through Celery's tracer, gated / plain": ratio,
    }
    bench.note("gate", values)
