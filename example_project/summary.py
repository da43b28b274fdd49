"""The judge: what the worker's receipts prove about who led when. Pure: no clock, no files, no processes.

Evidence
    Each message carries the term that it was sent in (`neli_beat_term`), its slot (`neli_beat_slot`), its sender's pid,
    and the time at which the sender began to send it. All on one machine, so these times compare. The worker takes them
    one by one from one partition: the order of the receipts is the order in which the messages reached the broker.

Overlap: two led at once
    Terms rise from leader to leader. Terms a < b overlap unless every message of a was sent before the first one of b.
    A term with messages of two processes overlaps with itself.

Late
    A message of an ended term that was sent before the next term's first one, and reached the broker after it: its
    sender was frozen between the last look at its lease and the wire. No lease can prevent that; a receiver that
    remembers the highest term can tell. Counted, not held against anyone.

Slots
    Each entry has one slot a second, from the first slot received until `until` or the last slot received. A slot
    without a message is missed; in a handover, if it lies after the last slot of one term and not after the first
    message of the next. Both entries have the misfire policy `fire_all`, so none should be missed. Doubled: a further
    message for a slot that has one, with another task id: none should be. Repeated: with the same id, in another term:
    a leader that was killed may have sent a task, and could not say so any more. Redelivered: the same message again.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from example_project.receipts import Notice, Receipt

KINDS = ("SIGTERM", "SIGKILL", "SIGSTOP")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """The demo stopped the leader of `term` by signal `kind`, at a time in seconds since 1970."""

    kind: str
    at: float
    term: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HandOver:
    """Seconds from the signal until the next leader began to send its first task, and until it was told to lead."""

    kind: str
    first_task: float
    told: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """Terms a <= b; for how many seconds both sent."""

    a: int
    b: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The verdict. Slots and messages are counts; `unasked`, the changes of term that followed no stop."""

    received: int
    without_term: int
    terms: tuple[int, ...]
    handovers: tuple[HandOver, ...]
    overlaps: tuple[Overlap, ...]
    unasked: int
    due: int
    sent: int
    missed_in_handovers: int
    missed_otherwise: int
    doubled: int
    repeated: int
    redelivered: int
    late: int

    @property
    def exit_status(self) -> int:
        """0: one led at all times. 1: two led at once. 2: the evidence does not tell."""
        if self.overlaps:
            return 1
        return 2 if self.without_term or not self.terms else 0

    def times(self, kind: str) -> list[float]:
        """Seconds until the next leader's first task, after each stop of a kind."""
        return [round(each.first_task, 3) for each in self.handovers if each.kind == kind]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "ok": self.exit_status == 0,
            "two_led_at_once": bool(self.overlaps),
            "handovers": {kind: self.times(kind) for kind in KINDS},
            "told_to_lead": {
                kind: [each.told and round(each.told, 3) for each in self.handovers if each.kind == kind]
                for kind in KINDS
            },
            "slots": {
                "due": self.due,
                "sent": self.sent,
                "missed_in_handovers": self.missed_in_handovers,
                "missed_otherwise": self.missed_otherwise,
                "doubled": self.doubled,
                "repeated": self.repeated,
            },
            "messages": {
                "received": self.received,
                "without_term": self.without_term,
                "redelivered": self.redelivered,
                "late": self.late,
            },
            "terms": list(self.terms),
            "unasked_handovers": self.unasked,
            "overlaps": [{"terms": [each.a, each.b], "seconds": round(each.seconds, 3)} for each in self.overlaps],
        }


def judge(
    receipts: Iterable[Receipt], stops: Iterable[Stop], *, until: float, notices: Mapping[int, Notice] | None = None
) -> Summary:
    """Judge the receipts, given in the order of their arrival. `notices`, by term, only tell when leaders were told."""
    received = list(receipts)
    usable = [each for each in received if each.term is not None and each.sent is not None and each.slot is not None]
    by_term: dict[int, list[Receipt]] = {}
    for each in usable:
        by_term.setdefault(each.term, []).append(each)  # type: ignore[arg-type]  # not None in `usable`
    spans = {term: _span(messages) for term, messages in sorted(by_term.items())}
    gaps = [_gap(by_term[a], spans[b][0]) for a, b in pairwise(spans)]
    slots = {(each.entry, _second(each.slot)) for each in usable}
    due = [slot for entry in {entry for entry, _ in slots} for slot in _calendar(entry, slots, until)]
    missed = [slot for slot in due if slot not in slots]
    in_gap = [second for _, second in missed if any(last < second <= first for last, first in gaps)]
    ids = {each.task_id for each in usable}
    runs = {(each.task_id, each.term) for each in usable}
    handovers = tuple(_hand_overs(stops, spans, notices or {}))
    return Summary(
        received=len(received),
        without_term=len(received) - len(usable),
        terms=tuple(spans),
        handovers=handovers,
        unasked=max(0, len(spans) - 1 - len(handovers)),
        overlaps=tuple(_overlaps(spans, by_term)),
        due=len(due),
        sent=len(due) - len(missed),
        missed_in_handovers=len(in_gap),
        missed_otherwise=len(missed) - len(in_gap),
        doubled=len(ids) - len(slots),
        repeated=len(runs) - len(ids),
        redelivered=len(usable) - len(runs),
        late=_late(usable, spans),
    )


def _calendar(entry: str | None, slots: set[tuple[str | None, int]], until: float) -> Iterable[tuple[str | None, int]]:
    seconds = [second for name, second in slots if name == entry]
    return ((entry, second) for second in range(min(seconds), max(int(until), *seconds) + 1))


def _second(slot: float | None) -> int:
    assert slot is not None
    return round(slot)


def _gap(messages: list[Receipt], following: float) -> tuple[int, float]:
    """From the last slot that a term sent before the following one began, until then."""
    slots = [_second(each.slot) for each in messages if each.sent is not None and each.sent < following]
    return max(slots, default=int(following)), following


def _span(messages: list[Receipt]) -> tuple[float, float]:
    sent = [each.sent for each in messages if each.sent is not None]
    return min(sent), max(sent)


def _overlaps(spans: dict[int, tuple[float, float]], by_term: dict[int, list[Receipt]]) -> Iterable[Overlap]:
    for term, messages in by_term.items():
        if len({each.sender for each in messages}) > 1:
            first, last = spans[term]
            yield Overlap(a=term, b=term, seconds=last - first)
    for a, b in combinations(spans, 2):
        if spans[a][1] >= spans[b][0]:
            yield Overlap(a=a, b=b, seconds=max(0.0, min(spans[a][1], spans[b][1]) - max(spans[a][0], spans[b][0])))


def _late(arrived: list[Receipt], spans: dict[int, tuple[float, float]]) -> int:
    count, highest = 0, min(spans, default=0)
    for each in arrived:
        assert each.term is not None
        assert each.sent is not None
        if each.term < highest and each.sent < spans[highest][0]:
            count += 1
        highest = max(highest, each.term)
    return count


def _hand_overs(
    stops: Iterable[Stop], spans: dict[int, tuple[float, float]], notices: Mapping[int, Notice]
) -> Iterable[HandOver]:
    for stop in stops:
        following = [term for term in spans if term > stop.term]
        # If it was a leader no more, nobody had to take over.
        if following and spans[following[0]][0] > stop.at:
            notice = notices.get(following[0])
            told = None if notice is None else notice.at - stop.at
            yield HandOver(kind=stop.kind, first_task=spans[following[0]][0] - stop.at, told=told)
