"""What metrics cost: dispatch with them on against off, while they are scraped every five seconds; and an idle beat.

The run history is off in both cases.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial

from prometheus_client import CollectorRegistry, generate_latest

from benchmarks.beats import make_topic
from benchmarks.brokers import Broker, broker
from benchmarks.contenders import NeliLed
from benchmarks.dispatch import _round
from benchmarks.measure import Timed, alternate, ratio
from benchmarks.results import Results
from celery_neli.embedded import EmbeddedKafka
from celery_neli.metrics.collect import Collection
from celery_neli.metrics.prometheus import Exporter

TRANSPORTS = ("memory", "redis")
SIZES = (10_000,)
ROUNDS = 5
SCRAPED_EVERY = 5.0
PAIRS, SECONDS = 3, 30
BEAT = """
import json, sys, threading, time
from celery import Celery
from celery_neli import observability
from celery_neli.beat.scheduler import Scheduler
from celery_neli.metrics.prometheus import exposition
kafka, group, seconds, on = sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4] == "on"
observability.PARTS = ("metrics.collect",) if on else ()
app = Celery("bench", broker="memory://")
schedule = {f"e{n}": {"task": "bench.task", "schedule": 86_400.0} for n in range(100)}
app.conf.update(neli_group=group, neli_kafka=kafka, beat_schedule=schedule, neli_history=False)
beat = Scheduler(app)
began = None
while began is None or time.monotonic() < began[0] + seconds:
    beat.tick()
    if began is None and beat._leader.leading():
        beat.tick()
        exposition()  # its imports
        began, scraped = (time.monotonic(), time.process_time()), time.monotonic()
    elif began and time.monotonic() > scraped + 5:  # in both cases: the exporter itself is not what is compared
        exposition()
        scraped = time.monotonic()
print(json.dumps(100 * (time.process_time() - began[1]) / (time.monotonic() - began[0])))
beat.close()
"""


def run(bench: Results) -> None:
    for name in TRANSPORTS:
        if name in bench.options.transports:
            with broker(name) as there:
                if there is None:
                    bench.left_out("metrics", "all", "sent a second", "1/s", f"no {name}", transport=name)
                    continue
                for size in bench.options.chosen(SIZES):
                    _dispatch(bench, there, size)
    _idle(bench)


def _dispatch(bench: Results, there: Broker, size: int) -> None:
    where = {"size": size, "transport": there.name}
    _round(there, NeliLed, 1)
    cases = {"metrics off": partial(_round, there, NeliLed, size), "metrics on": partial(_with_metrics, there, size)}
    found = alternate(cases, min(ROUNDS, bench.options.rounds))
    for case, took in found.items():
        bench.add("metrics", case, "sent a second", "1/s", [1 / each.wall for each in took], **where)
        bench.add("metrics", case, "CPU for one message", "µs", [1e6 * each.cpu for each in took], **where)
    off, on = found.values()
    what = f"{size:,} due on {there.name}: with metrics / without"
    bench.claim(f"{what}, rate", ratio([each.wall for each in off], [each.wall for each in on]), least=0.9)
    bench.claim(f"{what}, by CPU time", ratio([each.cpu for each in off], [each.cpu for each in on]), least=0.9)


def _with_metrics(there: Broker, size: int) -> Timed:
    with _collected():
        return _round(there, NeliLed, size)


@contextlib.contextmanager
def _collected() -> Iterator[None]:
    collection, registry, ended = Collection(most_entries=200), CollectorRegistry(), threading.Event()
    registry.register(Exporter(collection.read))

    def scrape() -> None:
        while not ended.wait(SCRAPED_EVERY):
            generate_latest(registry)

    threads = [threading.Thread(target=each) for each in (scrape, collection.keep_up)]
    collection.begin()
    for each in threads:
        each.start()
    try:
        yield
    finally:
        ended.set()
        collection.end()
        for each in threads:
            each.join()


def _idle(bench: Results) -> None:
    """Pairs of leading beats, side by side: what disturbs one disturbs the other."""
    used: dict[str, list[float]] = {"off": [], "on": []}
    with EmbeddedKafka() as kafka:
        for pair in range(PAIRS):
            for case in used:
                make_topic(kafka, f"{case}-{pair}")
            beats = {
                case: subprocess.Popen(
                    [
                        sys.executable,
                        "-c",
                        BEAT,
                        kafka.bootstrap_servers,
                        f"{case}-{pair}",
                        str(SECONDS),
                        case,
                    ],
                    stdout=subprocess.PIPE,
                )
                for case in used
            }
            for case, each in beats.items():
                used[case].append(float(json.loads(each.communicate()[0])))
    for case, values in used.items():
        bench.add("metrics", f"metrics {case}", "CPU of an idle leader", "% of a core", values)
    more = statistics.median(on - off for off, on in zip(used["off"], used["on"], strict=True))
    bench.claim("CPU of an idle leader, more with metrics (% of a core)", more, most=0.1)
