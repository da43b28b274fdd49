"""Which slots a term has claimed, and which are done: two marks that travel in the records of the election.

A leader *claims* slots before it publishes them: every slot due up to the mark `claimed` is this term's. It publishes
one only after it has read back a record of its own that claims it, for then whoever leads next has read that record,
too. All slots up to the mark `done` are settled: published and confirmed, or left out on purpose. So a successor knows
of every slot that it was done, or is *in doubt* (claimed, and not known to be done), or was missed. docs/protocol.md,
"Slots", tells why that holds.

Pure: no thread, no clock and no Kafka in here. Times are Unix seconds of the wall clock, for slots are; no lease is
decided by them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from celery_neli.election.grant import Told

__all__ = ["Claims", "Marks", "Offer"]

ASTRAY = 120.0
"""Seconds. A clock that goes back by more was wrong, and so are marks that are further ahead. (No heartbeat interval is
longer, nor does a clock that is kept in step jump so far.)
"""
DENSE = 0.9  # below 1: a lone slot, claimed half an interval ahead, needs no second claim when its time comes
LAST_SECOND = 253402300799.0  # of the year 9999: there are no dates behind it
MICROSECOND = 1e-6
NEVER, FOREVER = float("-inf"), float("inf")


@dataclass(frozen=True, slots=True)
class Marks:
    """What the slots of a term have come to, as of one record: `done` is never above `claimed`.

    `tried`: of a term that was handed over cleanly: of the slots that are not settled, those behind it were never given
    to the transport. `saved`: of each slot up to it that ran, the schedule topic has the state. None: it is not known.
    """

    claimed: float
    done: float
    tried: float | None = None
    saved: float | None = None

    @classmethod
    def of(cls, data: Mapping[str, Any] | None, *, now: float | None = None) -> Marks | None:
        """The marks in a record's data; None if there are none, or nonsense (no finite numbers, before 1970, no dates).

        The log may hold anything. Where `claimed` is below `done`, one of them is wrong: what lies between is in doubt.
        With `now`, marks that are far ahead of it (`ASTRAY`) count as of now: they are of a clock that was wrong, and
        nothing would run until ours has caught up.
        """
        if not isinstance(data, Mapping):
            return None
        first, second = _time(data.get("claimed")), _time(data.get("done"))
        if first is None or second is None:
            return None
        claimed, done = max(first, second), min(first, second)
        tried = None if first < second else _time(data.get("tried"))
        if now is not None and claimed > now + ASTRAY:
            done = now if done > now + ASTRAY else done
            claimed = max(now, done)
        saved = _time(data.get("saved"))
        return cls(
            claimed, done, None if tried is None else min(tried, claimed), None if saved is None else min(saved, done)
        )

    def as_data(self) -> dict[str, Any]:
        """For a record."""
        data = {"claimed": self.claimed, "done": self.done, "tried": self.tried, "saved": self.saved}
        return {name: mark for name, mark in data.items() if mark is not None}

    @property
    def doubtful(self) -> float:
        """Up to where slots that are not settled are in doubt."""
        return self.claimed if self.tried is None else self.tried

    def settled(self, last: float, *, open_: bool) -> float:
        """Up to where the slots of an entry are settled whose state tells `last`, and is or is not `open_`."""
        return last if open_ else max(last, self.done)

    def doubts(self, slot: float) -> bool:
        """Whether a slot that is not settled is in doubt: may have been published. If not, nobody has."""
        return slot <= self.doubtful


class Offer(NamedTuple):
    """What the records of this term shall carry from now on; `hurry`: a record is to leave at once."""

    marks: Marks
    hurry: bool


class Claims:
    """The marks of one term, which never go back while the clock doesn't. For one thread.

    At most two records in a heartbeat interval leave because of a claim, however dense the slots are: each claims a
    whole interval, and the next is due when half of it is left.
    """

    def __init__(self, *, term: int, interval: float, inherited: Marks | None, now: float) -> None:
        """`interval`: heartbeat interval (seconds). `inherited`: what the term found when it began
        (`Marks.of(told.data, now=now)`); None: nothing is known of earlier terms, but for the entries' states.
        """
        self.term = term
        self.inherited = inherited or Marks(0.0, 0.0)
        self._interval, self._ahead, self._few = interval, interval / 2, interval / 4
        self._claimed, self._done = self.inherited.claimed, self.inherited.done
        self._doubtful = self.inherited.claimed  # slots up to it are in doubt until `done` has passed it
        self._read = NEVER  # claimed by the newest own record that was read back
        self._resolved = False
        self._latest = now
        self._hurried = NEVER
        self._offered = self._done
        self._pending = FOREVER  # the earliest slot that was not settled when `_offered` was

    def resolve(self) -> None:
        """Every entry was looked at from the inherited `done` on: `unsettled` tells all from now on. Until then `done`
        stays where it was.
        """
        self._resolved = True

    def turn(self, now: float, next_due: float | None, unsettled: float | None, told: Told) -> Offer | None:
        """What to offer at `now`, if anything (`Leadership.offer`); to be asked in every turn of the scheduler.

        `next_due`: the next slot to publish, which may be past (None: there is none). `unsettled`: the earliest slot
        that is not settled, be it due, in flight, failed or in doubt, but for entries of which an `open` state was
        written and confirmed (None: there is none; a slot of the future is as good). `told`: as of now.

        Should the wall clock have been set back by more than `ASTRAY`, the marks begin anew at `now`: entries must
        then be protected by their states alone. If it was set back by less, the marks stay, and wait for it.
        """
        marks = Marks.of(told.data) if told.own and told.term == self.term else None
        # With `tried` in it, it is what the claim repeated: a slot that is published must not be told to be untried.
        self._read = NEVER if marks is None or marks.tried is not None else marks.claimed
        hurry = self._set_back(now) or self._claim(now, next_due)
        self._settle(now, unsettled)
        pending = min(FOREVER if each is None else each for each in (next_due, unsettled))
        moved = self._done - self._offered
        quiet = next_due is None or next_due > now + self._few
        if not (hurry or moved >= self._few or (quiet and self._offered < self._pending <= self._done)):
            self._pending = min(self._pending, pending)
            return None
        self._offered, self._pending = self._done, pending
        return Offer(Marks(self._claimed, self._done), hurry)

    @property
    def done(self) -> float:
        """The mark. An entry that is open stays so until its next slot is behind it: it may be ahead of the clock, for
        a predecessor's was fast.
        """
        return self._done

    def covers(self, slot: float) -> bool:
        """Whether `slot` may be published, as far as its claim matters: a record that claims it was read back."""
        return slot <= min(self._read, self._claimed)

    def wake(self, next_due: float | None) -> float:
        """When the next `turn` is needed for the sake of a claim, if nothing was heard until then; may be past."""
        if next_due is None or self.covers(next_due):
            return FOREVER
        return next_due - self._ahead if next_due > self._claimed else self._hurried + self._ahead

    def closing(self, now: float, unsettled: float | None) -> Marks:
        """The marks of a clean release, after which nothing is covered any more: `claimed` is `done`.

        (Not below what was inherited in doubt and is not settled yet.) Offer them only when the states of all that was
        published since `done` were written and confirmed; else leave the marks as they are.
        """
        self._settle(now, unsettled)
        self._claimed, self._read = max(self._done, self._doubtful), NEVER
        return Marks(self._claimed, self._done)

    def _claim(self, now: float, next_due: float | None) -> bool:
        """Claim ahead if it is time to; whether it must be told at once. A claim that was lost is repeated."""
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
            done = now if unsettled is None else min(now, unsettled - MICROSECOND)
            self._done = max(self._done, done)
            self._claimed = max(self._claimed, self._done)

    def _set_back(self, now: float) -> bool:
        before, self._latest = self._latest, max(now, self._latest)
        if now >= before - ASTRAY:
            return False
        self._latest, self._hurried = now, NEVER
        self._claimed, self._done, self._doubtful = now, min(self._done, now), min(self._doubtful, now)
        self._offered = min(self._offered, self._done)
        return True


def _time(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= LAST_SECOND:
        return None
    return float(value)
