"""The seam between the engine and what must know of each slot: a ledger admits slots, and learns what came of them.

The `SlotLedger` itself does nothing. It is that of a `ReplicatedScheduler` that stands alone. While an elected beat
leads, the ledger is `celery_neli.beat.replicated.outcomes.ClaimingLedger`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from celery_neli.schedule.due import Look


@dataclass(eq=False, slots=True)
class Run:
    """One run of an entry for a slot: ``entry`` before it, ``advanced`` after it. The rest is of those in the pool."""

    entry: Any
    slot: datetime | None
    advanced: Any = None
    #: True if it was given to the transport: unless its message has left, it is unknown whether it arrives.
    wired: bool = False
    #: The entry as it is sent, without what is not part of its message.
    sent: Any = None
    found: Any = None
    now: Any = None
    headers: Any = None
    error: BaseException | None = None
    #: What the application raised instead of sending it: the slot is over without a run.
    refused: BaseException | None = None
    #: When it was made (`time.monotonic`).
    at: float = field(default_factory=time.monotonic)


class SlotLedger:
    """What the engine asks and reports of each slot. The thread that ticks. Times are Unix seconds."""

    #: True if every slot must be known exactly, and none may run a moment before it is due.
    exact = False
    #: Slots that were in doubt when a term began here.
    in_doubt = 0

    def owns(self, name: str) -> bool:
        """Return True if this scheduler runs the entry of that name."""
        return True

    def check(self, entry: Any) -> None:
        """Raise `ConfigurationError` if the entry has a policy that it cannot have."""

    def added(self, name: str) -> None:
        """Note that code has added this entry to the schedule."""

    def ready(self, due: float, moment: float) -> float:
        """Get ready for the slot that is ``due``; return the seconds to wait for that, 0 to go on."""
        return 0.0

    def rest(self, due: float | None, wait: float) -> float:
        """Return the seconds until the next tick: nothing is due for ``wait`` seconds, and ``due`` is next."""
        return wait

    def admit(self, entry: Any, found: Look, now: datetime) -> float | None:
        """Return None if what was found of the entry may go on; otherwise the seconds until another look."""
        return None

    def missed(self, entry: Any, found: Look, count: int) -> None:
        """Note that the misfire policy leaves out `count` slots of which nothing was said before."""

    def task_id(self, entry: Any, slot: datetime | None) -> str | None:
        """Return the task id of a slot, or None if any will do."""
        return None

    def submitted(self, run: Run) -> None:
        """Note that a publisher's thread sends the run."""

    def settled(self, run: Run) -> None:
        """Note that the run's message left, confirmed as far as the transport can, or that its slot was `refused`."""

    def failed(self, run: Run) -> None:
        """Note that it could not be sent."""

    def withdrawn(self, run: Run) -> None:
        """Note that it was submitted and not begun, or that the term ended first."""

    def outdated(self, run: Run, *, ran: bool) -> None:
        """Note that its entry was defined again, paused or removed after it was submitted; ``ran``: it was sent."""

    def write(self, entry: Any) -> None:
        """Note what an entry has come to of which slots will never run."""

    def retry_at(self, name: str) -> float | None:
        """Return when the entry's failed slot is retried; None if no slot of it failed."""
        return None

    def set_back(self) -> None:
        """Note that the clock was set back."""

    def flush(self) -> None:
        """Wait for a second at most until what was noted is stored."""
