"""Collects the metrics of this process: counts what the hooks tell, and asks the leaderships when it is read.

There is one `Collection` in a process, for all its leaderships, while there are any. In a forked child it is void: its
numbers are of the main process alone.
"""

from __future__ import annotations

import importlib
import logging
import os
import threading
from collections import defaultdict, deque
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, TypeVar

from celery_neli import hooks, signals
from celery_neli.config import ELECTIONS, WATCH, setting
from celery_neli.election.lease import boottime
from celery_neli.history.recorder import recorder_of
from celery_neli.history.records import STATES
from celery_neli.hooks import Hook, RunEvent, SlotEvent
from celery_neli.logs import escaping
from celery_neli.metrics import catalogue
from celery_neli.metrics.numbers import Family, Labels, LowWater, Numbers
from celery_neli.printable import printable
from celery_neli.threads import Thread, original, spawn

if TYPE_CHECKING:
    from celery import Celery

    from celery_neli.election.leadership import Leadership

T = TypeVar("T")
OTHERS: Final = "(others)"
LONGEST_LABEL: Final = 200  # characters of an entry's name
SEEN_FOR: Final = 60.0  # seconds for which a low margin is shown at least
MOST_WAITING: Final = 50_000  # events of each kind that wait to be counted, those of some seconds at the highest rate
AT_ONCE: Final = 100  # events that are counted in a row, in a tenth of a millisecond or so
COUNT_EVERY, YIELD, JOIN = 1.0, 0.000_1, 0.5  # seconds
#: Outcomes of slots and the policies that decide them.
OUTCOMES: Final = (
    (hooks.SENT, ""), (hooks.FAILED, ""), (hooks.REFUSED, ""), (hooks.IN_DOUBT, "send"), (hooks.IN_DOUBT, "skip"),
    (hooks.SKIPPED, "misfire"), (hooks.SKIPPED, "overlap"),
)  # fmt: skip
#: Why a slot is overdue (`signals.slot_overdue`); and a run.
REASONS: Final = ("not_sent", "failed", "refused", "not_started")
NOT_FINISHED: Final = "not_finished"
#: What shows the metrics, by the library that it needs.
EXPORTERS: Final = {"prometheus_client": "prometheus", "opentelemetry.metrics": "otel"}

logger = escaping(logging.getLogger(__name__))


