"""Gathers what the topics say, live: the leader topics on the caller's thread, the rest on a thread of its own."""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import closing
from typing import Any, Final

from celery_neli.config import ELECTIONS, from_app
from celery_neli.exceptions import NeliError
from celery_neli.history.records import WorkerRecord
from celery_neli.history.runs import Run, Runs
from celery_neli.history.topic import HistoryFollower
from celery_neli.periodic.editor import ScheduleEditor
from celery_neli.periodic.view import entry_names, view_of
from celery_neli.printable import printable, printable_error
from celery_neli.status import look
from celery_neli.threads import Thread, spawn
from celery_neli.timeline import TimelineFollower
from celery_neli.watch.model import MemberView, News, RoleView, Snapshot, TermNews, Upcoming, run_line

SHOWN: Final = 10  # last and next slots that are kept
PER_ENTRY: Final = 10  # runs of an entry that are kept, to fold what follows into them

# Seconds:
BEFORE: Final = 3600.0  # of the leader topic that are read at the start
RUNS_BEFORE: Final = 60.0  # of the history
MEMBERS_EVERY: Final = 5.0  # between two looks at the members
SCHEDULE_EVERY: Final = 2.0  # ... and at the schedule, and twenty times as long as that takes at least
FORGET_EVERY: Final = 60.0
SLICE: Final = 0.5  # that the thread waits for the history


def quiet_logger() -> logging.Logger:
    """Return a logger that writes nothing: what goes wrong is shown, and lines would tear up the screen."""
    log = logging.Logger("celery_neli.watch")  # noqa: LOG001 - one apart: no handler of the application has it
    log.addHandler(logging.NullHandler())
    return log


class Watcher:
    """Watches both elections of an app. The constructor does not block, and Kafka need not be there. `poll`, `snapshot`
    and `close` are for one thread.
    """

    def __init__(self, app: Any, *, log: logging.Logger) -> None:
        """Raises `ConfigurationError` if a setting is unfit. The app's tasks must be loaded."""
        self._app, self._log = app, log
        now = time.time()
        self._followers = {
            name: TimelineFollower(from_app(app, name), log=log, since=now - BEFORE) for name in ELECTIONS
        }
        self._news = {name: TermNews(name) for name in ELECTIONS}
        self._away = False  # it was told that nothing can be read
        self._side = _Side(app, log)

    def poll(self, timeout: float) -> list[News]:
        """Read for `timeout` seconds or so, and return what is new: terms that began or ended, and that Kafka is away
        or there again.
        """
        for follower in self._followers.values():
            follower.poll(timeout / len(self._followers))
        found = []
        problem = next((each.problem for each in self._followers.values() if each.problem), "")
        if problem and not self._away:
            found.append(News(time.time(), f"nothing can be read, the watch goes on: {printable(problem)}"))
        elif self._away and not problem:
            found.append(News(time.time(), "Kafka answers again"))
        self._away = bool(problem)
        for election, follower in self._followers.items():
            if follower.caught_up:
                found += self._news[election].of(follower.terms())
        self._side.start()
        return found

    @property
    def ready(self) -> bool:
        """Return True if the leader topics were read, or cannot be."""
        return all(each.caught_up or each.problem for each in self._followers.values())

    def runs(self) -> list[Run]:
        """Return the runs of which something was told since the last call, oldest first."""
        return self._side.take()

    def snapshot(self) -> Snapshot:
        """Return all that is known now."""
        side = self._side
        roles = []
        for election, follower in self._followers.items():
            for role, terms in follower.terms().items():
                last = terms[-1] if terms else None
                left = 0.0 if last is None or last.heard is None else last.heard + last.lease - follower.now
                # A worker election that no worker has joined is not worth a line.
                if last is not None or election == "beat":
                    roles.append(RoleView(election=election, role=role, term=last, left=left))
        problems = [*{each.problem: None for each in self._followers.values() if each.problem}] or side.problems()
        ahead = self._followers["beat"].now
        return Snapshot(
            at=ahead, roles=roles, members=side.members, last=side.last(), upcoming=side.upcoming, problems=problems
        )

    def close(self) -> None:
        """End; takes a second at most."""
        self._side.stop()
        for each in self._followers.values():
            each.close()


