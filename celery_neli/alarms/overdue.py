"""What is overdue, from what is known of the schedule and of runs. Pure: no clock, no thread, no Kafka.

Each entry has one place in a heap, at the time at which its next slot would be overdue; only then is it looked at, and
its state then says how far it has come. So an entry costs a look for each slot, or one for each allowance if its slots
come more often, however many records there are.

What is due when is decided by times that the records hold, so a process that takes over from another one says nothing
of what was due up to the time `told`, up to which that one has told all.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any, Final

from celery.schedules import crontab

from celery_neli import hooks
from celery_neli.history.records import BACKFILL, BY_HAND, Record, RunRecord, SlotRecord
from celery_neli.history.runs import STARTED
from celery_neli.schedule.cron import cron
from celery_neli.schedule.heap import DueHeap
from celery_neli.schedule.slots import base_of, id_at, missed, next_slot, nominal, shift_of
from celery_neli.schedule_topic.pauses import effective
from celery_neli.schedule_topic.rules import Pause

SLOT: Final = "slot_overdue"
RUN: Final = "run_overdue"

NOT_SENT: Final = "not_sent"
FAILED: Final = "failed"
REFUSED: Final = "refused"
NOT_STARTED: Final = "not_started"
NOT_FINISHED: Final = "not_finished"

ALLOWANCE: Final = 60.0  # seconds, beside a tenth of the interval
PART: Final = 0.1
PART_MOST: Final = 3600.0  # seconds that the tenth is at most
MOST_PENDING: Final = 100_000  # tasks that are waited for; of further ones nothing is said
SEARCHES: Final = 2_000  # crontabs of which the next slot is remembered
REMEMBERED: Final = 50_000  # tasks that were started, and alarms that were raised


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """A slot, or the run of one, that is overdue. Times are Unix seconds; `signals` explains the fields."""

    kind: str
    entry: str
    task: str
    slot: float | None
    id: str | None
    reason: str
    deadline: float
    allowance: float
    count: int = 1
    error: str = ""
    worker: str = ""
    started: float | None = None
    schedule: Any = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        found = asdict(self)
        del found["schedule"]
        return found


@dataclass(slots=True, kw_only=True)
class Entry:
    """An entry whose slots are watched. `base`: no slot at or before it counts; `last`: its last slot that is settled;
    `seen`: its last slot of which all was told, all three without the shift of a jitter. `overdue` and `max_runtime`:
    its own allowances, None without; `countdown`: how many seconds its tasks wait in workers before they start.
    """

    task: str
    schedule: Any
    base: float
    last: float = 0.0
    seen: float = 0.0
    overdue: float | None = None
    max_runtime: float | None = None
    countdown: float = 0.0
    allowance: float = ALLOWANCE  # as of its next slot
    has_slots: bool = False
    tags: tuple[str, ...] = ()

    @property
    def shift(self) -> float:
        """How many seconds after its slots it is due."""
        return shift_of(self.schedule)


@dataclass(frozen=True, slots=True)
class _Pending:
    """What was sent and not started, was not sent, or was started and not finished."""

    record: SlotRecord | RunRecord
    reason: str
    allowance: float


class Overdue:
    """Finds what is overdue, once each. For one thread."""

    def __init__(
        self,
        *,
        group: str,
        told: float = float("-inf"),
        overdue: float | None = None,
        max_runtime: float | None = None,
        reports: bool = False,
        on_error: Callable[[str, Exception], None] = lambda *_: None,
    ) -> None:
        """`group`: of the beats. `told`: the time up to which another process has told all. `overdue` and
        `max_runtime`: the settings, None if not set. `reports`: workers are known to report what tasks do. `on_error`
        is called with an entry that is not watched any more, and what its schedule raised.
        """
        self.told = self._inherited = told
        self.reports, self._on_error = reports, on_error
        self._group, self._overdue, self._max_runtime = group, overdue, max_runtime
        self._entries: dict[str, Entry] = {}
        self.pauses: dict[str, Pause] = {}  # of many entries, by their names
        self._due = DueHeap()
        self._pending: dict[str, _Pending] = {}
        self._pending_due = DueHeap()
        self._searches: dict[int, tuple[float, Any, Any, Any]] = {}
        self._errors: OrderedDict[str, str] = OrderedDict()  # why an entry could not be sent
        self._begun: OrderedDict[str, None] = OrderedDict()  # tasks that were started
        self._raised: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._due)

    # -- what is known --

    def put(self, name: str, entry: Entry) -> None:
        """Watch an entry, or what it has become. One whose schedule knows no slots is not watched. Raises what its
        schedule raises.
        """
        before = self._entries.get(name)
        if before is not None:
            entry.seen = before.seen
        self._entries[name] = entry
        self._due.remove(name)
        self._place(name, entry)

    def remove(self, name: str) -> None:
        """Watch an entry no more: it was removed, or paused."""
        self._entries.pop(name, None)
        self._due.remove(name)

    def settled(self, name: str, last: float) -> None:
        """Note that all slots of an entry up to `last` are settled."""
        entry = self._entries.get(name)
        if entry is not None:
            entry.last = last

    def waits(self, name: str, now: float) -> None:
        """Note that slots of an entry up to `now` are late on purpose: they wait for the end of its last task. Raises
        what its schedule raises.
        """
        entry = self._entries.get(name)
        if entry is not None:
            owed = missed(entry.schedule, _moment(max(entry.base, entry.last)), _moment(now), 1)
            if owed is not None and owed.newest:
                entry.seen = max(entry.seen, owed.newest[-1].timestamp())

    def record(self, record: Record) -> None:
        """Note what the history says."""
        if isinstance(record, SlotRecord):
            self._note_slot(record)
            return
        self.reports = True
        if isinstance(record, RunRecord):
            self._note_run(record)

    def _note_slot(self, record: SlotRecord) -> None:
        token = _token(record)
        at = record.at if record.slot is None else record.slot
        if record.policy in (BACKFILL, BY_HAND):  # no beat is late with it, and workers take what is many one by one
            if record.outcome == hooks.SENT:
                self._forget(token)
            return
        if record.outcome == hooks.FAILED:
            _remember(self._errors, record.entry, record.error)
            if not self._has_slots(record.entry) and token not in self._pending:
                self._wait(token, _Pending(record, FAILED, self._allowance(record.entry)), at)
            return
        self._forget(token)
        self._errors.pop(record.entry, None)
        if record.outcome == hooks.SENT and token not in self._begun:
            begins = max(at, record.at) + self._countdown(record.entry)
            self._wait(token, _Pending(record, NOT_STARTED, self._allowance(record.entry)), begins)
        elif record.outcome == hooks.REFUSED:
            self._wait(token, _Pending(record, REFUSED, self._allowance(record.entry)), at + self._shift(record.entry))

    def _note_run(self, record: RunRecord) -> None:
        token = _token(record)
        self._forget(token)
        _remember(self._begun, token, None)
        running = f"run {token}"
        self._forget(running)
        if record.state == STARTED and (limit := self._limit(record.entry)) is not None:
            self._wait(running, _Pending(record, NOT_FINISHED, limit), record.at)

    # -- what is overdue --

    @property
    def wake(self) -> float:
        """The time at which something may be overdue next; infinite if nothing is watched."""
        return min(
            (each.time for heap in (self._due, self._pending_due) if (each := heap.peek())), default=float("inf")
        )

    def judge(self, until: float, most: int) -> list[Alarm]:
        """Return what was overdue at `until` (Unix seconds) and was not told yet, `most` at a time: call it again, with
        the same time, while it returns so many. All up to `until` is told then.
        """
        found: list[Alarm] = []
        while len(found) < most and (node := self._due.peek()) is not None and node.time <= until:
            found += self._judge_entry(node.name, until)
        while len(found) < most and (node := self._pending_due.peek()) is not None and node.time <= until:
            found += self._judge_pending(node.name, node.time)
        if len(found) < most:
            self.told = max(self.told, until)
        return found

    def _judge_entry(self, name: str, until: float) -> Iterator[Alarm]:
        entry = self._entries[name]
        allowance = entry.allowance
        paused = bool(self.pauses) and self._pause(name, entry, until)
        try:
            owed = self._owed(entry, until)
            self._place(name, entry)
        except Exception as exc:  # noqa: BLE001 - a user's schedule may raise anything: the others are watched
            self.remove(name)
            self._on_error(name, exc)
            return
        if owed is None or paused:
            return
        slot, count = owed
        if not self._first(f"{name}\0{slot!r}"):
            return
        error = self._errors.get(name, "")
        yield Alarm(
            kind=SLOT, entry=name, task=entry.task, slot=slot, id=id_at(self._group, name, slot),
            reason=FAILED if error else NOT_SENT, deadline=slot + entry.shift + allowance, allowance=allowance,
            count=count, error=error, schedule=entry.schedule,
        )  # fmt: skip

    def _pause(self, name: str, entry: Entry, until: float) -> bool:
        """Return True if a pause of many entries holds it; no slot of one that has ended counts."""
        standing = effective(None, (each for each in self.pauses.values() if each.fits(name, entry.tags)), until)
        entry.base = max(entry.base, standing.since)
        return standing.paused

    def _owed(self, entry: Entry, until: float) -> tuple[float, int] | None:
        """Return the last slot that is overdue at `until`, and how many are; they count as told from now on."""
        since = max(entry.base, entry.last, entry.seen) + entry.shift
        if since < self._inherited - entry.allowance:  # its slots up to there were told by another process
            earlier = missed(entry.schedule, _moment(since), _moment(self._inherited - entry.allowance), 1)
            if earlier is not None and earlier.newest:
                since = earlier.newest[-1].timestamp()
                entry.seen = since - entry.shift
        found = missed(entry.schedule, _moment(since), _moment(until - entry.allowance), 1)
        if found is None or not found.newest:
            return None
        entry.seen = nominal(entry.schedule, found.newest[-1]).timestamp()
        return entry.seen, found.total

    def _judge_pending(self, token: str, deadline: float) -> Iterator[Alarm]:
        pending = self._pending[token]
        self._forget(token)
        if (
            deadline <= self._inherited
            or (pending.reason == NOT_STARTED and not self.reports)
            or not self._first(token)
        ):
            return
        record = pending.record
        entry = self._entries.get(record.entry)
        slot_id = record.id if record.slot is None else id_at(self._group, record.entry, record.slot)
        ran = isinstance(record, RunRecord)
        yield Alarm(
            kind=RUN if ran else SLOT, entry=record.entry, task=record.task, slot=record.slot, id=slot_id,
            reason=pending.reason, deadline=deadline, allowance=pending.allowance,
            error=record.error, worker=record.worker if isinstance(record, RunRecord) else "",
            started=record.at if ran else None, schedule=None if entry is None else entry.schedule,
        )  # fmt: skip

    # -- the heaps --

    def _place(self, name: str, entry: Entry) -> None:
        """Put the entry where its next slot would be overdue."""
        after = max(entry.base, entry.last, entry.seen) + entry.shift
        slot, following = self._next(entry.schedule, after)
        entry.has_slots = slot is not None
        if slot is None:
            self._due.remove(name)
            return
        if entry.overdue is not None or self._overdue is not None:
            entry.allowance = entry.overdue if entry.overdue is not None else self._overdue or 0.0
        else:
            interval = 0.0 if following is None else following - slot
            entry.allowance = ALLOWANCE + min(PART * interval, PART_MOST)
        self._due.put(name, slot + entry.allowance)

    def _next(self, when: Any, after: float) -> tuple[float | None, float | None]:
        """Return the first slot after a time and the one after that, None where there is none.

        A hundred thousand entries share a few crontabs: until the next slot of one, all searches find the same.
        """
        since, slot, following, _ = self._searches.get(id(when), (0.0, None, None, None))
        if slot is not None and since <= after < slot:
            return slot, following
        slot, following = next_slot(when, _moment(after)), None
        if slot is not None:
            following = next_slot(when, slot)
            slot, following = slot.timestamp(), None if following is None else following.timestamp()
            if isinstance(base_of(when), (crontab, cron)):
                if len(self._searches) >= SEARCHES:
                    self._searches.clear()
                self._searches[id(when)] = after, slot, following, when  # which keeps its id
        return slot, following

    def _allowance(self, name: str) -> float:
        entry = self._entries.get(name)
        if entry is not None:
            return entry.allowance
        return ALLOWANCE if self._overdue is None else self._overdue

    def _has_slots(self, name: str) -> bool:
        entry = self._entries.get(name)
        return entry is not None and entry.has_slots

    def _shift(self, name: str) -> float:
        entry = self._entries.get(name)
        return 0.0 if entry is None else entry.shift

    def _countdown(self, name: str) -> float:
        entry = self._entries.get(name)
        return 0.0 if entry is None else entry.countdown

    def _limit(self, name: str) -> float | None:
        entry = self._entries.get(name)
        return self._max_runtime if entry is None or entry.max_runtime is None else entry.max_runtime

    def _wait(self, token: str, pending: _Pending, since: float) -> None:
        if len(self._pending) < MOST_PENDING:
            self._pending[token] = pending
            self._pending_due.put(token, since + pending.allowance)

    def _forget(self, token: str) -> None:
        if self._pending.pop(token, None) is not None:
            self._pending_due.remove(token)

    def _first(self, token: str) -> bool:
        """Return True if no alarm was raised of it."""
        if token in self._raised:
            return False
        _remember(self._raised, token, None)
        return True


def _token(record: SlotRecord | RunRecord) -> str:
    return f"{record.entry}\0{record.id if record.slot is None else record.slot!r}"


def _remember(known: OrderedDict[str, Any], key: str, value: Any) -> None:
    known[key] = value
    known.move_to_end(key)
    if len(known) > REMEMBERED:
        known.popitem(last=False)


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)
