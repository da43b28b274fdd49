"""Celery's scheduler with a tick that does not grow with the schedule, and slots in place of moments.

What Celery's documentation says of its scheduler holds for this one. What differs:

- Which entry is due next is read from a heap that is changed in place. No tick looks at an entry that is not due.
- An entry runs *for a slot*, a due time of its schedule, and that slot is its `last_run_at`: intervals do not drift,
  and a slot has one name whoever runs it. Schedules that know only `is_due` are asked, and have no slots.
- Slots that passed while nobody ran them are subject to the misfire policy (:mod:`celery_neli.schedule.misfire`), and
  logged.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import celery.beat
from celery.exceptions import reraise
from celery.utils.functional import is_numeric_value
from celery.utils.log import get_logger
from celery.utils.time import maybe_make_aware

from celery_neli.beat.replicated.fastpath import FastPath, publish_below
from celery_neli.beat.replicated.heaped import HeapedScheduler
from celery_neli.config import enabled
from celery_neli.exceptions import ConfigurationError
from celery_neli.logs import EntryLines, escaping
from celery_neli.periodic.call import OWN_OPTIONS
from celery_neli.printable import closest, printable, printable_error
from celery_neli.schedule.due import Look, advance, expires_of, look, pass_over, restart
from celery_neli.transport_errors import is_transport_error, without_wrapper

if TYPE_CHECKING:
    from celery_neli.schedule.heap import DueHeap, Node

__all__ = ["ReplicatedScheduler"]

logger = escaping(get_logger(__name__))

#: A clock that was set back by more seconds than this is noticed.
SET_BACK = 60.0
#: Shorter waits (seconds) are not worth coming early.
SHORTEST = 0.001
#: Characters of an error that are logged.
MOST_OF_AN_ERROR = 400


class ReplicatedScheduler(HeapedScheduler):
    """Celery's `Scheduler`, constructed and used in the same way. All methods belong to the thread that ticks.

    An entry's options may hold a misfire policy (`neli_misfire`, `neli_misfire_max`, `neli_misfire_grace`) and
    `neli_expires`, seconds from the slot; they are no part of its message, which has the moment as its `expires`.
    """

    #: No lease is asked: whatever beat has this scheduler, it sends.
    neli_alone = True

    def __init__(self, app: Any, *args: Any, **kwargs: Any) -> None:
        if self.neli_alone and app.conf.get("neli_group") and enabled(app):
            raise ConfigurationError(
                "celery_neli.ReplicatedScheduler by itself takes part in no election, and every beat that has it "
                "sends: set beat_scheduler = 'celery_neli.Scheduler', which uses it (or neli_enabled = False)"
            )
        #: The slot (UTC) that is being run, while one is.
        self.neli_slot: datetime | None = None
        #: Slots that were left out by the misfire policy since this scheduler was built.
        self.neli_left_out = 0
        self._now: datetime | None = None
        self._latest = 0.0
        self._fast = FastPath(app)
        self._lines = EntryLines(logger, clock=lambda: maybe_make_aware(app.now()).timestamp())
        super().__init__(app, *args, **kwargs)

    def check(self, entry: Any) -> None:
        """:raises ConfigurationError: the entry has a policy that does not exist."""
        super().check(entry)
        for name in entry.options:
            if name.startswith("neli_") and name not in OWN_OPTIONS:
                near = closest(name, OWN_OPTIONS)
                raise ConfigurationError(f"beat entry {entry.name!r}: there is no option {name}; did you mean {near}?")

    # -- the tick --

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Run what is due next, one slot of one entry at most; seconds until the next tick is wanted.

        Costs the same whatever the number of entries. Blocks for as long as publishing does.
        """
        heap = self._due_heap()
        top = heap.peek()
        if top is None:
            return self._rest(None, float(self.max_interval))
        entry = self.schedule[top.name]
        now = entry.default_now()
        moment = maybe_make_aware(now).timestamp()
        if top.time > moment:
            self._lines.summarize(moment)
            if self._was_set_back(entry, moment):
                return 0.0
            return self._rest(top.time, float(min(top.time - moment, self.max_interval)))
        if wait := self._must_wait(top.time, moment):
            return wait
        try:
            found = self._look(entry, now)
        except Exception:  # noqa: BLE001 - of a user's schedule; logged
            found = Look(due=False, delay=self._is_due_failed(entry)[1])
        first = heap.peek()
        if first is not top:  # the schedule that was asked has changed the heap: come back
            return self._until(first) if first else 0.0
        return self._act(heap, entry, found, now)

    def _act(self, heap: DueHeap, entry: Any, found: Look, now: datetime) -> float:
        if found.left_out:
            self._tell(entry, found)
        if not found.due:
            return self._put_off(heap, entry, found, now)
        advanced = self._run(entry, found, now)
        heap.put(entry.name, self._next_look(advanced, found, now))
        return 0.0

    def _next_look(self, advanced: Any, found: Look, now: datetime) -> float:
        # A slot's distance from now is known; of other schedules, the answer counts from when they are done.
        if found.exact:
            return float(maybe_make_aware(now).timestamp() + (self.adjust(found.delay) or 0))
        return float(self._when(advanced, found.delay))

    def _must_wait(self, due: float, moment: float) -> float:
        """Something is due since ``due``, it is ``moment`` (Unix): seconds to wait for it all the same; 0: go on."""
        return 0.0

    def _rest(self, due: float | None, wait: float) -> float:
        """Nothing is due for ``wait`` seconds, ``due`` (Unix) is the next: seconds until the next tick is wanted."""
        return wait

    def _until(self, node: Node) -> float:
        return float(min(node.time - self._when(self.schedule[node.name], 0), self.max_interval))

    def _look(self, entry: Any, now: datetime) -> Look:
        if self._reckons(entry):
            found = look(entry, maybe_make_aware(now), self._rule(entry))
            if found is not None:
                return found
        is_due, delay = self.is_due(entry)
        return Look(due=is_due, delay=delay)

    def _run(self, entry: Any, found: Look, now: datetime) -> Any:
        """Send the entry's task for the slot that was found; the entry after it."""
        self.neli_slot, self._now = found.slot, now
        try:
            advanced = self.reserve(entry)
            self._settle(entry.name)
            self._apply(entry, self.producer)
        finally:
            self.neli_slot = self._now = None
        return advanced

    def _pass_over(self, entry: Any, slot: datetime, now: datetime) -> Any:
        """The slots up to ``slot`` never run; the entry after them."""
        passed = self.schedule[entry.name] = pass_over(entry, slot, now)
        return passed

    def _put_off(self, heap: DueHeap, entry: Any, found: Look, now: datetime) -> float:
        """Look at the entry later, and at the others in the meantime; seconds until the next tick."""
        if found.passed is not None:
            entry = self._pass_over(entry, found.passed, now)
        delay = found.delay if is_numeric_value(found.delay) else self.max_interval
        wait = self.adjust(delay)
        if delay > 0 and (wait < 0 or (found.exact and wait < SHORTEST)):
            # Celery comes a hundredth of a second early, and then again and again until it is time.
            heap.put(entry.name, self._when(entry, 0) + delay)
            wait = delay
        else:
            heap.put(entry.name, self._when(entry, delay))
        first = heap.peek()
        return 0.0 if first is None or first.name != entry.name else min(wait, self.max_interval)

    def reserve(self, entry: Any) -> Any:
        """Advance the entry: for the slot that is being run, else (called from outside a tick) for the present."""
        advanced = self.schedule[entry.name] = advance(entry, self.neli_slot, self._now)
        return advanced

    # -- what does not go by plan --

    def _tell(self, entry: Any, found: Look) -> None:
        self.neli_left_out += found.left_out
        owed = found.owed
        assert owed is not None, "what is left out was owed"
        self._lines.warning(
            "slots missed", entry.name,
            "beat: slots missed entry=%s left_out=%s%s first=%s last=%s policy=%s runs=%s",
            entry.name, found.left_out, "" if owed.exact else "+", owed.first, owed.newest[-1],
            self._rule(entry).policy, found.slot,
        )  # fmt: skip

    def _was_set_back(self, entry: Any, now: float) -> bool:
        """Whether the clock was set back. Intervals then begin anew: they would wait until it has caught up.

        (Slots of crontabs that ran do not run again, when their time comes a second time.)
        """
        if getattr(entry.schedule, "nowfun", None) is not None:
            return False  # a clock of its own
        if now >= self._latest - SET_BACK:
            self._latest = max(now, self._latest)
            return False
        logger.warning("beat: the clock was set back by %.0f s; intervals start over", self._latest - now)
        for each in self.schedule.values():
            restart(each, before=self._latest)
        self._latest = now
        self.populate_heap()
        return True

    # -- publishing --

    @property
    def neli_in_tick(self) -> bool:
        """Return True while `tick` runs an entry."""
        return self._now is not None

    def _apply(self, entry: Any, producer: Any) -> None:
        self.apply_entry(entry, producer=producer)

    def _tell_refused(self, name: str, slot: datetime | None, error: BaseException) -> None:
        celery.beat.error(  # in Celery's logger, where users look for such lines
            "beat: slot refused entry=%s slot=%s: %s; it is not sent, and later slots run at their times",
            printable(name), "-" if slot is None else slot.isoformat(),
            printable_error(error, MOST_OF_AN_ERROR),
        )  # fmt: skip
        logger.debug("beat: what refused entry=%s", name, exc_info=error)

    def _entry_to_send(self, entry: Any) -> Any:
        """The entry without what is none of its message's business."""
        given = entry.options
        expires = given.get("expires")
        if given.keys().isdisjoint(OWN_OPTIONS) and not isinstance(expires, (datetime, str)):
            return entry
        options = {name: value for name, value in given.items() if name not in OWN_OPTIONS}
        if (at := expires_of(given, self.neli_slot, self.app.timezone)) is not None:
            options["expires"] = at
        bare = object.__new__(type(entry))  # not copy(): it would make the entry anew, without its app
        bare.__dict__.update(vars(entry), options=options)
        return bare

    def apply_async(self, entry: Any, producer: Any = None, advance: bool = True, **kwargs: Any) -> Any:
        """Send the entry's task, as Celery does; faster where that changes nothing (`fastpath`).

        In a tick, what the application refuses to send is logged in one line; its slot is over, and no run is counted.

        :raises celery.beat.SchedulingError: it could not be sent.
        """
        if advance:
            entry = self.reserve(entry)
        entry = self._entry_to_send(entry)
        try:
            if producer is None or kwargs:
                return super().apply_async(entry, producer=producer, advance=False, **kwargs)
            return self._send(entry, producer)
        except Exception as exc:
            connection = getattr(producer, "connection", None)
            if not (self.neli_alone and self.neli_in_tick) or is_transport_error(connection, exc):
                raise
            self._tell_refused(entry.name, self.neli_slot, without_wrapper(exc))
            self.schedule[entry.name].total_run_count = entry.total_run_count
            return None

    def _send(self, entry: Any, producer: Any) -> Any:
        """Send the entry by the fast path if it is one of those that may, else as Celery does. Any thread."""
        kind = self._fast.key(self, entry, producer)
        if kind is None and self._was_attempted(entry):
            try:
                return publish_below(self, entry, producer)
            finally:
                self._count_sent()
        if kind is None:
            return super().apply_async(entry, producer=producer, advance=False)
        template = self._fast.get(kind)
        if template is None:
            with self._fast.recording(kind, producer) as recorder:
                return super().apply_async(entry, producer=recorder, advance=False)
        try:
            return self._fast.send(template, entry, producer)
        except Exception as exc:  # noqa: BLE001 - as Celery does
            error = celery.beat.SchedulingError(f"Couldn't apply scheduled task {entry.name}: {exc}")
            reraise(celery.beat.SchedulingError, error, exc.__traceback__)
        finally:
            self._count_sent()

    def _was_attempted(self, entry: Any) -> bool:
        """Return True if an earlier attempt sent this very entry for the same slot."""
        return False

    def _count_sent(self) -> None:
        self._tasks_since_sync += 1
        if self.should_sync():
            self._do_sync()
