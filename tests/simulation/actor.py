"""One simulated process: a real `Member`, its clock, its faults, and the owner who does as the member's events say."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from celery_neli.config import Config
from celery_neli.election.role_state import Grant
from tests.simulation.fakes import FakeGroup, FakeJournal
from tests.simulation.faults import Crash
from tests.simulation.judge import Failure

if TYPE_CHECKING:
    from tests.simulation.world import World

NEVER = float("-inf")


class Quiet:
    """A log for members that nobody reads."""

    def info(self, msg: str, *args: Any) -> None: ...
    def warning(self, msg: str, *args: Any) -> None: ...
    def error(self, msg: str, *args: Any) -> None: ...


class Actor:
    """A process, from its start to its end; `index` is its machine."""

    def __init__(self, world: World, index: int, generation: int, rate: float, origin: float) -> None:
        scenario, rnd = world.scenario, world.rnd
        self.world, self.index, self.rate, self.origin = world, index, rate, origin
        self.name = f"m{index}g{generation}"
        self.gone = False
        self.closing_at: float | None = None
        self.closing_by: float | None = None
        self.troubled = NEVER  # until when the last fault lasts
        self.frozen = self.no_read = self.no_write = self.no_topic = 0.0  # until when
        self.last_write = 0.0
        self.reread_now = False
        self.ahead = 0.0  # a freeze in the middle of a step: the rest of it happens so much later
        self.calls_to_stumble = 0
        self.shadow: list[Grant] | None = None  # what is believed outside while such a step hangs
        self.hangs_until = NEVER
        self.due = NEVER
        self.cap = rnd.uniform(0.1, 0.9)
        self.seqs: dict[
            str, dict[int, tuple[float, float, float]]
        ] = {}  # identity -> seq -> clock before and at append, lease
        self.stepped_at = 0.0
        self.stepped, self.watching_since = world.now, world.now  # true times
        self.config = Config(
            group="g", topic="t", name=self.name, roles=world.roles,
            heartbeat_interval=0.5, heartbeat_timeout=rnd.choice(scenario.leases),
            takeover_delay=rnd.choice(scenario.takeover),
            drain_timeout=scenario.drain_timeout, rebalance_after=scenario.rebalance_after,
        )  # fmt: skip
        self.journal, self.group = FakeJournal(world, self), FakeGroup(world)
        self.owner: list[tuple[str, int] | None] = [
            None for _ in world.roles
        ]  # what the events have told: ("leads" | "drains", term)
        self.revoked_at = [(NEVER, NEVER) for _ in world.roles]  # not before and not after (this clock)
        self.released: list[tuple[float, int]] = [(NEVER, -1) for _ in world.roles]  # when (this clock), and which term
        self.finished: list[int | None] = [None for _ in world.roles]  # the term whose barrier has returned
        self.slots = [
            world.dispatcher_class(world, self, role) for role in range(min(len(world.roles), scenario.slot_roles))
        ]
        self.member = world.member_class(
            self.config, self.journal, self.group, clock=self.clock, log=Quiet(), rng=world.rnd, nonce=world.nonce
        )

    def clock(self) -> float:
        if self.calls_to_stumble:
            self.calls_to_stumble -= 1
            if not self.calls_to_stumble:
                self.shadow = [self.grant(role) for role in range(len(self.world.roles))]
                lasts = self.world.rnd.choice((0.3, 2.0, 4.0, 12.0)) * self.world.rnd.random()
                self.ahead = max(0.0, min(lasts, self.world.calm_at - self.world.now))  # no clock goes back
                self.hangs_until = self.world.now + self.ahead
        return self.local(self.world.now + self.ahead)

    def local(self, time: float) -> float:
        """This machine's clock at a true time."""
        return time * self.rate + self.origin

    def true(self, local: float) -> float:
        return (local - self.origin) / self.rate

    def grant(self, role: int) -> Grant:
        return self.member.state(self.world.roles[role]).grant

    def holds(self, role: int, time: float) -> bool:
        """Whether any thread of this process would be told now, or on waking, that it holds the role."""
        local = self.local(time)
        if self.grant(role).held(local):
            return True
        return self.shadow is not None and time <= self.hangs_until and self.shadow[role].held(local)

    @property
    def closed_undisturbed(self) -> bool:
        return self.closing_at is not None and self.troubled < self.closing_at and not self.world.scenario.late

    def close(self) -> None:
        """SIGTERM. Whoever stopped it waits for so long, then kills it."""
        self.member.close()
        self.closing_at = self.world.now
        if self.world.scenario.spread:
            self.world.after(0.1, self.world.coordinator.balance)
        self.closing_by = self.world.now + self.config.drain_timeout + 2 * self.config.heartbeat_timeout + 1

    # One turn

    def step(self) -> None:
        world = self.world
        self.ahead, self.shadow = 0.0, None
        if world.scenario.stumble and not world.calm and world.rnd.random() < world.scenario.stumble:
            self.calls_to_stumble = world.rnd.randrange(1, 9)
        self.stepped_at = self.local(world.now)
        if world.now - self.stepped > 1.2:
            self.watching_since = world.now
        self.stepped = world.now
        self.member.progressed = self.stepped_at
        try:
            changes = self.member.step(0)
        except Failure:
            raise
        except Exception as exc:
            raise Failure("crash", f"{self.name}: step raised {exc!r}") from exc
        self.calls_to_stumble = 0
        self.reread_now = False
        for change in changes:
            self._told(change)
        world.judge.consistent(self)
        if not self.ahead:
            self.shadow = None
            try:
                for slots in self.slots:
                    slots.turn()
            except Crash:
                world.note("fault", "crash", self.name)
                world.bury(self)
                return
        for role in range(len(world.roles)):
            world.judge.granted(self, role)
        if self.ahead:
            self.frozen = max(self.frozen, world.now + self.ahead)
            world.note(self.name, "stumbles", self.ahead)
        if self.closing_by is not None and not self.ahead and (self.member.closed or world.now > self.closing_by):
            world.judge.closed(self, in_time=self.member.closed)
            self.world.bury(self)

    def _told(self, change: Any) -> None:
        role = self.world.roles.index(change.role)
        kind = type(change).__name__
        self.world.note(self.name, kind, change.role, change.term)
        before = self.owner[role]
        self.world.judge.told(self, role, kind, change.term, before)
        if kind == "LeaderAcquired":
            self.owner[role] = ("leads", change.term)
            if self.finished[role] != change.term:
                self.finished[role] = None
        elif kind == "LeaderRevoked":
            self.owner[role] = ("drains", change.term)
            self.revoked_at[role] = self.stepped_at, self.local(self.world.now + self.ahead)
            timeout = self.world.scenario.drain_timeout
            overruns = self.world.rnd.random() < self.world.scenario.overrun
            lasts = (
                self.world.rnd.uniform(timeout, 5 * timeout) if overruns else self.world.rnd.uniform(0, 0.8 * timeout)
            )
            self.world.after(self.ahead + lasts, self.drained, role, change.term)
        else:
            self.owner[role] = None

    def drained(self, role: int, term: int) -> None:
        """The barrier of `term` returns, perhaps long after anybody waits for it."""
        if self.gone:
            return
        if self.frozen > self.world.now:
            self.world.after(self.frozen - self.world.now + 0.001, self.drained, role, term)
            return
        if self.owner[role] == ("drains", term):
            for slots in self.slots[role : role + 1]:
                slots.hand_back()
            self.finished[role] = term
        self.world.note(self.name, "drained", role, term)
        self.member.state(self.world.roles[role]).drained(term)
        self.world.wake(self, 0.005)

    # Sending

    def appended(self, role: int, value: bytes) -> None:
        """The member hands a record to its producer."""
        world, rnd = self.world, self.world.rnd
        record = json.loads(value)
        world.judge.sent(self, role, record)
        sent = self.local(world.now + self.ahead)
        self.seqs.setdefault(record["member"], {})[record["seq"]] = (self.stepped_at, sent, record.get("lease", 0.0))
        time = world.now + self.ahead
        world.note(self.name, "sends", role, value)
        lost = not world.calm and rnd.random() < world.scenario.loss
        if lost or (self.no_write > time and (rnd.random() < world.scenario.drop or self.no_write > 1e8)):
            world.note(self.name, "loses", role, record["seq"])
            return
        copies = 1 + (not world.calm and rnd.random() < world.scenario.double)
        for copy in range(copies):
            arrives = (
                time + rnd.uniform(0.001, 0.03) * world.scenario.latency
                if self.no_write <= time
                else self.no_write + rnd.uniform(0, 0.5)
            )
            if not world.calm and (copy or rnd.random() < world.scenario.late):
                arrives += rnd.choice((rnd.uniform(0, 2), rnd.uniform(0, 20)))
            if world.scenario.fifo and not copy:
                self.last_write = arrives = max(arrives, self.last_write + 1e-6)
            world.fly(arrives, role, value)
