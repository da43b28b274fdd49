"""The thread that renews the leases: it makes a member's steps, carries out requests, and hands on what changed.

What may block, such as a barrier or a logging handler, runs on other threads. When it fails, the lease runs out.
"""

from __future__ import annotations

import enum
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from functools import partial

from celery_neli.config import Config
from celery_neli.election.member import Connect, Group, Member
from celery_neli.election.records import Journal
from celery_neli.election.role_state import LeaderAcquired, LeaderEvent, LeaderFenced, LeaderRevoked, Mirror, RoleState
from celery_neli.exceptions import ClosedError, ConfigurationError
from celery_neli.logs import BackgroundLog, Lines, escaping
from celery_neli.threads import Bell, Thread, patched, spawn, stack_of

SLICE = 0.5  # seconds that a standby waits for a record before it looks at requests: only Kafka can wake librdkafka
GREEN_SLICE = 0.1
BUSY_SLICE = 0.005
FIRST_RETRY, LAST_RETRY = 1.0, 30.0  # seconds between a failure and the next attempt

RENEWAL_LOG = __name__
Barrier = Callable[[LeaderEvent], None]

logger = escaping(logging.getLogger(__name__))


class State(enum.Enum):
    """LIVE from the start, CLOSING from `close` on, CLOSED when nothing is held and the clients have ended."""

    LIVE = "live"
    CLOSING = "closing"
    CLOSED = "closed"


class _Watchdog:
    """When the owner last made progress: the thread that renews must not keep a role for an owner that hangs."""

    def __init__(
        self, config: Config, log: logging.Logger, clock: Callable[[], float], fit: Callable[[], bool]
    ) -> None:
        """`fit` returns True if the owner could do a leader's work at all; it must not block."""
        self._config, self._log, self._clock, self._fit = config, log, clock, fit
        self._stalled = False
        self.progress()

    def progress(self) -> None:
        self._last = (self._clock(), threading.get_ident())
        self._hindered = ""

    def hindered(self, reason: str) -> None:
        self._hindered = reason

    def watch(self, member: Member) -> None:
        """Let the member neither lead nor claim if its owner makes no progress, or is not fit."""
        since, thread_id = self._last
        stalled = self._clock() - since > self._config.stall_timeout
        member.progressed = since
        member.candidate = not stalled and self._fit()  # every time: the member may be a new one, made after a failure
        if stalled == self._stalled:
            return
        self._stalled = stalled
        if not stalled:
            self._log.info("progress again name=%s: a candidate again", self._config.name)
            return
        who, what = "it", self._hindered or "no progress"
        if self._hindered:
            who, thread_id = "the main thread", threading.main_thread().ident or 0
        line = "%s for %.0f s (neli_stall_timeout) name=%s: standing back; %s is here:\n%s"
        stack = Lines(partial(stack_of, thread_id))  # looked up on the thread that logs, not on the one that renews
        self._log.warning(line, what, self._config.stall_timeout, self._config.name, who, stack)


