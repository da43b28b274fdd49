"""Entries of one slot that ran: the beat that leads removes them from the schedule topic."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from celery_neli.logs import escaping
from celery_neli.schedule_topic.codec import ENTRY, STATE

if TYPE_CHECKING:
    from celery_neli.beat.replicated.entries import EntryTable
    from celery_neli.beat.replicated.states import States
    from celery_neli.schedule_topic.topic import ScheduleTopic

logger = escaping(logging.getLogger(__name__))


class FinishedEntries:
    """The entries of one slot that ran, and are still defined. The thread that ticks."""

    def __init__(self, topic: ScheduleTopic, states: States) -> None:
        self._topic, self._states = topic, states
        #: Their `since`, and those that were removed but for their states.
        self._since: dict[str, float] = {}
        self._tombstones: set[str] = set()

    def begin(self) -> None:
        """Begin a term: earlier leaders may have left some."""
        self._since = self._states.finished_once()

    def note(self, name: str) -> None:
        """Note that the entry ran for its only slot, or was refused that."""
        self._since[name] = self._states.since[name]

    def remove(self, table: EntryTable) -> None:
        """Remove them, unless they were defined again: what others wrote was read.

        The state goes last, because without one an entry is owed what it has not run.
        """
        topic, states = self._topic, self._states
        for name in [name for name in self._tombstones if topic.saved(ENTRY, name)]:
            self._tombstones.discard(name)
            if name not in states.defined:
                topic.write(STATE, name, None)
        finished, self._since = self._since, {}
        for name, since in finished.items():
            if name in states.defined and states.since.get(name) == since:
                entry = table.schedule.get(name)
                how = "ran, for the only time" if entry is None or entry.total_run_count else "was refused its only run"
                topic.write(ENTRY, name, None)
                self._tombstones.add(name)
                states.forget(name)
                logger.info("schedule: entry=%s %s, and was removed", name, how)
