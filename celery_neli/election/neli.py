"""Neli: the curator of one member, as goNELI knows it, usable without Celery.

It turns the member on a thread of its own, which renews the lease and waits for nothing but Kafka, and delivers what
changed to the barrier on the thread of whoever pulses.

    with Neli(Config(group="billing", kafka="localhost:9092"), barrier=print) as neli:
        while True:
            if neli.pulse(timeout=1.0):
                do_a_little_work()
"""

from __future__ import annotations

import enum
import logging
import os
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from types import TracebackType
from typing import Any

from celery_neli.config import Config
from celery_neli.election.clock import boottime
from celery_neli.election.delivery import Delivery
from celery_neli.election.lease import NEVER
from celery_neli.election.member import Member
from celery_neli.election.ports import Group, Journal
from celery_neli.election.pulser import Pulser
from celery_neli.election.records import sound
from celery_neli.election.report import Report
from celery_neli.election.role_state import LeaderEvent, LeaderRevoked, Payload
from celery_neli.election.shared_lease import SharedLease, Standing
from celery_neli.election.watchdog import Progress
from celery_neli.exceptions import ClosedError, ConfigurationError
from celery_neli.logs import BackgroundLog, escaping
from celery_neli.threads import Bell, Thread, patched, spawn

SLICE = 0.5
"""Seconds that a standby's thread waits for a record before it looks at what other threads asked of it (librdkafka can
only be woken by Kafka). Nobody waits for a standby; a leader waits for a bell instead, see `_pause`.
"""
GREEN_SLICE = 0.1
BUSY_SLICE = 0.005
RETRY_LEAST, RETRY_MOST = 1.0, 30.0
CANCEL_EVERY = 0.05
CLOSE_SLACK = 10.0
KAFKA_LOGGER = "celery_neli.kafka"

logger = escaping(logging.getLogger(__name__))
Barrier = Callable[[LeaderEvent], None]
Connect = Callable[[Config, logging.Logger], tuple[Journal, Group]]


class State(enum.Enum):
    """Of a curator: LIVE from its making, CLOSING from `close`, CLOSED when nothing is held and the clients ended."""

    LIVE = "live"
    CLOSING = "closing"
    CLOSED = "closed"


def connect_kafka(config: Config, log: logging.Logger) -> tuple[Journal, Group]:
    """The journal and the group on Kafka. Loads confluent_kafka; does not wait for a broker."""
    from celery_neli.kafka.group import KafkaGroup
    from celery_neli.kafka.journal import KafkaJournal

    journal = KafkaJournal(config, log=log)
    try:
        return journal, KafkaGroup(config, log=log)
    except BaseException:
        journal.close()  # it is tried again and again: clients must not pile up
        raise


