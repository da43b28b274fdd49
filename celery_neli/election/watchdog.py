"""Whether the owner's work goes on: a thread that renews must not keep an owner in office that hangs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from celery_neli.config import Config
from celery_neli.election.member import Member
from celery_neli.logs import Lines
from celery_neli.threads import stack_of


class _Stack:
    """Where a thread is, looked up when it is printed (on the thread that logs, not on the one that renews)."""

    def __init__(self, thread_id: int) -> None:
        self._thread_id = thread_id

    def __str__(self) -> str:
        return stack_of(self._thread_id)


class Progress:
    """When the owner last made progress, and what its silence means for the member."""

    def __init__(
        self, config: Config, log: logging.Logger, clock: Callable[[], float], *, fit: Callable[[], bool]
    ) -> None:
        """`fit` returns whether the owner could do a leader's work at all; it must not block."""
        self._config, self._log, self._clock, self._fit = config, log, clock, fit
        self._stalled = False
        self._hindered = ""
        self.made()

    def made(self) -> None:
        """The owner's work goes on. Any thread; takes no lock."""
        self._last = (self._clock(), threading.get_ident())
        self._hindered = ""

    def hindered(self, reason: str) -> None:
        """The owner cannot work, and says why; it is the process's main thread that should. Any thread; no lock."""
        self._hindered = reason

    def watch(self, member: Member) -> None:
        """A member whose owner makes no progress, or is not fit, neither leads nor claims. The member's thread."""
        since, thread_id = self._last
        stalled = self._clock() - since > self._config.stall_timeout
        member.progressed = since
        member.candidate = not stalled and self._fit()  # every time: the member may be a new one, made after a failure
        if stalled == self._stalled:
            return
        self._stalled = stalled
        if stalled:
            line = "%s for %.0f s (neli_stall_timeout) name=%s: standing back; %s is here:\n%s"
            what, who = self._hindered or "no progress", "the main thread" if self._hindered else "it"
            stack = Lines(_Stack(threading.main_thread().ident or 0 if self._hindered else thread_id))
            self._log.warning(line, what, self._config.stall_timeout, self._config.name, who, stack)
        else:
            self._log.info("progress again name=%s: a candidate again", self._config.name)
