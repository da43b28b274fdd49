"""What the outside is told of a slot: of its way by the beat that sent it and the worker that ran it, and of alarms by
the watcher. All name a slot by one id, however often it is sent, retried or started.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from celery_neli import hooks
from celery_neli.alarms.overdue import Alarm
from celery_neli.history.runs import FAILED, IGNORED, REJECTED, REVOKED, STARTED, SUCCEEDED
from celery_neli.schedule.slots import id_at

SENT: Final = "sent"
BEGUN: Final = "started"
GOOD: Final = "ok"
BAD: Final = "error"
OVERDUE: Final = "overdue"

_OF_RUN = {STARTED: BEGUN, SUCCEEDED: GOOD, IGNORED: GOOD, FAILED: BAD, REVOKED: BAD, REJECTED: BAD}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What became of a slot. `id` is a UUID; `seconds` is how long its task ran; `text` says why, in one line."""

    status: str
    entry: str
    id: str
    schedule: Any = None
    seconds: float | None = None
    text: str = ""
    alarm: Alarm | None = None


def of_slot(event: hooks.SlotEvent, group: str) -> Report | None:
    """Return what the beat says of a slot; None if it is of no interest outside: it is retried, or left out."""
    status = {hooks.SENT: SENT, hooks.REFUSED: BAD}.get(event.outcome)
    slot_id = _id(event, group)
    if status is None or slot_id is None:
        return None
    return Report(status=status, entry=event.entry, id=slot_id, schedule=event.schedule, text=event.error)


def of_run(event: Any, group: str) -> Report | None:
    """Return what a worker says of a slot's task (`hooks.RunEvent`); None if more follows: it is retried."""
    status, slot_id = _OF_RUN.get(event.state), _id(event, group)
    if status is None or slot_id is None or not event.entry:
        return None
    return Report(status=status, entry=event.entry, id=slot_id, seconds=event.runtime, text=event.error)


def of_alarm(alarm: Alarm, group: str) -> Report | None:
    """Return what the watcher says."""
    slot_id = _id(alarm, group)
    if slot_id is None:
        return None
    text = f"{alarm.kind.replace('_', ' ')}: {alarm.reason.replace('_', ' ')}"
    text += f": {alarm.error}" if alarm.error else ""
    return Report(status=OVERDUE, entry=alarm.entry, id=slot_id, schedule=alarm.schedule, text=text, alarm=alarm)


def _id(event: Any, group: str) -> str | None:
    """Return the slot's id, the same for all that tell of it: by the slot, since a task's own id may be another one."""
    if event.slot is not None:
        return id_at(group, event.entry, event.slot)
    try:
        return str(UUID(event.id))
    except (TypeError, ValueError, AttributeError):
        return None
