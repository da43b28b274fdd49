"""What becomes of a slot that is due while its entry's last task is unfinished: left out, kept waiting, or sent after
that task was revoked.

The rules are in docs/protocol.md ("Slots that wait"). Only entries with an overlap policy come this way.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Protocol

from celery.utils.log import get_logger

from celery_neli import hooks
from celery_neli.beat.replicated.overlap_check import OverlapCheck
from celery_neli.beat.replicated.overlap_wait import Last, WaitingSlots
from celery_neli.beat.replicated.revoker import Revoker
from celery_neli.logs import escaping
from celery_neli.schedule.due import slot_text
from celery_neli.schedule.policies import ALLOW, CANCEL_OTHER, QUEUE_ONE, Overlap
from celery_neli.schedule.slots import nominal
from celery_neli.schedule_topic.codec import STATE

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_neli.beat.replicated.engine import LeftOut
    from celery_neli.beat.replicated.entries import EntryTable
    from celery_neli.beat.replicated.states import States
    from celery_neli.schedule.due import Look
    from celery_neli.schedule_topic.codec import Kind

logger = escaping(get_logger(__name__))

#: Seconds after which a slot that waits is looked at, whatever the helper thread says.
LOOK_AGAIN = 60.0
#: Seconds between two looks whether Kafka has the state of an entry that is about to be sent.
CONFIRM = 0.02
#: Seconds that the thread that ticks sleeps at most while slots wait.
ATTENTIVE = 0.25


class Ledger(Protocol):
    """What is needed of the ledger: the entries, their states, and what tells of a slot (`ClaimingLedger`)."""

    table: EntryTable
    left_out: LeftOut
    states: States

    def task_id(self, entry: Any, slot: datetime | None) -> str | None:
        """Return the task id of an entry's slot."""

    def slot_id(self, name: str, slot: datetime) -> str:
        """Return the task id of a slot of the entry of that name."""
        ...

    def tell(self, outcome: str, entry: Any, slot: datetime | None, **more: Any) -> None:
        """Tell those who look on what became of a slot."""

    def missed(self, entry: Any, found: Look, count: int) -> None:
        """Note that the misfire policy leaves out slots."""

    def write(self, entry: Any) -> None:
        """Write the state of an entry."""

    def keep_owed(self, name: str, slot: float) -> None:
        """Keep the watermark below a slot until its entry's state is saved."""

    def perhaps_sent(self, name: str) -> bool:
        """Return True if a slot of the entry that is owed may have been sent."""
        ...

    def may_revoke(self) -> Callable[[], bool]:
        """Return what says if the present term may finish what it has begun."""
        ...


