"""What it costs to ask the lease, against an attribute of a plain object."""

from __future__ import annotations

import os
import statistics
import timeit

from benchmarks.results import Results
from celery_neli import Neli
from celery_neli.config import Config
from celery_neli.embedded import EmbeddedKafka

ROUNDS, CALLS = 9, 20_000


def run(bench: Results) -> None:
    with EmbeddedKafka() as kafka:
        kafka.create_topic("ask.neli")
        with Neli(Config(group="ask", kafka=kafka.bootstrap_servers)) as neli:
            neli.pulse(30)
            assert neli.is_leader
            asks: list[float] = []
            pids: list[float] = []
            for _ in range(ROUNDS):
                asks.append(timeit.timeit(lambda: neli.is_leader, number=CALLS) / CALLS)
                pids.append(timeit.timeit(os.getpid, number=CALLS) / CALLS)
                neli.progress()
    ask, pid = statistics.median(asks), statistics.median(pids)
    bench.note("ask", {"is_leader, µs": ask * 1e6, "is_leader / os.getpid()": ask / pid})
