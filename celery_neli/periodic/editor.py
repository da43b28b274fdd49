"""The runtime schedule, read and changed: what is there, and the one way in which changes are written.

An entry is of `beat_schedule` or was put at runtime, never both. Of the former only a pause is kept here.
"""

from __future__ import annotations

import getpass
import os
import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import celery.beat
from celery.utils.log import get_logger

from celery_neli.config import DEFAULT_SCHEDULER, is_replicated, scheduler_class
from celery_neli.exceptions import ConfigurationError, Conflict, NeliError, RecordError
from celery_neli.logs import escaping
from celery_neli.periodic.call import check_app, plain
from celery_neli.periodic.conflicts import check_room, conflict, together, write_again
from celery_neli.periodic.definition import awake, check_comes, define, entry_of, same
from celery_neli.periodic.static import StaticEntries, check_static
from celery_neli.periodic.store import Known, Records, Topic
from celery_neli.printable import closest
from celery_neli.schedule.policies import SHAPE_OPTIONS
from celery_neli.schedule.slots import shift_of
from celery_neli.schedule_topic import codec
from celery_neli.schedule_topic.codec import Change, Definition, succeeding
from celery_neli.schedule_topic.rules import Pause, decode_pause
from celery_neli.schedule_topic.values import MAX_NOTE, shown
from celery_neli.schedule_topic.write import Write

logger = escaping(get_logger(__name__))

PATIENCE: Final = 10.0  # seconds for which a change is tried while others change the same entry
FEW: Final = 200  # records of one partition up to which all names are read for a "did you mean"


@dataclass(frozen=True, slots=True)
class Edit:
    """A change of one entry that was checked as far as it can be before the topic is read.

    `plan` takes the living definition, None if there is none, and returns what becomes of it, what to call that, and a
    note if it has one; None: nothing changes. It raises `NeliError`. `expected`: the version to be there, "" for none.
    """

    name: str
    plan: Callable[[Definition | None], tuple[Definition, str] | tuple[Definition, str, str] | None]
    expected: str | None = None


