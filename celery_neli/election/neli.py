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
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from celery_neli.config import Config
from celery_neli.election.clock import boottime
from celery_neli.election.delivery import Delivery
from celery_neli.election.grant import Grant, LeaderEvent, LeaderRevoked, Told
from celery_neli.election.member import Member, Mirror
from celery_neli.election.ports import Group, Journal
from celery_neli.election.pulser import Pulser
from celery_neli.election.records import sound
from celery_neli.election.report import Report
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
_NOBODY = Grant()

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
    from celery_neli.kafka.group import connect

    return connect(config, log)


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
        mirror: Mirror | None = None,
        heard: Callable[[], None] | None = None,
        fit: Callable[[], bool] = lambda: True,
    ) -> None:
        """`barrier` is called with each `LeaderAcquired`, `LeaderRevoked` and `LeaderFenced` of a role, in order, by a
        thread that pulses, delivers or closes; of several such threads, each may be at another role.

        On `LeaderRevoked` the hand-over waits until it returns, for `drain_timeout` at most, while heartbeats go on.
        What it raises is logged and otherwise ignored. `mirror` is told every grant as it changes, by index of its
        role, on the thread that renews. So is `heard` called when other data than before were read back from a record
        of this member's own; it must not block, and what it raises is logged. While `fit` returns False, this member
        neither leads nor claims; it is asked often, on the thread that renews. `connect` and `clock` are for tests.
        """
        self.config = config
        self.clock = clock
        self._barrier, self._connect, self._mirror, self._heard = barrier, connect, mirror, heard
        self._state = State.LIVE
        self._bell = Bell()
        self._delivery = Delivery(config.roles, self._announce)
        self._asked: deque[Callable[[Member], None]] = deque()  # for the member's thread
        self._resign: dict[str | None, None] = {}  # likewise; asked for a thousand times, it is done once
        self._offers: dict[str, tuple[int, Mapping[str, Any]]] = {}  # likewise, of each role the latest
        self._hurries: dict[str, int] = {}
        self._requests: dict[str, None] = {}
        self._starting = threading.Lock()
        self._member: Member | None = None
        self._thread: Thread | None = None
        self._clients: tuple[Journal, Group] | None = None  # made, and not served yet
        self._pid = os.getpid()
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
        return self._thread is not None and os.getpid() != self._pid

    @property
    def is_leader(self) -> bool:
        """Whether this member leads (a role of several) now: new work may start. Asks the lease; takes no lock."""
        return any(self.grant(role).leading(self.clock()) for role in self.config.roles)

    @property
    def deadline(self) -> float | None:
        """Until when (`clock` time, seconds) the lease in force runs, if nothing renews it; None without one. Of
        several, the first to end.
        """
        now = self.clock()
        ends = [grant.until for grant in map(self.grant, self.config.roles) if grant.held(now)]
        return min(ends, default=None)

    def grant(self, role: str) -> Grant:
        """What the lease of `role` allows; ask it with `clock()`. Takes no lock; raises ValueError for a role that is
        not configured.
        """
        member = self._member
        if member is None or os.getpid() != self._pid:
            return _NOBODY
        return member.grant(role)

    def told(self, role: str) -> Told:
        """What the newest effective record of `role` carried, as far as this member read. Any thread; takes no lock.
        Raises ValueError for a role that is not configured.
        """
        member = self._member
        if member is None or os.getpid() != self._pid:
            return Told()
        return member.told(role)

    def leader(self, role: str) -> tuple[str, int] | None:
        """Name and term of the leader of `role` as far as this member read, for people; None: nobody, or unknown."""
        member = self._member
        return None if member is None else member.leader(role)

    def led_until(self, role: str) -> float | None:
        """Until when (`clock` time) the owner of the last leader before the present term of `role` made progress, as
        far as its heartbeats told; None if none was read.
        """
        member = self._member
        return None if member is None else member.led_until(role)

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
            raise ClosedError(f"{self.config.name} belongs to process {self._pid}, which forked; make a new Neli")
        with self._starting:
            if self._state is not State.LIVE:
                raise ClosedError(f"{self.config.name} was closed; make a new Neli")
            if self._thread is not None:
                return
            self._pid = os.getpid()
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
        self._resign[role] = None
        if not self._inherited:
            self._bell.ring()

    def stand_back(self, role: str) -> None:
        """Hand over `role` if this member leads it, and do not claim it for a while, which grows from a second to a
        minute with each failure in a row: the caller cannot serve it. Returns at once; any thread.
        """
        self._refuse_unknown(role)
        self._asked.append(lambda member: member.stand_back(role))
        if not self._inherited:
            self._bell.ring()

    def offer(self, role: str, term: int, data: Mapping[str, Any], *, hurry: bool = False) -> None:
        """Put `data` into every further record of `role` in this `term`, in the place of what was offered before; in
        another term, nothing happens. Returns at once; any thread.

        It leaves with the next heartbeat, or, with `hurry`, with one of its own, and then is read back as soon as Kafka
        can. What was offered before the barrier of a `LeaderRevoked` returns is in the release. Raises ValueError for
        data that no record can carry, and for a role that is not configured.
        """
        self._refuse_unknown(role)
        self._offers[role] = term, sound(data)
        if hurry:
            self._hurries[role] = term  # after the offer: whoever finds this finds that, or it has been taken
            if not self._inherited:
                self._bell.ring()

    def ask(self, role: str) -> None:
        """Ask whoever leads `role` to hand it over to this member (a request in its own favour, R10). Returns at once;
        any thread. Without effect if nobody else leads, or if this member may not claim. Raises ValueError for a role
        that is not configured.
        """
        self._refuse_unknown(role)
        self._requests[role] = None
        if not self._inherited:
            self._bell.ring()

    def _refuse_unknown(self, role: str) -> None:
        if role not in self.config.roles:
            raise ValueError(f"{role!r} is none of the roles {', '.join(self.config.roles)}")

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
        self._asked.append(lambda member: member.drained(event.role, event.term))
        self._bell.ring()

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
            self.config, journal, group, clock=self.clock, log=self._log, mirror=self._mirror, heard=self._hear
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
        while self._asked:
            self._asked.popleft()(member)
        # After the barriers' returns: what was offered before one of them is there by now, and is in the release.
        hurries = [self._hurries.popitem() for _ in range(len(self._hurries))]
        for _ in range(len(self._offers)):
            role, (term, data) = self._offers.popitem()
            member.offer(role, data, term=term)
        for role, term in hurries:
            member.hurry(role, term=term)
        for _ in range(len(self._requests)):
            member.ask(self._requests.popitem()[0])
        for _ in range(len(self._resign)):
            member.resign(self._resign.popitem()[0])

    def _hear(self) -> None:
        try:
            if self._heard is not None:
                self._heard()
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
