"""What one beat process has of its schedule in Kafka: the schedule topic, and the marks in the records of its roles.

Shared by the schedulers of all shards. Belongs to the thread that ticks; nothing here waits for Kafka.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from celery_neli.led.fingerprint import fingerprint
from celery_neli.led.member_notes import MemberNotes
from celery_neli.led.shards import begin
from celery_neli.logs import escaping
from celery_neli.schedule.records import MEMBER, Note, encode_note
from celery_neli.threads import spawn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from celery_neli.beat.tenure import Leader
    from celery_neli.config import BeatSettings, Config
    from celery_neli.led.claims import Marks
    from celery_neli.led.shards import Beginning
    from celery_neli.schedule.topic import ScheduleTopic

__all__ = ["Keeper"]

#: Seconds between two notes of a member, which `celery neli status` compares.
NOTE_EVERY = 15.0
#: Entries up to which a fingerprint is taken at once, in some ten milliseconds; of 100,000 it takes seconds.
FEW = 1_000
#: Characters of an app's name in a note, which has a limit.
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
        self._generation = topic.generation
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

    def pull(self) -> None:
        """Hand what was read to the schedulers, all of which are there."""
        changes = self.topic.drain()
        if changes:
            for each in self.followers:
                each.neli_fold(changes)
            self._notes_of_others.read(changes)
        if self.topic.generation != self._generation:
            self._generation = self.topic.generation
            for each in self.followers:
                each.neli_write_all()

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
        """Tell the others which app and schedule this member has, every 15 seconds; `celery neli status` compares."""
        if any(each.neli_leads for each in self.followers):
            self._notes_of_others.warn()
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
        """Ask for a role that is led with an older version of the schedule than this member's."""
        mine, now = self.settings.version, time.monotonic()
        if mine is None or now - self._asked < self.timeout:
            return
        told = self.leader.told(self.roles[shard])
        theirs = (told.data or {}).get(VERSION, -1)
        if told.known and not told.own and told.term is not None and isinstance(theirs, int) and theirs < mine:
            self._asked = now
            self.leader.ask(self.roles[shard])

    def stop(self) -> None:
        """End; what was written is sent, which is waited for a second at most."""
        for each in self.followers:
            each.neli_stop()
        self.topic.write(MEMBER, self.name, None)
        self.topic.stop()
