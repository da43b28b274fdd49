"""What became of the slots of periodic tasks, for the API and the command line."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any, Final

from celery_neli.config import enabled, from_app, setting
from celery_neli.exceptions import ConfigurationError
from celery_neli.history.runs import Run
from celery_neli.logs import escaping
from celery_neli.periodic.call import check_app
from celery_neli.periodic.editor import entry_name
from celery_neli.printable import printable, shown

_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_AGO = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw])")


def runs(
    app: Any,
    name: str | None = None,
    *,
    limit: int = 100,
    since: datetime | timedelta | float | None = None,
    only: Callable[[Run], bool] | None = None,
) -> list[Run]:
    """Return the latest runs: see `celery_neli.periodic.runs`. `only` says which ones are counted."""
    check_app(app)
    if not enabled(app):
        raise ConfigurationError("neli_enabled = False: there is no run history without Kafka; switch it on")
    if not setting(app, "neli_history"):
        raise ConfigurationError("neli_history = False: nothing is recorded; switch it on")
    from celery_neli.history.topic import read_runs  # it loads confluent_kafka

    if type(limit) is not int:
        raise ConfigurationError(f"limit = {shown(limit)}: give a whole number")
    log = escaping(logging.getLogger("celery_neli.periodic.api"))
    name = None if name is None else entry_name(name)
    return read_runs(from_app(app, "beat"), log=log, name=name, limit=limit, since=_unix(since), only=only)


def _unix(since: Any) -> float | None:
    """Return a time in Unix seconds. Raises `ConfigurationError`."""
    try:
        if since is None:
            return None
        if isinstance(since, timedelta):
            return time.time() - since.total_seconds()
        if isinstance(since, datetime):
            return since.timestamp()
        if isinstance(since, (int, float)) and not isinstance(since, bool) and abs(since) < 1e12:
            return float(since)
    except (ValueError, OverflowError, OSError):
        pass
    raise ConfigurationError(f"since = {shown(since)}: give a datetime, a timedelta or Unix seconds")


def since_of(text: str, option: str = "--since") -> datetime | timedelta:
    """Return the time that a text means: so long ago (`90s`, `30m`, `2h`, `7d`), or an ISO 8601 time, which is UTC if
    it names no zone. Errors name the `option`. Raises `ConfigurationError`.
    """
    given = _time_in(text)
    if given is None:
        raise ConfigurationError(
            f"{option} {printable(repr(text))}: say how long ago (90s, 30m, 2h, 7d), or since when (2026-12-01T07:00Z)"
        )
    return given


def until_of_text(text: str) -> datetime | timedelta:
    """Return the time that a text means: how long from now (`90s`, `30m`, `2h`, `7d`), or an ISO 8601 time, as
    `since_of`. Raises `ConfigurationError`.
    """
    given = _time_in(text)
    if given is None:
        raise ConfigurationError(
            f"--until {printable(repr(text))}: say how long from now (90s, 30m, 2h, 7d), or until when "
            "(2026-12-01T07:00Z)"
        )
    return given


def _time_in(text: str) -> datetime | timedelta | None:
    try:
        if (ago := _AGO.fullmatch(text.strip())) is not None:
            return timedelta(seconds=float(ago[1]) * _UNITS[ago[2]])
        at = datetime.fromisoformat(re.sub("[zZ]$", "+00:00", text.strip()))
        return at if at.utcoffset() is not None else at.replace(tzinfo=timezone.utc)
    except (ValueError, OverflowError):
        return None
