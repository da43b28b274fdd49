"""What becomes of a slot that was sent, or could not be: the state of its entry, in the schedule topic.

The rules of what a state tells are in docs/protocol.md ("Slots").
"""

from __future__ import annotations

import math
import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import celery.app.base
from celery.utils.log import get_logger
from celery.utils.time import maybe_make_aware

from celery_neli.beat.publish import slot_id
from celery_neli.beat.replicated.initial_states import PORTION
from celery_neli.beat.replicated.unpatched import is_genuine, source_of
from celery_neli.beat.wrapped.stores import Reservation
from celery_neli.logs import EntryLines, escaping
from celery_neli.schedule.due import at_of
from celery_neli.schedule.once import once
from celery_neli.schedule.overlap import Overlap
from celery_neli.schedule.slots import next_slot
from celery_neli.schedule_topic.codec import ENTRY, STATE, encode_state

if TYPE_CHECKING:
    from celery_neli.beat.replicated.attempts import Attempts
    from celery_neli.beat.replicated.entries import States
    from celery_neli.beat.replicated.host import Keeper
    from celery_neli.beat.replicated.overlap_check import OverlapGate
    from celery_neli.beat.replicated.term import Term
    from celery_neli.beat.tenure import Tenure
    from celery_neli.schedule.due import Look
    from celery_neli.schedule.heap import DueHeap

__all__ = ["FLUSH", "Settling", "StateReservation", "iso"]

logger = escaping(get_logger(__name__))

_BASE = source_of(celery.app.base)

#: Seconds that a hand-over waits for the states of what ran to be in Kafka.
FLUSH = 1.0
#: Seconds after which a slot whose publishing failed is tried again; doubled each time, up to the last.
FIRST_RETRY, LAST_RETRY = 1.0, 60.0


class StateReservation(Reservation):
    """A run of an entry whose state is kept in the schedule topic."""

    def __init__(self, *, scheduler: Any, entry: Any) -> None:
        super().__init__(scheduler=scheduler, entry=entry)
        self.slot: datetime | None = scheduler.neli_slot

    def confirm(self) -> None:
        """The message has left: the slot is settled."""
        self.scheduler.neli_sent(self.advanced, self.slot)

    def fail(self) -> bool:
        """It could not be sent: the slot is still owed, and tried again later."""
        self.scheduler.neli_failed(self.entry, self.slot, wired=self.scheduler.neli_tenure.wired)
        return True

    def refuse(self, error: BaseException) -> bool:
        """Settle a slot that the application refused to send, perhaps after the message had left."""
        if self.scheduler.neli_tenure.left:
            logger.error(
                "beat: sent anyway entry=%s slot=%s: what sends it raised %s after the message had left",
                self.entry.name, iso(self.slot), repr(error),
            )  # fmt: skip
            self.confirm()
        else:
            self.scheduler.neli_refused(self.entry, self.advanced, self.slot, error)
        return True