class Neli:
    """A member of an election, curated.

    Nothing is started before the first `pulse`, `background` or `start`. All methods may be called from any thread,
    none from a signal handler. In a forked child the curator is void: it leads nothing there and touches no client.
    """

    def __init__(
        self,
        config: Config,
        barrier: Barrier | None = None,
        *,
        connect: Connect = connect_kafka,
        clock: Callable[[], float] = boottime,
        leases: SharedLease | None = None,
        on_readback: Callable[[], None] | None = None,
        fit: Callable[[], bool] = lambda: True,
    ) -> None:
        """`barrier` is called with each `LeaderAcquired`, `LeaderRevoked` and `LeaderFenced` of a role, in order, by a
        thread that pulses, delivers or closes; of several such threads, each may be at another role.

        On `LeaderRevoked` the hand-over waits until it returns, for `drain_timeout` at most, while heartbeats go on.
        What it raises is logged and otherwise ignored. `leases` is the memory that the leases are written to; without
        it, this makes one. The thread that renews calls `on_readback` when it has read back another payload than before
        from a record of this member's own; it must not block, and what it raises is logged. While `fit` returns False,
        this member neither leads nor claims; the thread that renews calls it often. `connect` and `clock` are for
        tests.
        """
        self.config = config
        self.clock = clock
        self.leases = leases or SharedLease(config.roles, clock=clock)
        self.pid = os.getpid()
        """Of the process in which it leads."""
        self._barrier, self._connect, self._on_readback = barrier, connect, on_readback
        self._state = State.LIVE
        self._bell = Bell()
        self._delivery = Delivery(config.roles, self._announce)
        self._requests: dict[Hashable, Callable[[Member], None]] = {}  # for the member's thread; of each key the latest
        self._roles = {role: Role(self, role) for role in config.roles}
        self._starting = threading.Lock()
        self._member: Member | None = None
        self._thread: Thread | None = None
        self._clients: tuple[Journal, Group] | None = None  # made, and not served yet
        self._lines = BackgroundLog()
        self._log = self._lines.logger(__name__)
        self._report = Report(config, self._log)
        self._progress = Progress(config, self._log, clock, fit=fit)

    # What holds

    @property
    def state(self) -> State:
        """LIVE, CLOSING or CLOSED; CLOSED in a forked child of the process that started it."""
        return State.CLOSED if self._inherited else self._state

    @property
    def _inherited(self) -> bool:
        """In a forked child: another thread may have held any lock in here at the fork, so none may be taken."""
        return self._thread is not None and os.getpid() != self.pid

    @property
    def is_leader(self) -> bool:
        """Return True if this member leads (a role of several) now: new work may start. It takes no lock."""
        return any(role.may_start() for role in self._roles.values())

    @property
    def deadline(self) -> float | None:
        """Until when (`clock` time, seconds) the lease in force runs, if nothing renews it; None without one. Of
        several, the first to end.
        """
        standings = [role.standing() for role in self._roles.values()]
        return min((each.until for each in standings if each.held), default=None)

    def role(self, name: str) -> Role:
        """Return the handle of one role. Raises ValueError for a role that is not configured."""
        if name not in self._roles:
            raise ValueError(f"{name!r} is none of the roles {', '.join(self.config.roles)}")
        return self._roles[name]

    @property
    def member(self) -> Member | None:
        """The member, for its methods that any thread may call; None before `start`, and in a forked child."""
        return self._member if os.getpid() == self.pid else None

    def request(self, key: Hashable, action: Callable[[Member], None]) -> None:
        """Have the member's thread call `action` with the member before its next step. Returns at once; any thread.

        An action that still waits is replaced by a later one of the same `key`. One that was requested later is never
        carried out in an earlier step.
        """
        self._requests[key] = action
        if not self._inherited:
            self._bell.ring()

    @property
    def delivering(self) -> bool:
        """Whether the calling thread is in the barrier."""
        return self._delivery.inside

    # What to do

    def start(self) -> None:
        """Join the election; returns at once, may be repeated. Kafka need not be there.

        Raises `ConfigurationError` if Kafka's client refuses `config.kafka`, and `ClosedError` after `close`.
        """
        if self._inherited:
            raise ClosedError(f"{self.config.name} belongs to process {self.pid}, which forked; make a new Neli")
        with self._starting:
            if self._state is not State.LIVE:
                raise ClosedError(f"{self.config.name} was closed; make a new Neli")
            if self._thread is not None:
                return
            self.pid = os.getpid()
            self.progress()
            self._clients = self._make_clients()
            self._lines.start()
            self._thread = spawn(self._run, name=f"neli-{self.config.group}")

    def _make_clients(self) -> tuple[Journal, Group] | None:
        """The first ones are made here, so that what no retry can mend is told to the caller; None: try again later."""
        try:
            return self._connect(self.config, self._lines.logger(KAFKA_LOGGER))
        except ConfigurationError:
            raise
        except Exception:
            logger.exception("election failed name=%s: standing by, trying again", self.config.name)
            return None

    def pulse(self, timeout: float = 0.0, *, cancel: threading.Event | None = None) -> bool:
        """Wait up to `timeout` seconds to lead; whether this member leads. Returns at once if it does already.

        Runs the barrier for what changed, so it may take as long as the barrier does. Must be called again within
        `stall_timeout`: a leader that is not pulsed resigns. Setting `cancel` ends the wait within 0.05 s. Raises
        `ClosedError` after `close`.
        """
        if self._state is not State.LIVE and not self._inherited:
            raise ClosedError(f"{self.config.name} was closed: it can no longer be pulsed; make a new Neli")
        self.start()
        deadline = time.monotonic() + timeout
        while True:
            self.progress()
            seen = self._bell.rings
            self._deliver()
            left = deadline - time.monotonic()
            if self.is_leader or left <= 0 or self.state is not State.LIVE or (cancel is not None and cancel.is_set()):
                return self.is_leader
            self._bell.wait(seen, min(left, CANCEL_EVERY if cancel is not None else self.config.stall_timeout / 3))

    def progress(self) -> None:
        """The owner's work goes on. A pulse says so by itself; without a word for `stall_timeout` a leader resigns.
        Takes no lock.
        """
        self._progress.made()

    def hindered(self, reason: str) -> None:
        """The owner's work cannot go on, for `reason`: told if it comes to `stall_timeout`. Takes no lock."""
        self._progress.hindered(reason)

    def deliver(self, timeout: float) -> None:
        """Wait up to `timeout` seconds for changes and run the barrier on them, without saying that the owner's work
        goes on.
        """
        seen = self._bell.rings
        if not self._deliver() and self.state is not State.CLOSED:
            self._bell.wait(seen, timeout)
            self._deliver()

    def resign(self, role: str | None = None) -> None:
        """Hand over `role`, or all: barrier, release, then stand back for one `heartbeat_timeout` (R4). Returns at
        once.
        """
        self.request(("resign", role), lambda member: member.resign(role))

    def background(self, task: Callable[[], None]) -> Pulser:
        """Pulse on a thread of its own, and call `task` again and again there while this member leads."""
        return Pulser(self, task)

    def request_close(self) -> None:
        """Begin to close; returns at once, may be repeated. Whoever pulses or delivers runs the barrier for what is
        still held.
        """
        if self._inherited:
            return
        with self._starting:
            if self._state is State.LIVE:
                self._state = State.CLOSING if self._thread is not None else State.CLOSED
        self._bell.ring()

    def close(self) -> None:
        """Hand over and end: barrier, release, clients. Takes at most `drain_timeout` plus a few seconds; may be
        repeated.

        Called by the barrier itself, it only begins to close.
        """
        self.request_close()
        if self.delivering:
            return
        end = time.monotonic() + self.close_timeout
        while self.state is not State.CLOSED:
            if time.monotonic() > end:
                logger.error(
                    "close is late name=%s: leaving it to its thread; the lease runs out by itself", self.config.name
                )
                return
            self.deliver(1.0)

    @property
    def close_timeout(self) -> float:
        """Seconds that `close` takes at most: a barrier, a claim under way, and the end of the clients."""
        return self.config.drain_timeout + self.config.heartbeat_timeout + CLOSE_SLACK

    def wait_closed(self, timeout: float | None = None) -> bool:
        """Wait until somebody has closed it, for up to `timeout` seconds; whether it is closed."""
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        seen = self._bell.rings
        while self.state is not State.CLOSED and (left := deadline - time.monotonic()) > 0:
            self._bell.wait(seen, min(left, 60.0))
            seen = self._bell.rings
        return self.state is State.CLOSED

    def __enter__(self) -> Neli:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Delivery, on the caller's thread

    def _deliver(self) -> bool:
        """Run the barrier on what changed; False if there was nothing, or other threads are at it."""
        if self._inherited or not self._delivery.run():
            return False
        self._bell.ring()
        return True

    def _announce(self, event: LeaderEvent) -> None:
        try:
            if self._barrier is not None:
                self._barrier(event)
        except Exception:
            logger.exception("barrier failed event=%r", event)
        finally:
            if isinstance(event, LeaderRevoked):
                self._drained(event)

    def _drained(self, event: LeaderRevoked) -> None:
        self.request(("drained", event.role, event.term), lambda member: member.drained(event.role, event.term))

    # The member's thread

    def _run(self) -> None:
        pause = RETRY_LEAST
        try:
            while True:
                began = self.clock()
                try:
                    self._serve()
                    break
                except ConfigurationError as exc:  # a file that librdkafka needs is gone by now
                    self._log.error("election failed name=%s: %s; standing by, trying again", self.config.name, exc)
                except Exception:  # noqa: BLE001 - logged, with its traceback
                    # A bug, or a client that cannot be made: the lease runs out by itself; stand by and try again.
                    self._log.exception("election failed name=%s: standing by, trying again", self.config.name)
                if self._state is not State.LIVE:
                    break
                pause = RETRY_LEAST if self.clock() - began > RETRY_MOST else min(2 * pause, RETRY_MOST)
                self._rest(pause)
        finally:
            self._state = State.CLOSED
            self._bell.ring()
            self._lines.stop()

    def _rest(self, pause: float) -> None:
        seen, end = self._bell.rings, time.monotonic() + pause
        while self._state is State.LIVE and (left := end - time.monotonic()) > 0:
            self._bell.wait(seen, left)
            seen = self._bell.rings

    def _serve(self) -> None:
        clients, self._clients = self._clients, None
        journal, group = clients or self._connect(self.config, self._lines.logger(KAFKA_LOGGER))
        member = self._member = Member(
            self.config,
            journal,
            group,
            clock=self.clock,
            log=self._log,
            mirror=self.leases.write,
            on_readback=self._read_back,
        )
        said: Exception | None = None
        seen = self._bell.rings
        try:
            while not member.closed:
                timeout = self._pause(member, seen)
                seen = self._bell.rings
                self._obey(member)
                if self._state is not State.LIVE:
                    member.close()
                self._progress.watch(member)
                self._tell(member.step(timeout))
                self._report.standby(member)
                if member.trouble is not None:
                    if member.trouble is not said:
                        said = member.trouble
                        self._log.error("%s", said)
                    if not (member.leading or member.draining):
                        self._rest(RETRY_LEAST)
        finally:
            self._tell(member.abandon())
            group.close()
            journal.close()

    def _obey(self, member: Member) -> None:
        """Pass on what other threads have asked for."""
        while self._requests:  # to the end: what was requested before one of them is there, and is carried out too
            self._requests.popitem()[1](member)

    def _read_back(self) -> None:
        try:
            if self._on_readback is not None:
                self._on_readback()
        except Exception:  # noqa: BLE001 - logged, with its traceback; a lease must not end by it
            self._log.exception("hearing failed name=%s", self.config.name)

    def _pause(self, member: Member, seen: int) -> float:
        """How long the next step may wait for a record; seconds.

        A leader waits here, for whatever is asked of it (the bell has rung more than `seen` times) or its next beat. It
        may read its heartbeats back a little late: the lease counts from their sending (R1). Not so one that waits for
        another role: its head start is short.
        """
        if member.draining or self._state is not State.LIVE:
            return BUSY_SLICE
        if not member.leading:
            return SLICE if not patched() else GREEN_SLICE
        if patched() or member.expecting:
            return GREEN_SLICE  # under gevent the bell is the greenlets', not this thread's
        self._bell.wait(seen, max(0.0, min(self.config.heartbeat_interval / 2, member.wake() - self.clock())))
        return 0.0

    def _tell(self, changes: list[LeaderEvent]) -> None:
        for event in changes:
            self._report.change(event)
            if isinstance(event, LeaderRevoked) and self._barrier is None:
                self._drained(event)
            self._delivery.put(event)
        if changes:
            self._bell.ring()


