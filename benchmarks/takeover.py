"""From a leader's end to its successor's first task, by the number of entries.

In one process, without Kafka: from the moment that the standby may lead. With two processes and the embedded Kafka:
from the SIGKILL of the leader, less the lease that it left behind (`neli_heartbeat_timeout`).
"""

from __future__ import annotations

import gc
import tempfile
import time
from datetime import timedelta
from pathlib import Path

from benchmarks.beats import beat, make_topic, until
from benchmarks.brokers import Broker, broker, redis_url, schedule_of
from benchmarks.leaders import LedScheduler, SteadyLeadership
from benchmarks.measure import timed
from benchmarks.results import Results
from celery_neli.config import Config
from celery_neli.embedded import EmbeddedKafka

SIZES = (10, 10_000, 100_000)
ROUNDS = 3
FAST = 5
LEASE = Config(group="bench.beat").heartbeat_timeout
STANDING_BY = 5


def run(bench: Results) -> None:
    with broker("memory", redis=False) as memory:
        assert memory is not None
        for size in bench.options.chosen(SIZES):
            samples = [1e3 * _appointed(memory, size) for _ in range(min(ROUNDS, bench.options.rounds))]
            bench.add("takeover", "neli led", "take-over without Kafka", "ms", samples, size=size)
    with redis_url() as redis:
        for size in bench.options.chosen(SIZES):
            if redis is None:
                why = "no redis-server"
                bench.left_out(
                    "takeover", "neli led", "first task after a SIGKILL, less the lease", "s", why, size=size
                )
                continue
            over = _killed(redis, size) - LEASE
            bench.add("takeover", "neli led", "first task after a SIGKILL, less the lease", "s", [over], size=size)
            bench.claim(f"take-over with {size:,} entries: first task, s after the lease", over, most=1)


def _appointed(memory: Broker, size: int) -> float:
    hour = timedelta(hours=1)
    app = memory.app(schedule_of(size), neli_scheduler="celery_neli.ReplicatedScheduler")
    leader = SteadyLeadership(leading=False)
    scheduler = LedScheduler(app, leadership=leader, max_interval=0.001)
    for _ in range(STANDING_BY):
        scheduler.tick()
    # Added late, for whatever is due before counts as done.
    scheduler.add(name="due", task="bench.task", schedule=hour, last_run_at=app.now() - hour)
    scheduler.tick()
    gc.collect()
    leader.lead()
    with timed(collecting=True) as took:
        while not memory.waiting():
            scheduler.tick()
    memory.purge()
    scheduler.close()
    return took.wall


def _killed(redis: str, size: int) -> float:
    """Seconds from the SIGKILL of a leading beat to its successor's first message."""
    with tempfile.TemporaryDirectory() as directory, EmbeddedKafka() as kafka:
        make_topic(kafka, "bench")
        spec = {
            "case": "neli led", "broker": redis, "kafka": kafka.bootstrap_servers, "group": "bench",
            "fast": FAST, "idle": size,
        }  # fmt: skip
        with beat(Path(directory), **spec, name="first") as first:
            until(lambda: len(first.left()) >= FAST, "tasks of the leader")
            with beat(Path(directory), **spec, name="second") as second:
                time.sleep(3 + size / 5_000)  # it joins, and reads its schedule
                killed = time.time()
                first.process.kill()
                left = until(second.left, "a task of the successor")
    return float(left[0].at - killed)
