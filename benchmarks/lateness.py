"""How late a task leaves that is due, as distributions: beats side by side, each a process of its own, on one Redis.

A message has left when publishing it returned. Twenty entries run once a second, spread over it, among none and among
many others.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.beats import beat, make_topic, until
from benchmarks.brokers import redis_url
from benchmarks.measure import quantile
from benchmarks.results import Results
from celery_neli.embedded import EmbeddedKafka

FAST = 20
IDLE = (0, 10_000)
CASES = ("celery", "neli", "neli led", "redbeat")
#: RedBeat reads only what is due, but writes every entry when it starts.
REDBEATS_MOST = 0


def run(bench: Results) -> None:
    with redis_url() as redis, _kafkas(bench) as kafkas:
        if redis is None:
            bench.left_out("lateness", "all", "p99", "ms", "no redis-server", size=0)
            return
        for idle in bench.options.chosen(IDLE):
            _watch(bench, redis, kafkas, idle)


def _watch(bench: Results, redis: str, kafkas: dict[str, str], idle: int) -> None:
    cases: dict[str, dict[str, str]] = {"celery": {}, "neli": {}}
    cases.update(
        {
            f"neli led, {name}": {"case": "neli led", "kafka": servers, "group": f"late-{idle}"}
            for name, servers in kafkas.items()
        }
    )
    if idle <= REDBEATS_MOST:
        cases["redbeat"] = {}
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        beats = {
            case: stack.enter_context(
                beat(directory, **{"case": case, "broker": redis, "redis": redis, "fast": FAST, "idle": idle, **spec})
            )
            for case, spec in cases.items()
        }
        for case, each in beats.items():
            until(lambda each=each: len(each.left()) >= 2 * FAST, f"tasks of {case}")
        begin = time.time() + 1
        time.sleep(bench.options.seconds + 1)
        late = {
            case: [1e3 * (left.at - left.due) for left in each.left() if left.due >= begin]
            for case, each in beats.items()
        }
    for case, values in late.items():
        for metric, share in (("p50", 0.5), ("p99", 0.99), ("the latest", 1.0)):
            bench.add("lateness", case, metric, "ms", [quantile(values, share)], size=idle)
        bench.distributions[f"{case}, {idle:,} others"] = [value / 1e3 for value in values]
        if case.startswith("neli led"):
            more = quantile(values, 0.99) - quantile(late["celery"], 0.99)
            bench.claim(f"lateness p99 of {case}, {idle:,} others, over Celery's (ms)", more, most=10)


@contextlib.contextmanager
def _kafkas(bench: Results) -> Iterator[dict[str, str]]:
    """The embedded one; with --full a real one, too, if it is here."""
    with contextlib.ExitStack() as stack:
        embedded = stack.enter_context(EmbeddedKafka())
        for idle in bench.options.chosen(IDLE):
            make_topic(embedded, f"late-{idle}")
        found = {"embedded": embedded.bootstrap_servers}
        if bench.options.full:
            from tests import services
            from tests.kafka import libs
            from tests.kafka.cluster import KafkaCluster

            java = services.java()
            if java is not None and libs.fetched():
                directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                cluster = KafkaCluster(nodes=1, java=java, libs=libs.directory(), directory=directory)
                found["Kafka"] = stack.enter_context(cluster).bootstrap_servers
        yield found
