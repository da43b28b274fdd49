"""Tells `hooks.run` what the tasks of entries do, in a worker's main process: that they started, and how they ended.

A message that a beat sent names its entry in its headers. Celery tells of each message that it takes (`task_received`),
and here the one request of a beat's message is wrapped: whatever class makes a task's requests, and however Celery
speeds that class up (`create_request_cls`, whose methods call no `super`), it looks up a request's callbacks on the
request itself. For other messages that is the look for a header. Of what is revoked Celery tells by a signal, too.
"""

from __future__ import annotations

import logging
import os
import time
from datetime import datetime, timezone
from typing import Any, Final

from billiard.einfo import ExceptionWithTraceback
from billiard.exceptions import Terminated
from celery.exceptions import Ignore, Reject, Retry
from celery.signals import task_received, task_revoked

from celery_neli import hooks
from celery_neli.hooks import RunEvent, WorkerEvent
from celery_neli.logs import escaping
from celery_neli.printable import printable

ENTRY: Final = "neli_beat_entry"
SLOT: Final = "neli_beat_slot"
MOST_QUEUES: Final = 100  # of a worker that are told
LONGEST: Final = 1 << 13  # characters of a name or an id that is told
#: What a request calls, or Celery of it, when something becomes of its task.
CALLBACKS: Final = ("on_accepted", "on_success", "on_failure", "on_timeout", "reject")

logger = escaping(logging.getLogger(__name__))


class RunEvents:
    """Tells of the tasks of one worker, from `start` to `stop`. Nothing raises."""

    def __init__(self, hostname: str) -> None:
        self._hostname = hostname
        self._pid: int | None = None  # of the process that tells; the pool's children inherit the receivers

    def start(self, queues: tuple[str, ...]) -> None:
        """Tell that the worker takes tasks from these queues, and begin to tell of them."""
        self._pid = os.getpid()
        task_received.connect(self._received, weak=False)
        task_revoked.connect(self._revoked, weak=False)
        if hooks.worker:
            hooks.worker(WorkerEvent(worker=self._hostname, queues=queues[:MOST_QUEUES]))

    def stop(self) -> None:
        """Tell that the worker has ended, and nothing any more. Repeatable."""
        if self._pid != os.getpid():
            return
        self._pid = None
        task_received.disconnect(self._received)
        task_revoked.disconnect(self._revoked)
        if hooks.worker:
            hooks.worker(WorkerEvent(worker=self._hostname, stopped=True))

    def _received(self, request: Any = None, **_: Any) -> None:
        if hooks.run and ENTRY in request.request_dict and request.hostname == self._hostname:
            told = _told(request.request_dict, request.name, request.id, self._hostname)
            if told is not None:
                _Watch(request, told).begin()

    def _revoked(self, request: Any = None, terminated: bool = False, **more: Any) -> None:
        headers = getattr(request, "headers", None)
        if not hooks.run or not isinstance(headers, dict) or ENTRY not in headers:
            return
        if request.hostname != self._hostname or os.getpid() != self._pid:
            return
        told = _told(headers, request.task, request.id, self._hostname)
        if told is not None:
            why = "expired" if more.get("expired") else "terminated" if terminated else ""
            hooks.run(RunEvent(**told, state="revoked", error=why, retries=_retries(request.retries)))


def _told(headers: Any, task: Any, id_: Any, worker: str) -> dict[str, Any] | None:
    """Return what is the same in all that is told of a message; None if its headers are not those of a beat."""
    entry, slot = headers.get(ENTRY), headers.get(SLOT)
    if not isinstance(entry, str) or len(entry) > LONGEST:
        return None
    return {
        "entry": entry,
        "task": printable(task),
        "slot": _moment(slot),
        "id": id_ if isinstance(id_, str) and len(id_) <= LONGEST else None,
        "worker": worker,
    }