class Settling:
    """The part of a led scheduler that keeps the states of its entries. The thread that ticks."""

    neli_keeper: Keeper
    neli_states: States
    neli_tenure: Tenure | None
    neli_slot: datetime | None
    _term: Term | None
    _overlaps: OverlapGate
    #: Seconds after which an entry is tried again, by name.
    _retries: dict[str, float]
    _attempts: Attempts
    #: Entries of one slot that ran, and are to be removed, with their `since`; those whose states are still to be.
    _gone: dict[str, float]
    _buried: set[str]
    #: How many of its slots were told to be left out, of an entry that is tried again.
    _left: dict[str, int]

    def _entry_to_send(self, entry: Any) -> Any:
        """The entry with the task id of the slot that it runs for, unless its options name one; of a retry the same."""
        run = self._id_of_run(entry)
        retried = self._attempts.retried(entry)
        if retried is not None and retried.run == run:
            return retried.sent
        sent = super()._entry_to_send(entry)  # type: ignore[misc]
        if "task_id" not in sent.options:
            options = dict(sent.options, task_id=run)
            sent = object.__new__(type(sent))
            sent.__dict__.update(vars(entry), options=options)
        self._attempts.begin(entry, run, sent)
        return sent

    def _was_attempted(self, entry: Any) -> bool:
        retried = self._attempts.retried(entry)
        return retried is not None and retried.sent is entry

    def _apply(self, entry: Any, producer: Any) -> None:
        """Send the entry by `apply_entry`; a retry by `apply_async` alone, for instrumentation has seen its slot.

        Publishers' threads call this, too.
        """
        retried = self._attempts.retried(entry)
        if retried is None or (retried.sent is not entry and retried.run != self._id_of_run(entry)):
            super()._apply(entry, producer)  # type: ignore[misc]
            return
        logger.info("beat: retrying entry=%s task=%s", entry.name, entry.task)
        try:
            self.apply_async(entry, producer=producer, advance=False)
        except Exception as exc:  # noqa: BLE001 - as in Celery's apply_entry; the slot is settled by now
            logger.error("beat: entry=%s could not be sent: %s", entry.name, repr(exc))

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
        name = entry.name
        if slot is not None and entry.options and Overlap.of(entry).skips:
            self.neli_states.sent[name] = slot.timestamp()
            self._overlaps.sent(name, self._slot_id(name, slot), self._moment())
        self._slot_is_over(entry)

    def neli_refused(self, entry: Any, advanced: Any, slot: datetime | None, error: BaseException) -> None:
        """The application refused to send the ``slot`` of ``entry``, so it is over without a run: neither owed nor in
        doubt. ``advanced`` is the entry after it.
        """
        self._tell_refused(entry.name, slot, error)
        advanced.total_run_count = entry.total_run_count
        self._slot_is_over(advanced)

    def _slot_is_over(self, advanced: Any) -> None:
        name, states = advanced.name, self.neli_states
        self._retries.pop(name, None)
        self._attempts.over(name)
        self._present.unsettled.pop(name, None)
        self._present.perhaps.pop(name, None)
        self._left.pop(name, None)
        if isinstance(advanced.schedule, once) and name in states.defined:
            self._gone[name] = states.since[name]
        self.neli_write(advanced)

    def neli_failed(self, entry: Any, slot: datetime | None, *, wired: bool) -> None:
        """The ``slot`` of ``entry`` could not be published (perhaps it was, if ``wired``): it is still owed."""
        name, term = entry.name, self._present
        self.schedule[name] = entry
        self._settle(name)
        self._attempts.failed(name)
        self._retries[name] = min(2 * self._retries.get(name, FIRST_RETRY / 2), LAST_RETRY)
        self.neli_states.open.add(name)
        if slot is not None:
            term.unsettled[name] = self._first_look(entry)
            if wired:
                term.perhaps[name] = slot.timestamp()
        self.neli_write(entry)

    def _next_look(self, advanced: Any, found: Look, now: datetime) -> float:
        retry = self._retries.get(advanced.name)
        if retry is not None:
            name = advanced.name
            text = "beat: entry=%s could not be sent; trying again in %.0f s"
            self._lines.warning("could not be sent", name, text, name, retry)
            return self._moment() + retry
        if found.exact:  # the slot itself, not a moment that is near: the mark *done* must not pass it
            if found.delay > 0 and found.owed is not None and found.owed.upcoming is not None:
                return found.owed.upcoming.timestamp()
            return self._first_look(advanced)
        return super()._next_look(advanced, found, now)  # type: ignore[misc,no-any-return]

    def _put_off(self, heap: DueHeap, entry: Any, found: Look, now: datetime) -> float:
        wait = float(super()._put_off(heap, entry, found, now))  # type: ignore[misc]
        if found.exact:  # as above
            heap.put(entry.name, self._first_look(self.schedule[entry.name]))
        return wait

    def neli_forget(self, name: str) -> None:
        """The entry is gone."""
        self._retries.pop(name, None)
        self._attempts.over(name)
        self._left.pop(name, None)

    def _bury(self) -> None:
        """Remove entries that ran for the only time, unless they were defined anew. In a turn of its own: what others
        wrote meanwhile was read. The state goes last, for without one an entry is owed what it has not run.
        """
        topic, states = self.neli_keeper.topic, self.neli_states
        for name in [name for name in self._buried if topic.saved(ENTRY, name)]:
            self._buried.discard(name)
            if name not in states.defined:
                topic.write(STATE, name, None)
        gone, self._gone = self._gone, {}
        for name, since in gone.items():
            if name in states.defined and states.since.get(name) == since:
                entry = self.schedule.get(name)
                how = "ran, for the only time" if entry is None or entry.total_run_count else "was refused its only run"
                topic.write(ENTRY, name, None)
                self._buried.add(name)
                states.forget(name)
                logger.info("schedule: entry=%s %s, and was removed", name, how)

    def neli_write(self, entry: Any) -> None:
        """Write the state of an entry, in a term. Returns at once."""
        term, states = self._present, self.neli_states
        if entry.name in states.open and entry.name not in self._retries and self._reckons(entry):
            # From now on the mark *done* covers it, if it has not passed its next slot already.
            following = next_slot(entry.schedule, entry.last_run_at)
            if following is None or following.timestamp() > term.claims.done:
                states.open.discard(entry.name)
        states.unwritten.pop(entry.name, None)
        state = states.state_of(entry, term=term.rank)
        self.neli_keeper.topic.write(STATE, entry.name, encode_state(state))

    def _tell(self, entry: Any, found: Look) -> None:
        before = self._left.get(entry.name, 0)  # an entry that fails is looked at again and again
        if found.left_out > before:
            super()._tell(entry, found)  # type: ignore[misc]
            self.neli_left_out -= before
            self._left[entry.name] = found.left_out

    def neli_recount(self, *, torn: bool) -> None:
        """Prepare for reading the schedule topic from its beginning again; ``torn``: it has lost records."""
        self.neli_states.recount(torn=torn)

    def neli_caught_up(self, *, counted: bool, torn: bool) -> None:
        """Note that all of the schedule topic was read; ``counted``: it is the first time since `neli_recount`."""
        if counted:
            self.neli_states.counted(torn=torn)
        self.neli_states.caught_up()

    def neli_count(self) -> int:
        """Return how many entries there are."""
        return len(self.schedule)

    def _write_back(self) -> bool:
        """Write some of what the topic has lost, which only a leader may; return True if more is left."""
        states, inventory = self.neli_states, self.neli_states.inventory
        if not inventory.lost and not states.again:
            return False
        for name, value in inventory.take_lost(PORTION).items():
            self.neli_keeper.topic.write(ENTRY, name, value)
        for entry in states.take_again(PORTION):
            self.neli_write(entry)
        return inventory.lost or bool(states.again)

    def sync(self) -> None:
        """Wait until the state of what ran is in Kafka; for a second at most."""
        self.neli_keeper.topic.flush(FLUSH)

    # -- when to look at an entry again --

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
        return slot_id(self.neli_keeper.group, name, iso(slot) if slot is not None else run)

    @property
    def _present(self) -> Term:
        assert self._term is not None, "in a term, or after one"
        return self._term

    def _moment(self) -> float:
        if is_genuine(self.app, "now", _BASE):
            return time.time()
        return float(maybe_make_aware(self.app.now()).timestamp())

    # What the classes behind bring.
    app: Any
    _lines: EntryLines
    neli_left_out: int
    schedule: Any
    _next: Any
    _reckons: Any
    _settle: Any
    _tell_refused: Any
    apply_async: Any


def iso(slot: datetime | None) -> str:
    """A slot as text, in UTC."""
    return "-" if slot is None else slot.astimezone(timezone.utc).isoformat()
