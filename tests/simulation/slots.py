"""A leader that dispatches one slot a second: claimed before it is published, in doubt when it is handed on."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

from tests.simulation.judge import Failure

if TYPE_CHECKING:
    from tests.simulation.actor import Actor
    from tests.simulation.world import World

AHEAD = 0.5  # slots are claimed so many seconds before they are due


class Dispatcher:
    """One process's part in the slots of one role; acts only while the member leads."""

    def __init__(self, world: World, actor: Actor, role: int) -> None:
        self.world, self.actor, self.role = world, actor, role
        self.term: int | None = None
        self.claimed = self.done = 0

    def turn(self) -> None:
        """Publish what is claimed, claim what is due soon."""
        actor, world = self.actor, self.world
        grant = actor.grant(self.role)
        if not grant.leading(actor.local(world.now)) or grant.term is None:
            return
        role = world.roles[self.role]
        data, own = actor.member.data(role)
        if self.term != grant.term:
            self._begin(grant.term, data)
        now = math.floor(world.now)
        confirmed = int(data["claimed"]) if data is not None and own else self.done
        while self.done < min(now, confirmed, self.claimed):
            self.done += 1
            world.slots.published(self.role, self.done, grant.term, actor.name)
        target = math.floor(world.now + AHEAD)
        if target > self.claimed:
            self.claimed = target
            self._offer()
            actor.member.hurry(role)

    def _begin(self, term: int, data: object) -> None:
        self.term = term
        if isinstance(data, dict):
            self.done, self.claimed = int(data["done"]), int(data["claimed"])
            self.world.slots.begun(self.role, term, self.done, self.claimed)
        else:
            self.done = self.claimed = math.floor(self.world.now)
            self.world.slots.forgotten(self.role, term, self.done)
        values = self.world.logs[self.role].values
        scenario = self.world.scenario
        # Where records may come late, a reader that begins at one need not have met the last word.
        if scenario.slots and scenario.fifo and not scenario.late and not scenario.double:
            claim = json.loads(values[term])
            if claim["seen"] not in (None, -1) and claim.get("data") != _newest(values, claim["seen"]):
                raise Failure(
                    "slot", f"the claim of term {term} of role {self.role} does not repeat the data of {claim['seen']}"
                )

    def hand_back(self) -> None:
        """The barrier is done: what was claimed and not published may be claimed by the next."""
        if self.term is not None and self.term == self.actor.grant(self.role).term:
            self.claimed = self.done
            self._offer()

    def _offer(self) -> None:
        self.actor.member.offer(self.world.roles[self.role], {"claimed": self.claimed, "done": self.done})


class Slots:
    """The judge of slots: which term published which."""

    def __init__(self, roles: int, judged: bool) -> None:
        self.judged = judged
        self.terms: list[dict[int, set[int]]] = [{} for _ in range(roles)]  # slot -> terms that published it
        self.doubt: list[dict[int, range]] = [
            {} for _ in range(roles)
        ]  # term -> slots that its predecessors left in doubt
        self.first: list[int | None] = [None] * roles  # none of the slots from here on may be missing
        self.doubled = 0

    def begun(self, role: int, term: int, done: int, claimed: int) -> None:
        self.doubt[role][term] = range(done + 1, claimed + 1)

    def forgotten(self, role: int, term: int, done: int) -> None:
        """A blind claim found no data: nobody knows what was missed before."""
        self.doubt[role][term] = range(0)
        self.first[role] = done + 1

    def published(self, role: int, slot: int, term: int, name: str) -> None:
        terms = self.terms[role].setdefault(slot, set())
        if self.judged and term in terms:
            raise Failure("slot", f"{name}: slot {slot} of role {role} is published twice in term {term}")
        if self.judged and terms and slot not in self.doubt[role][term]:
            raise Failure(
                "slot",
                f"{name}: slot {slot} of role {role} was published in terms {terms}, and is again in {term}, "
                f"in doubt {self.doubt[role][term]}",
            )
        self.doubled += bool(terms)
        terms.add(term)

    def complete(self, until: float) -> None:
        """None was lost from the last amnesia to two seconds before the end."""
        for role, first in enumerate(self.first):
            if not self.judged or first is None or not self.terms[role]:
                continue
            missing = [slot for slot in range(first, max(self.terms[role])) if slot not in self.terms[role]]
            if missing:
                raise Failure("slot", f"slots {missing} of role {role} were never published")
            if self.judged and max(self.terms[role]) < until - 12:
                raise Failure(
                    "slot", f"the last slot published for role {role} is {max(self.terms[role])} of {until:.0f}"
                )


def _newest(values: list[bytes], last: int) -> object:
    """The data of the term that the record at `last` belongs to: its author's last word, in whatever order it came."""
    of_last = json.loads(values[last])
    first = of_last.get("term", last)
    term = [json.loads(values[offset]) for offset in range(first, last + 1)]
    own = [each for each in term if each["member"] == of_last["member"] and each.get("term", first) == first]
    return max(own, key=lambda each: each["seq"]).get("data")
