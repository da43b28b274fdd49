"""What the records of a role say of one slot: which term claimed it, when that was read back, and when it settled."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from celery_neli.beat.replicated.claims import Watermarks
from celery_neli.election.lease import name_of
from celery_neli.election.records import Record

MOST: Final = 1_000  # terms of which claims are kept: the first ones that had to do with the slot


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What the records of one term say of a slot. Times are Unix seconds, by the records; None: nothing.

    `doubt`: the term found the slot claimed by an earlier one and not settled. `offset` and `at` are those of the first
    record of its own that claims the slot; `read_back` is the time of the first one that shows that its leader had read
    that. `settled` and `settled_offset` are those of the first record by which the slot is settled; `given_back`: the
    term was released cleanly and had not settled it.
    """

    term: int
    leader: str
    doubt: bool = False
    offset: int | None = None
    at: float | None = None
    read_back: float | None = None
    settled: float | None = None
    settled_offset: int | None = None
    given_back: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self)


class SlotWatch:
    """Looks for one slot in the records of its role, in their order. An `Observe` of the timeline."""

    def __init__(self, slot: float) -> None:
        self._slot = slot
        self._claims: dict[int, Claim] = {}
        self.marked = False  # the records carry watermarks: they are those of a scheduler that claims slots

    @property
    def claims(self) -> list[Claim]:
        """Return what each term had to do with the slot, oldest first; terms that had nothing to do with it are out."""
        return [each for each in self._claims.values() if each.doubt or each.offset is not None or each.settled]

    def __call__(self, offset: int, at: float, term: int, record: Record) -> None:
        """Take a record that counts."""
        marks = Watermarks.of(record.data)
        if marks is None or (len(self._claims) >= MOST and term not in self._claims):
            return
        self.marked = True
        claim = self._claims.get(term) or Claim(term=term, leader=name_of(record.member))
        if record.kind == "claim":
            self._claims[term] = replace(claim, doubt=marks.settled < self._slot <= marks.doubtful)
            return
        if claim.offset is not None and claim.read_back is None and (record.seen or 0) >= claim.offset:
            claim = replace(claim, read_back=at)
        if claim.offset is None and marks.attempted is None and marks.settled < self._slot <= marks.claimed:
            claim = replace(claim, offset=offset, at=at)
        if claim.settled is None and marks.settled >= self._slot and (claim.offset is not None or claim.doubt):
            claim = replace(claim, settled=at, settled_offset=offset)
        if record.kind == "release" and claim.offset is not None and claim.settled is None:
            claim = replace(claim, given_back=True)
        self._claims[term] = claim
