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
SENDING: Final = "sending"  # a backfill is about to send it: in doubt until another record tells what came of that


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
    due: float | None = None  # when the slot was due, which `neli_jitter` makes later than the slot; None: at the slot
    schedule: Any = None  # the entry's, an object of this process: no part of any record

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
        name, task, when = str(entry.name), str(entry.task), getattr(entry, "schedule", None)
        return cls(
            entry=name, task=task, slot=at, outcome=outcome, role=role, term=term, first=begins, schedule=when, **more
        )


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

pausing: Final = Hook("entries that are paused after failures")
"""Called with the name of an entry that has `neli_pause_on_failure` as it is read, on the thread that ticks."""

turn: Final = Hook("turns")
"""Called with the seconds that one turn of a beat took, without what it waited, on the thread that ticks."""
published: Final = Hook("publishing")
"""Called with the seconds that the task broker took for one message of a slot, on the thread that sends it."""

# Of the election, on the thread that renews; `group` is that of the `Config`.
renewed: Final = Hook("renewals")
"""Called with group, role, the seconds of a heartbeat's round trip, and the seconds that the lease had left before this
heartbeat renewed it (None if it began a term)."""
term_begun: Final = Hook("terms that begin")
"""Called with group, role, how the term before ended (`RELEASED`, `EXPIRED`, `DEPOSED`, `UNKNOWN`), and the seconds
between the two terms (None if unknown): this process has begun a term."""
term_ended: Final = Hook("terms that end")
"""Called with group, role and cause (one of `CAUSES`): a term of this process is over."""

RELEASED, EXPIRED, DEPOSED, UNKNOWN = ENDS = "released", "expired", "deposed", "unknown"
ASKED: Final = "asked"  # handed over: another member asked for the role, or `celery neli` for a handover
CLOSED: Final = "closed"  # handed over: the process stops
RESIGNED: Final = "resigned"  # handed over: code of the process wanted it
FAILING: Final = "failing"  # handed over: the process cannot serve the role
STALLED: Final = "stalled"  # handed over: no progress for `neli_stall_timeout`, or unfit to lead
UNDRAINED: Final = "undrained"  # a handover did not end within `neli_drain_timeout`
FROZEN: Final = "frozen"  # the lease ran out: the process stood still
LOG_LOST: Final = "log_lost"  # the log was lost, or differs from the one that was read
CRASHED: Final = "crashed"  # the thread that renews failed
CAUSES: Final = (
    ASKED, CLOSED, RESIGNED, FAILING, STALLED, EXPIRED, FROZEN, UNDRAINED, DEPOSED, LOG_LOST, CRASHED,
)  # fmt: skip

kafka_error: Final = Hook("errors of Kafka")
"""Called with librdkafka's name of an error, on the thread that polls or flushes a client."""
leader_task: Final = Hook("leader tasks")
"""Called with what a worker did with a leader-only task that it did not run (`forwarded`, `sent_back`, `skipped`) and
the role, in the worker's main process or in a pool's child."""
singleton: Final = Hook("singletons")
"""Called with the name of a singleton, its role, and whether a turn of it failed, on the singleton's thread."""
