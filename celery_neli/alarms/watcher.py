"""The watcher: the one process of the fleet that looks for what is overdue, and says so.

Beats and workers elect it, in an election of its own. The process that leads the beats does not take part in it while
another one does: what is wrong with it, the watcher must see. Nothing rests on this election, so it has no consumer
group, and renews its lease once a second.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from celery_neli import signals
from celery_neli.alarms.entries import WatchedEntries
from celery_neli.alarms.overdue import RUN, Alarm, Overdue
from celery_neli.config import WATCH, Config, from_app, is_replicated, scheduler_class, setting
from celery_neli.election.neli import Neli
from celery_neli.election.renewal import State
from celery_neli.history.topic import HistoryFollower
from celery_neli.kafka import connect_alone
from celery_neli.logs import EntryLines, escaping
from celery_neli.periodic.editor import ScheduleEditor
from celery_neli.schedule_topic.feed import ScheduleFeed
from celery_neli.threads import Thread, original, spawn

if TYPE_CHECKING:
    from celery import Celery

    from celery_neli.election.leadership import Leadership

# Seconds:
TURN: Final = 2.0  # between two turns of a process that does not watch
LOOK: Final = 0.5  # ... and of the one that does
WAIT: Final = 0.02  # for records that are on their way from librdkafka
SETTLE: Final = 3.0  # that records may be late; alarms come so much later
VACANT: Final = 3.0  # for which nobody watches until a process that leads the beats does
ASK_EVERY: Final = 10.0  # between two requests for the role
RETRY: Final = 10.0  # after something unforeseen
BACK_LEAST, BACK_MOST = 600.0, 86_400.0  # how far back the history is read at least, at most
READ_MOST: Final = 2.0  # that one turn reads the history
JOIN: Final = 1.0
END: Final = 3.0  # for a release
MOST: Final = 500  # alarms of one turn
FULL: Final = 1_000  # records of one turn after which there are more, probably

ELECTION_LOG: Final = "celery_neli.alarms.election"

logger = escaping(logging.getLogger(__name__))


def _soften(record: logging.LogRecord) -> bool:
    """Let errors of this election pass as warnings, for no work depends on it, and all else only if somebody looks."""
    if record.levelno >= logging.ERROR:
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        return True
    return logging.getLogger(ELECTION_LOG).isEnabledFor(logging.DEBUG)


class Watcher:
    """Takes part in the election of the watcher, and watches while it leads. `on_alarm` is called with each alarm."""

    def __init__(self, app: Celery, leadership: Leadership, on_alarm: Callable[[Alarm], None]) -> None:
        """Raises `ConfigurationError`."""
        self._app, self._leadership, self._on_alarm = app, leadership, on_alarm
        self._config = from_app(app, WATCH)
        logging.getLogger(ELECTION_LOG).addFilter(_soften)
        self._neli = Neli(self._config, connect=connect_alone, fit=self._fit, log=ELECTION_LOG)
        self._role = self._neli.role(WATCH)
        self._pid = os.getpid()
        self._stopping = False
        self._thread: Thread | None = None
        self._watch: _Watch | None = None
        self._payload: dict[str, Any] = {}
        self._vacant_since: float | None = None  # monotonic seconds
        self._ask_at = 0.0
        self._wake: Any = original("_thread", "allocate_lock")()  # held until `stop` wakes the thread
        self._wake.acquire()

    @property
    def watching(self) -> bool:
        """True if this process is the one that watches."""
        return self._watch is not None

    def start(self) -> None:
        """Join; return at once."""
        _alive.add(self)
        self._neli.start()
        self._thread = spawn(self._run, name="neli-watch")

    def stop(self) -> None:
        """Hand over and end; wait for a second at most."""
        if self._thread is None or os.getpid() != self._pid or self._stopping:
            return
        self._stopping = True
        self._wake.release()
        self._thread.join(JOIN)

    def _fit(self) -> bool:
        """Return True if this process may watch. On the thread that renews the lease."""
        if not self._leads_beats() or self._role.may_finish():
            return True
        return self._vacant_since is not None and time.monotonic() - self._vacant_since > VACANT

    def _leads_beats(self) -> bool:
        leadership = self._leadership
        return leadership.election == "beat" and any(map(leadership.leading, leadership.roles))

    def _run(self) -> None:
        try:
            while not self._stopping:
                try:
                    self._wake.acquire(timeout=self._turn())
                except Exception:
                    logger.exception("alarms: the watcher failed; it goes on in %.0f s", RETRY)
                    self._end_watch()
                    self._role.resign(back_off=True)
                    self._wake.acquire(timeout=RETRY)
        finally:
            self._end_watch()
            self._neli.request_close()
            end = time.monotonic() + END
            while self._neli.state is not State.CLOSED and time.monotonic() < end:
                self._neli.deliver(0)
                original("time", "sleep")(0.02)
            _alive.discard(self)

    def _turn(self) -> float:
        """Do what is to be done; return after how many seconds to come again."""
        began = time.monotonic()
        self._progress()
        if not self._role.may_start():
            self._end_watch()
            self._stand_by()
            return TURN
        if self._watch is None:
            found = self._role.last_payload.data or {}
            self._watch = _Watch(self._app, from_app(self._app, "beat"), found, progress=self._progress)
            self._payload = {}
        alarms = self._watch.turn()
        for alarm in alarms:
            if not self._role.may_start():
                return 0.0  # the next watcher says it
            self._raise(alarm)
        payload = {**self._watch.payload(), "beat": self._leads_beats()}
        if payload != self._payload:
            self._payload = payload
            self._role.set_payload(self._role.standing().term or 0, payload, now=bool(alarms))
        return max(0.0, LOOK - (time.monotonic() - began)) if self._watch.whole else 0.0

    def _progress(self) -> None:
        self._neli.progress()
        self._neli.deliver(0)

    def _stand_by(self) -> None:
        """Note since when nobody watches; ask for the role if the process that leads the beats has it."""
        now = time.monotonic()
        if self._role.leader() is not None:
            self._vacant_since = None
        elif self._vacant_since is None:
            self._vacant_since = now
        data = self._role.last_payload.data or {}
        if data.get("beat") is True and self._vacant_since is None and not self._leads_beats() and now >= self._ask_at:
            self._ask_at = now + ASK_EVERY * random.uniform(0.5, 1.0)
            self._role.ask()

    def _end_watch(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()

    def _raise(self, alarm: Alarm) -> None:
        """Say it: in the log, by the signal, to the sinks. Never raises an `Exception`."""
        assert self._watch is not None, "only who watches has alarms"
        self._watch.say(alarm)
        sent: dict[str, Any] = {"entry": alarm.entry, "task": alarm.task, "slot": alarm.slot, "id": alarm.id}
        sent |= {"deadline": alarm.deadline, "allowance": alarm.allowance}
        if alarm.kind == RUN:
            signal, sent = signals.run_overdue, {**sent, "worker": alarm.worker, "started": alarm.started}
        else:
            sent |= {"reason": alarm.reason, "count": alarm.count, "error": alarm.error}
            signal = signals.slot_overdue
        try:
            signal.send(sender=self._app, **sent)
        except SystemExit as exc:  # Celery lets it pass, and it would only end this thread
            logger.error("a receiver of %s raised %r: ignored; nothing ends by that here", signal.name, exc)
        self._on_alarm(alarm)


class _Watch:
    """One term of the watcher: what it reads, and what is overdue by it. For one thread."""

    def __init__(self, app: Celery, config: Config, found: Any, *, progress: Callable[[], None]) -> None:
        """`found`: what the watcher before left in the role's records."""
        self._app, self._config, self._progress = app, config, progress
        told = found.get("told")
        self.told = float(told) if isinstance(told, (int, float)) and told <= time.time() else float("-inf")
        self._reports = found.get("reports") is True
        self.whole = False
        self._lines = EntryLines(logger, clock=time.time)
        self._longest = _longest(app)
        self._feed = ScheduleFeed(config, logger) if self._has_slots() else None
        self._static = dict(ScheduleEditor(app).static) if self._feed is not None else {}
        since = time.time() - min(BACK_MOST, max(BACK_LEAST, 2 * self._longest))
        self._history = HistoryFollower(config, logger, since=since) if setting(app, "neli_history") else None
        self._begin()

    def _has_slots(self) -> bool:
        """Return True if the beats' scheduler is ours, which writes down how far each entry has come."""
        try:
            return is_replicated(scheduler_class(self._app.conf.get("neli_scheduler")))
        except Exception:  # noqa: BLE001 - another one's module may be missing here
            return False

    def _begin(self) -> None:
        """Begin without knowledge: of nothing is said twice."""
        self._generation = 0 if self._feed is None else self._feed.generation
        self._overdue = Overdue(
            group=self._config.group,
            told=self.told,
            overdue=self._app.conf.get("neli_overdue"),
            max_runtime=self._app.conf.get("neli_max_runtime"),
            reports=self._reports,
            on_error=lambda name, error: self._entries.drop(name, error),
        )
        self._entries = WatchedEntries(self._app, self._overdue, self._static, now=time.time())

    def payload(self) -> dict[str, Any]:
        """Return what the next watcher must know."""
        known = {"reports": self._overdue.reports}
        return known if self.told == float("-inf") else {**known, "told": self.told}

    def close(self) -> None:
        """End what reads."""
        for each in (self._feed, self._history):
            if each is not None:
                each.close()

    def turn(self) -> list[Alarm]:
        """Read what there is, and return what is overdue. Takes up to some seconds."""
        self.whole = self._read()
        now = time.time()
        self._lines.summarize(now)
        until = now - SETTLE
        if not self.whole:
            return []
        if self._overdue.wake > until:
            self.told = max(self.told, until)
            return []
        if self._feed is not None:  # how far the entries have come must be known
            until = min(until, self._feed.read_until())
        alarms = self._overdue.judge(until, MOST)
        self.told = max(self.told, self._overdue.told)
        return alarms

    def _read(self) -> bool:
        """Return True if all was read that there was at hand."""
        whole = True
        if self._feed is not None:
            changes = self._feed.poll(WAIT)
            if self._feed.generation != self._generation and self._generation:
                self._begin()
            self._generation = self._feed.generation
            now = time.time()
            for kind, name, value in changes:
                self._entries.apply(kind, name, value, now)
            whole = len(changes) < FULL
        if self._history is None:
            return whole
        end = time.monotonic() + READ_MOST
        # The longer wait is for the answer whether there is a topic.
        while records := self._history.poll(LOOK if self._history.problem else WAIT):
            for record in records:
                self._overdue.record(record)
            self._progress()
            if time.monotonic() > end:
                return False
        return whole

    def say(self, alarm: Alarm) -> None:
        """Log the alarm: of each kind, once a minute for each entry."""
        if alarm.kind == RUN:
            self._lines.warning(
                RUN, alarm.entry, "run overdue entry=%s slot=%s task=%s id=%s worker=%s allowance=%.0f",
                alarm.entry, _iso(alarm.slot), alarm.task, alarm.id, alarm.worker, alarm.allowance,
            )  # fmt: skip
            return
        self._lines.warning(
            alarm.reason, alarm.entry,
            "slot overdue entry=%s slot=%s reason=%s allowance=%.0f count=%d task=%s id=%s%s",
            alarm.entry, _iso(alarm.slot), alarm.reason, alarm.allowance, alarm.count, alarm.task, alarm.id,
            f" error={alarm.error!r}" if alarm.error else "",
        )  # fmt: skip


def _longest(app: Celery) -> float:
    """Return the longest allowance that the settings and `beat_schedule` name: so far back the history is of use."""
    options = [
        getattr(each, "get", lambda *_: None)("options") or {} for each in (app.conf.beat_schedule or {}).values()
    ]
    names = ("neli_overdue", "neli_max_runtime")
    values = [app.conf.get(name) for name in names] + [each.get(name) for each in options for name in names]
    return max((float(each) for each in values if isinstance(each, (int, float))), default=0.0)


def _iso(slot: float | None) -> str:
    if slot is None:
        return "-"
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(slot)) + (f"{slot % 1:.3f}"[1:] if slot % 1 else "") + "Z"


#: A forked child must not end what its parent's clients are: they stay here.
_alive: set[Watcher] = set()
