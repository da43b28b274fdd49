"""An election of several beats that a test holds in its hands: who leads which role, and what the records carry."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from celery_neli.election.role_state import Payload
from tests.unit.fakes import FakeRole, FakeStanding

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from celery_neli.config import Config

NEVER = float("inf")


@dataclass
class Role:
    """What the records of one role say, and what of the leader's is still to come."""

    term: int | None = None
    holder: FakeMember | None = None
    leading: bool = False
    #: What the newest record that was read carried; whether it is of the holder's term.
    data: Mapping[str, Any] | None = None
    own: bool = False
    #: What further records will carry, if that differs.
    unsent: Mapping[str, Any] | None = None
    #: Records that were sent and not read yet: when they will be, and what they carry.
    on_their_way: list[tuple[float, Mapping[str, Any]]] = field(default_factory=list)
    #: When the last record left.
    left: float = 0.0


class FakeElection:
    """Roles, held by members. Heartbeats leave each ``interval``, and are read ``latency`` seconds later."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.latency = 0.0
        self.roles: dict[str, Role] = {}
        self.terms = 0
        #: Everything that was read, in order: role, term, data.
        self.records: list[tuple[str, int, Mapping[str, Any]]] = []
        #: Whether members know the log to its end.
        self.known = True

    def role(self, name: str) -> Role:
        return self.roles.setdefault(name, Role())

    def claim(self, member: FakeMember, name: str, *, blind: bool = False) -> int:
        """The member leads the role in a new term; its records carry what the last one did. ``blind``: nothing."""
        role = self.role(name)
        self.terms += 1
        role.term, role.holder, role.leading = self.terms, member, True
        role.unsent, role.left = None, self.clock()
        role.on_their_way.clear()
        if blind:
            role.data = None
        role.own = True
        return self.terms

    def next_event(self) -> float:
        """When something is read or sent next."""
        times = [when for role in self.roles.values() for when, _ in role.on_their_way]
        times += [self._next_heartbeat(role) for role in self.roles.values() if role.unsent is not None]
        return min(times, default=NEVER)

    def catch_up(self) -> None:
        """Everything happens that is to happen until now."""
        now = self.clock() + 1e-6
        for name, role in self.roles.items():
            if role.unsent is not None and self._next_heartbeat(role) <= now:
                self.send(role, role.unsent)
            while role.on_their_way and role.on_their_way[0][0] <= now:
                self._read(name, role, role.on_their_way.pop(0)[1])

    def send(self, role: Role, data: Mapping[str, Any]) -> None:
        """A record leaves. With an infinite latency it is lost."""
        role.unsent, role.left = None, self.clock()
        if self.latency < NEVER:
            role.on_their_way.append((role.left + self.latency, data))

    def _next_heartbeat(self, role: Role) -> float:
        return NEVER if role.holder is None else role.left + role.holder.config.heartbeat_interval

    def _read(self, name: str, role: Role, data: Mapping[str, Any]) -> None:
        assert role.term is not None
        self.records.append((name, role.term, data))
        changed, role.data = role.data != data, data
        if role.holder is not None:
            role.own = True
            if changed and role.holder.on_readback is not None:
                role.holder.on_readback()


class MemberRole(FakeRole):
    """A role of a `FakeElection`, as one `FakeMember` has it."""

    def __init__(self, member: FakeMember, name: str) -> None:
        super().__init__(name)
        self._member, self._world = member, member.world

    def standing(self) -> FakeStanding:
        found = self._world.role(self.name)
        mine = found.holder is self._member
        return FakeStanding(found.term, mine and found.leading, mine)

    @property
    def last_payload(self) -> Payload:
        found = self._world.role(self.name)
        own = found.own and found.holder is self._member
        return Payload(term=found.term, data=found.data, own=own, known=self._world.known)

    def set_payload(self, term: int, data: Mapping[str, Any], *, now: bool = False) -> None:
        found, member = self._world.role(self.name), self._member
        if found.holder is not member or found.term != term:
            return
        member.offers.append((self.name, data))
        found.unsent = data
        if now:
            member.hurried += 1
            self._world.send(found, data)
            if not self._world.latency:
                self._world.catch_up()

    def predecessor_active_until(self) -> datetime | None:
        return self._member.predecessor_active

    def ask(self) -> None:
        self._member.asked.append(self.name)

    def resign(self, *, back_off: bool = False) -> None:
        self._member.resigned.append(self.name)
        if back_off:
            self._member.stood_back.append(self.name)


class FakeMember:
    """One process's part in a `FakeElection`: what `Leadership` is to a scheduler."""

    election = "beat"

    def __init__(self, world: FakeElection, config: Config) -> None:
        self.world, self.config = world, config
        self.on_readback: Callable[[], None] | None = None
        self.hurried = 0
        self.offers: list[tuple[str, Mapping[str, Any]]] = []
        self.resigned: list[str] = []
        self.stood_back: list[str] = []
        self.asked: list[str] = []
        self.turns = 0
        self.predecessor_active: datetime | None = None

    def start(self) -> None: ...

    def role(self, name: str = "leader") -> MemberRole:
        return MemberRole(self, name)

    def progress(self) -> None:
        self.turns += 1

    def stop(self) -> None: ...

    # -- what happens to it --

    def lead(self, role: str = "leader", *, blind: bool = False) -> int:
        """Lead the role from now on; the term."""
        return self.world.claim(self, role, blind=blind)

    def drain(self, role: str = "leader") -> None:
        """A handover begins."""
        self.world.role(role).leading = False

    def release(self, role: str = "leader") -> None:
        """The handover ends: the release carries what was offered last."""
        found = self.world.role(role)
        for _, data in found.on_their_way:
            found.data = data
        if found.unsent is not None:
            found.data = found.unsent
        self._leave(found)

    def vanish(self, role: str = "leader", *, arrives: bool = True) -> None:
        """The lease is lost: what was sent ``arrives`` or not, what was not sent never will."""
        found = self.world.role(role)
        for _, data in found.on_their_way if arrives else ():
            found.data = data
        self._leave(found)

    def take_back(self, role: str = "leader") -> None:
        """Late heartbeats are read: the term goes on."""
        found = self.world.role(role)
        found.holder, found.leading, found.own = self, True, True

    def _leave(self, found: Role) -> None:
        found.on_their_way.clear()
        found.unsent = None
        found.holder, found.leading, found.own = None, False, False
