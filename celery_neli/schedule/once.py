"""A schedule that is due one time."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

from celery.schedules import BaseSchedule, schedstate
from celery.utils.time import maybe_make_aware

from celery_neli.exceptions import ConfigurationError


class once(BaseSchedule):  # noqa: N801 - as Celery's schedule, crontab and solar
    """A schedule that is due at ``at`` (an aware datetime), unless the entry ran then or later. For any thread.

    A beat without state counts an entry of `beat_schedule` as run when it starts, so a time before that never comes.
    Raises `ConfigurationError` if ``at`` is not an aware datetime.
    """

    def __init__(self, at: datetime, *, nowfun: Callable[[], datetime] | None = None, app: Any = None) -> None:
        given: Any = at
        if not isinstance(given, datetime) or given.utcoffset() is None:
            raise ConfigurationError(f"once({at!r}): give a datetime with a time zone, such as timezone.utc")
        try:
            self.at = at.astimezone(timezone.utc)
        except OverflowError:
            raise ConfigurationError(f"once({at!r}): in UTC, no datetime can hold it") from None
        super().__init__(nowfun=nowfun, app=app)

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        """Return the time until `at`, negative once that is past."""
        return self.at - maybe_make_aware(self.now())  # type: ignore[no-any-return]

    def is_due(self, last_run_at: datetime) -> schedstate:
        """Return whether it is due now, and the seconds until the next look, infinite once it ran."""
        if maybe_make_aware(last_run_at) >= self.at:
            return schedstate(False, math.inf)
        left = self.remaining_estimate(last_run_at).total_seconds()
        return schedstate(True, math.inf) if left <= 0 else schedstate(False, left)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, once):
            return other.at == self.at and other.nowfun == self.nowfun
        return NotImplemented

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.at,)

    def __repr__(self) -> str:
        return f"<once: {self.at.isoformat()}>"
