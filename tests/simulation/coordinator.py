"""A group's coordinator that spreads the roles over its members, as cooperative-sticky does."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.simulation.actor import Actor
    from tests.simulation.world import World


class Coordinator:
    """Gives each role to one member, moves as few as it can, and tells everybody some time later."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.owner: list[Actor | None] = [None] * len(world.roles)
        self.down = False

    def members(self) -> list[Actor]:
        """Who lives and does not close."""
        return [each for each in self.world.actors if each is not None and each.closing_at is None]

    def balance(self) -> None:
        """Somebody came or went."""
        members = self.members()
        if not members or self.down:
            return
        most = -(-len(self.owner) // len(members))
        for role, owner in enumerate(self.owner):
            if owner not in members or self.owner.count(owner) > most:
                self.owner[role] = None
        for role, owner in enumerate(self.owner):
            if owner is None:
                self.owner[role] = min(members, key=self.owner.count)
        # Whoever has two more than another gives one away.
        while self.owner.count(least := min(members, key=self.owner.count)) + 1 < self.owner.count(
            richest := max(members, key=self.owner.count)
        ):
            self.owner[self.owner.index(richest)] = least
        self._tell()

    def shuffle(self) -> None:
        """Every role moves, or stays, by chance: many have joined and left in between."""
        members = self.members()
        if not members or self.down:
            return
        turns = [members[number % len(members)] for number in range(len(self.owner))]
        self.world.rnd.shuffle(turns)
        self.owner[:] = turns
        self._tell()

    def fail(self, seconds: float) -> None:
        """It does not answer: nobody is a member of anything, for so long."""
        self.down = True
        for actor in self.members():
            actor.group.assign(frozenset(), self.world.rnd.uniform(0, self.world.scenario.group_delay))
        self.world.after(min(seconds, max(0.0, self.world.scenario.calm - self.world.now)), self.recover)

    def recover(self) -> None:
        self.down = False
        self.balance()

    def _tell(self) -> None:
        for actor in self.members():
            roles = frozenset(role for role, owner in enumerate(self.owner) if owner is actor)
            if roles != actor.group.assigned:
                actor.group.assign(roles, self.world.rnd.uniform(0, self.world.scenario.group_delay))
