"""The entries that are watched: those of `beat_schedule`, and what the schedule topic holds of entries and states."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from celery_neli.alarms.failures import Rule
from celery_neli.alarms.overdue import Entry, Overdue
from celery_neli.exceptions import ConfigurationError, RecordError
from celery_neli.logs import LogLimit, escaping
from celery_neli.periodic.definition import entry_of
from celery_neli.printable import printable_error
from celery_neli.schedule.due import runs_left
from celery_neli.schedule.policies import PAUSE_ON_FAILURE
from celery_neli.schedule_topic.codec import (
    ENTRY,
    FAR_AHEAD,
    PAUSE,
    START_AHEAD,
    STATE,
    Definition,
    Kind,
    State,
    decode_definition,
    decode_state,
)
from celery_neli.schedule_topic.rules import decode_pause, tags_of

SAID_EVERY: Final = 3600.0  # seconds between two lines about one entry

logger = escaping(logging.getLogger(__name__))


class WatchedEntries:
    """Folds the records of the schedule topic into `overdue`. For one thread."""

    def __init__(self, app: Any, overdue: Overdue, static: Mapping[str, Any], *, now: float) -> None:
        """`static`: Celery's entries of `beat_schedule` by name. `now`: Unix seconds."""
        self._app, self._overdue, self._static, self._began = app, overdue, static, now
        self._states: dict[str, State] = {}
        self._definitions: dict[str, Definition] = {}
        self._counted: set[str] = set()  # entries that end after so many runs
        self._shown = LogLimit(SAID_EVERY)
        for name in static:
            self._watch(name, now)

    def apply(self, kind: Kind, name: str, value: bytes | None, now: float) -> None:
        """Take one record, None if it was deleted. What cannot be read is skipped."""
        try:
            if kind == STATE:
                self._take_state(name, None if value is None else decode_state(value), now)
            elif kind == PAUSE:
                self._overdue.pauses.pop(name, None)
                if value is not None:
                    self._overdue.pauses[name] = decode_pause(name, value)
            elif kind == ENTRY:
                self._take_definition(name, None if value is None else decode_definition(value), now)
        except RecordError:
            pass  # the beats log it

    def _take_state(self, name: str, state: State | None, now: float) -> None:
        before = self._states.get(name)
        if state is None:
            self._states.pop(name, None)
            return
        if before is not None and before.epoch > state.epoch:
            return
        first = not self._states
        self._states[name] = state
        if first:  # of the others, no leader knows unless it has written so
            for each in self._static:
                if each != name:
                    self._watch(each, now)
        if (before is None and name in self._static) or name in self._counted:
            self._watch(name, now)
        else:
            self._overdue.settled(name, self._last(name, now))
        if state.waits:
            try:
                self._overdue.waits(name, now)
            except Exception as exc:  # noqa: BLE001 - a user's schedule may raise anything: the others are watched
                self.drop(name, exc)

    def _take_definition(self, name: str, definition: Definition | None, now: float) -> None:
        if definition is None:
            self._definitions.pop(name, None)
        else:
            self._definitions[name] = definition
        self._watch(name, now)

    def _watch(self, name: str, now: float) -> None:
        """Watch the entry as it is, or not at all."""
        try:
            entry = self._entry(name, now)
            if entry is None:
                self._overdue.remove(name)
            else:
                self._overdue.put(name, entry)
        except Exception as exc:  # noqa: BLE001 - a user's schedule may raise anything: the others are watched
            self.drop(name, exc)

    def rule(self, name: str) -> Rule | None:
        """Return when the entry is to be paused; None if it never is, is paused, or is gone."""
        definition, static = self._definitions.get(name), self._static.get(name)
        of: Any = definition if static is None else static
        if of is None or (definition is not None and (_is_paused(definition) or definition.removed)):
            return None
        most = (of.options or {}).get(PAUSE_ON_FAILURE)
        if type(most) is not int:
            return None
        if definition is None:
            return Rule(most=most)
        return Rule(most=most, since=_since(definition), version=definition.version)

    def drop(self, name: str, error: Exception) -> None:
        """Watch an entry no more whose schedule fails."""
        self._overdue.remove(name)
        if self._shown.allows(name):
            why = str(error) if isinstance(error, ConfigurationError) else printable_error(error)
            logger.warning("alarms: entry=%s is not watched: %s", name, why)

    def _entry(self, name: str, now: float) -> Entry | None:
        definition, static = self._definitions.get(name), self._static.get(name)
        if definition is not None and _is_paused(definition):
            return None
        if static is not None:
            if self._states and name not in self._states:
                return None  # the leader does not know it, or not yet
            made = static
        elif definition is None or definition.static or definition.removed:
            return None
        else:
            made = entry_of(definition, name, self._app)
        options, state = made.options or {}, self._states.get(name)
        if options.get("neli_max_runs") is not None:
            self._counted.add(name)
            if not runs_left(made, 0 if state is None else state.runs):
                return None
        since = 0.0 if definition is None else definition.since
        base = 0.0 if since > now + START_AHEAD else since
        if definition is not None:
            base = max(base, _ends(definition))
        last = self._last(name, now)
        if not base and not last:
            base = self._began
        return Entry(
            task=str(made.task),
            schedule=made.schedule,
            base=base,
            last=last,
            overdue=options.get("neli_overdue"),
            max_runtime=options.get("neli_max_runtime"),
            countdown=_seconds(options.get("countdown")),
            tags=tags_of(options),
        )

    def _last(self, name: str, now: float) -> float:
        """Return the last slot that is settled; 0 if that is not known, or lies too far ahead to be believed."""
        state, definition = self._states.get(name), self._definitions.get(name)
        since = 0.0 if definition is None else definition.since
        if state is None or state.last > max(since, now + FAR_AHEAD):
            return 0.0
        return state.last


def _is_paused(definition: Definition) -> bool:
    """Return True if an entry is paused and that does not end by itself. No slot up to such an end counts."""
    return definition.paused and definition.until is None


def _ends(definition: Definition) -> float:
    """Return when its pause ends by itself, or has ended (Unix seconds), 0 without such an end."""
    return (definition.until or 0.0) if definition.paused else 0.0


def _since(definition: Definition) -> float:
    return max(definition.since, _ends(definition))


def _seconds(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and value > 0 else 0.0
