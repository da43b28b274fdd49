"""The scheduler of our own, led: a slot is claimed in the leader topic before it runs, and its state kept in Kafka.

:class:`LedMixin` stands in front of `ReplicatedScheduler` and lives as long as the process: while standing by, its
entries follow the schedule topic, so that a term can begin at once. The rules are in docs/protocol.md ("Slots").
"""

from __future__ import annotations

import math
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from celery.utils.log import get_logger
from celery.utils.time import maybe_make_aware

from celery_neli.claims import Marks
from celery_neli.due import pass_over
from celery_neli.flights import Flights
from celery_neli.once import once
from celery_neli.overlap import Overlap
from celery_neli.overlap_gate import OverlapGate
from celery_neli.publish import is_unconfirmed, slot_id
from celery_neli.publishers import Unsent
from celery_neli.reservation import Reservation
from celery_neli.schedule_records import ENTRY, STATE, Kind, encode_state
from celery_neli.shards import owner
from celery_neli.slots import missed, next_slot
from celery_neli.states import States, at_of
from celery_neli.tenure import LeaseEnded
from celery_neli.term import Term

if TYPE_CHECKING:
    from collections.abc import Mapping

    from celery_neli.due import Look
    from celery_neli.heap import DueHeap
    from celery_neli.keeper import Keeper
    from celery_neli.tenure import Tenure

__all__ = ["LedMixin", "StateReservation"]

logger = get_logger(__name__)

#: Seconds after which a scheduler that waits for a claim to be read back looks again; it is woken when that happens.
CONFIRM = 0.25
#: Seconds that a hand-over waits for the states of what ran to be in Kafka.
FLUSH = 1.0
#: Seconds after which a slot whose publishing failed is tried again; doubled each time, up to the last.
FIRST_RETRY, LAST_RETRY = 1.0, 60.0
#: Seconds that a hand-over waits for messages that are being sent side by side.
LAND = 5.0


class StateReservation(Reservation):
    """A run of an entry whose state is kept in the schedule topic."""

    def confirm(self) -> None:
        """The message has left: the slot is settled."""
        self.scheduler.neli_sent(self.advanced, self.scheduler.neli_slot)

    def fail(self) -> bool:
        """It could not be sent: the slot is still owed, and tried again later."""
        self.scheduler.neli_failed(self.entry)
        return True


