"""The fold of the log of one role into its terms, by the rules of the election (election/lease.py)."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from celery_neli.beat.replicated.claims import Watermarks
from celery_neli.config import Config
from celery_neli.election.lease import Lease, name_of
from celery_neli.election.records import Record, decode
from celery_neli.exceptions import RecordError

#: How a term ended: it was released by its leader alone; it was handed over because a request asked for it; its lease
#: ran out; another member claimed the role before that; it goes on; the log does not show how.
RELEASED: Final = "released"
HANDED_OVER: Final = "handed over"
EXPIRED: Final = "expired"
DEPOSED: Final = "deposed"
LIVES: Final = "lives"
UNKNOWN: Final = "unknown"

MOST_TERMS: Final = 10_000  # terms of one role that are kept, the newest ones
CLOCKS: Final = 1.0  # seconds by which the times of two records may be wrong against each other

Observe = Callable[[int, float, int, Record], None]
"""Called with each record that counts: its offset, its time, the term, and what it says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One term of a role. Times are Unix seconds, by the records; None where the log does not show them.

    `leader` is the member's name, `member` its identity. `end` says how it ended (`RELEASED`, `HANDED_OVER`, `EXPIRED`,
    `DEPOSED`, `LIVES`, `UNKNOWN`), and `ended` when; of a lease that ran out, that is its end as it was announced.
    `gap` is how many seconds there was no leader before it. `asked_by` and `asked_for` are the author of the request
    that ended it, and the member that it named. `heard` is the time of its newest record, `lease` the seconds that this
    record bought; `claimed` and `settled` are its watermarks (docs/protocol.md, "Slots").
    """

    role: str
    term: int
    leader: str
    member: str
    began: float | None
    ended: float | None = None
    end: str = LIVES
    gap: float | None = None
    asked_by: str | None = None
    asked_for: str | None = None
    heard: float | None = None
    lease: float = 0.0
    claimed: float | None = None
    settled: float | None = None

    @property
    def lives(self) -> bool:
        """Return True if it goes on."""
        return self.end == LIVES

    def covers(self, moment: float) -> bool:
        """Return True if the role had this leader at this moment, as far as the log shows."""
        ended = (self.heard or moment) + self.lease if self.end == UNKNOWN else self.ended
        return (self.began is None or self.began <= moment) and (ended is None or moment < ended)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self)


class _Fold(Lease):
    """The rules, which say of each record that counts that it does."""

    def __init__(self, config: Config, effective: Callable[[int, Record], None]) -> None:
        super().__init__("/", config)
        self._effective = effective

    def _take(self, record: Record) -> None:
        super()._take(record)
        self._effective(self.last, record)


class RoleTimeline:
    """Folds the log of one role into its terms. For one thread; no clock, no Kafka. Memory is bounded."""

    def __init__(
        self,
        config: Config,
        role: str,
        start: int,
        *,
        oldest: bool,
        most: int = MOST_TERMS,
        observe: Observe | None = None,
    ) -> None:
        """Read from offset `start` on; `oldest`: the log holds nothing older."""
        self.role = role
        self.start = start  # the first offset that is read
        self.oldest = oldest
        self.first: float | None = None  # the time of the first record that was read
        self.changes = 0  # how often a term began or ended
        self._observe = observe
        self._lease = _Fold(config, self._effective)
        self._lease.begin(start, 0.0, oldest=oldest)
        self._closed: deque[Term] = deque(maxlen=most)
        self._open: Term | None = None
        self._heard, self._bought = 0.0, 0.0  # of the newest record that counts: its time, and its lease
        self._data: Mapping[str, Any] | None = None  # what the newest record of the term carried
        self._asked: tuple[str, str | None] | None = None  # by whom and for whom this term was asked to end
        self._times: dict[int, float] = {}  # of records that are not judged yet
        self._at = 0.0

    @property
    def partial(self) -> bool:
        """Return True if records from before the first one that was read are missing."""
        return self.start > 0

    @property
    def known(self) -> bool:
        """Return True if the log says who leads, or that no member does."""
        return self._lease.known

    @property
    def unbegun(self) -> int | None:
        """Return the offset of the claim that began the first term, if it was not read."""
        first = self._closed[0] if self._closed else self._open
        return first.term if first is not None and first.began is None else None

    def read(self, offset: int, value: bytes | None, at: float) -> None:
        """Fold one record, with its time."""
        record: Record | None = None
        with suppress(RecordError):
            record = decode(value or b"")
        lease, self._at = self._lease, at
        self.first = at if self.first is None else self.first
        if not lease.known:
            self._times[offset] = at
        lease.read(offset, record, 0.0)
        if lease.lost is not None:
            self._close(None, UNKNOWN)
            lease.restart("/", 0.0)
        if lease.known and self._times:
            self._times.clear()
        if record is not None and record.kind == "request" and self._open is not None:
            term, own = self._open.term, (self._open.leader, self._open.member)
            if offset > term and record.term in (None, term) and record.to not in own:
                self._asked = name_of(record.member), record.to

    def restart(self, start: int, *, oldest: bool) -> None:
        """Go on from `start`, behind records that are gone: what came of the present term is unknown."""
        self._close(None, UNKNOWN)
        self.start = max(self.start, start)
        self._times.clear()
        self._lease.lose("/")
        self._lease.begin(start, 0.0, oldest=oldest)

    def learn(self, offset: int, at: float) -> None:
        """Note when the term that the claim at `offset` began did so."""
        if self._open is not None and self._open.term == offset:
            self._open = replace(self._open, began=at)
        elif self._closed and self._closed[0].term == offset:
            self._closed[0] = replace(self._closed[0], began=at)

    def terms(self, now: float | None = None) -> list[Term]:
        """Return the terms, oldest first; `now` (Unix seconds, by default this machine's) judges the last lease."""
        found = list(self._closed)
        if self._open is not None:
            over = self._heard + self._bought
            ended = (time.time() if now is None else now) > over
            found.append(self._shown(over if ended else None, EXPIRED if ended else LIVES))
        return found

    def _effective(self, offset: int, record: Record) -> None:
        at = self._times.get(offset, self._at)
        if record.kind == "claim":
            over = self._heard + self._bought
            early = at < over - CLOCKS
            self._close(at if early else min(over, at), DEPOSED if early else EXPIRED)
            before = self._closed[-1].ended if self._closed else None
            gap = None if before is None else max(0.0, at - before)
            self._begin(offset, record, at, gap)
        elif self._open is None or self._open.term != record.term:
            term = -1 if record.term is None else record.term
            self._begin(term, record, self._times.get(term), None)
        self._heard, self._bought = at, record.lease
        if record.data is not None:
            self._data = record.data
        if self._observe is not None and self._open is not None:
            self._observe(offset, at, self._open.term, record)
        if record.kind == "release":
            self._close(at, RELEASED if self._asked is None else HANDED_OVER)

    def _begin(self, term: int, record: Record, began: float | None, gap: float | None) -> None:
        self._close(None, UNKNOWN)
        last = self._closed[-1] if self._closed else None
        if last is not None and (last.term, last.member, last.end) == (term, record.member, UNKNOWN):
            self._open = replace(last, ended=None, end=LIVES)  # it goes on, behind a place where the log was unclear
            self._closed.pop()
        else:
            self._open = Term(
                role=self.role,
                term=term,
                leader=name_of(record.member),
                member=record.member,
                began=began,
                gap=gap,
            )
        self._data, self._asked = None, None
        self.changes += 1

    def _close(self, ended: float | None, end: str) -> None:
        if self._open is None:
            return
        self._closed.append(self._shown(ended, end))
        self._open, self._asked = None, None
        self.changes += 1

    def _shown(self, ended: float | None, end: str) -> Term:
        assert self._open is not None
        marks = Watermarks.of(self._data)
        asked_by, asked_for = self._asked or (None, None)
        return replace(
            self._open,
            ended=ended,
            end=end,
            asked_by=asked_by,
            asked_for=asked_for,
            heard=self._heard,
            lease=self._bought,
            claimed=None if marks is None else marks.claimed,
            settled=None if marks is None else marks.settled,
        )
