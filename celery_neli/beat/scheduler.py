"""``celery beat -S celery_neli.Scheduler``: a scheduler that sends only while this process leads.

For each role that it leads (one, or as many as ``neli_shards``) it runs an inner scheduler (``neli_scheduler``), at a
desk (:mod:`celery_neli.beat.role_runner`): put down at the term's end, retired while the lease still holds (a
handover), abandoned unwritten when it does not (a fence). A standby writes nothing and waits to be woken.

Nothing here is safe because of a signal: revocation *pauses* the scheduler through the leadership's signals, but each
entry and each message asks the lease itself (:mod:`celery_neli.beat.wrapped.host`, :mod:`celery_neli.beat.publish`).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, ClassVar

from celery_neli.beat.facade import Facade
from celery_neli.beat.replicated.host import Keeper
from celery_neli.beat.role_runner import Desk
from celery_neli.beat.tenure import Leader, LeaseEnded
from celery_neli.beat.wakeup import Alarm
from celery_neli.config import beat_settings, enabled, from_app
from celery_neli.exceptions import ConfigurationError
from celery_neli.schedule.misfire import Misfire
from celery_neli.scheduler_class import DEFAULT, is_replicated, resolve

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_neli.config import Config
    from celery_neli.schedule_topic.topic import ScheduleTopic

__all__ = ["Scheduler"]

#: Seconds between two looks at the lease when no signal comes; also keeps ``celery inspect ping`` answered (5.7).
LONGEST_WAIT = 5.0


def _leadership(app: Any) -> Leader:
    from celery_neli.election.leadership import leadership_for  # threads and Kafka begin there, with the first tick
    from celery_neli.kafka.connect import connect

    return leadership_for(app, "beat", connect)


def _topic(config: Config, changed: Callable[[], None]) -> ScheduleTopic:
    from celery_neli.schedule_topic.topic import ScheduleTopic  # likewise

    return ScheduleTopic(config, log=logging.getLogger("celery_neli.schedule"), changed=changed)


class Scheduler(Facade):
    """Celery's scheduler interface around an inner scheduler that exists only while this process leads.

    The constructor does no work: Celery builds instances that never tick, for the banner and in signal handlers. The
    first :meth:`tick` joins the election. ``leadership`` replaces the process's own (tests). With ``neli_enabled`` off,
    the constructor returns a plain inner scheduler instead.

    All methods belong to the thread that ticks, except :meth:`close`.
    """

    #: Makes the leadership at the first tick: ``factory(app)``.
    leadership_factory: ClassVar[Callable[[Any], Leader]] = staticmethod(_leadership)
    #: Makes the schedule topic's client, likewise: ``factory(config, changed)``.
    topic_factory: ClassVar[Callable[[Config, Callable[[], None]], ScheduleTopic]] = staticmethod(_topic)

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
        self._keeper: Keeper | None = None
        self._alarm: Alarm | None = None
        self._ticking = False
        self._close_asked = False
        self._closing = False

    @staticmethod
    def _inner_class(app: Any) -> type[Any]:
        return resolve(app.conf.get("neli_scheduler"))

    def neli_check(self) -> None:
        """Raise `ConfigurationError` for settings with which this scheduler could not run. Starts nothing."""
        if self._leader is None:
            from celery_neli.kafka.properties import validate  # it loads confluent_kafka

            config = from_app(self.app, "beat")
            self._roles(self._inner_class(self.app), config)
            beat_settings(self.app)
            Misfire.of_app(self.app)
            validate(config)
        else:
            self._inner_class(self.app)

    def _roles(self, cls: type[Any], config: Config) -> tuple[str, ...]:
        if len(config.roles) > 1 and not is_replicated(cls):
            raise ConfigurationError(
                f"neli_shards = {len(config.roles)}, but neli_scheduler = {cls.__name__}: only {DEFAULT} "
                "spreads its entries; set neli_shards = 1, or leave neli_scheduler out"
            )
        return config.roles

    # -- the turn --

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """One turn: run the inner schedulers of the roles that this process leads, then wait for the next due time or
        a change.

        Blocks for ``max_interval`` or 5 s at most, apart from what the inner schedulers do. Returns 0: Celery is to
        come back at once, for its own ``time.sleep`` could not be woken (once closed, seconds to sleep).

        :raises ConfigurationError: at the first turn, before joining the election. Then a schedule that cannot be built
            may raise anything else, too.
        """
        self._ticking = True
        try:
            if self._close_asked:
                self._finish()
            if self._closing:
                return self._longest_wait()
            self._turn(*self._join())
        finally:
            self._ticking = False
        return 0.0

    def _turn(self, leader: Leader, alarm: Alarm) -> None:
        intervals: list[float] = []
        for desk in self._desks:
            try:
                interval = desk.turn()
            except LeaseEnded:  # whatever the lease says by now: an entry was cut off in the middle
                desk.put_down()
                interval = 0.0
            intervals.append(self._longest_wait() if interval is None else interval)
        if not any(desk.failing for desk in self._desks):
            leader.progress()
        if self._keeper is not None:
            self._keeper.note()  # also by a beat that is busy all the time
        wait = min(*intervals, self._longest_wait())
        if wait > 0:
            alarm.wait(wait)
            for desk in self._desks:
                desk.waited()

    # -- changes --

    def _join(self) -> tuple[Leader, Alarm]:
        if self._alarm is not None and self._leader is not None:
            return self._leader, self._alarm
        cls = self._inner_class(self.app)
        leader = self._leader or type(self).leadership_factory(self.app)
        roles = self._roles(cls, leader.config)
        alarm = Alarm(roles)
        if is_replicated(cls):
            self._keeper = Keeper(
                leader=leader,
                config=leader.config,
                settings=beat_settings(self.app),
                topic=type(self).topic_factory(leader.config, alarm.ring),
                app=self.app.main,
            )
        self._desks = [
            Desk(
                app=self.app, cls=cls, shard=shard, role=role, leader=leader, alarm=alarm, keeper=self._keeper,
                options=self._options, added=self._added, stopping=lambda: self._close_asked,
                amend=self._amend, learn=self._learn,
            )
            for shard, role in enumerate(roles)
        ]  # fmt: skip
        if self._keeper is not None:
            self._keeper.makers.extend(desk.make for desk in self._desks)
            self._keeper.make_all()  # a schedule that cannot be built ends the process before it takes part
        alarm.connect(leader, drain_timeout=leader.config.drain_timeout)
        leader.heard = self._heard
        self._leader, self._alarm = leader, alarm
        if self._keeper is not None:
            leader.fit = self._keeper.topic.fit  # without the schedule topic, this beat would lead and serve nothing
            self._keeper.topic.start()
        leader.start()
        return leader, alarm

    def _heard(self) -> None:
        """Records of ours were read back (the thread that renews): somebody may wait for what they claim."""
        leader, alarm = self._leader, self._alarm
        if leader is None or alarm is None:
            return
        for desk in self._desks:
            data = leader.told(desk.role).data or {}
            if data.get("claimed") != data.get("done"):
                alarm.ring()
                return

    def _longest_wait(self) -> float:
        stall_timeout = self.app.conf.get("neli_stall_timeout") or 3 * LONGEST_WAIT
        return min(float(self.max_interval), LONGEST_WAIT, stall_timeout / 3)  # waiting is no stall

    # -- the end --

    def close(self) -> None:
        """Write and close the inner schedulers, hand over, leave the election. Any number of times.

        On SIGTERM Celery calls it inside the signal handler. If the handler interrupted a tick, nothing may be touched
        that the tick may be holding: then an attribute is set, and the work is done by the call that follows once
        SystemExit has unwound the tick, or by the next turn. Otherwise it blocks for ``neli_drain_timeout`` and a few
        seconds at most.
        """
        self._close_asked = True
        if self._ticking:
            if self._alarm is not None:
                self._alarm.ring()
        else:
            self._finish()

    def _finish(self) -> None:
        if self._closing:
            return
        self._closing = True
        try:
            for desk in self._desks:
                desk.put_down()
        finally:
            leader, alarm = self._leader, self._alarm
            if leader is not None and alarm is not None:
                leader.stop()
                leader.heard = leader.fit = None
                alarm.disconnect()
            if self._keeper is not None:
                self._keeper.stop()
