"""One beat as a process, which notes when each message had left: `python -m benchmarks.beat_process '{…}'`.

The specification in JSON: `case` (celery, redbeat, neli, neli led), `broker`, `redis`, `kafka`, `group`, `name`, `fast`
(entries at 1 s), `idle` (entries that are never due), `history` (False for none), `file`. Each line of the file: the
due time, when the message had left (Unix seconds), the entry's name. Runs until it is killed.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from datetime import datetime, timedelta, timezone
from typing import Any

import celery.beat
from celery import Celery

from benchmarks.brokers import schedule_of
from celery_neli import Scheduler
from celery_neli.beat.replicated.standalone import ReplicatedScheduler

EVERY = timedelta(seconds=1)
SPEC: dict[str, Any] = {}
FILE = -1


def note(entry: Any) -> None:
    """Its message has left. `entry` is as it was before it ran."""
    if entry.name.startswith("fast"):
        due = entry.last_run_at + EVERY
        os.write(FILE, f"{due.timestamp():.6f} {time.time():.6f} {entry.name}\n".encode())


class NotingCelerys(celery.beat.Scheduler):
    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        super().apply_entry(entry, producer=producer)
        note(entry)


class NotingNeli(ReplicatedScheduler):
    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        super().apply_entry(entry, producer=producer)
        note(entry)


def redbeat() -> type[Any]:
    from redbeat import RedBeatScheduler

    class NotingRedBeat(RedBeatScheduler):
        lock_key = None

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.lock_key = None

        def apply_async(self, entry: Any, producer: Any = None, advance: bool = True, **kwargs: Any) -> Any:
            sent = super().apply_async(entry, producer=producer, advance=advance, **kwargs)
            note(entry)
            return sent

    return NotingRedBeat


def main() -> None:
    global FILE
    SPEC.update(json.loads(sys.argv[1]))
    logging.basicConfig(level=logging.ERROR)
    FILE = os.open(SPEC["file"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    app = Celery("bench", broker=SPEC["broker"])
    now = datetime.now(timezone.utc)
    fast = {  # spread over the second
        f"fast{n}": {"task": "bench.task", "schedule": EVERY, "last_run_at": now + EVERY * (n / SPEC["fast"])}
        for n in range(SPEC["fast"])
    }
    case = SPEC["case"]
    app.conf.update(
        result_expires=None, beat_schedule={**schedule_of(SPEC["idle"]), **fast}, neli_group=SPEC["group"],
        neli_enabled=case != "neli", neli_history=SPEC.get("history", True),
        neli_kafka=SPEC["kafka"], neli_name=SPEC["name"], neli_scheduler="benchmarks.beat_process.NotingNeli",
        redbeat_redis_url=SPEC["redis"], redbeat_redis_options={}, redbeat_key_prefix=f"{SPEC['group']}:",
    )  # fmt: skip
    schedulers = {"celery": NotingCelerys, "neli": NotingNeli, "neli led": Scheduler}
    celery.beat.Service(app, scheduler_cls=redbeat() if case == "redbeat" else schedulers[case]).start()


if __name__ == "__main__":
    # Under its own name, by which the schedulers are found.
    from benchmarks import beat_process

    beat_process.main()
