"""Neli: one member of an election, as goNELI knows it, usable without Celery; and the handle of each of its roles.

    with Neli(Config(group="billing", kafka="localhost:9092"), barrier=print) as neli:
        while True:
            if neli.pulse(timeout=1.0):
                do_a_little_work()

(`celery_neli.Neli` is this class with Kafka behind it: see kafka/__init__.py.)
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any

from celery_neli.config import Config
from celery_neli.election.lease import FOREVER, boottime
from celery_neli.election.member import Connect
from celery_neli.election.records import sound
from celery_neli.election.renewal import RENEWAL_LOG, Barrier, Renewal, State
from celery_neli.election.role_state import Payload, RoleState
from celery_neli.election.shared_lease import RoleLease, SharedLease, own_clock
from celery_neli.exceptions import ClosedError
from celery_neli.logs import escaping

PULSE = 1.0
CANCEL_EVERY = 0.05
CLOSE_SLACK = 10.0

logger = escaping(logging.getLogger(__name__))


class Neli:
    """One member of an election, which renews its leases on a thread of its own, and calls the barrier on others.

    Nothing is started before the first `pulse`, `background` or `start`. All methods may be called from any thread,
    none from a signal handler. In a forked child it is void: it leads nothing there and touches no client.
    """

    def __init__(
        self,
        config: Config,
        barrier: Barrier | None = None,
        *,
        connect: Connect,
        clock: Callable[[], float] = boottime,
        on_readback: Callable[[], None] = lambda: None,
        fit: Callable[[], bool] = lambda: True,
        log: str = RENEWAL_LOG,
    ) -> None:
        """Make a member that has not joined yet, which logs to the logger called `log`.

        `barrier` is called with each `LeaderAcquired`, `LeaderRevoked` and `LeaderFenced` of a role, in order, by a
        thread that pulses, delivers or closes; several such threads may each serve another role. On `LeaderRevoked` the
        handover waits until it returns, for `drain_timeout` at most, while heartbeats go on. What it raises is logged.

        The thread that renews calls the other two, which must not block: `on_readback` when it has read back another
        payload than before from a record of this member's own; what it raises is logged; and, often, `fit`: while that
        returns False, this member neither leads nor claims. `clock` gives seconds, for tests.
        """
        self.config = config
        self.clock = clock
        self.leases = SharedLease(config.roles, clock=clock)
        self._renewal = Renewal(
            config, barrier, connect=connect, clock=clock, mirror=self.leases.write, on_readback=on_readback, fit=fit,
            log=log,
        )  # fmt: skip
        self._roles = {role: Role(self._renewal, self.leases, role) for role in config.roles}

    @property
    def state(self) -> State:
        """LIVE, CLOSING or CLOSED; CLOSED in a forked child of the process that started it."""
        return self._renewal.state

    @property
    def is_leader(self) -> bool:
        """True if this member leads, one role of several, now: new work may start. Takes no lock."""
        return any(role.may_start() for role in self._roles.values())

    @property
    def deadline(self) -> float | None:
        """When the first lease in force ends (`clock` time, seconds) if nothing renews it; None without one."""
        standings = [role.standing() for role in self._roles.values()]
        return min((each.until for each in standings if each.held), default=None)

    @property
    def unready(self) -> str:
        """Why this member has not joined the election, or has left it; "" if it is in it, as leader or standby.

        It is in it when it has read the leader topic to its end and the consumer group counts it in. Takes no lock.
        """
        return self._renewal.unready

    @property
    def renewer_turned_at(self) -> float:
        """When the thread that renews last made a step (`time.monotonic`), as it does every second; 0 before."""
        return self._renewal.turned_at

    @property
    def delivering(self) -> bool:
        """True if the calling thread is in the barrier."""
        return self._renewal.delivering

    def role(self, name: str) -> Role:
        """Return the handle of one role. Raises ValueError for a role that is not configured."""
        if name not in self._roles:
            raise ValueError(f"{name!r} is none of the roles {', '.join(self.config.roles)}")
        return self._roles[name]

    def start(self) -> None:
        """Join the election; return at once. May be repeated. Kafka need not be there.

        Raises `ConfigurationError` if Kafka's client refuses `config.kafka`, and `ClosedError` after `close`.
        """
        self._renewal.start()

    def pulse(self, timeout: float = 0.0, *, cancel: threading.Event | None = None) -> bool:
        """Wait up to `timeout` seconds to lead; return True if this member leads, at once if it does already.

        It runs the barrier for what changed. Call it again within `stall_timeout`: a leader that is not pulsed resigns.
        Setting `cancel` ends the wait within 0.05 s. Raises `ClosedError` after `close`.
        """
        renewal = self._renewal
        if self.state is not State.LIVE and not renewal.inherited:
            raise ClosedError(f"{self.config.name} was closed: it can no longer be pulsed; make a new Neli")
        self.start()
        deadline = time.monotonic() + timeout
        while True:
            self.progress()
            seen = renewal.bell.rings
            renewal.deliver()
            left = deadline - time.monotonic()
            if self.is_leader or left <= 0 or self.state is not State.LIVE or (cancel is not None and cancel.is_set()):
                return self.is_leader
            renewal.bell.wait(seen, min(left, CANCEL_EVERY if cancel is not None else self.config.stall_timeout / 3))

    def progress(self) -> None:
        """Say that the owner's work goes on, as a pulse does, or a leader resigns (`stall_timeout`). Takes no lock."""
        self._renewal.watchdog.progress()

    def hindered(self, reason: str) -> None:
        """Say that the owner's work cannot go on, and why: for the log, when `stall_timeout` is over. Takes no lock."""
        self._renewal.watchdog.hindered(reason)

    def deliver(self, timeout: float) -> None:
        """Wait up to `timeout` seconds for changes and run the barrier on them. It is no sign of progress."""
        renewal = self._renewal
        seen = renewal.bell.rings
        if not renewal.deliver() and self.state is not State.CLOSED:
            renewal.bell.wait(seen, timeout)
            renewal.deliver()

    def resign(self, role: str | None = None) -> None:
        """Hand over `role`, or all: barrier, release, a stand-back of one `heartbeat_timeout` (R4). Return at once."""
        self._renewal.request(("resign", role), lambda member: member.resign(role))

    def background(self, task: Callable[[], None]) -> Pulser:
        """Pulse on a thread of its own, and call `task` again and again there while this member leads."""
        return Pulser(self, task)

    def request_close(self) -> None:
        """Start to close; return at once. May be repeated. Threads that deliver run the barrier for what is held."""
        self._renewal.close()

    def close(self) -> None:
        """Hand over and end, within `drain_timeout` and some seconds; in the barrier, only start it. Repeatable."""
        self.request_close()
        end = time.monotonic() + self.close_timeout
        while self.state is not State.CLOSED and not self.delivering:
            if time.monotonic() > end:
                line = "close is late name=%s: leaving it to its thread; the lease runs out by itself"
                logger.error(line, self.config.name)
                return
            self.deliver(1.0)

    @property
    def close_timeout(self) -> float:
        """Seconds that `close` takes at most: a barrier, a claim under way, and the end of the clients."""
        return self.config.drain_timeout + self.config.heartbeat_timeout + CLOSE_SLACK

    def wait_closed(self, timeout: float | None = None) -> bool:
        """Wait up to `timeout` seconds (None: for ever) until another thread has closed it; return True if it is."""
        self._renewal.wait_while(State.LIVE, State.CLOSING, timeout=FOREVER if timeout is None else timeout)
        return self.state is State.CLOSED

    def __enter__(self) -> Neli:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Pulser:
    """A thread that pulses a `Neli` and calls a task while it leads, until either is closed or the task raises."""

    def __init__(self, neli: Neli, task: Callable[[], None]) -> None:
        self._neli, self._task = neli, task
        self._cancel = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"neli-pulser-{neli.config.group}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._cancel.is_set():
                if self._neli.pulse(PULSE, cancel=self._cancel):
                    self._task()
        except ClosedError:
            return
        except BaseException as exc:  # noqa: BLE001 - SystemExit, too; `wait` raises it
            self._failure = exc
            self._neli.close()  # a leader that cannot work hands over

    def wait(self, timeout: float | None = None) -> bool:
        """Wait up to `timeout` seconds for its end; return True if it has ended. Raises what the task raised."""
        self._thread.join(timeout)
        if self._failure is not None:
            raise self._failure
        return not self._thread.is_alive()

    def close(self) -> None:
        """End the pulser; wait for a task that runs. The `Neli` goes on, and resigns if nothing pulses it."""
        self._cancel.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()


