"""The Celery app of the failovers: the smoke tests', with a schedule too large, or of too many kinds, for its JSON.

Intervals of a second (the setting `failover_entries` tells how many), a crontab of each minute, and `failover_hourly`
intervals of an hour, which are there to be many.
"""

from __future__ import annotations

from celery.schedules import crontab

from tests.smoke.project import app

__all__ = ["app"]

TASK = "smoke.tick"


app.conf.beat_schedule = {
    **{f"second-{number}": {"task": TASK, "schedule": 1.0} for number in range(app.conf.failover_entries)},
    "minutely": {"task": TASK, "schedule": crontab()},
    **{f"hour-{number}": {"task": TASK, "schedule": 3600.0} for number in range(app.conf.get("failover_hourly", 0))},
}
