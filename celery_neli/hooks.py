"""Hooks by which metrics, the run history and alarms look on, so that what they watch knows nothing of them.

A hook is called on the thread on which something happens, which may be the one that sends slots or the one that renews
the lease. So a receiver must return at once: it adds to a number, or appends to a bounded deque of which a thread of
its own takes. What it raises is logged once and swallowed. A hook without receivers costs a question for its truth.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from celery_neli.logs import escaping
from celery_neli.printable import printable_error

logger = escaping(logging.getLogger(__name__))


class Hook:
    """Calls its receivers, in the order in which they were added. Any thread; a forked child inherits the receivers."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._receivers: tuple[Callable[..., None], ...] = ()
        self._failed: set[int] = set()

    def __bool__(self) -> bool:
        return bool(self._receivers)

    def add(self, receiver: Callable[..., None]) -> None:
        """Call `receiver` from now on."""
        self._receivers = (*self._receivers, receiver)

    def remove(self, receiver: Callable[..., None]) -> None:
        """Do not call `receiver` any more."""
        self._receivers = tuple(each for each in self._receivers if each != receiver)

    def __call__(self, *values: Any) -> None:
        """Call all receivers with these values. Never raises an `Exception`."""
        for receiver in self._receivers:
            try:
                receiver(*values)
            except Exception:
                if id(receiver) not in self._failed:
                    self._failed.add(id(receiver))
                    logger.exception("what watches %s failed, which is logged once: %r", self.name, receiver)


MOST_OF_AN_ERROR: Final = 400  # characters of an error that are told


def error_text(error: BaseException | None) -> str:
    """Return the error in one line of printable characters, of limited length; "" for none."""
    return "" if error is None else printable_error(error, MOST_OF_AN_ERROR)


SENT: Final = "sent"  # its message left, confirmed as far as the transport can
FAILED: Final = "failed"  # its message could not be sent: it is retried
REFUSED: Final = "refused"  # the application refused to send it: its slot is over
IN_DOUBT: Final = "in_doubt"  # an earlier leader may or may not have sent it: `policy` (send, skip) decides
SKIPPED: Final = "skipped"  # a policy left it out: misfire or overlap


@dataclass(slots=True, kw_only=True)
class SlotEvent:
    """What became of a slot of an entry, or of several slots at once. Times are Unix seconds. Receivers share it: none
    changes it. One is made for each slot, and making a frozen one takes several times as long.
    """

    entry: str
    task: str
    slot: float | None  # the slot, or the last of several; None if the entry's schedule knows no slots
    outcome: str
    role: str
    term: int | None
    id: str | None = None  # the task id of the slot
    policy: str = ""
    count: int = 1  # how many slots; `first` is the first of them
    first: float | None = None
    error: str = ""
    at: float = field(default_factory=time.time)

    @classmethod
    def of(
        cls,
        outcome: str,
        entry: Any,
        slot: datetime | None,
        role: str,
        term: int | None,
        *,
        first: datetime | None = None,
        **more: Any,
    ) -> SlotEvent:
        """Return what became of the slot of a schedule's entry."""
        at, begins = (None if each is None else each.timestamp() for each in (slot, first))
        name, task = str(entry.name), str(entry.task)
        return cls(entry=name, task=task, slot=at, outcome=outcome, role=role, term=term, first=begins, **more)


slot: Final = Hook("slots")
"""Called with a `SlotEvent`, on the thread that ticks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEvent:
    """What the task of an entry's slot does, as the worker's main process sees it. Times are Unix seconds."""

    entry: str
    task: str
    slot: float | None  # None if it was run by hand
    id: str | None
    state: str  # one of `history.records.STATES`
    worker: str
    runtime: float | None = None  # seconds, once it has ended
    retries: int = 0
    error: str = ""
    at: float = field(default_factory=time.time)


run: Final = Hook("runs")
"""Called with a `RunEvent`, in a worker's main process, on the thread that sees to the task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerEvent:
    """A worker that tells what the tasks of slots do has started; or, `stopped`, has ended."""

    worker: str
    queues: tuple[str, ...] = ()
    stopped: bool = False
    at: float = field(default_factory=time.time)


worker: Final = Hook("workers")
"""Called with a `WorkerEvent`, in a worker's main process."""
