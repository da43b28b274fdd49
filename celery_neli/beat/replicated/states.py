"""What the schedule topic says, applied to the entries of a scheduler: their states, and the entries made at runtime.

A standby's entries follow the records as they come; a leader knows better, but for what others define while it leads.
What a state means to a successor is in docs/protocol.md ("Slots").
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from operator import attrgetter
from typing import Any

from celery_neli.beat.replicated.bulk_pauses import BulkPauses
from celery_neli.beat.replicated.entries import EntryTable
from celery_neli.beat.replicated.inventory import Ahead, EntryLines, Inventory, defined_at, trim
from celery_neli.beat.replicated.pause_ends import PauseEnds
from celery_neli.beat.replicated.unwritten import UnwrittenStates
from celery_neli.exceptions import ConfigurationError, RecordError
from celery_neli.periodic.definition import entry_of, reason_of
from celery_neli.printable import printable_error
from celery_neli.schedule.due import at_of, begin_shifted, last_at, place, place_last
from celery_neli.schedule_topic.codec import (
    ENTRY,
    FAR_AHEAD,
    NO_EPOCH,
    PAUSE,
    RUNS_MOST,
    STATE,
    Definition,
    Kind,
    State,
    decode_definition,
    decode_state,
)  # fmt: skip
from celery_neli.schedule_topic.versions import Chain

_FIELDS = attrgetter("task", "schedule", "args", "kwargs", "options")


class States:
    """The entries of ``table``, as far as they are known from the schedule topic. The thread that ticks.

    ``owns`` returns True if an entry of that name is this scheduler's; ``write`` writes the state of an entry;
    ``forgotten`` is called with the name of one that is gone, and ``refuse`` with a record that cannot be read.
    """

    def __init__(
        self,
        table: EntryTable,
        *,
        app: Any,
        owns: Callable[[str], bool],
        write: Callable[[Any], None],
        forgotten: Callable[[str], None],
        refuse: Callable[[Kind, str, RecordError], None],
    ) -> None:
        self._table, self._app, self._owns, self._write = table, app, owns, write
        self._forgotten, self._refuse, self._moment = forgotten, refuse, table.moment
        self.unwritten = UnwrittenStates(table, write)
        #: Entries that the watermark *settled* does not cover.
        self.open: set[str] = set()
        #: No slot at or before it is owed (Unix seconds); of entries that were defined or paused at runtime.
        self.since: dict[str, float] = {}
        #: Entries that were defined at runtime.
        self.defined: set[str] = set()
        #: States, and pauses of entries of beat_schedule, that are not here (yet); kept, for their entries may come.
        self._orphan_states: dict[str, State] = {}
        self._pending_overrides: dict[str, Definition] = {}
        self.inventory = Inventory()
        #: The highest epoch of a state that was read.
        self.newest = -1
        #: The slot of the last task that was sent (Unix seconds), of entries that ask whether it has finished.
        self.sent: dict[str, float] = {}
        #: Entries of which a slot waits until that task has ended, and none since `last` was given to the transport.
        self.waiting: set[str] = set()
        #: When entries were defined at runtime (Unix seconds), of those whose slots begin earlier, as imported ones do,
        #: and that no leader wrote a state of.
        self.imported: dict[str, float] = {}
        #: Entries of one slot that ran and are to be removed, and those of which that was written: their `since`.
        self.over, self.ending = dict[str, float](), dict[str, float]()
        self._ends = PauseEnds(table.moment)
        self.bulk = BulkPauses(table, since=self.since, open_=self.open)
        self._lines = EntryLines()
        self._ahead = Ahead(table.moment, self._lines.limit)

    def load(self) -> None:
        """Take over the entries of beat_schedule, of which nothing was read yet."""
        self.unwritten.unread = dict.fromkeys(self._table.schedule)
        for entry in self._table.schedule.values():
            begin_shifted(entry)

    def apply(self, kind: Kind, name: str, value: bytes | Chain | None, *, leading: bool, many: bool) -> None:
        """Apply a record, one of ``many`` (logged at DEBUG). With ``leading``, this process knows the states better."""
        if isinstance(value, tuple):
            for each in value:
                self.apply(kind, name, each, leading=leading, many=many)
            return
        self._lines.level = logging.DEBUG if many else logging.INFO
        with self._alone(kind, name, leading=leading):
            if kind == PAUSE:
                self.bulk.read(name, value)
            elif not self._owns(name):
                return
            elif kind == STATE:
                self._read_state(name, value, leading=leading)
            elif kind == ENTRY and not self.inventory.is_void(name, value):
                if value is None:
                    self._remove(name)
                else:
                    self._take_definition(name, value)

    def caught_up(self) -> None:
        """Forget all but the newest records of entries that are not here: the topic was read to its end."""
        trim(self._orphan_states)
        for name in trim(self._pending_overrides):
            self.inventory.forget(name)

    def recount(self, *, torn: bool) -> None:
        """Get ready to read the topic from its beginning again; ``torn``: it has lost records."""
        self.inventory.recount()
        self.bulk.recount()
        if torn:
            self.unwritten.again = dict.fromkeys((*self._table.schedule, *self._table.paused))

    def counted(self, *, torn: bool) -> None:
        """Remove entries that the topic, read to its end since `recount`, has no more (`Inventory.counted`)."""
        self.bulk.counted(torn=torn)
        for name in self.inventory.counted(torn=torn):
            self._remove(name)

    def _take_definition(self, name: str, value: bytes) -> None:
        inventory = self.inventory
        inventory.seen(name)
        try:
            definition = decode_definition(value)
        except RecordError:
            inventory.unreadable(name, value)
            raise
        if definition.removed:
            self._remove(name)
            inventory.keep_removed(name, value, self._moment())
        else:
            inventory.keep(name, value)
            self._read_entry(name, definition)

    def _remove(self, name: str) -> None:
        self.inventory.forget(name)
        self._read_entry(name, None)

    def adopt(self, name: str) -> None:
        """Take over an entry that code has added, perhaps after the topic was read."""
        self.unwritten.unread[name] = None
        begin_shifted(self._table.schedule[name])
        self._take_orphan(self._table.schedule[name])
        if (override := self._pending_overrides.get(name)) is not None:
            with self._alone(ENTRY, name):
                self._read_entry(name, override)
        if self.bulk.rules:
            self.bulk.judge(name)

    def state_of(self, entry: Any, *, epoch: int) -> State:
        """Return what is to be written of ``entry``."""
        name = entry.name
        return State(
            last=last_at(entry),
            runs=min(entry.total_run_count, RUNS_MOST),
            epoch=epoch,
            since=self.since.get(name, 0.0),
            open=name in self.open,
            sent=self.sent.get(name),
            waits=name in self.waiting,
        )

    def begin(self, settled: float | None) -> None:
        """Know, from now on, the entries of which no state was written. They begin now, or count as served until
        ``settled`` (Unix seconds), where another beat has led before.
        """
        self.unwritten.begin()
        self.unwritten.names.update(self.bulk.take_moved())
        if settled is not None:
            for name in self.unwritten.names:
                entry = self._table.find(name)
                if entry is not None and name not in self.since and at_of(entry) > settled:
                    place(entry, settled)
                    self._table.note(name)

    def write_some(self) -> bool:
        """Write a small batch of the states that are to be written; return True if more are left."""
        self.unwritten.names.update(self.bulk.take_moved())
        return self.unwritten.write_some()

    def static(self) -> list[Any]:
        """Return the entries of beat_schedule, paused ones too."""
        entries = {**self._table.schedule, **self._table.paused}
        return [entry for name, entry in entries.items() if name not in self.defined]

    @property
    def of_a_leader(self) -> bool:
        """True if any state that was read is of a leader; an import has no epoch."""
        return self.newest > NO_EPOCH

    def ran(self, name: str, last: float) -> None:
        """Note that the entry ran for a slot after it was defined again or paused."""
        if (entry := self._table.find(name)) is not None:
            entry.total_run_count += 1
            if last_at(entry) < last:
                place_last(entry, last)
                self._table.note(name)
            self._write(entry)

    def forget(self, name: str) -> None:
        """Forget an entry that is gone for good."""
        self._table.remove(name)
        self.unwritten.drop(name)
        for names in (self.open, self.defined, self.waiting):
            names.discard(name)
        known: tuple[dict[str, Any], ...] = (
            self.since, self.sent, self.imported, self.over, self.ending,
            self._orphan_states, self._pending_overrides,
        )  # fmt: skip
        for each in known:
            each.pop(name, None)
        self.inventory.forget(name)
        for forgetful in (self._ends.forget, self.bulk.forget, self._forgotten):
            forgetful(name)

    @contextmanager
    def _alone(self, kind: Kind, name: str, *, leading: bool = False) -> Iterator[None]:
        """Read one record. Whatever that raises costs this record alone, and one line in the log."""
        try:
            yield
        except ConfigurationError as exc:
            self._leave_out(name)
            self._lines.left_out(name, reason_of(exc, name))
        except Exception as exc:  # noqa: BLE001 - that was not foreseen: its neighbours are read all the same
            if not isinstance(exc, RecordError):
                exc = RecordError(f"cannot be read: {printable_error(exc)}")
            if kind == ENTRY:
                self._leave_out(name)  # as a beat does that starts now
            self._refuse(kind, name, exc)
            if leading and kind == STATE and (entry := self._table.find(name)) is not None:
                self._write(entry)  # compaction keeps what was written last

    # -- states --

    def _read_state(self, name: str, value: bytes | None, *, leading: bool) -> None:
        state = None if value is None else decode_state(value)
        self._orphan_states.pop(name, None)
        entry = self._table.find(name)
        if state is None:
            if leading and entry is not None:  # a leader that was frozen deletes what was removed, and put again since
                self._write(entry)
        elif entry is None:
            self._orphan_states[name] = state
        elif not leading or (state.epoch == NO_EPOCH and last_at(entry) < state.last <= self._moment() + FAR_AHEAD):
            self._apply(entry, state)
        elif state.epoch != NO_EPOCH or state.last > last_at(entry):
            # A leader that was frozen wrote it. Compaction keeps what was written last, so ours is written again.
            self._write(entry)

    def _take_orphan(self, entry: Any) -> None:
        if (orphan := self._orphan_states.pop(entry.name, None)) is not None:
            with self._alone(STATE, entry.name):
                self._apply(entry, orphan)

    def _apply(self, entry: Any, state: State) -> None:
        name = entry.name
        if state.epoch == NO_EPOCH and name not in self.unwritten.unread and state.last <= last_at(entry):
            return
        since = self._ahead.begins(name, self.since.get(name, 0.0))
        if state.last > since and self._ahead.is_far(name, "last", state.last):
            self.newest = max(self.newest, state.epoch)  # so that what is written in its place counts
            return
        if NO_EPOCH < state.epoch < self.newest and name not in self.unwritten.unread:
            # Of a deposed leader, late: that it ran may be news, nothing else is.
            if state.last > last_at(entry):
                place_last(entry, state.last)
                entry.total_run_count = max(entry.total_run_count, state.runs)
                self._table.note(name)
            return
        place_last(entry, max(state.last, since))  # may raise: first of all
        self.newest = max(self.newest, state.epoch)
        if state.epoch > NO_EPOCH:
            self.imported.pop(name, None)
        self.unwritten.drop(name)
        if state.open or state.since != self.since.get(name, 0.0):
            self.open.add(name)
            self.bulk.tell(name, state)
        else:
            self.open.discard(name)
        (self.waiting.add if state.waits else self.waiting.discard)(name)
        entry.total_run_count = state.runs
        if state.sent is not None and not self._ahead.is_far(name, "sent", state.sent):
            self.sent[name] = state.sent
        self._table.note(name)

    # -- definitions --

    def wake(self) -> float:
        """End the pauses whose time has come; return the seconds until the next one ends, infinity without any."""
        if self._ends.heap:
            for name in self._ends.due():
                with self._alone(ENTRY, name):
                    if (definition := self.inventory.definition(name)) is not None:
                        self._read_entry(name, definition)
        wait = self._ends.wait() if self._ends.heap else float("inf")
        return min(wait, self.bulk.step()) if self.bulk.rules or self.bulk.scan is not None else wait

    def _read_entry(self, name: str, definition: Definition | None) -> None:
        if self._ends.heap or (definition is not None and definition.until is not None):
            definition = self._ends.stand(name, definition)
        (self.bulk.own.add if definition is not None and definition.paused else self.bulk.own.discard)(name)
        self._pending_overrides.pop(name, None)
        before = self._table.find(name)
        static = name not in self.defined and before is not None
        if static and (definition is None or definition.static):
            self._pause(before, definition)
        elif definition is None:
            if name in self.defined:
                if name not in self.ending:  # else the line is there that says why
                    self._lines.changed(name, "removed")
                self.forget(name)
        elif definition.static:
            # This version of the schedule does not have it.
            self._pending_overrides[name] = replace(definition, args=[], kwargs={}, options={}, changes=())
        elif static:
            self._lines.hidden(name)
        else:
            self._define(name, definition, before)
        if self.bulk.rules:
            self.bulk.judge(name)

    def _define(self, name: str, definition: Definition, before: Any) -> None:
        if self.ending.pop(name, None) == definition.since:  # a change came first: that it was removed is void
            self.over[name] = definition.since
        entry = entry_of(definition, name, self._app)
        self._table.check(entry)
        again = before is not None and definition.since == self.since.get(name)
        if again and _FIELDS(before) == _FIELDS(entry):
            self._pause_or_go_on(before, paused=definition.paused)
            return
        if before is None:
            if name not in self.since and (at := defined_at(definition)) > definition.since:
                self.imported[name] = at
            self.unwritten.unread[name] = None
            place_last(entry, self._ahead.begins(name, definition.since) or self._moment())
        else:
            entry.total_run_count = before.total_run_count
            place_last(entry, self._not_before(before, definition.since))
        if not again:
            self.open.add(name)
        self.since[name] = definition.since
        self.defined.add(name)
        self._table.show(entry, paused=definition.paused)
        self._take_orphan(entry)
        self._lines.changed(name, "defined" if before is None else "changed")

    def _pause(self, entry: Any, definition: Definition | None) -> None:
        paused = definition is not None and definition.paused
        if definition is not None and definition.since != self.since.get(entry.name, 0.0):
            self.since[entry.name] = definition.since
            self.open.add(entry.name)
            if not paused:
                place_last(entry, self._not_before(entry, definition.since))
        self._pause_or_go_on(entry, paused=paused)

    def _pause_or_go_on(self, entry: Any, *, paused: bool) -> None:
        if paused != (entry.name in self._table.paused):
            self._lines.changed(entry.name, "paused" if paused else "resumed")
            self._table.show(entry, paused=paused)
        elif not paused:
            self._table.note(entry.name)

    def _not_before(self, entry: Any, since: float) -> float:
        return max(last_at(entry), self._ahead.begins(entry.name, since))

    def _leave_out(self, name: str) -> None:
        if name in self.defined:
            self._table.remove(name)
