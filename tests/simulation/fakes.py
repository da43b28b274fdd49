"""The log, journal and group as a member meets them, without Kafka (they promise what `election/ports.py` says)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from celery_neli.election.records import End, Entry, Event, Lost, Started
from celery_neli.exceptions import TopicError

if TYPE_CHECKING:
    from tests.simulation.actor import Actor
    from tests.simulation.world import World


class Log:
    """One role's partition: values with their times of arrival; those before `low` have expired."""

    def __init__(self, expired: int) -> None:
        self.values: list[bytes] = [b""] * expired
        self.when: list[float] = [-1e9] * expired
        self.low = expired

    def expire(self, before: float) -> None:
        while self.low < len(self.values) and self.when[self.low] < before:
            self.low += 1

    def purge(self) -> None:
        self.low = len(self.values)

    def truncate(self, records: int) -> None:
        del self.values[-records:], self.when[-records:]
        self.low = min(self.low, len(self.values))

    def visible(self, start: int, time: float) -> int:
        """The end of the log as it was at `time`, not before `start`."""
        end = start
        while end < len(self.values) and self.when[end] <= time:
            end += 1
        return end


@dataclass
class Position:
    """Where a reader stands in one log."""

    start: int = 0
    offset: int | None = None  # None: to be found at the next read
    begin_at: int | None = None  # ... here; None: near the end
    fresh: float = 0.0  # the end that is told must be of a moment not before this
    at_end: bool = False
    asked: bool = False
    not_before: float = 0.0  # a new position takes time to be found
    cut: bool = False  # the log was truncated under the reader, who is told so


class FakeJournal:
    """Delivers what the log holds, a few records at a time and somewhat late."""

    def __init__(self, world: World, actor: Actor) -> None:
        self.world, self.actor = world, actor
        self.positions = [Position() for _ in world.logs]
        self.has_read: list[dict[int, bytes]] = [{} for _ in world.logs]
        self.more = False  # the last read left something

    def read(self, timeout: float) -> list[Event]:
        world, events = self.world, []
        self.more = False
        if self.actor.no_read > world.now:
            return []
        if self.actor.no_topic > world.now:
            raise TopicError("the leader topic is missing")
        for role, position in enumerate(self.positions):
            self._read(role, position, events)
        return events

    def _read(self, role: int, at: Position, events: list[Event]) -> None:
        world, log = self.world, self.world.logs[role]
        rnd = world.rnd
        if at.offset is not None and (at.cut or not log.low <= at.offset <= len(log.values)):
            at.offset, at.begin_at, at.cut = None, None, False
            events.append(Lost(role, "out of range"))
            if rnd.random() < 0.3:
                self.more = True
                return
        if at.offset is None:
            if world.now < at.not_before:
                return
            begun = world.now - (rnd.uniform(0, world.scenario.bundled) if world.scenario.bundled else 0.0)
            end = log.visible(log.low, begun)
            begin = end - rnd.randrange(*world.scenario.start_back) if at.begin_at is None else at.begin_at
            at.offset = at.start = max(log.low, begin)
            at.begin_at, at.cut, at.at_end, at.fresh = None, False, False, begun
            events.append(Started(role, at.start, at.start == log.low))
        elif self.actor.reread_now and at.offset > at.start and rnd.random() < 0.5:
            stale = rnd.randrange(
                max(at.start, log.low, at.offset - 12), at.offset + 1
            )  # one record of old, out of order
            events.extend(Entry(role, offset, log.values[offset]) for offset in range(stale, min(stale + 1, at.offset)))
        elif self.actor.reread_now and at.offset > at.start:
            at.offset, at.at_end = max(at.start, log.low, at.offset - rnd.randrange(1, 12)), False
        if world.scenario.bundled:
            self._read_on(role, at, at.fresh, events)  # the oldest end that may be told, and what has arrived since
            self._read_on(role, at, world.now, events)
        else:
            self._read_on(role, at, world.now - rnd.choice((0.0, 0.02, 0.2)), events)

    def _read_on(self, role: int, at: Position, time: float, events: list[Event]) -> None:
        """Some of what the log held at `time`, then its end if that is reached."""
        world, log, rnd = self.world, self.world.logs[role], self.world.rnd
        assert at.offset is not None
        end = log.visible(at.offset, max(at.fresh, time))
        stop = min(end, at.offset + rnd.randrange(1, 9))
        if stop > at.offset:
            events.extend(Entry(role, offset, log.values[offset]) for offset in range(at.offset, stop))
            if not world.scenario.noticed:
                self.has_read[role].update(enumerate(log.values[at.offset : stop], at.offset))
            at.offset, at.at_end = stop, False
        if at.offset < end:
            self.more = True
        elif not at.at_end or at.asked:
            at.at_end, at.asked = True, False
            events.append(End(role))

    def append(self, role: int, key: str, value: bytes) -> None:
        self.positions[role].fresh = self.world.now
        self.actor.appended(role, value)

    def look_back(self, role: int) -> None:
        at = self.positions[role]
        at.offset, at.begin_at = None, at.start - self.world.rnd.randrange(1, 9)
        if not self.world.calm and self.world.rnd.random() < 0.3:
            at.not_before = self.world.now + self.world.rnd.uniform(0, 8)
        self.more = True

    def ask_end(self, role: int) -> None:
        at = self.positions[role]
        at.asked, at.fresh = True, self.world.now
        self.more = True

    def close(self) -> None:
        pass


class FakeGroup:
    """Induces whom the world likes, some time after it decided to."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.induced: frozenset[int] = frozenset()
        self.assigned: frozenset[int] = frozenset()
        self.known_at = 0.0  # when the callback is served
        self.since: dict[int, float] = {}  # since when the member has known of each
        self.member = False
        self.is_member = True

    def assign(self, roles: frozenset[int], delay: float) -> None:
        self.assigned, self.known_at = roles, self.world.now + delay

    def poll(self) -> None:
        if self.world.now >= self.known_at:
            self.since = {role: self.since.get(role, self.world.now) for role in self.assigned}
            self.induced = self.assigned

    def join(self) -> None:
        self.member = True

    def leave(self) -> None:
        self.member = False
        self.assign(frozenset(), self.world.rnd.uniform(0, self.world.scenario.group_delay))

    def close(self) -> None:
        self.leave()