class LedMixin:
    """In front of `LeasedMixin` and `ReplicatedScheduler`. The thread that ticks, but for what publishers call."""

    neli_keeper: Keeper
    neli_shard: int
    neli_reservation_class = StateReservation
    neli_tenure: Tenure | None
    #: Slots that were in doubt when a term began here.
    neli_in_doubt = 0

    def __init__(self, app: Any, *args: Any, **kwargs: Any) -> None:
        self._warned = False
        #: The present term, or the last.
        self._term: Term | None = None
        self._retries: dict[str, float] = {}
        self._overlaps = OverlapGate(app)
        self._flights = Flights(self, count=1)
        super().__init__(app, *args, **kwargs)  # type: ignore[call-arg]
        self.neli_states = States(self, owns=self._owns, refuse=self.neli_keeper.topic.refuse)

    # -- the schedule: of all entries, those of this shard --

    def _owns(self, name: str) -> bool:
        return owner(name, self.neli_keeper.shards) == self.neli_shard

    def merge_inplace(self, b: Mapping[str, Any]) -> None:
        """As Celery does, for the entries of this shard."""
        if self.neli_keeper.shards > 1:
            b = {name: entry for name, entry in b.items() if self._owns(name)}
        super().merge_inplace(b)  # type: ignore[misc]

    def update_from_dict(self, dict_: Mapping[str, Any]) -> None:
        """As Celery does, for the entries of this shard."""
        super().update_from_dict(  # type: ignore[misc]
            {name: entry for name, entry in dict_.items() if self._owns(name)}
        )

    def add(self, **kwargs: Any) -> Any:
        """As Celery does; an entry of another shard is made, and not added."""
        scheduler: Any = self
        if not self._owns(kwargs["name"]):
            return scheduler.Entry(app=scheduler.app, **kwargs)
        entry = super().add(**kwargs)  # type: ignore[misc]
        self.neli_states.adopt(entry.name)
        return entry

    def check(self, entry: Any) -> None:
        """:raises ConfigurationError: the entry has a policy that does not exist, or that it cannot have."""
        super().check(entry)  # type: ignore[misc]
        Overlap.of(entry).check(self.app, entry)

    # -- standing by, and the term --

    def neli_fold(self, changes: Mapping[tuple[Kind, str], bytes | None]) -> None:
        """The schedule topic says so."""
        self.neli_states.fold(changes, leading=self._term is not None and self._term.goes_on)

    def neli_stand_by(self) -> None:
        """Have every change in the heap, so that a term that begins need not. The first time, a look at every entry."""
        self._due_heap()

    def neli_begin(self, tenure: Tenure, *, led_until: datetime | None) -> bool:
        """A term begins; what is in the schedule topic was folded. What is said to be done is passed over.

        False: not yet, for another shard still serves the entries of this one.

        Costs a look at the entries that ran last, and at those of which nobody wrote a state.
        """
        keeper, states = self.neli_keeper, self.neli_states
        now = self._moment()
        self.neli_tenure = tenure
        if self._term is not None and self._term.number == tenure.term:
            self._term.goes_on = True  # what was known of it holds
            self._flights = Flights(self, count=keeper.settings.parallel)
            return True
        beginning = keeper.begin(self.neli_shard, now)
        if beginning is None:
            return False
        marks = beginning.marks
        if marks is None and led_until is not None and not states.read_any:
            # Another scheduler was led, which leaves no marks: its slots were served until then, as far as is known.
            marks = Marks(claimed=led_until.timestamp(), done=led_until.timestamp())
        self._term = Term(
            keeper,
            shard=self.neli_shard,
            number=tenure.term,
            inherited=marks,
            blind=states.read_any,
            now=now,
            more=beginning.data,
        )
        self._flights = Flights(self, count=keeper.settings.parallel)
        if is_unconfirmed(self.app) and not self._warned:
            self._warned = True
            logger.warning(
                "beat: the task broker does not confirm what is published, so a slot counts as done before the broker "
                "has its task: set broker_transport_options = {'confirm_publish': True}"
            )
        self._retries.clear()
        self._overlaps.begin()
        for entry in states.births(None if marks is None else marks.done):
            self.neli_write(entry)
        if marks is not None:
            self._settle_done(marks.done)
        self._term.claims.resolve()
        if keeper.shards > 1:
            self._term.tell()  # another shard may wait for it
        return True

    def _settle_done(self, done: float) -> None:
        """Slots up to ``done`` were settled, though not every state may have been written since."""
        heap = self._due_heap()
        until = datetime.fromtimestamp(done, timezone.utc)
        left: list[Any] = []
        while (top := heap.peek()) is not None and top.time <= done:
            entry = self.schedule[top.name]
            owed = None
            if top.name not in self.neli_states.open and self._reckons(entry):
                owed = missed(entry.schedule, entry.last_run_at, until, 1)
            if owed is not None and owed.total:
                entry = pass_over(entry, owed.newest[-1], entry.default_now())
                entry.total_run_count += owed.total
                self.schedule[entry.name] = entry
                self._settle(entry.name)
                self.neli_write(entry)
            left.append(entry)
            heap.remove(entry.name)
        with self._at_once():
            for entry in left:
                heap.put(entry.name, self._first_look(entry))

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
        self._flights.close(LAND if write else 0.0)
        self._land()
        for flight in self._flights.lost():  # nobody knows what became of them: they are in doubt
            if (entry := self.schedule.get(flight.entry.name)) is not None:
                self._due_heap().put(entry.name, self._first_look(entry))
        term.unsettled.clear()
        if reservation is not None and self.neli_tenure is not None and not self.neli_tenure.left:
            reservation.cancel()
        elif reservation is not None and reservation.advanced is not None:
            self.neli_sent(reservation.advanced, self.neli_slot)
        self._overlaps.begin()
        if write and self.neli_keeper.topic.flush(FLUSH):
            first = self._due_heap().peek()
            term.close(self._moment(), None if first is None else first.time)
        term.goes_on = False

    # -- the tick --

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """As `ReplicatedScheduler`. Asks nothing of Kafka that it would have to wait for."""
        self.neli_keeper.pull()
        if (ended := self._land()) is not None:
            raise ended
        return super().tick(*args, **kwargs)  # type: ignore[misc,no-any-return]

    def _rest(self, due: float | None, wait: float) -> float:
        moment = self._moment()
        self._claim(moment, due)
        if self._flights:
            self._flights.wait()
            return 0.0
        return max(0.0, min(wait, self._present.claims.wake(due) - moment))

    def _must_wait(self, due: float, moment: float) -> float:
        self._claim(moment, due)
        return 0.0 if self._present.claims.covers(due) else CONFIRM

    def _act(self, heap: DueHeap, entry: Any, found: Look, now: datetime) -> float:
        if entry.name in self._flights:  # defined anew meanwhile
            self._flights.wait()
            return 0.0
        if found.due and found.slot is not None:
            slot, moment = found.slot.timestamp(), maybe_make_aware(now).timestamp()
            if not self._present.claims.covers(slot):
                return CONFIRM
            if self._in_doubt(entry, found, now) or self._overlaps_last(entry, found, now):
                return 0.0
            if self._flights.wants(heap, moment - slot, moment) and self._take_off(heap, entry, found, now):
                return 0.0
        return super()._act(heap, entry, found, now)  # type: ignore[misc,no-any-return]

    def _claim(self, moment: float, due: float | None) -> None:
        term = self._present
        for name in [name for name in term.unsettled if name in self._retries]:
            # A slot that failed does not hold up the mark *done* once everybody can know that its entry is open.
            if self.neli_keeper.topic.saved(STATE, name):
                del term.unsettled[name]
        term.claim(moment, due)

    # -- slots that do not simply run --

    def _in_doubt(self, entry: Any, found: Look, now: datetime) -> bool:
        """Whether the slots in doubt of the entry are left out, as told; told in any case."""
        doubtful = self._present.in_doubt(entry, None if found.owed is None else found.owed.first)
        if doubtful is None:
            return False
        sends = self.neli_keeper.settings.sends_in_doubt
        if self._present.is_told(entry.name) and sends:
            return False
        self.neli_in_doubt += doubtful.total
        logger.warning(
            "slots in doubt entry=%s count=%d%s first=%s last=%s policy=%s",
            entry.name, doubtful.total, "" if doubtful.exact else "+", _iso(doubtful.first), _iso(doubtful.newest[-1]),
            "send" if sends else "skip",
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
        self.neli_left_out += 1
        logger.warning("slot left out entry=%s slot=%s policy=overlap unfinished=%s", name, _iso(found.slot), last_id)
        self._pass_over(entry, found.slot, now)
        return True

    def _pass_over(self, entry: Any, slot: datetime, now: datetime) -> Any:
        passed = super()._pass_over(entry, slot, now)  # type: ignore[misc]
        self.neli_write(passed)
        return passed

    # -- sending, and what comes of it --

    def _take_off(self, heap: DueHeap, entry: Any, found: Look, now: datetime) -> bool:
        """Have the entry sent by a publisher, if it is one of those that may be, and somebody is free."""
        self.neli_slot = found.slot
        sent = self._entry_to_send(entry)
        self.neli_slot = None
        if self._fast.key(self, sent, self.producer) is None:
            return False
        if found.left_out:
            self._tell(entry, found)
        if not self._flights.begin(entry, sent, found, now):
            self._flights.wait()
            return True
        assert found.slot is not None, "asked for before"
        self._present.unsettled[entry.name] = found.slot.timestamp()
        heap.remove(entry.name)
        return True

    def _land(self) -> LeaseEnded | None:
        """Settle what was in flight; whether a publisher found that the term is over."""
        ended: LeaseEnded | None = None
        for flight, error in self._flights.landed():
            name, current = flight.entry.name, self.schedule.get(flight.entry.name)
            heap = self._due_heap()
            ended = error if isinstance(error, LeaseEnded) else ended
            if current is not flight.entry:  # defined anew, paused or removed meanwhile
                self._present.unsettled.pop(name, None)
                if error is None:
                    self.neli_states.ran(name, at_of(flight.advanced))
            elif error is None:
                self.schedule[name] = flight.advanced
                self._settle(name)
                self.neli_sent(flight.advanced, flight.found.slot)
                if name in self.schedule:
                    heap.put(name, self._next_look(flight.advanced, flight.found, flight.now))
            elif isinstance(error, (LeaseEnded, Unsent)):
                self._present.unsettled.pop(name, None)
                heap.put(name, self._first_look(current))
            else:
                self.neli_failed(flight.entry)
                heap.put(name, self._next_look(flight.entry, flight.found, flight.now))
        return ended

    def _count_sent(self) -> None:
        if self._flights.current() is None:
            super()._count_sent()  # type: ignore[misc]

    def apply_async(self, entry: Any, producer: Any = None, advance: bool = True, **kwargs: Any) -> Any:
        """As `LeasedMixin`; a publisher's thread comes here, too, through `apply_entry`."""
        flight = self._flights.current()
        if flight is None:
            return super().apply_async(entry, producer=producer, advance=advance, **kwargs)  # type: ignore[misc]
        try:
            return self._send(entry, producer)
        except Exception as exc:
            flight.error = exc
            raise

    def _entry_to_send(self, entry: Any) -> Any:
        """The entry with the task id of the slot that it runs for, unless its options name one."""
        sent = super()._entry_to_send(entry)  # type: ignore[misc]
        if "task_id" not in sent.options:
            options = dict(sent.options, task_id=self._id_of_run(entry))
            sent = object.__new__(type(sent))
            sent.__dict__.update(vars(entry), options=options)
        return sent

    def _id_of_run(self, entry: Any) -> str:
        slot = self.neli_slot
        if slot is None:  # its schedule knows no slots: the run after so many, and after that moment, is this one
            return self._slot_id(entry.name, None, f"{entry.total_run_count} {at_of(entry)}")
        return self._slot_id(entry.name, slot)

    def _neli_enter(self, reservation: Reservation) -> None:
        if self.neli_tenure is not None and self.neli_tenure.may_finish():
            reservation.confirm()

    def neli_sent(self, entry: Any, slot: datetime | None) -> None:
        """The ``slot`` of ``entry`` (advanced) is published and confirmed, as far as the transport can."""
        name, states = entry.name, self.neli_states
        self._retries.pop(name, None)
        self._present.unsettled.pop(name, None)
        if isinstance(entry.schedule, once) and name in states.defined:
            topic = self.neli_keeper.topic
            topic.write(ENTRY, name, None)  # in this order: without a state, an entry is owed what it has not run
            topic.write(STATE, name, None)
            states.forget(name)
            logger.info("schedule: entry=%s ran, for the only time, and was removed", name)
            return
        if slot is not None and entry.options and Overlap.of(entry).skips:
            states.sent[name] = slot.timestamp()
            self._overlaps.sent(name, self._slot_id(name, slot), self._moment())
        self.neli_write(entry)

    def neli_failed(self, entry: Any) -> None:
        """The slot after ``entry`` could not be published: it is still owed."""
        name, term = entry.name, self._present
        self.schedule[name] = entry
        self._settle(name)
        self._retries[name] = min(2 * self._retries.get(name, FIRST_RETRY / 2), LAST_RETRY)
        self.neli_states.open.add(name)
        slot = next_slot(entry.schedule, entry.last_run_at) if self._reckons(entry) else None
        if slot is not None:
            term.unsettled[name] = slot.timestamp()
        self.neli_write(entry)

    def _next_look(self, advanced: Any, found: Look, now: datetime) -> float:
        retry = self._retries.get(advanced.name)
        if retry is not None:
            logger.warning("beat: entry=%s could not be sent; trying again in %.0f s", advanced.name, retry)
            return self._moment() + retry
        if found.exact:  # the slot itself, not a moment that is near: the mark *done* must not pass it
            return self._first_look(advanced)
        return super()._next_look(advanced, found, now)  # type: ignore[misc,no-any-return]

    def _put_off(self, heap: DueHeap, entry: Any, found: Look, now: datetime) -> float:
        wait = float(super()._put_off(heap, entry, found, now))  # type: ignore[misc]
        if found.exact:  # as above
            heap.put(entry.name, self._first_look(self.schedule[entry.name]))
        return wait

    def neli_write(self, entry: Any) -> None:
        """Write the state of an entry, in a term. Returns at once."""
        term, states = self._present, self.neli_states
        if entry.name in states.open and entry.name not in self._retries and self._reckons(entry):
            # From now on the mark *done* covers it, if it has not passed its next slot already.
            following = next_slot(entry.schedule, entry.last_run_at)
            if following is None or following.timestamp() > term.claims.done:
                states.open.discard(entry.name)
        state = states.state_of(entry, term=term.number)
        self.neli_keeper.topic.write(STATE, entry.name, encode_state(state))

    def neli_write_all(self) -> None:
        """The schedule topic is another one, or was cut: write what this leader knows."""
        if self._term is not None and self._term.goes_on:
            for entry in (*self.schedule.values(), *self.neli_states.paused.values()):
                self.neli_write(entry)

    def neli_stop(self) -> None:
        """The process ends."""
        self._overlaps.close()

    def sync(self) -> None:
        """Wait until the state of what ran is in Kafka; for a second at most."""
        self.neli_keeper.topic.flush(FLUSH)

    # -- small things --

    @property
    def neli_stuck(self) -> bool:
        """Entries are being sent, and nothing comes of it: no progress is made."""
        return self._flights.stuck

    @property
    def _present(self) -> Term:
        assert self._term is not None, "in a term, or after one"
        return self._term

    def _first_look(self, entry: Any) -> float:
        """The entry's next slot itself, also if it is past: the mark *done* must not pass it."""
        try:
            found = self._next(entry)
        except Exception:  # noqa: BLE001 - of a user's schedule; said below
            found = None
        if found is not None and found.delay < math.inf:
            return float(found.now + found.delay)
        return float(super()._first_look(entry))  # type: ignore[misc]

    def _slot_id(self, name: str, slot: datetime | None, run: str = "") -> str:
        return slot_id(self.neli_keeper.group, name, _iso(slot) if slot is not None else run)

    def _moment(self) -> float:
        return float(maybe_make_aware(self.app.now()).timestamp())

    # What the classes behind bring; for the type checker.
    neli_reservation: Reservation | None
    app: Any
    schedule: Any
    neli_left_out: int
    _due_heap: Any
    _at_once: Any
    _next: Any
    _reckons: Any
    _settle: Any
    neli_slot: datetime | None
    producer: Any
    _fast: Any
    _send: Any
    _tell: Any


def _iso(slot: datetime | None) -> str:
    return "-" if slot is None else slot.astimezone(timezone.utc).isoformat()
