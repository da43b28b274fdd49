"""The tick: find what is due next, have the ledger admit it, and send it.

A tick costs the same whatever the number of entries: which one is due next is read from a heap that is changed in
place. While more is due than one connection can send in time, a pool of publishers sends, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Any

from celery.utils.functional import is_numeric_value
from celery.utils.log import get_logger
from celery.utils.time import maybe_make_aware

from celery_neli.beat.publish import beat_headers
from celery_neli.beat.replicated.entries import EntryTable
from celery_neli.beat.replicated.ledger import Run, SlotLedger
from celery_neli.beat.replicated.publishers import Pool, Unsent
from celery_neli.beat.replicated.sender import NoLease, Sender
from celery_neli.beat.tenure import LeaseEnded, Tenure
from celery_neli.logs import EntryLines, escaping
from celery_neli.schedule.due import Look, advance, restart
from celery_neli.schedule.heap import DueHeap
from celery_neli.schedule.slots import nominal

logger = escaping(get_logger(__name__))

#: A clock that was set back by more seconds than this is noticed.
SET_BACK = 60.0
#: Shorter waits (seconds) are not worth coming early.
SHORTEST = 0.001
#: Seconds by which an entry must be late before publishers are called in.
BACKLOG = 0.05
#: Seconds after which a turn returns although more is due.
TURN = 0.02
#: Seconds to wait at a time for a run that a publisher completes.
PATIENCE = 0.05
#: Seconds that the end of a term waits for messages that publishers are sending.
DRAIN = 5.0


class LeftOut:
    """Counts and logs the slots that never run, by the entries' policies."""

    def __init__(self, table: EntryTable) -> None:
        self.total = 0
        self.lines = EntryLines(logger, clock=table.moment)
        self._table = table
        #: How many slots of an entry were logged, until one of it ran: an entry that fails is looked at repeatedly.
        self._logged: dict[str, int] = {}

    def log(self, entry: Any, found: Look) -> int:
        """Log the slots that the misfire policy leaves out, but those that were logged for this very run. Return how
        many it logged.
        """
        news = found.left_out - self._logged.get(entry.name, 0)
        if news <= 0:
            return 0
        self.total += news
        self._logged[entry.name] = found.left_out
        owed, when = found.owed, entry.schedule
        assert owed is not None, "what is left out was owed"
        first, last = (None if each is None else nominal(when, each) for each in (owed.first, owed.newest[-1]))
        self.lines.warning(
            "slots missed", entry.name,
            "beat: slots missed entry=%s left_out=%s%s first=%s last=%s policy=%s runs=%s",
            entry.name, found.left_out, "" if owed.exact else "+", first, last,
            self._table.policy(entry).policy, None if found.slot is None else nominal(when, found.slot),
        )  # fmt: skip
        return news

    def over(self, name: str) -> None:
        """Forget what was logged for the entry: its slot is over."""
        self._logged.pop(name, None)

    def pass_over(self, entry: Any, slot: datetime, now: datetime) -> Any:
        """Let the slots up to ``slot`` never run; return the entry after them."""
        self.over(entry.name)
        return self._table.pass_over(entry, slot, now)


