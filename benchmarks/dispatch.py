"""Due entries sent, by how many are due at once and by the task broker: until the broker has the last message."""

from __future__ import annotations

import gc
from functools import partial

from benchmarks.brokers import Broker, broker
from benchmarks.contenders import CONTENDERS, Contender
from benchmarks.measure import Timed, alternate, ratio, timed
from benchmarks.results import Results

SIZES = (1, 100, 1_000, 10_000, 100_000)
#: What is slow gets no more than this: Celery builds its heap anew for each message, RedBeat asks Redis several times.
MOST = {"celery": 1_000, "celery led": 100, "redbeat": 100}
#: At 100,000 due, without --full: these, on the memory transport, in one round.
LARGE, LARGE_CASES, LARGE_ROUNDS = 100_000, ("send_task", "neli", "neli led"), 1
#: A round of few messages is repeated until so many have left.
LEAST = 20


def run(bench: Results) -> None:
    for name in bench.options.transports:
        with broker(name) as there:
            for size in bench.options.chosen(SIZES):
                if there is None:
                    bench.left_out("dispatch", "all", "sent a second", "1/s", f"no {name}", size=size, transport=name)
                else:
                    _compare(bench, there, size)


def _compare(bench: Results, there: Broker, size: int) -> None:
    where = {"size": size, "transport": there.name}
    cases = []
    for case in CONTENDERS:
        why = _why_not(bench, there, case, size)
        if why is None:
            cases.append(case)
        elif why:
            bench.left_out("dispatch", case, "sent a second", "1/s", why, **where)
    if not cases:
        return
    rounds = min(LARGE_ROUNDS if size >= LARGE else 3 if size >= 1_000 else 5, bench.options.rounds)
    _round(there, CONTENDERS["send_task"], 1)  # the queue is there, modules are imported
    found = alternate({case: partial(_round, there, CONTENDERS[case], size) for case in cases}, rounds)
    for case, took in found.items():
        bench.add("dispatch", case, "sent a second", "1/s", [1 / each.wall for each in took], **where)
        bench.add("dispatch", case, "CPU for one message", "µs", [1e6 * each.cpu for each in took], **where)
    walls = {case: [each.wall for each in took] for case, took in found.items()}
    if size >= 10_000:
        for case, least in (("neli", 0.9), ("neli led", 0.9), ("neli parallel", 1.5)):
            if case in walls:
                what = f"{size:,} due on {there.name}: rate of {case} / send_task"
                bench.claim(what, ratio(walls["send_task"], walls[case]), least=least)


def _why_not(bench: Results, there: Broker, case: str, size: int) -> str | None:
    """Why a case is left out; None if it is not, empty if it would say nothing."""
    if case == "neli parallel" and there.name == "memory":
        return ""  # in one process, connections of their own are no help
    if case == "redbeat" and there.redis is None:
        return "no redis-server"
    if size > MOST.get(case, size):
        return "it would take minutes"
    large = there.name == "memory" and case in LARGE_CASES
    return None if size < LARGE or large or bench.options.full else "only with --full"


def _round(there: Broker, contender: type[Contender], size: int) -> Timed:
    """Of one message. Connections, templates and heap are there before the clock starts."""
    each = contender(there, size)
    each.build()
    try:
        _send(there, each, 1)
        gc.collect()
        repeats = -(-LEAST // size)
        total = Timed()
        for _ in range(repeats):
            took = _send(there, each, size)
            total.wall += took.wall
            total.cpu += took.cpu
    finally:
        each.close()
    return total / (repeats * size)


def _send(there: Broker, each: Contender, due: int) -> Timed:
    each.overdue(due)
    with timed() as took:
        each.send(due)
    sent = there.waiting()
    assert sent == due, f"{type(each).__name__} sent {sent} of {due}"
    there.purge()
    return took
