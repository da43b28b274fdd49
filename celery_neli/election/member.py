"""One member of an election: a lease for each role, fed from the journal and the group, and the changes that follow.

It is the whole protocol without threads and without Kafka: `step` makes one turn, on the thread of `Renewal` or in a
simulation. All methods but `state` belong to that thread. Kafka or a simulation provides the `Journal` and the `Group`.
"""

from __future__ import annotations

import logging
import random
import secrets
from collections.abc import Callable
from typing import Any, Protocol

from celery_neli import hooks
from celery_neli.config import Config
from celery_neli.election.lease import FOREVER, NEVER, Lease, name_of
from celery_neli.election.records import End, Entry, Journal, Lost, Record, Started, decode, encode
from celery_neli.election.role_state import LeaderEvent, Mirror, RoleState
from celery_neli.exceptions import RecordError, TopicError, UnknownVersion
from celery_neli.logs import LogLimit

WARN_EVERY = 60.0
ASK_END_EVERY = 1.0
STOOD_STILL = 1.0  # seconds between two steps from which the process stood still; a step waits for less


class Group(Protocol):
    """The consumer group, which induces (R2). Only the member's thread calls it."""

    @property
    def induced(self) -> frozenset[int]:
        """The roles (partitions) that the group has assigned to this member."""

    @property
    def is_member(self) -> bool:
        """True from the group's first assignment, which may be of nothing, until the membership is lost or given up."""

    def poll(self) -> None:
        """Serve the group's callbacks; never block."""

    def join(self) -> None:
        """Ask for membership; return at once. May be repeated."""

    def leave(self) -> None:
        """Give up membership; return at once. May be repeated."""

    def close(self) -> None:
        """Leave and end, within milliseconds."""


Connect = Callable[[Config, logging.Logger], tuple[Journal, Group]]
"""Make the clients of one member, with its logger; wait for no broker. Raises `ConfigurationError` for bad settings."""


