"""The loop of a singleton: turn after turn while its role is led, an end to each stretch, and what failures cost.

`Runner` waits for the role, and begins a `Tenure` each time it is led; a tenure calls the user's functions. All that is
safe here is so because the lease is asked right before each call (R3), never because of a signal: those only wake a
runner that waits.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from celery_neli.election.shared_lease import SharedLease
from celery_neli.logs import Lines, escaping
from celery_neli.singletons.registry import Singleton
from celery_neli.worker.context import in_term

LOOK = 0.5
"""Seconds between two looks at the lease, for whoever hears no signal."""
BACKOFF_LEAST, BACKOFF_MOST = 0.1, 10.0
"""Seconds between a failure and the next turn."""
REST_LEAST, REST_MOST = 10.0, 300.0
"""Seconds between giving up and the next stretch: the first time in a row, and at most. The role moves each time."""

logger = escaping(logging.getLogger(__name__))


class Unelected:
    """The lease of an app with `neli_enabled = False`: everybody leads, in term 0."""

    def leading(self, role: str) -> int:
        """Term 0."""
        return 0

    def held(self, role: str, term: int) -> bool:
        """Always."""
        return True


Lease = SharedLease | Unelected


class ChildFailed(Exception):
    """A turn failed in another process, or that process has died. The text says how, a traceback from there included:
    the one of this process would tell nothing.
    """


class Turns(Protocol):
    """One stretch in which this worker leads: a `Tenure`, or `isolated.Isolated`, which has one in a process."""

    def turn(self) -> bool:
        """Set up if need be, and call the function; False, and nothing is called, if the lease allows it no more.
        Raises what they raise.
        """

    def end(self) -> None:
        """Wrap up after the last turn. Raises nothing."""


class Tenure:
    """The turns of one singleton in one term, in this thread."""

    def __init__(self, app: Any, singleton: Singleton, role: str, lease: Lease, term: int) -> None:
        self._app, self._singleton, self._role, self._lease, self._term = app, singleton, role, lease, term
        self._ready = False

    def turn(self) -> bool:
        """See `Turns`. `setup` is called before the first turn, and again until it has once returned."""
        if not self._ready:
            if not self._allowed():
                return False
            if self._singleton.setup is not None:
                self._call(self._singleton.setup)
            self._ready = True
        if not self._allowed():
            return False
        self._call(self._singleton.function)
        return True

    def end(self) -> None:
        """Call `teardown` if `setup` had returned, though the lease be gone; what it raises is logged."""
        if self._ready and self._singleton.teardown is not None:
            try:
                self._call(self._singleton.teardown)
            except BaseException:  # SystemExit, too: nothing of a singleton's ends the worker
                logger.exception("singleton teardown failed singleton=%s role=%s", self._singleton.name, self._role)
        self._ready = False

    def _allowed(self) -> bool:
        return self._lease.leading(self._role) == self._term

    def _call(self, function: Callable[[], Any]) -> None:
        with in_term(self._app, self._role, self._term):
            function()


def backoff(failures: int, every: float, share: float) -> float:
    """Seconds to wait after so many failures in a row: doubled each time, capped, and never less than `every`.

    `share` in 0..1 spreads it over the upper half of that, so that what failed together is not retried together.
    """
    most = min(BACKOFF_MOST, BACKOFF_LEAST * 2.0 ** min(failures - 1, 30))
    return max(every, most * (1 + share) / 2)


class Runner:
    """Runs one singleton whenever its role is led, on whichever thread calls `run`.

    `begin(term)` makes the `Turns` of a stretch. `resign` asks for a hand-over of the role; None: there is nobody to
    hand over to, and failures are retried for ever. `wait` (of `bell`), `clock` and `jitter` are for tests.
    """

    def __init__(
        self,
        singleton: Singleton,
        role: str,
        lease: Lease,
        begin: Callable[[int], Turns],
        resign: Callable[[], None] | None,
        *,
        wait: Callable[[float], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.singleton, self.role = singleton, role
        self._lease, self._begin, self._resign = lease, begin, resign
        self._clock, self._jitter = clock, jitter
        self._rung, self._idle = threading.Event(), threading.Event()
        self._wait = self._rung.wait if wait is None else wait
        self._idle.set()
        self._closed = False
        self._gave_up: int | None = None
        self._in_a_row = 0  # times that it gave up since a turn last returned
        self._rest_until = -math.inf

    def ring(self) -> None:
        """Look at the lease now. Any thread."""
        self._rung.set()

    def close(self) -> None:
        """Begin no more turns, whoever leads: `run` wraps up and returns. Returns at once; any thread."""
        self._closed = True
        self.ring()

    def wait_idle(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds until nothing runs; whether that is so. Asked after the role was lost (or after
        `close`), it means that nothing will start either.
        """
        return self._idle.wait(timeout)

    def run(self) -> None:
        """Wait for the role, work while it is led, and so on until `close`. Blocks; its thread calls the functions."""
        while True:
            self._idle.clear()  # before the lease is asked: see wait_idle
            if self._closed:
                break
            term = self._lease.leading(self.role)
            if term is not None:
                self._attend(term)
            self._idle.set()
            self._sleep(LOOK)
        self._idle.set()

    def _attend(self, term: int) -> None:
        """What there is to do now, in this term."""
        if term != self._gave_up:
            if self._clock() < self._rest_until:
                return
            self._lead(term)
        if term == self._gave_up and self._resign is not None:
            self._resign()  # again as long as it is led: a fence may have come between, and taken the first with it

    def _lead(self, term: int) -> None:
        """One stretch."""
        name, failures = self.singleton.name, 0
        logger.info("singleton started singleton=%s role=%s term=%s", name, self.role, term)
        turns = self._begin(term)
        try:
            while self._may(term):
                try:
                    if not turns.turn():
                        break
                except BaseException as exc:  # noqa: BLE001 - logged; SystemExit, too: nothing of its ends the worker
                    failures += 1
                    pause = backoff(failures, self.singleton.every, self._jitter())
                    self._report(exc, term, failures)
                    if failures >= self.singleton.max_failures and self._resign is not None:
                        self._gave_up = term
                        break
                else:
                    failures, pause, self._in_a_row = 0, self.singleton.every, 0
                self._rest(term, pause)
        finally:
            turns.end()
        logger.info("singleton ended singleton=%s role=%s term=%s", name, self.role, term)
        if self._gave_up == term:
            rest = min(REST_MOST, REST_LEAST * 2.0 ** min(self._in_a_row, 30))
            self._in_a_row, self._rest_until = self._in_a_row + 1, self._clock() + rest
            line = (
                "singleton gave up singleton=%s role=%s term=%s: %d failures in a row (max_failures); resigning, "
                "and not starting again here for %g s"
            )
            logger.error(line, name, self.role, term, failures, rest)

    def _report(self, exc: BaseException, term: int, failures: int) -> None:
        """Once, with one traceback: where there was one."""
        elsewhere = isinstance(exc, ChildFailed)
        line = f"singleton failed singleton=%s role=%s term=%s failures=%d: {'%s' if elsewhere else '%r'}"
        told = self.singleton.name, self.role, term, failures, Lines(exc) if elsewhere else exc
        logger.error(line, *told, exc_info=None if elsewhere else exc)

    def _may(self, term: int) -> bool:
        return not self._closed and self._lease.leading(self.role) == term

    def _rest(self, term: int, seconds: float) -> None:
        """Wait, but no longer than the term lasts."""
        end = self._clock() + seconds
        while (left := end - self._clock()) > 0 and self._may(term):
            self._sleep(min(left, LOOK))

    def _sleep(self, seconds: float) -> None:
        self._wait(seconds)
        self._rung.clear()
