"""The overlap policy (`neli_overlap`): may a slot run while its entry's last task is unfinished?

Only the result backend knows whether a task has finished, and it does not know much: a task that has not begun looks
like one that was lost (`PENDING`). So an unfinished task counts for `neli_overlap_age` at most. The beat's
`replicated/overlap_check.py` asks the result backend, and limits how long it waits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from celery.backends.base import DisabledBackend
from celery.backends.cache import CacheBackend
from celery.backends.rpc import RPCBackend
from celery.states import IGNORED, READY_STATES

from celery_neli.exceptions import ConfigurationError
from celery_neli.printable import shown

POLICIES = ("allow", "skip")
#: Entry options that set the policy; never part of its message.
OPTIONS = ("neli_overlap", "neli_overlap_age")


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """The overlap policy of an entry: `allow`, or `skip`, under which an unfinished task counts for ``age`` seconds.
    Checks its values.
    """

    policy: str = "allow"
    age: float = 3600.0

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ConfigurationError(f"neli_overlap = {shown(self.policy)}: give one of {', '.join(POLICIES)}")
        age: Any = self.age
        if isinstance(age, bool) or not isinstance(age, (int, float)) or not 0 < age < math.inf:
            raise ConfigurationError(f"neli_overlap_age = {shown(self.age)}: give a number of seconds above 0")

    @classmethod
    def of(cls, entry: Any) -> Overlap:
        """As `from_options`, for the options of ``entry``, which errors name."""
        try:
            return cls.from_options(entry.options)
        except ConfigurationError as exc:
            raise ConfigurationError(f"beat entry {entry.name!r}: {exc}") from None

    @classmethod
    def from_options(cls, options: Mapping[str, Any] | None) -> Overlap:
        """Return the policy that the options of an entry name. Cheap if they name none."""
        if not options or not any(name in options for name in OPTIONS):
            return _ALLOW
        names = zip(OPTIONS, ("policy", "age"), strict=True)
        return cls(**{field: options[name] for name, field in names if options.get(name) is not None})

    @property
    def skips(self) -> bool:
        """True if the result backend is asked before a slot runs."""
        return self.policy == "skip"

    def check(self, app: Any, entry: Any) -> None:
        """Raise `ConfigurationError` if the result backend cannot tell whether the entry's tasks have finished.

        Opens no connection. A task that this process has not imported may ignore its results all the same.
        """
        if self.skips and (reason := _why_not(app, entry, self.age)) is not None:
            raise ConfigurationError(f"beat entry {entry.name!r}: neli_overlap = 'skip', but {reason}")


_ALLOW = Overlap()


def unfinished(app: Any, task_id: str, started: float, now: float, age: float, *, task: str | None = None) -> bool:
    """Return True if the task with this id, sent at ``started``, has not finished at ``now`` (Unix seconds).

    A task has finished if it succeeded, failed for good, was revoked or ignored, or is older than ``age`` seconds. A
    task that waits, waits for its retry, or is unknown has not. ``task`` is its name, because a task may have a result
    backend of its own. Blocks for as long as the result backend does, and raises what that raises.
    """
    if now - started > age:
        return False
    backend = (app.tasks.get(task) or app).backend
    # The backend's cache would keep the results of all these tasks.
    state = backend.get_task_meta(task_id, cache=False)["status"]
    return state not in READY_STATES and state != IGNORED


def _why_not(app: Any, entry: Any, age: float) -> str | None:
    """Return why the result backend cannot tell whether tasks of ``entry`` have finished; None if it can."""
    task = app.tasks.get(entry.task)
    if "task_id" in entry.options:
        return "its options name a task_id, so all of its tasks look as one: take it out"
    ignores = entry.options.get("ignore_result")
    if ignores or (ignores is None and task is not None and task.ignore_result):
        return f"results of {entry.task} are ignored: set ignore_result to False"
    try:
        backend = (task or app).backend
    except Exception as exc:  # noqa: BLE001 - a missing package, a bad URL: it may raise anything
        return f"the result backend cannot be made: {exc}"
    if isinstance(backend, DisabledBackend):
        return "there is no result backend: set result_backend"
    if isinstance(backend, RPCBackend):
        return "the result backend rpc:// answers only the process that sent the task: take another"
    if isinstance(backend, CacheBackend) and backend.backend == "memory":
        return "the result backend cache+memory:// answers only the process that ran the task: take another"
    failures = app.conf.get("result_failure_expires")
    for name, value in {
        "result_expires": getattr(backend, "expires", None),
        "result_failure_expires": failures,
    }.items():
        seconds = value.total_seconds() if isinstance(value, timedelta) else value
        if isinstance(seconds, (int, float)) and 0 < seconds < age:
            return (
                f"neli_overlap_age = {age:g} s is above {name} = {seconds:g} s: a task whose result has expired looks"
                " as one that has not begun"
            )
    return None
