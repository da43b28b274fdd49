"""Celery signals of leadership, and of what is overdue.

Each signal of leadership is sent as ``signal.send(sender=leadership, election="beat", role="leader", term=219)``, in
order, on the leadership's own thread (a greenlet under gevent). Celery logs and swallows what a receiver raises, so
safety must not rest on a receiver, but on the lease (`celery_neli.still_leader`).
"""

from __future__ import annotations

from celery.utils.dispatch import Signal

__all__ = [
    "entry_paused", "leadership_acquired", "leadership_fenced", "leadership_revoked", "run_overdue", "slot_overdue",
]  # fmt: skip

_ARGUMENTS = {"election", "role", "term"}

leadership_acquired = Signal(name="leadership_acquired", providing_args=_ARGUMENTS)
"""This process has begun to lead `role`."""

leadership_revoked = Signal(name="leadership_revoked", providing_args=_ARGUMENTS)
"""This process hands `role` over: it may finish work, but start none. The handover waits until all receivers have
returned, for `neli_drain_timeout` at most, while heartbeats go on.
"""

leadership_fenced = Signal(name="leadership_fenced", providing_args=_ARGUMENTS)
"""This process has lost `role`: stop at once. If late heartbeats are read back, it may acquire the role again in the
same term.
"""

slot_overdue = Signal(
    name="slot_overdue",
    providing_args={"entry", "task", "slot", "id", "reason", "deadline", "allowance", "count", "error"},
)
"""A slot of an entry is overdue: its task was not sent, or not started, within its allowance (`neli_overdue`).

Sent as ``signal.send(sender=app, entry="nightly", …)`` on the one process of the fleet that watches, once for each
slot, on the watcher's own thread. It is a thread of the operating system, under gevent, too. A receiver that does not
return holds up further alarms, and nothing else.

Args:
    entry: The name of the entry.
    task: The name of its task.
    slot: The slot, in Unix seconds; None if the entry's schedule knows no slots.
    id: The task id of the slot, a UUID; None if it is not known.
    reason: "not_sent" (no beat sent it), "failed" (it could not be sent, and is retried), "refused" (the application
        refused to send it) or "not_started" (it was sent, and no worker has started it).
    deadline: When the allowance was over, in Unix seconds.
    allowance: The allowance, in seconds.
    count: How many slots of the entry are overdue by now of which no alarm was raised yet; `slot` is the last of them.
    error: Why it could not be sent, "" if that is not known. Text of others, of limited length.
"""

run_overdue = Signal(
    name="run_overdue", providing_args={"entry", "task", "slot", "id", "worker", "started", "deadline", "allowance"}
)
"""A task that an entry sent was started, and did not finish within `neli_max_runtime`.

Sent as `slot_overdue` is, once for each slot.

Args:
    entry, task, slot, id: As for `slot_overdue`.
    worker: The worker that started it.
    started: When it was started, in Unix seconds.
    deadline: When `neli_max_runtime` was over, in Unix seconds.
    allowance: `neli_max_runtime`, in seconds.
"""

entry_paused = Signal(name="entry_paused", providing_args={"entry", "task", "failures", "error", "slot", "id"})
"""An entry was paused because its runs failed `neli_pause_on_failure` times in a row.

Sent as `slot_overdue` is, after the pause is stored, on a thread of its own. If the watcher dies in between, it is
not sent.

Args:
    entry: The name of the entry.
    task: The name of its task.
    failures: How many runs have failed since the last one that succeeded, as far as they count: the entry was made, or
        resumed, before their slots.
    error: Why the last one failed. Text of others, of limited length.
    slot: The slot of the last one, in Unix seconds; None if it was run by hand.
    id: Its task id.
"""
