"""What the page shows, followed in the background: one thread for each source, a lock around what they keep.

Kafka may be away at any time: what was read stays, and `Source.good` says until when it is known to be right.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from celery_neli.config import Config
from celery_neli.logs import escaping
from celery_neli.printable import printable, printable_error
from celery_neli.status import ElectionStatus
from celery_neli.threads import Thread, spawn
from celery_neli.timeline import Term
from celery_neli.ui.overdue import OverdueIndex
from celery_neli.ui.run_index import RunIndex
from celery_neli.ui.schedule_index import ScheduleIndex

SHOWN: Final = 86_400.0  # seconds of terms that are kept
MOST_ANNOUNCED: Final = 20
UNWATCHED: Final = 60.0  # seconds after the last request: who is in the group is looked at less often
POLL: Final = 0.25  # seconds that a source waits for news at a time
RETRY_LEAST, RETRY_MOST = 1.0, 15.0  # seconds between two attempts after an error
JOIN: Final = 1.0  # seconds that `stop` waits for each thread

NOT_YET: Final = "not read yet"  # the problem of a follower that has only begun

ELECTIONS, TERMS, WORKER_TERMS, SCHEDULE, HISTORY = "elections", "terms", "worker terms", "schedule", "history"

logger = escaping(logging.getLogger(__name__))


class Follower(Protocol):
    """Something that reads Kafka for a `State`. For one thread; the constructor does not wait."""

    @property
    def problem(self) -> str:
        """Why nothing is read at present, "" if all is well."""

    def poll(self, timeout: float) -> str:
        """Read for about `timeout` seconds, put what was read into the state, and return which kind of news there is
        (`LEADER`, `ENTRIES`, `RUNS`), "" without any. May raise anything.
        """

    def close(self) -> None:
        """End; takes milliseconds."""


LEADER, ENTRIES, RUNS = "leader", "entries", "runs"


@dataclass(slots=True)
class Source:
    """How fresh something is. `good`: when it was last known to be right (Unix seconds), None if never."""

    good: float | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Announcement:
    """Something to tell visitors at once."""

    number: int
    text: str


@dataclass(slots=True)
class News:
    """How often each kind of news came."""

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys((LEADER, ENTRIES, RUNS), 0))
    announced: list[Announcement] = field(default_factory=list)
    number: int = 0


class State:
    """All that the page knows of an app. `lock` is held while `schedule` and `runs` are read or changed; what else is
    here is replaced as a whole, never changed. Any thread.
    """

    def __init__(
        self,
        app: Any,
        *,
        days: float = 7.0,
        clock: Callable[[], float] = time.time,
        followers: Callable[[State], Mapping[str, Callable[[State], Follower]]],
    ) -> None:
        """`followers` returns what makes a follower, by the name of its source."""
        self.app, self.days, self.clock = app, days, clock
        self.lock = threading.RLock()
        self.schedule = ScheduleIndex(app, clock=clock)
        self.runs = RunIndex()
        self.overdue: OverdueIndex | None = None  # None: what is overdue is not known
        self.history_read = False  # there was nothing more to read of it, a moment ago
        self.elections: tuple[ElectionStatus, ...] = ()
        self.terms: dict[str, dict[str, list[Term]]] = {}  # by election, and by role
        self.news = News()
        self.sources: dict[str, Source] = {}
        self.seen = 0.0  # when the page was last asked for
        self.configs: dict[str, Config] = {}
        self.stopping = False
        self._followers = followers
        self._threads: list[Thread] = []
        self._pid = 0

    def start(self) -> None:
        """Begin to follow, if that is not so yet in this process. Does not wait. Any thread. Raises
        `ConfigurationError` if a setting of the app is unfit.
        """
        self.seen = self.clock()
        if self._pid == os.getpid():
            return
        with self.lock:
            if self._pid == os.getpid() or self.stopping:
                return
            followers = self._followers(self)
            self.sources = {name: Source() for name in followers}
            self._pid = os.getpid()
            self._threads = [self._spawn(name, make) for name, make in followers.items()]

    def stop(self) -> None:
        """End. May be repeated."""
        self.stopping = True
        for each in self._threads:
            each.join(JOIN)

    @property
    def watched(self) -> bool:
        """Return True if a visitor was here lately."""
        return self.clock() - self.seen < UNWATCHED

    def notify(self, kind: str, text: str = "") -> None:
        """Count news of this kind; `text` is told to visitors at once."""
        with self.lock:
            counts = {**self.news.counts, kind: self.news.counts[kind] + 1}
            announced, number = self.news.announced, self.news.number
            if text:
                number += 1
                announced = [*announced, Announcement(number, text)][-MOST_ANNOUNCED:]
            self.news = News(counts, announced, number)

    def set_terms(self, election: str, terms: dict[str, list[Term]], *, tell: bool) -> None:
        """Replace the terms of an election; `tell` visitors who leads now where that has changed."""
        before, self.terms = self.terms.get(election, {}), {**self.terms, election: terms}
        for role, found in terms.items():
            if not found or not tell:
                continue
            last, old = found[-1], before.get(role)
            if old and (old[-1].term, old[-1].lives) == (last.term, last.lives):
                continue
            led = f"{printable(last.leader)} leads it now, in term {last.term}" if last.lives else "it has no leader"
            self.notify(LEADER, f"{election}, role {printable(role)}: {led}")

    def _spawn(self, name: str, make: Callable[[State], Follower]) -> Thread:
        return spawn(lambda: self._follow(name, make), name=f"neli-ui-{name}")

    def _follow(self, name: str, make: Callable[[State], Follower]) -> None:
        pause = RETRY_LEAST
        while not self.stopping:
            try:
                with closing(make(self)) as follower:
                    while not self.stopping:
                        kind = follower.poll(POLL)
                        self._note(name, follower.problem)
                        pause = pause if follower.problem else RETRY_LEAST
                        if kind:
                            self.notify(kind)
            except Exception as exc:
                logger.debug("the page does not follow source=%s: %s", name, exc, exc_info=True)
                self._note(name, printable_error(exc, 400))
                self._rest(pause)
                pause = min(2 * pause, RETRY_MOST)

    def _note(self, name: str, problem: str) -> None:
        before = self.sources[name]
        good = before.good if problem else self.clock()
        self.sources[name] = Source(good, problem)
        if problem != before.problem:
            if problem and problem != NOT_YET:
                logger.warning("the page does not follow source=%s: %s", name, problem)
            self.notify(ENTRIES)

    def _rest(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self.stopping and time.monotonic() < end:
            time.sleep(0.1)
