"""What a tick costs: idle and with much due, and what entries weigh. Ours against Celery's Scheduler, alternating;
sending also against a bare `send_task` loop on one producer. On the memory transport.

`python -m benchmarks.tick 100000` adds the dispatch of so many.
"""

from __future__ import annotations

import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from celery import Celery
from celery.beat import Scheduler as CelerysScheduler

from celery_neli.replicated import ReplicatedScheduler

ROUNDS = 5
IDLE = (10, 1_000, 10_000, 100_000)
DUE = (1, 100, 10_000)
#: Celery's heap is built anew again and again when much is due: more would take minutes.
CELERYS_MOST_DUE = 1_000
#: What is counted: CPU seconds of this thread, which other processes on the machine disturb less.
clock = time.thread_time

WEIGHT = """
import gc, json, sys, psutil
from benchmarks import tick
cls = {"ours": tick.ReplicatedScheduler, "celerys": tick.CelerysScheduler}[sys.argv[1]]
made, process = tick.app(1), psutil.Process()
cls(made).tick()
made.conf.beat_schedule = tick.schedule_of(int(sys.argv[2]))
gc.collect()
before = process.memory_info().rss
scheduler = cls(made)
scheduler.tick()
gc.collect()
print(json.dumps(process.memory_info().rss - before))
"""


def schedule_of(count: int) -> dict[str, Any]:
    return {f"e{n}": {"task": "bench.task", "schedule": timedelta(days=1)} for n in range(count)}


def app(count: int) -> Celery:
    made = Celery("bench", broker="memory://", set_as_current=False)
    made.conf.update(result_expires=None, beat_schedule=schedule_of(count))
    return made


def purge(made: Celery) -> int:
    with made.connection_for_read() as connection:
        sent = connection.default_channel.queue_declare("celery", passive=True).message_count
        connection.default_channel.queue_purge("celery")
    return int(sent)


def per_call(call: Callable[[], Any], times: int) -> float:
    gc.collect()
    gc.disable()
    began = clock()
    for _ in range(times):
        call()
    took = clock() - began
    gc.enable()
    return took / times


def idle(count: int) -> tuple[float, float]:
    """Seconds of an idle tick: ours, Celery's."""
    ours, celerys = ReplicatedScheduler(app(count)), CelerysScheduler(app(count))
    for scheduler in (ours, celerys):
        scheduler.tick()
    pairs = [
        (per_call(ours.tick, 500), per_call(celerys.tick, max(1, 20_000 // count))) for _ in range(ROUNDS)
    ]  # fmt: skip
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


def dispatch(cls: type[Any], count: int) -> float:
    """Seconds for one of `count` messages that are due at once. The connection and the heap are there."""
    made = app(count + 1)
    scheduler = cls(made)
    entries = list(scheduler.schedule.values())
    entries[0].last_run_at -= timedelta(days=1, seconds=5)
    scheduler.tick()
    scheduler.tick()
    for entry in entries[1:]:
        entry.last_run_at -= timedelta(days=1, seconds=5)
    scheduler.populate_heap()
    took = per_call(scheduler.tick, count)
    assert purge(made) == count + 1
    return took


def bare(count: int) -> float:
    """Seconds for one `send_task` with a held producer."""
    made = app(0)
    with made.connection_for_write() as connection:
        producer = made.amqp.Producer(connection, auto_declare=False)

        def send() -> None:
            made.send_task("bench.task", (), {}, producer=producer, headers={"celery_beat_task": True})

        send()
        took = per_call(send, count)
    assert purge(made) == count + 1
    return took


def weight(which: str, count: int) -> float:
    """Bytes of a scheduler that has ticked, in a process of its own."""
    told = subprocess.run([sys.executable, "-c", WEIGHT, which, str(count)], capture_output=True, check=True)
    return float(json.loads(told.stdout))


def run(most: int = max(DUE)) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    ticks = {count: idle(count) for count in IDLE}
    for count, (ours, celerys) in ticks.items():
        rows[f"idle tick, {count} entries, µs: ours, Celery's"] = f"{ours * 1e6:.1f}, {celerys * 1e6:.0f}"
    first, last = ticks[IDLE[0]], ticks[IDLE[-1]]
    rows[f"idle tick, {IDLE[-1]} / {IDLE[0]} entries, ours"] = round(last[0] / first[0], 2)
    rows[f"idle tick, {IDLE[-1]} entries, Celery's / ours"] = round(last[1] / last[0])
    for count in sorted({*DUE, most}):
        rounds = ROUNDS if count <= 10_000 else 3
        pairs = [(dispatch(ReplicatedScheduler, count), bare(count)) for _ in range(rounds)]
        rows[f"{count} due, sent per CPU second"] = round(1 / statistics.median(a for a, _ in pairs))
        rows[f"{count} due, rate of ours / bare send_task"] = round(statistics.median(b / a for a, b in pairs), 2)
        if count <= CELERYS_MOST_DUE:
            celerys = statistics.median(dispatch(CelerysScheduler, count) / a for a, _ in pairs)
            rows[f"{count} due, rate of ours / Celery's Scheduler"] = round(celerys, 1)
    ours, celerys = weight("ours", 100_000), weight("celerys", 100_000)
    rows["memory of 100000 entries, MB"] = round(ours / 1e6)
    rows["memory of 100000 entries, ours / Celery's"] = round(ours / celerys, 2)
    return rows


if __name__ == "__main__":
    for label, value in run(int(sys.argv[1]) if len(sys.argv) > 1 else max(DUE)).items():
        print(f"{label:<60} {value:>16}")
