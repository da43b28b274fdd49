"""What is known of each slot of a span, and what a backfill is to do about it. Blocks; writes nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from itertools import islice
from typing import Any, Final

from celery.backends.base import DisabledBackend
from celery.backends.rpc import RPCBackend
from celery.utils.time import maybe_make_aware

from celery_neli.backfill.span import counts_from_last_run, shift_of, slots
from celery_neli.config import from_app, owner, setting
from celery_neli.exceptions import ConfigurationError, NeliError
from celery_neli.history.entry_log import EntryLog
from celery_neli.history.fates import Fate, Fates
from celery_neli.periodic.editor import ScheduleEditor, entry_name
from celery_neli.printable import printable, printable_error, shown
from celery_neli.schedule.due import entry_has_slots
from celery_neli.schedule.policies import Overlap
from celery_neli.schedule.slots import id_at
from celery_neli.schedule_topic.codec import Definition, State
from celery_neli.schedule_topic.values import is_moment
from celery_neli.timeline import DEPOSED, EXPIRED, UNKNOWN, RoleTimeline, Term, read_timelines

#: What is to be done about a slot, or was done.
SEND: Final = "send"  # in a plan: it is to be sent
SENT: Final = "sent"
SKIPPED: Final = "skipped"  # it was sent before, or is in doubt
FAILED: Final = "failed"  # it was not sent
IN_DOUBT: Final = "in doubt"  # it may have been sent
LEFT: Final = "left"  # the backfill ended before it

MOST: Final = 100_000  # slots of one backfill
#: Seconds before the last record of a leader that ended without a word: what it told then may not be in the history.
UNTOLD: Final = 5.0
MARGIN: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Backfilled:
    """One slot of a backfill: its time in UTC, the id of its task, what was done or is to be done, and why.

    `action` is one of "send" (a plan), "sent", "skipped", "failed", "in doubt" and "left".
    """

    slot: datetime
    id: str
    action: str
    note: str = ""
    over: str = ""  # of the attempt in doubt that is to be replaced

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        utc = self.slot.isoformat().replace("+00:00", "Z")
        return {"slot": utc, "id": self.id, "action": self.action, "note": self.note}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is asked for."""

    start: datetime
    end: datetime
    limit: int
    in_doubt: str  # "send" or "skip"
    force: bool


@dataclass(slots=True, kw_only=True)
class Plan:
    """What is to be done, oldest first, and what a person should know of it. `records`: what is done can be recorded.

    `entry` is Celery's, and `log` and `fates` are the history as far as it was read.
    """

    name: str
    entry: Any
    slots: list[Backfilled]
    notes: list[str]
    log: EntryLog
    fates: Fates
    records: bool = True


def make_plan(editor: ScheduleEditor, name: Any, wanted: Wanted, *, log: logging.Logger) -> Plan:
    """Return what is to be done. Its `log` is for the caller to close. Raises `ConfigurationError` for what is wrong
    with the question, `NeliError` if it cannot be answered.
    """
    search = _Search(editor, entry_name(name), wanted, log)
    try:
        return search.plan()
    except BaseException:
        search.history.close()
        raise


