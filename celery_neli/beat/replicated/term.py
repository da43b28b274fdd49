"""One term of a led scheduler: which slots it has claimed, which are in doubt, and which are not settled yet.

The rules are in docs/protocol.md ("Slots"). Belongs to the thread that ticks; never waits.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from celery_neli.beat.replicated.claims import MICROSECOND, Claims, Marks
from celery_neli.beat.replicated.sharding import BASE
from celery_neli.schedule.slots import missed
from celery_neli.schedule_topic.codec import RANK_MOST

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from celery_neli.beat.replicated.host import Keeper
    from celery_neli.schedule.slots import Owed

__all__ = ["Term"]

#: Slots in doubt that are counted one by one.
COUNTED = 100
NEVER = float("-inf")


class Term:
    """Term ``number`` of a shard, which found these ``inherited`` marks when it began at ``now`` (Unix seconds), and
    writes ``more`` beside its own.

    ``blind``: it found none, although a leader has written states: every slot that is past is in doubt. ``newest``: the
    highest rank in a state of the shard's entries.
    """

    def __init__(
        self,
        keeper: Keeper,
        *,
        shard: int,
        number: int,
        newest: int,
        inherited: Marks | None,
        blind: bool,
        now: float,
        more: Mapping[str, Any],
    ) -> None:
        self.number = number
        self.goes_on = True
        #: What the states that are written in it bear as their term: higher than any before. Numbers of terms alone
        #: would not do: entries move from shard to shard, and a leader topic that is made anew counts from 0.
        #: At the highest that readers accept it stays: of equal ranks the later state counts, so ours still wins.
        self.rank: int = min(max(more.get(BASE, 0) + number, newest + 1), RANK_MOST)
        base = self.rank - number
        self.claims = Claims(term=number, interval=keeper.interval, inherited=inherited, now=now)
        #: Slots that *done* must not pass although they are not in the heap, by entry: in flight, or failed.
        self.unsettled: dict[str, float] = {}
        #: Slots that may have been published, or not, by entry: they stay in doubt after a clean release, which leaves
        #: nothing in doubt behind the last of them.
        self.perhaps: dict[str, float] = {}
        self._keeper, self._shard = keeper, shard
        self._more = {**more, BASE: base} if base else more
        if inherited is None:
            self._doubt = now if blind else NEVER
        else:
            self._doubt = inherited.doubtful
        #: No earlier term has sent a slot of an entry that was defined later, and that no leader wrote a state of.
        self._reached = self._doubt if inherited is None else inherited.claimed
        self._saved = None if inherited is None else inherited.saved
        self._told: set[str] = set()

    def tell(self, now: float, due: float | None) -> None:
        """Let the others know at once what this term goes by; nothing is claimed yet."""
        self._offer(self.claims.closing(now, self._first(due)), hurry=True)

    def claim(self, now: float, due: float | None) -> None:
        """Claim what is due soon, and tell what is done. ``due``: the first slot in the heap, past or future."""
        keeper = self._keeper
        told = keeper.leader.told(keeper.roles[self._shard])
        # An entry that is late may run for a newer slot than the first that it owes: claim up to now.
        offer = self.claims.turn(now, None if due is None else max(due, now), self._first(due), told)
        if not keeper.topic.unsaved:
            self._saved = self.claims.done
        if offer is not None:
            self._offer(offer.marks, hurry=offer.hurry)

    def close(self, now: float, due: float | None) -> None:
        """Give back what was claimed and not used: nothing more is sent, and the states of all that ran are in Kafka.

        What was found in doubt may still be, be it that an entry failed since.
        """
        marks = self.claims.closing(now, self._first(due))
        doubtful = max(self.perhaps.values(), default=NEVER) + MICROSECOND  # as floats, slots are a little less exact
        self._saved = marks.done
        self._offer(Marks(max(marks.claimed, doubtful), marks.done, tried=max(doubtful, self._doubt, 0.0)))

    def in_doubt(self, entry: Any, first: datetime | None, *, defined: float) -> Owed | None:
        """The slots of an entry, of which ``first`` is the first owed, that may have been published before; None if
        there are none. ``defined``: when the entry was, in Unix seconds, if no leader has written a state of it.
        """
        if first is None or first.timestamp() > self._doubt or defined > self._reached:
            return None
        until = datetime.fromtimestamp(self._doubt, timezone.utc)
        found = missed(entry.schedule, entry.last_run_at, until, COUNTED)
        return found if found is not None and found.total else None

    def is_told(self, name: str) -> bool:
        """Whether this was asked of the entry ``name`` before, in this term: its doubt was told."""
        if name in self._told:
            return True
        self._told.add(name)
        return False

    def _first(self, due: float | None) -> float | None:
        return min((*self.unsettled.values(), *(() if due is None else (due,))), default=None)

    def _offer(self, marks: Marks, *, hurry: bool = False) -> None:
        marks = replace(marks, saved=self._saved)
        self._keeper.offer(self._shard, self.number, marks, self._more, hurry=hurry)
