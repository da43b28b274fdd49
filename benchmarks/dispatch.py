"""Due entries sent by Celery's Scheduler, alone and led, alternating; on the memory transport."""

from __future__ import annotations

import gc
import statistics
import time
from datetime import timedelta
from typing import Any

from celery import Celery
from celery.beat import Scheduler as CelerysScheduler

from celery_neli.leadership import Standing
from celery_neli.scheduler import Scheduler

ROUNDS, DUE = 7, 300


class AlwaysLeading:
    """A leadership that is never lost: what is measured is the asking."""

    election = "beat"

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def progress(self) -> None: ...
    def led_until(self) -> None: ...

    def snapshot(self) -> Standing:
        return Standing(term=1, until=time.monotonic() + 60, leading=True, held=True)


def app() -> Celery:
    made = Celery("bench", broker="memory://", set_as_current=False)
    made.conf.update(neli_group="bench", result_expires=None)
    made.conf.beat_schedule = {f"e{n}": {"task": "bench.task", "schedule": timedelta(days=1)} for n in range(DUE)}
    return made


def overdue(scheduler: Any) -> None:
    for entry in scheduler.schedule.values():
        entry.last_run_at -= timedelta(days=2)


def seconds(led: bool) -> float:
    made = app()
    scheduler: Any = Scheduler(made, leadership=AlwaysLeading(), max_interval=0.001) if led else CelerysScheduler(made)
    if led:
        scheduler.tick()  # builds the inner scheduler
    overdue(scheduler)
    if led:
        scheduler._inner.populate_heap()  # as its first tick does
    gc.collect()
    began = time.perf_counter()
    for _ in range(DUE):
        scheduler.tick()
    took = time.perf_counter() - began
    with made.connection_for_read() as connection:
        sent = connection.default_channel.queue_declare("celery", passive=True).message_count
        connection.default_channel.queue_purge("celery")
    assert sent == DUE, (led, sent)
    return took


def run() -> dict[str, Any]:
    pairs = [(seconds(False), seconds(True)) for _ in range(ROUNDS)]
    alone = statistics.median(a for a, _ in pairs)
    ratio = statistics.median(b / a for a, b in pairs)
    return {f"{DUE} due, Celery's Scheduler, sent per second": round(DUE / alone), "led / alone, time": round(ratio, 3)}
