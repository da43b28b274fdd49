"""One term of a role: what it begins with, which slots it has claimed, which are in doubt or not settled yet.

The rules are in docs/protocol.md ("Slots"). Belongs to the thread that ticks; never waits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from celery_neli.beat.replicated.claims import MICROSECOND, NEVER, Claims, Watermarks
from celery_neli.config import parent
from celery_neli.exceptions import ConfigurationError
from celery_neli.schedule.due import at_of, runs_left
from celery_neli.schedule.slots import missed
from celery_neli.schedule_topic.codec import EPOCH_MOST
from celery_neli.settings import SHARDS_MOST, VERSION_MOST

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping

    from celery_neli.beat.replicated.entries import EntryTable
    from celery_neli.beat.replicated.ledger import Run
    from celery_neli.election.neli import Role
    from celery_neli.election.role_state import Payload
    from celery_neli.schedule.slots import Owed
    from celery_neli.schedule_topic.topic import ScheduleTopic

#: The key of `neli_schedule_version` in the records of a beat's roles.
VERSION_KEY = "version"
#: Further keys: how many shards the leader uses; the watermarks that new shards begin with; what is to be added to a
#: term for the epoch of its states.
SHARDS, SPLIT, BASE = "shards", "split", "base"
#: Slots in doubt that are counted one by one.
COUNTED = 100


class Term:
    """Term ``number`` of ``role``, which began at ``now`` (Unix seconds) with these ``inherited`` watermarks.

    It is ``blind`` if it found none although a leader has written states: every slot that is past is in doubt.
    ``newest`` is the highest epoch in a state of the role's entries, ``interval`` the heartbeat interval (seconds),
    ``version`` the `neli_schedule_version` of this beat.
    """

    def __init__(
        self,
        role: Role,
        number: int,
        *,
        beginning: Beginning,
        inherited: Watermarks | None,
        blind: bool,
        newest: int,
        interval: float,
        version: int | None,
        topic: ScheduleTopic,
        now: float,
    ) -> None:
        self.number = number
        more = beginning.data
        #: Of the states that are written in it (`codec.State`). At the highest that readers accept it stays: of equal
        #: epochs the later state counts, so ours still wins.
        self.epoch: int = min(max(more.get(BASE, 0) + number, newest + 1), EPOCH_MOST)
        self.claims = Claims(term=number, interval=interval, inherited=inherited, now=now)
        #: Slots that the watermark *settled* must not pass although they are not in the heap, by entry: those that are
        #: being sent, or that failed.
        self.unsettled: dict[str, float] = {}
        #: Slots that may have been published or not, by entry: they stay in doubt after a clean release, which leaves
        #: nothing in doubt behind the last of them.
        self.maybe_sent: dict[str, float] = {}
        #: The entries of which slots in doubt were logged.
        self.logged: set[str] = set()
        self._role, self._topic = role, topic
        self._more: dict[str, Any] = dict(more)
        if base := self.epoch - number:
            self._more[BASE] = base
        if version is not None:
            self._more[VERSION_KEY] = version
        found = inherited or Watermarks(now if blind else NEVER, NEVER)
        #: No earlier term has sent a slot of an entry that was defined later, and that no leader wrote a state of.
        self._reached = found.claimed
        self._doubt, self._saved = found.doubtful, found.saved

    def doubt(self, run: Run) -> None:
        """Note that the run may have been published, if it was given to the transport."""
        if run.wired and run.slot is not None:
            self.maybe_sent[run.entry.name] = run.slot.timestamp()

    def announce(self, now: float, due: float | None) -> None:
        """Write at once what this term goes by; nothing is claimed yet."""
        self._set_payload(self.claims.closing(now, self._first(due)), at_once=True)

    def claim(self, now: float, due: float | None) -> None:
        """Claim what is due soon, and write what is settled. ``due``: the first slot in the heap, past or future."""
        # An entry that is late may run for a newer slot than the first that it owes: claim up to now.
        until = None if due is None else max(due, now)
        offer = self.claims.turn(now, until, self._first(due), self._role.last_payload)
        if not self._topic.unsaved:
            self._saved = self.claims.settled
        if offer is not None:
            self._set_payload(offer.marks, at_once=offer.hurry)

    def close(self, now: float, due: float | None) -> None:
        """Give back what was claimed and not used: nothing more is sent, and the states of all that ran are in Kafka.

        What was found in doubt may still be, because an entry may have failed since.
        """
        marks = self.claims.closing(now, self._first(due))
        # As floats, slots are a little less exact.
        doubtful = max(self.maybe_sent.values(), default=NEVER) + MICROSECOND
        self._saved = marks.settled
        attempted = max(doubtful, self._doubt, 0.0)
        self._set_payload(Watermarks(max(marks.claimed, doubtful), marks.settled, attempted=attempted))

    def in_doubt(self, entry: Any, first: datetime | None, *, defined: float) -> Owed | None:
        """Return the slots of an entry that may have been published before this term; None if there are none.

        ``first``: the first slot that it owes; ``defined``: when it was defined (Unix seconds), if no leader has
        written a state of it.
        """
        if first is None or first.timestamp() > self._doubt or defined > self._reached:
            return None
        until = datetime.fromtimestamp(self._doubt, timezone.utc)
        found = missed(entry.schedule, entry.last_run_at, until, COUNTED)
        return found if found is not None and found.total else None

    def _first(self, due: float | None) -> float | None:
        return min((*self.unsettled.values(), *(() if due is None else (due,))), default=None)

    def _set_payload(self, marks: Watermarks, *, at_once: bool = False) -> None:
        data = {**replace(marks, saved=self._saved).as_data(), **self._more}
        self._role.set_payload(self.number, data, now=at_once)


def pass_settled(table: EntryTable, marks: Watermarks, open_: Container[str], *, made: float = NEVER) -> list[Any]:
    """Pass over slots up to the watermark *settled*, though their states may not have been written.

    Return the entries of which slots were passed over; the caller writes their states. Slots behind *saved* count as
    runs. What ran before that watermark has its state, so slots before it that have none never ran: their schedule came
    later.

    The watermark does not cover entries that are ``open_``, and only those count that last ran at ``made`` (Unix
    seconds) or later.
    """
    heap, until = table.heap(), datetime.fromtimestamp(marks.settled, timezone.utc)
    left, passed = [], []
    while (top := heap.peek()) is not None and top.time <= marks.settled:
        entry = table.schedule[top.name]
        owed = None
        if top.name not in open_ and table.has_slots(entry) and at_of(entry) >= made:
            owed = missed(entry.schedule, entry.last_run_at, until, 1)
        if owed is not None and owed.total:
            ran = owed.total - _never_ran(entry, marks)
            entry = table.pass_over(entry, owed.newest[-1], entry.default_now())
            entry.total_run_count += int(min(ran, runs_left(entry)))
            table.settle(entry.name)
            passed.append(entry)
        left.append(entry)
        heap.remove(entry.name)
    with table.at_once():
        for entry in left:
            heap.put(entry.name, table.first_look(entry))
    return passed


def _never_ran(entry: Any, marks: Watermarks) -> int:
    """Return how many slots of the entry have not run: if they had, the schedule topic would have its state."""
    saved = marks.settled if marks.saved is None else marks.saved
    if saved <= at_of(entry):
        return 0
    found = missed(entry.schedule, entry.last_run_at, datetime.fromtimestamp(saved, timezone.utc), 1)
    return 0 if found is None else found.total


def version_of(data: Mapping[str, Any] | None) -> int:
    """Return the `neli_schedule_version` in a record's data, or -1 for none and for what the setting cannot be."""
    return _whole((data or {}).get(VERSION_KEY), most=VERSION_MOST, otherwise=-1)


