"""``celery beat -S celery_neli.Scheduler``: a scheduler that sends only while this process leads.

It holds an inner scheduler (``neli_scheduler``), built afresh for each term and put down at its end: retired while the
lease still holds (a hand-over), abandoned unwritten when it does not (a fence). A standby has none, writes nothing and
waits to be woken.

Nothing here is safe because of a signal: revocation *pauses* the scheduler through the leadership's signals, but each
entry and each message asks the lease itself (:mod:`celery_neli.inner`, :mod:`celery_neli.publish`).
"""

from __future__ import annotations

import queue
import threading
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, ClassVar

import celery.beat
from celery.utils.imports import qualname
from celery.utils.log import get_logger

from celery_neli import inner as inners
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


class Scheduler(celery.beat.Scheduler):  # type: ignore[misc]
    """Celery's scheduler interface around an inner scheduler that exists only while this process leads.

    The constructor does no work: Celery builds instances that never tick, for the banner and in signal handlers. The
    first :meth:`tick` joins the election. ``leadership`` replaces the process's own (tests). With ``neli_enabled`` off,
    the constructor returns a plain inner scheduler instead.

    All methods belong to the thread that ticks, except :meth:`close`.
    """

    #: Makes the leadership at the first tick: ``factory(app)``.
    leadership_factory: ClassVar[Callable[[Any], Leader]] = staticmethod(_leadership)
    #: RedBeat's receiver of ``beat_init`` takes RedBeat's lock unless the scheduler says that it has none.
    lock_key = None

    def __new__(cls, app: Any, *args: Any, leadership: Leader | None = None, **kwargs: Any) -> Any:
        if leadership is None and not app.conf.get("neli_enabled", True):
            return cls._inner_class(app)(app, *args, **kwargs)
        return super().__new__(cls)

    def __init__(
        self,
        app: Any,
        schedule: Any = None,
        max_interval: float | None = None,
        Producer: Any = None,
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
        self._inner: Any = None
        self._inner_cls: type[Any] | None = None
        self._added: list[dict[str, Any]] = []
        self._ledger = Ledger()
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()  # put() is safe in a signal handler
        self._ticking = False
        self._close_asked = False
        self._closing = False
        self._fenced: int | None = None  # the last term that was fenced
        self._down = threading.Event()  # there is no inner scheduler
        self._down.set()
        self._forget_failures()
        #: Term that began, and until when its entries are known to have been served.
        self._began: tuple[int, datetime] | None = None

    @staticmethod
    def _inner_class(app: Any) -> type[Any]:
        return inners.resolve(app.conf.get("neli_scheduler") or "celery.beat.Scheduler", outer=Scheduler)

    # -- the turn ------------------------------------------------------------------------------------------------------

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
        except LeaseEnded as ended:
            # Whatever the lease says by now: the inner scheduler was cut off in the middle of an entry.
            logger.info("beat stands by: %s", ended)
            self._put_down()
        finally:
            self._ticking = False
        return 0.0

    def _turn(self, leader: Leader) -> None:
        self._put_down_if_over(leader)
        try:
            interval = self._lead(leader)
        except Exception as exc:
            self._failed(leader, exc)
            return
        self._recovered()
        leader.progress()
        if interval is None:
            self._wait(self._longest_wait())
        elif interval > 0:
            self._wait(min(interval, self._longest_wait()))
            # Service.start does this only if tick returned something to sleep.
            if self._inner is not None and self.should_sync():
                self._do_sync()

    def _lead(self, leader: Leader) -> float | None:
        """Tick the inner scheduler: seconds until it wants the next one; None if this process does not lead."""
        if self._inner is None:
            self._down.clear()  # before the lease is asked: a revocation from now on waits for us
            standing = leader.snapshot()
            if not standing.leading or standing.term is None:
                self._down.set()
                return None
            self._inner = self._build(leader, standing.term)
        return float(self._inner.tick() or 0)

    def _build(self, leader: Leader, term: int) -> Any:
        cls = self._inner_cls
        assert cls is not None, "resolved by _join"
        now = datetime.now(timezone.utc)
        if self._began is None or self._began[0] != term:
            self._began = term, min(now, leader.led_until() or now)
            self._forget_failures()
            logger.info("beat leads election=%s term=%s scheduler=%s", leader.election, term, qualname(cls))
        tenure = Tenure(leader=leader, term=term, stopping=lambda: self._close_asked)
        self._fenced = None
        built = inners.build(cls, app=self.app, tenure=tenure, ledger=self._ledger, options=self._options)
        self._inner = built  # from here on, whatever happens puts it down
        inners.count_births(built, born_since=now, since=self._began[1])
        for fields in self._added:
            built.add(**fields)
        return built

    def _put_down_if_over(self, leader: Leader) -> None:
        inner = self._inner
        if inner is not None and (self._is_fenced(inner) or not inner.neli_tenure.may_start()):
            self._put_down()
            logger.info("beat stands by election=%s term=%s", leader.election, inner.neli_tenure.term)

    def _is_fenced(self, inner: Any) -> bool:
        return bool(self._fenced == inner.neli_tenure.term)

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
            self._down.set()

    # -- failures ------------------------------------------------------------------------------------------------------

    def _failed(self, leader: Leader, exc: Exception) -> None:
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
        self._wait(self._pause)

    def _recovered(self) -> None:
        if self._reason and self._inner is not None:
            logger.info("beat: the inner scheduler works again")
            self._forget_failures()

    def _forget_failures(self) -> None:
        self._reason, self._pause = "", FIRST_PAUSE

    # -- changes -------------------------------------------------------------------------------------------------------

    def _join(self) -> Leader:
        if self._leader is None:
            self._inner_cls = self._inner_class(self.app)
            self._leader = type(self).leadership_factory(self.app)
        if not self._joined:
            self._inner_cls = self._inner_cls or self._inner_class(self.app)
            for signal, receiver in self._receivers():
                signal.connect(receiver, sender=self._leader, weak=False, dispatch_uid=(id(self), id(signal)))
            self._joined = True
            self._leader.start()
        return self._leader

    def _receivers(self) -> tuple[tuple[Any, Callable[..., None]], ...]:
        from celery_neli import signals

        return (
            (signals.leadership_acquired, self._on_acquired),
            (signals.leadership_revoked, self._on_revoked),
            (signals.leadership_fenced, self._on_fenced),
        )

    def _on_acquired(self, **kwargs: Any) -> None:
        self._wake.put(None)

    def _on_revoked(self, **kwargs: Any) -> None:
        """Hold the hand-over until the message in flight has left and the schedule is written (leadership's thread)."""
        self._wake.put(None)
        self._down.wait(float(self.app.conf.get("neli_drain_timeout") or 10.0))

    def _on_fenced(self, term: int, **kwargs: Any) -> None:
        self._fenced = term  # even if late heartbeats bring the term back: its inner scheduler was to stop
        self._wake.put(None)

    def _wait(self, timeout: float) -> None:
        """Wait until something changes or ``timeout`` seconds are over."""
        try:
            self._wake.get(timeout=timeout)
            while True:
                self._wake.get_nowait()
        except queue.Empty:
            return

    def _longest_wait(self) -> float:
        return min(float(self.max_interval), LONGEST_WAIT)

    # -- Celery's interface --------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Write and close the inner scheduler, hand over, leave the election. Any number of times.

        On SIGTERM Celery calls it inside the signal handler. If the handler interrupted a tick, nothing may be touched
        that the tick may be holding: then an attribute is set, and the work is done by the call that follows once
        SystemExit has unwound the tick, or by the next turn. Otherwise it blocks for ``neli_drain_timeout`` and a few
        seconds at most.
        """
        self._close_asked = True
        if self._ticking:
            self._wake.put(None)
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
                for signal, _ in self._receivers():
                    signal.disconnect(sender=leader, dispatch_uid=(id(self), id(signal)))

    def add(self, **kwargs: Any) -> Any:
        """Add an entry (Celery's fields); kept for the inner schedulers of later terms too."""
        self._added.append(kwargs)
        return super().add(**kwargs) if self._inner is None else self._inner.add(**kwargs)

    def get_schedule(self) -> Any:
        """The inner scheduler's schedule; what was added here while there is none."""
        return self.data if self._inner is None else self._inner.schedule

    def set_schedule(self, schedule: Any) -> None:
        if self._inner is None:
            self.data = schedule
        else:
            self._inner.schedule = schedule

    schedule = property(get_schedule, set_schedule)

    def should_sync(self) -> bool:
        return self._inner is not None and bool(self._inner.should_sync())

    def _do_sync(self) -> None:
        if self._inner is not None:
            self._inner._do_sync()

    def sync(self) -> None:
        """Write the schedule, if this process leads."""
        if self._inner is not None:
            self._inner.sync()

    @property
    def info(self) -> str:
        """Lines of beat's banner."""
        conf = self.app.conf
        return (
            f"    . leads -> {conf.get('neli_scheduler') or 'celery.beat.Scheduler'}\n"
            f"    . group -> {conf.get('neli_group')}.beat"
        )
