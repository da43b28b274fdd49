"""The scheduler of our own, led: a slot is claimed in the leader topic before it runs, and its state kept in Kafka.

:class:`LedMixin` stands in front of `ReplicatedScheduler` and lives as long as the process: while standing by, its
entries follow the schedule topic, so that a term can begin at once. The rules are in docs/protocol.md ("Slots").
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime, timezone
from functools import cached_property
from typing import TYPE_CHECKING, Any

from celery.utils.log import get_logger
from celery.utils.time import maybe_make_aware

from celery_neli.beat.publish import is_unconfirmed
from celery_neli.beat.replicated.attempts import Attempts
from celery_neli.beat.replicated.claims import Marks
from celery_neli.beat.replicated.entries import States
from celery_neli.beat.replicated.initial_states import Births
from celery_neli.beat.replicated.outcomes import FLUSH, StateReservation, iso
from celery_neli.beat.replicated.overlap_check import OverlapGate
from celery_neli.beat.replicated.pool import Flights
from celery_neli.beat.replicated.sender import Dispatching
from celery_neli.beat.replicated.sharding import owner
from celery_neli.beat.replicated.term import Term
from celery_neli.logs import EntryLines, escaping
from celery_neli.schedule.due import at_of, pass_over
from celery_neli.schedule.overlap import Overlap
from celery_neli.schedule.slots import missed
from celery_neli.schedule_topic.codec import STATE

if TYPE_CHECKING:
    from celery_neli.beat.tenure import Tenure
    from celery_neli.beat.wrapped.stores import Reservation
    from celery_neli.schedule.due import Look
    from celery_neli.schedule.heap import DueHeap
    from celery_neli.schedule_topic.codec import Kind

__all__ = ["LedMixin"]

logger = escaping(get_logger(__name__))

#: Seconds after which a scheduler that waits for a claim to be read back looks again; it is woken when that happens.
CONFIRM = 0.25
#: Seconds after which a tick returns although more is due.
TURN = 0.02


class LedMixin(Dispatching):
    """In front of `LeasedMixin` and `ReplicatedScheduler`. The thread that ticks, but for what publishers call."""

    neli_shard: int
    neli_reservation_class = StateReservation
    #: Slots that were in doubt when a term began here.
    neli_in_doubt = 0

    def __init__(self, app: Any, *args: Any, **kwargs: Any) -> None:
        self._warned = False
        #: Whether the present turn of `tick` has made its claim.
        self._claimed = False
        #: The present term, or the last.
        self._term: Term | None = None
        self._retries = {}
        self._attempts = Attempts()
        self._gone = {}
        self._buried = set()
        self._left = {}
        self._overlaps = OverlapGate(app)
        self._flights = Flights(self, count=1)
        self._births = Births(self)
        self.app = app
        #: When the entries of beat_schedule were made (Unix seconds).
        self._made = self._moment()
        super().__init__(app, *args, **kwargs)  # type: ignore[call-arg]
        self.neli_states = States(self, owns=self._owns, refuse=self.neli_keeper.topic.refuse, moment=self._moment)

    # -- the schedule: of all entries, those of this shard --

    def _owns(self, name: str) -> bool:
        return owner(name, self.neli_keeper.shards) == self.neli_shard

    def _owned(self, entries: Any) -> Any:
        """Return those of these entries that are of this shard; what is no mapping as it is."""
        if self.neli_keeper.shards == 1 or not isinstance(entries, Mapping):
            return entries
        return {name: entry for name, entry in entries.items() if self._owns(str(name))}

    def beat_schedule(self) -> Any:
        """Of the configuration's, the entries of this shard."""
        return self._owned(super().beat_schedule())  # type: ignore[misc]

    def merge_inplace(self, b: Mapping[str, Any]) -> None:
        """As Celery does, for the entries of this shard."""
        super().merge_inplace(self._owned(b))  # type: ignore[misc]

    def update_from_dict(self, dict_: Mapping[str, Any]) -> None:
        """As Celery does, for the entries of this shard."""
        super().update_from_dict(self._owned(dict_))  # type: ignore[misc]

    def add(self, **kwargs: Any) -> Any:
        """As Celery does; an entry of another shard is made, and not added."""
        scheduler: Any = self
        if not self._owns(kwargs["name"]):
            return scheduler.Entry(app=scheduler.app, **kwargs)
        entry = super().add(**kwargs)  # type: ignore[misc]
        self.neli_states.adopt(entry.name)
        return entry

    def neli_put(self, entry: Any) -> None:
        """Take over an entry that code has put into the schedule, if it is of this shard.

        :raises ConfigurationError: as `check`; nothing was changed.
        """
        if self._owns(entry.name):
            self.check(entry)
            self.schedule[entry.name] = entry
            self.neli_states.adopt(entry.name)

    def check(self, entry: Any) -> None:
        """:raises ConfigurationError: the entry has a policy that does not exist, or that it cannot have."""
        super().check(entry)  # type: ignore[misc]
        Overlap.of(entry).check(self.app, entry)

    # -- standing by, and the term --

    def neli_fold(self, changes: Mapping[tuple[Kind, str], bytes | None], *, many: bool) -> None:
        """The schedule topic says so, and says ``many`` things at once."""
        self.neli_states.fold(changes, leading=self.neli_leads, many=many)

    def neli_stand_by(self) -> None:
        """Have every change in the heap, so that a term that begins need not. The first time, a look at every entry."""
        self._due_heap()
        _ = self._is_unconfirmed  # imports the broker's driver, which takes as long as an election

    @cached_property
    def _is_unconfirmed(self) -> bool:
        return is_unconfirmed(self.app)

    def neli_is_over(self, term: int) -> bool:
        """Whether that term was served here, and ended: it is not taken up again, though late heartbeats may bring its
        lease back. What came of its last slots is not known any more.
        """
        return self._term is not None and self._term.number == term

    def neli_begin(self, tenure: Tenure, *, led_until: datetime | None) -> bool:
        """A term begins; what is in the schedule topic was folded. What is said to be done is passed over.

        False: not yet, for another shard still serves the entries of this one.

        Costs a look at the entries that ran last, and a short one at those of which nobody wrote a state: theirs are
        written by and by (`Births`).
        """
        keeper, states = self.neli_keeper, self.neli_states
        now = self._moment()
        self.neli_tenure = tenure
        beginning = keeper.begin(self.neli_shard, now)
        if beginning is None:
            return False
        marks, blind = beginning.marks, states.led
        if marks is None and led_until is not None and not blind:
            # Another scheduler was led, which leaves no marks: its slots were served until then, as far as is known.
            # The states of entries that were imported from it say what ran.
            marks = Marks(claimed=led_until.timestamp(), done=led_until.timestamp(), tried=0.0)
        self._term = Term(
            keeper,
            shard=self.neli_shard,
            number=tenure.term,
            inherited=marks,
            newest=states.newest,
            blind=blind,
            now=now,
            more=beginning.data,
        )
        states.newest = self._term.rank
        self._flights = Flights(self, count=keeper.settings.parallel)
        if self._is_unconfirmed and not self._warned:
            self._warned = True
            logger.warning(
                "beat: the task broker does not confirm what is published, so a slot counts as done before the broker "
                "has its task: set broker_transport_options = {'confirm_publish': True}"
            )
        for name in self._retries:  # at its time again
            if name in self.schedule:
                self._due_heap().put(name, self._first_look(self.schedule[name]))
        self._retries.clear()
        self._overlaps.begin()
        self._births = Births(self)
        states.births(None if marks is None else marks.done or None)
        if marks is not None:
            self._settle_done(marks)
        elif not blind:  # the first leader: an entry of beat_schedule begins now, and has missed nothing
            self._settle_done(Marks(now, now, saved=now), made=self._made)
        self._gone = states.gone()
        self._term.claims.resolve()
        if keeper.shards > 1:
            first = self._due_heap().peek()
            self._term.tell(now, None if first is None else first.time)  # another shard may wait for it
        return True

    def _settle_done(self, marks: Marks, *, made: float = float("-inf")) -> None:
        """Pass over slots up to the mark *done*, which were settled though their states may not have been written. (Of
        entries that last ran when they were ``made`` or later.) Slots behind *saved* count as runs. What ran before
        that mark has its state, so slots before it that have none never ran: their schedule came later.
        """
        heap = self._due_heap()
        until = datetime.fromtimestamp(marks.done, timezone.utc)
        left: list[Any] = []
        while (top := heap.peek()) is not None and top.time <= marks.done:
            entry = self.schedule[top.name]
            owed = None
            if top.name not in self.neli_states.open and self._reckons(entry) and at_of(entry) >= made:
                owed = missed(entry.schedule, entry.last_run_at, until, 1)
            if owed is not None and owed.total:
                ran = owed.total - self._never_ran(entry, marks)
                entry = pass_over(entry, owed.newest[-1], entry.default_now())
                entry.total_run_count += ran
                self.schedule[entry.name] = entry
                self._settle(entry.name)
                self.neli_write(entry)
            left.append(entry)
            heap.remove(entry.name)
        with self._at_once():
            for entry in left:
                heap.put(entry.name, self._first_look(entry))

    def _never_ran(self, entry: Any, marks: Marks) -> int:
        """Return how many slots of the entry have not run: if they had, the schedule topic would have its state."""
        saved = marks.done if marks.saved is None else marks.saved
        if saved <= at_of(entry):
            return 0
        found = missed(entry.schedule, entry.last_run_at, datetime.fromtimestamp(saved, timezone.utc), 1)
        return 0 if found is None else found.total

    def neli_cut_off(self, *, write: bool) -> None:
        """The term is over, or about to be; the tick may have been cut off anywhere. While the lease holds
        (``write``), blocks for a second at most: states are written, and what was claimed and not used is given back.
        """
        term, reservation = self._term, self.neli_reservation
        self.neli_reservation = None
        if self.neli_tenure is not None:
            self.neli_tenure.headers = None
        if term is None or not term.goes_on:
            return
        try:
            self._ground(wait=write)
            if reservation is not None and self.neli_tenure is not None and not self.neli_tenure.left:
                reservation.cancel()
                slot = getattr(reservation, "slot", None)
                if self.neli_tenure.wired and slot is not None:
                    term.perhaps[reservation.entry.name] = slot.timestamp()
            elif reservation is not None and reservation.advanced is not None:
                reservation.confirm()
            self._overlaps.begin()
            for name in term.perhaps:  # a successor must know that a leader had it
                if (entry := self.schedule.get(name) or self.neli_states.paused.get(name)) is not None:
                    self.neli_write(entry)
            if write and self.neli_keeper.topic.flush(FLUSH):
                first = self._due_heap().peek()
                term.close(self._moment(), None if first is None else first.time)
        finally:
            term.goes_on = False
            self.neli_states.imported.clear()  # a later term finds this one's claims, which are later
        if not write:
            self.neli_keeper.forget_unsaved()

    @property
    def neli_leads(self) -> bool:
        """In a term that goes on."""
        return self._term is not None and self._term.goes_on

    # -- the tick --

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """As `ReplicatedScheduler`. Asks nothing of Kafka that it would have to wait for."""
        caught_up = self.neli_keeper.pull()
        writes = self._write_back()
        if (ended := self._land()) is not None:
            raise ended
        if self._gone or self._buried:
            self._bury()
        end = time.monotonic() + TURN
        self._claimed = False
        with self._fast.one_look():
            while True:
                wait = float(super().tick(*args, **kwargs))  # type: ignore[misc]
                if wait > 0 or (self._flights and not self._flights.free()) or time.monotonic() > end:
                    return 0.0 if self._births.write_some() or writes or not caught_up else wait

    def _rest(self, due: float | None, wait: float) -> float:
        moment = self._moment()
        self._claim(moment, due)
        if self._flights:
            self._flights.wait()
            return 0.0
        return max(0.0, min(wait, self._present.claims.wake(due) - moment))

    def _must_wait(self, due: float, moment: float) -> float:
        covers = self._present.claims.covers
        if not self._claimed or not covers(due):  # what was read back stays so
            self._claim(moment, due)
        return 0.0 if covers(due) else CONFIRM

    def _act(self, heap: DueHeap, entry: Any, found: Look, now: datetime) -> float:
        if entry.name in self._flights:  # defined anew meanwhile
            self._flights.wait()
            return 0.0
        if found.due and found.slot is not None:
            slot, moment = found.slot.timestamp(), maybe_make_aware(now).timestamp()
            defined = self.neli_states.imported.get(entry.name, 0.0)
            if defined > moment:  # another process put it, whose clock is ahead
                heap.put(entry.name, defined)
                return 0.0
            # A successor assumes that slots of an import that no claim reached have not been sent.
            if not self._present.claims.covers(max(slot, defined)):
                return CONFIRM
            if self._in_doubt(entry, found, now) or self._overlaps_last(entry, found, now):
                return 0.0
            if self._flights.wants(heap, moment - slot, moment) and self._take_off(heap, entry, found, now):
                return 0.0
        return super()._act(heap, entry, found, now)  # type: ignore[misc,no-any-return]

    def _was_set_back(self, entry: Any, now: float) -> bool:
        if not super()._was_set_back(entry, now):  # type: ignore[misc]
            return False
        for each in list(self.schedule.values()):
            if self._first_look(each) <= self._present.claims.done:
                self.neli_states.open.add(each.name)  # the mark *done* was told for slots of another time
                self.neli_write(each)
        return True

    def _claim(self, moment: float, due: float | None) -> None:
        self._claimed, term = True, self._present
        for name in [name for name in term.unsettled if name in self._retries]:
            # A slot that failed does not hold up the mark *done* once everybody can know that its entry is open.
            if self.neli_keeper.topic.saved(STATE, name):
                del term.unsettled[name]
        self._births.write_due(self._due_heap(), moment)
        term.claim(moment, due)

    # -- slots that do not simply run --

    def _in_doubt(self, entry: Any, found: Look, now: datetime) -> bool:
        """Log the slots of the entry that are in doubt; return True if they are left out, as `neli_in_doubt` says."""
        first = None if found.owed is None else found.owed.first
        defined = self.neli_states.imported.get(entry.name, 0.0)
        doubtful = self._present.in_doubt(entry, first, defined=defined)
        if doubtful is None:
            return False
        sends = self.neli_keeper.settings.sends_in_doubt
        if self._present.is_told(entry.name) and sends:
            return False
        self.neli_in_doubt += doubtful.total
        self._lines.warning(
            "slots in doubt", entry.name, "slots in doubt entry=%s count=%d%s first=%s last=%s policy=%s",
            entry.name, doubtful.total, "" if doubtful.exact else "+", iso(doubtful.first),
            iso(doubtful.newest[-1]), "send" if sends else "skip",
        )  # fmt: skip
        if not sends:
            self._pass_over(entry, doubtful.newest[-1], now)
        return not sends

    def _overlaps_last(self, entry: Any, found: Look, now: datetime) -> bool:
        name, states = entry.name, self.neli_states
        if not entry.options or not Overlap.of(entry).skips or found.slot is None:
            return False
        last = states.sent.get(name)
        last_id = None if last is None else self._slot_id(name, datetime.fromtimestamp(last, timezone.utc))
        if not self._overlaps.holds(entry, last_id, last or 0.0, self._moment()):
            return False
        if found.left_out:
            self._tell(entry, found)
        self.neli_left_out += 1
        self._lines.warning(
            "slot left out", name, "slot left out entry=%s slot=%s policy=overlap unfinished=%s",
            name, iso(found.slot), last_id,
        )  # fmt: skip
        self._pass_over(entry, found.slot, now)
        return True

    def _pass_over(self, entry: Any, slot: datetime, now: datetime) -> Any:
        self._left.pop(entry.name, None)
        passed = super()._pass_over(entry, slot, now)  # type: ignore[misc]
        self.neli_write(passed)
        return passed

    def neli_stop(self) -> None:
        """The process ends."""
        self._overlaps.close()

    # What the classes behind bring.
    neli_reservation: Reservation | None
    neli_left_out: int
    _at_once: Any
    _lines: EntryLines
