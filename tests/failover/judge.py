"""Judges what beats have sent against the slots that there were: which are missing, which were sent twice, and why.

Pure. Judged by slots and ids, not by the order of arrival; every entry has a slot each `period`, whatever its kind.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from datetime import datetime, timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A message that a beat sent for `slot` (aware) of `entry`, in the order of arrival; `at`: Unix seconds."""

    entry: str
    slot: datetime
    id: str
    term: int
    at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubt:
    """What `beat` told, once: of these `count` slots of `entry`, `first` to `last`, it does not know whether they were
    sent. `policy`: it sends them again (`send`), or does not (`skip`).
    """

    entry: str
    count: int
    first: datetime
    last: datetime
    policy: str
    beat: str = ""

    def covers(self, slot: datetime) -> bool:
        """Whether it is about this slot of its entry."""
        return self.first <= slot <= self.last


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """The task broker broke its connections at `start` and answered again at `end` (aware): what was being sent then
    may have arrived without its sender being told, who sends it again. That is one message for each of `connections`.
    """

    start: datetime
    end: datetime
    connections: int = 1


class Slot(NamedTuple):
    """One due time of one entry."""

    entry: str
    at: datetime

    def __str__(self) -> str:
        return f"{self.entry} {self.at.isoformat()}"


@dataclass(kw_only=True)
class Verdict:
    """What became of the slots. Those of `missing`, `two_ids`, `unexplained`, `off_grid` and `miscounted` are faults.

    `slots`: how many there were. `missing`: never sent, and nobody said so. `skipped`: never sent, and told. `doubled`:
    sent again with the same id, having been in doubt. `retried`: sent again by the same leader, which an outage of
    the task broker had left without an answer. `unexplained`: sent again with the same id for no such reason.
    `two_ids`: sent with different ids. `off_grid`: no slot of the entry at all. `in_doubt`: how many slots were told to
    be, `miscounted` where the number is not that of the slots told. `stale`: messages that arrived after one of a later
    term (no fault: they were on their way).
    """

    slots: int = 0
    missing: list[Slot] = field(default_factory=list)
    skipped: list[Slot] = field(default_factory=list)
    doubled: list[Slot] = field(default_factory=list)
    retried: list[Slot] = field(default_factory=list)
    unexplained: list[Slot] = field(default_factory=list)
    two_ids: list[Slot] = field(default_factory=list)
    off_grid: list[Slot] = field(default_factory=list)
    in_doubt: int = 0
    miscounted: list[Doubt] = field(default_factory=list)
    stale: int = 0

    FAULTS = ("missing", "two_ids", "unexplained", "off_grid", "miscounted")

    @property
    def faults(self) -> dict[str, list[object]]:
        """What must not be, by its name; empty if all is well."""
        return {name: list(found) for name in self.FAULTS if (found := getattr(self, name))}

    @property
    def story(self) -> str:
        """The first few of each kind of fault."""
        return "; ".join(
            f"{len(found)} {name}: {', '.join(map(str, found[:5]))}" for name, found in self.faults.items()
        )

    def __str__(self) -> str:
        named = ("missing", "skipped", "doubled", "retried", "unexplained", "two_ids", "off_grid", "miscounted")
        counts = " ".join(f"{name}={len(getattr(self, name))}" for name in named)
        return f"slots={self.slots} in_doubt={self.in_doubt} {counts} stale={self.stale}"


def judge(
    messages: Iterable[Message],
    periods: Mapping[str, timedelta],
    *,
    doubts: Iterable[Doubt] = (),
    outages: Iterable[Outage] = (),
) -> Verdict:
    """Judge all messages of the entries in `periods` (entry: time between its slots), from each entry's first slot seen
    to its last. An entry of which nothing was seen at all is missing, without a time to name: the caller knows.
    """
    doubts = list(doubts)
    of_entry: dict[str, list[Doubt]] = defaultdict(list)
    for doubt in doubts:
        of_entry[doubt.entry].append(doubt)
    verdict = Verdict(in_doubt=sum(doubt.count for doubt in doubts))
    verdict.miscounted += [doubt for doubt in doubts if _is_miscounted(doubt, periods)]
    sent: dict[str, dict[Slot, list[Message]]] = defaultdict(lambda: defaultdict(list))
    latest = -1
    for message in messages:
        if message.entry in periods:
            sent[message.entry][Slot(message.entry, message.slot)].append(message)
        verdict.stale += message.term < latest
        latest = max(latest, message.term)
    excuses = [[outage, outage.connections] for outage in outages]
    for entry, of_slot in sent.items():
        told = of_entry[entry]
        verdict.off_grid += _off_grid(of_slot, periods[entry])
        for slot in _grid(of_slot, periods[entry]):
            verdict.slots += 1
            if slot not in of_slot:
                skipped = any(doubt.policy == "skip" and doubt.covers(slot.at) for doubt in told)
                (verdict.skipped if skipped else verdict.missing).append(slot)
        for slot, found in of_slot.items():
            _judge_repeats(
                verdict, slot, found, sum(each.policy == "send" and each.covers(slot.at) for each in told), excuses
            )
    return verdict


def _judge_repeats(verdict: Verdict, slot: Slot, found: list[Message], told: int, excuses: list[list]) -> None:
    """Sort the messages of one slot beyond the first; `told`: how often it was told to be in doubt, and sent again."""
    if len({message.id for message in found}) > 1:
        verdict.two_ids.append(slot)
        return
    per_term = Counter(message.term for message in found)
    for _ in range(len(found) - len(per_term)):  # again in one term
        (verdict.retried if _excuse(slot, excuses) else verdict.unexplained).append(slot)
    again = len(per_term) - 1
    verdict.doubled += [slot] * min(again, told)
    verdict.unexplained += [slot] * max(again - told, 0)


def _excuse(slot: Slot, excuses: list[list]) -> bool:
    """Whether an outage accounts for it; each does for so many."""
    for excuse in excuses:
        outage, left = excuse
        if left and outage.start <= slot.at <= outage.end:
            excuse[1] -= 1
            return True
    return False


def _grid(of_slot: Iterable[Slot], period: timedelta) -> Iterator[Slot]:
    first, last = min(of_slot), max(of_slot)
    for number in range((last.at - first.at) // period + 1):
        yield Slot(first.entry, first.at + number * period)


def _off_grid(of_slot: Iterable[Slot], period: timedelta) -> list[Slot]:
    first = min(of_slot)
    return [slot for slot in of_slot if (slot.at - first.at) % period]


def _is_miscounted(doubt: Doubt, periods: Mapping[str, timedelta]) -> bool:
    period = periods.get(doubt.entry)
    return period is not None and doubt.count != (doubt.last - doubt.first) // period + 1
