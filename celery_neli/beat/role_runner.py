"""One role of a beat, and the inner scheduler that serves it: built for a term (or, ours, kept from term to term), put
down at its end, and tried again after a failure.
"""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from celery.utils.imports import qualname
from celery.utils.log import get_logger

from celery_neli.beat.tenure import Tenure
from celery_neli.beat.wrapped import host as inners
from celery_neli.beat.wrapped.stores import Ledger
from celery_neli.exceptions import ConfigurationError
from celery_neli.logs import LogLimit, escaping

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from celery_neli.beat.replicated.host import Keeper
    from celery_neli.beat.tenure import Leader
    from celery_neli.beat.wakeup import Alarm

__all__ = ["Desk"]

logger = escaping(get_logger(__name__))

#: Seconds to pause after a failure: the first one, doubled each time up to the last one.
FIRST_PAUSE, LAST_PAUSE = 0.5, 10.0
#: Seconds that a new leader waits for the schedule topic at a time.
CATCH_UP = 1.0
#: Seconds after which a shard that cannot begin yet looks again.
LATER = 0.2
#: Seconds for which a leader tries to read the schedule topic before it lets another one try.
UNREAD = 10.0
#: Seconds between two log lines of one reason why a role cannot be served.
SAID_EVERY = 60.0


class NotRead(Exception):
    """The schedule topic could not be read to its end yet."""


