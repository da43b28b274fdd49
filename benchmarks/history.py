"""What the run history costs: the rate at which due entries leave, how late they leave, and CPU while nothing happens.

Each figure with history on against off. Kafka, an embedded one, is a process of its own.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks.beats import Beat, beat, until
from benchmarks.brokers import Broker, broker, redis_url
from benchmarks.contenders import Contender, NeliLed
from benchmarks.dispatch import _round
from benchmarks.measure import Timed, alternate, quantile, ratio
from benchmarks.results import Results
from celery_neli import hooks
from celery_neli.config import Config
from celery_neli.history.recorder import Recorder

DUE = (10_000,)
FAST = 20
WINDOWS = 5
SECONDS = 20
KAFKA = """
import sys
from celery_neli.embedded import EmbeddedKafka
with EmbeddedKafka() as kafka:
    print(kafka.bootstrap_servers, flush=True)
    sys.stdin.read()
"""
#: A recorder that is told nothing, and one that was told of one slot: what each adds to a process.
IDLE = f"""
import json, sys, time
from celery_neli import hooks
from celery_neli.config import Config
from celery_neli.history.recorder import Recorder
recorder = Recorder(Config(group="idle", kafka=sys.argv[1]), retention=3600)
recorder.start(hooks.slot)
if sys.argv[2] == "told":
    hooks.slot(hooks.SlotEvent(entry="e", task="t", slot=1.0, outcome="sent", role="leader", term=1))
time.sleep(5)
assert recorder.queued == recorder.dropped == 0, (recorder.queued, recorder.dropped)
first, began = time.process_time(), time.monotonic()
time.sleep({SECONDS})
print(json.dumps(100 * (time.process_time() - first) / (time.monotonic() - began)))
"""


def run(bench: Results) -> None:
    with _kafka() as servers:
        for name in ("memory", "redis"):
            if name in bench.options.transports:
                with broker(name) as there:
                    if there is None:
                        bench.left_out("history", "on", "sent a second", "1/s", f"no {name}", transport=name)
                    else:
                        for size in bench.options.chosen(DUE):
                            _dispatch(bench, there, size, servers)
        _lateness(bench, servers)
        _idle(bench, servers)


@contextlib.contextmanager
def _kafka() -> Iterator[str]:
    process = subprocess.Popen([sys.executable, "-c", KAFKA], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.communicate()


class Recorded(NeliLed):
    """Ours, led, while its slots are recorded."""

    servers = ""

    def build(self) -> None:
        config = Config(group=f"bench-{uuid.uuid4()}", kafka=self.servers)
        self.recorder = Recorder(config, retention=3600)
        self.recorder.start(hooks.slot)
        super().build()

    def close(self) -> None:
        super().close()
        until(lambda: self.recorder.queued == 0, "records that Kafka has")
        assert self.recorder.dropped == 0, f"{self.recorder.dropped} records dropped"
        self.recorder.stop()


def _dispatch(bench: Results, there: Broker, size: int, servers: str) -> None:
    on: type[Contender] = type("Recorded", (Recorded,), {"servers": servers})
    cases: dict[str, Callable[[], Timed]] = {
        "off": partial(_round, there, NeliLed, size),
        "on": partial(_round, there, on, size),
    }
    for case in cases.values():
        case()  # modules are imported, the topic is there
    found = alternate(cases, bench.options.rounds)
    for case, took in found.items():
        where = {"size": size, "transport": there.name}
        bench.add("history", case, "sent a second", "1/s", [1 / each.wall for each in took], **where)
        bench.add("history", case, "CPU for one message", "µs", [1e6 * each.cpu for each in took], **where)
    walls = {case: [each.wall for each in took] for case, took in found.items()}
    what = f"{size:,} due on {there.name}: rate with history / without"
    bench.claim(what, ratio(walls["off"], walls["on"]), least=0.9)
    # On a machine with other work this says more; it holds what the recorder's own thread does, too.
    cpu = {case: [each.cpu for each in took] for case, took in found.items()}
    bench.claim(f"{what}, by CPU", ratio(cpu["off"], cpu["on"]), least=0.9)


def _lateness(bench: Results, servers: str) -> None:
    with redis_url() as redis, contextlib.ExitStack() as stack:
        if redis is None:
            bench.left_out("history", "on", "p99", "ms", "no redis-server")
            return
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        spec = {"case": "neli led", "broker": redis, "redis": redis, "kafka": servers, "fast": FAST, "idle": 0}
        beats = {case: stack.enter_context(beat(directory, **spec, history=case == "on")) for case in ("off", "on")}
        for case, each in beats.items():
            until(lambda each=each: len(each.left()) >= 2 * FAST, f"tasks with history {case}")
        begin = time.time() + 1
        time.sleep(bench.options.seconds + 1)
        length = bench.options.seconds / WINDOWS
        late = {
            case: [_late(each, begin + turn * length, length) for turn in range(WINDOWS)]
            for case, each in beats.items()
        }
    for case, windows in late.items():
        for metric, share in (("p50", 0.5), ("p99", 0.99)):
            bench.add("history", case, metric, "ms", [quantile(values, share) for values in windows])
    # Of windows, for a pause of the machine hits both beats and not each at the same share of its messages.
    more = statistics.median(
        quantile(on, 0.99) - quantile(off, 0.99) for on, off in zip(late["on"], late["off"], strict=True)
    )
    bench.claim("lateness p99 with history, over that without (ms)", more, most=2)


def _late(each: Beat, begin: float, length: float) -> list[float]:
    """How late messages left that were due in a window, in ms."""
    return [1e3 * (left.at - left.due) for left in each.left() if begin <= left.due < begin + length]


def _idle(bench: Results, servers: str) -> None:
    rows = {}
    for what, case in (("silent", "a recorder that was told nothing"), ("told", "a recorder with its Kafka client")):
        command = [sys.executable, "-c", IDLE, servers, what]
        cpu = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        rows[f"{case}, CPU in % of a core"] = cpu
        bench.claim(f"{case}, idle: CPU in % of a core", cpu, most=0.1)
    bench.note("history", rows)
