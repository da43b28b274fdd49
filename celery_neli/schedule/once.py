"""A schedule that is due one time."""

from __future__ import annotations

import math
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from celery.schedules import BaseSchedule, schedstate
from celery.utils.time import maybe_make_aware

from celery_neli.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["once"]


class once(BaseSchedule):  # noqa: N801 - as Celery's schedule, crontab and solar
    """Due one time, at ``at`` (an aware datetime), if the entry did not run at or after it. Pure; any thread.

    In a `beat_schedule` as anywhere: of a beat without state an entry counts as run when beat starts, so a time that is
    past then never comes.

    Raises `ConfigurationError` for anything that is no aware datetime.
    """

    def __init__(self, at: datetime, *, nowfun: Callable[[], datetime] | None = None, app: Any = None) -> None:
        if not isinstance(at, datetime):
            raise ConfigurationError(f"once({at!r}): give a datetime")
        if at.utcoffset() is None:
            raise ConfigurationError(f"once({at!r}): give a datetime with a time zone, such as timezone.utc")
        try:
            #: When, in UTC.
            self.at = at.astimezone(timezone.utc)
        except OverflowError:
            raise ConfigurationError(f"once({at!r}): in UTC, no datetime can hold it") from None
        super().__init__(nowfun=nowfun, app=app)

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        """The time until `at`; negative once that is past."""
        return self.at - self._now()

    def is_due(self, last_run_at: datetime) -> schedstate:
        """Whether it is due now, and seconds until the next look: for ever, once it ran."""
        if maybe_make_aware(last_run_at) >= self.at:
            return schedstate(False, math.inf)
        left = self.remaining_estimate(last_run_at).total_seconds()
        return schedstate(True, math.inf) if left <= 0 else schedstate(False, left)

    def _now(self) -> datetime:
        now: datetime = maybe_make_aware(self.now())
        return now

    def __eq__(self, other: object) -> bool:
        if isinstance(other, once):
            return other.at == self.at and other.nowfun == self.nowfun
        return NotImplemented

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.at,)

    def __repr__(self) -> str:
        return f"<once: {self.at.isoformat()}>"
