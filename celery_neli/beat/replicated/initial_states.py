"""Write the initial states of new entries in small batches: a hundred thousand take seconds.

No task of the term waits for them, for the mark *done* says all of such an entry; but that in the state is what the
slots of an interval are counted from. So it is written before a slot of the entry is claimed.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery_neli.schedule.heap import DueHeap

__all__ = ["PORTION", "Births"]

#: States that are written at the end of a tick: some 5 ms.
PORTION = 500


class Births:
    """Writes the states of what is `States.unwritten`, of a led scheduler, in a term. The thread that ticks."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        #: Unix seconds: what is due until then was written.
        self._until = float("-inf")

    def write_due(self, heap: DueHeap, moment: float) -> None:
        """It is ``moment`` (Unix seconds), and a claim is to be made: those come first that it reaches."""
        states, interval = self._scheduler.neli_states, self._scheduler.neli_keeper.interval
        if states.unwritten and self._until < moment + interval:
            self._until = moment + 2 * interval  # a claim reaches one ahead; looked for once an interval
            self._write(heap.until(self._until))

    def write_some(self) -> bool:
        """Write a portion of the others; return True if more are left."""
        unwritten = self._scheduler.neli_states.unwritten
        if unwritten:
            self._write(islice(unwritten, PORTION))
        return bool(unwritten)

    def _write(self, names: Any) -> None:
        for entry in self._scheduler.neli_states.take_unwritten(list(names)):
            self._scheduler.neli_write(entry)