class Engine:
    """Runs the entries of ``scheduler``. The thread that ticks; nothing blocks but publishing.

    ``make_ledger`` is called with the table, the log of slots that never run, and what forgets an entry.
    """

    def __init__(self, scheduler: Any, make_ledger: Callable[..., SlotLedger]) -> None:
        self.table = EntryTable(scheduler)
        self.left_out = LeftOut(self.table)
        self.ledger = make_ledger(table=self.table, left_out=self.left_out, forget=self.forget)
        self.table.exact = self.ledger.exact
        self.sender = Sender(scheduler, self.table, self.ledger)
        self.pool = Pool(scheduler.app, self.sender.send_run, count=1)
        self._scheduler = scheduler
        self._latest = 0.0

    # -- a turn --

    def turn(self, tick: Callable[[], float | None]) -> float:
        """Call ``tick`` until nothing is due, for `TURN` seconds; return the seconds until the next turn."""
        end = time.monotonic() + TURN
        self.sender.templates.answers = {}  # asked once in a turn whether something is overridden or patched
        try:
            while not (wait := float(tick() or 0)) > 0:
                if (self.pool.runs and not self.pool.publishers.free()) or time.monotonic() > end:
                    return 0.0
            return wait
        finally:
            self.sender.templates.answers = None

    def tick(self) -> float:
        """Run what is due next, one slot of one entry at most; return the seconds until the next tick is wanted."""
        heap, max_interval = self.table.heap(), self._scheduler.max_interval
        top = heap.peek()
        if top is None:
            return self._rest(None, float(max_interval))
        entry = self.table.schedule[top.name]
        now = entry.default_now()
        moment = maybe_make_aware(now).timestamp()
        if top.time > moment:
            self.left_out.lines.summarize(moment)
            if self._was_set_back(entry, moment):
                return 0.0
            return self._rest(top.time, float(min(top.time - moment, max_interval)))
        if wait := self.ledger.ready(top.time, moment):
            return wait
        found = self.table.look(entry, now)
        first = heap.peek()
        if first is not top:  # the schedule that was asked has changed the heap: come back
            if first is None:
                return 0.0
            earlier = self._scheduler._when(self.table.schedule[first.name], 0)
            return float(min(first.time - earlier, max_interval))
        return self._act(heap, entry, found, now)

    def _act(self, heap: DueHeap, entry: Any, found: Look, now: datetime) -> float:
        if entry.name in self.pool.runs:  # it was defined again in the meantime
            self.pool.publishers.wait(PATIENCE)
            return 0.0
        wait = self.ledger.admit(entry, found, now)
        if wait is not None:
            return wait
        if found.left_out:
            self.ledger.missed(entry, found, self.left_out.log(entry, found))
        if found.due and found.slot is not None:
            moment = maybe_make_aware(now).timestamp()
            late = moment - found.slot.timestamp() > BACKLOG
            if late and self.pool.is_wanted(heap, moment) and self._submit(heap, entry, found, now):
                return 0.0
        if not found.due:
            return self._put_off(heap, entry, found, now)
        advanced = self.sender.send(entry, found, now)
        heap.put(entry.name, self._next_look(advanced, found, now))
        return 0.0

    def _rest(self, due: float | None, wait: float) -> float:
        wait = self.ledger.rest(due, wait)
        if self.pool.runs:
            self.pool.publishers.wait(PATIENCE)
            return 0.0
        return wait

    def _next_look(self, advanced: Any, found: Look, now: datetime) -> float:
        retry_at = self.ledger.retry_at(advanced.name)
        if retry_at is not None:
            return retry_at
        self.left_out.over(advanced.name)
        return self.table.next_look(advanced, found, now)

    def _put_off(self, heap: DueHeap, entry: Any, found: Look, now: datetime) -> float:
        """Look at the entry later, and at the others in the meantime; return the seconds until the next tick."""
        scheduler = self._scheduler
        if found.passed is not None:
            entry = self.left_out.pass_over(entry, found.passed, now)
            self.ledger.write(entry)
        delay = found.delay if is_numeric_value(found.delay) else scheduler.max_interval
        wait = scheduler.adjust(delay)
        if delay > 0 and (wait < 0 or (found.exact and wait < SHORTEST)):
            # Celery comes a hundredth of a second early, and then again and again until it is time.
            heap.put(entry.name, scheduler._when(entry, 0) + delay)
            wait = delay
        else:
            heap.put(entry.name, scheduler._when(entry, delay))
        first = heap.peek()
        alone = first is not None and first.name == entry.name
        if self.table.exact and found.exact:
            heap.put(entry.name, self.table.first_look(entry))
        return float(min(wait, scheduler.max_interval)) if alone else 0.0

    def _was_set_back(self, entry: Any, now: float) -> bool:
        """Return True if the clock was set back.

        Intervals then begin at the present, for they would wait until it has caught up. Slots of crontabs that ran do
        not run again when their time comes a second time.
        """
        if getattr(entry.schedule, "nowfun", None) is not None:
            return False  # a clock of its own
        if now >= self._latest - SET_BACK:
            self._latest = max(now, self._latest)
            return False
        logger.warning("beat: the clock was set back by %.0f s; intervals start over", self._latest - now)
        for each in self.table.schedule.values():
            restart(each, before=self._latest)
        self._latest = now
        self._scheduler.populate_heap()
        self.ledger.set_back()
        return True

    def forget(self, name: str) -> None:
        """Forget an entry that is gone."""
        self.sender.forget(name)
        self.left_out.over(name)

    # -- side by side --

    def begin(self, tenure: Tenure, *, publishers: int, producer: Any) -> None:
        """Send in this term, with up to so many publishers, by producers of this class."""
        sender, app = self.sender, self._scheduler.app
        sender.lease = tenure
        self.pool = Pool(app, sender.send_run, count=publishers, producer=producer, tenure=tenure)

    def _submit(self, heap: DueHeap, entry: Any, found: Look, now: datetime) -> bool:
        """Have a publisher send the entry, if it is one of those that may be; return True if that was done, or will."""
        sent, scheduler = self.sender.message_of(entry, found.slot), self._scheduler
        if self.sender.templates.key(scheduler, sent, scheduler.producer) is None:
            return False  # code of the application would run there
        if not self.pool.publishers.free():
            self.pool.publishers.wait(PATIENCE)
            return True
        lease = self.sender.lease
        assert not isinstance(lease, NoLease), "only a term has publishers"
        lease.ask_start()
        run = Run(entry, found.slot, advance(entry, found.slot, now), sent=sent, found=found, now=now)
        run.headers = beat_headers(entry, term=lease.term, slot=found.slot)
        self.pool.submit(run)
        self.ledger.submitted(run)
        heap.remove(entry.name)
        return True

    def collect(self) -> None:
        """Settle the runs that publishers have completed. Raises `LeaseEnded` if one found that the term is over."""
        ended: LeaseEnded | None = None
        for run, error in self.pool.completed() if self.pool.runs else ():
            ended = error if isinstance(error, LeaseEnded) else ended
            self._settle(run, error)
            del self.pool.runs[run.entry.name]  # last: SystemExit may cut in anywhere
        if ended is not None:
            raise ended

    def _settle(self, run: Run, error: BaseException | None) -> None:
        name, schedule, sender = run.entry.name, self.table.schedule, self.sender
        heap, current = self.table.heap(), self.table.schedule.get(run.entry.name)
        if current is not run.entry:
            sender.forget(name)
            self.ledger.outdated(run, ran=error is None and run.refused is None)
        elif error is None:
            schedule[name] = run.advanced
            self.table.settle(name)
            sender.settled(run)
            if name in schedule:
                heap.put(name, self._next_look(run.advanced, run.found, run.now))
        elif isinstance(error, (LeaseEnded, Unsent)):
            self.ledger.withdrawn(run)
            heap.put(name, self.table.first_look(current))
        else:
            sender.failed(run)
            heap.put(name, self._next_look(run.entry, run.found, run.now))

    def end(self, *, wait: bool) -> tuple[Run | None, list[Run]]:
        """End the term: begin nothing more, and wait for publishers for `DRAIN` seconds if ``wait`` is True.

        Return the run that was cut off in the middle, if there is one, and those of which it is unknown what came.
        """
        cut_off = self.sender.cut_off()
        self.pool.publishers.close(DRAIN if wait else 0.0)  # `collect` knows what it has sent
        with suppress(LeaseEnded):
            self.collect()
        lost = list(self.pool.runs.values())
        for run in lost:
            if (entry := self.table.schedule.get(run.entry.name)) is not None:
                self.table.heap().put(run.entry.name, self.table.first_look(entry))
        return cut_off, lost
