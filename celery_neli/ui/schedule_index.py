"""The schedule as the topic says it, kept while the page is served. For threads that hold the owner's lock."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from celery_neli.exceptions import NeliError, RecordError
from celery_neli.periodic.definition import moment
from celery_neli.periodic.editor import ScheduleEditor
from celery_neli.periodic.store import Topic
from celery_neli.periodic.view import BEAT_SCHEDULE, RUNTIME, UNSHOWN, Periodic, entry_names, view_of
from celery_neli.printable import printable
from celery_neli.schedule.slots import has_slots, next_slot, nominal, shift_of
from celery_neli.schedule_topic.codec import ENTRY, PAUSE, STATE, Kind, State, decode_definition, decode_state
from celery_neli.schedule_topic.pauses import effective
from celery_neli.schedule_topic.rules import Pause, tags_of

MOST_ENTRIES: Final = 200_000  # keys of the topic that are kept; further ones are not shown

ALL, ACTIVE, PAUSED, BROKEN = "all", "active", "paused", "problem"


class _Nothing(Topic):
    """The topic of an editor that is given what it knows."""

    def __init__(self) -> None:
        self.of_many: dict[str, bytes] = {}
        self.pauses = lambda: self.of_many

    def read(self) -> Mapping[tuple[Kind, str], bytes]:
        return {}

    def size(self, name: str) -> int:
        return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """The next due times of an entry, in the zone of its schedule; `exact` is False if only the schedule knows them."""

    times: tuple[datetime, ...]
    zone: str
    exact: bool = True

    @property
    def offset(self) -> str:
        """Return how far all of them are from UTC, "" if that changes between them."""
        found = {each.strftime("%z") for each in self.times}
        return found.pop() if len(found) == 1 else ""


class ScheduleIndex:
    """The entries of an app, of `beat_schedule` and of the topic, by name."""

    def __init__(self, app: Any, *, clock: Callable[[], float] = time.time) -> None:
        self._editor, self._clock = ScheduleEditor(app, topic := _Nothing(), clock=clock), clock
        self._pauses = topic.of_many
        self._known = self._editor.known
        self._names: list[tuple[str, str]] | None = None  # each name, and where a search looks
        self.dropped = 0  # records that were left out because there are too many

    @property
    def static(self) -> Mapping[str, Any]:
        """The entries of `beat_schedule`. Raises `NeliError`."""
        return self._editor.static

    @property
    def states(self) -> Mapping[str, State]:
        """How far each entry has come."""
        return self._known.states

    def clear(self) -> None:
        """Know nothing of the topic."""
        for each in (self._known.states, self._known.definitions, self._known.unreadable):
            each.clear()
        self._pauses.clear()
        vars(self._editor).pop("rules", None)
        self._names = None

    def add(self, kind: Kind, name: str, value: bytes | None) -> None:
        """Take a record of the topic; None deletes. One that cannot be read costs itself alone."""
        if kind == STATE:
            self._add_state(name, value)
        elif kind == ENTRY:
            self._add_definition(name, value)
        elif kind == PAUSE:
            self._pauses.pop(name, None)
            self._pauses.update({} if value is None else {name: value})
            vars(self._editor).pop("rules", None)

    def names(self, search: str = "", state: str = ALL) -> list[str]:
        """Return the names of the entries whose name or task contains `search`, whatever its case, sorted."""
        wanted = search.casefold()
        return [name for name, text in self._searched() if wanted in text and self._is(name, state)]

    def counts(self) -> tuple[int, int]:
        """Return how many entries there are, and how many of them are paused."""
        names = [name for name, _ in self._searched()]
        return len(names), sum(self._is(name, PAUSED) for name in names)

    def view(self, name: str) -> Periodic | None:
        """Return one entry, None if there is none of this name."""
        editor, known = self._editor, self._known
        if not (name in editor.static or name in editor.refused or name in known.unreadable or editor.runtime(name)):
            return None
        editor.now = self._clock()
        try:
            return view_of(editor, name)
        except NeliError as exc:  # a wrong setting
            source = BEAT_SCHEDULE if name in editor.static else RUNTIME
            return Periodic(name=name, task=None, schedule=None, source=source, problem=f"{UNSHOWN}: {exc}")

    def due(self, found: Periodic, count: int) -> Due | None:
        """Return the next due times of an entry that is not paused; None if it has none."""
        if found.next is None:
            return None
        try:
            when = self._editor.entry(found.name).schedule
            zone = when.tz
            begin = datetime.fromtimestamp(found.next, zone)
            if not has_slots(when):
                return Due(times=(begin,), zone=str(zone), exact=False)
            times, slot, shift = [begin], moment(found.next), timedelta(seconds=shift_of(when))
            while len(times) < count and (after := next_slot(when, slot + shift)) is not None:
                slot = nominal(when, after)
                times.append(slot.astimezone(zone))
        except Exception:  # noqa: BLE001 - a user's schedule may raise anything; the beat logs it
            return None
        return Due(times=tuple(times), zone=str(zone))

    def _searched(self) -> list[tuple[str, str]]:
        if self._names is None:
            try:
                names = entry_names(self._editor)
            except NeliError:  # a beat_schedule that cannot be read
                names = {*self._known.unreadable, *filter(self._editor.runtime, self._known.definitions)}
            self._names = [(name, f"{printable(name, 600)}\n{self._task(name)}".casefold()) for name in sorted(names)]
        return self._names

    def _task(self, name: str) -> str:
        found = self._known.definitions.get(name)
        if found is not None and not found.static:
            return printable(found.task)
        return printable(getattr(self._editor.static.get(name), "task", "") or "")

    def _is(self, name: str, state: str) -> bool:
        if state not in (ACTIVE, PAUSED, BROKEN):
            return True
        editor, known = self._editor, self._known
        broken = name in editor.refused or (name in known.unreadable and name not in editor.static)
        if state == BROKEN:
            return broken
        found = known.definitions.get(name)
        rules: list[Pause] = []
        if editor.rules:
            of = editor.static.get(name, found)
            tags = tags_of(None if of is None else of.options)
            rules = [each for each in editor.rules if each.fits(name, tags)]
        paused = effective(found, rules, self._clock()).paused
        return not broken and paused == (state == PAUSED)

    def _add_state(self, name: str, value: bytes | None) -> None:
        states = self._known.states
        if value is None:
            states.pop(name, None)
            return
        try:
            found = decode_state(value)
        except RecordError:
            states.pop(name, None)
            return
        before = states.get(name)
        if before is None and len(states) >= MOST_ENTRIES:
            self.dropped += 1
        elif before is None or found.epoch >= before.epoch:
            states[name] = found

    def _add_definition(self, name: str, value: bytes | None) -> None:
        known = self._known
        before = known.definitions.pop(name, None)
        unread = known.unreadable.pop(name, None)
        if value is None:
            self._names = None
            return
        try:
            found = decode_definition(value)
        except RecordError as exc:
            if len(known.unreadable) < MOST_ENTRIES:
                known.unreadable[name] = str(exc)
            self._names = None
            return
        if found.removed:
            self._names = None
            return
        if before is None and len(known.definitions) >= MOST_ENTRIES:
            self.dropped += 1
            return
        known.definitions[name] = found
        if before is None or unread is not None or (before.task, before.static) != (found.task, found.static):
            self._names = None