class ScheduleEditor:
    """Reads and changes the schedule of an app, for changes by ``by`` (user@host by default), for the reason ``note``,
    for the ``owner`` of entries. ``clock`` tells the time in Unix seconds.

    It raises `ConfigurationError` if a value is wrong. So do its methods, and `NeliError` if Kafka does not answer or
    there is no such entry; nothing was changed then.
    """

    def __init__(
        self,
        app: Any,
        topic: Topic | None = None,
        *,
        by: object = None,
        note: object = None,
        owner: object = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.app = check_app(app)
        self._topic = topic or Topic(app)
        self.by: str = _said("by", by, 200, "say who makes the change") or default_author()
        self.note: str = _said("note", note, MAX_NOTE, "say why")
        self.owner: str = _said("owner", owner, 200, "say whose entries they are")
        self.now = clock()
        self._known: Known | None = None
        self.slots: dict[tuple[int, int], tuple[Any, float | None]] = {}  # next ones, for a list of many entries

    # -- what there is --

    @property
    def known(self) -> Known:
        """What the topic holds of the names that were looked at; of all, if `look` was not called. Then it blocks."""
        if self._known is None:
            self._known = Known()
            _take(self._known, self._topic.read())
        return self._known

    def look(self, names: Collection[str], *, fresh: bool = True) -> Known:
        """Read the definitions of these names that are in the topic now, and return `known`; if not ``fresh``, those
        that this process knows. Blocks.
        """
        records = self._topic.look(names, kinds=(codec.ENTRY,), fresh=fresh)
        self._known = self._known or Known()
        for name in names:
            _forget(self._known, name)
        _take(self._known, records)
        return self._known

    def look_at_state(self, name: str) -> None:
        """Read the state of an entry, as it was when the topic was last read for it. Blocks."""
        _take(self.known, self._topic.look((name,), kinds=(codec.STATE,), fresh=False))

    def pauses(self) -> list[Pause]:
        """Return the pauses of many entries, as far as they can be read here; also those that have ended. Blocks."""
        found = []
        for name, value in self._topic.pauses().items():
            with suppress(RecordError):
                found.append(decode_pause(name, value))
        return found

    @cached_property
    def rules(self) -> list[Pause]:
        """The `pauses`, read once. Blocks."""
        return self.pauses()

    def read(self, keep: Callable[[str], bool]) -> Records:
        """Return what the topic holds of the names to ``keep``, as it is. Blocks."""
        return self._topic.read(keep=keep)

    def know(self, name: str, records: Records) -> bool:
        """Let `known` be what ``records`` say of one name, and return True if there is an entry of this name."""
        self._known = Known()
        _take(self._known, records)
        return name in self.static or name in self.refused or name in self._known.unreadable or bool(self.runtime(name))

    def has(self, name: str) -> bool:
        """Return True if there is an entry of this name, of `beat_schedule` or of the runtime schedule. Blocks."""
        return self.know(name, self._topic.look((name,)))

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
        self.check_not_refused(name)
        if name in self.static:
            return self.static[name]
        if (definition := self.runtime(name)) is None:
            raise self.unknown(name)
        return entry_of(definition, name, self.app)

    def unknown(self, name: object) -> NeliError:
        """Return the error to raise for a name that no entry has. Among many entries it looks for no similar name."""
        if isinstance(name, str) and self._topic.size(name) <= FEW:
            self._known = None
        near = closest(str(name), [*self.static, *filter(self.runtime, self.known.definitions)], least=0.6)
        return NeliError(f"there is no entry {name!r}" + (f"; did you mean {near!r}?" if near else ""))

    # -- what to put an entry means; edits.py has the other changes --

    def to_put(
        self, name: str, task: Any, schedule: Any, args: Any, kwargs: Any, options: Any, *, expected: Any = None
    ) -> Edit:
        """Add an entry, or replace what it is. It stays paused if it was. Nothing changes if it is the same."""
        self.check_run()
        name = codec.check_name(name)
        if name in self.static or name in self.refused:
            raise ConfigurationError(f"name = {name!r}: beat_schedule has an entry of that name; change it there")
        new = define(self.app, name, task, schedule, args=args, kwargs=kwargs, options=options)

        def plan(old: Definition | None) -> tuple[Definition, str] | None:
            if old is None or old.static:
                check_comes(new, name, self.app, after=self.now)
                return replace(new, since=self.now, owner=self.owner), "added"
            owner = self.owner or old.owner
            fields = ("task", "schedule", "args", "kwargs", "options")
            different = [each for each in fields if not same(getattr(new, each), getattr(old, each))]
            different += ["owner"] if owner != old.owner else []
            if not different:
                return None
            since = old.since
            if "schedule" in different or any(old.options.get(each) != new.options.get(each) for each in SHAPE_OPTIONS):
                check_comes(new, name, self.app, after=self.now)
                # A slot that was due counts as passed; what waits for its jitter runs by the new schedule.
                since = self.now - (0.0 if "schedule" in different else self._shift(name, old))
            kept = replace(new, paused=old.paused, until=old.until, owner=owner, since=since, changes=old.changes)
            what = ", ".join(different).replace("schedule", f"schedule {old.schedule} -> {new.schedule}")
            return kept, f"changed {what}"

        return Edit(name, plan, expected_version(expected))

    # -- how a change is written --

    def change(self, *edits: Edit) -> None:
        """Write changes: the one function that all of them pass. Those of one entry become one record.

        Each is made from what is there now, and written with the version that it was made from. If somebody else was
        faster, it is void, and is made again from what is there then. Nothing was written if this raises in the first
        round; later, a `Conflict` names the entries that were not changed, and all others were.
        """
        waiting: dict[str, list[Edit]] = {}
        for edit in edits:
            waiting.setdefault(edit.name, []).append(edit)
        late: dict[str, NeliError] = {}
        void: set[str] = set()  # entries of which the last record in the log is a void one of ours
        end, alone, written = time.monotonic() + PATIENCE, len(waiting) == 1, False
        made = self._guessed(waiting) if alone else {}
        while waiting and (not late or written):
            if not made:
                self.look(waiting)
                for name, of_name in waiting.items():
                    try:
                        if (new := self._made(name, of_name)) is not None:
                            made[name] = new
                    except NeliError as exc:
                        if not written and not isinstance(exc, Conflict):
                            raise
                        late[name] = exc
                if late and not written:
                    break
            try:
                if self.app.conf.get("neli_entry_limit") is not None:
                    check_room(self.app, self.known, made, self._topic.read)
            except NeliError as exc:
                if not written:
                    raise
                late.update(dict.fromkeys(made, exc))
                break
            overtaken = self._write(made)
            written, void, made = True, (void - made.keys()).union(overtaken), {}
            waiting = {name: waiting[name] for name in overtaken}
            if time.monotonic() > end:
                late.update((name, conflict(self.known, name, None)) for name in waiting)
                break
        if void:
            try:
                write_again(self.look, self._topic.write, void)
            except NeliError as exc:
                logger.debug("schedule not written again: %s", exc)
        if late:
            raise late.popitem()[1] if alone else together(late, nothing=not written)

    def write(self, states: list[Write]) -> None:
        """Write states of entries, or pauses of many, which count at once. Blocks."""
        self._topic.write(states)

    def check(self, edit: Edit, before: Sequence[Edit] = ()) -> None:
        """Raise what `change` would raise for an edit if it came now, after those `before` it. Blocks."""
        self.look((edit.name,))
        self._made(edit.name, (*before, edit))

    def changed(self, definition: Definition, what: str, note: str = "") -> Definition:
        """Return the definition with one more change, by the author of this one."""
        changes = (*definition.changes, Change(at=self.now, by=self.by, what=what, note=note or self.note))
        return replace(definition, changes=changes[-codec.MAX_CHANGES :])

    def _guessed(self, waiting: Mapping[str, Sequence[Edit]]) -> dict[str, Definition]:
        """Return what becomes of entries by what this process knows, without a question: if it knows too little, what
        it writes is void. Empty if nothing becomes of them.
        """
        if not self.look(waiting, fresh=False).unreadable.keys().isdisjoint(waiting):
            return {}
        try:
            made = {name: self._made(name, edits) for name, edits in waiting.items()}
        except NeliError:
            return {}
        return {name: new for name, new in made.items() if new is not None}

    def _made(self, name: str, edits: Sequence[Edit]) -> Definition | None:
        """Return what becomes of an entry, None if it stays as it is."""
        before = now = self.known.definitions.get(name)
        for edit in edits:
            if edit.expected not in (None, "" if before is None else before.version):
                raise conflict(self.known, name, edit.expected)
            planned = edit.plan(None if now is None or now.removed else awake(now, self.now))
            if planned is not None:
                now = self.changed(*planned)
        return None if now is before else now

    def _write(self, made: Mapping[str, Definition]) -> list[str]:
        """Write definitions, each based on the one that is known; return the names of those that are void."""
        known = self.known
        written: dict[str, Definition] = {}
        for name, new in made.items():
            written[name] = succeeding(new, known.definitions.get(name) or known.removed.get(name))
            if name in known.unreadable:
                written[name] = replace(written[name], base=None)  # it counts, whatever is there
        writes = [
            Write(codec.ENTRY, name, codec.encode_definition(each), each.version) for name, each in written.items()
        ]
        void = self._topic.write(writes)
        for name, definition in written.items():
            if definition.version not in void:
                _put(known, name, definition)
                logger.info("schedule entry=%s what=%r by=%s", name, definition.changes[-1].what, self.by)
        return [name for name, definition in written.items() if definition.version in void]

    def _shift(self, name: str, definition: Definition) -> float:
        try:
            return shift_of(entry_of(definition, name, self.app).schedule)
        except ConfigurationError:  # it cannot be read here: no beat runs it
            return 0.0

    # -- checks --

    def check_run(self) -> None:
        """Raise `ConfigurationError` if no beat runs the runtime schedule."""
        if self.not_run is not None:
            raise ConfigurationError(
                f"{self.not_run}: nothing was changed. Leave neli_scheduler out, or keep the entry where that scheduler"
                " keeps its own"
            )

    def check_not_refused(self, name: str) -> None:
        """Raise `NeliError` if every beat leaves out this entry of `beat_schedule`."""
        if name in self.refused:
            raise NeliError(f"beat entry {name!r} of beat_schedule is left out: {self.refused[name]}")


def _take(known: Known, records: Records) -> None:
    """Add what was read to what is known."""
    for (kind, name), value in records.items():
        try:
            if kind == codec.STATE:
                known.states[name] = codec.decode_state(value)
            elif kind == codec.ENTRY:
                _put(known, name, codec.decode_definition(value))
        except RecordError as exc:  # decoders raise nothing else
            if kind == codec.ENTRY:
                known.unreadable[name] = str(exc)


def _put(known: Known, name: str, definition: Definition) -> None:
    _forget(known, name)
    (known.removed if definition.removed else known.definitions)[name] = definition


def _forget(known: Known, name: str) -> None:
    for each in (known.definitions, known.removed, known.unreadable):
        each.pop(name, None)


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


def _said(field: str, given: object, most: int, remedy: str) -> str:
    given = plain(given)
    if given is None:
        return ""
    if not isinstance(given, str) or not given.strip() or not given.isprintable() or len(given) > most:
        raise ConfigurationError(f"{field} = {shown(given)}: {remedy}, in 1 to {most} printable characters")
    return given


def expected_version(version: Any) -> str | None:
    """Return the version that a caller expects; raise `ConfigurationError` if it is none."""
    version = plain(version)
    if version is None or isinstance(version, str):
        return version
    raise ConfigurationError(f'expected = {shown(version)}: give the version of an entry, or "" if there must be none')