def _moment(slot: Any) -> float | None:
    """Return the slot in Unix seconds, None if it is none: another program may have sent the message."""
    if not isinstance(slot, str) or len(slot) > 40:
        return None
    try:
        at = datetime.fromisoformat(slot)
        return (at.replace(tzinfo=timezone.utc) if at.utcoffset() is None else at).timestamp()
    except (ValueError, OverflowError):
        return None


def _retries(value: Any) -> int:
    return value if type(value) is int and 0 <= value < 1 << 53 else 0


class _Watch:
    """Stands before the callbacks of one request until its task has ended. Called on the threads that Celery calls
    them on; what it tells cannot fail, and what the request does in them is done in any case.
    """

    def __init__(self, request: Any, told: dict[str, Any]) -> None:
        self._told = told
        self._request = request
        self._accepted: float | None = None  # when its task began (monotonic seconds)
        self._runtime: float | None = None  # as Celery measures it, of tasks that succeed
        self._requeued = False  # what became of the message in `on_failure` or `on_timeout`
        self._within = False
        self._over = False
        self._own = {name: getattr(request, name) for name in CALLBACKS}

    def begin(self) -> None:
        """Stand before the callbacks."""
        for name in CALLBACKS:
            setattr(self._request, name, getattr(self, f"_{name}"))

    def _tell(self, state: str, error: str = "") -> None:
        """Tell it; after an end, give the request back what is its own, or the two would keep one another."""
        retries, ends = _retries(self._request.request_dict.get("retries")), state != "started"
        if ends and self._runtime is None and self._accepted is not None:
            self._runtime = max(0.0, time.monotonic() - self._accepted)
        hooks.run(RunEvent(**self._told, state=state, runtime=self._runtime, retries=retries, error=error))
        if ends:
            self._over = True
            for name in CALLBACKS:
                vars(self._request).pop(name, None)

    def _on_accepted(self, pid: int, time_accepted: float) -> Any:
        self._accepted = time_accepted
        self._tell("started")
        return self._own["on_accepted"](pid, time_accepted)

    def _on_success(self, outcome: Any, **more: Any) -> Any:
        failed, _, runtime = outcome
        if isinstance(runtime, (int, float)) and runtime >= 0:
            self._runtime = float(runtime)
        try:
            return self._own["on_success"](outcome, **more)
        finally:
            if not failed and not self._over:
                self._tell("succeeded")

    def _on_failure(self, exc_info: Any, *args: Any, **more: Any) -> Any:
        self._within, self._requeued = True, False
        try:
            return self._own["on_failure"](exc_info, *args, **more)
        finally:
            self._within = False
            if not self._over:
                error = exc_info.exception
                self._judge(error.exc if isinstance(error, ExceptionWithTraceback) else error)

    def _judge(self, error: BaseException) -> None:
        if isinstance(error, Terminated) or vars(self._request).get("_already_revoked"):
            self._over = True  # it was revoked, which the signal tells
        elif isinstance(error, Retry):
            self._tell("retried", printable(error.excs or "", hooks.MOST_OF_AN_ERROR))
        elif isinstance(error, Ignore):
            self._tell("ignored")
        elif isinstance(error, Reject):
            reason = printable(error.reason or "", hooks.MOST_OF_AN_ERROR)
            self._tell("retried" if error.requeue else "rejected", reason)
        else:
            self._tell("retried" if self._requeued else "failed", hooks.error_text(error))

    def _on_timeout(self, soft: bool, timeout: float) -> Any:
        self._within, self._requeued = True, False
        try:
            return self._own["on_timeout"](soft, timeout)
        finally:
            self._within = False
            if not soft and not self._over:
                self._tell("retried" if self._requeued else "failed", f"TimeLimitExceeded: {timeout}")

    def _reject(self, requeue: bool = False) -> Any:
        if self._within:
            self._requeued = requeue
        elif not self._over:
            self._tell("retried" if requeue else "rejected")
        return self._own["reject"](requeue=requeue)
