"""What the page follows in Kafka: who leads, the terms, the schedule and the run history."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeVar

from celery_neli.config import ELECTIONS, Config, from_app
from celery_neli.exceptions import NeliError
from celery_neli.history.records import Record, WorkerRecord
from celery_neli.history.topic import HistoryFollower
from celery_neli.logs import escaping
from celery_neli.schedule_topic.codec import ENTRY, Kind
from celery_neli.schedule_topic.feed import Change, ScheduleFeed
from celery_neli.status import look
from celery_neli.timeline import TimelineFollower
from celery_neli.ui import state as kept
from celery_neli.ui.overdue import OverdueIndex
from celery_neli.ui.state import Follower, State

LOOK_EVERY: Final = 2.0  # seconds between two looks at who leads while visitors are there
LOOK_RARELY: Final = 20.0  # ... and without them
TAKEN: Final = 200  # records that are folded while the lock is held
YIELD: Final = 0.002  # seconds between two such parts
MANY: Final = 2_000  # records at once, which say that there are more
JUDGED_EVERY: Final = 0.5  # seconds between two looks if a lease ran out

_Read = TypeVar("_Read")
_log = escaping(logging.getLogger("celery_neli.ui"))


def of(state: State) -> Mapping[str, Callable[[State], Follower]]:
    """Return what makes the followers of the state's app. Raises `ConfigurationError`."""
    state.configs = {name: from_app(state.app, name) for name in ELECTIONS}
    return {
        kept.ELECTIONS: _Elections,
        kept.TERMS: lambda state: _Terms(state, "beat"),
        kept.WORKER_TERMS: lambda state: _Terms(state, "worker"),
        kept.SCHEDULE: _Schedule,
        kept.HISTORY: _History,
    }


class _Elections:
    """Who is in each election: the consumer groups, and members' notes."""

    def __init__(self, state: State) -> None:
        self._state, self.problem = state, ""
        self._look_at = float("-inf")
        self._changes = -1  # news of leaders that were seen

    def poll(self, timeout: float) -> str:
        state = self._state
        changes = state.news.counts[kept.LEADER]
        if time.monotonic() < self._look_at and (changes == self._changes or not state.watched):
            time.sleep(timeout)
            return ""
        found = []
        self._changes = changes
        try:
            for name, config in state.configs.items():
                found.append(look(config, name, log=_log, schedules=name == "beat"))
        except NeliError as exc:
            self.problem, self._look_at = str(exc), time.monotonic() + LOOK_EVERY
            return ""
        self.problem = ""
        self._look_at = time.monotonic() + (LOOK_EVERY if state.watched else LOOK_RARELY)
        before, state.elections = state.elections, tuple(found)
        return kept.ENTRIES if [each.members for each in before] != [each.members for each in found] else ""

    def close(self) -> None:
        pass


class _Terms:
    """The terms of one election."""

    def __init__(self, state: State, election: str) -> None:
        self._state, self._election = state, election
        self._told = False
        self._judge_at = 0.0
        config = state.configs[election]
        self._follower = TimelineFollower(config, log=_log, since=state.clock() - kept.SHOWN)

    @property
    def problem(self) -> str:
        return self._follower.problem

    def poll(self, timeout: float) -> str:
        follower = self._follower
        news = follower.poll(timeout)
        if news or time.monotonic() >= self._judge_at:  # that a lease has run out, only the clock says
            self._judge_at = time.monotonic() + JUDGED_EVERY
            self._state.set_terms(self._election, follower.terms(), tell=self._told)
            self._told = follower.caught_up
        if not follower.timelines:
            time.sleep(timeout)
        return kept.LEADER if news else ""

    def close(self) -> None:
        self._follower.close()


class _Schedule:
    """The schedule topic, from its beginning on."""

    def __init__(self, state: State) -> None:
        self._state, self.problem = state, kept.NOT_YET
        config = state.configs["beat"]
        self._group = config.group
        self._feed = ScheduleFeed(config, _log, raises=True)
        self._generation = self._feed.generation
        #: What was read before the ends were reached.
        self._first: dict[tuple[Kind, str], bytes | None] | None = {}
        self._judge_at = 0.0

    def poll(self, timeout: float) -> str:
        feed = self._feed
        batch = feed.poll(timeout)
        if feed.absent:
            self.problem = ""  # a topic that does not exist is an empty one
        if feed.generation != self._generation:
            self._generation, self._first = feed.generation, {}
        return self._take(batch) or (kept.RUNS if self._judge() else "")

    def close(self) -> None:
        self._feed.close()

    def _take(self, batch: list[Change]) -> str:
        state = self._state
        if self._first is None:
            _in_parts(state, batch, lambda each: state.schedule.add(*each))
            self._watch(batch)
            return kept.ENTRIES if any(kind == ENTRY for kind, _, _ in batch) else kept.RUNS if batch else ""
        for kind, name, value in batch:
            self._first.pop((kind, name), None)
            self._first[kind, name] = value
        if self._feed.whole != self._generation or not self._generation:
            return ""
        with state.lock:  # all at once: what is missing now was removed
            state.schedule.clear()
            for (kind, name), value in self._first.items():
                if value is not None:
                    state.schedule.add(kind, name, value)
        self._watch([(kind, name, value) for (kind, name), value in self._first.items()], anew=True)
        self._first, self.problem = None, ""
        return kept.ENTRIES

    def _watch(self, batch: list[Change], *, anew: bool = False) -> None:
        """Let what judges what is overdue know, too."""
        state, now = self._state, self._state.clock()
        if anew:
            index = state.schedule
            state.overdue = OverdueIndex(state.app, index.static, index.states, group=self._group, now=now)
        if state.overdue is not None:
            for kind, name, value in batch:
                state.overdue.entry(kind, name, value, now)

    def _judge(self) -> bool:
        """Return True if something has become overdue since the last look."""
        state, now = self._state, time.monotonic()
        good = state.sources[kept.ELECTIONS].good  # when Kafka answered last: since then, silence says nothing
        if state.overdue is None or good is None or not state.history_read or now < self._judge_at:
            return False
        self._judge_at = now + JUDGED_EVERY
        return state.overdue.judge(min(state.clock(), good))


class _History:
    """The run history of the last days."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._caught_up = False  # there was nothing more to read once
        config: Config = state.configs["beat"]
        self._follower = HistoryFollower(config, _log, state.clock() - state.days * 86_400)

    @property
    def problem(self) -> str:
        return self._follower.problem

    def poll(self, timeout: float) -> str:
        records = self._follower.poll(timeout)
        _in_parts(self._state, records, self._add)
        self._caught_up |= not records
        self._state.history_read = self._caught_up and len(records) < MANY
        return kept.RUNS if records else ""

    def close(self) -> None:
        self._follower.close()

    def _add(self, record: Record) -> None:
        if not isinstance(record, WorkerRecord):
            self._state.runs.add(record)
        if (overdue := self._state.overdue) is not None and record.at > self._state.clock() - kept.SHOWN:
            overdue.record(record)


def _in_parts(state: State, batch: Sequence[_Read], add: Callable[[_Read], None]) -> None:
    """Fold what was read, a part at a time, so that pages are not kept waiting for the lock."""
    for start in range(0, len(batch), TAKEN):
        with state.lock:
            for each in batch[start : start + TAKEN]:
                add(each)
        time.sleep(YIELD)  # a lock is not fair: others get it now