class Collection:
    """The numbers of this process, filled from the hooks from `begin` to `end`. Any thread."""

    def __init__(self, *, most_entries: int, clock: Callable[[], float] = boottime) -> None:
        """`most_entries` have a series of their own; `clock` is that of the leases."""
        self.numbers = Numbers()
        self.leaderships: tuple[Leadership, ...] = ()
        self._beats = self._workers = ""  # the label `group` of what has to do with either
        self._most, self._clock = most_entries, clock
        self._entries: dict[str, str] = {}  # their labels, by name
        self._margins: dict[Labels, LowWater] = {}
        # What comes with each message waits here: a message shall not wait while it is counted.
        self._slots: deque[SlotEvent] = deque(maxlen=MOST_WAITING)
        self._turns: deque[float] = deque(maxlen=MOST_WAITING)
        self._published: deque[float] = deque(maxlen=MOST_WAITING)
        self._ended = False
        self._wait: Any = original("_thread", "allocate_lock")()  # held until the end
        self._wait.acquire()
        self._receivers: tuple[tuple[Hook, Callable[..., None]], ...] = (
            (hooks.slot, self._slots.append), (hooks.turn, self._turns.append),
            (hooks.published, self._published.append),
            (hooks.renewed, self._renewed), (hooks.term_begun, self._term_begun), (hooks.term_ended, self._term_ended),
            (hooks.kafka_error, self._kafka_error), (hooks.leader_task, self._leader_task),
            (hooks.singleton, self._singleton), (hooks.run, self._run),
        )  # fmt: skip

    def serve(self, *leaderships: Leadership) -> None:
        """Show these leaderships, in the place of others."""
        groups = {election: name for name, election in (split(each.config.group) for each in leaderships)}
        first = next(iter(groups.values()), "")
        self._beats, self._workers = groups.get("beat", first), groups.get("worker", first)
        self.leaderships = leaderships
        for leadership in leaderships:  # a counter that begins at 1 seems to have stood still
            for role in leadership.roles:
                self._begin_at_zero(leadership.config.group, role)

    def _begin_at_zero(self, group: str, role: str) -> None:
        numbers, labels = self.numbers, (*split(group), role)
        for reason in (*REASONS, NOT_FINISHED):
            numbers.add(catalogue.OVERDUE, (labels[0], reason), 0)
        numbers.add(catalogue.LEADERLESS, labels, 0)
        for after in hooks.ENDS:
            numbers.add(catalogue.TERMS_BEGUN, (*labels, after), 0)
        for cause in hooks.CAUSES:
            numbers.add(catalogue.TERMS_ENDED, (*labels, cause), 0)
        if labels[1] == "worker":
            for state in STATES:
                numbers.add(catalogue.RUNS, (labels[0], state), 0)
        elif labels[1] == "beat":
            for outcome, policy in OUTCOMES:
                numbers.add(catalogue.SLOTS, (labels[0], role, outcome, policy), 0)

    def begin(self) -> None:
        """Listen to the hooks, and to the signals of alarms."""
        for hook, receiver in self._receivers:
            hook.add(receiver)
        signals.slot_overdue.connect(self._slot_overdue, weak=False)
        signals.run_overdue.connect(self._run_overdue, weak=False)

    def end(self) -> None:
        """Listen no more, and let the thread end. Takes no lock, for a forked child does it, too. Repeatable."""
        for hook, receiver in self._receivers:
            hook.remove(receiver)
        if not self._ended:
            self._ended = True
            self._wait.release()

    def disconnect(self) -> None:
        """Listen to no signal of alarms any more. It takes their locks, so not in a forked child."""
        signals.slot_overdue.disconnect(self._slot_overdue)
        signals.run_overdue.disconnect(self._run_overdue)

    def keep_up(self) -> None:
        """Count what waits, every second until `end`, on the calling thread of the operating system."""
        sleep = original("time", "sleep")
        while not self._ended:
            self._wait.acquire(timeout=COUNT_EVERY)
            try:
                while self._count():
                    sleep(YIELD)  # a thread that has a slot to send must not wait for Python's lock
            except Exception:
                logger.exception("metrics: something was not counted")

    def read(self) -> list[Family]:
        """Return all metrics as they are now, in the order of the catalogue; a reading of its own for each caller."""
        while self._count():
            pass
        found = {each.metric: each.values for each in (*self.numbers.read(), *self._standing(), *self._history())}
        return [Family(metric, found[metric]) for metric in catalogue.METRICS if found.get(metric)]

    def _standing(self) -> list[Family]:
        """Return what the leaderships say."""
        info: dict[Labels, float] = {}
        leader: dict[Labels, float] = {}
        term: dict[Labels, float] = {}
        lease: dict[Labels, float] = {}
        margin: dict[Labels, float] = {}
        without: dict[Labels, float] = {}
        for leadership in self.leaderships:
            group, election = split(leadership.config.group)
            info[group, election, leadership.config.name, catalogue.version()] = 1
            for name in leadership.roles:
                role, labels = leadership.role(name), (group, election, name)
                standing, now = role.standing(), self._clock()
                leader[labels], lease[labels] = float(standing.leading), leadership.config.heartbeat_timeout
                newest, vacant = role.last_payload.term, role.vacant_for()
                if newest is not None:
                    term[labels] = newest
                if vacant is not None:
                    without[labels] = vacant
                lowest = self._margin(labels).read(now)
                if standing.held:
                    lowest = min(lowest, standing.until - now)
                if lowest != float("inf"):
                    margin[labels] = max(0.0, lowest)
        return [
            Family(catalogue.INFO, info), Family(catalogue.LEADER, leader), Family(catalogue.TERM, term),
            Family(catalogue.LEASE, lease), Family(catalogue.MARGIN, margin),
            Family(catalogue.WITHOUT_LEADER, without),
        ]  # fmt: skip

    def _history(self) -> list[Family]:
        """Return how the run history of this process gets on; nothing if it is off."""
        waiting: dict[Labels, float] = {}
        lag: dict[Labels, float] = {}
        dropped: dict[Labels, float] = {}
        for each in self.leaderships:
            recorder, labels = recorder_of(each.app, each.election), split(each.config.group)
            if recorder is not None:
                waiting[labels], lag[labels], dropped[labels] = recorder.queued, recorder.lag, recorder.dropped
        return [
            Family(catalogue.HISTORY_WAITING, waiting), Family(catalogue.HISTORY_LAG, lag),
            Family(catalogue.HISTORY_DROPPED, dropped),
        ]  # fmt: skip

    def _margin(self, labels: Labels) -> LowWater:
        return self._margins.get(labels) or self._margins.setdefault(labels, LowWater(SEEN_FOR))

    # -- what waits --

    def _count(self) -> bool:
        """Count some of what waits; return True if something was left. Any thread."""
        numbers, group = self.numbers, self._beats
        lateness: defaultdict[str, list[float]] = defaultdict(list)
        last: dict[str, float] = {}
        for event in _some(self._slots):
            numbers.add(catalogue.SLOTS, (group, event.role, event.outcome, event.policy), event.count)
            if event.outcome == hooks.SENT and event.slot is not None:
                lateness[event.role].append(max(0.0, event.at - (event.slot if event.due is None else event.due)))
                last[event.entry] = max(event.slot, last.get(event.entry, event.slot))
        for role, values in lateness.items():
            numbers.observe(catalogue.LATENESS, (group, role), *values)
        for entry, slot in last.items():
            numbers.rise(catalogue.LAST_SLOT, (group, self._entry(entry)), slot)
        if self._turns:
            numbers.observe(catalogue.TICK, (group,), *_some(self._turns))
        if self._published:
            numbers.observe(catalogue.PUBLISH, (group,), *_some(self._published))
        return bool(self._slots or self._turns or self._published)

    # -- what the hooks tell, on the threads on which it happens --

    def _entry(self, name: str) -> str:
        label = self._entries.get(name)
        if label is None:
            if len(self._entries) >= self._most:
                return OTHERS
            label = self._entries[name] = printable(name, LONGEST_LABEL)
        return label

    def _renewed(self, group: str, role: str, round_trip: float, margin: float | None) -> None:
        labels = (*split(group), role)
        self.numbers.observe(catalogue.ROUND_TRIP, labels, round_trip)
        if margin is not None:
            self._margin(labels).add(margin)

    def _term_begun(self, group: str, role: str, after: str, gap: float | None) -> None:
        labels = (*split(group), role)
        self.numbers.add(catalogue.TERMS_BEGUN, (*labels, after))
        self.numbers.add(catalogue.LEADERLESS, labels, gap or 0.0)

    def _term_ended(self, group: str, role: str, cause: str) -> None:
        labels = (*split(group), role)
        self.numbers.add(catalogue.TERMS_ENDED, (*labels, cause))
        if cause in (hooks.EXPIRED, hooks.FROZEN):
            self._margin(labels).add(0.0)

    def _kafka_error(self, name: str) -> None:
        self.numbers.add(catalogue.KAFKA_ERRORS, (self._beats, name))

    def _leader_task(self, action: str, role: str) -> None:
        self.numbers.add(catalogue.LEADER_TASKS, (self._workers, role, action))

    def _run(self, event: RunEvent) -> None:
        self.numbers.add(catalogue.RUNS, (self._workers, event.state))

    def _slot_overdue(self, reason: str = "", **_: Any) -> None:
        if not self._ended and reason in REASONS:
            self.numbers.add(catalogue.OVERDUE, (self._beats, reason))

    def _run_overdue(self, **_: Any) -> None:
        if not self._ended:
            self.numbers.add(catalogue.OVERDUE, (self._beats, NOT_FINISHED))

    def _singleton(self, name: str, role: str, failed: bool) -> None:
        labels = (self._workers, role, name)
        self.numbers.add(catalogue.SINGLETON_TURNS, labels)
        self.numbers.add(catalogue.SINGLETON_FAILURES, labels, int(failed))


