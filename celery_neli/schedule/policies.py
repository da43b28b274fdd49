"""The policies of an entry: which of its missed slots run, and if a slot may run while its last task is unfinished.

A slot is *owed* when it is due and did not run. On time one slot is owed, and it runs; after a standstill there may be
many. The misfire policy (`neli_misfire`) decides which of them run; the caller logs and counts the others.

For the overlap policy (`neli_overlap`), only the result backend knows whether a task has finished, and it does not know
much: a task that has not begun looks like one that was lost (`PENDING`). So an unfinished task counts for
`neli_overlap_age` at most. The beat's `replicated/overlap_check.py` asks the result backend, and limits how long it
waits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from celery.backends.base import DisabledBackend
from celery.backends.cache import CacheBackend
from celery.backends.rpc import RPCBackend
from celery.states import IGNORED, READY_STATES

from celery_neli.config import setting
from celery_neli.exceptions import ConfigurationError
from celery_neli.printable import shown
from celery_neli.schedule.slots import Owed
from celery_neli.settings import OVERLAP_POLICIES, SETTINGS

#: The fields of the misfire policy, and the settings that an entry's options of the same names override.
_SETTINGS = {"policy": "neli_misfire", "most": "neli_misfire_max", "grace": "neli_misfire_grace"}
#: The fields of both policies, and the options of an entry that set them. They are never part of its message.
_MISFIRE = {**_SETTINGS, "expires": "neli_expires"}
OVERLAP = "neli_overlap"
_OVERLAP = {"policy": OVERLAP, "age": "neli_overlap_age"}
# When an alarm is raised: after how many seconds without a start, and after how many of running.
ALARM_OPTIONS = ("neli_overdue", "neli_max_runtime")
#: After how many failed runs in a row an entry is paused.
PAUSE_ON_FAILURE = "neli_pause_on_failure"
# Which slots an entry has (`shaped.py`); after how many runs it is finished, and by what names it is found.
SHAPE_OPTIONS = ("neli_timezone", "neli_jitter", "neli_start", "neli_end", "neli_calendar")
OWN_OPTIONS = frozenset((
    *_MISFIRE.values(), *_OVERLAP.values(), *ALARM_OPTIONS, *SHAPE_OPTIONS, PAUSE_ON_FAILURE, "neli_max_runs",
    "neli_tags",
))  # fmt: skip
ALLOW, SKIP, QUEUE_ONE, CANCEL_OTHER = OVERLAP_POLICIES
SKIP_GRACE = 60.0  # seconds that a slot may be late under `skip` if no grace is set
LONGEST = 100 * 365.25 * 86_400  # the most seconds that `neli_expires` may have: a hundred years


@dataclass(frozen=True, slots=True, kw_only=True)
class Misfire:
    """A misfire policy: `fire_once`, `fire_all`, which runs ``most`` slots at most, or `skip`. Checks its values.

    ``grace``: how many seconds late a slot may run; None for no limit, or a minute under `skip`. ``expires``: after how
    many seconds a task is no longer worth running; None if it always is.
    """

    policy: str = SETTINGS["neli_misfire"].default
    most: int = SETTINGS["neli_misfire_max"].default
    grace: float | None = None
    expires: float | None = None

    def __post_init__(self) -> None:
        for field, name in _SETTINGS.items():
            if (value := getattr(self, field)) is not None:
                SETTINGS[name].checked(value)
        seconds: Any = self.expires
        if seconds is None or (isinstance(seconds, (int, float)) and seconds is not True and 0 < seconds <= LONGEST):
            return
        raise ConfigurationError(
            f"neli_expires = {shown(seconds)}: give a number of seconds above 0, at most a hundred years"
        )

    @classmethod
    def of_app(cls, app: Any) -> Misfire:
        """Return the policy that an app's settings name. Loads its configuration."""
        return cls(**{field: setting(app, name) for field, name in _SETTINGS.items()})

    def changed_by(self, options: Mapping[str, Any]) -> Misfire:
        """Return this policy, changed by the options of an entry. None leaves one out. Cheap if there are none.

        With `queue_one`, one slot waits at most, so `fire_all` is `fire_once`.
        """
        if not options:
            return self
        fields = _given(options, _MISFIRE)
        if options.get(OVERLAP) == QUEUE_ONE and fields.get("policy", self.policy) == "fire_all":
            fields["policy"] = "fire_once"
        if not fields:
            return self
        if options.get("neli_expires") is not None and options.get("expires") is not None:
            raise ConfigurationError(
                "neli_expires and expires are both set: give neli_expires, which counts from the slot, or expires, "
                "which counts from the sending"
            )
        return replace(self, **fields)

    @property
    def limit(self) -> int:
        """The number of slots that the decision needs in full."""
        return self.most if self.policy == "fire_all" else 1


def decide(policy: Misfire, owed: Owed, now: datetime, *, deadline: float | None = None) -> tuple[list[datetime], int]:
    """Return which of the slots ``owed`` at ``now`` (aware) run, oldest first, and how many others will never run.

    ``deadline`` is `beat_cron_starting_deadline` (seconds; crontabs only). A slot that is later than that, later than
    the policy's grace, or expired never runs. Of the others, `fire_all` runs the newest ``most``, and `fire_once` and
    `skip` run the newest one.
    """
    grace = SKIP_GRACE if policy.grace is None and policy.policy == "skip" else policy.grace
    latest = min(bound for bound in (grace, deadline, policy.expires, math.inf) if bound is not None)
    slots = [slot for slot in owed.newest[-policy.limit :] if (now - slot).total_seconds() <= latest]
    return slots, owed.total - len(slots)


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """The overlap policy of an entry: what becomes of a slot that is due while the entry's last task is unfinished.
    Checks its values.

    `allow`: it runs. `skip`: it never does. `queue_one`: it waits until that task has ended; of several that wait, the
    newest runs. `cancel_other`: it runs, and that task is revoked. An unfinished task counts for ``age`` seconds.
    """

    policy: str = ALLOW
    age: float = 3600.0

    def __post_init__(self) -> None:
        if self.policy not in OVERLAP_POLICIES:
            raise ConfigurationError(f"neli_overlap = {shown(self.policy)}: give one of {', '.join(OVERLAP_POLICIES)}")
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
        return cls(**fields) if options and (fields := _given(options, _OVERLAP)) else _DEFAULT

    @property
    def asks(self) -> bool:
        """True if the result backend is asked before a slot runs."""
        return self.policy != ALLOW

    def check(self, app: Any, entry: Any) -> None:
        """Raise `ConfigurationError` if the result backend cannot tell whether the entry's tasks have finished.

        Opens no connection. A task that this process has not imported may ignore its results all the same.
        """
        if self.asks and (reason := _why_not(app, entry, self.age)) is not None:
            raise ConfigurationError(f"beat entry {entry.name!r}: neli_overlap = {self.policy!r}, but {reason}")


_DEFAULT = Overlap()


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


def _given(options: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {field: options[name] for field, name in names.items() if options.get(name) is not None}
