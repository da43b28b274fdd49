"""Runs: what the records of the history say together of each slot and of its task. Pure, and for one thread."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Final

from celery_neli import hooks
from celery_neli.history.records import (
    FAILED,
    IGNORED,
    REJECTED,
    RETRIED,
    REVOKED,
    STARTED,
    STATES,
    SUCCEEDED,
    RunRecord,
    SlotRecord,
)

__all__ = [
    "ENDS", "FAILED", "IGNORED", "MOST_PER_ENTRY", "REJECTED", "RETRIED", "REVOKED", "STARTED", "STATES", "SUCCEEDED",
    "Run", "Runs",
]  # fmt: skip

MOST_PER_ENTRY: Final = 500  # runs that an index keeps of one entry, the newest ones
MOST_ATTEMPTS: Final = 1_000  # to send one slot that are counted

#: States after which nothing more is to be expected of a task.
ENDS: Final = frozenset({SUCCEEDED, FAILED, REVOKED, REJECTED, IGNORED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One slot of an entry, or several that were left out together. Times are Unix seconds, None where unknown.

    `outcome` is what became of the slot (`hooks.SENT`, …), None if only its worker told of it; `state` what the task
    did last (`STATES`), None if no worker told of it. `late` is how many seconds after its slot it was sent.
    """

    entry: str
    slot: float | None
    id: str | None = None
    task: str = ""
    outcome: str | None = None
    in_doubt: str = ""  # the policy that decided, if the slot was in doubt
    policy: str = ""  # the policy that left it out
    count: int = 1  # how many slots; `first` is the first of them
    first: float | None = None
    at: float | None = None  # when the outcome was known: it was sent, left out, …
    attempts: int = 0  # how often sending it was tried
    member: str = ""  # the beat
    role: str = ""
    term: int | None = None
    state: str | None = None
    started: float | None = None
    finished: float | None = None
    runtime: float | None = None  # seconds, as the worker measured
    worker: str = ""
    retries: int = 0
    error: str = ""

    @property
    def late(self) -> float | None:
        """Return how many seconds after its slot it was sent; None if it was not, or has no slot."""
        if self.outcome != hooks.SENT or self.slot is None or self.at is None:
            return None
        return self.at - self.slot

    @property
    def failed(self) -> bool:
        """Return True if it came to no good end: not sent, left out by a policy, or its task failed or was revoked."""
        unsent = self.outcome is not None and self.outcome != hooks.SENT and self.state is None
        return unsent or self.state in (FAILED, REVOKED, REJECTED)

    @property
    def when(self) -> float:
        """Return the time by which runs are ordered."""
        return next(each for each in (self.slot, self.at, self.started, self.finished, 0.0) if each is not None)

    @property
    def latest(self) -> float:
        """Return the time of the last that is known of it."""
        return max(each for each in (self.slot, self.at, self.started, self.finished, 0.0) if each is not None)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        found = {name: getattr(self, name) for name in self.__slots__}
        return {**found, "late": self.late}


#: Which outcome of a slot says more: what was sent stays sent, and what failed is tried again.
_RANKS: Final = {
    hooks.SENDING: 0, hooks.FAILED: 0, hooks.IN_DOUBT: 1, hooks.SKIPPED: 1, hooks.REFUSED: 2, hooks.SENT: 3,
}  # fmt: skip


@dataclass(slots=True, eq=False)
class _Story:
    """The records of one run that say the most, whatever the order in which they come, and however often."""

    entry: str
    id: str | None = None
    slot: float | None = None
    task: str = ""
    told: SlotRecord | None = None  # what became of the slot
    doubt: SlotRecord | None = None  # the last leader that found it in doubt
    attempts: set[tuple[str, float]] = field(default_factory=set)
    sending: dict[str, SlotRecord] | None = None  # the attempts of backfills that began
    ended_attempts: set[str] | None = None  # … and those of which is known what came
    began: RunRecord | None = None  # the last start of its task
    ended: RunRecord | None = None  # what it did last apart from that
    when: float = 0.0  # as in `Run`, when it was last folded

    def fold_slot(self, record: SlotRecord) -> None:
        if record.outcome in (hooks.SENT, hooks.FAILED) and len(self.attempts) < MOST_ATTEMPTS:
            self.attempts.add((record.member, record.at))
        if record.attempt and self._fold_attempt(record):
            return
        if record.outcome == hooks.IN_DOUBT:
            self.doubt = max(self.doubt or record, record, key=_doubts)
            if record.policy == "send":  # what becomes of it follows
                return
        self.told = max(self.told or record, record, key=_says_more)

    def _fold_attempt(self, record: SlotRecord) -> bool:
        """Note an attempt of a backfill, or its end; return True if that is all that the record says."""
        if record.outcome == hooks.SENDING:
            self.sending = self.sending or {}
            if len(self.sending) < MOST_ATTEMPTS:
                self.sending[record.attempt] = record
            return True
        self.ended_attempts = self.ended_attempts or set()
        if len(self.ended_attempts) < MOST_ATTEMPTS:
            self.ended_attempts.add(record.attempt)
        return record.outcome == hooks.SKIPPED  # another attempt was before it

    def outcome(self) -> SlotRecord | None:
        """Return what became of the slot: an attempt without an end says more than all but that it was sent."""
        told = self.told
        if self.sending is None or (told is not None and told.outcome == hooks.SENT):
            return told
        ended = self.ended_attempts or ()
        return max((each for token, each in self.sending.items() if token not in ended), key=_doubts, default=told)

    def fold_task(self, record: RunRecord) -> None:
        if record.state == STARTED:
            self.began = max(self.began or record, record, key=_later)
        else:
            self.ended = max(self.ended or record, record, key=_later)

    def run(self) -> Run:
        found: dict[str, Any] = {"entry": self.entry, "id": self.id, "slot": self.slot, "task": self.task}
        if (told := self.outcome()) is not None:
            found |= {"outcome": told.outcome, "policy": told.policy, "count": told.count, "first": told.first}
            found |= {"at": told.at, "member": told.member, "role": told.role, "term": told.term, "error": told.error}
        if self.doubt is not None:
            found["in_doubt"] = self.doubt.policy
        began, ended = self.began, self.ended
        last = began if ended is None or (began is not None and began.at > ended.at) else ended
        if last is not None:
            found |= {"state": last.state, "worker": last.worker, "retries": last.retries, "error": last.error}
            found |= {"started": None if began is None else began.at}
        if ended is not None and last is ended:
            found |= {"finished": ended.at, "runtime": ended.runtime}
        return Run(**found, attempts=len(self.attempts))


