"""What became of single slots of an entry, by its records in the order of the log. Pure, and for one thread.

An attempt of a backfill to send a slot is a compare-and-set on the log. It counts only if, at its place in the log, the
slot was neither sent nor run, and no other attempt was open but the one that it is `over`. So of several processes that
try to send one slot, all readers see the same one win, and each reads its own record back before it sends.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from celery_neli import hooks
from celery_neli.history.records import Record, RunRecord, SlotRecord


@dataclass(slots=True)
class Fate:
    """What is known of one slot. `sent`: the first record that says so; `ran`: the latest of a worker; `attempt`: the
    one of a backfill of which is not known what came; `told`: the last record that says that it was not sent.
    """

    sent: SlotRecord | None = None
    ran: RunRecord | None = None
    attempt: SlotRecord | None = None
    told: SlotRecord | None = None
    won: set[str] = field(default_factory=set)  # the attempts that count

    @property
    def open(self) -> str:
        """Return what another attempt has to be `over`; "" if nothing is open."""
        return "" if self.attempt is None else self.attempt.attempt

    def take(self, record: SlotRecord) -> None:
        """Fold what a beat or a backfill says, in the order of the log."""
        if record.outcome == hooks.SENDING:
            if self.sent is None and self.ran is None and record.over == self.open:
                self.attempt = record
                self.won.add(record.attempt)
        elif record.outcome == hooks.SENT:
            self.sent = self.sent or record
            self.attempt = None
        elif not record.attempt:
            self.told = record
        elif record.attempt == self.open:
            self.attempt, self.told = None, record


class Fates:
    """The slots of an entry from `start` to `end` (Unix seconds, inclusive)."""

    def __init__(self, entry: str, start: float, end: float) -> None:
        self._entry, self._start, self._end = entry, _key(start), _key(end)
        self._fates: dict[int, Fate] = {}
        self._doubts: list[SlotRecord] = []  # slots that a leader found in doubt, one record for several

    def add(self, record: Record) -> None:
        """Fold one record, in the order of the log."""
        if isinstance(record, (SlotRecord, RunRecord)) and record.entry == self._entry and record.slot is not None:
            key = _key(record.slot)
            if isinstance(record, SlotRecord) and record.outcome == hooks.IN_DOUBT:
                first = record.slot if record.first is None else record.first
                if _key(first) <= self._end and key >= self._start:
                    self._doubts.append(record)
            elif self._start <= key <= self._end:
                fate = self._fates.setdefault(key, Fate())
                if isinstance(record, SlotRecord):
                    fate.take(record)
                else:
                    fate.ran = record

    def of(self, slot: float) -> Fate:
        """Return what is known of a slot."""
        return self._fates.get(_key(slot)) or Fate()

    def doubt(self, slot: float) -> SlotRecord | None:
        """Return the last record of a leader that found the slot in doubt, alone or with others."""
        return next((each for each in self._doubting() if _spans(each, slot)), None)

    def _doubting(self) -> Iterator[SlotRecord]:
        return reversed(self._doubts)


def _spans(record: SlotRecord, slot: float) -> bool:
    last = record.slot or 0.0
    first = last if record.first is None else record.first
    return _key(first) <= _key(slot) <= _key(last)


def _key(slot: float) -> int:
    return round(slot * 1000)
