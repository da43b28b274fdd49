"""The runtime schedule, read and changed: what each change means, apart from where it is kept.

An entry is of `beat_schedule` or was put at runtime, never both. Of the former only a pause is kept here.
"""

from __future__ import annotations

import getpass
import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol, TypeAlias

import celery.beat
from celery.utils.log import get_logger

from celery_neli.exceptions import ConfigurationError, NeliError, RecordError
from celery_neli.logs import escaping
from celery_neli.nearest import similar
from celery_neli.periodic.call import check_app, plain
from celery_neli.periodic.definition import OWN_OPTIONS, check_comes, define, entry_of
from celery_neli.periodic.static import StaticEntries, check_static
from celery_neli.schedule.due import expires_of
from celery_neli.schedule_topic.codec import (
    ENTRY,
    STATE,
    Change,
    Definition,
    Kind,
    State,
    check_name,
    decode,
    decode_definition,
    decode_state,
    encode_definition,
)
from celery_neli.schedule_topic.values import shown

__all__ = ["Known", "ScheduleEditor", "Store", "default_author", "named"]

logger = escaping(get_logger(__name__))

Record: TypeAlias = "tuple[Kind, str, bytes | None]"


class Store(Protocol):
    """Where the schedule is kept: the schedule topic. Both block, and raise `NeliError`."""

    def read(self) -> Mapping[tuple[Kind, str], bytes]:
        """All states and definitions."""

    def write(self, records: list[Record]) -> None:
        """All of them; None deletes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the store holds. `unreadable`: why a definition could not be read (a newer release wrote it)."""

    states: dict[str, State] = field(default_factory=dict)
    definitions: dict[str, Definition] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)


