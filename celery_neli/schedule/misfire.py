"""Which of the missed slots run: the misfire policy (`neli_misfire`), as a pure decision.

A slot is *owed* when it is due and did not run. On time one slot is owed, and it runs; after a standstill there may be
many. The caller logs and counts the slots that are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, NamedTuple

from celery_neli.config import setting
from celery_neli.exceptions import ConfigurationError
from celery_neli.printable import shown
from celery_neli.schedule.slots import Owed
from celery_neli.settings import SETTINGS

#: The settings, which the options of an entry override, by the fields of the policy.
_SETTINGS = {"policy": "neli_misfire", "most": "neli_misfire_max", "grace": "neli_misfire_grace"}
#: Entry options that set the policy of one entry; never part of its message.
OPTIONS = (*_SETTINGS.values(), "neli_expires")
#: Seconds that a slot may be late under `skip` if no grace is set.
SKIP_GRACE = 60.0
#: The most seconds that `neli_expires` may have: a hundred years.
LONGEST = 100 * 365.25 * 86_400


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
        """Return this policy, changed by the options of an entry. None leaves one out. Cheap if there are none."""
        if not options or not any(name in options for name in OPTIONS):
            return self
        if options.get("neli_expires") is not None and options.get("expires") is not None:
            raise ConfigurationError(
                "neli_expires and expires are both set: give neli_expires, which counts from the slot, or expires, "
                "which counts from the sending"
            )
        names = zip((*_SETTINGS, "expires"), OPTIONS, strict=True)
        fields = {field: options[name] for field, name in names if options.get(name) is not None}
        return replace(self, **fields)

    @property
    def limit(self) -> int:
        """The number of slots that the decision needs in full."""
        return self.most if self.policy == "fire_all" else 1


class Decision(NamedTuple):
    """``run``: the slots to run, oldest first; ``left_out``: how many others will never run."""

    run: tuple[datetime, ...]
    left_out: int


def decide(policy: Misfire, owed: Owed, now: datetime, *, deadline: float | None = None) -> Decision:
    """Decide which of the slots ``owed`` at ``now`` (aware) run.

    ``deadline`` is `beat_cron_starting_deadline` (seconds; crontabs only). A slot that is later than that, later than
    the policy's grace, or expired never runs. Of the others, `fire_all` runs the newest ``most``, and `fire_once` and
    `skip` run the newest one.
    """
    grace = SKIP_GRACE if policy.grace is None and policy.policy == "skip" else policy.grace
    latest = min(bound for bound in (grace, deadline, policy.expires, math.inf) if bound is not None)
    slots = [slot for slot in owed.newest[-policy.limit :] if (now - slot).total_seconds() <= latest]
    return Decision(run=tuple(slots), left_out=owed.total - len(slots))
