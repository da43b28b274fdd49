"""``celery beat -S celery_neli.Scheduler``: a scheduler that sends only while this process leads.

It holds an inner scheduler (``neli_scheduler``), built afresh for each term and put down at its end: retired while the
lease still holds (a hand-over), abandoned unwritten when it does not (a fence). A standby has none, writes nothing and
waits to be woken.

Nothing here is safe because of a signal: revocation *pauses* the scheduler through the leadership's signals, but each
entry and each message asks the lease itself (:mod:`celery_neli.inner`, :mod:`celery_neli.publish`).
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, ClassVar

from celery.utils.imports import qualname
from celery.utils.log import get_logger

from celery_neli import inner as inners
from celery_neli.alarm import Alarm
from celery_neli.config import enabled, from_app
from celery_neli.facade import Facade
from celery_neli.reservation import Ledger
from celery_neli.tenure import Leader, LeaseEnded, Tenure

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Scheduler"]

logger = get_logger(__name__)

#: Seconds between two looks at the lease when no signal comes; also keeps ``celery inspect ping`` answered (5.7).
LONGEST_WAIT = 5.0
#: Seconds to pause after a failure: the first one, doubled each time up to the last one.
FIRST_PAUSE, LAST_PAUSE = 0.5, 10.0


def _leadership(app: Any) -> Leader:
    from celery_neli.leadership import leadership_for  # threads and Kafka begin there, with the first tick

    return leadership_for(app, "beat")


class Scheduler(Facade):
    """Celery's scheduler interface around an inner scheduler that exists only while this process leads.

    The constructor does no work: Celery builds instances that never tick, for the banner and in signal handlers. The
    first :meth:`tick` joins the election. ``leadership`` replaces the process's own (tests). With ``neli_enabled`` off,
    the constructor returns a plain inner scheduler instead.

    All methods belong to the thread that ticks, except :meth:`close`.
    """

    #: Makes the leadership at the first tick: ``factory(app)``.
    leadership_factory: ClassVar[Callable[[Any], Leader]] = staticmethod(_leadership)

    def __new__(cls, app: Any, *args: Any, leadership: Leader | None = None, **kwargs: Any) -> Any:
        """A plain inner scheduler if celery-neli is switched off (its ``__init__`` has run then, ours does not)."""
        if leadership is None and not enabled(app):
            return cls._inner_class(app)(app, *args, **kwargs)
        return super().__new__(cls)

    def __init__(
        self,
        app: Any,
        schedule: Any = None,
        max_interval: float | None = None,
        Producer: Any = None,  # noqa: N803 - Celery's name
        lazy: bool = False,
        *,
        leadership: Leader | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(app, schedule, max_interval, Producer, lazy=True, **kwargs)
        #: For the inner schedulers, which have defaults of their own (django-celery-beat's max_interval is 5 s).
        self._options = dict(kwargs, schedule=schedule, max_interval=max_interval, Producer=Producer)
        self._leader = leadership
        self._joined = False
        self._waited = False
        self._inner_cls: type[Any] | None = None
        self._ledger = Ledger()
        self._alarm = Alarm()
        self._ticking = False
        self._close_asked = False
        self._closing = False
        self._reason, self._pause = "", FIRST_PAUSE
        #: Term that began, and until when its entries are known to have been served.
        self._began: tuple[int, datetime] | None = None

    @staticmethod
    def _inner_class(app: Any) -> type[Any]:
        return inners.resolve(app.conf.get("neli_scheduler") or "celery.beat.Scheduler", outer=Scheduler)

    def neli_check(self) -> None:
        """Raise `ConfigurationError` for settings with which this scheduler could not run. Starts nothing."""
        if self._leader is None:
            from_app(self.app, "beat")
        self._inner_class(self.app)

    # -- the turn --

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """One turn: run the inner scheduler if this process leads, then wait for the next due time or a change.

        Blocks for ``max_interval`` or 5 s at most, apart from what the inner scheduler does. Returns 0: Celery is to
        come back at once, for its own ``time.sleep`` could not be woken (once closed, seconds to sleep).

        :raises ConfigurationError: at the first turn, before joining the election.
        """
        self._ticking = True
        try:
            if self._close_asked:
                self._finish()
            if self._closing:
                return self._longest_wait()
            self._turn(self._join())
        except LeaseEnded:
            self._stand_by()  # whatever the lease says by now: an entry was cut off in the middle
        finally:
            self._ticking = False
        return 0.0

    def _turn(self, leader: Leader) -> None:
        self._put_down_if_over()
        try:
            interval = self._lead(leader)
        except Exception as exc:  # noqa: BLE001 - of any scheduler, store or driver; said in _failed
            self._failed(exc)
            return
        self._recovered()
        leader.progress()
        if interval is None:
            self._alarm.wait(self._longest_wait())
        elif interval > 0:
            self._alarm.wait(min(interval, self._longest_wait()))
            self._waited = True

    def _lead(self, leader: Leader) -> float | None:
        """Tick the inner scheduler: seconds until it wants the next one; None if this process does not lead."""
        if self._inner is None:
            self._alarm.down.clear()  # before the lease is asked: a revocation from now on waits for us
            standing = leader.snapshot()
            if not standing.leading or standing.term is None:
                self._alarm.down.set()
                return None
            self._inner = self._build(leader, standing.term)
        elif self._waited and self._inner.should_sync():
            self._inner._do_sync()  # Service.start does it after its own sleep only
        self._waited = False
        return float(self._inner.tick() or 0)

    def _build(self, leader: Leader, term: int) -> Any:
        cls = self._inner_cls
        assert cls is not None, "resolved by _join"
        now = datetime.now(timezone.utc)
        if self._began is None or self._began[0] != term:
            self._began = term, min(now, leader.led_until() or now)
            self._forget_failures()
            logger.debug("beat leads election=%s term=%s scheduler=%s", leader.election, term, qualname(cls))
        tenure = Tenure(leader=leader, term=term, stopping=lambda: self._close_asked)
        self._alarm.fenced = None
        built = inners.build(cls, app=self.app, tenure=tenure, ledger=self._ledger, options=self._options)
        self._inner = built  # from here on, whatever happens puts it down
        inners.count_births(built, born_since=now, since=self._began[1])
        for fields in self._added:
            built.add(**fields)
        return built

    def _put_down_if_over(self) -> None:
        inner = self._inner
        if inner is not None and (self._is_fenced(inner) or not inner.neli_tenure.may_start()):
            self._stand_by()

    def _stand_by(self) -> None:
        term = self._inner.neli_tenure.term if self._inner is not None else None
        self._put_down()
        logger.debug("beat stands by election=beat term=%s", term)

    def _is_fenced(self, inner: Any) -> bool:
        return bool(self._alarm.fenced == inner.neli_tenure.term)

    def _put_down(self) -> None:
        """End the inner scheduler: write and close it if the lease holds, else close it unwritten. Never raises."""
        inner = self._inner
        try:
            if inner is not None:
                held = not self._is_fenced(inner) and inner.neli_tenure.may_finish()
                try:
                    (inners.retire if held else inners.abandon)(inner)
                except Exception:
                    logger.exception("beat: closing %r failed", inner)
        finally:
            self._inner = None
            self._alarm.down.set()

    # -- failures --

    def _failed(self, exc: Exception) -> None:
        """The inner scheduler could not be built or raised. Celery's beat would end; we try again, a while later.

        No progress is reported, so a leader that goes on failing resigns after ``neli_stall_timeout``.
        """
        building = self._inner is None
        self._put_down()
        self._pause = min(2 * self._pause, LAST_PAUSE) if self._reason else FIRST_PAUSE
        reason = f"{type(exc).__name__}: {exc}"
        if reason != self._reason:
            logger.error(
                "beat: the inner scheduler %s (%s); trying again for as long as this beat leads",
                "cannot be built" if building else "failed", reason, exc_info=None if self._reason else exc,
            )  # fmt: skip
            self._reason = reason
        self._alarm.wait(self._pause)

    def _recovered(self) -> None:
        if self._reason and self._inner is not None:
            logger.info("beat: the inner scheduler works again")
            self._forget_failures()

    def _forget_failures(self) -> None:
        self._reason, self._pause = "", FIRST_PAUSE

    # -- changes --

    def _join(self) -> Leader:
        if self._leader is None:
            self._inner_cls = self._inner_class(self.app)
            self._leader = type(self).leadership_factory(self.app)
        if not self._joined:
            self._inner_cls = self._inner_cls or self._inner_class(self.app)
            drain_timeout = self.app.conf.get("neli_drain_timeout")
            self._alarm.connect(self._leader, drain_timeout=10.0 if drain_timeout is None else drain_timeout)
            self._joined = True
            self._leader.start()
        return self._leader

    def _longest_wait(self) -> float:
        stall_timeout = self.app.conf.get("neli_stall_timeout") or 3 * LONGEST_WAIT
        return min(float(self.max_interval), LONGEST_WAIT, stall_timeout / 3)  # waiting is no stall

    # -- the end --

    def close(self) -> None:
        """Write and close the inner scheduler, hand over, leave the election. Any number of times.

        On SIGTERM Celery calls it inside the signal handler. If the handler interrupted a tick, nothing may be touched
        that the tick may be holding: then an attribute is set, and the work is done by the call that follows once
        SystemExit has unwound the tick, or by the next turn. Otherwise it blocks for ``neli_drain_timeout`` and a few
        seconds at most.
        """
        self._close_asked = True
        if self._ticking:
            self._alarm.ring()
        else:
            self._finish()

    def _finish(self) -> None:
        if self._closing:
            return
        self._closing = True
        try:
            self._put_down()
        finally:
            leader = self._leader
            if leader is not None and self._joined:
                leader.stop()
                self._alarm.disconnect()