class Role:
    """One role of the election, for its owner: what the lease allows, what the records carry, and the requests.

    Beats, workers and singletons all use it. All methods may be called from any thread; none blocks, and the questions
    take no lock. In a forked child every answer is no: a child reads `shared_lease.shared(app).role(name)`, which has
    the same questions.
    """

    def __init__(self, neli: Neli, name: str) -> None:
        self.name = name
        self._neli = neli
        self._lease = neli.leases.role(name)

    # What the lease allows

    @property
    def term(self) -> int | None:
        """The term of the lease in force, or of the last one; None before the first."""
        return self._lease.term

    def leading_term(self) -> int | None:
        """Return the term in which new work may start now (R3), or None if none may."""
        return self._lease.leading_term() if os.getpid() == self._neli.pid else None

    def may_start(self, term: int | None = None) -> bool:
        """Return True if new work may start now (R3), in this `term` if one is given."""
        return os.getpid() == self._neli.pid and self._lease.may_start(term)

    def may_finish(self, term: int | None = None) -> bool:
        """Return True if work that began in this `term` may finish now, also while a hand-over drains (R3).

        Without a `term`, return True if work of whatever term is in force may finish.
        """
        return os.getpid() == self._neli.pid and self._lease.may_finish(term)

    def standing(self) -> Standing:
        """Return term, end and answers of one moment, for people and for logs."""
        standing = self._lease.standing()
        return standing if os.getpid() == self._neli.pid else replace(standing, until=NEVER, leading=False, held=False)

    # What was read

    @property
    def last_payload(self) -> Payload:
        """What the newest effective record of the role carried, as far as this process has read."""
        member = self._neli.member
        return Payload() if member is None else member.last_payload(self.name)

    def leader(self) -> str | None:
        """Return the name of the process that leads, as far as this one has read, for people; None if unknown."""
        member = self._neli.member
        leader = None if member is None else member.leader(self.name)
        return None if leader is None else leader[0]

    def predecessor_active_until(self) -> datetime | None:
        """Return when (UTC) the owner of the last leader before the present term last made progress.

        Its heartbeats say so: they go on while it hangs or drains. None if no record of an earlier term was read.
        """
        member = self._neli.member
        active = None if member is None else member.led_until(self.name)
        if active is None:
            return None
        return datetime.now(timezone.utc) - timedelta(seconds=self._neli.clock() - active)

    # Requests

    def set_payload(self, term: int, data: Mapping[str, Any], *, now: bool = False) -> None:
        """Put `data` into every further record of this `term`, in the place of what was set before.

        In another term, nothing happens. It leaves with the next heartbeat, or, with `now`, with one of its own, and
        then is read back as soon as Kafka can (`on_readback`). What was set before the barrier of a `LeaderRevoked`
        returns is in the release.

        Raises:
            ValueError: no record can carry `data`.
        """
        name, data = self.name, sound(data)
        self._neli.request(("payload", name), lambda member: member.set_payload(name, data, term=term))
        if now:  # a key of its own: a later payload that need not leave at once must not take it back
            self._neli.request(("beat", name), lambda member: member.beat_now(name, term=term))

    def ask(self) -> None:
        """Ask the process that leads the role to hand it over to this one (R10).

        Without effect if no other process leads, or if this one may not claim.
        """
        self._neli.request(("ask", self.name), lambda member: member.ask(self.name))

    def resign(self, *, back_off: bool = False) -> None:
        """Hand the role over if this process leads it, then do not claim it for one `heartbeat_timeout` (R4).

        With `back_off`, because it cannot be served here: do not claim it for longer, from a second to a minute, which
        doubles with each failure in a row. That holds also if this process does not lead.
        """
        if back_off:
            self._neli.request(("back off", self.name), lambda member: member.stand_back(self.name))
        else:
            self._neli.resign(self.name)
