"""Which slots a term has claimed, and which are settled: watermarks that travel in the records of the election.

A leader *claims* slots before it publishes them: every slot due up to the watermark `claimed` is this term's. It
publishes one only after it has read back a record of its own that claims it, for then the next leader has read that
record, too. All slots up to the watermark `settled` were published and confirmed, or left out on purpose. So a
successor knows of every slot that it was settled, or is *in doubt* (claimed, and not known to be settled), or was
missed. docs/protocol.md, "Slots", says why that holds; there and in the records, `settled` is `done`, and `attempted`
is `tried`.

Pure: no thread, no clock and no Kafka in here. Times are Unix seconds of the wall clock, for slots are; no lease is
decided by them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from celery_neli.election.role_state import Payload

#: Seconds. A clock that goes back by more was wrong, and so are watermarks that are further ahead: no heartbeat
#: interval is longer, nor does a clock that is kept in step jump so far.
ASTRAY = 120.0
DENSE = 0.9  # below 1: a lone slot, claimed half an interval ahead, needs no second claim when its time comes
LAST_SECOND = 253402300799.0  # of the year 9999: there are no dates behind it
MICROSECOND = 1e-6
NEVER, FOREVER = float("-inf"), float("inf")


@dataclass(frozen=True, slots=True)
class Watermarks:
    """What the slots of a term have come to, as of one record: `settled` is never above `claimed`.

    `attempted`, of a term that was handed over cleanly: slots behind it that are not settled were never given to the
    transport. `saved`: of each slot up to it that ran, the schedule topic has the state. None: it is unknown.
    """

    claimed: float
    settled: float
    attempted: float | None = None
    saved: float | None = None

    @classmethod
    def of(cls, data: Mapping[str, Any] | None, *, now: float | None = None) -> Watermarks | None:
        """Return the watermarks in a record's data; None if there are none, or what is there cannot be dates.

        The log may hold anything. Where `claimed` is below `settled`, one of them is wrong, and what lies between is in
        doubt. With `now`, watermarks that are far ahead of it (`ASTRAY`) count as of now: they are of a clock that was
        wrong, and nothing would run until ours has caught up.
        """
        if not isinstance(data, Mapping):
            return None
        first, second = _time(data.get("claimed")), _time(data.get("done"))
        if first is None or second is None:
            return None
        claimed, settled = max(first, second), min(first, second)
        attempted = None if first < second else _time(data.get("tried"))
        if now is not None and claimed > now + ASTRAY:
            settled = now if settled > now + ASTRAY else settled
            claimed = max(now, settled)
        saved = _time(data.get("saved"))
        return cls(
            claimed,
            settled,
            attempted=None if attempted is None else min(attempted, claimed),
            saved=None if saved is None else min(saved, settled),
        )

    def as_data(self) -> dict[str, Any]:
        """Return them for a record, by the keys that the protocol knows."""
        data = {"claimed": self.claimed, "done": self.settled, "tried": self.attempted, "saved": self.saved}
        return {name: mark for name, mark in data.items() if mark is not None}

    @property
    def doubtful(self) -> float:
        """The moment up to which slots that are not settled are in doubt: they may have been published."""
        return self.claimed if self.attempted is None else self.attempted


class Offer(NamedTuple):
    """What the records of this term are to carry from now on; with `hurry`, one is to leave at once."""

    marks: Watermarks
    hurry: bool


class Claims:
    """The watermarks of one term, which never go back while the clock does not. For one thread.

    At most two records in a heartbeat interval leave because of a claim, however dense the slots are: each claims a
    whole interval, and the next is due when half of it is left.
    """

    def __init__(self, *, term: int, interval: float, inherited: Watermarks | None, now: float) -> None:
        """`interval` is the heartbeat interval in seconds; `inherited` is what the term found when it began, or None if
        nothing is known of earlier terms but the entries' states.
        """
        self.term = term
        self.inherited = inherited or Watermarks(0.0, 0.0)
        self._interval, self._ahead, self._few = interval, interval / 2, interval / 4
        self._claimed, self._settled = self.inherited.claimed, self.inherited.settled
        self._doubtful = self.inherited.claimed  # slots up to it are in doubt until `settled` has passed it
        self._read = NEVER  # claimed by the newest own record that was read back
        self._resolved = False
        self._latest = now
        self._hurried = NEVER
        self._offered = self._settled
        self._pending = FOREVER  # the earliest slot that was not settled when `_offered` was

    def resolve(self) -> None:
        """Note that every entry was looked at, so that `unsettled` is complete; until then `settled` stays put."""
        self._resolved = True

    def turn(self, now: float, next_due: float | None, unsettled: float | None, last: Payload) -> Offer | None:
        """Return what the records are to carry from `now` on, if that changes. Called in every turn of the scheduler.

        If the wall clock was set back by more than `ASTRAY`, the watermarks start over at `now`, and entries are
        protected by their states alone. If it was set back by less, they stay and wait for it.

        Args:
            now: Unix seconds.
            next_due: The next slot to publish, which may be past.
            unsettled: The earliest slot that is not settled, be it due, being sent, failed or in doubt, but for entries
                of which an `open` state was written and confirmed. A slot of the future is as good as None.
            last: The payload of the role's newest record.
        """
        marks = Watermarks.of(last.data) if last.own and last.term == self.term else None
        # With `attempted` in it, it is what the claim repeated: a published slot must not be called unattempted.
        self._read = NEVER if marks is None or marks.attempted is not None else marks.claimed
        hurry = self._set_back(now) or self._claim(now, next_due)
        self._settle(now, unsettled)
        pending = min(FOREVER if each is None else each for each in (next_due, unsettled))
        moved = self._settled - self._offered
        quiet = next_due is None or next_due > now + self._few
        if not (hurry or moved >= self._few or (quiet and self._offered < self._pending <= self._settled)):
            self._pending = min(self._pending, pending)
            return None
        self._offered, self._pending = self._settled, pending
        return Offer(Watermarks(self._claimed, self._settled), hurry)

    @property
    def settled(self) -> float:
        """The watermark. An open entry stays open until its next slot is behind it, not behind the clock, which the
        watermark may be ahead of: a predecessor's clock may have been fast.
        """
        return self._settled

    def covers(self, slot: float) -> bool:
        """Return True if a record that claims `slot` was read back, so that it may be published."""
        return slot <= min(self._read, self._claimed)

    def wake(self, next_due: float | None) -> float:
        """Return when the next `turn` is needed for a claim, if nothing is read back until then; may be past."""
        if next_due is None or self.covers(next_due):
            return FOREVER
        return next_due - self._ahead if next_due > self._claimed else self._hurried + self._ahead

    def closing(self, now: float, unsettled: float | None) -> Watermarks:
        """Return the watermarks of a clean release, after which nothing is covered any more: `claimed` is `settled`,
        but not below what was inherited in doubt and is not settled yet.

        They hold only once the states of everything that was published were written and confirmed.
        """
        self._settle(now, unsettled)
        self._claimed, self._read = max(self._settled, self._doubtful), NEVER
        return Watermarks(self._claimed, self._settled)

    def _claim(self, now: float, next_due: float | None) -> bool:
        """Claim ahead if it is time to; return True if a record is to leave at once. A lost claim is repeated."""
        if next_due is None or next_due > now + self._ahead:
            return False
        # Where slots are dense, the next one is claimed, but those behind it will not be in time.
        short = self._claimed < now + self._ahead and next_due > self._claimed - DENSE * self._ahead
        on_its_way = self._hurried <= now < self._hurried + self._ahead
        if not short and (on_its_way or self.covers(next_due)):
            return False
        self._claimed, self._hurried = max(self._claimed, now + self._interval), now
        return True

    def _settle(self, now: float, unsettled: float | None) -> None:
        if self._resolved:
            settled = now if unsettled is None else min(now, unsettled - MICROSECOND)
            self._settled = max(self._settled, settled)
            self._claimed = max(self._claimed, self._settled)

    def _set_back(self, now: float) -> bool:
        before, self._latest = self._latest, max(now, self._latest)
        if now >= before - ASTRAY:
            return False
        self._latest, self._hurried = now, NEVER
        self._claimed, self._settled, self._doubtful = now, min(self._settled, now), min(self._doubtful, now)
        self._offered = min(self._offered, self._settled)
        return True


def _time(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= LAST_SECOND:
        return None
    return float(value)
