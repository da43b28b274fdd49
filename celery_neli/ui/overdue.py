"""What is overdue now, by the rules of the alarms (`alarms/overdue.py`), which the page feeds and asks. Any thread."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final

from celery_neli.alarms.entries import WatchedEntries
from celery_neli.alarms.overdue import NOT_FINISHED, NOT_STARTED, REFUSED, Alarm, Overdue
from celery_neli.alarms.watcher import SETTLE
from celery_neli.history.records import STARTED, Record, RunRecord, WorkerRecord
from celery_neli.schedule_topic.codec import Kind, State

MOST: Final = 1_000  # alarms that are kept, the newest ones
AT_ONCE: Final = 200  # alarms that one look finds

_Key = tuple[str, str, float | None]  # reason, entry, slot


class OverdueIndex:
    """Follows the schedule and the history, and knows which slots and runs are overdue."""

    def __init__(
        self, app: Any, static: Mapping[str, Any], states: Mapping[str, State], *, group: str, now: float
    ) -> None:
        """`static`: Celery's entries of `beat_schedule`; `states`: how far each entry has come, kept by another one."""
        self._app, self._static, self._states, self._group = app, dict(static), states, group
        self._lock = threading.Lock()
        self._alarms: OrderedDict[_Key, Alarm] = OrderedDict()
        self._overdue = Overdue(
            group=group,
            overdue=app.conf.get("neli_overdue"),
            max_runtime=app.conf.get("neli_max_runtime"),
            on_error=lambda name, error: self._entries.drop(name, error),
        )
        self._entries = WatchedEntries(app, self._overdue, self._static, now=now)

    def entry(self, kind: Kind, name: str, value: bytes | None, now: float) -> None:
        """Take a record of the schedule topic."""
        with self._lock:
            self._entries.apply(kind, name, value, now)

    def record(self, record: Record) -> None:
        """Take a record of the history: a task that was told of is not missing any more."""
        with self._lock:
            self._overdue.record(record)
            if isinstance(record, RunRecord):
                for reason in (NOT_STARTED,) if record.state == STARTED else (NOT_STARTED, NOT_FINISHED):
                    self._alarms.pop((reason, record.entry, record.slot), None)
            elif not isinstance(record, WorkerRecord):
                self._alarms.pop((REFUSED, record.entry, record.slot), None)

    def judge(self, now: float) -> bool:
        """Find what has become overdue; return True if something has. All records up to `now` must have been taken."""
        until, new = now - SETTLE, False
        with self._lock:
            if self._overdue.wake > until:
                return False
            while found := self._overdue.judge(until, AT_ONCE):
                for alarm in found:
                    self._alarms[alarm.reason, alarm.entry, alarm.slot] = alarm
                    new = True
                while len(self._alarms) > MOST:
                    self._alarms.popitem(last=False)
                if len(found) < AT_ONCE:
                    break
        return new

    def all(self) -> list[Alarm]:
        """Return what is overdue and did not happen since then, the newest first."""
        with self._lock:
            for key in [key for key, alarm in self._alarms.items() if self._is_over(alarm)]:
                del self._alarms[key]
            return list(reversed(self._alarms.values()))

    def _is_over(self, alarm: Alarm) -> bool:
        if alarm.reason in (NOT_STARTED, NOT_FINISHED, REFUSED) or alarm.slot is None:
            return False
        state = self._states.get(alarm.entry)
        return state is not None and (state.waits or state.last >= alarm.slot)
