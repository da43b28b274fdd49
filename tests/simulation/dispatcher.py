"""A leader's scheduler: real entries and real claims, on a wall clock of its own, with a task broker that fails at
times.

What decides about a slot is what celery-neli runs (`beat.replicated.claims`, `schedule.due` and
`schedule.slots`); what is between them here is what celery_neli's scheduler does with threads.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from celery_neli.beat.replicated.claims import Claims, Watermarks
from celery_neli.schedule.due import advance, look, pass_over
from celery_neli.schedule.policies import Misfire
from celery_neli.schedule.slots import next_slot
from tests.simulation.faults import Crash
from tests.simulation.judge import Failure
from tests.simulation.schedule import BORN, IMPORTED, State, imported_entry, new_entries, task_id

if TYPE_CHECKING:
    from tests.simulation.actor import Actor
    from tests.simulation.world import World

RULE = Misfire(policy="fire_all", most=1000)


class Opening:
    """An entry is open, from a failed publish until it has caught up. What confirms one opening confirms no other."""

    def __init__(self) -> None:
        self.confirmed = False


class Dispatcher:
    """One process's part in the slots of one role; acts only while the member leads."""

    def __init__(self, world: World, actor: Actor, role: int) -> None:
        self.world, self.actor, self.role = world, actor, role
        self.name = world.roles[role]
        self.term: int | None = None
        self.claims: Any = None
        self.read_at = 0.0  # when the topic was read to its end
        self.entries: dict[str, Any] = {}
        self.due: dict[str, float] = {}  # the earliest slot of each entry that is not settled
        self.not_before: dict[str, float] = {}  # a publish that failed is tried again
        self.open: dict[str, Opening] = {}
        self.perhaps: dict[str, float] = {}  # slots that may have been published, though they failed
        self.unwritten: set[str] = set()  # entries whose last state was not confirmed
        self.unled: dict[str, float] = {}  # entries that were imported, and when, of which no leader wrote a state

    def wall(self) -> float:
        """This machine's wall clock (Unix)."""
        clock = self.actor.local(self.world.now) - self.actor.origin
        return BORN + clock + self.world.slots.skews[self.actor.index]

    def turn(self) -> None:
        """Claim ahead, publish what is due and claimed. Raises `Crash`."""
        grant = self.actor.grant(self.role)
        if not grant.leading(self.actor.local(self.world.now)) or grant.term is None:
            return
        told = self.actor.member.state(self.name).payload
        if told.term != grant.term:
            raise Failure("slot", f"{self.actor.name} leads in term {grant.term}, but is told of {told.term}")
        if self.term != grant.term:
            self._begin(grant.term, told)
        now = self.wall()
        if not self.entries and self.world.now >= self.read_at:
            self._read()
        if self.entries and IMPORTED not in self.entries:
            self._import()
        self._offer(self.claims.turn(now, self._wanted(now), self._unsettled(), told))
        for name in sorted(self.due, key=self.due.__getitem__):
            while self.due[name] <= now and self.not_before.get(name, 0.0) <= now and self._serve(name, now):
                pass
        self._offer(self.claims.turn(now, self._wanted(now), self._unsettled(), told))
        upcoming = self._next()
        if upcoming is not None:
            wants = upcoming if self.claims.covers(upcoming) else self.claims.wake(upcoming)
            self.world.wake(self.actor, max(wants - now, 0.005))

    def _next(self) -> float | None:
        return min((max(slot, self.not_before.get(name, 0.0)) for name, slot in self.due.items()), default=None)

    def _wanted(self, now: float) -> float | None:
        """What to claim: an imported entry's old slots need a claim of the present."""
        first = self._next()
        return max(first, now) if first is not None and self.unled else first

    def _unsettled(self) -> float | None:
        told = {name for name, opening in self.open.items() if opening.confirmed}
        return min((slot for name, slot in self.due.items() if name not in told), default=None)

    def _offer(self, offer: Any) -> None:
        if offer is not None:
            self.actor.member.state(self.name).set_payload(self.term, offer.marks.as_data(), now=offer.hurry)
            if offer.hurry:
                self.world.wake(self.actor, 0.002)

    # A term

    def _begin(self, term: int, told: Any) -> None:
        """Start from what the records of the election tell."""
        now = self.wall()
        self.term = term
        marks = Watermarks.of(told.data, now=now)
        self.claims = Claims(term=term, interval=self.actor.config.heartbeat_interval, inherited=marks, now=now)
        self.entries, self.due, self.not_before, self.open, self.perhaps, self.unwritten = {}, {}, {}, {}, {}, set()
        self.unled = {}
        self.read_at = self.world.now + self.world.slots.rnd.uniform(0, 1)
        self.world.wake(self.actor, self.read_at - self.world.now)
        self.world.slots.begun(self.role, term, marks)

    def _read(self) -> None:
        """... and from what the topic tells."""
        for name, entry in new_entries().items():
            self._take(name, entry, State(last=BORN, epoch=-1, open=False))
        self._import()
        self.claims.resolve()
        self.world.slots.opened(self.role, self.term, set(self.open))

    def _import(self) -> None:
        """Take the imported entry, if it has come. Its first state is of no leader."""
        at = self.world.slots.imported
        if at is None or self.world.now < at - BORN:
            return
        entry = imported_entry(at)
        if IMPORTED not in self.world.slots.topics[self.role].states:
            self.unled[IMPORTED] = at
        self._take(IMPORTED, entry, State(last=entry.last_run_at.timestamp(), epoch=-1, open=True))

    def _take(self, name: str, entry: Any, first: State) -> None:
        """Have an entry, as its state tells, which is `first` if there is none."""
        state = self.world.slots.topics[self.role].states.get(name, first)
        entry.last_run_at = _utc(state.last)
        floor = state.last if state.open else max(state.last, self.claims.inherited.settled)
        while (slot := next_slot(entry.schedule, entry.last_run_at)).timestamp() <= floor:
            entry.last_run_at = slot
        self.entries[name], self.due[name] = entry, slot.timestamp()
        if state.open:
            self.open[name] = Opening()

    def hand_back(self) -> None:
        """The barrier is done: write what is not written, then release what was claimed and not published."""
        if self.term is None or self.term != self.actor.grant(self.role).term:
            return
        if self.unwritten and self.world.slots.rnd.random() < 0.3:
            return  # the topic does not answer in time: the marks stay
        states = {name: self._state(name) for name in self.unwritten}
        self.world.slots.topics[self.role].flush(self.actor.name, states)
        marks = self.claims.closing(self.wall(), self._unsettled())
        self.world.slots.handed_back(self.role, self.term, marks)
        perhaps, found = max(self.perhaps.values(), default=0.0), self.claims.inherited.doubtful
        marks = Watermarks(max(marks.claimed, perhaps), marks.settled, attempted=max(perhaps, found))
        self.actor.member.state(self.name).set_payload(self.term, marks.as_data())

    # A slot

    def _serve(self, name: str, now: float) -> bool:
        """Publish the slot that is due, or leave it out; whether it is settled."""
        slots, entry, slot = self.world.slots, self.entries[name], self.due[name]
        defined = self.unled.get(name, 0.0)
        if defined > now or not self.claims.covers(max(slot, defined)):
            return False
        found = look(entry, _utc(now), RULE)
        if found is None or found.slot is None or found.slot.timestamp() != slot or found.left_out:
            raise Failure("slot", f"{name} is due at {slot}, but a look at it finds {found}")
        if slots.skip and slot <= self.claims.inherited.doubtful and defined <= self.claims.inherited.claimed:
            slots.left_out(self.role, name, slot, self.term)
            self.entries[name] = pass_over(entry, found.slot, _utc(now))
        elif not self.world.calm and slots.rnd.random() < self.world.scenario.publish_fails:
            if slots.rnd.random() < 0.5:  # on the wire
                self.perhaps[name] = slot
                if slots.rnd.random() < 0.5:
                    slots.published(
                        self.role, name, slot, task_id(self.role, name, found.slot), self.term, now, told=False
                    )
            self.not_before[name] = now + slots.rnd.uniform(0.1, 3)
            self.open.setdefault(name, Opening())
            self._write(name)
            return False
        else:
            slots.published(self.role, name, slot, task_id(self.role, name, found.slot), self.term, now)
            self.perhaps.pop(name, None)
            self.entries[name] = advance(entry, found.slot, _utc(now))
            self._crash()
        self.due[name] = next_slot(entry.schedule, self.entries[name].last_run_at).timestamp()
        if self.due[name] > self.claims.settled:
            self.open.pop(name, None)
        self._write(name)
        self._crash()
        return True

    def _crash(self) -> None:
        scenario = self.world.scenario
        if not self.world.calm and scenario.restart and self.world.slots.rnd.random() < scenario.crash:
            raise Crash

    def _state(self, name: str) -> State:
        last = self.entries[name].last_run_at.timestamp()
        return State(last=last, epoch=-1 if self.term is None else self.term, open=name in self.open)

    def _write(self, name: str) -> None:
        state, opening = self._state(name), self.open.get(name)
        self.unwritten.add(name)

        def confirmed() -> None:
            if self.term == state.epoch and self._state(name) == state:
                self.unwritten.discard(name)
            if opening is not None:
                opening.confirmed = True

        self.world.slots.topics[self.role].write(self.actor.name, name, state, confirmed)


def _utc(time: float) -> datetime:
    return datetime.fromtimestamp(time, timezone.utc)
