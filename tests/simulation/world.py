"""The run of one scenario with one seed: true time, the logs, the machines, and what happens when."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import Any

from celery_neli.election import member as real
from tests.simulation import faults
from tests.simulation.actor import Actor
from tests.simulation.coordinator import Coordinator
from tests.simulation.dispatcher import Dispatcher
from tests.simulation.fakes import Log
from tests.simulation.judge import Failure, Judge
from tests.simulation.scenarios import SCENARIOS, Scenario
from tests.simulation.slot_judge import Slots

ROLES = ("leader", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")

SESSION = 2.0  # seconds until the group misses a dead member


class World:
    """Everything of one run. Events are `(true time, what)`; between them nothing happens."""

    def __init__(
        self,
        scenario: Scenario,
        seed: int | str,
        member_class: Any = real.Member,
        dispatcher_class: Any = Dispatcher,
    ) -> None:
        self.scenario, self.member_class, self.dispatcher_class = scenario, member_class, dispatcher_class
        self.rnd = random.Random(seed)
        self.now, self.calm, self.calm_at, self.forged_lease = 0.0, False, scenario.calm, 0.0
        self.roles = ROLES[: scenario.roles]
        self.logs = [Log(scenario.idle) for _ in self.roles]
        self.history: list[tuple[Any, ...]] = []
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = self._nonces = self._generations = 0
        self.judge = Judge(self)
        self.coordinator = Coordinator(self)
        self.slots = Slots(self, seed)
        self.steps = 0
        self.clocks = [(self._rate(), self.rnd.uniform(0, 1e4)) for _ in range(scenario.members)]
        self.actors: list[Actor | None] = [None] * scenario.members
        for index in range(scenario.members):
            self.after(self.rnd.uniform(0, scenario.stagger), self.start, index)
        faults.plan(self)
        self.at(scenario.calm, faults.end, self)

    def _rate(self) -> float:
        rates = self.scenario.rates
        return self.rnd.choice(rates) if self.scenario.extreme else self.rnd.uniform(*rates)

    def nonce(self) -> str:
        self._nonces += 1
        return f"n{self._nonces}"

    def note(self, *what: Any) -> None:
        self.history.append((self.now, *what))

    # Time

    def at(self, time: float, action: Callable[..., None], *args: Any) -> None:
        self._order += 1
        heapq.heappush(self._events, (time, self._order, action, args))

    def after(self, delay: float, action: Callable[..., None], *args: Any) -> None:
        self.at(self.now + delay, action, *args)

    def hasten(self) -> None:
        """The faults are over: what is still on its way to the logs arrives within half a second."""
        arriving = sorted(event for event in self._events if event[2] == self._arrive)
        self._events = [event for event in self._events if event[2] != self._arrive]
        heapq.heapify(self._events)
        for number, (time, _, action, args) in enumerate(arriving):
            self.at(min(time, self.now + 0.4 + 1e-6 * number), action, *args)

    def run(self) -> World:
        """Run to the end. Raises `Failure`."""
        end = self.scenario.calm + self.judge.bound() + self.scenario.after
        while self._events:
            time, _, action, args = heapq.heappop(self._events)
            if time > end:
                end = self.scenario.calm + self.judge.bound() + self.scenario.after  # forged leases may have moved it
                if time > end:
                    break
            self.now = time
            action(*args)
        self.now = end
        self.judge.rested()
        if self.scenario.leads:
            self.slots.complete(end)
        return self

    # Members

    def start(self, index: int) -> None:
        if self.actors[index] is not None:
            return  # the calm has started it already
        self._generations += 1
        actor = Actor(self, index, self._generations, *self.clocks[index])
        self.actors[index] = actor
        self.note(actor.name, "starts", f"lease {actor.config.heartbeat_timeout:g}")
        if self.scenario.spread:
            self.after(0.1, self.coordinator.balance)
        elif self.rnd.random() < 0.5:
            actor.group.assign(faults.some(self), self.rnd.uniform(0, self.scenario.group_delay))
        self.wake(actor, self.rnd.uniform(0, 0.05))

    def bury(self, actor: Actor, away: float = 0.0) -> None:
        """The process is gone; its machine starts another after a while."""
        self.note(actor.name, "ends")
        self.judge.gone(actor)
        actor.gone = True
        self.actors[actor.index] = None
        if self.scenario.spread:
            self.after(0.0 if actor.closing_at is not None or self.calm else SESSION, self.coordinator.balance)
        if self.scenario.down:
            away += self.rnd.expovariate(1 / self.scenario.down)
        self.after(0.0 if self.calm else away, self.start, actor.index)

    def wake(self, actor: Actor, delay: float) -> None:
        """Have `actor` make a step after `delay`, or when it thaws."""
        due = max(self.now + delay, actor.frozen)
        if actor.due <= self.now or due < actor.due:
            actor.due = due
            self.at(due, self._step, actor)

    def _step(self, actor: Actor) -> None:
        if actor.gone or actor.due != self.now:
            return
        if actor.frozen > self.now:
            actor.due = float("-inf")
            self.wake(actor, 0.0)
            return
        self.steps += 1
        actor.due = float("-inf")
        actor.step()
        if actor.gone:
            return
        delay = self.rnd.uniform(0.001, 0.02) * self.scenario.latency
        if not actor.journal.more:
            delay += min(max(actor.true(actor.member.wake()) - self.now, 0.0), actor.cap)
        self.wake(actor, delay)

    # The logs

    def fly(self, arrives: float, role: int, value: bytes) -> None:
        """`value` will be appended to the log of `role`."""
        self.at(arrives, self._arrive, role, value)

    def _arrive(self, role: int, value: bytes) -> None:
        log = self.logs[role]
        self.judge.arrived(role, value)
        log.values.append(value)
        log.when.append(self.now)
        if self.rnd.random() < 0.5:
            log.expire(self.now - self.scenario.retention)
        self.history.append((self.now, "log", role, len(log.values) - 1, value))
        for actor in self.actors:
            if actor is not None and actor.no_read <= self.now:
                self.wake(actor, self.rnd.uniform(0.001, 0.04) * self.scenario.latency)

    # Telling

    def schedule(self, lines: int = 60) -> str:
        """The last `lines` events, and every fault before them."""
        faulty = [each for each in self.history[:-lines] if each[1] == "fault"]
        return "\n".join(
            " ".join(
                [
                    f"{time:9.3f}",
                    *(what.decode(errors="replace") if isinstance(what, bytes) else str(what) for what in rest),
                ]
            )
            for time, *rest in [*faulty, *self.history[-lines:]]
        )


def run(name: str, seed: int, member_class: Any = real.Member, dispatcher_class: Any = Dispatcher) -> World:
    """One run of the scenario `name`. Raises `Failure`, with the schedule in its notes."""
    world = World(SCENARIOS[name], f"{name} {seed}", member_class, dispatcher_class)
    try:
        return world.run()
    except Failure as failure:
        failure.schedule = world.schedule()
        failure.args = (f"{failure} [python -m tests.simulation {name} {seed}]",)
        raise