class Member:
    """One process in one election."""

    def __init__(
        self,
        config: Config,
        journal: Journal,
        group: Group,
        *,
        clock: Callable[[], float],
        log: logging.Logger,
        rng: random.Random | None = None,
        nonce: Callable[[], str] = lambda: secrets.token_hex(6),
        mirror: Mirror = lambda index, grant: None,
        on_readback: Callable[[], None] = lambda: None,
    ) -> None:
        """Know nothing yet.

        `clock` counts the seconds of a suspended machine (R8). The calls of `log` must not block. `rng` and `nonce` are
        for repeatable runs. `mirror` is called with every new grant and the index of its role, and `on_readback` after
        a step in which `RoleState.update_payload` returned True.
        """
        self.config = config
        self.closing = False
        self.candidate = True
        self.progressed: float | None = None  # when the owner last made progress; the records say so, for successors
        self.outdated = False  # it read a newer version of the protocol: it neither leads nor claims any more (R9)
        self.topic_error: TopicError | None = None  # why the journal cannot be used
        self._last_topic_error: tuple[float, TopicError | None] = NEVER, None  # when it could not be used, and why
        self._journal, self._group, self._clock, self._log, self._nonce = journal, group, clock, log, nonce
        self._on_readback = on_readback
        self._rng = rng or random.SystemRandom()
        self._states = [
            RoleState(config, index, Lease(self._identity(), config, delay=self._delay), clock=clock, mirror=mirror)
            for index in range(len(config.roles))
        ]
        self._warnings = LogLimit(WARN_EVERY, clock=clock)
        self._stepped, self._gap = clock(), 0.0  # when the last step was made, and how long after the one before

    def _identity(self) -> str:
        return f"{self.config.name}/{self._nonce()}"

    def _delay(self) -> float:
        return self.config.takeover_delay * self._rng.uniform(0.5, 1.0)

    def state(self, role: str) -> RoleState:
        """Return what this member knows of one role. Any thread may read it; see there who may change it."""
        return self._states[self.config.roles.index(role)]

    def step(self, timeout: float) -> list[LeaderEvent]:
        """Wait up to `timeout` seconds for records, fold them, send what is due. Return what changed, in order."""
        try:
            events = self._journal.read(max(0.0, min(timeout, self.wake() - self._clock())))
            self.topic_error = None
        except TopicError as exc:
            events, self.topic_error, self._last_topic_error = [], exc, (self._clock(), exc)
        now = self._clock()  # after the poll returned (R1)
        self._gap, self._stepped = now - self._stepped, now
        for event in events:
            self._take(event, now)
        self._group.poll()
        changes: list[LeaderEvent] = []
        read_back = False
        # The heartbeats of all roles leave in one step: each would cost a turn of its own.
        due = any(state.lease.heartbeat_due(now) for state in self._states)
        early = self.config.heartbeat_interval / 2 if due else 0.0
        candidate = self.candidate and not self.closing and not self.outdated
        for state in self._states:
            lease = state.lease
            lease.induced = state.index in self._group.induced
            lease.candidate = candidate and now >= state.stand_back.until
            if lease.leading(now) and (lease.asked or not lease.candidate):
                state.resign(hooks.ASKED if lease.asked else hooks.CLOSED if self.closing else hooks.STALLED)
            waiting = lease.start is not None and not lease.caught_up and not lease.claiming(now)
            if waiting and now - state.asked_end >= ASK_END_EVERY:
                state.asked_end = now
                self._journal.ask_end(state.index)
            state.carry_idle(self.progressed, now)
            request = state.rebalance.request(lease, now, awake=self._gap < STOOD_STILL)
            if request is not None:
                self._send_request(state, request)
            read_back |= state.update_payload()  # before the grant: who sees that a term leads sees what it found
            record = lease.tick(self._clock(), early=early)
            state.publish()
            if record is not None:
                self._append(state, record)
            changes += state.changes(self._clock(), self._why)
        if read_back:
            try:
                self._on_readback()
            except Exception:  # noqa: BLE001 - logged, with its traceback; a lease must not end by it
                self._log.exception("on_readback failed name=%s", self.config.name)
        return changes

    def wake(self) -> float:
        """Return when the next step is due if nothing arrives, on the member's clock."""
        now = self._clock()
        return min((state.lease.wake(now) for state in self._states), default=FOREVER)

    def resign(self, role: str | None = None) -> None:
        """Stop leading `role`, or all: the barrier, then the release; stand back for one `heartbeat_timeout` (R4)."""
        for state in self._states:
            if role in (None, state.role):
                state.resign()

    def ask(self, role: str) -> None:
        """Ask another member that leads `role` to hand it to this one (R10), unless this one may not claim."""
        state = self.state(role)
        if state.lease.candidate and state.lease.led_by_another:
            self._send_request(state, state.lease.ask())

    def close(self) -> None:
        """Start to close: resign what is held, leave the group, claim no more. Go on with `step` until `closed`."""
        if not self.closing:
            self.closing = True
            self._group.leave()

    def abandon(self) -> list[LeaderEvent]:
        """Void all grants, with no release: this member makes no further step, and the others wait for the lease."""
        return [event for state in self._states for event in state.void()]

    @property
    def leading(self) -> bool:
        """True if new work may start in some role."""
        now = self._clock()
        return any(state.grant.leading(now) for state in self._states)

    @property
    def caught_up(self) -> bool:
        """True if the log of every role was read to its end, and who leads it is known."""
        return all(state.lease.known and state.lease.caught_up for state in self._states)

    @property
    def unready(self) -> str:
        """Why this member could not take a role over as fast as it should, "" if it could. Any thread may ask."""
        if self.topic_error is not None:
            return str(self.topic_error)
        if self.outdated:
            return "it has met a newer version of the protocol and takes no part any more"
        if not self.caught_up:
            return f"the leader topic {self.config.topic} was not read to its end yet"
        return "" if self._group.is_member else f"the consumer group {self.config.group} was not joined yet"

    @property
    def draining(self) -> bool:
        """True if a barrier is under way: then make steps often."""
        return any(state.announced is not None and state.draining for state in self._states)

    @property
    def expecting(self) -> bool:
        """True if a claim or an early heartbeat is under way, or a role assigned to this member may become vacant."""
        now = self._clock()
        return any(
            lease.claiming(now) or lease.awaited(now) or (lease.induced and lease.holder != lease.member)
            for lease in (state.lease for state in self._states)
        )

    @property
    def closed(self) -> bool:
        """True if nothing is held and nothing claimed: the member may end, and does not delay the next leader."""
        now = self._clock()
        return self.closing and not any(state.lease.held(now) or state.lease.claiming(now) for state in self._states)

    def _take(self, event: Started | Entry | End | Lost, now: float) -> None:
        state = self._states[event.role]
        lease = state.lease
        if isinstance(event, Entry):
            record = self._decode(state, event)
            if record is not None and event.key not in (None, state.role):
                self._warn(
                    f"{state.role}: key",
                    "roles differ partition=%d name=%s has role=%s, but name=%s has role=%s: neli_roles must be one "
                    "list everywhere; append to it, never rename or reorder",
                    state.index, self.config.name, state.role, name_of(record.member), event.key,
                )  # fmt: skip
            state.read(event.offset, record, now)
            if lease.lost is not None and (lease.known or lease.oldest):
                line = "journal differs role=%s: %s; starting over behind it"
                self._warn(f"{state.role}: lost", line, state.role, lease.lost)
                lease.restart(self._identity(), now)
            elif lease.lost is not None:
                self._look_back(state)
        elif isinstance(event, End):
            lease.end()
            if lease.caught_up and not (lease.known or lease.oldest):
                self._look_back(state)
        elif isinstance(event, Started):
            if not self.closing:
                self._group.join()  # not before the topic is there: a group that knows no topic assigns nothing
            if not self.outdated:
                lease.begin(event.offset, now, oldest=event.oldest)
        else:
            self._log.warning("journal lost role=%s reason=%s: reading it again", state.role, event.reason)
            lease.lose(self._identity())

    def _decode(self, state: RoleState, entry: Entry) -> Record | None:
        try:
            return decode(entry.value)
        except UnknownVersion as exc:
            state.lease.lose(self._identity())  # for good: no `begin` follows
            if not self.outdated:
                self.outdated = True
                self._log.error(
                    "protocol unknown role=%s offset=%d: %s. "
                    "This process neither leads nor claims any more; upgrade it and start it again",
                    state.role, entry.offset, exc,
                )  # fmt: skip
        except RecordError as exc:
            self._warn(f"{state.role}: {exc}", "record skipped role=%s offset=%d: %s", state.role, entry.offset, exc)
        return None

    def _warn(self, kind: str, msg: str, *args: Any) -> None:
        if self._warnings.allows(kind):
            self._log.warning(msg, *args)

    def _look_back(self, state: RoleState) -> None:
        """Read the role again from further back; its records up to the next `Started` are ignored."""
        state.lease.reread()
        self._journal.look_back(state.index)

    def _send_request(self, state: RoleState, request: Record) -> None:
        leader, term = name_of(state.lease.holder or ""), state.lease.term
        line = "asking for role=%s leader=%s term=%d name=%s group=%s"
        self._log.info(line, state.role, leader, term, self.config.name, self.config.group)
        self._append(state, request)

    def _append(self, state: RoleState, record: Record) -> None:
        """Send `record`, or drop one that no reader would accept: the lease then runs out, and another member leads."""
        try:
            value = encode(record)
        except RecordError as exc:
            line = "record not sent role=%s kind=%s name=%s: no member could read it (%s). This member cannot lead the "
            line += "role until that is fixed"
            self._warn(f"{state.role}: unreadable", line, state.role, record.kind, self.config.name, exc)
        else:
            self._journal.append(state.index, state.role, value)

    def _why(self, state: RoleState, now: float) -> str:
        """Say why the announced term is over, in an operator's words."""
        cause, reason = self._cause(state, now)
        state.tell_end(cause)
        return reason

    def _cause(self, state: RoleState, now: float) -> tuple[str, str]:
        lease = state.lease
        if lease.holder == lease.member and now >= lease.until:
            if self._gap > STOOD_STILL:
                return hooks.FROZEN, f"this process stood still for {self._gap:.1f} s"
            sent = lease.until - self.config.heartbeat_timeout
            at, error = self._last_topic_error
            if at >= sent:
                return hooks.EXPIRED, str(error).partition(": ")[0]
            return (
                hooks.EXPIRED,
                f"no heartbeat sent in the last {now - sent:.1f} s was read back: Kafka is away or slow",
            )
        if state.draining:
            return hooks.UNDRAINED, f"its work was not done within neli_drain_timeout, {self.config.drain_timeout:g} s"
        if lease.holder not in (None, lease.member):
            return hooks.DEPOSED, f"{name_of(lease.holder)} claimed the role"
        return hooks.LOG_LOST, "the log was lost, or it differs from the one that was read"
