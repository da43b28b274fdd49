"""One member of an election: a lease for each role, fed from the journal and the group, and what changed.

The member is the whole of the protocol without threads and without Kafka: `step` makes one turn. The curator turns it
on a thread of its own; the simulation turns thirty of them on fake clocks. Everything here is called from one thread,
but for `grant` and `last_payload`.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from celery_neli.config import Config
from celery_neli.election.lease import FOREVER, NEVER, NOTHING, Lease, Timing, name_of
from celery_neli.election.ports import End, Entry, Group, Journal, Lost, Started
from celery_neli.election.rebalance import Rebalance
from celery_neli.election.records import IDLE, IDLE_MOST, Record, decode, encode, sound
from celery_neli.election.role_state import Grant, LeaderAcquired, LeaderEvent, LeaderFenced, LeaderRevoked, Payload
from celery_neli.election.standback import StandBack
from celery_neli.exceptions import RecordError, TopicError, UnknownVersion
from celery_neli.logs import LogLimit

WARN_EVERY = 60.0
ASK_END_EVERY = 1.0
STOOD_STILL = 1.0
"""Seconds; a step waits for a fraction of that."""

Mirror = Callable[[int, Grant], None]


class Log(Protocol):
    """The part of `logging.Logger` that is used here; its calls must not block (see logs.py)."""

    def info(self, msg: str, *args: Any) -> None:
        """A transition."""

    def warning(self, msg: str, *args: Any) -> None:
        """Something that an operator may want to know of."""

    def error(self, msg: str, *args: Any) -> None:
        """Something that an operator must mend."""


class _Post:
    """One role's lease, and what was told of it."""

    def __init__(self, index: int, role: str, lease: Lease, rebalance: Rebalance, stand_back: StandBack) -> None:
        self.index, self.role, self.lease, self.rebalance, self.stand_back = index, role, lease, rebalance, stand_back
        self.grant = Grant()
        self.newest, self.newest_data = Payload(), lease.data  # ... and what its data were made of
        self.told: int | None = None  # the term that was told as acquired
        self.told_at = NEVER
        self.draining = False  # ... and then as revoked
        self.drained = False
        self.asked_end = NEVER
        self.heard: float | None = None  # when the last effective record was read, less what its author was idle
        self.resigned = FOREVER  # since when it starts no new work
        self.led_until: float | None = None  # ... the last before the present term


