"""The invented schedule of the pictures in docs/django.md."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone
from typing import Any

from celery import Celery

from celery_neli import periodic
from celery_neli.periodic.store import Topic
from celery_neli.schedule_topic.codec import STATE, State, encode_state
from celery_neli.schedule_topic.write import Write

app = Celery("shop", broker="memory://", set_as_current=False)
app.conf.beat_schedule = {"tidy-carts": {"task": "shop.tasks.tidy_carts", "schedule": 300.0}}
#: Name: task, schedule, arguments, options.
ENTRIES: dict[str, tuple[str, str, list[Any], dict[str, Any]]] = {
    **{
        f"invoices/{city.rpartition('/')[2].lower()}":
        ("shop.tasks.send_invoices", f"CRON_TZ={city} 30 7 * * mon-fri", [city], {"queue": "billing"})
        for city in ("Europe/Berlin", "Europe/Lisbon", "Asia/Tokyo")
    },
    "newsletter": ("shop.tasks.send_newsletter", "CRON_TZ=Europe/Berlin 0 9 * * tue#1", [], {"neli_misfire": "skip"}),
    "opening": ("shop.tasks.open_shop", "at:2027-03-01T08:00:00Z", ["hamburg"], {}),
    "prices": ("shop.tasks.fetch_prices", "every 2 minutes", [], {"neli_expires": 60}),
    "stock/sync": ("shop.tasks.sync_stock", "*/10 6-22 * * *", [], {"queue": "stock"}),
}  # fmt: skip


@app.task(name="shop.tasks.send_invoices", shared=False)
def send_invoices(city: str) -> None:
    """Nothing."""


@app.task(name="shop.tasks.tidy_carts", shared=False)
def tidy_carts() -> None:
    """Nothing."""


def fill(bootstrap_servers: str) -> None:
    """Put the schedule into this Kafka, which the app uses from then on."""
    app.conf.update(neli_kafka=bootstrap_servers, neli_group="shop", timezone="Europe/Berlin")
    states = []
    for name, (task, schedule, args, options) in ENTRIES.items():
        put = periodic.put(app, name, task, schedule, args=args, options=options, by="deploy@ci")
        ran = State(last=time.time() // 60 * 60, runs=len(name) * 31, epoch=0, since=put.since or 0.0)
        if not schedule.startswith("at:"):
            states.append(Write(STATE, name, encode_state(ran)))
    Topic(app).write(states)
    until = datetime.now(timezone.utc) + timedelta(hours=5)
    periodic.pause(app, "prices", until=until, note="the supplier is down", by="ana (django)")
