"""Ask the result backend whether an entry's last task has finished, and wait for it only briefly.

A thread of its own asks, and silence counts as finished: it is better to run a task beside its forerunner now and then
than to hold up a scheduler, or to stop running the task.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent import futures
from functools import partial
from typing import Any, NamedTuple

from celery.utils.log import get_logger

from celery_neli.logs import LogLimit, escaping
from celery_neli.schedule.policies import Overlap, unfinished

logger = escaping(get_logger(__name__))

#: Seconds for which an answer "unfinished" is good.
FRESH = 0.5
#: Seconds within which an answer is quick. Slower ones may take this share of the scheduler's time in the long run.
QUICK, SHARE = 0.05, 0.1
#: Seconds between two warnings.
WARNING_INTERVAL = 60.0
#: Entries of which the last sent task is kept in mind.
REMEMBERED = 100_000


class _Known(NamedTuple):
    task_id: str
    unfinished: bool
    at: float  # when the answer came, by the check's clock


class OverlapCheck:
    """Says whether the last task of an entry has finished. Belongs to the thread that ticks.

    Starts nothing until the first question, which may take ``patience`` seconds. ``clock`` never goes back.
    """

    def __init__(self, app: Any, *, patience: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        #: Questions without an answer, all of which counted as finished.
        self.unanswered = 0
        self._app, self._patience, self._clock = app, patience, clock
        #: Seconds that slow answers may take, as of when.
        self._spare, self._spare_at = patience, clock()
        self._warnings = LogLimit(WARNING_INTERVAL, clock=clock)
        self._sent: dict[str, tuple[str, float]] = {}
        self._known: dict[str, _Known] = {}
        #: The thread's questions while there is one, and the question that was put last.
        self._questions: queue.SimpleQueue[Any] | None = None
        self._asked: tuple[str, futures.Future[_Known]] | None = None

    def holds(self, entry: Any, task_id: str | None, started: float, now: float) -> bool:
        """Return True if the last task of ``entry`` has not finished, and the overlap policy wants to know.

        ``task_id`` and ``started`` (Unix seconds) are of the entry's last task that was *sent*, as far as the caller
        knows, or None; what was noted by `sent` goes before that. Blocks for ``patience`` at most, and not at all while
        the result backend owes an answer.
        """
        rule = Overlap.of(entry)
        if not rule.asks or self._app.conf.task_always_eager:
            return False
        task_id, started = self.last(entry.name) or (task_id, started)
        if task_id is None or now - started > rule.age:
            return False
        known = self._recall(entry.name)
        if known is None or known.task_id != task_id or (known.unfinished and self._clock() - known.at > FRESH):
            known = self._ask(entry.name, task_id, partial(
                unfinished, self._app, task_id, started, now, rule.age, task=entry.task
            ))  # fmt: skip
        return known is not None and known.unfinished

    def sent(self, name: str, task_id: str, now: float) -> None:
        """Note that the task of an entry that asks left at ``now`` (Unix seconds), however late its slot was."""
        self._sent.pop(name, None)
        self._sent[name] = task_id, now
        if len(self._sent) > REMEMBERED:
            del self._sent[next(iter(self._sent))]

    def last(self, name: str) -> tuple[str, float] | None:
        """Return the id of the last task that left in this term, and when (Unix seconds); None if none did."""
        return self._sent.get(name)

    def begin(self) -> None:
        """Begin a term: others may have sent since, so what `sent` has noted is forgotten."""
        self._sent.clear()
        self._known.clear()

    def close(self) -> None:
        """Let the helper thread end when it has its answer. Returns at once; any number of times."""
        if self._questions is not None:
            self._questions.put(None)
            self._questions = None

    def _recall(self, name: str) -> _Known | None:
        if self._asked is not None and self._asked[1].done():
            (asked, answer), self._asked = self._asked, None
            if answer.exception() is None:
                if len(self._known) >= REMEMBERED:
                    self._known.clear()
                self._known[asked] = answer.result()
        return self._known.get(name)

    def _ask(self, name: str, task_id: str, question: Callable[[], bool]) -> _Known | None:
        if self._asked is not None:
            return self._silent(name, f"the question for entry {self._asked[0]!r} is still open")
        began, clock = self._clock(), self._clock
        if self._questions is None:
            self._questions = queue.SimpleQueue()
            threading.Thread(target=_answer, args=(self._questions,), name="neli-overlap", daemon=True).start()
        answer: futures.Future[_Known] = futures.Future()
        self._questions.put((answer, lambda: _Known(task_id, question(), clock())))
        self._asked = name, answer
        futures.wait([answer], timeout=self._bound(began))
        took = self._clock() - began
        if took > QUICK:
            self._spare = max(0.0, self._spare - took)
        if not answer.done():
            return self._silent(name, f"it did not answer within {took:.2f} s")
        if (error := answer.exception()) is not None:
            return self._silent(name, repr(error))
        return self._recall(name)

    def _bound(self, now: float) -> float:
        """Return how long to wait: an outage costs the patience once, a slow backend a tenth of the time."""
        self._spare = min(self._patience, self._spare + SHARE * (now - self._spare_at))
        self._spare_at = now
        return max(min(QUICK, self._patience), self._spare)

    def _silent(self, name: str, reason: str) -> _Known | None:
        self.unanswered += 1
        if self._warnings.allows("unknown"):
            logger.warning(
                "beat: overlap unknown entry=%s unanswered=%s: its last task counts as finished, for the result"
                " backend does not tell: %s", name, self.unanswered, reason,
            )  # fmt: skip
        return None


def _answer(questions: queue.SimpleQueue[Any]) -> None:
    """Answer one question after the other, with a result backend of this thread (under gevent, of this greenlet)."""
    while (asked := questions.get()) is not None:
        future, question = asked
        try:
            future.set_result(question())
        except Exception as exc:  # noqa: BLE001 - any backend's; the caller logs it
            future.set_exception(exc)
        del asked, future, question
