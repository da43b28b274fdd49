"""What must never happen, and what must happen in the end."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.simulation.actor import Actor
    from tests.simulation.world import World

ASKS = 2
"""So often a role may have to be asked for: where records are late, another may be faster than the member favoured."""


class Failure(Exception):
    """`kind`: overlap, unbought, events, terms, release, claim, request, slot, stuck, busy or crash."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind
        self.schedule = ""


@dataclass
class Span:
    """One member held a role from `start` to `end`, true times; `end` is in the future while the lease runs."""

    name: str
    term: int | None
    start: float
    end: float


class Judge:
    """Looks at every grant when it is made. A hold can begin only there, so nothing between two looks is missed."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.spans: list[list[Span]] = [[] for _ in world.roles]
        self.top: list[tuple[int, str]] = [(-1, "") for _ in world.roles]
        self.left: set[str] = set()  # members that closed in order
        self.bought: dict[tuple[str, int], float] = {}
        self.asked: dict[tuple[str, int], float] = {}  # when a member last asked for a role
        self.asks = 0

    # Safety

    def granted(self, actor: Actor, role: int) -> None:
        """Nobody else holds the role, and the lease was bought by a record of one's own, from its send (R1)."""
        world, now = self.world, self.world.now
        grant = actor.grant(role)
        if not actor.holds(role, now):
            self._ended(actor, role, now)
            return
        if world.scenario.one_leader:
            for other in world.actors:
                if other is not actor and other is not None and other.holds(role, now):
                    if self._collision(actor, role) or self._collision(other, role):
                        continue
                    raise Failure("overlap", f"{actor.name} and {other.name} hold role {role} at {now:.3f}")
        if grant.until != float("-inf"):
            self._bought(actor, role, grant)
        until, spans = actor.true(grant.until), self.spans[role]
        if not grant.held(actor.local(now)):
            return
        if spans and spans[-1].name == actor.name and spans[-1].term == grant.term and spans[-1].end >= now:
            spans[-1].end = until
        else:
            spans.append(Span(actor.name, grant.term, now, until))

    def _collision(self, actor: Actor, role: int) -> bool:
        """Whether the claim of `actor` names an offset at which it has read something else than the log holds now.

        Only where a log was truncated unnoticed: then nobody could know. (Kafka tells who knows the leader epoch.)
        """
        values, term = self.world.logs[role].values, actor.grant(role).term
        if self.world.scenario.noticed or term is None or term >= len(values):
            return False
        seen = json.loads(values[term]).get("seen")
        return seen is not None and 0 <= seen < len(values) and actor.journal.has_read[role].get(seen) != values[seen]

    def _ended(self, actor: Actor, role: int, now: float) -> None:
        spans = self.spans[role]
        if spans and spans[-1].name == actor.name:
            spans[-1].end = min(spans[-1].end, now)

    def gone(self, actor: Actor) -> None:
        for role in range(len(self.world.roles)):
            self._ended(actor, role, self.world.now)

    def _bought(self, actor: Actor, role: int, grant: Any) -> None:
        if self.bought.get((actor.name, role)) == grant.until:
            return
        self.bought[actor.name, role] = grant.until
        lease = actor.config.heartbeat_timeout
        for sent in actor.seqs.values():
            if any(before - 1e-6 <= grant.until - lease <= at + 1e-6 for before, at, _ in sent.values()):
                return
        raise Failure(
            "unbought",
            f"{actor.name} holds role {role} until {grant.until:.3f}, but sent nothing one lease before",
        )

    def sent(self, actor: Actor, role: int, record: dict[str, Any]) -> None:
        """`held` has ended when a release leaves, after the barrier (R4); who closes or stands aside does not claim."""
        if record["kind"] == "release":
            if actor.grant(role).held(actor.local(self.world.now)):
                raise Failure("release", f"{actor.name} still holds role {role} when its release leaves")
            owner = actor.owner[role]
            if owner is not None and actor.finished[role] != owner[1]:
                # Told a little later than resigned; or frozen in the middle of the very step that would have told it.
                since = actor.revoked_at[role][0] if owner[0] == "drains" else actor.stepped_at
                if actor.local(self.world.now + actor.ahead) < since + actor.config.drain_timeout - 1:
                    raise Failure("release", f"{actor.name} releases role {role} before its barrier has returned")
            actor.released[role] = actor.local(self.world.now), record["term"]
        elif record["kind"] == "request":
            self._asks(actor, role, record["term"])
        elif record["kind"] == "claim" and (actor.member.closing or actor.member.outdated):
            raise Failure("claim", f"{actor.name} claims role {role} while closing or outdated")

    def _asks(self, actor: Actor, role: int, term: int) -> None:
        """Who asks for a role has known for `rebalance_after` that it is assigned it and that another leads (R10)."""
        world, log = self.world, self.world.logs[role]
        now, never = world.now + actor.ahead, float("-inf")
        where = f"{actor.name} asks for role {role} at {now:.3f}"
        if (
            len(world.roles) == 1
            or actor.member.closing
            or actor.member.outdated
            or actor.grant(role).held(actor.local(now))
        ):
            raise Failure("request", f"{where}, which it may not")
        times = {
            "it was assigned": actor.group.since.get(role, now),
            "it woke": actor.watching_since,
            "it asked before": self.asked.get((actor.name, role), never),
            "the leader came": log.when[term] if term < len(log.when) else never,
        }
        for what, time in times.items():
            if now - time < 0.98 * world.scenario.rebalance_after:
                raise Failure("request", f"{where}, only {now - time:.3f} s after {what}")
        self.asked[actor.name, role] = now
        self.asks += 1

    def _reason(self, actor: Actor, role: int, term: int) -> None:
        """Where nobody resigns for other reasons, a leader that does not close was asked to: for this role and term."""
        scenario = self.world.scenario
        if not scenario.spread or scenario.resign or scenario.request or actor.closing_at is not None:
            return
        asks = (json.loads(value) for value in self.world.logs[role].values[term:] if b'"request"' in value)
        if not any(each["term"] == term for each in asks):
            raise Failure("request", f"{actor.name} gives role {role} up in term {term}, and nobody has asked for that")

    def _stood_back(self, actor: Actor, role: int, term: int) -> None:
        """Who released does not come back at once (R4), unless somebody led meanwhile, or was to and did not."""
        released, of_term = actor.released[role]
        values = self.world.logs[role].values
        if (
            term <= of_term
            or actor.local(self.world.now) >= released + actor.config.heartbeat_timeout
            or term >= len(values)
        ):
            return
        seen = json.loads(values[term]).get("seen")
        requests = [json.loads(value) for value in values[of_term + 1 : term] if b'"request"' in value]
        if any(each.get("to", actor.name).partition("/")[0] != actor.name for each in requests):
            return
        if seen is not None and seen >= 0 and json.loads(values[seen])["member"].startswith(f"{actor.name}/"):
            raise Failure("events", f"{actor.name} leads role {role} again right after its release")

    def told(self, actor: Actor, role: int, kind: str, term: int, before: tuple[str, int] | None) -> None:
        """Acquired, then Revoked or Fenced; terms rise."""
        where = f"{actor.name}, role {role}: {kind}({term}) after {before}"
        if kind == "LeaderAcquired":
            drained = before is not None and before[0] == "drains" and actor.finished[role] == before[1]
            if before is not None and not drained:
                raise Failure("events", where)
            if self.world.scenario.terms_rise and self.world.scenario.one_leader:
                self._stood_back(actor, role, term)
            top, name = self.top[role]
            if self.world.scenario.terms_rise and (term < top or (term == top and name != actor.name)):
                raise Failure("terms", f"{where}, but {name} led in term {top}")
            self.top[role] = term, actor.name
            return
        if kind == "LeaderRevoked":
            self._reason(actor, role, term)
        if before is None or before[1] != term or (kind == "LeaderRevoked" and before[0] != "leads"):
            raise Failure("events", where)
        if kind == "LeaderFenced" and before[0] == "drains" and actor.finished[role] == term:
            raise Failure("events", f"{where}: its barrier had returned")

    def consistent(self, actor: Actor) -> None:
        """After each step the events tell what the grant allows."""
        if actor.ahead:
            return  # the step is not over
        now = actor.local(self.world.now)
        for role, owner in enumerate(actor.owner):
            grant = actor.grant(role)
            if owner is not None and owner[0] == "leads":
                fits = grant.term == owner[1] and not grant.resigning and grant.until > now - 1e-3
            elif owner is not None and actor.finished[role] != owner[1]:
                fits = grant.term == owner[1] and grant.resigning and grant.until > now - 1e-3
                if now > actor.revoked_at[role][1] + actor.config.drain_timeout + 1:
                    raise Failure("stuck", f"{actor.name} waits for its barrier beyond drain_timeout")
            else:
                fits = not grant.held(now)  # nobody has work in flight: the role is to be given up in the same step
            if not fits:
                raise Failure(
                    "events",
                    f"{actor.name} was told {owner} of role {role}, but has {grant} at {now:.3f}, "
                    f"barrier of {actor.finished[role]} done",
                )

    def closed(self, actor: Actor, *, in_time: bool) -> None:
        """A closing member to which nothing happens comes to its end in time."""
        scenario = self.world.scenario
        if in_time and not scenario.no_write and not scenario.late and not scenario.double:
            self.left.add(actor.name)
        if not in_time and actor.closed_undisturbed:
            raise Failure("stuck", f"{actor.name} did not close in time")

    def arrived(self, role: int, value: bytes) -> None:
        """Who closes awaits the claim that is under way (R4): else its lease would have to run out."""
        self.world.slots.arrived(role, value)
        if not self.left or b'"claim"' not in value:
            return
        claim, last = json.loads(value), len(self.world.logs[role].values) - 1
        if claim["member"].split("/")[0] in self.left and claim["seen"] == last:
            raise Failure("claim", f"an effective claim of {claim['member']} arrives after it has closed")

    # Liveness

    def bound(self) -> float:
        """Seconds from `calm` until somebody must lead for good: three leases, a drain, and one second to send and ask.

        One lease may be lost to a claim or a stand-back under way, one to the end of the last lease announced (or to a
        blind wait), one to a member that begins anew on what the last fault left, or to a release that was lost. "For
        good" is nine tenths of the rest of the time, always the same member in the same term.
        """
        scenario = self.world.scenario
        bound = 3 * max(*scenario.leases, self.world.forged_lease) + scenario.drain_timeout + max(scenario.takeover) + 1
        return bound + (ASKS * (scenario.rebalance_after + scenario.drain_timeout + 1) if scenario.spread else 0.0)

    def rested(self) -> None:
        """Somebody leads each role for the rest of the time, and always the same."""
        world = self.world
        if world.steps > 16 * world.now * world.scenario.members * len(world.roles):
            raise Failure("busy", f"{world.steps} steps in {world.now:.0f} s")
        begin, end = world.calm_at + self.bound(), world.now
        for role, spans in enumerate(self.spans):
            held = sum(max(0.0, min(span.end, end) - max(span.start, begin)) for span in spans)
            late = [span for span in spans if span.end > begin]
            if not world.scenario.leads:
                if held or not all(actor.member.outdated for actor in world.actors if actor is not None):
                    raise Failure("stuck", f"role {role} is held for {held:.1f} s by members that should stand aside")
                continue
            if held < 0.9 * (end - begin):
                raise Failure("stuck", f"role {role} is held for {held:.1f} of the last {end - begin:.1f} s")
            if len({(span.name, span.term) for span in late}) > 1:
                raise Failure("stuck", f"role {role} changes hands in the calm: {late}")
            if world.scenario.spread and (owner := world.coordinator.owner[role]) and late[-1].name != owner.name:
                raise Failure("stuck", f"{late[-1].name} still leads role {role}, which is assigned to {owner.name}")

    def settled(self) -> float:
        """Seconds from `calm` to the beginning of the last spans."""
        return max((spans[-1].start for spans in self.spans if spans), default=0.0) - self.world.calm_at
