"""Pauses of many entries, as every beat applies them: from their records and the clock, so that no write is needed.

What holds an entry is asked once more before each of its slots is sent, so a pause counts for all entries as soon as it
was read. Entries are taken out of the schedule, and put back, in small portions; until then an entry that comes due is
stopped by that question. The rules are in docs/protocol.md ("Pauses of many entries"). The thread that ticks.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from celery_neli.logs import escaping
from celery_neli.schedule.due import last_at, place_last
from celery_neli.schedule_topic.codec import State
from celery_neli.schedule_topic.pauses import effective
from celery_neli.schedule_topic.rules import Pause, decode_pause, tags_of

if TYPE_CHECKING:
    from celery_neli.beat.replicated.entries import EntryTable

#: Seconds of a turn that are spent on entries whose pause began or ended.
PORTION: Final = 0.01
#: Entries after which the clock is looked at.
STEP: Final = 200
#: Seconds for which a pause that has ended is kept: a successor whose clock is up to a day behind (codec.FAR_AHEAD)
#: must not be left without one that holds by its clock.
KEPT: Final = 86_400.0

logger = escaping(logging.getLogger(__name__))


class BulkPauses:
    """The pauses of many entries, and what they do to those in ``table``.

    ``since`` and ``open_`` are those of `States`.
    """

    def __init__(self, table: EntryTable, *, since: dict[str, float], open_: set[str]) -> None:
        self._table, self._since, self._open = table, since, open_
        #: Entries that are paused by themselves.
        self.own: set[str] = set()
        self.rules: dict[str, Pause] = {}
        #: Entries whose begin a pause has moved, and whose states do not say so yet.
        self.moved: dict[str, None] = {}
        #: The `since` of states that were read before the pause that they tell of.
        self.told: dict[str, float] = {}
        #: Rules that the topic has lost, to be written again.
        self.lost: dict[str, None] = {}
        self._seen: set[str] | None = None
        #: The entries that are still to be looked at, since a pause began or ended.
        self.scan: Iterator[str] | None = None
        self._next_end = math.inf

    def read(self, name: str, value: bytes | None) -> None:
        """Apply a record. Raises `RecordError`."""
        if self._seen is not None and value is not None:
            self._seen.add(name)
        self.lost.pop(name, None)
        before = self.rules.pop(name, None)
        if value is None:
            if before is not None and before.holds(self._table.moment()):
                self._look_at_all()  # it was deleted by hand
            return
        pause = self.rules[name] = decode_pause(name, value)
        if pause != before:
            what = "paused" if pause.holds(self._table.moment()) else "resumed"
            if what == "paused" or before is not None:
                logger.info("schedule: %s %s", what, pause.line)
            self._look_at_all()

    def tell(self, name: str, state: State) -> None:
        """Note a state that begins at another time than its entry: a pause that was not read yet may be why."""
        if not state.open:
            self.told[name] = state.since

    def judge(self, name: str) -> bool:
        """Let an entry be what the pauses make of it; return True if that is something else than it was."""
        entry = self._table.find(name)
        if entry is None:
            return False
        tags = tags_of(entry.options)
        standing = effective(
            None, [each for each in self.rules.values() if each.fits(name, tags)], self._table.moment()
        )
        moved = standing.since > self._since.get(name, 0.0)
        if moved:
            self._since[name] = standing.since
            place_last(entry, max(last_at(entry), standing.since))  # of slots without their jitter, as in a state
            if self.told.pop(name, None) == standing.since:
                self._open.discard(name)
            else:
                self._open.add(name)
                self.moved[name] = None
        paused = standing.paused or name in self.own
        if paused != (name in self._table.paused):
            self._table.show(entry, paused=paused)
            return True
        if moved and not paused:
            self._table.note(name)
        return moved

    def step(self) -> float:
        """Apply what began or ended to some more entries; return the seconds until there is more to do."""
        now = self._table.moment()
        if now >= self._next_end:
            for each in self.rules.values():
                if each.until is not None and self._next_end <= each.until <= now and not each.ended_by:
                    logger.info("schedule: resumed %s", each.line)
            self._look_at_all()
        began = time.perf_counter()
        while self.scan is not None:
            for _ in range(STEP):
                name = next(self.scan, None)
                if name is None:
                    self.scan = None
                    break
                self.judge(name)
            if self.scan is not None and time.perf_counter() > began + PORTION:
                return 0.0
        return max(0.0, self._next_end - self._table.moment())

    def _look_at_all(self) -> None:
        now = self._table.moment()
        self._next_end = min(
            (each.until for each in self.rules.values() if each.until and each.until > now), default=math.inf
        )
        self.scan = iter([*self._table.paused, *self._table.schedule])

    def forget(self, name: str) -> None:
        """Forget an entry that is gone."""
        self.moved.pop(name, None)
        self.told.pop(name, None)
        self.own.discard(name)

    def take_moved(self) -> dict[str, None]:
        """Return the entries whose states are to be written by the beat that leads."""
        taken, self.moved = self.moved, {}
        return taken

    def take_expired(self) -> list[str]:
        """Return pauses that ended a day ago, and forget them: states say by now what they did. For a leader that has
        no states to write any more.
        """
        if self.scan is not None or self.moved:
            return []
        before = self._table.moment() - KEPT
        expired = [name for name, each in self.rules.items() if not each.holds(before)]
        for name in expired:
            del self.rules[name]
        return expired

    # -- the topic is read again --

    def recount(self) -> None:
        """Note what is read from now on: the topic is read from its beginning again."""
        self._seen = set()

    def counted(self, *, torn: bool) -> None:
        """Compare with what the topic, read to its end, holds. What is missing was removed, or lost if it is torn."""
        seen, self._seen = self._seen, None
        for name in [] if seen is None else [name for name in self.rules if name not in seen]:
            if torn:
                self.lost[name] = None
            else:
                self.read(name, None)
