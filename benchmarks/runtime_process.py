"""One contender of `runtime.py` in a process of its own: `python -m benchmarks.runtime_process KIND URL SIZE`.

It fills the store with so many entries by the store's own quick way, and then times single calls, as a web process
makes them, one after another. It prints one line of JSON: lists of seconds, and numbers.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from celery import Celery

CALLS = 300
BATCH = 10_000
TASK = "shop.tasks.tidy_up"


def rss() -> float:
    """Return this process's memory in MB."""
    with Path("/proc/self/status").open() as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmRSS"))


def times(call: Callable[[int], object], numbers: list[int]) -> list[float]:
    """Return how long each call took."""
    found = []
    for number in numbers:
        began = time.perf_counter()
        call(number)
        found.append(time.perf_counter() - began)
    return found


def name(number: int) -> str:
    return f"tenant-{number % 100:02}/job-{number:06}"


def neli(url: str, size: int) -> dict[str, Any]:
    from celery_neli import periodic

    app = Celery("bench", broker="memory://", set_as_current=False)
    app.conf.update(neli_group=f"bench-{size}", neli_kafka=url, result_expires=None)
    schedules = ("*/5 * * * *", "PT30S", "0 7 * * mon-fri", "PT1H")
    with periodic.batch(app) as batch:
        for number in range(size):
            batch.put(name(number), TASK, schedules[number % 4], args=[number], options={"queue": "q"})
    chosen = random.Random(1).sample(range(size), min(CALLS, size))
    found: dict[str, Any] = {"first": times(lambda n: periodic.get(app, name(n)), chosen[:1])[0]}
    times(lambda n: periodic.get(app, name(n)), list(range(64)))  # every partition was looked at
    found["save"] = times(lambda n: periodic.put(app, name(n), TASK, schedules[n % 4], args=[-n - 1]), chosen)
    found["add"] = times(lambda n: periodic.put(app, f"new-{n}", TASK, "PT1H"), list(range(CALLS)))
    found["get"] = times(lambda n: periodic.get(app, name(n)), chosen)
    began = time.perf_counter()
    with periodic.batch(app) as batch:
        for number in range(BATCH):
            batch.put(f"batch-{number}", TASK, "PT1H", args=[number])
    found["batch"] = time.perf_counter() - began
    began = time.perf_counter()
    count = sum(1 for _ in periodic.list(app))
    found["list"] = count / (time.perf_counter() - began)
    return found


def memory(url: str, size: int) -> dict[str, Any]:
    """A web process that only puts; the store was filled before."""
    app = Celery("bench", broker="memory://", set_as_current=False)
    app.conf.update(neli_group=f"bench-{size}", neli_kafka=url, result_expires=None)
    app.finalize()
    before = rss()
    from celery_neli import periodic

    first = times(lambda n: periodic.put(app, f"web-{n}", TASK, "PT1H"), list(range(CALLS)))
    after, cpu = rss(), time.process_time()
    time.sleep(5)
    return {"memory": after - before, "puts": first, "idle": 100 * (time.process_time() - cpu) / 5}


def redbeat(url: str, size: int) -> dict[str, Any]:
    from celery.schedules import schedule
    from redbeat import RedBeatSchedulerEntry
    from redbeat.schedulers import get_redis

    app = Celery("bench", broker="memory://", set_as_current=False)
    app.conf.update(redbeat_redis_url=url, redbeat_key_prefix=f"bench-{size}:")

    def save(number: int, *, args: Any = None) -> None:
        given = [number] if args is None else args
        RedBeatSchedulerEntry(name(number), TASK, schedule(3600), args=given, app=app).save()

    save(0)
    client, prefix = get_redis(app), app.redbeat_conf.key_prefix
    one = client.hgetall(prefix + name(0))
    with client.pipeline(transaction=False) as pipeline:  # what `save` writes, without its round trips
        for number in range(size):
            pipeline.hset(prefix + name(number), mapping=one)
            pipeline.zadd(app.redbeat_conf.schedule_key, {prefix + name(number): time.time() + 3600})
        pipeline.execute()
    chosen = random.Random(1).sample(range(size), min(CALLS, size))
    return {
        "save": times(lambda n: save(n, args=[-n]), chosen),
        "get": times(lambda n: RedBeatSchedulerEntry.from_key(prefix + name(n), app=app), chosen),
    }


def django(url: str, size: int) -> dict[str, Any]:
    import django as framework
    from django.conf import settings
    from django.core.management import call_command

    database: dict[str, Any] = {"ENGINE": "django.db.backends.sqlite3", "NAME": url}
    if url.startswith("port="):
        options = {"HOST": "127.0.0.1", "PORT": url.removeprefix("port="), "USER": "postgres", "NAME": "postgres"}
        database = {"ENGINE": "django.db.backends.postgresql", **options}
    apps = ["django.contrib.contenttypes", "django_celery_beat"]
    settings.configure(INSTALLED_APPS=apps, DATABASES={"default": database}, USE_TZ=True)
    framework.setup()
    call_command("migrate", verbosity=0)
    from django_celery_beat.models import IntervalSchedule, PeriodicTask

    PeriodicTask.objects.all().delete()
    every, _ = IntervalSchedule.objects.get_or_create(every=1, period="hours")
    rows = [PeriodicTask(name=name(n), task=TASK, interval=every, args=json.dumps([n])) for n in range(size)]
    PeriodicTask.objects.bulk_create(rows, batch_size=1000)
    chosen = random.Random(1).sample(range(size), min(CALLS, size))

    def save(number: int) -> None:
        row = PeriodicTask.objects.get(name=name(number))
        row.args = json.dumps([-number])
        row.save()

    return {"save": times(save, chosen), "get": times(lambda n: PeriodicTask.objects.get(name=name(n)), chosen)}


if __name__ == "__main__":
    kind, url, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
    print(json.dumps(globals()[kind](url, size)), flush=True)
