"""Pauses entries that have failed too often, on a thread of its own: it reads the history, and changes the schedule.

Only the process that watches does so. The lease is asked just before an entry is paused.
"""

from __future__ import annotations

import logging
import queue
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from celery_neli import periodic, signals
from celery_neli.alarms.failures import End, Failures, Rule, Verdict
from celery_neli.config import Config
from celery_neli.exceptions import NeliError
from celery_neli.history.runs import FAILED, SUCCEEDED, Run
from celery_neli.history.topic import NoHistory, read_runs
from celery_neli.logs import LogLimit, escaping
from celery_neli.printable import printable
from celery_neli.threads import spawn

if TYPE_CHECKING:
    from celery import Celery

RETRY: Final = 10.0  # seconds until what failed is tried again
SAID_EVERY: Final = 60.0  # seconds between two lines about one entry that cannot be paused
IDLE: Final = 60.0  # seconds without work after which the thread ends
MOST_OF_A_NOTE: Final = 400  # characters
BY: Final = "neli_pause_on_failure"

logger = escaping(logging.getLogger(__name__))


class Pauser:
    """Does what `Failures` finds. All methods are for the thread that watches; none waits."""

    def __init__(self, app: Celery, config: Config, failures: Failures, *, may: Callable[[], bool]) -> None:
        """`config` is that of the beat election; `may` returns True while this process watches, on any thread."""
        self._app, self._config, self._failures, self._may = app, config, failures, may
        self._work: queue.SimpleQueue[Verdict | None] = queue.SimpleQueue()
        self._done: deque[Callable[[], None]] = deque()
        self._under_way: set[str] = set()
        self._running = False
        self._limit = LogLimit(SAID_EVERY)

    def turn(self, rule_of: Callable[[str], Rule | None], until: float) -> None:
        """Have done what is to be done by what is known up to that time (Unix seconds)."""
        while self._done:
            self._done.popleft()()
        for verdict in self._failures.judge(rule_of, until):
            if verdict.entry in self._under_way:
                self._failures.again(verdict.entry, verdict.last.at)
                continue
            self._under_way.add(verdict.entry)
            self._work.put(verdict)
        if self._under_way and not self._running:
            self._running = True
            spawn(self._run, name="neli-pause")

    def close(self) -> None:
        """End, when what is under way is done."""
        self._may = lambda: False
        self._work.put(None)

    # -- on its own thread --

    def _run(self) -> None:
        while True:
            try:
                verdict = self._work.get(timeout=IDLE)
            except queue.Empty:
                verdict = None
            if verdict is None:
                self._done.append(self._ended)
                return
            try:
                then = self._look(verdict) if verdict.count is None else self._pause(verdict, verdict.count)
            except Exception as exc:  # noqa: BLE001 - whatever it was, the watcher goes on
                then = self._fail(verdict, exc)
            self._done.append(then)
            self._done.append(lambda name=verdict.entry: self._under_way.discard(name))  # type: ignore[misc]

    def _ended(self) -> None:
        self._running = False

    def _fail(self, verdict: Verdict, exc: Exception) -> Callable[[], None]:
        name = verdict.entry
        if self._limit.allows(name):
            expected = isinstance(exc, NeliError)
            why = str(exc) if expected else repr(exc)
            logger.warning(
                "alarms: entry=%s has failed and cannot be paused yet: %s", name, why, exc_info=not expected
            )  # fmt: skip
        at = time.time() + RETRY
        return lambda: self._failures.again(name, at)

    def _look(self, verdict: Verdict) -> Callable[[], None]:
        """Read how the runs before have ended."""
        name, rule = verdict.entry, verdict.rule
        try:
            runs = read_runs(
                self._config, log=logger, name=name, limit=rule.most, since=rule.since or None,
                only=lambda run: run.state in (FAILED, SUCCEEDED),
            )  # fmt: skip
        except NoHistory:
            runs = []
        ends = [_end_of(run) for run in runs]
        return lambda: self._failures.before(name, ends)

    def _pause(self, verdict: Verdict, count: int) -> Callable[[], None]:
        name, rule, last = verdict.entry, verdict.rule, verdict.last
        if not self._may():
            return lambda: None  # the next watcher does it
        runs = "run" if count == 1 else "runs in a row"
        note = printable(f"paused after {count} failed {runs}: {last.error or 'no reason is known'}", MOST_OF_A_NOTE)
        pause_entry(self._app, name, note=note, version=rule.version)
        logger.warning(
            "entry paused entry=%s failures=%d task=%s id=%s error=%r", name, count, last.task, last.id, last.error
        )  # fmt: skip
        try:
            signals.entry_paused.send(
                sender=self._app, entry=name, task=last.task, failures=count, error=last.error, slot=last.slot,
                id=last.id,
            )  # fmt: skip
        except SystemExit as exc:  # Celery lets it pass, and it would only end this thread
            logger.error("a receiver of entry_paused raised %r: ignored; nothing ends by that here", exc)
        return lambda: self._failures.paused(name, rule)


def pause_entry(app: Any, name: str, *, note: str, version: str) -> None:
    """Pause an entry, unless its definition is another one by now. Raises `NeliError`."""
    periodic.pause(app, name, by=BY, note=note, expected=version or None)


def _end_of(run: Run) -> End:
    at = next((each for each in (run.finished, run.started, run.at, run.slot) if each is not None), 0.0)
    return End(
        id=run.id or f"{run.slot!r}", at=at, slot=run.slot, failed=run.state == FAILED, task=run.task, error=run.error
    )  # fmt: skip
