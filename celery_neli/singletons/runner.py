"""The loop of a singleton: it runs the function while its role is led, and decides what failures cost.

`Runner` waits for the role, and begins a session each time it is led; the session calls the user's functions. It is
safe because the lease is checked right before each call (R3), never because of a signal: signals only wake a runner.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from celery_neli.logs import Lines, escaping
from celery_neli.singletons.decorator import Singleton
from celery_neli.worker.leader_only import Lease, in_term

POLL_INTERVAL = 0.5
"""Seconds between two looks at the lease, for a runner that receives no signal."""
BACKOFF_LEAST, BACKOFF_MOST = 0.1, 10.0
"""Seconds between a failure and the next run."""
REST_LEAST, REST_MOST = 10.0, 300.0
"""Seconds between giving up and the next session: the first time in a row, and at most. The role moves each time."""

logger = escaping(logging.getLogger(__name__))


class ChildFailed(Exception):
    """A run failed in another process, or that process died. The text says how, with the traceback from there."""


class Session(Protocol):
    """A time in which this worker leads without a break: a `ThreadSession`, or one in a process (`ProcessSession`)."""

    def run(self) -> bool:
        """Set up if need be, and call the function. Return False, and call nothing, if the lease is over."""

    def end(self) -> None:
        """Tear down after the last run. Raises nothing."""


@dataclass(eq=False)
class ThreadSession:
    """The runs of one singleton in one term, in the calling thread."""

    singleton: Singleton
    lease: Lease
    term: int
    _ready = False

    def run(self) -> bool:
        """See `Session`. `setup` is called before the first run, and again until it has returned once."""
        if not self._ready:
            if not self._call(self.singleton.setup):
                return False
            self._ready = True
        return self._call(self.singleton.function)

    def _call(self, function: Callable[[], Any] | None) -> bool:
        if not self.lease.may_start(self.term):
            return False
        if function is not None:
            with in_term(self.lease, self.term):
                function()
        return True

    def end(self) -> None:
        """Call `teardown` if `setup` had returned, even if the lease is gone; an exception of it is logged."""
        if self._ready and self.singleton.teardown is not None:
            try:
                with in_term(self.lease, self.term):
                    self.singleton.teardown()
            except BaseException:  # SystemExit, too: a singleton must not end the worker
                logger.exception("singleton teardown failed singleton=%s role=%s", self.singleton.name, self.lease.name)
        self._ready = False


def doubled(least: float, most: float, times: int) -> float:
    """Return `least` doubled so many times, and at most `most`."""
    return min(most, least * 2.0 ** min(times, 30))


def backoff(failures: int, every: float, share: float) -> float:
    """Return the seconds to wait after so many failures in a row: doubled each time, capped, never less than `every`,
    and spread over the upper half by `share` (0..1), so that what failed together is not retried together.
    """
    return max(every, doubled(BACKOFF_LEAST, BACKOFF_MOST, failures - 1) * (1 + share) / 2)


@dataclass(eq=False)
class Runner:
    """Runs one singleton whenever its role is led, on the thread that calls `run`.

    `begin` makes the session of a term. `resign` requests a handover of the role; without it, as there is no election,
    failures are retried without an end. `wait` waits up to so many seconds, by default to be woken.
    """

    singleton: Singleton
    lease: Lease
    begin: Callable[[int], Session]
    resign: Callable[[], None] | None
    wait: Callable[[float], object] | None = None
    clock: Callable[[], float] = time.monotonic
    jitter: Callable[[], float] = random.random
    _closed = False
    _gave_up: int | None = field(default=None, init=False)
    """The term in which it gave up."""
    _in_a_row = 0
    """How often it gave up since a run last returned."""
    _rest_until = -math.inf

    def __post_init__(self) -> None:
        self.role = self.lease.name
        self._woken, self._idle = threading.Event(), threading.Event()
        self._idle.set()

    def wake(self) -> None:
        """Look at the lease now. Any thread."""
        self._woken.set()

    def close(self) -> None:
        """Begin no more runs; `run` tears down and returns. Returns at once; any thread."""
        self._closed = True
        self.wake()

    def wait_idle(self, end: float) -> bool:
        """Wait until nothing runs, and return True, or until `end` (monotonic seconds). Once the role is lost, or after
        `close`, nothing will start either.
        """
        return self._idle.wait(max(0.0, end - time.monotonic()))

    def run(self) -> None:
        """Wait for the role, run while it is led, and repeat until `close`. Blocks; its thread calls the functions."""
        while not self._closed:
            self._idle.clear()  # before the lease is checked: see wait_idle
            term = self.lease.leading_term()
            if term is not None:
                self._lead(term)
            self._idle.set()
            self._sleep(POLL_INTERVAL)

    def _lead(self, term: int) -> None:
        if term != self._gave_up:
            if self.clock() < self._rest_until:
                return
            self._run_session(term)
        if term == self._gave_up and self.resign is not None:
            self.resign()  # again as long as it is led: a fence may have come between, and taken the first with it

    def _run_session(self, term: int) -> None:
        name, failures = self.singleton.name, 0
        logger.info("singleton started singleton=%s role=%s term=%s", name, self.role, term)
        session = self.begin(term)
        try:
            while self._may_start(term):
                try:
                    if not session.run():
                        break
                except BaseException as exc:  # noqa: BLE001 - logged; SystemExit, too: it must not end the worker
                    failures += 1
                    pause = backoff(failures, self.singleton.every, self.jitter())
                    self._report(exc, term, failures)
                    if failures >= self.singleton.max_failures and self.resign is not None:
                        self._gave_up = term
                        break
                else:
                    failures, pause, self._in_a_row = 0, self.singleton.every, 0
                self._pause(term, pause)
        finally:
            session.end()
        logger.info("singleton ended singleton=%s role=%s term=%s", name, self.role, term)
        if self._gave_up == term:
            rest = doubled(REST_LEAST, REST_MOST, self._in_a_row)
            self._in_a_row, self._rest_until = self._in_a_row + 1, self.clock() + rest
            line = (
                "singleton gave up singleton=%s role=%s term=%s: %d failures in a row (max_failures); resigning, "
                "and not starting again here for %g s"
            )
            logger.error(line, name, self.role, term, failures, rest)

    def _report(self, exc: BaseException, term: int, failures: int) -> None:
        """Log a failure with one traceback: of the process where it failed."""
        elsewhere = isinstance(exc, ChildFailed)
        line = f"singleton failed singleton=%s role=%s term=%s failures=%d: {'%s' if elsewhere else '%r'}"
        arguments = self.singleton.name, self.role, term, failures, Lines(exc) if elsewhere else exc
        logger.error(line, *arguments, exc_info=None if elsewhere else exc)

    def _may_start(self, term: int) -> bool:
        return not self._closed and self.lease.may_start(term)

    def _pause(self, term: int, seconds: float) -> None:
        """Wait, but no longer than the term lasts."""
        end = self.clock() + seconds
        while (left := end - self.clock()) > 0 and self._may_start(term):
            self._sleep(min(left, POLL_INTERVAL))

    def _sleep(self, seconds: float) -> None:
        (self.wait or self._woken.wait)(seconds)
        self._woken.clear()
