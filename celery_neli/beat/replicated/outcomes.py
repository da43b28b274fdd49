"""The ledger of an elected beat: it claims each slot in the leader topic, and keeps the states of entries.

The rules are in docs/protocol.md ("Slots"). Nothing here waits for Kafka, but for a second at the end of a term.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from celery.utils.log import get_logger
from celery.utils.time import maybe_make_aware

from celery_neli import hooks
from celery_neli.beat.replicated.claims import NEVER, Watermarks
from celery_neli.beat.replicated.ledger import SlotLedger
from celery_neli.beat.replicated.overlap_check import OverlapCheck
from celery_neli.beat.replicated.repairs import Repairs
from celery_neli.beat.replicated.states import States
from celery_neli.beat.replicated.term import Term, pass_settled
from celery_neli.config import owner
from celery_neli.logs import escaping
from celery_neli.schedule.due import at_of
from celery_neli.schedule.policies import Overlap
from celery_neli.schedule.slots import next_slot, once, slot_id
from celery_neli.schedule_topic.codec import STATE, encode_state

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_neli.beat.replicated.engine import LeftOut
    from celery_neli.beat.replicated.entries import EntryTable
    from celery_neli.beat.replicated.ledger import Run
    from celery_neli.beat.replicated.term import Beginning
    from celery_neli.config import BeatSettings, Config
    from celery_neli.election.neli import Role
    from celery_neli.schedule.due import Look
    from celery_neli.schedule_topic.topic import ScheduleTopic

logger = escaping(get_logger(__name__))

#: Seconds after which a scheduler that waits for a claim to be read back looks again; it is woken when that happens.
CONFIRM = 0.25
#: Seconds that a handover waits for the states of what ran to be in Kafka.
FLUSH = 1.0
#: Seconds after which a slot whose publishing failed is retried; doubled each time, up to the last.
FIRST_RETRY, LAST_RETRY = 1.0, 60.0


class ClaimingLedger(SlotLedger):
    """Knows the slots of the entries of one shard, from term to term. The thread that ticks.

    The records of ``role`` tell of them, the schedule ``topic`` has the states of the entries in ``table``. ``forget``
    is called with the name of an entry that is gone.
    """

    exact = True

    def __init__(
        self,
        *,
        app: Any,
        shard: int,
        role: Role,
        config: Config,
        settings: BeatSettings,
        topic: ScheduleTopic,
        table: EntryTable,
        left_out: LeftOut,
        forget: Callable[[str], None],
    ) -> None:
        self._last_id: tuple[str, datetime | None, str] = "", None, ""  # the id of which slot was asked for last
        self.shard, self._role, self._config, self._settings, self._topic = shard, role, config, settings, topic
        self._app, self._table, self._left_out, self._forget = app, table, left_out, forget
        #: The present term, or the last.
        self.term: Term | None = None
        self._overlaps = OverlapCheck(app)
        #: True once the present turn has made its claim.
        self._claimed = False
        #: Seconds after which an entry that failed is retried, by name.
        self._retries: dict[str, float] = {}
        #: When the entries of beat_schedule were made (Unix seconds).
        self._made = self._table.moment()
        self.states = States(
            table, app=app, owns=self.owns, write=self.write, forgotten=self.forget, refuse=topic.refuse
        )
        self.repairs = Repairs(table, self.states, topic, config.name)

    # -- the schedule: of all entries, those of this shard --

    def owns(self, name: str) -> bool:
        """Return True if the entry of that name is this shard's."""
        shards = len(self._config.roles)
        return shards == 1 or owner(name, shards) == self.shard

    def check(self, entry: Any) -> None:
        """Raise `ConfigurationError` if the entry asks whether its last task has finished, and cannot."""
        if entry.options:
            Overlap.of(entry).check(self._app, entry)

    def added(self, name: str) -> None:
        """Apply what the schedule topic says of the entry."""
        self.states.adopt(name)

    # -- a term --

    def begin(self, number: int, beginning: Beginning) -> None:
        """Begin a term; everything in the schedule topic was applied. Pass over what the watermarks say is settled."""
        states, table, now = self.states, self._table, self._table.moment()
        marks, blind = beginning.marks, self.states.of_a_leader
        led_until = self._role.predecessor_active_until()
        if marks is None and led_until is not None and not blind:
            # The leader had another scheduler, which leaves no watermarks: its slots were served until then.
            marks = Watermarks(claimed=led_until.timestamp(), settled=led_until.timestamp(), attempted=0.0)
        self.term = Term(
            self._role, number, beginning=beginning, inherited=marks, blind=blind, newest=states.newest,
            interval=self._config.heartbeat_interval, version=self._settings.version, topic=self._topic, now=now,
        )  # fmt: skip
        states.newest = self.term.epoch
        for name in self._retries:  # at its time again
            if name in table.schedule:
                table.heap().put(name, table.first_look(table.schedule[name]))
        self._retries.clear()
        self._overlaps.begin()
        states.begin(None if marks is None else marks.settled or None)
        made = NEVER
        if marks is None and not blind:  # the first leader: beat_schedule begins now, and has missed nothing
            marks, made = Watermarks(now, now, saved=now), self._made
        for entry in () if marks is None else pass_settled(table, marks, states.open, made=made):
            self.write(entry)
        self.repairs.begin()
        self.term.claims.resolve()
        if len(self._config.roles) > 1:
            self.term.announce(now, self._next_due())  # another shard may wait for it

    def end(self, cut_off: Run | None, lost: list[Run], *, left: bool, write: bool) -> None:
        """End the term. If the lease still holds (``write``), what was claimed and not used is given back.

        ``cut_off`` was being sent, and ``left`` is True if its message had left; what came of ``lost`` is unknown.
        """
        term = self._present
        try:
            for run in lost:
                run.wired = True
                if run.entry.name in self._table.schedule:
                    term.doubt(run)
            term.unsettled.clear()
            if cut_off is not None and left and cut_off.advanced is not None:
                self.settled(cut_off)
            elif cut_off is not None and not left:
                self._table.schedule[cut_off.entry.name] = cut_off.entry
                term.doubt(cut_off)
            self._overlaps.begin()
            for name in term.maybe_sent:  # a successor must know that a leader had it
                if (entry := self._table.find(name)) is not None:
                    self.write(entry)
            if write and self._topic.flush(FLUSH):
                term.close(self._table.moment(), self._next_due())
        finally:
            self.states.imported.clear()  # a later term finds this one's claims, which are later

    def forget(self, name: str) -> None:
        """Forget an entry that is gone."""
        self._retries.pop(name, None)
        self._forget(name)

    def stop(self) -> None:
        """End with the process."""
        self._overlaps.close()

    def _next_due(self) -> float | None:
        first = self._table.heap().peek()
        return None if first is None else first.time

    # -- a turn: what is claimed, and what may run --

    def begin_turn(self) -> bool:
        """Write some of what the topic has lost, which only a leader may; return True if more is left."""
        self._claimed = False
        return self.repairs.write_some()

    def ready(self, due: float, moment: float) -> float:
        """Claim what is ``due``, and wait until the claim was read back."""
        return 0.0 if self._is_claimed(due, moment) else CONFIRM

    def end_turn(self) -> None:
        """Claim ahead, unless the turn has made its claim: all its slots may have been claimed before."""
        if not self._claimed:
            self._claim(self._table.moment(), self._next_due())

    def rest(self, due: float | None, wait: float) -> float:
        """Claim ahead what is due soon."""
        moment = self._table.moment()
        self._claim(moment, due)
        return max(0.0, min(wait, self._present.claims.wake(due) - moment))

    def _is_claimed(self, slot: float, moment: float) -> bool:
        covers = self._present.claims.covers
        if not covers(slot):  # what was read back stays so
            self._claim(moment, self._next_due())
        return covers(slot)

    def _claim(self, moment: float, due: float | None) -> None:
        self._claimed, term = True, self._present
        for name in [name for name in term.unsettled if name in self._retries]:
            # A slot that failed does not hold up the watermark once everybody can know that its entry is open.
            if self._topic.saved(STATE, name):
                del term.unsettled[name]
        if self.states.unwritten:
            self.states.write_due(self._table.heap(), moment, self._config.heartbeat_interval)
        term.claim(moment, due)

    def admit(self, entry: Any, found: Look, now: datetime) -> float | None:
        """Admit a slot that is claimed, unless a policy leaves it out."""
        if self.states.bulk.rules and found.due and self.states.bulk.judge(entry.name):
            return 0.0
        if not found.due or found.slot is None:
            return None
        defined, moment = self.states.imported.get(entry.name, 0.0), maybe_make_aware(now).timestamp()
        if defined > moment:  # another process put it, whose clock is ahead
            self._table.heap().put(entry.name, defined)
            return 0.0
        # A successor assumes that slots of an import that no claim reached have not been sent.
        if not self._is_claimed(max(found.slot.timestamp(), defined), moment):
            return CONFIRM
        return 0.0 if self._is_doubtful(entry, found, now, defined) or self._overlaps_last(entry, found, now) else None

    def _is_doubtful(self, entry: Any, found: Look, now: datetime, defined: float) -> bool:
        """Log the slots of the entry that are in doubt; return True if they are left out, as `neli_in_doubt` says."""
        term = self._present
        doubtful = term.in_doubt(entry, None if found.owed is None else found.owed.first, defined=defined)
        sends = self._settings.sends_in_doubt
        if doubtful is None or (sends and entry.name in term.logged):
            return False
        term.logged.add(entry.name)
        self.in_doubt += doubtful.total
        last, policy = doubtful.newest[-1], "send" if sends else "skip"
        first, more = doubtful.first or last, "" if doubtful.exact else "+"
        logger.warning(  # not one a minute: each term may find others in doubt
            "slots in doubt entry=%s count=%d%s first=%s last=%s policy=%s",
            entry.name, doubtful.total, more, _iso(first), _iso(last), policy,
        )  # fmt: skip
        self._tell(hooks.IN_DOUBT, entry, last, policy=policy, count=doubtful.total, first=first)
        if not sends:
            self.write(self._left_out.pass_over(entry, last, now))
        return not sends

    def _overlaps_last(self, entry: Any, found: Look, now: datetime) -> bool:
        """Return True if the slot is left out because the entry's last task has not finished."""
        name = entry.name
        if not entry.options or not Overlap.of(entry).skips or found.slot is None:
            return False
        last = self.states.sent.get(name)
        last_id = None if last is None else self._slot_id(name, datetime.fromtimestamp(last, timezone.utc))
        if not self._overlaps.holds(entry, last_id, last or 0.0, self._table.moment()):
            return False
        self.missed(entry, found, self._left_out.log(entry, found))
        self._left_out.total += 1
        self._tell(hooks.SKIPPED, entry, found.slot, policy="overlap")
        self._left_out.lines.warning(
            "slot left out", name, "slot left out entry=%s slot=%s policy=overlap unfinished=%s",
            name, _iso(found.slot), last_id,
        )  # fmt: skip
        self.write(self._left_out.pass_over(entry, found.slot, now))
        return True

    def task_id(self, entry: Any, slot: datetime | None) -> str | None:
        """Return the task id of the slot, the same for every leader."""
        if slot is None:  # its schedule knows no slots: the run after so many, and after that moment, is this one
            return slot_id(self._config.group, entry.name, f"{entry.total_run_count} {at_of(entry)}")
        return self._slot_id(entry.name, slot)

    def _slot_id(self, name: str, slot: datetime) -> str:
        known_name, known_slot, found = self._last_id  # a slot is told of right after it was sent
        if known_name != name or known_slot != slot:
            found = slot_id(self._config.group, name, _iso(slot))
            self._last_id = name, slot, found
        return found

    # -- what becomes of slots --

    def _tell(self, outcome: str, entry: Any, slot: datetime | None, **more: Any) -> None:
        if hooks.slot:
            term = self._role.name, self._present.number
            hooks.slot(hooks.SlotEvent.of(outcome, entry, slot, *term, id=self.task_id(entry, slot), **more))

    def missed(self, entry: Any, found: Look, count: int) -> None:
        """Note that the misfire policy leaves out `count` slots of which nothing was said before."""
        if count > 0 and found.owed is not None:
            self._tell(hooks.SKIPPED, entry, found.last_left_out, policy="misfire", count=count, first=found.owed.first)

    def submitted(self, run: Run) -> None:
        """Keep the watermark below a slot that a publisher sends."""
        assert run.slot is not None, "only entries with slots are submitted"
        self._present.unsettled[run.entry.name] = run.slot.timestamp()

    def withdrawn(self, run: Run) -> None:
        """Leave the slot to the heap again."""
        self._present.unsettled.pop(run.entry.name, None)

    def outdated(self, run: Run, *, ran: bool) -> None:
        """Note a run of an entry that was defined again, paused or removed after it was submitted."""
        self._present.unsettled.pop(name := run.entry.name, None)
        if ran:
            self.states.ran(name, at_of(run.advanced))
        else:
            self._present.doubt(run)

    def settled(self, run: Run) -> None:
        """Settle a slot that was published, or that the application refused: it is neither owed nor in doubt."""
        advanced, slot, term, states = run.advanced, run.slot, self._present, self.states
        name = advanced.name
        if run.refused is None and slot is not None and advanced.options and Overlap.of(advanced).skips:
            states.sent[name] = slot.timestamp()
            self._overlaps.sent(name, self._slot_id(name, slot), self._table.moment())
        self._retries.pop(name, None)
        term.unsettled.pop(name, None)
        term.maybe_sent.pop(name, None)
        self._left_out.over(name)
        self._tell(hooks.REFUSED if run.refused else hooks.SENT, run.entry, slot, error=hooks.error_text(run.refused))
        if isinstance(advanced.schedule, once) and name in states.defined:
            self.repairs.finished(name)
        self.write(advanced)

    def failed(self, run: Run) -> None:
        """Keep a slot owed that could not be published (or perhaps was, if it was given to the transport)."""
        entry, term = run.entry, self._present
        name = entry.name
        self._table.schedule[name] = entry
        self._table.settle(name)
        self._retries[name] = min(2 * self._retries.get(name, FIRST_RETRY / 2), LAST_RETRY)
        self.states.open.add(name)
        if run.slot is not None:
            term.unsettled[name] = self._table.first_look(entry)
            term.doubt(run)
        self._tell(hooks.FAILED, entry, run.slot, error=hooks.error_text(run.error))
        self.write(entry)

    def retry_at(self, name: str) -> float | None:
        """Return when the entry is retried, and log that."""
        if (retry := self._retries.get(name)) is None:
            return None
        text = "beat: entry=%s could not be sent; trying again in %.0f s"
        self._left_out.lines.warning("could not be sent", name, text, name, retry)
        return self._table.moment() + retry

    def set_back(self) -> None:
        """Open the entries whose slots the watermark *settled* has passed: it was for slots of another time."""
        for each in list(self._table.schedule.values()):
            if self._table.first_look(each) <= self._present.claims.settled:
                self.states.open.add(each.name)
                self.write(each)

    def write(self, entry: Any) -> None:
        """Write the state of an entry, in a term. Returns at once."""
        term, states = self._present, self.states
        if entry.name in states.open and entry.name not in self._retries and self._table.has_slots(entry):
            # From now on the watermark *settled* covers it, if it has not passed its next slot already.
            following = next_slot(entry.schedule, entry.last_run_at)
            if following is None or following.timestamp() > term.claims.settled:
                states.open.discard(entry.name)
        states.unwritten.pop(entry.name, None)
        self._topic.write(STATE, entry.name, encode_state(states.state_of(entry, epoch=term.epoch)))

    def flush(self) -> None:
        """Wait until the states of what ran are in Kafka; for a second at most."""
        self._topic.flush(FLUSH)

    @property
    def _present(self) -> Term:
        assert self.term is not None, "in a term, or after one"
        return self.term


def _iso(slot: datetime) -> str:
    return slot.astimezone(timezone.utc).isoformat()
