"""``celery beat -S celery_neli.Scheduler``: a scheduler that sends only while this process leads.

For each role (one, or as many as ``neli_shards``) a :class:`celery_neli.beat.role_runner.RoleRunner` runs a host while
this process leads it. Nothing here is safe because of a signal: revocation *pauses* the hosts through the leadership's
signals, but each entry and each message asks the lease itself (:mod:`celery_neli.beat.publish`).
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

import celery.beat
from celery.utils.log import get_logger

from celery_neli import hooks, observability
from celery_neli.beat.draft import Draft, Shards
from celery_neli.beat.replicated.host import ReplicatedHost, SharedSchedule
from celery_neli.beat.role_runner import RoleRunner
from celery_neli.beat.tenure import LeaseEnded, Wakeup
from celery_neli.beat.wrapped import WrappedHost, add_to, is_database, is_redbeat
from celery_neli.config import DEFAULT_SCHEDULER, beat_settings, enabled, from_app, is_replicated, scheduler_class
from celery_neli.exceptions import ConfigurationError
from celery_neli.logs import escaping
from celery_neli.periodic.static import with_sound_schedule
from celery_neli.printable import failure
from celery_neli.schedule.policies import Misfire

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from celery_neli.config import Config
    from celery_neli.election.leadership import Leadership
    from celery_neli.schedule_topic.topic import ScheduleTopic

logger = escaping(get_logger(__name__))

#: Seconds between two looks at the lease when no signal comes; also keeps ``celery inspect ping`` answered (5.7).
LONGEST_WAIT = 5.0
#: Schedulers that keep entries in memory, or in a file of which they use only the entries of `beat_schedule`.
_CELERYS = (celery.beat.Scheduler, celery.beat.PersistentScheduler)


class Scheduler(celery.beat.Scheduler):
    """Celery's scheduler interface around hosts whose schedulers come and go with this process's terms.

    The constructor does no work: Celery builds instances that never tick, for the banner and in signal handlers. The
    first :meth:`tick` joins the election. ``leadership`` replaces the process's own (tests). With ``neli_enabled`` off,
    the constructor returns an instance of ``neli_scheduler`` instead.

    All methods belong to the thread that ticks, except :meth:`close`.
    """

    #: RedBeat's receiver of ``beat_init`` takes RedBeat's lock unless the scheduler says that it has none.
    lock_key = None

    @staticmethod
    def leadership_factory(app: Any) -> Any:
        """Make the leadership, at the first tick: threads and Kafka begin there."""
        from celery_neli.election.leadership import leadership_for
        from celery_neli.kafka import connect

        return leadership_for(app, "beat", connect)

    @staticmethod
    def topic_factory(config: Config, changed: Callable[[], None]) -> ScheduleTopic:
        """Make the schedule topic's client, likewise."""
        from celery_neli.schedule_topic.topic import ScheduleTopic

        return ScheduleTopic(config, log=logging.getLogger("celery_neli.schedule"), changed=changed)

    def __new__(cls, app: Any, *args: Any, leadership: Any = None, **kwargs: Any) -> Any:
        """Return an instance of `neli_scheduler`, whose ``__init__`` has run, if celery-neli is switched off."""
        if leadership is None and not enabled(app):
            return scheduler_class(app.conf.get("neli_scheduler"))(app, *args, **kwargs)
        return super().__new__(cls)

    def __init__(
        self,
        app: Any,
        schedule: Any = None,
        max_interval: float | None = None,
        Producer: Any = None,  # noqa: N803 - Celery's name
        lazy: bool = False,
        *,
        leadership: Any = None,
        **kwargs: Any,
    ) -> None:
        self._runners: list[RoleRunner] = []
        self._added: list[dict[str, Any]] = []
        self._drafted: Draft | None = None
        #: The mapping that Celery's constructor was given, evaluated.
        self._given: Any = None
        super().__init__(app, schedule, max_interval, Producer, lazy=True, **kwargs)
        #: For the hosts' schedulers, which have defaults of their own (django-celery-beat's max_interval is 5 s).
        self._options = dict(kwargs, schedule=schedule, max_interval=max_interval, Producer=Producer)
        self._leader = leadership
        self._shared: SharedSchedule | None = None
        self._wakeup: Wakeup | None = None
        self._observability: observability.Observability | None = None
        self._ticking = self._close_asked = self._closing = False

    def neli_check(self) -> None:
        """Raise `ConfigurationError` for settings with which this scheduler could not run. Starts nothing."""
        cls = self._kind()
        if self._leader is None:
            from celery_neli.kafka.properties import validate  # it loads confluent_kafka

            config = from_app(self.app, "beat")
            _check_shards(cls, config)
            beat_settings(self.app)
            observability.check(self.app)
            Misfire.of_app(self.app)
            validate(config)

    def _kind(self) -> type[Any]:
        return scheduler_class(self.app.conf.get("neli_scheduler"))

    @property
    def info(self) -> str:
        """Lines of beat's banner. A wrong setting ends the command here, with one line, before anything has started."""
        try:
            self.neli_check()
        except ConfigurationError as exc:
            raise failure(exc) from None
        conf = self.app.conf
        leads = conf.get("neli_scheduler") or DEFAULT_SCHEDULER
        return f"    . leads -> {leads}\n    . group -> {conf.get('neli_group')}.beat"

    # -- the turn --

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Run the hosts of the roles that this process leads, then wait until something is due or changes.

        Blocks for ``max_interval`` or 5 s at most, apart from what the hosts do. Returns 0 so that Celery comes back at
        once, for nothing could wake its own ``time.sleep``; once closed, the seconds to sleep.

        Raises:
            ConfigurationError: At the first turn, before joining the election. A schedule that cannot be built may
                raise anything else then, too.
        """
        self._ticking = True
        try:
            if self._close_asked:
                self._finish()
                return self._longest_wait()
            self._turn(*self._join())
        finally:
            self._ticking = False
        return 0.0

    def _turn(self, leader: Leadership, wakeup: Wakeup) -> None:
        leader.turned_at = time.monotonic()  # even if nothing gets on: the loop does not hang
        began, intervals = time.perf_counter(), [self._longest_wait()]
        for runner in self._runners:
            try:
                if (interval := runner.turn()) is not None:
                    intervals.append(interval)
            except LeaseEnded:  # whatever the lease says by now: an entry was cut off in the middle
                runner.end_term()
                intervals.append(0.0)
        if not any(runner.failing for runner in self._runners):
            leader.progress()
        if self._shared is not None:
            self._shared.note()  # also by a beat that is busy all the time
        if hooks.turn:
            hooks.turn(time.perf_counter() - began)
        if (wait := min(intervals)) > 0:
            wakeup.wait(wait)
            for runner in self._runners:
                runner.waited()

    def _join(self) -> tuple[Leadership, Wakeup]:
        if self._wakeup is not None:
            return self._leader, self._wakeup
        app, cls, options = self.app, self._kind(), self._options
        leader = self._leader
        if leader is None:
            leader = self.leadership_factory(app)
            self._observability = observability.Observability(app, leader)
        config = leader.config
        _check_shards(cls, config)
        wakeup = Wakeup(config.roles)
        roles = [leader.role(name) for name in config.roles]
        hosts: list[Any]
        shared = None
        if is_replicated(cls):
            topic = self.topic_factory(config, wakeup.wake)
            shared = SharedSchedule(config=config, settings=beat_settings(app), topic=topic, app=app.main)
            self._shared = shared
            hosts = [
                ReplicatedHost(
                    app=app, cls=cls, roles=roles, shard=shard, shared=shared, options=options, made=self._made
                )
                for shard in range(len(roles))
            ]
        else:
            hosts = [WrappedHost(app=app, cls=cls, options=options, made=self._made, learn=self._learn)]
        self._runners = [
            RoleRunner(role=role, host=host, wakeup=wakeup, progress=leader.progress)
            for role, host in zip(roles, hosts, strict=True)
        ]
        if shared is not None:
            shared.make_all()  # a schedule that cannot be built ends the process before it takes part
        wakeup.connect(leader)
        leader.on_readback = self._on_readback
        self._leader, self._wakeup = leader, wakeup
        wakeup.closing = self._close_asked
        if shared is not None:
            leader.unready = shared.topic.unready
            leader.fit = shared.topic.fit  # without the schedule topic, this beat would lead and serve nothing
            shared.topic.start()
        leader.start()
        if self._observability is not None:
            self._observability.start()
        return leader, wakeup

    def _on_readback(self) -> None:
        """Wake the thread that ticks, which may wait for what was read back. The thread that renews calls it."""
        found = [runner.role.last_payload.data or {} for runner in self._runners]
        if self._wakeup is not None and any(data.get("claimed") != data.get("done") for data in found):
            self._wakeup.wake()

    def _longest_wait(self) -> float:
        stall_timeout = self.app.conf.get("neli_stall_timeout") or 3 * LONGEST_WAIT
        return min(float(self.max_interval), LONGEST_WAIT, stall_timeout / 3)  # waiting is not a stall

    # -- the schedule: of the hosts' schedulers while there are any, else a draft --

    @property
    def _schedulers(self) -> list[Any]:
        return [runner.host.scheduler for runner in self._runners if runner.host.scheduler is not None]

    def add(self, **kwargs: Any) -> Any:
        """Add an entry (Celery's fields; the schedule may be text), also to the schedulers of later terms.

        Raises:
            ConfigurationError: The schedule is wrong; nothing was added.
        """
        shaping = is_replicated(self._kind())
        kwargs = with_sound_schedule(kwargs.get("name"), kwargs, self.app, shaping=shaping)
        added = [scheduler.add(**kwargs) for scheduler in self._schedulers]
        if not added:
            added = [self.Entry(app=self.app, **kwargs)]
            self._draft.show(added[0])
        self._added.append(kwargs)
        return added[0]

    def get_schedule(self) -> Any:
        """Return the schedule that a host runs; of several, one view. While there is none, return the draft."""
        schedules = [scheduler.schedule for scheduler in self._schedulers] or [self._draft.entries]
        return schedules[0] if len(schedules) == 1 else Shards(*schedules)

    def set_schedule(self, schedule: Any) -> None:
        """Replace it; of several, each entry in its shard."""
        if len(schedulers := self._schedulers) == 1:
            schedulers[0].schedule = schedule
        else:
            shown, new = self.get_schedule(), dict(schedule)
            shown.clear()
            shown.update(new)

    schedule = property(get_schedule, set_schedule)

    def _set_data(self, schedule: Any) -> None:
        if self._given is None:  # Celery's constructor sets it
            self._given = schedule
        else:
            self.set_schedule(schedule)

    #: The schedule, as Celery's scheduler keeps it.
    data = property(get_schedule, _set_data)

    @property
    def _draft(self) -> Draft:
        """The schedule while there is no scheduler. Made on first use; Celery itself does not use it."""
        if self._drafted is None:
            self._drafted = Draft(self.app, {**self._rows(), **self._given})
        return self._drafted

    def _rows(self) -> Mapping[str, Any]:
        """Return the entries of a database. RedBeat shows only what is due; another process may have a file open."""
        cls = self._kind()
        if not is_database(cls):
            return {}
        try:
            return dict(cls(app=self.app, lazy=True).schedule)
        except Exception as exc:  # noqa: BLE001 - the database fails; its scheduler will meet that again, and wait
            logger.warning("beat: the entries in the database cannot be shown yet: %r", exc)
            return {}

    def _made(self, scheduler: Any) -> None:
        """Change in a scheduler that was built what code has changed in the schedule."""
        add_to(scheduler, self._added)
        cls = self._kind()
        learns = cls in _CELERYS
        if self._drafted is not None or learns:
            self._draft.amend(scheduler, stored=is_database(cls) or is_redbeat(cls), learns=learns)

    def _learn(self, scheduler: Any) -> None:
        if self._drafted is not None:
            self._drafted.learn(scheduler)

    # -- what Celery writes --

    @property
    def _serving(self) -> list[Any]:
        return [runner.host.scheduler for runner in self._runners if runner.serves]

    def should_sync(self) -> bool:
        """Return True if :meth:`_do_sync` is due."""
        return any(scheduler.should_sync() for scheduler in self._serving)

    def _do_sync(self) -> None:
        for scheduler in self._serving:
            scheduler._do_sync()

    def sync(self) -> None:
        """Write the schedule, if this process leads."""
        for scheduler in self._serving:
            scheduler.sync()

    # -- the end --

    def close(self) -> None:
        """End the hosts, hand over, leave the election. Any number of times.

        On SIGTERM Celery calls it inside the signal handler. If the handler interrupted a tick, nothing may be touched
        that the tick may be holding: then an attribute is set, and the work is done by the call that follows once
        SystemExit has unwound the tick, or by the next turn. Otherwise it blocks for ``neli_drain_timeout`` and a few
        seconds at most.
        """
        self._close_asked = True
        if self._wakeup is not None:
            self._wakeup.closing = True
        if not self._ticking:
            self._finish()
        elif self._wakeup is not None:
            self._wakeup.wake()

    def _finish(self) -> None:
        if self._closing:
            return
        self._closing = True
        try:
            for runner in self._runners:
                runner.end_term()
        finally:
            if self._wakeup is not None:
                leader = self._leader
                leader.stop()
                leader.on_readback = leader.fit = leader.unready = None
                self._wakeup.disconnect(leader)
            if self._shared is not None:
                self._shared.stop()
            if self._observability is not None:
                self._observability.stop()


def _check_shards(cls: type[Any], config: Config) -> None:
    if len(config.roles) > 1 and not is_replicated(cls):
        raise ConfigurationError(
            f"neli_shards = {len(config.roles)}, but neli_scheduler = {cls.__name__}: only {DEFAULT_SCHEDULER} "
            "spreads its entries; set neli_shards = 1, or leave neli_scheduler out"
        )
