"""Read what the topics say of one slot of an entry, as `Facts`. Blocks; writes nothing."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import tzinfo
from functools import partial
from typing import Any, Final

from celery_neli.config import Config, from_app, owner, setting
from celery_neli.exceptions import ConfigurationError, NeliError, RecordError
from celery_neli.explain.facts import Facts, schedule_change_after
from celery_neli.explain.report import Story
from celery_neli.explain.story import explain
from celery_neli.explain.when import Slots, Window, window
from celery_neli.explain.words import Words
from celery_neli.history.records import BACKFILL
from celery_neli.history.runs import Run
from celery_neli.history.topic import NoHistory, read_runs
from celery_neli.kafka.reader import RawRecord
from celery_neli.periodic.definition import awake, entry_of, schedule_of_text
from celery_neli.periodic.definition import moment as _moment
from celery_neli.periodic.editor import ScheduleEditor
from celery_neli.periodic.store import Topic
from celery_neli.periodic.view import RUNTIME, entry_names, view_of
from celery_neli.printable import printable_error
from celery_neli.schedule.policies import OVERLAP, SKIP, Misfire
from celery_neli.schedule.shaped import shaped
from celery_neli.schedule.slots import shift_of
from celery_neli.schedule_topic.codec import ENTRY, STATE, Definition, State, decode_definition, decode_state, key_of
from celery_neli.schedule_topic.topic import read_all
from celery_neli.timeline import SlotWatch, read_timelines

KEPT: Final = 5_000  # records of an entry in the schedule topic that are kept, the newest ones
RUNS: Final = 20_000  # runs of the entry that are asked for: those of two weeks, each minute
EQUAL: Final = 1e-3  # seconds within which two slots are the same
MARGIN: Final = 60.0  # seconds before the slot from which on records count
TIMEOUT: Final = 15.0  # seconds for each topic


def tell(app: Any, name: str, text: str = "last", *, log: logging.Logger, now: float | None = None) -> Story:
    """Return the story of the slot of entry `name` that `text` means (`when.FORMS`). Takes a second or so, and up to
    fifteen for each topic that is long, or not to be read. The app's tasks must be loaded.

    Raises `ConfigurationError` for a `text` that means no time, `NeliError` if there is no such entry and never was, as
    far as Kafka holds, or if the schedule topic cannot be read.
    """
    zone = app.timezone
    return explain(_Search(app, name, text, zone, log, time.time() if now is None else now).facts(), Words(zone))


@dataclass
class _Log:
    """The records of one entry in the schedule topic, oldest first; None for a removal."""

    name: str
    definitions: deque[tuple[float, Definition | None]] = field(default_factory=lambda: deque(maxlen=KEPT))
    states: deque[tuple[float, State]] = field(default_factory=lambda: deque(maxlen=KEPT))

    def add(self, record: RawRecord) -> None:
        with suppress(RecordError):
            if record.key == key_of(ENTRY, self.name):
                value = None if record.value is None else decode_definition(record.value)
                self.definitions.append((record.time, None if value is None or value.removed else value))
            elif record.key == key_of(STATE, self.name) and record.value is not None:
                self.states.append((record.time, decode_state(record.value)))

    @property
    def removed(self) -> float | None:
        """When the entry was removed, if that is the last that is known of it."""
        at, last = self.definitions[-1] if self.definitions else (None, None)
        return at if last is None else None

    @property
    def last(self) -> Definition | None:
        """The last definition, also of one that was removed."""
        return next((each for _, each in reversed(self.definitions) if each is not None), None)


class _Search:
    """One question."""

    def __init__(self, app: Any, name: str, text: str, zone: tzinfo, log: logging.Logger, now: float) -> None:
        self._app, self._name, self._log, self._now = app, name, log, now
        self._config: Config = from_app(app, "beat")
        self._window: Window | None = window(text, zone, now)
        self._records = _Log(name)
        self._runs: list[Run] = []
        topic = Topic(app)
        topic.read = partial(read_all, self._config, log=log, each=self._records.add)
        self._editor = ScheduleEditor(app, topic)

    def facts(self) -> Facts:
        facts, when = self._of_schedule()
        moment = self._window.begin if self._window is not None else None
        slots = Slots(when, self._anchor(moment, facts.since))
        slot = self._slot(slots)
        why = self._read_runs(self._now - setting(self._app, "neli_history_retention") if slot is None else slot)
        facts = replace(facts, no_history=why)
        if not facts.exists and not self._records.definitions and not self._runs:
            raise self._editor.unknown(self._name)
        run = self._run(slot, None if slot is None else slots.after(slot))
        if slot is None and run is not None:
            slot = run.slot if run.slot is not None else run.when
        if slot is None and self._window is not None:
            slot = self._window.begin
            before, after = slots.before(slot), slots.after(slot)
            # Where the schedule does not tell its slots, nothing is known to be none.
            facts = replace(facts, exact=not slots.known, before=before, after=after, left_out=self._left_out(when))
        if slot is None:
            return replace(facts, after=slots.after(self._now))
        later = [each for each in self._runs if each.slot is not None and each.slot > slot and each.outcome == "sent"]
        facts = replace(facts, slot=slot, run=run, later=min(later, key=lambda each: each.when, default=None))
        return self._of_leaders(facts, slot + facts.shift)

    # The schedule topic

    def _of_schedule(self) -> tuple[Facts, Any]:
        """Return what the schedule says of the entry, and its schedule at the time of the slot, None if unknown."""
        app, name, records, editor = self._app, self._name, self._records, self._editor
        exists = name in entry_names(editor)
        view = view_of(editor, name) if exists else None
        entry, schedule, problem = None, "", ""
        try:
            if exists:
                entry = editor.entry(name)
            elif records.last is not None and not records.last.static:
                entry = entry_of(records.last, name, app)
        except NeliError as exc:
            problem = str(exc)
        if view is not None:
            schedule, problem = view.schedule or "", view.problem or problem
        elif records.last is not None:
            schedule = records.last.schedule or ""
        changes = view.changes if view is not None else () if records.last is None else records.last.changes
        when = None if entry is None else entry.schedule
        moment = self._now if self._window is None else self._window.begin
        if (changed := schedule_change_after(changes, moment)) is not None:
            with suppress(ConfigurationError):
                when, schedule = schedule_of_text(changed[1], app), changed[1]
        own = editor.known.definitions.get(name)
        own = None if own is None else awake(own, self._now)
        held = [] if view is None else [each for each in editor.rules if each.fits(name, view.tags)]
        facts = Facts(
            entry=name,
            now=self._now,
            slot=None,
            shift=shift_of(when),
            schedule=schedule,
            exists=exists,
            runtime=view is not None and view.source == RUNTIME,
            # A doubt of an entry of beat_schedule does not keep it from running.
            problem=problem if entry is None or editor.not_run else "",
            paused=own is not None and own.paused,
            held=held,
            since=view.since if view is not None else None,
            changes=changes,
            removed=None if exists else records.removed,
            state=editor.known.states.get(name),
            states=tuple(records.states),
            misfire=self._misfire(entry),
            overlap=str((getattr(entry, "options", None) or {}).get(OVERLAP) or SKIP),
            in_doubt=setting(app, "neli_in_doubt"),
        )
        return facts, when

    def _misfire(self, entry: Any) -> str:
        try:
            return Misfire.of_app(self._app).changed_by({} if entry is None else entry.options).policy
        except ConfigurationError:
            return ""

    # The slot

    def _left_out(self, when: Any) -> str:
        """Return why the options of the entry leave out a slot in the window, "" if they leave out none."""
        if not isinstance(when, shaped) or when.floats or self._window is None:
            return ""
        slot = when.first_of_inner(_moment(self._window.begin))
        if slot is None or slot.timestamp() >= self._window.end:
            return ""
        return when.why_not(slot) or ""

    def _anchor(self, moment: float | None, since: float | None) -> float | None:
        """Return a slot of the entry, as near to the moment as is known: its last run, as a state has it."""
        states = [each.last for _, each in self._records.states]
        near = self._now if moment is None else moment
        return min(states, key=lambda each: abs(each - near), default=since)

    def _slot(self, slots: Slots) -> float | None:
        """Return the slot that is meant, as far as the schedule tells."""
        try:
            if self._window is None:
                return slots.before(self._now)
            found = slots.at_or_after(self._window.begin)
        except Exception as exc:  # noqa: BLE001 - a schedule's own search may raise anything
            self._log.debug("the slots of entry=%s cannot be computed: %s", self._name, printable_error(exc))
            return None
        return found if found is not None and found < self._window.end else None

    def _read_runs(self, since: float) -> str:
        """Read the runs since then; return why there may be none."""
        retention = setting(self._app, "neli_history_retention")
        why = ""
        try:
            self._runs = read_runs(
                self._config, log=self._log, name=self._name, limit=RUNS, since=since - MARGIN, timeout=TIMEOUT
            )
        except NoHistory as exc:
            off = "" if setting(self._app, "neli_history") else " (neli_history = False)"
            why = f"{exc}{off}"
        except NeliError as exc:
            why = f"the history could not be read: {exc}"
        if not why and since < self._now - retention:
            why = f"the history keeps records for {retention / 86_400:g} days (neli_history_retention)"
        return why

    def _run(self, slot: float | None, following: float | None) -> Run | None:
        """Return what the history says of the slot; without one, of a slot in the window, or the latest.

        Celery's own schedulers run when they look, and not for a slot: there any run before the `following` slot is it.
        """
        if slot is None and self._window is None:
            return self._runs[0] if self._runs else None
        begin, end = (slot, slot) if slot is not None else self._window or (0.0, 0.0)
        found = [each for each in self._runs if each.slot is not None and begin - EQUAL <= each.slot < end + EQUAL]
        if not found and slot is not None:
            found = [each for each in self._runs if each.count > 1 and spans(each, slot, self._runs)]
        if not found and slot is not None and following is not None and self._editor.not_run is not None:
            found = [each for each in self._runs if each.slot is not None and slot <= each.slot < following]
        return found[-1] if found else None

    # The leader topic

    def _of_leaders(self, facts: Facts, slot: float) -> Facts:
        config = self._config
        role = config.roles[owner(self._name, len(config.roles))]
        facts = replace(facts, role=role, roles=len(config.roles))
        if slot > self._now:
            return facts
        watch = SlotWatch(slot)
        try:
            found = read_timelines(
                config, log=self._log, since=slot - MARGIN, timeout=TIMEOUT, roles=[role], observe={role: watch}
            )
        except NeliError as exc:
            return replace(facts, log_problem=str(exc))
        if (timeline := found.get(role)) is None:
            return replace(facts, log_problem=f"there is no leader topic {config.topic}: no beat has started yet")
        begins = timeline.first if timeline.oldest and timeline.start > 0 else None
        terms = tuple(timeline.terms(self._now))
        return replace(facts, terms=terms, log_begins=begins, claims=tuple(watch.claims), marked=watch.marked)


def spans(run: Run, slot: float, runs: Sequence[Run]) -> bool:
    """Return True if the slot is one of those that were left out together, which `run` tells of; `runs`: all of the
    entry. Where one of the owed slots ran, `run` knows no other slot than the first: those up to the one that ran.
    """
    if run.first is None or run.slot is None or slot < run.first - EQUAL:
        return False
    if run.slot > run.first + EQUAL:
        return slot <= run.slot + EQUAL
    # A backfill may send slots in between later.
    sent = [each.slot for each in runs if each.policy != BACKFILL]
    others = [each for each in sent if each is not None and each > run.first + EQUAL]
    end = min(others, default=run.slot if run.at is None else run.at)
    return slot < end - EQUAL