class ScheduleEditor:
    """Reads and changes the schedule of ``app`` in ``store``. One for each change; it reads the store once.

    ``by``: who makes the change (default: user@host). Raises `ConfigurationError` and `NeliError`; nothing was changed
    then.
    """

    def __init__(self, app: Any, store: Store, *, by: object = None, clock: Callable[[], float] = time.time) -> None:
        by = plain(by)
        if by is not None and (not isinstance(by, str) or not by.strip() or not by.isprintable() or len(by) > 200):
            raise ConfigurationError(f"by = {shown(by)}: say who makes the change, in 1 to 200 printable characters")
        self.app = check_app(app)
        self.by: str = default_author() if by is None else by
        self.now = clock()
        self._store = store

    # -- what there is --

    @cached_property
    def known(self) -> Known:
        """What the store holds. Blocks at the first time."""
        known = Known()
        for (kind, name), value in self._store.read().items():
            try:
                if kind == STATE:
                    known.states[name] = decode_state(value)
                elif kind == ENTRY:
                    known.definitions[name] = decode_definition(value)
            except RecordError as exc:  # decoders raise nothing else
                if kind == ENTRY:
                    known.unreadable[name] = str(exc)
        return known

    @cached_property
    def static(self) -> Mapping[str, Any]:
        """Celery's entries of `beat_schedule` and its default entries. Loads the app's configuration."""
        self.app.finalize()
        lazy = celery.beat.Scheduler(self.app, schedule={}, lazy=True)
        lazy.merge_inplace(self._checked.entries)
        lazy.install_default_entries(lazy.schedule)
        entries: Mapping[str, Any] = lazy.schedule
        return entries

    @cached_property
    def refused(self) -> Mapping[str, str]:
        """The entries of `beat_schedule` that every beat leaves out: by name, all mistakes in each."""
        return {name: "; ".join(mistakes) for name, mistakes in self._checked.mistakes.items()}

    @property
    def doubts(self) -> Mapping[str, str]:
        """The doubts about entries of `beat_schedule` that beats run all the same, by name."""
        return {name: "; ".join(doubts) for name, doubts in self._checked.doubts.items()}

    @cached_property
    def _checked(self) -> StaticEntries:
        self.app.finalize()
        return check_static(self.app.conf.beat_schedule, self.app)

    def runtime(self, name: str) -> Definition | None:
        """The runtime entry of this name."""
        found = self.known.definitions.get(name)
        return None if found is None or found.static else found

    def entry(self, name: str) -> Any:
        """Celery's entry of this name. Raises `NeliError` if there is none, or it cannot be read."""
        name = self._ours(name)
        if name in self.static:
            return self.static[name]
        definition = self.runtime(name)
        if definition is None:
            raise self.unknown(name)
        return entry_of(definition, name, self.app)

    # -- changes --

    def put(self, name: str, task: Any, schedule: Any, args: Any, kwargs: Any, options: Any) -> None:
        """Add an entry, or replace what it is. Stays paused if it was. Writes nothing if nothing would change."""
        name = check_name(name)
        if name in self.static or name in self.refused:
            raise ConfigurationError(f"name = {name!r}: beat_schedule has an entry of that name; change it there")
        old = self.runtime(name)
        new = self.succeeding(define(self.app, name, task, schedule, args=args, kwargs=kwargs, options=options), old)
        if new is not None:
            check_comes(new, self.app, after=self.now)
            self._store_definition(name, new)

    def succeeding(self, new: Definition, old: Definition | None, *, what: str = "added") -> Definition | None:
        """``new`` in place of ``old``, as it is stored; None if they are the same."""
        if old is None:
            return self._changed(replace(new, since=self.now), what)
        fields = ("task", "schedule", "args", "kwargs", "options")
        changed = [name for name in fields if getattr(new, name) != getattr(old, name)]
        if not changed:
            return None
        since = self.now if "schedule" in changed else old.since
        new = replace(new, since=since, paused=old.paused, changes=old.changes)
        told = [f"schedule {old.schedule} -> {new.schedule}" if name == "schedule" else name for name in changed]
        return self._changed(new, f"changed {', '.join(told)}")

    def pause(self, name: str) -> None:
        """Let its slots pass. Writes nothing if it is paused."""
        name = named(name)
        found = self._definition(name)
        if not found.paused:
            self._store_definition(name, self._changed(replace(found, paused=True), "paused"))

    def resume(self, name: str) -> None:
        """End the pause: the first slot after now is the next. Writes nothing if it is not paused."""
        name = named(name)
        found = self._definition(name)
        if found.paused:
            if not found.static:
                check_comes(found, self.app, after=self.now)
            self._store_definition(name, self._changed(replace(found, paused=False, since=self.now), "resumed"))

    def remove(self, name: str) -> None:
        """Delete a runtime entry and its state."""
        name = named(name)
        gone: list[Record] = [(ENTRY, name, None)]
        if name not in self.static and name not in self.refused:
            if name not in self.known.definitions and name not in self.known.unreadable:
                raise self.unknown(name)
            gone.append((STATE, name, None))
        elif self.runtime(name) is None and name not in self.known.unreadable:
            raise ConfigurationError(f"name = {name!r}: is in beat_schedule; take it out there, or pause it")
        self.write(gone)
        logger.info("schedule entry=%s what=removed by=%s", name, self.by)

    def run_now(self, name: str) -> Any:
        """Send the task of an entry, as beat does, with the header `neli_beat_entry`; its result."""
        name = named(name)
        entry = self.entry(name)
        found = self.runtime(name)
        if found is not None:
            self._store_definition(name, self._changed(found, "run now"))
        expires = expires_of(entry.options, None, self.app.timezone)
        entry.options = {key: value for key, value in entry.options.items() if key not in OWN_OPTIONS}
        if expires is not None:
            entry.options["expires"] = expires
        entry.options["headers"] = {**(entry.options.get("headers") or {}), "neli_beat_entry": name}
        return celery.beat.Scheduler(self.app, schedule={}, lazy=True).apply_async(entry, advance=False)

    def write(self, records: list[Record]) -> None:
        """Write records as they are, and know what they say."""
        if records:
            self._store.write(records)
        known = self.known
        for kind, name, value in records:
            values: dict[str, Any] = known.states if kind == STATE else known.definitions
            if value is None:
                values.pop(name, None)
            else:
                values[name] = decode(kind, value)
            if kind == ENTRY:
                known.unreadable.pop(name, None)

    def _ours(self, name: str) -> str:
        """The name, unless it is one of an entry of `beat_schedule` that is left out. Raises `NeliError` for that."""
        name = named(name)
        if name in self.refused:
            raise NeliError(f"beat entry {name!r} of beat_schedule is left out: {self.refused[name]}")
        return name

    def _definition(self, name: str) -> Definition:
        """What holds the pause of this entry."""
        self._ours(name)
        if name in self.known.unreadable:
            raise NeliError(f"the definition of {name!r} cannot be read here: {self.known.unreadable[name]}")
        found = self.known.definitions.get(name)
        if name in self.static:
            if found is not None and not found.static:
                raise NeliError(f"{name!r} is in beat_schedule and was put at runtime, too: remove the latter first")
            return found or Definition(task=None, schedule=None, static=True)
        if found is None or found.static:
            raise self.unknown(name)
        return found

    def _changed(self, definition: Definition, what: str) -> Definition:
        return replace(definition, changes=(*definition.changes, Change(at=self.now, by=self.by, what=what)))

    def _store_definition(self, name: str, definition: Definition) -> None:
        self.write([(ENTRY, name, encode_definition(definition))])
        logger.info("schedule entry=%s what=%r by=%s", name, definition.changes[-1].what, self.by)

    def unknown(self, name: object) -> NeliError:
        """What to raise for a name that no entry has."""
        names = [*self.static, *(each for each in self.known.definitions if self.runtime(each))]
        near = similar(str(name), names, least=0.6)
        return NeliError(f"there is no entry {name!r}" + (f"; did you mean {near!r}?" if near else ""))


def named(name: Any) -> str:
    """Return the name of an entry, of any that there may be.

    Raises:
        ConfigurationError: no entry can have it.
    """
    if not isinstance(name, str):
        raise ConfigurationError(f"name = {shown(name)}: give the name of an entry, a string")
    return str.__str__(name)


def default_author() -> str:
    """user@host of this process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user has no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
