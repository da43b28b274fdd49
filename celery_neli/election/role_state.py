"""One role as one member knows it: its lease, what was announced of it, and when to ask for it or to stand back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from celery_neli.config import Config
from celery_neli.election.lease import FOREVER, NEVER, NOTHING, Lease, name_of
from celery_neli.election.records import IDLE, IDLE_MOST, Record, sound

PATIENCE = 16  # a member that gives roles up soon waits for up to this many times `rebalance_after`
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds for which a member that cannot serve a role stands back from it

Mirror = Callable[[int, "Grant"], None]


@dataclass(frozen=True)
class LeaderEvent:
    """A change of `role` in a term; `term` is its number, higher than that of every earlier term of the role."""

    role: str
    term: int


class LeaderAcquired(LeaderEvent):
    """This member leads `role`."""


class LeaderRevoked(LeaderEvent):
    """This member starts no more work, and holds the role until the barrier returns or `drain_timeout` ends (R4)."""


@dataclass(frozen=True)
class LeaderFenced(LeaderEvent):
    """This member lost the role without a handover, for this `reason`: another may lead already (R5). Stop at once."""

    reason: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Payload:
    """What the newest effective record of a role carried: its `term`, and its `data` without `idle`.

    `own`: it was read back from a record of this member's own, of the term that it holds. `known`: all this is exact
    (R7); until then, the other attributes say nothing.
    """

    term: int | None = None
    data: Mapping[str, Any] | None = None
    own: bool = False
    known: bool = False


@dataclass(frozen=True, slots=True)
class Grant:
    """What the lease of one role allows (R3), and `until` when on the member's clock; `term` may be the last one."""

    term: int | None = None
    until: float = NEVER
    resigning: bool = False

    def held(self, now: float) -> bool:
        """Return True if work in flight may finish."""
        return now < self.until

    def leading(self, now: float) -> bool:
        """Return True if new work may start."""
        return not self.resigning and now < self.until


class Rebalance:
    """When one member asks for one role that the group assigned to it while another member leads it (R10).

    Without requests, roles would pile up on the members that outlived the others. A member asks once both the
    assignment and the term have stood for `after` seconds, so nothing is asked while members come and go.
    """

    def __init__(self, after: float) -> None:
        self._after = self._wait = after
        self._term: int | None = None  # the term to be ended
        self._since = FOREVER  # since when nothing has changed, or since the last request for it

    def request(self, lease: Lease, now: float, *, awake: bool) -> Record | None:
        """Return the request that is due, at every step; `awake`: the member saw all that happened since the last."""
        wishes = awake and lease.induced and lease.candidate and lease.led_by_another
        term = lease.term if wishes else None
        if term != self._term:
            self._term, self._since = term, now
        if term is None or now - self._since < self._wait:
            return None
        self._since = now
        return lease.ask()

    def gave_up(self, led: float) -> None:
        """Note that this member resigned by itself after `led` seconds: one that always fails must ask less often."""
        self._wait = self._after if led > self._wait else min(2 * self._wait, PATIENCE * self._after)


class StandBack:
    """How long one member does not claim one role, because it led it and could not serve it.

    The pause doubles with each failure in a row, or a role that none can serve would pass between the members several
    times a second. A term that lasted longer than `forgiven` seconds counts as served.
    """

    def __init__(self, forgiven: float) -> None:
        self._forgiven = forgiven
        self._pause = 0.0
        self._term: int | None = None
        self.until = NEVER  # on the member's clock: it does not claim the role before

    def failed(self, now: float, *, term: int | None, led: float) -> None:
        """Note that the member, which has led in `term` (None: not at all) for `led` seconds, cannot serve the role."""
        if term is not None and term == self._term:  # of one term, only the first failure counts
            return
        self._term = term
        in_a_row = led <= self._forgiven and now - self.until <= LONGEST_PAUSE
        self._pause = min(2 * self._pause, LONGEST_PAUSE) if in_a_row else FIRST_PAUSE
        self.until = now + self._pause


