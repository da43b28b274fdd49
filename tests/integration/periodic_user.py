"""A process that uses the runtime schedule: `python -m tests.integration.periodic_user WHAT SERVERS GROUP NUMBER`."""

from __future__ import annotations

import sys
from typing import Any

from celery import Celery

from celery_neli import periodic
from celery_neli.exceptions import Conflict

NAME, TASK = "shared", "shop.tidy"


def app_of(servers: str, group: str) -> Celery:
    """The app of all of them."""
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.update(neli_group=group, neli_kafka=servers, result_expires=None)
    return app


def count(app: Celery, number: int) -> None:
    """Add one to what everybody sees, so often, from the version that was read."""
    for _ in range(number):
        while True:
            found: Any = periodic.get(app, NAME)
            try:
                periodic.put(app, NAME, TASK, "PT1M", args=[found.args[0] + 1], expected=found.version)
            except Conflict:
                continue
            break


def put(app: Celery, number: int) -> None:
    """Other arguments each time."""
    for turn in range(number):
        periodic.put(app, NAME, TASK, "PT1M", args=["put", turn], note=f"put {turn}")


def pause(app: Celery, number: int) -> None:
    """Paused and resumed."""
    for turn in range(number):
        change = periodic.resume if turn % 2 else periodic.pause
        change(app, NAME, note=f"pause {turn}")


def batch(app: Celery, number: int) -> None:
    """Many at once."""
    with periodic.batch(app) as batch:
        for turn in range(number):
            batch.put(f"e{turn:06}", TASK, "PT1M", args=[turn])
        print("ready", flush=True)
    print("done", flush=True)


if __name__ == "__main__":
    globals()[sys.argv[1]](app_of(sys.argv[2], sys.argv[3]), int(sys.argv[4]))