class _Search:
    def __init__(self, editor: ScheduleEditor, name: str, wanted: Wanted, log: logging.Logger) -> None:
        self._editor, self._app, self._name, self._wanted, self._log = editor, editor.app, name, wanted, log
        self._config = from_app(self._app, "beat")
        start, end = (each.timestamp() for each in (wanted.start, wanted.end))
        self.fates = Fates(name, start, end)
        self.history = EntryLog(self._config, name, self.fates.add, log=log)
        self._notes: list[str] = []

    def plan(self) -> Plan:
        editor, wanted, name = self._editor, self._wanted, self._name
        if editor.not_run is not None:
            raise ConfigurationError(f"{editor.not_run}: slots have no ids of their own there, so none can be told")
        if wanted.end.timestamp() > editor.now:
            raise ConfigurationError(f"end = {_utc(wanted.end)}: is in the future; give a time that is past")
        timeline = self._timeline()  # before the states: an open entry has its state before the watermark passes it
        entry = editor.entry(name)
        if not entry_has_slots(entry):
            raise ConfigurationError(f"{shown(name)}: only its schedule {shown(entry.schedule)} knows when it is due")
        if "task_id" in (entry.options or {}):
            raise ConfigurationError(f"{shown(name)}: its options name a task_id, so no slot has an id of its own")
        state, definition = editor.known.states.get(name), editor.known.definitions.get(name)
        found = self._slots(entry, state, definition)
        self._check_settled(entry, found, timeline, state, definition)
        self._read_history(found, definition)
        shift = shift_of(entry.schedule)
        planned = [self._judge(slot, (slot + shift).timestamp(), timeline) for slot in found]
        self._ask_backend(entry, planned)
        self._note_options(entry, planned)
        return Plan(
            name=name, entry=entry, slots=planned, notes=self._notes, log=self.history, fates=self.fates,
            records=bool(setting(self._app, "neli_history")),
        )  # fmt: skip

    def _timeline(self) -> RoleTimeline | None:
        config = self._config
        self._role = config.roles[owner(self._name, len(config.roles))]
        since = self._wanted.start.timestamp() - MARGIN
        return read_timelines(config, log=self._log, since=since, roles=[self._role]).get(self._role)

    def _slots(self, entry: Any, state: State | None, definition: Definition | None) -> list[datetime]:
        wanted, when = self._wanted, entry.schedule
        since = definition.since if definition is not None else 0.0
        anchor = state.last if state is not None else since or None
        if counts_from_last_run(when):
            if anchor is None:
                raise NeliError(f"{shown(self._name)}: no beat has taken it up yet, so its slots are not known")
            self._notes.append("its slots count from its last run: those before a change of the schedule were others")
        try:
            at = None if anchor is None else datetime.fromtimestamp(anchor, timezone.utc)
            found = list(islice(slots(when, wanted.start, wanted.end, at), wanted.limit + 1))
        except Exception as exc:  # noqa: BLE001 - a user's schedule may raise anything
            raise NeliError(f"{shown(self._name)}: its slots cannot be computed: {printable_error(exc)}") from None
        if len(found) > wanted.limit:
            raise ConfigurationError(
                f"there are more than {wanted.limit} slots from {_utc(wanted.start)} to {_utc(wanted.end)}: give a "
                f"shorter span, or a higher limit (--limit, up to {MOST})"
            )
        return found

    def _check_settled(
        self,
        entry: Any,
        found: list[datetime],
        timeline: RoleTimeline | None,
        state: State | None,
        definition: Definition | None,
    ) -> None:
        """Refuse slots that a leader may send yet: those after its watermark, or after an open entry's last."""
        terms = [] if timeline is None else timeline.terms(self._editor.now)
        last = terms[-1] if terms else None
        since = definition.since if definition is not None else 0.0
        passed, done = since, float("-inf")
        if state is not None:
            passed = max(since, state.last)
            if not state.open and last is not None and last.settled is not None:
                done = min(last.settled, self._editor.now)
        shift = shift_of(entry.schedule)
        owed = [each for each in found if each.timestamp() > passed and (each + shift).timestamp() > done]
        if not owed:
            return
        if state is None and not since:
            why = "no beat has taken up this entry yet"
        elif state is not None and state.open:
            why = "its sending failed, and the leading beat tries it again"
        elif last is None or not last.lives:
            why = "no beat leads, and the next one decides by its policies what becomes of it: start one"
        else:
            why = "the leading beat may send it yet"
        raise NeliError(
            f"{shown(self._name)}: {_count(owed)} from {_utc(owed[0])} on may not be sent here: {why}; or end the span "
            "before"
        )

    def _read_history(self, found: list[datetime], definition: Definition | None) -> None:
        """Read the history; refuse slots of which it cannot tell if they ran."""
        start, force = self._wanted.start, " To send what it does not tell all the same, give --force (force=True)."
        if not setting(self._app, "neli_history"):
            why = "neli_history = False: nothing is recorded, so what ran is not known, nor what this backfill sends."
            if not self._wanted.force:
                raise ConfigurationError(why + force)
            self._notes.append(why)
        begins = self.history.read(start.timestamp())
        covered = self._editor.now if begins is None else begins[0]
        unknown = [each for each in found if each.timestamp() < covered]
        added = _added(definition)
        if added is not None and (early := [each for each in found if each.timestamp() < added]):
            self._notes.append(f"{_count(early)} from before the entry was put at {_utc_of(added)}")
            if begins is None or begins[1]:  # nothing is missing of what was recorded since then
                unknown = [each for each in unknown if each.timestamp() >= added]
        unknown = [each for each in unknown if _is_blank(self.fates.of(each.timestamp()))]
        if unknown:
            reach = "there is no history topic" if begins is None else f"the history begins at {_utc_of(covered)}"
            why = f"{reach}: of {_count(unknown)} from {_utc(unknown[0])} on it is not known if they ran."
            if not self._wanted.force:
                raise NeliError(f"{shown(self._name)}: {why}{force}")
            self._notes.append(why)

    def _judge(self, slot: datetime, due: float, timeline: RoleTimeline | None) -> Backfilled:
        at = slot.timestamp()
        fate = self.fates.of(at)
        made = Backfilled(slot=slot, id=id_at(self._config.group, self._name, at), action=SKIPPED)
        if fate.sent is not None or fate.ran is not None:
            return replace(made, note=_what_ran(fate))
        doubt = self._doubt(fate, at, due, timeline)
        if doubt is not None:
            sends = self._wanted.in_doubt == "send"
            return replace(made, action=SEND if sends else SKIPPED, note=f"in doubt: {doubt}", over=fate.open)
        note = ""
        if fate.told is not None:
            policy = f" ({printable(fate.told.policy)})" if fate.told.policy else ""
            note = f"{fate.told.outcome}{policy} at {_utc_of(fate.told.at)}"
        return replace(made, action=SEND, note=note)

    def _doubt(self, fate: Fate, at: float, due: float, timeline: RoleTimeline | None) -> str | None:
        if (attempt := fate.attempt) is not None:
            return f"a backfill by {printable(attempt.member)} began to send it at {_utc_of(attempt.at)}"
        if (told := self.fates.doubt(at)) is not None:
            return f"{printable(told.member)} found it so at {_utc_of(told.at)}"
        if fate.told is None and timeline is not None:
            for term in timeline.terms(self._editor.now):
                heard = term.heard or 0.0
                if _ended_without_word(term) and heard - UNTOLD <= due <= max(heard, term.ended or 0.0):
                    leader = printable(term.leader)
                    return f"{leader}, which led then, ended without a word, and its last records may be missing"
        return None

    def _ask_backend(self, entry: Any, planned: list[Backfilled]) -> None:
        """Skip those of which the result backend has a result."""
        asked = [place for place, each in enumerate(planned) if each.action == SEND]
        ask = state_asker(self._app, entry)
        if not asked or ask is None:
            return
        try:
            for place in asked:
                if (state := ask(planned[place].id)) != "PENDING":
                    note = f"the result backend has its result: {printable(state)}"
                    planned[place] = replace(planned[place], action=SKIPPED, note=note)
        except Exception as exc:  # noqa: BLE001 - any backend's
            self._notes.append(f"the result backend does not tell what ran: {printable_error(exc)}")

    def _note_options(self, entry: Any, planned: list[Backfilled]) -> None:
        options = entry.options or {}
        sends = sum(each.action == SEND for each in planned)
        if sends > 1 and Overlap.from_options(options).policy != "allow":
            self._notes.append("neli_overlap does not hold here: runs may overlap, unless you send them --sequential")
        if options.get("neli_expires") is not None or options.get("expires") is not None:
            self._notes.append("messages expire counted from when they are sent now, not from their slots")