class Desk:
    """Serves one role while this process leads it. All methods belong to the thread that ticks; none of them raises
    what an inner scheduler raises, but for `LeaseEnded`.
    """

    def __init__(
        self,
        *,
        app: Any,
        cls: type[Any],
        shard: int,
        role: str,
        leader: Leader,
        alarm: Alarm,
        keeper: Keeper | None,
        options: Mapping[str, Any],
        added: list[dict[str, Any]],
        stopping: Callable[[], bool],
        amend: Callable[[Any], None] = lambda scheduler: None,
        learn: Callable[[Any], None] = lambda scheduler: None,
    ) -> None:
        """``keeper``: for a scheduler that keeps its state in the schedule topic; None for any other. ``amend`` is
        called with each scheduler after it was built, ``learn`` with each one that will not be used again.
        """
        self.role = role
        #: The inner scheduler of the present term.
        self.inner: Any = None
        #: It cannot be built, or raises: no progress is made.
        self.failing = False
        self._app, self._cls, self._shard = app, cls, shard
        self._leader, self._alarm, self._keeper = leader, alarm, keeper
        self._ledger = Ledger()
        self._options, self._added, self._stopping = options, added, stopping
        self._amend, self._learn = amend, learn
        #: Ours, standing by between terms.
        self._kept: Any = None
        self._waited = False
        self._reason, self._pause, self._retry_at = "", FIRST_PAUSE, 0.0
        self._failing_since = 0.0
        self._stood_back = False
        self._limit = LogLimit(SAID_EVERY)
        #: Term that began, and until when its entries are known to have been served.
        self._began: tuple[int, datetime] | None = None

    @property
    def schedule(self) -> Any:
        """The entries, of the inner scheduler or of the one that stands by; None without one."""
        scheduler = self.inner or self._kept
        return None if scheduler is None else scheduler.schedule

    @property
    def scheduler(self) -> Any:
        """The inner scheduler, or the one that stands by; None without one."""
        return self.inner or self._kept

    def turn(self) -> float | None:
        """Tick the inner scheduler: seconds until it wants the next tick; None if this process does not lead the role.

        :raises LeaseEnded: in the middle of an entry; `put_down` is next.
        """
        if self.inner is not None and (self._is_fenced() or not self.inner.neli_tenure.may_start()):
            self._stand_by()
        if (left := self._retry_at - time.monotonic()) > 0 and self._leader.snapshot(self.role).leading:
            return left
        self.failing = False
        try:
            interval = self._lead()
        except NotRead as exc:
            self.put_down()
            self.failing = True
            self._say(str(exc))
            if self._fails_for_long():
                self._give_way()
            return 0.0
        except Exception as exc:  # noqa: BLE001 - of any scheduler, store or driver; said in _failed
            return self._failed(exc)
        if self._reason and self.inner is not None:
            logger.info("beat: the inner scheduler works again")
            self._forget_failures()
        return interval

    def waited(self) -> None:
        """The interval that `turn` returned is over: what Celery does after its own sleep is due."""
        self._waited = self.inner is not None

    def _lead(self) -> float | None:
        if self.inner is None:
            down = self._alarm.down[self.role]
            down.clear()  # before the lease is asked: a revocation from now on waits for us
            standing = self._leader.snapshot(self.role)
            if not standing.leading or standing.term is None:
                down.set()
                if self._reason and self._fails_for_long():  # this beat led the term and did not serve it
                    self._give_way()
                return None if self._keep() else 0.0
            if not self._begin(standing.term):
                return LATER
        elif self._waited and self.inner.should_sync():
            self.inner._do_sync()  # Service.start does it after its own sleep only
        self._waited = False
        interval = float(self.inner.tick() or 0)
        self.failing = getattr(self.inner, "neli_stuck", False)
        return interval

    # -- terms --

    def _begin(self, term: int) -> bool:
        now = datetime.now(timezone.utc)
        if self._began is None or self._began[0] != term:
            self._began = term, min(now, self._leader.led_until(self.role) or now)
            self._forget_failures()
            logger.debug(
                "beat leads election=%s role=%s term=%s scheduler=%s",
                self._leader.election, self.role, term, qualname(self._cls),
            )  # fmt: skip
        tenure = Tenure(leader=self._leader, role=self.role, term=term, stopping=self._stopping)
        self._alarm.fenced.pop(self.role, None)
        if self._keeper is None:
            built = inners.build(self._cls, app=self._app, tenure=tenure, ledger=self._ledger, options=self._options)
            self.inner = built  # from here on, whatever happens puts it down
            self._add_to(built)
            self._amend(built)
            inners.count_births(built, born_since=now, since=self._began[1])
            return True
        self._keep()
        generation = self._keeper.topic.generation
        if not self._keeper.topic.read_to_end(CATCH_UP):
            raise NotRead("the schedule topic cannot be read to its end: nothing is sent before")
        self._keeper.pull_all(generation)
        if self._kept.neli_is_over(term):
            self._leader.resign(self.role)
            self._alarm.down[self.role].set()
            return False
        inners.renew(self._kept, app=self._app, tenure=tenure, options=self._options)
        if not self._kept.neli_begin(tenure, led_until=self._leader.led_until(self.role)):
            self._alarm.down[self.role].set()
            return False
        self.inner = self._kept
        return True

    def _keep(self) -> bool:
        """Apply what was read from the schedule topic to our own scheduler; return False if more of it is waiting."""
        if self._keeper is None:
            return True
        self._keeper.make_all()
        caught_up = self._keeper.pull()
        self._kept.neli_stand_by()
        self._keeper.prefer_newest(self._shard)
        return caught_up

    def make(self) -> None:
        """Have our own scheduler. Raises what its construction raises."""
        if self._kept is None and self._keeper is not None:
            self._kept = inners.build_led(
                self._cls, app=self._app, shard=self._shard, keeper=self._keeper, ledger=self._ledger,
                options=self._options,
            )  # fmt: skip
            self._add_to(self._kept)
            self._amend(self._kept)
            self._keeper.followers.append(self._kept)

    def _add_to(self, scheduler: Any) -> None:
        for fields in self._added:
            try:
                scheduler.add(**fields)
            except ConfigurationError as exc:
                logger.error("beat: entry=%s is left out: %s", fields.get("name"), exc)

    def _stand_by(self) -> None:
        term = self.inner.neli_tenure.term if self.inner is not None else None
        self.put_down()
        logger.debug("beat stands by election=beat role=%s term=%s", self.role, term)

    def _is_fenced(self) -> bool:
        return bool(self._alarm.fenced.get(self.role) == self.inner.neli_tenure.term)

    def put_down(self) -> None:
        """End the inner scheduler: write and close it if the lease holds, else close it unwritten. Never raises."""
        inner = self.inner
        try:
            if inner is not None:
                held = not self._is_fenced() and inner.neli_tenure.may_finish()
                try:
                    if inner is not self._kept:
                        self._learn(inner)
                    (inners.retire if held else inners.abandon)(inner)
                except Exception:
                    logger.exception("beat: closing %r failed", inner)
        finally:
            self.inner = None
            self._alarm.down[self.role].set()

    # -- failures --

    def _failed(self, exc: Exception) -> float:
        """The inner scheduler could not be built or raised. Celery's beat would end; we try again, a while later.

        No progress is reported, so a leader that goes on failing resigns after ``neli_stall_timeout``.
        """
        building = self.inner is None
        self.put_down()
        self.failing = True
        if isinstance(exc, ConfigurationError):
            self._give_way()  # waiting does not help; another beat may have the right settings
        self._pause = min(2 * self._pause, LAST_PAUSE) if self._reason else FIRST_PAUSE
        self._retry_at = time.monotonic() + self._pause
        what = "cannot be built" if building else "failed"
        self._say(f"the inner scheduler {what} ({type(exc).__name__}: {exc})", exc)
        return self._pause

    def _say(self, reason: str, exc: Exception | None = None) -> None:
        if not self._reason:
            self._failing_since = time.monotonic()
        if reason != self._reason and self._limit.allows(reason):
            over = self._kept is not None and self.inner is None and exc is not None
            then = "handing over" if over else "trying again for as long as this beat leads"
            trace = None if self._reason or isinstance(exc, ConfigurationError) else exc
            logger.error("beat: %s; %s", reason, then, exc_info=trace)
        self._reason = reason

    def _fails_for_long(self) -> bool:
        return time.monotonic() - self._failing_since > UNREAD

    def _give_way(self) -> None:
        """Let another beat lead the role, and do not come back to it at once."""
        if not self._stood_back:
            self._stood_back = True
            self._leader.stand_back(self.role)

    def _forget_failures(self) -> None:
        self._reason, self._pause, self._retry_at, self._stood_back = "", FIRST_PAUSE, 0.0, False
