"""The runtime schedule, read and changed: what each change means.

An entry is of `beat_schedule` or was put at runtime, never both. Of the former only a pause is kept here.
"""

from __future__ import annotations

import getpass
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, TypeAlias

import celery.beat
from celery.utils.log import get_logger

from celery_neli.config import DEFAULT_SCHEDULER, enabled, from_app, is_replicated, scheduler_class
from celery_neli.exceptions import ConfigurationError, NeliError, RecordError
from celery_neli.logs import escaping
from celery_neli.periodic.call import check_app, plain
from celery_neli.periodic.definition import check_comes, define, entry_of
from celery_neli.periodic.static import StaticEntries, check_static
from celery_neli.printable import closest
from celery_neli.schedule.due import expires_of
from celery_neli.schedule.policies import OWN_OPTIONS, SHAPE_OPTIONS
from celery_neli.schedule.slots import shift_of
from celery_neli.schedule_topic import codec
from celery_neli.schedule_topic.codec import Change, Definition, Kind, State
from celery_neli.schedule_topic.values import shown

logger = escaping(get_logger(__name__))

Record: TypeAlias = "tuple[Kind, str, bytes | None]"


class Topic:
    """The schedule topic of an app: `read` returns all states and definitions, `write` takes records; None deletes.

    To make it loads Kafka's client. Both functions block, and raise `NeliError`.
    """

    def __init__(self, app: Any) -> None:
        if not enabled(app):
            raise ConfigurationError("neli_enabled = False: there is no runtime schedule without Kafka; switch it on")
        from celery_neli.schedule_topic import topic

        config, log = from_app(app, "beat"), escaping(logging.getLogger("celery_neli.periodic.api"))
        self.read: Callable[[], Mapping[tuple[Kind, str], bytes]] = partial(topic.read_all, config, log=log)
        self.write: Callable[[list[Record]], None] = partial(topic.write, config, log=log)


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the topic holds. `unreadable`: why a definition could not be read (a newer release wrote it)."""

    states: dict[str, State] = field(default_factory=dict)
    definitions: dict[str, Definition] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)


class ScheduleEditor:
    """Reads and changes the schedule of an app, for one change by ``by`` (user@host by default): it reads the topic
    once. ``clock`` tells the time in Unix seconds.

    It raises `ConfigurationError` if a value is wrong. So do its methods, and `NeliError` if Kafka does not answer or
    there is no such entry; nothing was changed then.
    """

    def __init__(
        self, app: Any, topic: Topic | None = None, *, by: object = None, clock: Callable[[], float] = time.time
    ) -> None:
        self.app = check_app(app)
        self._topic = topic or Topic(app)
        by = plain(by)
        if by is not None and (not isinstance(by, str) or not by.strip() or not by.isprintable() or len(by) > 200):
            raise ConfigurationError(f"by = {shown(by)}: say who makes the change, in 1 to 200 printable characters")
        self.by: str = default_author() if by is None else by
        self.now = clock()

    # -- what there is --

    @cached_property
    def known(self) -> Known:
        """What the topic holds. The first read blocks."""
        known = Known()
        for (kind, name), value in self._topic.read().items():
            try:
                if kind == codec.STATE:
                    known.states[name] = codec.decode_state(value)
                elif kind == codec.ENTRY:
                    known.definitions[name] = codec.decode_definition(value)
            except RecordError as exc:  # decoders raise nothing else
                if kind == codec.ENTRY:
                    known.unreadable[name] = str(exc)
        return known

    @cached_property
    def static(self) -> Mapping[str, Any]:
        """Celery's entries of `beat_schedule` and its default entries. Loads the app's configuration."""
        lazy = celery.beat.Scheduler(self.app, schedule={}, lazy=True)
        lazy.merge_inplace(self.checked.entries)
        lazy.install_default_entries(lazy.schedule)
        entries: Mapping[str, Any] = lazy.schedule
        return entries

    @cached_property
    def refused(self) -> Mapping[str, str]:
        """The entries of `beat_schedule` that every beat leaves out: all mistakes in each, by name."""
        return {name: "; ".join(mistakes) for name, mistakes in self.checked.mistakes.items()}

    @cached_property
    def checked(self) -> StaticEntries:
        """The entries of `beat_schedule`, as every beat checks them."""
        self.app.finalize()
        return check_static(self.app.conf.beat_schedule, self.app)

    @cached_property
    def not_run(self) -> str | None:
        """Why the beats of the app do not run the runtime schedule, None if they do. Imports ``neli_scheduler``."""
        name = self.app.conf.get("neli_scheduler")
        if name is None or is_replicated(scheduler_class(name)):
            return None
        return f"neli_scheduler = {name!r}, and only {DEFAULT_SCHEDULER} runs entries of the runtime schedule"

    def runtime(self, name: str) -> Definition | None:
        """Return the definition of the runtime entry of this name, None if there is none."""
        found = self.known.definitions.get(name)
        return None if found is None or found.static else found

    def entry(self, name: str) -> Any:
        """Return Celery's entry of this name; raise `NeliError` if there is none, or it cannot be read."""
        self._check_not_refused(name)
        if name in self.static:
            return self.static[name]
        if (definition := self.runtime(name)) is None:
            raise self.unknown(name)
        return entry_of(definition, name, self.app)

    def unknown(self, name: object) -> NeliError:
        """Return the error to raise for a name that no entry has."""
        near = closest(str(name), [*self.static, *filter(self.runtime, self.known.definitions)], least=0.6)
        return NeliError(f"there is no entry {name!r}" + (f"; did you mean {near!r}?" if near else ""))

    # -- changes --

    def put(self, name: str, task: Any, schedule: Any, args: Any, kwargs: Any, options: Any) -> None:
        """Add an entry, or replace what it is. It stays paused if it was. Writes nothing if nothing would change."""
        self._check_run()
        name = codec.check_name(name)
        if name in self.static or name in self.refused:
            raise ConfigurationError(f"name = {name!r}: beat_schedule has an entry of that name; change it there")
        new = define(self.app, name, task, schedule, args=args, kwargs=kwargs, options=options)
        old, what = self.runtime(name), "added"
        since = self.now
        if old is not None:
            fields = ("task", "schedule", "args", "kwargs", "options")
            different = [each for each in fields if getattr(new, each) != getattr(old, each)]
            if not different:
                return
            since = old.since
            if "schedule" in different or any(old.options.get(each) != new.options.get(each) for each in SHAPE_OPTIONS):
                # A slot that was due counts as passed; what waits for its jitter runs by the new schedule.
                since = self.now - (0.0 if "schedule" in different else self._shift(name, old))
            new = replace(new, paused=old.paused, changes=old.changes)
            what = f"changed {', '.join(different)}".replace("schedule", f"schedule {old.schedule} -> {new.schedule}")
        check_comes(new, name, self.app, after=self.now)
        self._store(name, replace(new, since=since), what)

    def pause(self, name: str) -> None:
        """Let its slots pass. Writes nothing if it is paused."""
        name, found = self._pausable(name)
        if not found.paused:
            self._store(name, replace(found, paused=True), "paused")

    def resume(self, name: str) -> None:
        """End the pause: the next slot is the first one after now. Writes nothing if it is not paused."""
        name, found = self._pausable(name)
        if found.paused:
            check_comes(found, name, self.app, after=self.now)
            self._store(name, replace(found, paused=False, since=self.now), "resumed")

    def remove(self, name: str) -> None:
        """Delete a runtime entry and its state."""
        name = entry_name(name)
        static = name in self.static or name in self.refused
        found = self.runtime(name) if static else self.known.definitions.get(name)
        if found is None and name not in self.known.unreadable:
            if static:
                raise ConfigurationError(f"name = {name!r}: is in beat_schedule; take it out there, or pause it")
            raise self.unknown(name)
        kinds: tuple[Kind, ...] = (codec.ENTRY,) if static else (codec.ENTRY, codec.STATE)
        self.write([(kind, name, None) for kind in kinds])
        logger.info("schedule entry=%s what=removed by=%s", name, self.by)

    def run_now(self, name: str) -> Any:
        """Send the task of an entry, as a beat does, with the headers `neli_beat_entry` and
        `periodic_task_name`; return its result.
        """
        name = entry_name(name)
        entry = self.entry(name)
        found = self.runtime(name)
        if found is not None:
            self._store(name, found, "run now")
        expires = expires_of(entry.options, None, self.app.timezone)
        entry.options = {key: value for key, value in entry.options.items() if key not in OWN_OPTIONS}
        if expires is not None:
            entry.options["expires"] = expires
        own = entry.options.get("headers") or {}
        entry.options["headers"] = {"periodic_task_name": name, **own, "neli_beat_entry": name}
        return celery.beat.Scheduler(self.app, schedule={}, lazy=True).apply_async(entry, advance=False)

    def write(self, records: list[Record]) -> None:
        """Write records as they are. `known` stays what was read."""
        if records:
            self._topic.write(records)

    def changed(self, definition: Definition, what: str) -> Definition:
        """Return the definition with one more change, by the author of this one."""
        changes = (*definition.changes, Change(at=self.now, by=self.by, what=what))
        return replace(definition, changes=changes[-codec.MAX_CHANGES :])

    def _store(self, name: str, definition: Definition, what: str) -> None:
        definition = self.changed(definition, what)
        self.write([(codec.ENTRY, name, codec.encode_definition(definition))])
        self.known.definitions[name] = definition
        self.known.unreadable.pop(name, None)
        logger.info("schedule entry=%s what=%r by=%s", name, what, self.by)

    def _shift(self, name: str, definition: Definition) -> float:
        try:
            return shift_of(entry_of(definition, name, self.app).schedule)
        except ConfigurationError:  # it cannot be read here: no beat runs it
            return 0.0

    def _check_run(self) -> None:
        if self.not_run is not None:
            raise ConfigurationError(
                f"{self.not_run}: nothing was changed. Leave neli_scheduler out, or keep the entry where that scheduler"
                " keeps its own"
            )

    def _check_not_refused(self, name: str) -> None:
        if name in self.refused:
            raise NeliError(f"beat entry {name!r} of beat_schedule is left out: {self.refused[name]}")

    def _pausable(self, name: str) -> tuple[str, Definition]:
        """Return the plain name of an entry, and the definition that holds its pause."""
        self._check_run()
        name = entry_name(name)
        self._check_not_refused(name)
        if name in self.known.unreadable:
            raise NeliError(f"the definition of {name!r} cannot be read here: {self.known.unreadable[name]}")
        static, found = name in self.static, self.runtime(name)
        if static and found is not None:
            raise NeliError(f"{name!r} is in beat_schedule and was put at runtime, too: remove the latter first")
        if static:
            found = self.known.definitions.get(name) or Definition(task=None, schedule=None, static=True)
        if found is None:
            raise self.unknown(name)
        return name, found


def entry_name(name: Any) -> str:
    """Return the name of an entry as a plain string; raise `ConfigurationError` if it is not a string."""
    if not isinstance(name, str):
        raise ConfigurationError(f"name = {shown(name)}: give the name of an entry, a string")
    return str.__str__(name)


def default_author() -> str:
    """Return user@host of this process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