class Role(RoleLease):
    """One role of the election, for its owner: what the lease allows, what the records carry, and the requests.

    All methods may be called from any thread; none blocks, and the questions take no lock. In a forked child every
    answer is no: a child asks `shared_lease.shared(app).role(name)`.
    """

    def __init__(self, renewal: Renewal, leases: SharedLease, name: str) -> None:
        super().__init__(leases, name, clock=partial(own_clock, leases.clock, renewal))
        self._renewal = renewal
        self._payload: tuple[int, Mapping[str, Any]] = 0, {}  # the newest that was set

    @property
    def last_payload(self) -> Payload:
        """What the newest effective record of the role carried, as far as this process has read."""
        state = self._renewal.role_state(self.name)
        return Payload() if state is None else state.payload

    def leader(self) -> str | None:
        """Return the name of the process that leads, as far as this one has read, for people; None if unknown."""
        state = self._renewal.role_state(self.name)
        leader = None if state is None else state.leader()
        return None if leader is None else leader[0]

    def vacant_for(self) -> float | None:
        """Return for how many seconds no process has led, as far as this one has read; 0 while one does, None if that
        is unknown.
        """
        state = self._renewal.role_state(self.name)
        return None if state is None else state.vacant_for()

    def predecessor_active_until(self) -> datetime | None:
        """Return when (UTC) the owner of the leader before the present term last made progress, as records say."""
        state = self._renewal.role_state(self.name)
        if state is None or state.predecessor_active_until is None:
            return None
        return datetime.now(timezone.utc) - timedelta(seconds=self._renewal.clock() - state.predecessor_active_until)

    def set_payload(self, term: int, data: Mapping[str, Any], *, now: bool = False) -> None:
        """Put `data` into every further record of this `term`, in the place of what was set before.

        Without effect in another term. It leaves with the next heartbeat, or `now`, to be read back soon. What was set
        before the barrier of a `LeaderRevoked` returns is in the release. Raises ValueError if no record can carry it.
        """
        self._payload = term, sound(data)
        # It passes on what was set last: requests of the two keys may change places.
        verb = "payload now" if now else "payload"
        self._request(verb, lambda state: state.set_payload(*self._payload, now=now))

    def ask(self) -> None:
        """Ask another process that leads the role to hand it to this one (R10), unless this one may not claim."""
        self._renewal.request(("ask", self.name), lambda member: member.ask(self.name))

    def resign(self, *, back_off: bool = False) -> None:
        """Hand the role over if this process leads it, then do not claim it for one `heartbeat_timeout` (R4).

        With `back_off`, whether it leads or not, as it cannot serve the role: do not claim it for longer each time.
        """
        verb, action = ("back off", RoleState.back_off) if back_off else ("resign", RoleState.resign)
        self._request(verb, action)

    def _request(self, verb: str, action: Callable[[RoleState], None]) -> None:
        self._renewal.request((verb, self.name), lambda member: action(member.state(self.name)))
