"""The last runs of every entry, in little memory: a run takes 150 bytes. For threads that hold the owner's lock."""

from __future__ import annotations

import math
import struct
from array import array
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from celery_neli import hooks
from celery_neli.history.records import IGNORED, OUTCOMES, STARTED, STATES, RunRecord, SlotRecord
from celery_neli.history.runs import FAILED, REJECTED, RETRIED, REVOKED, SUCCEEDED, Run, Runs

PER_ENTRY: Final = 50  # runs that are kept of an entry
MOST_ENTRIES: Final = 50_000  # those of which something was told last
TOLD: Final = 3  # the newest runs of an entry, whose records are all kept to be folded exactly
MOST_TROUBLED: Final = 1_000
MOST_RECENT: Final = 50
MOST_NAMES: Final = 65_535
LONGEST: Final = 200  # bytes of an id or an error that are kept

#: What a run came to, in the words of the page.
OK, SENT, RUNNING, BAD, SKIPPED, DOUBT = "succeeded", "sent", "running", "failed", "left out", "in doubt"
KINDS: Final = (OK, SENT, RUNNING, BAD, SKIPPED, DOUBT)

_OF_STATE: Final = {
    SUCCEEDED: OK, IGNORED: OK, STARTED: RUNNING, RETRIED: RUNNING, FAILED: BAD, REVOKED: BAD, REJECTED: BAD,
}  # fmt: skip
_OF_OUTCOME: Final = {
    hooks.SENT: SENT, hooks.FAILED: BAD, hooks.REFUSED: BAD, hooks.IN_DOUBT: DOUBT, hooks.SKIPPED: SKIPPED,
    hooks.SENDING: DOUBT,
}  # fmt: skip
_OUTCOMES: Final = ("", *OUTCOMES)
_STATES: Final = ("", *STATES)
_DOUBTS: Final = ("", "send", "skip")
# kind, slot, at, started, finished, runtime, outcome, state, in_doubt; policy, member, worker, role, task, retries and
# attempts; count, term, and how long the id behind it is. The error follows.
_ROW: Final = struct.Struct("<B4df3B7HIqB")


def kind_of(run: Run) -> str:
    """Return what the run came to (`KINDS`): what its worker told, else what became of its slot."""
    if run.state is not None:
        return _OF_STATE.get(run.state, SENT)
    return SENT if run.outcome is None else _OF_OUTCOME.get(run.outcome, SENT)