def state_asker(app: Any, entry: Any) -> Callable[[str], str] | None:
    """Return what asks the result backend for the state of a task; None if it cannot tell. Opens no connection."""
    task = app.tasks.get(entry.task)
    ignores = (entry.options or {}).get("ignore_result")
    if ignores or (ignores is None and task is not None and task.ignore_result):
        return None
    backend: Any = (task or app).backend
    if isinstance(backend, (DisabledBackend, RPCBackend)):
        return None
    return lambda id_: str(backend.get_task_meta(id_, cache=False)["status"])


def span_of(start: Any, end: Any) -> tuple[datetime, datetime]:
    """Return both as aware datetimes in UTC; raise `ConfigurationError`."""
    made = []
    for field, value in (("start", start), ("end", end)):
        if not (isinstance(value, datetime) and is_moment(value)):
            raise ConfigurationError(f"{field} = {shown(value)}: give a datetime of the years 2 to 9998")
        made.append(maybe_make_aware(value, timezone.utc).astimezone(timezone.utc))
    if made[0] > made[1]:
        raise ConfigurationError(f"start = {_utc(made[0])}: is after end = {_utc(made[1])}")
    return made[0], made[1]


def _ended_without_word(term: Term) -> bool:
    return term.end in (EXPIRED, DEPOSED, UNKNOWN)


def _added(definition: Definition | None) -> float | None:
    """Return when a runtime entry was put, None if that is not known."""
    if definition is None or definition.static or not definition.changes:
        return None
    first = definition.changes[0]
    return first.at if first.what == "added" else None


def _is_blank(fate: Fate) -> bool:
    return fate.sent is None and fate.ran is None and fate.attempt is None and fate.told is None


def _what_ran(fate: Fate) -> str:
    state = "" if fate.ran is None else f", its task {printable(fate.ran.state)}"
    if fate.sent is None:
        return f"it was sent{state}"
    how = f" by a backfill of {printable(fate.sent.member)}" if fate.sent.attempt else ""
    return f"sent at {_utc_of(fate.sent.at)}{how}{state}"


def _count(found: list[datetime]) -> str:
    return f"{len(found)} slot{'' if len(found) == 1 else 's'}"


def _utc(at: datetime) -> str:
    fraction = f"{at:.%f}".rstrip("0").rstrip(".") if at.microsecond else ""
    return f"{at.astimezone(timezone.utc):%Y-%m-%d %H:%M:%S}{fraction}Z"


def _utc_of(seconds: float | None) -> str:
    return "?" if seconds is None else _utc(datetime.fromtimestamp(seconds, timezone.utc).replace(microsecond=0))


def to_send(plan: Plan) -> Iterator[int]:
    """Yield the places of the slots that are to be sent."""
    return (place for place, each in enumerate(plan.slots) if each.action == SEND)
