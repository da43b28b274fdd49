"""What the beat that leads writes of definitions: again what was lost or is hidden, and an end to what is over.

The rules are in docs/protocol.md ("Definitions"). Belongs to the thread that ticks; never waits.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from celery.utils.log import get_logger

from celery_neli.beat.replicated.unwritten import PORTION
from celery_neli.exceptions import RecordError
from celery_neli.logs import escaping
from celery_neli.schedule.due import at_of
from celery_neli.schedule.slots import only_slot
from celery_neli.schedule_topic.codec import (
    ENTRY,
    MAX_CHANGES,
    PAUSE,
    STATE,
    Change,
    Definition,
    encode_definition,
    succeeding,
)
from celery_neli.schedule_topic.rules import encode_pause

if TYPE_CHECKING:
    from celery_neli.beat.replicated.entries import EntryTable
    from celery_neli.beat.replicated.states import States
    from celery_neli.schedule_topic.topic import ScheduleTopic

logger = escaping(get_logger(__name__))


class Repairs:
    """Writes definitions of the entries in ``table`` to ``topic``, as ``states`` knows them; as ``member``."""

    def __init__(self, table: EntryTable, states: States, topic: ScheduleTopic, member: str) -> None:
        self._table, self._states, self._topic, self._member = table, states, topic, member
        #: Entries that were removed, and whose states are being deleted: their definitions follow.
        self._deleting: dict[str, None] = {}

    def begin(self) -> None:
        """Begin a term."""
        states = self._states
        states.over, states.ending, self._deleting = self._finished(), {}, {}

    def finished(self, name: str) -> None:
        """Note that an entry of one slot has run."""
        self._states.over[name] = self._states.since[name]

    def write_some(self) -> bool:
        """Write some of what the topic has lost, or what a void record hides; return True if more is left."""
        states, inventory, topic = self._states, self._states.inventory, self._topic
        for name, value in (*inventory.take_lost(PORTION).items(), *inventory.take_void(PORTION).items()):
            if name not in states.over:  # else what says that it was removed is written instead: one of them, not both
                topic.write(ENTRY, name, value)
        self._write_pauses()
        states.unwritten.write_again(PORTION)
        return bool(inventory.lost or states.unwritten.again)

    def _write_pauses(self) -> None:
        """Write pauses of many entries that the topic has lost, and delete those that ended long ago."""
        bulk, topic = self._states.bulk, self._topic
        while bulk.lost:
            name, _ = bulk.lost.popitem()
            if name in bulk.rules:
                topic.write(PAUSE, name, encode_pause(bulk.rules[name]))
        if bulk.rules and not self._states.unwritten and not topic.unsaved:
            for name in bulk.take_expired():
                topic.write(PAUSE, name, None)

    def remove(self) -> None:
        """Remove entries that ran for the only time, unless they were defined again, and what is left of those that
        were removed a minute ago. An entry is here until its removal was read back: if another change comes first, that
        counts, and what it changes has run.
        """
        self._delete()
        states, topic = self._states, self._topic
        finished, states.over = states.over, {}
        for name, since in finished.items():
            if name not in states.defined or states.since.get(name) != since:
                continue
            entry = self._table.schedule.get(name)
            how = "ran, for the only time" if entry is None or entry.total_run_count else "was refused its only run"
            try:
                definition = states.inventory.definition(name)
            except RecordError:
                continue
            if definition is None:
                continue
            states.ending[name] = since
            topic.write(ENTRY, name, encode_definition(self._ended(definition, how)))
            logger.info("schedule: entry=%s %s, and was removed", name, how)

    def _finished(self) -> dict[str, float]:
        """Return the entries of one slot that ran and are still defined: by name, since when."""
        states, schedule = self._states, self._table.schedule
        return {
            name: states.since[name]
            for name in states.defined
            if (entry := schedule.get(name)) is not None
            and (at := only_slot(entry.schedule)) is not None
            and at_of(entry) >= at.timestamp()
        }

    def _ended(self, definition: Definition, how: str) -> Definition:
        change = Change(at=self._table.moment(), by=f"beat {self._member}", what=f"removed: it {how}")
        changes = (*definition.changes, change)[-MAX_CHANGES:]
        return succeeding(replace(definition, removed=True, args=[], kwargs={}, changes=changes), definition)

    def _delete(self) -> None:
        """Delete states of entries that were removed, and then, when that is acknowledged, their definitions: without
        a state, an entry is owed what it has not run. A definition that was put in the meantime is not deleted.
        """
        inventory, topic = self._states.inventory, self._topic
        for name in [name for name in self._deleting if topic.saved(STATE, name)]:
            del self._deleting[name]
            if inventory.is_removed(name):
                topic.write(ENTRY, name, None)
        for name in inventory.take_removed(PORTION, self._table.moment()):
            topic.write(STATE, name, None)
            self._deleting[name] = None
