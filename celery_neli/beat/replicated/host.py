"""What one beat process has of its schedule in Kafka: the schedule topic, and the marks in the records of its roles.

Shared by the schedulers of all shards. Belongs to the thread that ticks; nothing here waits for Kafka.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from celery_neli.beat.replicated.fingerprint import fingerprint
from celery_neli.beat.replicated.member_notes import MemberNotes
from celery_neli.beat.replicated.sharding import begin
from celery_neli.logs import escaping
from celery_neli.schedule_topic.codec import MEMBER, Note, encode_note
from celery_neli.settings import VERSION_MOST
from celery_neli.threads import spawn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from celery_neli.beat.replicated.claims import Marks
    from celery_neli.beat.replicated.sharding import Beginning
    from celery_neli.beat.tenure import Leader
    from celery_neli.config import BeatSettings, Config
    from celery_neli.schedule_topic.codec import Kind
    from celery_neli.schedule_topic.topic import ScheduleTopic

__all__ = ["Keeper"]

#: If more records than this come at once, they are logged in one line.
MANY = 20
#: Seconds of a tick that may be spent on what was read.
PORTION = 0.02
#: Seconds between two notes of a member, which `celery neli status` compares.
NOTE_EVERY = 15.0
#: Up to so many entries, the fingerprint is taken at once, in some ten milliseconds; 100,000 take seconds.
FEW = 1_000
#: Characters of an app's name in a note, whose length is limited.
LONGEST_APP = 200
VERSION = "version"

logger = escaping(logging.getLogger(__name__))


class Keeper:
    """The schedule topic and the roles' marks, for the schedulers of one process (`followers`)."""

    def __init__(
        self, *, leader: Leader, config: Config, settings: BeatSettings, topic: ScheduleTopic, app: str | None = None
    ) -> None:
        """`app` is the name of the Celery app, None if it has none."""
        self.leader, self.topic, self.settings = leader, topic, settings
        self.group, self.name = config.group, config.name
        self.roles, self.shards = config.roles, len(config.roles)
        self.interval, self.timeout = config.heartbeat_interval, config.heartbeat_timeout
        #: The schedulers whose entries follow the topic.
        self.followers: list[Any] = []
        #: What makes them.
        self.makers: list[Callable[[], None]] = []
        #: What was read and not handed over yet, its generation of the topic, and the generation that it ends, or -1.
        self._backlog: deque[tuple[tuple[Kind, str], bytes | None]] = deque()
        self._generation, self._whole, self._counting = topic.generation, -1, False
        self._many, self._resume_at = 0, 0.0
        self._noted = self._asked = float("-inf")
        self._fingerprint: str | None = None
        self._asked_fingerprint = False
        self._app = app[:LONGEST_APP] if app else None
        self._notes_of_others = MemberNotes(config.name, self._app, config.group)

    def make_all(self) -> None:
        """Have the schedulers of all shards: what is read is told once, to all of them. Raises what making one does."""
        if len(self.followers) < len(self.makers):
            for make in self.makers:
                make()

    def pull(self) -> bool:
        """Hand what was read to the schedulers, all of which exist, in the order of reading, for `PORTION` seconds at
        most. Return True if nothing is left.
        """
        began = time.perf_counter()
        if began < self._resume_at:  # another scheduler of this process has just had its portion
            return not self._backlog
        while self._backlog or self._refill():
            self._fold_next()
            if time.perf_counter() > began + PORTION and self._backlog:
                self._resume_at = time.perf_counter() + PORTION
                return False
        return True

    def pull_all(self, generation: int) -> None:
        """Hand everything that was read by now to the schedulers, however long that takes. This generation of the topic
        was read to its end.
        """
        while self._backlog:
            self._fold_next()
        self._refill()
        if self._generation == generation:
            self._whole = generation
        while self._backlog:
            self._fold_next()
        self._caught_up()

    def _refill(self) -> bool:
        """Take over what was read since; return False if there is nothing."""
        whole = self.topic.whole  # asked before: what is drained then reaches that end
        changes = self.topic.drain()
        if self._many:
            for each in self.followers:
                logger.info("schedule read records=%d entries=%d", self._many, each.neli_count())
            self._many = 0
        self._notes_of_others.read(changes)
        if self.topic.drained != self._generation:
            self._generation, self._counting = self.topic.drained, True
            for each in self.followers:
                each.neli_recount(torn=self.topic.torn)
        self._backlog, self._whole = deque(changes.items()), whole
        self._many = len(changes) if len(changes) > MANY else 0
        if not changes:
            self._caught_up()
        return bool(changes)

    def _fold_next(self) -> None:
        change = dict((self._backlog.popleft(),))
        for each in self.followers:
            each.neli_fold(change, many=self._many > 0)
        if not self._backlog:
            self._caught_up()

    def _caught_up(self) -> None:
        """Note that what was drained was handed over; tell the schedulers if that was all of the topic."""
        if self._whole == self._generation:
            torn = self._counting and self.topic.torn
            for each in self.followers:
                each.neli_caught_up(counted=self._counting, torn=torn)
            self._counting = False

    def forget_unsaved(self) -> None:
        """A term is over that was not handed over: what was not written of it yet, a successor may know better."""
        if not any(each.neli_leads for each in self.followers):
            self.topic.forget_unsaved()

    def begin(self, shard: int, now: float) -> Beginning | None:
        """What a term of the shard begins with at ``now`` (Unix seconds); None: not yet.

        :raises ConfigurationError: this beat has fewer shards than others had before.
        """
        return begin(shard, self.shards, lambda each: self.leader.told(self.roles[each]), now=now)

    def offer(self, shard: int, term: int, marks: Marks, more: Mapping[str, Any], *, hurry: bool) -> None:
        """Put these marks, and what else the shard has to tell, into the further records of the term."""
        data: dict[str, Any] = {**marks.as_data(), **more}
        if self.settings.version is not None:
            data[VERSION] = self.settings.version
        self.leader.offer(self.roles[shard], term, data, hurry=hurry)

    def note(self) -> None:
        """Write every 15 seconds which app and schedule this member has; `celery neli status` compares."""
        self._notes_of_others.warn(leads=any(each.neli_leads for each in self.followers))
        now = time.monotonic()
        if now - self._noted < NOTE_EVERY or len(self.followers) < self.shards:
            return
        if not self._asked_fingerprint:
            self._asked_fingerprint = True
            entries = [entry for each in self.followers for entry in each.neli_states.static()]
            if len(entries) > FEW:
                spawn(lambda: self._take_fingerprint(entries), name="neli-fingerprint")
            else:
                self._take_fingerprint(entries)
        if self._fingerprint is None:
            return
        self._noted = now
        note = Note(schedule=self._fingerprint, version=self.settings.version, at=time.time(), app=self._app)
        self.topic.write(MEMBER, self.name, encode_note(note))

    def _take_fingerprint(self, entries: list[Any]) -> None:
        self._fingerprint = fingerprint(entries)

    def prefer_newest(self, shard: int) -> None:
        """Ask for a role that is led with an older version of the schedule than this member's, or by a beat that writes
        nothing back of what the schedule topic has lost, and this member still knows: it may have started since.
        """
        mine, now = self.settings.version, time.monotonic()
        missing = shard < len(self.followers) and self.followers[shard].neli_states.inventory.overdue(now)
        if (mine is None and not missing) or now - self._asked < self.timeout:
            return
        told = self.leader.told(self.roles[shard])
        older = mine is not None and version_of(told.data) < mine
        if told.known and not told.own and told.term is not None and (older or (missing and not self.topic.away)):
            self._asked = now
            self.leader.ask(self.roles[shard])

    def stop(self) -> None:
        """End; what was written is sent, which is waited for a second at most."""
        for each in self.followers:
            each.neli_stop()
        self.topic.write(MEMBER, self.name, None)
        self.topic.stop()


def version_of(data: Mapping[str, Any] | None) -> int:
    """Return the `neli_schedule_version` in a record's data, or -1 for none and for what the setting cannot be."""
    value = (data or {}).get(VERSION)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= VERSION_MOST else -1