class RoleState:
    """One role of one member, for its thread; any may read `grant`, `payload`, `predecessor_active_until`, `leader`."""

    def __init__(self, config: Config, index: int, lease: Lease, *, clock: Callable[[], float], mirror: Mirror) -> None:
        """`mirror` is called with every new grant and the `index` of the role, before a release leaves."""
        self.index, self.role, self.lease = index, config.roles[index], lease
        self.rebalance = Rebalance(config.rebalance_after if len(config.roles) > 1 else FOREVER)
        self.stand_back = StandBack(2 * config.stall_timeout)
        self.grant = Grant()
        self.payload = Payload()
        self.announced: int | None = None  # the term that was announced as acquired, and not yet as lost
        self.draining = False  # that term was announced as revoked, too
        self.predecessor_active_until: float | None = None
        """When (member's clock) the owner of the last leader before the present term last made progress, as read."""
        self.asked_end = NEVER  # when the member last asked for the end of the role's log
        self._mirror, self._clock = mirror, clock
        self._announced_at = NEVER
        self._drained = False
        self._active: float | None = None  # when the last effective record was read, less what its author was idle
        self._stopped = FOREVER  # since when no new work starts

    def read(self, offset: int, record: Record | None, now: float) -> None:
        """Fold a record into the lease, and note when its author was active."""
        lease = self.lease
        before, term = lease.last, lease.term
        lease.read(offset, record, now)
        if lease.term != term:
            self.predecessor_active_until = self._active
        # A claim is no sign of progress: its author may die before it does anything.
        if record is not None and lease.last != before and (self._active is None or record.kind != "claim"):
            self._active = now - _idle(record.data)

    def update_payload(self) -> bool:
        """Show other threads what was read; return True if it is another payload than before, of this member's own."""
        lease, before = self.lease, self.payload
        term = None if lease.term == NOTHING else lease.term
        self.payload = Payload(term, lease.data, lease.data_own and lease.held(NEVER), lease.known)
        return self.payload.own and self.payload != before

    def set_payload(self, term: int, data: Mapping[str, Any], *, now: bool = False) -> None:
        """Put `data` into every further record of this `term`; without effect unless it is held.

        With `now`, the next step sends a heartbeat. Raises ValueError for data that no record can carry.
        """
        data = sound(data)
        if self.lease.term == term and self.lease.held(self._clock()):
            self.lease.data_out = data
            if now:
                self.lease.heartbeat_now()

    def carry_idle(self, progressed: float | None, now: float) -> None:
        """Say in the next record for how long the owner has made no progress, or has started no work.

        Until an owner sets a payload, the records of a term repeat what its claim repeated of the term before.
        """
        lease = self.lease
        if not lease.resigning:
            self._stopped = FOREVER
        if progressed is not None and lease.held(now):
            idle = max(0.0, now - min(progressed, self._stopped))
            carried = lease.data if lease.data_out is None else lease.data_out
            lease.data_out = {**(carried or {}), IDLE: round(min(idle, IDLE_MOST), 3)}

    def resign(self, *, asked: bool = False) -> None:
        """Stop leading, if another member `asked` or by itself; the release follows when the barrier returned (R4)."""
        lease, now = self.lease, self._clock()
        if lease.leading(now):
            self._stopped = now
            if not asked:
                self.rebalance.gave_up(now - self._announced_at)
        lease.resign(now)
        if self.announced is None:
            lease.drained()  # this term was never announced, so no work of it is in flight
        self.publish()  # the next step may wait for something to read first

    def back_off(self) -> None:
        """Resign, and do not claim for a while that grows with each call: the owner cannot serve the role."""
        now = self._clock()
        led = 0.0 if self.announced is None else now - self._announced_at
        self.stand_back.failed(now, term=self.announced, led=led)
        self.resign()

    def drained(self, term: int | None = None) -> None:
        """Note that the barrier returned; `term`, if given, is the one that it ran for: it frees no later term."""
        if self.draining and self.announced is not None and term in (None, self.announced):
            self._drained = True
            self.lease.drained()

    def void(self) -> Iterator[LeaderFenced]:
        """End the grant for good: no further step is made."""
        self._set_grant(Grant(self.grant.term))
        self.payload = Payload()
        if self.announced is not None:
            yield LeaderFenced(self.role, self.announced)
            self.announced = None

    def leader(self) -> tuple[str, int] | None:
        """Return name and term of the member that holds the role; None if its lease has run out, or none is known."""
        lease = self.lease
        holder, term = lease.holder, lease.term
        known = lease.known and lease.may_be_held(self._clock())
        return (name_of(holder), term) if known and holder is not None else None

    def publish(self) -> None:
        """Show other threads what the lease allows: before a release leaves, never after."""
        lease = self.lease
        if lease.held(NEVER):
            self._set_grant(Grant(lease.term, lease.until, lease.resigning))
        elif self.grant.until != NEVER:
            self._set_grant(Grant(self.grant.term))

    def _set_grant(self, grant: Grant) -> None:
        if grant != self.grant:
            self.grant = grant
            self._mirror(self.index, grant)

    def changes(self, now: float, why: Callable[[RoleState, float], str]) -> Iterator[LeaderEvent]:
        """Announce what changed since the last call; `why` gives the reason of a fence."""
        grant = self.grant
        if self.announced is not None:
            if not (grant.held(now) and grant.term == self.announced):
                term, self.announced = self.announced, None
                self.lease.drained()  # if late heartbeats bring the lease back, no work of it is in flight any more
                if not self._drained:
                    yield LeaderFenced(self.role, term, why(self, now))
            elif grant.resigning and not self.draining:
                self.draining = True
                yield LeaderRevoked(self.role, self.announced)
        if self.announced is None and grant.leading(now) and grant.term is not None:
            self.announced, self._announced_at, self.draining, self._drained = grant.term, now, False, False
            yield LeaderAcquired(self.role, grant.term)


def _idle(data: Mapping[str, Any] | None) -> float:
    """Return the seconds for which a record's author was idle; 0 if the record says nothing of it, or nonsense."""
    value = (data or {}).get(IDLE)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= IDLE_MOST:
        return 0.0
    return float(value)