class Overlaps:
    """Decides on the slots of entries with an overlap policy. Belongs to the thread that ticks.

    ``saved`` returns True if Kafka has what was last written of an entry.
    """

    def __init__(self, app: Any, ledger: Ledger, *, saved: Callable[[Kind, str], bool]) -> None:
        self._ledger, self._saved = ledger, saved
        self._check = OverlapCheck(app)
        self._waiting = WaitingSlots(app, clock=lambda: ledger.table.moment())
        self._revoker = Revoker(app)
        #: Slots that wait or have waited, and were not sent (Unix seconds), by entry: they keep it open.
        self.held: dict[str, float] = {}
        #: Tasks that have ended while a slot waited, and tasks that were revoked, by entry.
        self._ended: dict[str, str] = {}
        self._revoked: dict[str, str] = {}

    def begin(self) -> None:
        """Begin a term, or end one: others may send in between."""
        self._check.begin()
        self._waiting.clear()
        for known in (self.held, self._ended, self._revoked):
            known.clear()

    def stop(self) -> None:
        """End with the process."""
        self._check.close()
        self._waiting.close()
        self._revoker.close()

    def forget(self, name: str) -> None:
        """Forget an entry that is gone, or whose slot is over."""
        self._waiting.drop(name)
        for known in (self.held, self._ended, self._revoked):
            known.pop(name, None)

    def settled(self, entry: Any, slot: datetime, *, sent: bool) -> None:
        """Note that the task of a slot was sent, or refused."""
        name = entry.name
        self.forget(name)
        if sent and Overlap.of(entry).asks:
            self._ledger.states.sent[name] = nominal(entry.schedule, slot).timestamp()
            self._check.sent(name, self._ledger.task_id(entry, slot) or "", self._ledger.table.moment())

    def turn(self) -> None:
        """Have entries looked at whose last task has ended."""
        if not self._waiting:
            return
        table = self._ledger.table
        for name in self._waiting.ended():
            if name in table.schedule:
                self._ended[name] = self._last_id(name) or ""
                table.heap().put(name, table.moment())

    def rest(self, wait: float) -> float:
        """Return how many of these seconds the thread that ticks may sleep."""
        return min(wait, ATTENTIVE) if self._waiting else wait

    def admit(self, entry: Any, found: Look, now: datetime) -> float | None:
        """Return None if the slot may be sent; otherwise the seconds until another look."""
        assert found.slot is not None, "it is due"
        name, policy, slot_id = entry.name, Overlap.of(entry).policy, self._ledger.task_id(entry, found.slot)
        last_id = None if policy == ALLOW else self._unfinished(entry)
        if last_id is not None and last_id != slot_id:
            if policy == QUEUE_ONE:
                return self._wait(entry, found, now, last_id)
            if policy != CANCEL_OTHER:
                return self._leave_out(entry, found, now, last_id)
            if self._revoked.get(name) != last_id:  # a slot that fails comes again
                self._revoked[name] = last_id
                logger.info("beat: revoking entry=%s id=%s slot=%s", name, last_id, slot_text(entry, found.slot))
                self._revoker.revoke(name, last_id, allowed=self._ledger.may_revoke())
        return self._let_go(entry, found.slot)

    def _last_id(self, name: str) -> str | None:
        """Return the id of the entry's last task that was sent, by this leader or by one before."""
        if (last := self._check.last(name)) is not None:
            return last[0]
        slot = self._ledger.states.sent.get(name)
        return None if slot is None else self._ledger.slot_id(name, datetime.fromtimestamp(slot, timezone.utc))

    def _unfinished(self, entry: Any) -> str | None:
        """Return the id of the entry's last task if it has not finished."""
        name = entry.name
        last_id = self._last_id(name)
        if last_id is None or self._ended.get(name) == last_id:
            return None
        if (last := self._waiting.last(name)) is not None and last.task_id == last_id:
            return last_id  # the helper thread asks
        sent, moment = self._ledger.states.sent.get(name, 0.0), self._ledger.table.moment()
        return last_id if self._check.holds(entry, last_id, sent, moment) else None

    def _leave_out(self, entry: Any, found: Look, now: datetime, last_id: str) -> float:
        ledger, slot = self._ledger, found.slot
        assert slot is not None, "it is due"
        ledger.missed(entry, found, ledger.left_out.log(entry, found))
        self._say_left_out(entry, slot, 1, slot, last_id)
        ledger.write(ledger.left_out.pass_over(entry, slot, now))
        return 0.0

    def _say_left_out(self, entry: Any, slot: datetime, count: int, first: datetime, last_id: str) -> None:
        ledger = self._ledger
        ledger.left_out.total += count
        ledger.tell(
            hooks.SKIPPED, entry, slot, policy="overlap", count=count, first=first if count > 1 else None
        )  # fmt: skip
        ledger.left_out.lines.warning(
            "slot left out", entry.name, "slot left out entry=%s slot=%s policy=overlap unfinished=%s",
            entry.name, slot_text(entry, slot), last_id,
        )  # fmt: skip

    # -- queue_one --

    def _wait(self, entry: Any, found: Look, now: datetime, last_id: str) -> float:
        """Keep the slot waiting, in the place of older ones. It stays owed, and the entry is open."""
        ledger, name, slot = self._ledger, entry.name, found.slot
        assert slot is not None, "it is due"
        table, states, waits = ledger.table, ledger.states, slot.timestamp()
        waited = name in states.waiting or name in self.held
        if found.left_out and (older := found.last_left_out) is not None:
            if waited:
                first = older if found.owed is None or found.owed.first is None else found.owed.first
                self._say_left_out(entry, older, found.left_out, first, last_id)
            else:
                ledger.missed(entry, found, ledger.left_out.log(entry, found))
            entry = ledger.left_out.pass_over(entry, older, now)
            table.settle(name)
        moment = table.moment()
        if self.held.get(name) != waits:
            self.held[name] = waits
            states.open.add(name)
            if not ledger.perhaps_sent(name):
                states.waiting.add(name)
            ledger.keep_owed(name, waits)
            ledger.write(entry)
            logger.info(
                "slot waits entry=%s slot=%s policy=queue_one unfinished=%s", name, slot_text(entry, slot), last_id
            )
        sent = self._check.last(name)
        started = states.sent.get(name, 0.0) if sent is None else sent[1]
        self._waiting.add(name, Last(last_id, entry.task, started, Overlap.of(entry).age))
        following = None if found.owed is None else found.owed.upcoming
        look = moment + LOOK_AGAIN
        table.heap().put(name, look if following is None else min(look, following.timestamp()))
        return 0.0

    def _let_go(self, entry: Any, slot: datetime) -> float | None:
        """Return None once no successor can take the slot for one that waits and was never sent."""
        name, ledger = entry.name, self._ledger
        if name in ledger.states.waiting:
            ledger.states.waiting.discard(name)
            self.held[name] = slot.timestamp()
            self._waiting.drop(name)
            ledger.write(entry)  # it stays open, and `last` alone counts
        if name in self.held and not self._saved(STATE, name):
            ledger.table.heap().put(name, ledger.table.moment() + CONFIRM)
            return 0.0
        return None
