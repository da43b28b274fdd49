"""Ending a pool's child that runs what it may run no more (`neli_fence_kills`, prefork only)."""

from __future__ import annotations

import logging
import os
import signal
from typing import Any

from billiard.einfo import ExceptionInfo
from celery.worker import state

from celery_neli.exceptions import LeadershipLost
from celery_neli.logs import escaping

logger = escaping(logging.getLogger(__name__))


def kill(request: Any, pool: Any) -> None:
    """Kill the child that runs `request` (SIGKILL: SIGTERM is an exception in the body, which may catch it), and say
    what became of the task. On the consumer's thread.

    With acks_late it goes back to its queue. Acknowledged early, nobody else has it: it has failed, with
    `LeadershipLost`. Celery's own ways would acknowledge either (`terminate`) or announce a retry (`cancel`, 5.5).
    """
    pool.terminate_job(request.worker_pid, signal.SIGKILL)
    if request.job is not None:
        request.job.terminate(signal.SIGKILL)  # the pool need not wonder where its child is
    if request.task.acks_late:
        state.task_ready(request)
        request.reject(requeue=True)
    else:
        try:
            raise LeadershipLost(f"{request.humaninfo()} was killed: this worker lost role {request.role!r}")
        except LeadershipLost:
            request.on_failure(ExceptionInfo())
    request.killed = True
    logger.warning("leader task killed id=%s name=%s role=%s", request.id, request.name, request.role)


def abandon(request: Any, *, gone: bool) -> None:
    """Kill the child that runs `request`, with the consumer's thread stuck or the task broker away. Any thread.

    If the connection is `gone`, the message has gone back with it if it was to be acknowledged late. Otherwise Celery
    finds the child dead when it can, and the task has failed (`WorkerLostError`); unless `kill` comes first.
    """
    try:
        os.kill(request.worker_pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    request.killed = gone and bool(request.task.acks_late)
    logger.warning("leader task killed id=%s name=%s role=%s", request.id, request.name, request.role)