class _Side:
    """What may take its time: members, schedule and history, on a thread of its own."""

    def __init__(self, app: Any, log: logging.Logger) -> None:
        self._app, self._log = app, log
        self.members: list[MemberView] | None = None
        self.upcoming: list[Upcoming] = []
        self._problems: dict[str, str] = {}  # by what was looked at
        self._runs = Runs(PER_ENTRY)
        self._lock = threading.Lock()  # of the following two
        self._last: OrderedDict[tuple[str, object], Run] = OrderedDict()
        self._new: OrderedDict[tuple[str, object], Run] = OrderedDict()
        self._thread: Thread | None = None
        self._stopping = False

    def start(self) -> None:
        """Begin; may be repeated."""
        if self._thread is None:
            self._thread = spawn(self._run, name="neli-watch")

    def stop(self) -> None:
        """End; wait for a second at most."""
        self._stopping = True
        if self._thread is not None:
            self._thread.join(1.0)

    def problems(self) -> list[str]:
        """Return why something is not known."""
        return [each for each in list(self._problems.values()) if each]

    def last(self) -> list[Run]:
        """Return the last runs, newest first."""
        with self._lock:
            runs = list(self._last.values())
        return sorted(runs, key=lambda run: run.when, reverse=True)[:SHOWN]

    def take(self) -> list[Run]:
        """Return the runs that are new, or of which something new is known."""
        with self._lock:
            taken, self._new = self._new, OrderedDict()
        return list(taken.values())

    def _run(self) -> None:
        members_at = schedule_at = float("-inf")
        forget_at = time.monotonic() + FORGET_EVERY
        config = from_app(self._app, "beat")
        with closing(HistoryFollower(config, self._log, since=time.time() - RUNS_BEFORE)) as history:
            while not self._stopping:
                now = time.monotonic()
                if now >= members_at:
                    self._try("members", self._look_at_members)
                    members_at = now = time.monotonic()
                    members_at += MEMBERS_EVERY
                if now >= schedule_at and not self._stopping:
                    self._try("schedule", self._look_at_schedule)
                    took = time.monotonic() - now
                    schedule_at = time.monotonic() + max(SCHEDULE_EVERY, 20 * took)
                for record in history.poll(SLICE):
                    if not isinstance(record, WorkerRecord):
                        self._note(self._runs.add(record))
                if now >= forget_at:
                    self._runs.forget(time.time() - BEFORE)
                    forget_at = now + FORGET_EVERY

    def _note(self, run: Run) -> None:
        key = run.entry, run.id or run.slot
        with self._lock:
            before = self._last.get(key)
            if before is not None and run_line(before) == run_line(run):
                return  # beats and workers tell of the same run: the later record may add nothing that is shown
            for runs, most in ((self._last, 5 * SHOWN), (self._new, 1_000)):
                runs.pop(key, None)
                runs[key] = run
                while len(runs) > most:
                    runs.popitem(last=False)

    def _try(self, what: str, look_at: Callable[[], None]) -> None:
        try:
            look_at()
            self._problems[what] = ""
        except NeliError as exc:
            self._problems[what] = f"{what}: {exc}"
        except Exception as exc:  # noqa: BLE001 - a user's schedule may raise anything; the rest is shown
            self._problems[what] = f"{what}: {printable_error(exc)}"

    def _look_at_members(self) -> None:
        found: list[MemberView] = []
        for election in ELECTIONS:
            status = look(from_app(self._app, election), election, log=self._log, schedules=election == "beat")
            if status.members is not None:
                found += [
                    MemberView(
                        election=election, name=each.name, host=each.host, leads=each.leads, answers=each.answers
                    )
                    for each in status.members
                ]
            elif status.exists:
                leads = {role.leader: role.role for role in status.roles}
                found += [
                    MemberView(election=election, name=name, leads=[leads[name]] if name in leads else [])
                    for name in status.known
                ]
        self.members = found

    def _look_at_schedule(self) -> None:
        editor = ScheduleEditor(self._app)
        views = (view_of(editor, name) for name in entry_names(editor))
        slots = (Upcoming(entry=each.name, slot=each.next) for each in views if each.next is not None)
        self.upcoming = heapq.nsmallest(SHOWN, slots, key=lambda each: each.slot)