class Renewal:
    """The member of one process, and the thread that makes its steps.

    In a forked child, it is void: it takes no lock there and touches no client.
    """

    def __init__(
        self,
        config: Config,
        barrier: Barrier | None,
        *,
        connect: Connect,
        clock: Callable[[], float],
        mirror: Mirror,
        on_readback: Callable[[], None],
        fit: Callable[[], bool],
        log: str = RENEWAL_LOG,
    ) -> None:
        """`barrier` is called with each change, by a thread that calls `deliver`. `Neli` describes the other ones."""
        self.config, self.clock = config, clock
        self.bell = Bell()  # rings when something changed, or was requested
        self.pid = os.getpid()  # the process in which it leads
        self._events: dict[str, deque[LeaderEvent]] = {role: deque() for role in config.roles}
        self._delivering: dict[str, list[int]] = {}  # role -> the one thread that delivers its events
        self._barrier, self._connect, self._mirror, self._on_readback = barrier, connect, mirror, on_readback
        self._state = State.LIVE
        self._requests: dict[Hashable, Callable[[Member], None]] = {}
        self._starting = threading.Lock()
        self._member: Member | None = None
        self._thread: Thread | None = None
        self._clients: tuple[Journal, Group] | None = None  # made, and not served yet
        self._lines = BackgroundLog()
        self._log = self._lines.logger(log)
        self.watchdog = _Watchdog(config, self._log, clock, fit)
        self._leaders: dict[str, tuple[str, int]] = {}  # role -> name and term that were logged last

    @property
    def inherited(self) -> bool:
        """True in a forked child: another thread may have held any lock in here at the fork, so none may be taken."""
        return self._thread is not None and os.getpid() != self.pid

    @property
    def state(self) -> State:
        """LIVE, CLOSING or CLOSED; CLOSED in a forked child of the process that started it."""
        return State.CLOSED if self.inherited else self._state

    def role_state(self, role: str) -> RoleState | None:
        """Return what the member knows of a role; None before the start, and in a forked child."""
        return self._member.state(role) if self._member is not None and os.getpid() == self.pid else None

    def request(self, key: Hashable, action: Callable[[Member], None]) -> None:
        """Have the thread call `action` before its next step; it takes the place of one that waits with this `key`."""
        self._requests[key] = action
        if not self.inherited:
            self.bell.ring()

    def start(self) -> None:
        """Start the thread, once; see `Neli.start`."""
        if self.inherited:
            raise ClosedError(f"{self.config.name} belongs to process {self.pid}, which forked; make a new Neli")
        with self._starting:
            if self._state is not State.LIVE:
                raise ClosedError(f"{self.config.name} was closed; make a new Neli")
            if self._thread is not None:
                return
            self.pid = os.getpid()
            self.watchdog.progress()
            try:  # here, so that the caller learns what no retry can mend
                self._clients = self._make_clients()
            except ConfigurationError:
                raise
            except Exception:
                logger.exception("election failed name=%s: standing by, trying again", self.config.name)
            self._lines.start()
            self._thread = spawn(self._run, name=f"neli-{self.config.group}")

    def _make_clients(self) -> tuple[Journal, Group]:
        return self._connect(self.config, self._lines.logger("celery_neli.kafka"))

    def close(self) -> None:
        """Start to close; see `Neli.request_close`."""
        if self.inherited:
            return
        with self._starting:
            if self._state is State.LIVE:
                self._state = State.CLOSING if self._thread is not None else State.CLOSED
        self.bell.ring()

    def wait_while(self, *states: State, timeout: float) -> None:
        """Wait up to `timeout` seconds for a state that is none of these."""
        seen, end = self.bell.rings, time.monotonic() + timeout
        while self.state in states and (left := end - time.monotonic()) > 0:
            self.bell.wait(seen, min(left, threading.TIMEOUT_MAX))
            seen = self.bell.rings

    # The barrier, on the threads that deliver

    def deliver(self) -> bool:
        """Run the barrier on what changed, in order, but for roles that another thread serves; return True if any."""
        if self.inherited:
            return False
        me, ran = [threading.get_ident()], False
        for role, events in self._events.items():
            if events and self._delivering.setdefault(role, me) is me:  # one step: it takes the place of a lock
                ran = True
                try:
                    while events:
                        self._announce(events.popleft())
                finally:
                    del self._delivering[role]
        if ran:
            self.bell.ring()
        return ran

    @property
    def delivering(self) -> bool:
        """True if the calling thread is in the barrier."""
        return [threading.get_ident()] in list(self._delivering.values())

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
        self.request(("drained", event.role, event.term), lambda member: member.state(event.role).drained(event.term))

    # The thread

    def _run(self) -> None:
        pause = FIRST_RETRY
        try:
            while True:
                began = self.clock()
                try:
                    self._serve()
                except ConfigurationError as exc:  # a file that librdkafka needs is gone by now
                    self._log.error("election failed name=%s: %s; standing by, trying again", self.config.name, exc)
                except Exception:  # noqa: BLE001 - a bug, or no client can be made: logged, and the lease runs out
                    self._log.exception("election failed name=%s: standing by, trying again", self.config.name)
                if self._state is not State.LIVE:
                    break
                pause = FIRST_RETRY if self.clock() - began > LAST_RETRY else min(2 * pause, LAST_RETRY)
                self.wait_while(State.LIVE, timeout=pause)
        finally:
            self._state = State.CLOSED
            self.bell.ring()
            self._lines.stop()

    def _serve(self) -> None:
        clients, self._clients = self._clients, None
        journal, group = clients or self._make_clients()
        member = self._member = Member(
            self.config, journal, group, clock=self.clock, log=self._log, mirror=self._mirror,
            on_readback=self._on_readback,
        )  # fmt: skip
        logged: Exception | None = None
        seen = self.bell.rings
        try:
            while not member.closed:
                timeout = self._pause(member, seen)
                seen = self.bell.rings
                for key in list(self._requests):
                    self._requests.pop(key)(member)
                if self._state is not State.LIVE:
                    member.close()
                self.watchdog.watch(member)
                self._hand_on(member.step(timeout))
                self._log_leaders(member)
                if member.topic_error is not None:
                    if member.topic_error is not logged:
                        logged = member.topic_error
                        self._log.error("%s", logged)
                    if not (member.leading or member.draining):
                        self.wait_while(State.LIVE, timeout=FIRST_RETRY)
        finally:
            self._hand_on(member.abandon())
            group.close()
            journal.close()

    def _pause(self, member: Member, seen: int) -> float:
        """Return the seconds that the next step may wait for a record.

        A leader waits here, for a request (the bell has rung more than `seen` times) or its next heartbeat: it may read
        heartbeats back late (R1). A member that waits for another role may not: its head start is short.
        """
        if member.draining or self._state is not State.LIVE:
            return BUSY_SLICE
        if not member.leading:
            return SLICE if not patched() else GREEN_SLICE
        if patched() or member.expecting:
            return GREEN_SLICE  # under gevent the bell is the greenlets', not this thread's
        self.bell.wait(seen, max(0.0, min(self.config.heartbeat_interval / 2, member.wake() - self.clock())))
        return 0.0

    def _hand_on(self, changes: list[LeaderEvent]) -> None:
        for event in changes:
            values = event.role, event.term, self.config.name, self.config.group
            if isinstance(event, LeaderFenced):
                line = "leadership fenced role=%s term=%d name=%s group=%s reason=%r"
                self._log.warning(line, *values, event.reason)
            else:
                verb = "acquired" if isinstance(event, LeaderAcquired) else "revoked"
                self._log.info("leadership %s role=%s term=%d name=%s group=%s", verb, *values)
            if isinstance(event, LeaderRevoked) and self._barrier is None:
                self._drained(event)
            self._events[event.role].append(event)
        if changes:
            self.bell.ring()

    def _log_leaders(self, member: Member) -> None:
        """Log which leader this member stands by for, when that changes: it must not look like one that hangs."""
        for role in self.config.roles:
            state = member.state(role)
            leader = state.leader()
            # not one that ended long ago and wrote the last record of the log
            if leader is not None and leader != self._leaders.get(role) and state.lease.live:
                self._leaders[role] = leader
                if state.grant.term != leader[1]:
                    line = "standing by role=%s leader=%s term=%d name=%s group=%s"
                    self._log.info(line, role, *leader, self.config.name, self.config.group)