def _some(waiting: deque[T]) -> list[T]:
    """Take up to `AT_ONCE` of what waits; another thread may take some, too."""
    taken: list[T] = []
    try:
        while len(taken) < AT_ONCE:
            taken.append(waiting.popleft())
    except IndexError:
        pass
    return taken


def split(group: str) -> tuple[str, str]:
    """Return `neli_group` and the name of the election for the group of a `Config`."""
    name, _, election = group.rpartition(".")
    return (name, election) if election in (*ELECTIONS, WATCH) else (group, "")


class Part:
    """The share of one leadership in the metrics of this process (`observability.Part`)."""

    def __init__(self, leadership: Leadership) -> None:
        self.leadership = leadership

    def stop(self) -> None:
        """Show it no more; with the last one, the numbers go. Repeatable."""
        global _collection, _counter
        with _lock:
            found = _collection
            if found is None or self.leadership not in found.leaderships:
                return
            left = tuple(each for each in found.leaderships if each is not self.leadership)
            if left:
                found.serve(*left)
                return
            found.end()
            found.disconnect()
            if _counter is not None:
                _counter.join(JOIN)
            _collection = _counter = None
            for each in _exporters():
                each.stop()


def start(app: Celery, leadership: Leadership) -> Part | None:
    """Collect the metrics of this process, and show them by each library that is installed; None if none is."""
    global _collection, _counter
    exporters = _exporters()
    if not exporters:
        return None
    with _lock:
        if _collection is None:
            made = Collection(most_entries=setting(app, "neli_metrics_entries"))
            made.serve(leadership)
            made.begin()
            _collection, _counter = made, spawn(made.keep_up, name="neli-metrics")
            for each in exporters:
                try:
                    each.start(made.read, made.numbers)
                except Exception:
                    logger.exception("metrics not shown by %s; is it an old release?", each.__name__)
        elif leadership not in _collection.leaderships:
            _collection.serve(*_collection.leaderships, leadership)
    return Part(leadership)


def _exporters() -> list[Any]:
    return [
        importlib.import_module(f"celery_neli.metrics.{name}")
        for library, name in EXPORTERS.items()
        if find_spec(library.partition(".")[0]) is not None and find_spec(library) is not None
    ]


_collection: Collection | None = None
_counter: Thread | None = None  # counts for it
_lock = threading.RLock()


def _forked() -> None:
    """In a child: count nothing, and take no lock that another thread may have held at the fork."""
    global _collection, _counter, _lock
    if _collection is not None:
        _collection.end()
    _collection, _counter, _lock = None, None, threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
