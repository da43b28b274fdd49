"""Run the host of one role while this process leads it: begin and end its terms, and back off after failures.

A `Host` is the seam between a role and what serves it: it runs one kind of Celery scheduler for as long as a term
lasts. There are two kinds: `celery_neli.beat.wrapped` for any Celery scheduler, built for each term and closed at
its end, and `celery_neli.beat.replicated.host` for our own, which stands by between terms.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any, Protocol

from celery.utils.imports import qualname
from celery.utils.log import get_logger

from celery_neli.beat.tenure import Tenure, Wakeup
from celery_neli.election.neli import Role
from celery_neli.exceptions import ConfigurationError
from celery_neli.logs import LogLimit, escaping

logger = escaping(get_logger(__name__))

#: Seconds to pause after a failure: the first pause, doubled each time up to the last one.
FIRST_PAUSE, LAST_PAUSE = 0.5, 10.0
#: Seconds after which a host that cannot begin yet is asked again.
LATER = 0.2
#: Seconds for which a leader may fail before it lets another beat try.
UNREAD = 10.0
#: Seconds between two log lines with the same reason why a role cannot be served.
SAID_EVERY = 60.0


class NotReady(Exception):
    """The host lacks something from outside to begin a term, and says what; it may have it in a moment."""


class Host(Protocol):
    """Serves one role, by a scheduler. The thread that ticks calls it, and it may raise whatever a scheduler raises."""

    #: The scheduler, also while it stands by; None while there is none.
    scheduler: Any
    #: True if the scheduler outlives its term, so that a term in which it failed is not begun again.
    stands_by: bool

    def prepare(self) -> bool:
        """Get ready for a term while another beat leads; return False if more of that is left to do at once."""

    def begin(self, tenure: Tenure, *, first_seen: datetime) -> bool:
        """Begin to serve a term, which every message asks; return False if that is not possible yet.

        The entries are known to have been served until ``first_seen`` (UTC). Raises `NotReady` if something is missing
        that may come.
        """

    def tick(self) -> float:
        """Send what is due; return the seconds until the next call. Raises `LeaseEnded` in the middle of an entry."""

    def end(self, *, held: bool) -> None:
        """Stop serving. If the lease is still ``held``, write what a successor needs to know; otherwise write nothing.

        Also called after a `begin` that raised.
        """

    @property
    def stuck(self) -> bool:
        """True if messages are on their way and nothing comes of them."""


class RoleRunner:
    """Runs ``host`` while this process leads ``role``. All methods belong to the thread that ticks.

    None of them raises what a host raises, but for `LeaseEnded`. ``progress`` is called when a message has left.
    """

    def __init__(self, *, role: Role, host: Host, wakeup: Wakeup, progress: Callable[[], None]) -> None:
        self.role, self.host = role, host
        #: True while a term is served.
        self.serves = False
        #: True if the host cannot begin, or raises, or is stuck: no progress is made.
        self.failing = False
        self._wakeup, self._progress = wakeup, progress
        self._tenure: Tenure | None = None
        self._waited = False
        self._reason, self._pause, self._retry_at = "", FIRST_PAUSE, 0.0
        self._failing_since = 0.0
        self._backed_off = False
        self._limit = LogLimit(SAID_EVERY)
        #: The term that began here last, and until when its entries are known to have been served.
        self._began: tuple[int, datetime] | None = None

    def turn(self) -> float | None:
        """Tick the host; return the seconds until the next tick, or None if this process does not lead the role.

        Raises `LeaseEnded` in the middle of an entry: call `end_term` next.
        """
        if (tenure := self._tenure) is not None and (tenure.is_fenced() or not tenure.may_start()):
            self.end_term()
            logger.debug("beat stands by election=beat role=%s term=%s", self.role.name, tenure.term)
        if (left := self._retry_at - time.monotonic()) > 0 and self.role.leading_term() is not None:
            return left
        self.failing = False
        try:
            interval = self._lead()
        except NotReady as exc:
            self.end_term()
            self.failing = True
            self._say(str(exc))
            self._back_off_in_time()
            return 0.0
        except Exception as exc:  # noqa: BLE001 - of any scheduler, store or driver; _failed logs it
            return self._failed(exc)
        if self._reason and self.serves:
            logger.info("beat: the scheduler works again")
            self._forget_failures()
        return interval

    def waited(self) -> None:
        """Note that the interval which `turn` returned is over: what Celery does after its own sleep is due."""
        self._waited = self.serves

    def end_term(self) -> None:
        """End the term in the host, which writes only if the lease holds, and let a handover go on. Never raises."""
        try:
            if (tenure := self._tenure) is not None:
                self.host.end(held=not tenure.is_fenced() and tenure.may_finish())
        except Exception:
            logger.exception("beat: closing %r failed", self.host.scheduler)
        finally:
            self._tenure, self.serves = None, False
            self._wakeup.ended[self.role.name].set()

    def _lead(self) -> float | None:
        if self._tenure is None:
            ended = self._wakeup.ended[self.role.name]
            ended.clear()  # before the lease is asked: a revocation from now on waits for us
            term = self.role.leading_term()
            if term is None:
                ended.set()
                if self._reason:  # this beat led the term and did not serve it
                    self._back_off_in_time()
                return None if self.host.prepare() else 0.0
            if not self._begin(term):
                self._tenure = None
                ended.set()
                return LATER
        elif self._waited and self.host.scheduler.should_sync():
            self.host.scheduler._do_sync()
        self._waited = False
        interval = self.host.tick()
        self.failing = self.host.stuck
        return interval

    def _begin(self, term: int) -> bool:
        now = datetime.now(timezone.utc)
        if self._began is None or self._began[0] != term:
            self._began = term, min(now, self.role.predecessor_active_until() or now)
            self._forget_failures()
        self._wakeup.fenced.pop(self.role.name, None)
        self._tenure = Tenure(self.role, term, wakeup=self._wakeup, progress=self._progress)
        self.serves = self.host.begin(self._tenure, first_seen=self._began[1])
        if self.serves:
            logger.debug(
                "beat leads election=beat role=%s term=%s scheduler=%s",
                self.role.name, term, qualname(type(self.host.scheduler)),
            )  # fmt: skip
        return self.serves

    # -- failures --

    def _failed(self, exc: Exception) -> float:
        """Retry after a pause (returned, seconds), where Celery's beat would end; `progress` is not called for it."""
        what = "failed" if self.serves else "cannot be built"
        self.end_term()
        self.failing = True
        if isinstance(exc, ConfigurationError):
            self._back_off()  # waiting does not help; another beat may have the right settings
        self._pause = min(2 * self._pause, LAST_PAUSE) if self._reason else FIRST_PAUSE
        self._retry_at = time.monotonic() + self._pause
        self._say(f"the scheduler {what} ({type(exc).__name__}: {exc})", exc)
        return self._pause

    def _say(self, reason: str, exc: Exception | None = None) -> None:
        if not self._reason:
            self._failing_since = time.monotonic()
        if reason != self._reason and self._limit.allows(reason):
            over = exc is not None and self.host.stands_by and self.host.scheduler is not None
            then = "handing over" if over else "trying again for as long as this beat leads"
            trace = None if self._reason or isinstance(exc, ConfigurationError) else exc
            logger.error("beat: %s; %s", reason, then, exc_info=trace)
        self._reason = reason

    def _back_off_in_time(self) -> None:
        if time.monotonic() - self._failing_since > UNREAD:
            self._back_off()

    def _back_off(self) -> None:
        if not self._backed_off:
            self._backed_off = True
            self.role.resign(back_off=True)

    def _forget_failures(self) -> None:
        self._reason, self._pause, self._retry_at, self._backed_off = "", FIRST_PAUSE, 0.0, False
