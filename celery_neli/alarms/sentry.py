"""The sink of Sentry Crons (extra `sentry`): each slot is one check-in of the entry's monitor.

Monitors have the name of the entry and the schedule as sentry-sdk's own beat integration makes them, which is to be
switched off: it knows nothing of slots, and makes another check-in each time that a slot is sent.
"""

from __future__ import annotations

import logging
import math
from importlib import import_module
from typing import Any, Final

from celery.schedules import crontab, schedule

from celery_neli.alarms.reports import BAD, GOOD, OVERDUE, SENT, Report
from celery_neli.alarms.sink import Sink, SinkError
from celery_neli.exceptions import ConfigurationError
from celery_neli.logs import LogLimit, escaping
from celery_neli.schedule.cron import cron
from celery_neli.schedule.slots import Derived, shift_of

_STATUSES = {SENT: "in_progress", GOOD: "ok", BAD: "error", OVERDUE: "error"}
#: The units of intervals, in seconds, the longest first. Sentry knows no seconds.
_UNITS = ((86_400, "day"), (3_600, "hour"), (60, "minute"))
SAID_EVERY: Final = 86_400.0

logger = escaping(logging.getLogger(__name__))


def sentry(app: Any) -> Sink:
    """Return the sink. Raises `ConfigurationError` if sentry-sdk is missing."""
    try:
        sdk = import_module("sentry_sdk")
        crons = import_module("sentry_sdk.crons")
    except ImportError:
        raise ConfigurationError('neli_sentry_crons needs sentry-sdk 2: pip install "celery-neli[sentry]"') from None
    return Sink("sentry", _CheckIns(app, sdk, crons).deliver, frozenset(_STATUSES))


class _CheckIns:
    def __init__(self, app: Any, sdk: Any, crons: Any) -> None:
        self._app, self._sdk, self._crons = app, sdk, crons
        self._said = LogLimit(SAID_EVERY)

    def deliver(self, report: Report) -> None:
        """Hand the check-in to sentry-sdk, which sends it in the background."""
        if getattr(self._sdk.get_client(), "transport", None) is None:
            raise SinkError("sentry_sdk.init was not called in this process, or without a DSN")
        self._warn_of_integration()
        config = None
        if report.schedule is not None:
            config = monitor_config(report.schedule, self._app)
            if config is None:
                if self._said.allows(report.entry):
                    why = (
                        "Sentry Crons knows crontabs without seconds, and intervals of whole minutes, without "
                        "neli_calendar and neli_end"
                    )
                    logger.warning("alarms: entry=%s has no monitor in Sentry: %s", report.entry, why)
                return
        self._crons.capture_checkin(
            monitor_slug=report.entry,
            check_in_id=report.id.replace("-", ""),
            status=_STATUSES[report.status],
            duration=report.seconds,
            monitor_config=config,
        )

    def _warn_of_integration(self) -> None:
        integration = self._sdk.get_client().integrations.get("celery")
        if getattr(integration, "monitor_beat_tasks", False) and self._said.allows(None):
            logger.warning(
                "alarms: sentry-sdk's CeleryIntegration has monitor_beat_tasks=True beside neli_sentry_crons: a slot "
                "that is sent twice has two check-ins; switch it off"
            )


def monitor_config(when: Any, app: Any) -> dict[str, Any] | None:
    """Return the configuration of an entry's monitor, as sentry-sdk's integration makes it; None if Sentry knows no
    such schedule.
    """
    shift = shift_of(when)
    if isinstance(when, Derived):
        if when.end is not None or when.searched_again:
            return None  # Sentry would miss check-ins on the days that are left out, and after the end
        when = when.inner
    made: dict[str, Any]
    if isinstance(when, cron):
        if when.five_fields is None:
            return None
        made = {"type": "crontab", "value": when.five_fields}
    elif isinstance(when, crontab):
        fields = (getattr(when, f"_orig_{name}") for name in
                  ("minute", "hour", "day_of_month", "month_of_year", "day_of_week"))  # fmt: skip
        made = {"type": "crontab", "value": " ".join(map(str, fields))}
    elif type(when) is schedule:
        seconds = when.run_every.total_seconds()
        unit = next(((size, name) for size, name in _UNITS if seconds >= size and seconds % size == 0), None)
        if unit is None:
            return None
        made = {"type": "interval", "value": math.floor(seconds / unit[0]), "unit": unit[1]}
    else:
        return None
    zone = getattr(when, "tz", None) or app.timezone or "UTC"
    found: dict[str, Any] = {"schedule": made, "timezone": str(zone)}
    if shift:
        found["checkin_margin"] = 1 + math.ceil(shift / 60)  # minutes; without it, one
    return found
