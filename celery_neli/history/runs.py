"""Runs: what the records of the history say together of each slot and of its task. Pure, and for one thread."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from celery_neli.history.records import RunRecord, SlotRecord

MOST_PER_ENTRY: Final = 500  # runs that an index keeps of one entry, the newest ones

STARTED: Final = "started"
SUCCEEDED: Final = "succeeded"
FAILED: Final = "failed"
RETRIED: Final = "retried"
REVOKED: Final = "revoked"
STATES: Final = (STARTED, SUCCEEDED, FAILED, RETRIED, REVOKED)
#: States after which nothing more is to be expected of a task.
ENDS: Final = frozenset({SUCCEEDED, FAILED, REVOKED})


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
        if self.outcome != "sent" or self.slot is None or self.at is None:
            return None
        return self.at - self.slot

    @property
    def failed(self) -> bool:
        """Return True if the slot did not come to a good end: not sent, left out in doubt, failed, or revoked."""
        left_out = self.outcome in ("failed", "refused", "skipped") or (self.outcome == "in_doubt")
        return left_out or self.state in (FAILED, REVOKED)

    @property
    def when(self) -> float:
        """Return the time by which runs are ordered."""
        return next(each for each in (self.slot, self.at, self.started, self.finished, 0.0) if each is not None)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        found = {name: getattr(self, name) for name in self.__slots__}
        return {**found, "late": self.late}


class Runs:
    """Folds records into runs, in any order of arrival: those of one slot come from several processes."""

    def __init__(self, most: int = MOST_PER_ENTRY) -> None:
        self._most = most
        self._runs: dict[str, OrderedDict[Any, Run]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._runs.values()))

    def add(self, record: SlotRecord | RunRecord) -> Run:
        """Fold one record in; return the run that it tells of, as it is now."""
        runs = self._runs.setdefault(record.entry, OrderedDict())
        key = record.id or (record.slot, record.policy if isinstance(record, SlotRecord) else "")
        before = runs.pop(key, None) or Run(entry=record.entry, slot=record.slot, id=record.id)
        after = _with_slot(before, record) if isinstance(record, SlotRecord) else _with_task(before, record)
        runs[key] = after
        while len(runs) > self._most:
            runs.popitem(last=False)
        return after

    def forget(self, before: float) -> None:
        """Forget the runs of slots before this time."""
        for entry, runs in list(self._runs.items()):
            for key in [key for key, run in runs.items() if run.when < before]:
                del runs[key]
            if not runs:
                del self._runs[entry]

    def entries(self) -> list[str]:
        """Return the names of the entries of which there is a run."""
        return list(self._runs)

    def of(self, entry: str) -> list[Run]:
        """Return the runs of an entry, newest first."""
        return sorted(self._runs.get(entry, {}).values(), key=lambda each: each.when, reverse=True)

    def __iter__(self) -> Iterator[Run]:
        """Yield all runs, newest first."""
        found = [run for runs in self._runs.values() for run in runs.values()]
        return iter(sorted(found, key=lambda each: each.when, reverse=True))


def _with_slot(run: Run, record: SlotRecord) -> Run:
    """Return the run with what a beat tells of its slot. What was sent stays sent."""
    more: dict[str, Any] = {"task": record.task or run.task, "slot": record.slot if run.slot is None else run.slot}
    if record.outcome == "in_doubt":
        more["in_doubt"] = record.policy
        if record.policy == "send":  # what becomes of it follows
            return replace(run, **more)
    attempts = run.attempts + (record.outcome in ("sent", "failed"))
    if run.outcome == "sent" and record.outcome != "sent":
        return replace(run, attempts=attempts, **more)
    return replace(
        run, **more, outcome=record.outcome, policy=record.policy, count=record.count, first=record.first, at=record.at,
        attempts=attempts, member=record.member, role=record.role, term=record.term,
        error=run.error if run.state else record.error,
    )  # fmt: skip


def _with_task(run: Run, record: RunRecord) -> Run:
    """Return the run with what a worker tells of its task. The latest record counts: a task may run twice."""
    known = run.finished if run.finished is not None else run.started
    if known is not None and (record.at < known or (record.at == known and run.state in ENDS)):
        return run if record.state != STARTED or run.started is not None else replace(run, started=record.at)
    more: dict[str, Any] = {"state": record.state, "worker": record.worker, "retries": record.retries}
    if record.state == STARTED:
        more |= {"started": record.at, "finished": None, "runtime": None, "error": ""}
    else:
        more |= {"finished": record.at, "runtime": record.runtime, "error": record.error}
    slot = record.slot if run.slot is None else run.slot
    return replace(run, **more, slot=slot, task=run.task or record.task)
