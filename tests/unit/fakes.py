"""Fakes for unit tests: a leadership moved by hand, and a task broker that can be watched and held up."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery_neli import signals
from celery_neli.config import Config
from celery_neli.election.role_state import Payload
from celery_neli.schedule_topic.codec import ENTRY, STATE, State, decode_state
from celery_neli.schedule_topic.latest import Latest
from celery_neli.schedule_topic.pending import fold

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from celery_neli.exceptions import RecordError
    from celery_neli.schedule_topic.codec import Kind
    from celery_neli.schedule_topic.pending import Entries


@dataclass(frozen=True)
class FakeStanding:
    """The lease at one moment."""

    term: int | None
    leading: bool
    held: bool
    until: float = 0.0


class FakeRole:
    """The handle of one role. The answers follow from `standing`, which each kind of role has of its own."""

    def __init__(self, name: str) -> None:
        self.name = name

    def standing(self) -> Any:
        raise NotImplementedError

    @property
    def term(self) -> int | None:
        term: int | None = self.standing().term
        return term

    def leading_term(self) -> int | None:
        standing = self.standing()
        return standing.term if standing.leading else None

    def may_start(self, term: int | None = None) -> bool:
        standing = self.standing()
        return standing.leading and term in (None, standing.term)

    def may_finish(self, term: int | None = None) -> bool:
        standing = self.standing()
        return standing.held and term in (None, standing.term)


class HandRole(FakeRole):
    """A role of a `FakeLeadership`."""

    def __init__(self, owner: FakeLeadership, name: str) -> None:
        super().__init__(name)
        self._owner = owner

    def standing(self) -> FakeStanding:
        return self._owner.look()

    @property
    def last_payload(self) -> Payload:
        owner = self._owner
        return Payload(term=owner.state.term, data=owner.data, own=owner.own, known=True)

    def set_payload(self, term: int, data: Mapping[str, Any], *, now: bool = False) -> None:
        owner = self._owner
        if term != owner.state.term or not owner.state.held:
            return
        owner.offers.append(data)
        owner.hurried += now
        if owner.confirms:
            owner.confirm()

    def predecessor_active_until(self) -> datetime | None:
        return self._owner.predecessor_active

    def ask(self) -> None:
        self._owner.asked.append(self.name)

    def resign(self, *, back_off: bool = False) -> None:
        self._owner.resigned.append(self.name)


class FakeLeadership:
    """A leadership that changes when the test says so, and sends the real signals from another thread."""

    election = "beat"
    roles = ("leader",)
    live = True
    working: Callable[[], bool] | None = None
    excused: Callable[[], bool] | None = None
    turned_at = renewer_turned_at = 0.0

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or Config(group="test.beat", kafka="127.0.0.1:1", name="me")
        #: Called when what was offered was read back.
        self.on_readback: Callable[[], None] | None = None
        #: Whether the owner can do a leader's work.
        self.fit: Callable[[], bool] | None = None
        #: What the records carry, and whether the newest is this process's own.
        self.data: Mapping[str, Any] | None = None
        self.own = False
        #: Whether what is offered is read back at once; else `confirm` does it.
        self.confirms = True
        self.offers: list[Mapping[str, Any]] = []
        self.hurried = 0
        self.asked: list[str] = []
        self.resigned: list[str] = []
        self.started = 0
        self.stopped = 0
        self.turns = 0
        self.predecessor_active: datetime | None = None
        self.state = FakeStanding(None, False, False)
        self._blinks = 0

    def start(self) -> None:
        self.started += 1

    def role(self, name: str = "leader") -> HandRole:
        return HandRole(self, name)

    def confirm(self) -> None:
        """The last offer is read back."""
        if self.offers and self.state.held:
            self.data, self.own = self.offers[-1], True
            if self.on_readback is not None:
                self.on_readback()

    def look(self) -> FakeStanding:
        """Return the standing of this moment, which `blink` changes for one look."""
        if self._blinks:
            self._blinks -= 1
            return FakeStanding(self.state.term, False, False)
        return self.state

    def leading(self, role: str | None = None) -> bool:
        return self.state.leading

    def missing(self) -> str:
        return ""

    def held(self) -> bool:
        return self.state.held

    def progress(self) -> None:
        self.turns += 1

    def stop(self) -> None:
        self.stopped += 1
        self.lapse()

    def grant(self, term: int) -> threading.Thread:
        """Lead in `term`."""
        self.own = self.own and term == self.state.term
        self.state = FakeStanding(term, True, True)
        return self._send(signals.leadership_acquired)

    def revoke(self) -> threading.Thread:
        """Hand over: held until the receivers return, which the returned thread waits for."""
        self.state = FakeStanding(self.state.term, False, True)
        return self._send(signals.leadership_revoked, then=self.lapse)

    def fence(self) -> threading.Thread:
        """Lose the lease."""
        self.lapse()
        return self._send(signals.leadership_fenced)

    def drain(self) -> None:
        """Begin a handover that no signal tells of."""
        self.state = FakeStanding(self.state.term, False, True)

    def blink(self) -> None:
        """Lose the lease for the next look at it only, as when late heartbeats are read back."""
        self._blinks = 1

    def lapse(self) -> None:
        """Lose the lease with no signal at all."""
        self.state = FakeStanding(self.state.term, False, False)

    def _send(self, signal: Any, then: Any = None) -> threading.Thread:
        term = self.state.term

        def deliver() -> None:
            signal.send(sender=self, role="leader", term=term, election=self.election)
            if then is not None:
                then()

        thread = threading.Thread(target=deliver, name="fake leadership", daemon=True)
        thread.start()
        return thread


class FakeTopic:
    """A schedule topic in memory, which several beats may share by its `log`: what one writes, the others drain."""

    def __init__(self, log: list[Any] | None = None) -> None:
        self.log: list[Any] = [] if log is None else log  # (kind, name, value, writer)
        self.generation = self.drained = self.whole = 0
        #: Whether the present generation began because records were lost.
        self.torn = True
        #: Whether it began because this process did not hear of the topic for a while.
        self.away = False
        #: Whether writes arrive and reads reach the end.
        self.up = True
        self.writes = 0
        self.refused: list[str] = []
        self.running = False
        self._next = 0
        self._late: dict[tuple[Kind, str], bytes | None] = {}

    def unready(self) -> str:
        return ""

    def start(self) -> None:
        self.running = True

    def stop(self) -> None:
        self.running = False

    def drain(self) -> Entries:
        new, self._next = self.log[self._next :], len(self.log)
        self.drained = self.whole = self.generation
        found: Entries = {}
        for kind, name, value, writer in new:
            if kind == ENTRY:
                fold(found, (kind, name), value)
            elif writer is not self:
                found[kind, name] = value
        return found

    def fit(self) -> bool:
        return True

    def read_to_end(self, timeout: float) -> bool:
        return self.up

    def write(self, kind: Kind, name: str, value: bytes | None) -> None:
        self.writes += 1
        if self.up:
            self.log.append((kind, name, value, self))
        else:
            self._late[kind, name] = value

    def saved(self, kind: Kind, name: str) -> bool:
        return (kind, name) not in self._late

    @property
    def unsaved(self) -> int:
        return len(self._late)

    def flush(self, timeout: float) -> bool:
        return not self._late

    def forget_unsaved(self) -> None:
        self._late.clear()

    def forget(self) -> None:
        """The topic was made anew: it is read from its beginning."""
        self._next = 0
        self.generation += 1

    def resend(self) -> None:
        """What was written while it was not `up` arrives."""
        late, self._late = self._late, {}
        for (kind, name), value in late.items():
            self.log.append((kind, name, value, self))

    def refuse(self, kind: Kind, name: str, error: RecordError) -> None:
        self.refused.append(name)

    def put(self, kind: Kind, name: str, value: bytes | None) -> None:
        """Somebody else writes."""
        self.log.append((kind, name, value, None))

    def values(self) -> dict[tuple[Kind, str], bytes]:
        """What is in it, the latest of each key."""
        latest = Latest()
        found = {(kind, name): value for kind, name, value, _ in self.log if kind != ENTRY}
        for kind, name, value, _ in self.log:
            if kind == ENTRY:
                latest.add((kind, name), value)
        return {**latest.values(), **{key: value for key, value in found.items() if value is not None}}

    def states(self) -> dict[str, State]:
        """The entries' states."""
        return {name: decode_state(value) for (kind, name), value in self.values().items() if kind == STATE}


class FakeBrokers:
    """Answers the question whether there are brokers at once, and counts how often it was asked."""

    def __init__(self) -> None:
        self.answers: bool = True
        self.asked = 0
        self._pending = False

    def ask(self) -> None:
        self.asked += 1
        self._pending = True

    def answer(self) -> bool | None:
        pending, self._pending = self._pending, False
        return self.answers if pending else None
