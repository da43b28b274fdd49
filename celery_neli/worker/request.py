"""A worker's request for a leader-only task, which tells the `Drain` of its way: arrived, handed to the pool, over."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from billiard.exceptions import TimeLimitExceeded
from celery.exceptions import TaskRevokedError
from celery.worker import state

from celery_neli.worker.malformed import Checked, unchecked

if TYPE_CHECKING:
    from celery_neli.worker.in_flight import Drain

LINGER = 1.0
"""Seconds until a child that exceeded its hard time limit is dead for certain: Celery reports it twice (`on_failure`,
`on_timeout`), then kills (SIGTERM, 0.1 s later SIGKILL; billiard's `on_hard_timeout`).
"""


class Tracked(Checked):
    """To be mixed into the `Request` class of a task. All of it runs on the worker's main process; the timer's thread
    may run `execute_using_pool` (pools without an event loop), a pool's thread what tells of the end.
    """

    drain: ClassVar[Drain]
    role: ClassVar[str]
    term: int | None = None
    """In which it was handed to the pool."""
    job: Any = None
    """What the pool answered when it was handed over, while it runs."""
    ended = False
    killed = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Celery makes a subclass for speed (`create_request_cls`) whose methods do not call ours: stand before
        them.
        """
        execute, success = cls.__dict__.get("execute_using_pool"), cls.__dict__.get("on_success")
        if execute is not None:
            cls.execute_using_pool = _guarded(execute)  # type: ignore[attr-defined]
        super().__init_subclass__(**kwargs)
        if success is not None:
            cls.on_success = _last(success)  # type: ignore[attr-defined]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.drain.arrived(self)

    def acknowledge(self) -> None:
        """Celery acknowledges what it drops: expired, revoked."""
        super().acknowledge()  # type: ignore[misc]
        self.drain.dropped(self)

    def reject(self, requeue: bool = False) -> None:
        """Likewise: an ETA that is no date."""
        super().reject(requeue=requeue)  # type: ignore[misc]
        self.drain.dropped(self)

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """A child (thread, greenlet) has it: maybe one that must be killed by now."""
        super().on_accepted(pid, time_accepted)  # type: ignore[misc]
        self.drain.accepted(self, time_accepted)

    def on_failure(self, exc_info: Any, *args: Any, **kwargs: Any) -> None:
        """The end, if not a good one. Of a child that we killed everything was told before."""
        try:
            if not self.killed:
                super().on_failure(exc_info, *args, **kwargs)  # type: ignore[misc]
        finally:
            if isinstance(getattr(exc_info.exception, "exc", exc_info.exception), TimeLimitExceeded):
                self.drain.linger(self, LINGER)
            else:
                self.drain.over(self)

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """A time limit; of a hard one Celery kills the child right after."""
        try:
            super().on_timeout(soft, timeout)  # type: ignore[misc]
        finally:
            if not soft:
                self.drain.linger(self, LINGER)


def _guarded(execute: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(execute)
    def execute_using_pool(self: Any, pool: Any, **kwargs: Any) -> Any:
        if not self.drain.begin(self):
            state.task_ready(self)
            raise TaskRevokedError(self.id)  # the caller frees the slot of the pool
        try:
            job = execute(self, pool, **kwargs)
        except BaseException:
            self.drain.over(self)
            raise
        self.drain.handed(self, job)
        return job

    return execute_using_pool


def _last(success: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(success)
    def on_success(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return success(self, *args, **kwargs)
        finally:
            self.drain.over(self)

    return on_success


def tracked(base: type, drain: Drain, role: str) -> type:
    """The request class `base` of a task, for the leader of `role`."""
    return type("LeaderRequest", (Tracked, unchecked(base)), {"drain": drain, "role": role, "__module__": __name__})
