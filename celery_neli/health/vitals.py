"""Whether this process is well: what must move has moved lately, and it takes part in its election.

A thread of its own looks once a second and adds up for how long each thing has stood still while it looked. So the time
in which the whole process, or its machine, stood still counts for no more than two seconds.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from celery_neli.election.leadership import Leadership
from celery_neli.logs import escaping
from celery_neli.threads import Thread, original, patched, spawn

INTERVAL: Final = 1.0  # seconds between two looks
MOST_AT_ONCE: Final = 2.0  # seconds that one look adds, at most
LEAST_LIMIT: Final = 15.0  # seconds for which anything may stand still
STALLS: Final = 1.5
"""Times `neli_stall_timeout` that a loop may stand still. A leader whose work does not get on resigns after once, which
mends what another process can do, and its loop turns again; a restart is for a loop that does not."""
BEATS: Final = 3.0
"""Times `neli_heartbeat_interval` that the thread that renews may stand still, if that is more: it waits for a beat."""
JOIN: Final = 1.0

logger = escaping(logging.getLogger(__name__))


@dataclass(slots=True)
class Movement:
    """Something that must move: `value` changes whenever it does, unless it is excused. For the thread that looks."""

    what: str
    value: Callable[[], object]
    limit: float  # seconds
    excused: Callable[[], bool] = lambda: False
    still: float = 0.0  # seconds for which it was seen to stand still
    _last: object = field(init=False)

    def __post_init__(self) -> None:
        self._last = self.value()

    def look(self, elapsed: float) -> None:
        """See if it has moved in the `elapsed` seconds since the last look."""
        value = self.value()
        if value != self._last or self.excused():
            self._last, self.still = value, 0.0
        else:
            self.still += elapsed


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The health of one process at one moment: live if nothing is in `hung`, ready if nothing is in `missing`."""

    hung: tuple[str, ...]  # sentences: what has not moved for too long
    missing: tuple[str, ...]  # sentences: what it lacks to take a role over
    leads: tuple[str, ...]  # roles

    @property
    def live(self) -> bool:
        """True unless only a restart helps."""
        return not self.hung

    @property
    def ready(self) -> bool:
        """True if it leads, or could take a role over now."""
        return self.live and not self.missing


class Vitals:
    """Watches the process of `leadership`. All methods may be called from any thread; they take no lock."""

    def __init__(
        self,
        leadership: Leadership,
        *,
        kafka_away: Callable[[], str] = lambda: "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`kafka_away` returns why no broker of Kafka answers, "" if one does; it must not block."""
        self._leadership, self._kafka_away, self._clock = leadership, kafka_away, clock
        config, loop = leadership.config, f"the {leadership.election}'s loop"
        limit = max(LEAST_LIMIT, STALLS * config.stall_timeout)
        renewing = max(limit, BEATS * config.heartbeat_interval)
        self._movements = [
            Movement("the thread that renews the lease", lambda: leadership.renewer_turned_at, renewing),
            Movement(loop, lambda: leadership.turned_at, limit, self._loop_excused),
        ]
        self._hub_turned_at = clock()
        if patched():
            self._movements.append(Movement("gevent's hub", lambda: self._hub_turned_at, limit))
        self._limit = limit
        self._looked_at = clock()
        self._stopping: Any = original("_thread", "allocate_lock")()
        self._thread: Thread | None = None

    def start(self) -> None:
        """Begin to watch."""
        self._looked_at = self._clock()
        self._stopping.acquire()
        self._thread = spawn(self._run, name="neli-health")
        if patched():
            threading.Thread(target=self._turn_hub, name="neli-health-hub", daemon=True).start()  # a greenlet

    def stop(self) -> None:
        """Cease to watch; wait for a second at most. Repeatable, for one thread."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._stopping.release()
            thread.join(JOIN)

    def look(self) -> None:
        """Look at all that must move. For one thread."""
        now = self._clock()
        elapsed, self._looked_at = min(now - self._looked_at, MOST_AT_ONCE), now
        if not patched():
            self._ask_loop()
        for each in self._movements:
            each.look(elapsed)

    def report(self) -> Report:
        """Return the health at this moment; who leads is exact, what moves is a second old."""
        leadership = self._leadership
        hung, missing = [], []
        if leadership.live:  # else it is stopping, and its loop and its thread end, one after the other
            hung = [
                f"{each.what} has not moved for {each.still:.0f} s"
                for each in self._movements
                if each.still > each.limit
            ]
            if (silent := self._clock() - self._looked_at) > self._limit:
                hung.append(f"the thread that watches the others has not moved for {silent:.0f} s")
        missing = [each for each in (leadership.missing(), self._kafka_away()) if each]
        leads = tuple(role for role in leadership.roles if leadership.leading(role))
        return Report(hung=tuple(hung), missing=tuple(missing), leads=leads)

    def _loop_excused(self) -> bool:
        excused = self._leadership.excused
        return self._leadership.turned_at == 0 or (excused is not None and excused())

    def _ask_loop(self) -> None:
        """Have a worker's loop turn: the thread of the leadership asks, too, but not while it waits for a handover."""
        if self._leadership.working is not None:
            self._leadership.working()

    def _run(self) -> None:
        failed = False
        while not self._stopping.acquire(timeout=INTERVAL):
            try:
                self.look()
            except Exception:
                if not failed:
                    failed = True
                    logger.exception("health: a look failed, which is logged once")

    def _turn_hub(self) -> None:
        while self._thread is not None:
            self._hub_turned_at = self._clock()
            self._ask_loop()
            time.sleep(INTERVAL)