# -- shards (`config.owner`) --
#
# Beats may be started with a higher number of shards while others run with the lower one. So the records of each role
# say which number its leader uses. A new shard begins when the shard that it is split from is led by that number, and
# with the watermarks that were found there when it changed: what was published or claimed until then.


@dataclass(frozen=True, slots=True)
class Beginning:
    """What a term of a shard begins with: the watermarks that it found, and what its records say besides."""

    marks: Watermarks | None
    data: Mapping[str, Any]


def begin(shard: int, shards: int, payload: Callable[[int], Payload], *, now: float) -> Beginning | None:
    """Return what a leader of ``shard``, one of ``shards``, begins with at ``now`` (Unix seconds).

    ``payload`` returns the last payload of each shard's role. Returns None while the shard that it is split from still
    serves its entries. Raises `ConfigurationError` if the entries were spread over more shards already.
    """
    found = payload(shard).data or {}
    before = _count(found)
    if before > shards:
        raise ConfigurationError(
            f"neli_shards = {shards}, but the schedule is spread over {before} already: set neli_shards = {before}; "
            f"or, if it is to be {shards} from now on, stop the beats with another number and run `celery neli repair`"
        )
    marks, split = Watermarks.of(found, now=now), _split(found, shard)
    if marks is None and shard > 0:
        of_parent = payload(parent(shard))
        if not of_parent.known or _count(of_parent.data or {}) <= shard:
            return None
        marks = Watermarks.of(_split(of_parent.data or {}, parent(shard)).get(str(shard)), now=now)
    if marks is not None:
        for child in range(max(before, shard + 1), shards):
            if parent(child) == shard:
                split[str(child)] = marks.as_data()
    more: dict[str, Any] = {SHARDS: shards}
    if split:
        more[SPLIT] = split
    if _whole(found.get(BASE), most=EPOCH_MOST) > 0:
        more[BASE] = found[BASE]
    return Beginning(marks, more)


def _count(data: Mapping[str, Any]) -> int:
    return _whole(data.get(SHARDS, 1 if data else 0), most=SHARDS_MOST)


def _whole(value: Any, *, most: int, otherwise: int = 0) -> int:
    """Return the number, or ``otherwise`` for anything but one from 0 to ``most``: the log may hold anything."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most else otherwise


def _split(data: Mapping[str, Any], shard: int) -> dict[str, Any]:
    """Return the watermarks that shards split from `shard` begin with, and nothing else that may stand there."""
    value = data.get(SPLIT)
    found = value if isinstance(value, dict) else {}
    children = (each for each in range(shard + 1, SHARDS_MOST) if parent(each) == shard)
    marks = {str(child): Watermarks.of(found.get(str(child))) for child in children}
    return {child: each.as_data() for child, each in marks.items() if each is not None}
