"""Runs our own scheduler for a role: it stands by between terms, so that a term can begin at once.

While a beat stands by, the entries of its schedulers follow the schedule topic. All schedulers of a process share what
was read of it (`SharedSchedule`). Everything belongs to the thread that ticks, and waits for Kafka only where it says.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from celery_neli.beat.publish import is_unconfirmed, leased_producer, release_connection
from celery_neli.beat.replicated.member_notes import MemberNotes, fingerprint
from celery_neli.beat.replicated.outcomes import ClaimingLedger
from celery_neli.beat.replicated.term import begin, version_of
from celery_neli.beat.role_runner import NotReady
from celery_neli.logs import escaping
from celery_neli.schedule_topic.codec import MEMBER, Note, encode_note
from celery_neli.threads import spawn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from celery_neli.beat.tenure import Tenure
    from celery_neli.config import BeatSettings, Config
    from celery_neli.election.neli import Role
    from celery_neli.schedule_topic.codec import Kind
    from celery_neli.schedule_topic.topic import ScheduleTopic
    from celery_neli.schedule_topic.versions import Chain

logger = escaping(logging.getLogger(__name__))

#: If more records than this come at once, they are logged in one line.
MANY = 20
#: Seconds of a turn that may be spent on what was read.
PORTION = 0.02
#: Seconds between two notes of a member, which `celery neli status` compares.
NOTE_EVERY = 15.0
#: Up to so many entries, the fingerprint is taken at once, in some ten milliseconds; 100,000 take seconds.
FEW = 1_000
#: Characters of an app's name in a note, whose length is limited.
LONGEST_APP = 200
#: Seconds that a new leader waits for the schedule topic at a time.
CATCH_UP = 1.0


class SharedSchedule:
    """What one process has read of the schedule topic, for its hosts (`hosts`), one for each shard.

    ``app`` is the name of the Celery app, None if it has none.
    """

    def __init__(self, *, config: Config, settings: BeatSettings, topic: ScheduleTopic, app: str | None = None) -> None:
        self.config, self.settings, self.topic = config, settings, topic
        self.hosts: list[ReplicatedHost] = []
        #: What was read and not applied yet, its generation of the topic, and the generation that it ends, or -1.
        self._backlog: deque[tuple[tuple[Kind, str], bytes | Chain | None]] = deque()
        self._generation, self._whole, self._counting = topic.generation, -1, False
        self._many, self._resume_at = 0, 0.0
        self._noted = float("-inf")
        #: The fingerprint of beat_schedule: None until it is asked for, empty until it is there.
        self._fingerprint: str | None = None
        self._app = app[:LONGEST_APP] if app else None
        self._notes_of_others = MemberNotes(config.name, self._app, config.group)

    def make_all(self) -> None:
        """Have the schedulers of all shards, for what is read goes to all of them. Raises what making one raises."""
        for host in self.hosts:
            host.make()

    def pull(self) -> bool:
        """Apply what was read, in the order of reading, for `PORTION` seconds at most. Return True if nothing is left.

        The schedulers of all shards exist.
        """
        began = time.perf_counter()
        if began < self._resume_at:  # another scheduler of this process has just had its portion
            return not self._backlog
        while self._backlog or self._refill():
            self._apply_next()
            if time.perf_counter() > began + PORTION and self._backlog:
                self._resume_at = time.perf_counter() + PORTION
                return False
        return True

    def pull_all(self, generation: int) -> None:
        """Apply everything that was read by now, however long that takes. This generation of the topic was read to its
        end.
        """
        self._apply_all()
        self._refill()
        if self._generation == generation:
            self._whole = generation
        self._apply_all()
        self._caught_up()

    def _apply_all(self) -> None:
        while self._backlog:
            self._apply_next()

    def _refill(self) -> bool:
        """Take over what was read since; return False if there is nothing."""
        whole = self.topic.whole  # asked before: what is drained then reaches that end
        changes = self.topic.drain()
        if not changes and (self.topic.drained, whole, self._many) == (self._generation, self._whole, 0):
            return False  # as ever
        if self._many:
            for each in self.hosts:
                logger.info("schedule read records=%d entries=%d", self._many, len(each.scheduler.schedule))
            self._many = 0
        if any(kind == MEMBER for kind, _ in changes):
            self._notes_of_others.read(changes)
        if self.topic.drained != self._generation:
            self._generation, self._counting = self.topic.drained, True
            for each in self.hosts:
                each.ledger.states.recount(torn=self.topic.torn)
        self._backlog, self._whole = deque(changes.items()), whole
        self._many = len(changes) if len(changes) > MANY else 0
        if not changes:
            self._caught_up()
        return bool(changes)

    def _apply_next(self) -> None:
        (kind, name), value = self._backlog.popleft()
        for each in self.hosts:
            each.ledger.states.apply(kind, name, value, leading=each.leads, many=self._many > 0)
        if not self._backlog:
            self._caught_up()

    def _caught_up(self) -> None:
        """Note that what was drained was applied, and whether that was all of the topic."""
        if self._whole == self._generation:
            torn = self._counting and self.topic.torn
            for each in self.hosts:
                if self._counting:
                    each.ledger.states.counted(torn=torn)
                each.ledger.states.caught_up()
            self._counting = False

    def note(self) -> None:
        """Write every 15 seconds which app and schedule this member has; `celery neli status` compares."""
        self._notes_of_others.warn(leads=any(each.leads for each in self.hosts))
        now = time.monotonic()
        if now - self._noted < NOTE_EVERY or any(each.scheduler is None for each in self.hosts):
            return
        if self._fingerprint is None:
            self._fingerprint = ""
            entries = [entry for each in self.hosts for entry in each.ledger.states.static()]
            if len(entries) > FEW:
                spawn(lambda: self._take_fingerprint(entries), name="neli-fingerprint")
            else:
                self._take_fingerprint(entries)
        if self._fingerprint:
            self._noted = now
            note = Note(schedule=self._fingerprint, version=self.settings.version, at=time.time(), app=self._app)
            self.topic.write(MEMBER, self.config.name, encode_note(note))

    def _take_fingerprint(self, entries: list[Any]) -> None:
        self._fingerprint = fingerprint(entries)

    def stop(self) -> None:
        """End; wait for a second at most until what was written is sent."""
        for each in self.hosts:
            if each.scheduler is not None:
                each.ledger.stop()
        self.topic.write(MEMBER, self.config.name, None)
        self.topic.stop()


@dataclass(kw_only=True, eq=False)
class ReplicatedHost:
    """Serves the role of one shard by the class ``cls``, a `ReplicatedScheduler` (`role_runner.Host`).

    ``roles`` are those of all shards; ``made`` is called once, with the scheduler that was made from ``options``.
    """

    app: Any
    cls: Any
    roles: list[Role]
    shard: int
    shared: SharedSchedule
    options: Mapping[str, Any]
    made: Callable[[Any], None]

    stands_by = True
    scheduler: Any = field(default=None, init=False)
    ledger: ClaimingLedger = field(init=False)
    #: True in a term that goes on.
    leads: bool = field(default=False, init=False)
    _asked: float = field(default=float("-inf"), init=False)
    _warned: bool = field(default=False, init=False)
    #: Seconds until a pause ends by itself.
    _wake_in: float = field(default=float("inf"), init=False)

    def __post_init__(self) -> None:
        self.role = self.roles[self.shard]
        self.shared.hosts.append(self)

    @property
    def stuck(self) -> bool:
        """True if publishers send entries and nothing comes of it."""
        return bool(self.scheduler.neli_engine.pool.stuck)

    def make(self) -> None:
        """Have the scheduler. Raises what its construction raises."""
        if self.scheduler is not None:
            return
        cls, shared = self.cls, self.shared
        scheduler = cls.__new__(cls, app=self.app, **self.options)
        scheduler.neli_make_ledger = partial(
            ClaimingLedger, app=self.app, shard=self.shard, role=self.role, config=shared.config,
            settings=shared.settings, topic=shared.topic,
        )  # fmt: skip
        type(scheduler).__init__(scheduler, app=self.app, **self.options)
        self.ledger = scheduler.neli_engine.ledger
        self.ledger.states.load()
        self.scheduler = scheduler
        self.made(scheduler)

    def prepare(self) -> bool:
        """Apply what was read, and have every change in the heap, so that a term which begins need not.

        The first time, that takes a look at every entry. Return False if more of what was read is waiting.
        """
        self.shared.make_all()
        caught_up = self._follow()
        _ = self._is_unconfirmed  # imports the broker's driver, which takes as long as an election
        self._prefer_newest()
        return caught_up

    def _follow(self) -> bool:
        caught_up = self.shared.pull()
        self._wake_in = self.ledger.states.wake()
        self.scheduler.neli_engine.table.heap()
        return caught_up and self._wake_in > 0

    def begin(self, tenure: Tenure, *, first_seen: datetime) -> bool:
        """Begin a term, after everything was applied that is in the schedule topic: waits for that for a second.

        A term that was served here, and ended, is handed over: late heartbeats may bring its lease back, but what came
        of its last slots is not known any more. Raises `NotReady` if the schedule topic cannot be read to its end, and
        `ConfigurationError` if this beat has fewer shards than others had before.
        """
        self.prepare()
        shared, ledger, engine = self.shared, self.ledger, self.scheduler.neli_engine
        generation = shared.topic.generation
        if not shared.topic.read_to_end(CATCH_UP):
            raise NotReady("the schedule topic cannot be read to its end: nothing is sent before")
        shared.pull_all(generation)
        if ledger.term is not None and ledger.term.number == tenure.term:
            self.role.resign()
            return False
        shards = len(self.roles)
        beginning = begin(self.shard, shards, lambda shard: self.roles[shard].last_payload, now=engine.table.moment())
        if beginning is None:
            return False  # another shard still serves the entries of this one
        base = self.options.get("Producer") or self.app.amqp.Producer
        self.scheduler.Producer = leased_producer(base, tenure)
        engine.begin(tenure, publishers=shared.settings.parallel, producer=base)
        ledger.begin(tenure.term, beginning)
        self.leads = True
        if self._is_unconfirmed and not self._warned:
            self._warned = True
            logger.warning(
                "beat: the task broker does not confirm what is published, so a slot counts as done before the broker "
                "has its task: set broker_transport_options = {'confirm_publish': True}"
            )
        return True

    @cached_property
    def _is_unconfirmed(self) -> bool:
        return is_unconfirmed(self.app)

    def tick(self) -> float:
        """Send what is due. Asks nothing of Kafka that it would have to wait for."""
        ledger, engine = self.ledger, self.scheduler.neli_engine
        caught_up = self._follow()
        more = ledger.begin_turn() or not caught_up
        engine.collect()
        ledger.repairs.remove()
        wait = engine.turn(self.scheduler.tick)
        ledger.end_turn()
        return 0.0 if ledger.states.write_some() or more else min(wait, self._wake_in)

    def end(self, *, held: bool) -> None:
        """End the term, and stand by: for a second, and for what publishers are sending, if the lease is ``held``."""
        if not self.leads:
            return
        self.leads = False
        engine = self.scheduler.neli_engine
        release_connection(self.scheduler)  # first: a broker that does not answer shall not delay what follows
        left = bool(engine.sender.lease.left)
        try:
            cut_off, lost = engine.end(wait=held)
            self.ledger.end(cut_off, lost, left=left, write=held)
        finally:
            if held:
                self.scheduler.close()
            release_connection(self.scheduler)
        if not held and not any(each.leads for each in self.shared.hosts):
            self.shared.topic.forget_unsaved()  # a successor may know better

    def _prefer_newest(self) -> None:
        """Ask for a role that is led with an older version of the schedule than this member's, or by a beat that writes
        nothing back of what the schedule topic has lost, and this member still knows: it may have started since.
        """
        mine, now = self.shared.settings.version, time.monotonic()
        missing = self.ledger.states.inventory.overdue(now)
        if (mine is None and not missing) or now - self._asked < self.shared.config.heartbeat_timeout:
            return
        found = self.role.last_payload
        if found.known and not found.own and found.term is not None:
            older = mine is not None and version_of(found.data) < mine
            if older or (missing and not self.shared.topic.away):
                self._asked = now
                self.role.ask()