class RunIndex:
    """Folds records of the history, and keeps the last runs of each entry, and which ones came to no good end."""

    def __init__(self, *, per_entry: int = PER_ENTRY, most_entries: int = MOST_ENTRIES) -> None:
        self._per_entry, self._most_entries = per_entry, most_entries
        self._fold = Runs(TOLD)
        self._rings: OrderedDict[str, _Ring] = OrderedDict()
        self._names: dict[str, int] = {"": 0}
        self._texts: list[str] = [""]
        self._troubled: OrderedDict[tuple[str, int], float] = OrderedDict()
        self._recent: OrderedDict[tuple[str, int], None] = OrderedDict()

    def __len__(self) -> int:
        return sum(len(each.rows) for each in self._rings.values())

    def add(self, record: SlotRecord | RunRecord) -> None:
        """Fold one record in."""
        name = record.entry
        ring = self._rings.get(name)
        if ring is None:
            ring = self._rings[name] = _Ring()
            if len(self._rings) > self._most_entries:
                self._forget(next(iter(self._rings)))
        elif len(self._rings) == self._most_entries:
            self._rings.move_to_end(name)
        run = self._fold.add(record)
        place = ring.find(run)
        if place is not None:
            if run.outcome is None or run.state is None or run.started is None:  # what was folded before may be dropped
                run = _joined(self._unpack(name, ring.rows[place]), run)
            ring.take(place)
        key = _key(run)
        ring.put(key, run.when, self._pack(run), self._per_entry)
        self._note(name, key, run)

    def of(self, name: str) -> list[Run]:
        """Return the kept runs of an entry, newest first."""
        ring = self._rings.get(name)
        return [] if ring is None else [self._unpack(name, row) for row in reversed(ring.rows)]

    def kinds(self, name: str) -> list[str]:
        """Return what the kept runs of an entry came to, oldest first."""
        ring = self._rings.get(name)
        return [] if ring is None else [KINDS[row[0]] for row in ring.rows]

    def last_kind(self, name: str) -> str | None:
        """Return what the last run of an entry came to, None if none is known."""
        ring = self._rings.get(name)
        return KINDS[ring.rows[-1][0]] if ring is not None and ring.rows else None

    def troubled(self) -> list[Run]:
        """Return the kept runs that failed, were left out or in doubt, newest first."""
        return sorted(self._found(self._troubled), key=lambda run: run.when, reverse=True)

    def troubled_since(self, since: float) -> int:
        """Return how many runs failed, were left out or in doubt since then (Unix seconds)."""
        return sum(when >= since for when in self._troubled.values())

    def recent(self, most: int) -> list[Run]:
        """Return the runs of which something was told last, the last one first."""
        return self._found(list(reversed(self._recent))[:most])

    def _found(self, keys: Iterable[tuple[str, int]]) -> list[Run]:
        runs = []
        for name, key in keys:
            ring = self._rings.get(name)
            if ring is not None and key in ring.keys:
                runs.append(self._unpack(name, ring.rows[ring.keys.index(key)]))
        return runs

    def _note(self, name: str, key: int, run: Run) -> None:
        mark = (name, key)
        if kind_of(run) in (BAD, SKIPPED, DOUBT) or run.in_doubt:
            self._troubled[mark] = run.when
            if len(self._troubled) > MOST_TROUBLED:
                self._troubled.popitem(last=False)
        else:
            self._troubled.pop(mark, None)
        self._recent.pop(mark, None)
        self._recent[mark] = None
        if len(self._recent) > MOST_RECENT:
            self._recent.popitem(last=False)

    def _forget(self, name: str) -> None:
        del self._rings[name]

    def _number(self, text: str) -> int:
        """Return the number of a text that occurs often: a member, a worker, a task."""
        found = self._names.get(text)
        if found is None:
            if len(self._texts) > MOST_NAMES:
                return 0
            found = self._names[text] = len(self._texts)
            self._texts.append(text)
        return found

    def _pack(self, run: Run) -> bytes:
        name = "" if run.id is None else run.id
        made = name.encode("utf-8", "surrogatepass")[:LONGEST]
        numbers = map(self._number, (run.policy, run.member, run.worker, run.role, run.task))
        return (
            _ROW.pack(
                KINDS.index(kind_of(run)), *map(_or_nan, (run.slot, run.at, run.started, run.finished)),
                _or_nan(None if run.runtime is None else min(run.runtime, 1e9)), _OUTCOMES.index(run.outcome or ""),
                _STATES.index(run.state or ""), _DOUBTS.index(run.in_doubt if run.in_doubt in _DOUBTS else ""),
                *numbers, min(run.retries, 65_535), min(run.attempts, 65_535), min(run.count, (1 << 32) - 1),
                -1 if run.term is None else run.term, len(made),
            )
            + made
            + run.error.encode("utf-8", "surrogatepass")[:LONGEST]
        )  # fmt: skip

    def _unpack(self, entry: str, row: bytes) -> Run:
        (
            _, slot, at, started, finished, runtime, outcome, state, doubt, policy, member, worker, role, task, retries,
            attempts, count, term, length,
        ) = _ROW.unpack_from(row)  # fmt: skip
        rest = row[_ROW.size :]
        texts = self._texts
        return Run(
            entry=entry, slot=_or_none(slot), id=_text(rest[:length]) or None, task=texts[task],
            outcome=_OUTCOMES[outcome] or None, in_doubt=_DOUBTS[doubt], policy=texts[policy], count=count,
            at=_or_none(at), attempts=attempts, member=texts[member], role=texts[role],
            term=None if term < 0 else term, state=_STATES[state] or None, started=_or_none(started),
            finished=_or_none(finished), runtime=_or_none(runtime), worker=texts[worker], retries=retries,
            error=_text(rest[length:]),
        )  # fmt: skip


class _Ring:
    """The rows of one entry, the oldest first, and the key of each."""

    __slots__ = ("keys", "rows", "whens")

    def __init__(self) -> None:
        self.keys = array("q")
        self.whens = array("d")
        self.rows: list[bytes] = []

    def find(self, run: Run) -> int | None:
        """Return where the run is: by the id of its task; by its slot if it was told without an id."""
        wanted = [_key(run)] if run.slot is None else [_key(run), hash(run.slot)]
        for place in range(len(self.rows) - 1, -1, -1):
            if self.keys[place] in wanted:
                return place
        return None

    def take(self, place: int) -> None:
        del self.keys[place], self.whens[place], self.rows[place]

    def put(self, key: int, when: float, row: bytes, most: int) -> None:
        place = len(self.rows)
        while place and self.whens[place - 1] > when:
            place -= 1
        self.keys.insert(place, key)
        self.whens.insert(place, when)
        self.rows.insert(place, row)
        if len(self.rows) > most:
            self.take(0)


def _key(run: Run) -> int:
    return hash(run.id if run.id is not None else run.when)


def _joined(before: Run, after: Run) -> Run:
    """Return the run with what was told of it before its records were dropped."""
    if after.outcome is None and before.outcome is not None:
        told = ("outcome", "policy", "count", "at", "attempts", "member", "role", "term")
        after = replace(after, **{name: getattr(before, name) for name in told}, slot=before.slot, task=before.task)
    if after.state is None and before.state is not None:
        names = ("state", "worker", "retries", "error", "started", "finished", "runtime")
        after = replace(after, **{name: getattr(before, name) for name in names})
    if not after.in_doubt and before.in_doubt:
        after = replace(after, in_doubt=before.in_doubt)
    return after if after.started is not None else replace(after, started=before.started)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
