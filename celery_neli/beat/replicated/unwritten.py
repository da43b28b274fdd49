"""The states of entries that are still to be written, in batches: of entries that are new, and those that were lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from celery_neli.beat.replicated.entries import EntryTable
from celery_neli.schedule.heap import DueHeap

#: States that are written at the end of a turn: some 5 ms.
PORTION = 500


class UnwrittenStates:
    """Entries of ``table`` whose states are to be written by ``write``. The thread that ticks.

    Writing 100,000 initial states takes seconds, for which no task waits. But the slots of an interval are counted from
    what is in the state, so it is written before a slot of the entry is claimed.
    """

    def __init__(self, table: EntryTable, write: Callable[[Any], None]) -> None:
        self._table, self._write = table, write
        #: Entries of which no state was read.
        self.unread: dict[str, None] = {}
        #: Entries that are known in this term, and whose initial states are still to be written.
        self.names: dict[str, None] = {}
        #: Entries whose states the topic has lost and that are still to be written again.
        self.again: dict[str, None] = {}
        #: Until when (Unix seconds) the initial states of entries that are due were written.
        self._written_until = float("-inf")

    def __bool__(self) -> bool:
        return bool(self.names)

    def begin(self) -> None:
        """Begin a term: the entries of which no state was read are known from now on."""
        self._written_until = float("-inf")
        self.names.update(self.unread)
        self.unread = {}

    def drop(self, name: str) -> None:
        """Forget an entry: its state was read, or the entry is gone."""
        for names in (self.unread, self.names, self.again):
            names.pop(name, None)

    def write_due(self, heap: DueHeap, moment: float, interval: float) -> None:
        """Write the initial states of what a claim at ``moment`` (Unix seconds) reaches, ``interval`` seconds ahead."""
        if self._written_until < moment + interval:
            self._written_until = moment + 2 * interval  # looked for once an interval
            self._take(self.names, heap.until(self._written_until))

    def write_some(self) -> bool:
        """Write a small batch of the other initial states; return True if more are left."""
        self._take(self.names, islice(self.names, PORTION))
        return bool(self.names)

    def write_again(self, most: int) -> None:
        """Write up to ``most`` of the states that the topic has lost."""
        self._take(self.again, islice(self.again, most))

    def _take(self, waiting: dict[str, None], names: Iterable[str]) -> None:
        found = [name for name in names if name in waiting]
        for name in found:
            del waiting[name]
            if (entry := self._table.find(name)) is not None:
                self._write(entry)
