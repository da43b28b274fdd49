"""What it costs to ask the lease, against an attribute of a plain object."""

from __future__ import annotations

import os
import statistics
import timeit
from typing import Any

from celery_neli.config import Config
from celery_neli.curator import Neli
from celery_neli.embedded import EmbeddedKafka

ROUNDS, CALLS = 9, 20_000


def run() -> dict[str, Any]:
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
    return {"is_leader, µs": round(ask * 1e6, 2), "is_leader / os.getpid()": round(ask / pid, 1)}