class Member:
    """One process in one election."""

    def __init__(
        self,
        config: Config,
        journal: Journal,
        group: Group,
        *,
        clock: Callable[[], float],
        log: Log,
        rng: random.Random | None = None,
        nonce: Callable[[], str] = lambda: secrets.token_hex(6),
        mirror: Mirror | None = None,
        on_readback: Callable[[], None] | None = None,
    ) -> None:
        """`clock` gives seconds that count a suspended machine (R8); `rng` and `nonce` are for repeatable runs.
        `mirror` is told every grant, by index of its role, before a release leaves: for who cannot ask this member.
        `on_readback` is called at the end of a step in which another payload than before was read back from an own
        record.
        """
        self.config = config
        self.closing = False
        self.candidate = True
        self.progressed: float | None = None  # when the owner last made progress: successors are told
        self.aside = False  # a newer version of the protocol was read: neither lead nor claim (R9)
        self.trouble: TopicError | None = None  # why the journal cannot be used
        self._troubled: tuple[float, TopicError | None] = NEVER, None  # when it could not be used last, and why
        self._journal, self._group, self._clock, self._log, self._nonce = journal, group, clock, log, nonce
        self._mirror, self._on_readback = mirror, on_readback
        draw = rng or random.SystemRandom()
        self._timing = Timing(
            heartbeat_interval=config.heartbeat_interval,
            heartbeat_timeout=config.heartbeat_timeout,
            takeover_delay=config.takeover_delay,
            drain_timeout=config.drain_timeout,
        )
        self._posts = [
            _Post(
                index,
                role,
                Lease(self._identity(), self._timing, delay=lambda: config.takeover_delay * draw.uniform(0.5, 1.0)),
                Rebalance(config.rebalance_after if len(config.roles) > 1 else FOREVER),
                StandBack(2 * config.stall_timeout),
            )
            for index, role in enumerate(config.roles)
        ]
        self._warnings = LogLimit(WARN_EVERY, clock=clock)
        self._turned, self._gap = clock(), 0.0  # when the last step was made, and how long after the one before

    def _identity(self) -> str:
        return f"{self.config.name}/{self._nonce()}"

    # From any thread

    def grant(self, role: str) -> Grant:
        """What this member may do as `role`; to be asked with a fresh time of the member's clock. Takes no lock."""
        return self._post(role).grant

    def last_payload(self, role: str) -> Payload:
        """What the newest effective record of `role` carried, as of the last step. Takes no lock."""
        return self._post(role).newest

    def leader(self, role: str) -> tuple[str, int] | None:
        """Name and term of the member that holds `role`, as far as this member knows; None: there is none, or its lease
        has run out, or this member does not know.
        """
        lease = self._post(role).lease
        holder, term = lease.holder, lease.term
        known = lease.known and lease.may_be_held(self._clock())
        return (name_of(holder), term) if known and holder is not None else None

    def hears(self, role: str) -> bool:
        """Return True if a record of the holder of `role` was read after the end of the log: it is there now."""
        return self._post(role).lease.live

    def led_until(self, role: str) -> float | None:
        """Until when (member's clock) the owner of the last leader before the present term of `role` made progress, as
        far as is known: the reading of its last record, less the idleness that this tells. None: no record was read.
        """
        return self._post(role).led_until

    def _post(self, role: str) -> _Post:
        return self._posts[self.config.roles.index(role)]

    # From the member's thread

    def step(self, timeout: float) -> list[LeaderEvent]:
        """One turn: wait up to `timeout` seconds for something to read, fold it, and send what is due. What changed is
        returned in order.
        """
        try:
            events = self._journal.read(max(0.0, min(timeout, self.wake() - self._clock())))
            self.trouble = None
        except TopicError as exc:
            events, self.trouble = [], exc
        now = self._clock()  # after the poll returned (R1)
        if self.trouble is not None:
            self._troubled = now, self.trouble
        self._gap, self._turned = now - self._turned, now
        for event in events:
            self._take(event, now)
        self._group.poll()
        induced = self._group.induced
        changes: list[LeaderEvent] = []
        heard = False
        # The beats of all roles leave in one step: each would cost a turn of its own.
        early = self.config.heartbeat_interval / 2 if any(post.lease.beating(now) for post in self._posts) else 0.0
        for post in self._posts:
            post.lease.induced = post.index in induced
            post.lease.candidate = self.candidate and not self.closing and not self.aside
            post.lease.candidate &= now >= post.stand_back.until
            self._yield(post, now)
            self._tell_idle(post, now)
            self._ask(post, now)
            heard |= self._tell(post)  # before the grant: who sees that a term leads sees what it found
            record = post.lease.tick(self._clock(), early=early)
            self._publish(post)
            if record is not None:
                self._append(post, record)
            changes += self._changes(post, self._clock())
        if heard and self._on_readback is not None:
            self._on_readback()
        return changes

    def wake(self) -> float:
        """When the next step is due if nothing arrives, on the member's clock."""
        now = self._clock()
        return min((post.lease.wake(now) for post in self._posts), default=FOREVER)

    def resign(self, role: str | None = None) -> None:
        """Stop leading `role`, or all: the barrier, then the release; stand back for one `heartbeat_timeout` (R4)."""
        now = self._clock()
        for post in self._posts:
            if role in (None, post.role):
                self._give_up(post, now)

    def stand_back(self, role: str) -> None:
        """Resign `role` if this member leads it, and do not claim it for a while, which grows with each call: its owner
        cannot serve it.
        """
        post, now = self._post(role), self._clock()
        leads = post.told is not None
        post.stand_back.failed(now, term=post.told, led=now - post.told_at if leads else 0.0)
        self._give_up(post, now)

    def drained(self, role: str, term: int | None = None) -> None:
        """The barrier of the revoked `role` returned; `term`, if given, is the one that it was run for: a late barrier
        frees no later term.
        """
        post = self._post(role)
        if post.draining and post.told is not None and term in (None, post.told):
            post.drained = True
            post.lease.drained()

    def set_payload(self, role: str, data: Mapping[str, Any], *, term: int) -> None:
        """Put `data` into every further record of this `term`, from the next beat on. Without effect unless `term` is
        held. Raises ValueError for data that no record can carry.
        """
        lease, data = self._post(role).lease, sound(data)
        if lease.term == term and lease.held(self._clock()):
            lease.data_out = data

    def beat_now(self, role: str, *, term: int) -> None:
        """Send the next beat of `role` with the next step, and be `expecting` until it was read back. Without effect
        unless `term` is held.
        """
        lease = self._post(role).lease
        if lease.term == term and lease.held(self._clock()):
            lease.beat_now()

    def ask(self, role: str) -> None:
        """Ask whoever leads `role` to hand it to this member, as R10 does, but at once. Without effect if nobody else
        leads it, as far as is known, or if this member may not claim.
        """
        post = self._post(role)
        if post.lease.candidate and post.lease.led_by_another:
            self._send_request(post, post.lease.ask())

    def close(self) -> None:
        """Begin to close: resign what is held, leave the group, claim no more. Go on with `step` until `closed`."""
        if not self.closing:
            self.closing = True
            self._group.leave()

    def abandon(self) -> list[LeaderEvent]:
        """This member makes no further step: void its grants. Without a release, the others wait until the lease has
        run out.
        """
        fenced: list[LeaderEvent] = []
        for post in self._posts:
            self._grant(post, Grant(post.grant.term))
            post.newest = Payload()
            if post.told is not None:
                fenced.append(LeaderFenced(post.role, post.told))
                post.told = None
        return fenced

    @property
    def leading(self) -> bool:
        """New work may start in some role."""
        now = self._clock()
        return any(post.grant.leading(now) for post in self._posts)

    @property
    def caught_up(self) -> bool:
        """The log of every role was read to its end, and who leads it is known."""
        return all(post.lease.known and post.lease.caught_up for post in self._posts)

    @property
    def draining(self) -> bool:
        """A barrier is under way: whoever turns this member should turn it often."""
        return any(post.told is not None and post.draining for post in self._posts)

    @property
    def expecting(self) -> bool:
        """What comes next is to be read at once: a claim or a hurried beat is under way, or a role that the group has
        assigned to this member may become vacant.
        """
        now = self._clock()
        leases = [post.lease for post in self._posts]
        return any(
            lease.claiming(now) or lease.awaited(now) or (lease.induced and lease.holder != lease.member)
            for lease in leases
        )

    @property
    def closed(self) -> bool:
        """Nothing is held, nothing is claimed: the member may go without harm to the next leader's start."""
        now = self._clock()
        return self.closing and not any(post.lease.held(now) or post.lease.claiming(now) for post in self._posts)

    # Turning

    def _take(self, event: Started | Entry | End | Lost, now: float) -> None:
        post = self._posts[event.role]
        lease = post.lease
        if isinstance(event, Entry):
            before, term = lease.last, lease.term
            record = self._decode(post, event)
            if record is not None and event.key not in (None, post.role):
                self._differs(post, record, event.key)
            lease.read(event.offset, record, now)
            if lease.term != term:
                post.led_until = post.heard
            # A claim is no sign of progress: its author may die before it does anything.
            if record is not None and lease.last != before and (post.heard is None or record.kind != "claim"):
                post.heard = now - _idle(record.data)
            if lease.lost is not None:
                self._diverged(post, now)
        elif isinstance(event, End):
            lease.end()
            if lease.caught_up and not (lease.known or lease.oldest):
                self._look_back(post)
        elif isinstance(event, Started):
            if not self.closing:
                self._group.join()  # not before the topic is there: a group that knows no topic assigns nothing
            if not self.aside:
                lease.begin(event.offset, now, oldest=event.oldest)
        else:
            self._log.warning("journal lost role=%s reason=%s: reading it again", post.role, event.reason)
            lease.lose(self._identity())

    def _decode(self, post: _Post, entry: Entry) -> Record | None:
        try:
            return decode(entry.value)
        except UnknownVersion as exc:
            post.lease.lose(self._identity())  # for good: no `begin` follows
            if not self.aside:
                self.aside = True
                self._log.error(
                    "protocol unknown role=%s offset=%d: %s. "
                    "This process neither leads nor claims any more; upgrade it and start it again",
                    post.role, entry.offset, exc,
                )  # fmt: skip
        except RecordError as exc:
            self._warn(f"{post.role}: {exc}", "record skipped role=%s offset=%d: %s", post.role, entry.offset, exc)
        return None

    def _differs(self, post: _Post, record: Record, key: str | None) -> None:
        self._warn(
            f"{post.role}: key",
            "roles differ partition=%d name=%s has role=%s, but name=%s has role=%s: neli_roles must be one list "
            "everywhere; append to it, never rename or reorder",
            post.index, self.config.name, post.role, name_of(record.member), key,
        )  # fmt: skip

    def _warn(self, kind: str, msg: str, *args: Any) -> None:
        """Each kind of warning once a minute at most."""
        if self._warnings.allows(kind):
            self._log.warning(msg, *args)

    def _diverged(self, post: _Post, now: float) -> None:
        lease = post.lease
        if lease.known or lease.oldest:
            self._warn(
                f"{post.role}: lost", "journal differs role=%s: %s; starting over behind it", post.role, lease.lost
            )
            lease.begin_anew(self._identity(), now)
        else:
            self._look_back(post)

    def _look_back(self, post: _Post) -> None:
        """Read the role again from further back. Records of it that the batch still holds come before the next
        `Started`, and are ignored.
        """
        post.lease.reread()
        self._journal.look_back(post.index)

    def _yield(self, post: _Post, now: float) -> None:
        """Resign where this member should not lead, or was asked not to; keep asking for the end of the log where it is
        due.
        """
        lease = post.lease
        asked = lease.asked
        if lease.leading(now) and (asked or not lease.candidate):
            if asked:
                self._resign(post, now)
            else:
                self._give_up(post, now)
        waiting = lease.start is not None and not lease.caught_up
        if waiting and not lease.claiming(now) and now - post.asked_end >= ASK_END_EVERY:
            post.asked_end = now
            self._journal.ask_end(post.index)

    def _ask(self, post: _Post, now: float) -> None:
        """Ask for the role if the group wants it here and another has it (R10)."""
        lease = post.lease
        record = post.rebalance.turn(lease, now, awake=self._gap < STOOD_STILL)
        if record is not None:
            self._send_request(post, record)

    def _send_request(self, post: _Post, request: Record) -> None:
        lease = post.lease
        self._log.info(
            "asking for role=%s leader=%s term=%d name=%s group=%s",
            post.role, name_of(lease.holder or ""), lease.term, self.config.name, self.config.group,
        )  # fmt: skip
        self._append(post, request)

    def _append(self, post: _Post, record: Record) -> None:
        """Send `record`. Drop one that no reader would accept: the lease then runs out, and another member leads."""
        try:
            value = encode(record)
        except RecordError as exc:
            self._warn(
                f"{post.role}: unreadable",
                "record not sent role=%s kind=%s name=%s: no member could read it (%s). This member cannot lead the "
                "role until that is fixed", post.role, record.kind, self.config.name, exc,
            )  # fmt: skip
            return
        self._journal.append(post.index, post.role, value)

    def _tell_idle(self, post: _Post, now: float) -> None:
        """Heartbeats go on while an owner hangs or drains: what falls due meanwhile is the successor's to do.

        Until something is offered, the records of a term repeat what its claim repeated of the term before.
        """
        lease = post.lease
        if not lease.resigning:
            post.resigned = FOREVER
        if self.progressed is not None and lease.held(now):
            idle = max(0.0, now - min(self.progressed, post.resigned))
            carried = lease.data if lease.data_out is None else lease.data_out
            lease.data_out = {**(carried or {}), IDLE: round(min(idle, IDLE_MOST), 3)}

    def _give_up(self, post: _Post, now: float) -> None:
        """Resign without having been asked to by a request."""
        if post.lease.leading(now):
            post.rebalance.gave_up(now - post.told_at)
        self._resign(post, now)

    def _resign(self, post: _Post, now: float) -> None:
        if post.lease.leading(now):
            post.resigned = now
        post.lease.resign(now)
        if post.told is None:
            post.lease.drained()  # nobody was told of this term, so nobody has work in flight
        self._publish(post)  # the next step may wait for something to read first

    def _tell(self, post: _Post) -> bool:
        """Let other threads see what was read; whether it was other data than before, of one's own."""
        lease, before = post.lease, post.newest
        term = None if lease.term == NOTHING else lease.term
        own = lease.data_own and lease.held(NEVER)
        data = before.data
        if lease.data is not post.newest_data:
            post.newest_data = lease.data
            data = before.data if lease.data == before.data else lease.data
        told = Payload(term, data, own, lease.known)
        if told == before:
            return False
        post.newest = told
        return own

    def _publish(self, post: _Post) -> None:
        """Let other threads see what the lease allows; before a release leaves, never after."""
        lease = post.lease
        if lease.held(NEVER):
            self._grant(post, Grant(lease.term, lease.until, lease.resigning))
        elif post.grant.until != NEVER:
            self._grant(post, Grant(post.grant.term))

    def _grant(self, post: _Post, grant: Grant) -> None:
        if grant != post.grant:
            post.grant = grant
            if self._mirror is not None:
                self._mirror(post.index, grant)

    def _why(self, post: _Post, now: float) -> str:
        """Why the term that was told is over, in an operator's words."""
        lease = post.lease
        if lease.holder == lease.member and now >= lease.until:
            if self._gap > STOOD_STILL:
                return f"this process stood still for {self._gap:.1f} s"
            sent = lease.until - self.config.heartbeat_timeout
            troubled, trouble = self._troubled
            if troubled >= sent:
                return str(trouble).partition(": ")[0]
            return f"no heartbeat sent in the last {now - sent:.1f} s was read back: Kafka is away or slow"
        if post.draining:
            return f"its work was not done within neli_drain_timeout, {self.config.drain_timeout:g} s"
        if lease.holder not in (None, lease.member):
            return f"{name_of(lease.holder)} claimed the role"
        return "the log was lost, or it differs from the one that was read"

    def _changes(self, post: _Post, now: float) -> Iterable[LeaderEvent]:
        grant = post.grant
        if post.told is not None:
            held = grant.held(now) and grant.term == post.told
            if not held:
                told, post.told = post.told, None
                post.lease.drained()  # should late beats bring the lease back: nobody has work in flight any more
                if not post.drained:
                    yield LeaderFenced(post.role, told, self._why(post, now))
            elif grant.resigning and not post.draining:
                post.draining = True
                yield LeaderRevoked(post.role, post.told)
        if post.told is None and grant.leading(now) and grant.term is not None:
            post.told, post.told_at, post.draining, post.drained = grant.term, now, False, False
            yield LeaderAcquired(post.role, grant.term)


def _idle(data: Mapping[str, Any] | None) -> float:
    """What a record says of its author's idleness (seconds); 0 if it says nothing, or nonsense."""
    value = None if data is None else data.get(IDLE)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= IDLE_MOST:
        return 0.0
    return float(value)