def _says_more(record: SlotRecord) -> tuple[int, float, str, str, str]:
    """Order what beats tell of one slot: of several that sent it the first counts, else the last that was told."""
    rank = _RANKS[record.outcome]
    at = -record.at if record.outcome == hooks.SENT else record.at
    return rank, at, record.member, record.outcome, record.policy


def _doubts(record: SlotRecord) -> tuple[float, str, str]:
    return record.at, record.member, record.policy


def _later(record: RunRecord) -> tuple[float, int, str, int, str]:
    return record.at, STATES.index(record.state), record.worker, record.retries, record.error


class Runs:
    """Folds records into runs, in any order of arrival: those of one slot come from several processes, some twice.

    A run is known by the id of its task, and where a beat does not tell the id (that of a wrapped scheduler), by its
    slot. Of each entry the newest runs are kept.
    """

    def __init__(self, most: int = MOST_PER_ENTRY) -> None:
        self._most = most
        self._entries: dict[str, _Entry] = {}

    def __len__(self) -> int:
        return sum(len(each.stories) for each in self._entries.values())

    def add(self, record: SlotRecord | RunRecord) -> Run:
        """Fold one record in; return the run that it tells of, as it is now."""
        entry = self._entries.get(record.entry)
        if entry is None:
            entry = self._entries[record.entry] = _Entry()
        return entry.add(record, self._most)

    def forget(self, before: float) -> None:
        """Forget the runs of slots before this time."""
        for name, entry in list(self._entries.items()):
            entry.forget(before)
            if not entry.stories:
                del self._entries[name]

    def entries(self) -> list[str]:
        """Return the names of the entries of which there is a run."""
        return list(self._entries)

    def of(self, entry: str) -> list[Run]:
        """Return the runs of an entry, newest first."""
        found = self._entries.get(entry)
        return [] if found is None else [each.run() for each in reversed(found.stories)]

    def __iter__(self) -> Iterator[Run]:
        """Yield all runs, newest first."""
        found = [each.run() for entry in self._entries.values() for each in entry.stories]
        return iter(sorted(found, key=attrgetter("when"), reverse=True))


class _Entry:
    """The runs of one entry, the oldest first, and where they are found."""

    def __init__(self) -> None:
        self.stories: list[_Story] = []
        self._by_id: dict[str, _Story] = {}
        self._by_slot: dict[float, _Story] = {}

    def add(self, record: SlotRecord | RunRecord, most: int) -> Run:
        story = self._find(record)
        if story is None:
            story = _Story(record.entry)
        else:
            self._take_out(story)
        story.id = record.id if story.id is None else story.id
        if isinstance(record, SlotRecord):
            story.fold_slot(record)
        else:
            story.fold_task(record)
        # A beat knows the slot and the task better than the message that a worker has.
        found = [each for each in (story.outcome(), story.doubt, story.ended, story.began) if each is not None]
        story.slot = next((each.slot for each in found if each.slot is not None), None)
        story.task = next((each.task for each in found if each.task), "")
        run = story.run()
        story.when = run.when
        self._put(story)
        if len(self.stories) > most:
            self._take_out(self.stories[0])
        return run

    def forget(self, before: float) -> None:
        while self.stories and self.stories[0].when < before:
            self._take_out(self.stories[0])

    def _find(self, record: SlotRecord | RunRecord) -> _Story | None:
        if record.id is not None and record.id in self._by_id:
            return self._by_id[record.id]
        story = None if record.slot is None else self._by_slot.get(record.slot)
        return story if story is None or record.id is None or story.id is None else None

    def _put(self, story: _Story) -> None:
        insort(self.stories, story, key=attrgetter("when"))
        if story.id is not None:
            self._by_id[story.id] = story
        if story.slot is not None:
            self._by_slot[story.slot] = story

    def _take_out(self, story: _Story) -> None:
        self.stories.remove(story)
        if story.id is not None and self._by_id.get(story.id) is story:
            del self._by_id[story.id]
        if story.slot is not None and self._by_slot.get(story.slot) is story:
            del self._by_slot[story.slot]
