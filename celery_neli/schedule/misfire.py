"""What becomes of slots that were missed: `neli_misfire`, as a pure decision.

A slot is *owed* when it is due and did not run. On time, one slot is owed, and it runs. After a standstill there may be
many; which of them run, and which are left out, is decided here. Nothing is left out in silence: the caller logs and
counts what it is told.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from celery_neli.exceptions import ConfigurationError
from celery_neli.printable import shown

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from celery_neli.schedule.slots import Owed

__all__ = ["OPTIONS", "SETTINGS", "Decision", "Misfire", "decide"]

POLICIES = ("fire_once", "fire_all", "skip")
#: Settings, which the options of an entry override.
SETTINGS = ("neli_misfire", "neli_misfire_max", "neli_misfire_grace")
#: Entry options that set a policy for one entry; never part of its message.
OPTIONS = (*SETTINGS, "neli_expires")
#: Seconds that a slot may be late under `skip`, where no grace is set.
SKIP_GRACE = 60.0
#: The most seconds that `neli_expires` may have: a hundred years.
LONGEST = 100 * 365.25 * 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Misfire:
    """A misfire policy: `fire_once`, `fire_all` or `skip`; how many slots `fire_all` runs at most; how many seconds
    late a slot may run (None: as late as it is, but for `skip` a minute); how many seconds after its slot a task is no
    longer worth running (None: it always is).

    Raises `ConfigurationError`.
    """

    policy: str = "fire_once"
    most: int = 100
    grace: float | None = None
    expires: float | None = None

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ConfigurationError(f"neli_misfire = {shown(self.policy)}: give one of {', '.join(POLICIES)}")
        most: Any = self.most
        if isinstance(most, bool) or not isinstance(most, int) or not 1 <= most <= 100_000:
            raise ConfigurationError(f"neli_misfire_max = {shown(self.most)}: give a number of slots from 1 to 100000")
        if self.grace is not None and not _is_seconds(self.grace):
            raise ConfigurationError(
                f"neli_misfire_grace = {shown(self.grace)}: give a number of seconds above 0, or None"
            )
        if self.expires is not None and not _is_seconds(self.expires):
            raise ConfigurationError(
                f"neli_expires = {shown(self.expires)}: give a number of seconds above 0, at most a hundred years"
            )

    @classmethod
    def of_app(cls, app: Any) -> Misfire:
        """From the settings of an app. Loads its configuration."""
        return cls.from_settings({name: app.conf.get(name) for name in SETTINGS})

    @classmethod
    def from_settings(cls, given: Mapping[str, Any]) -> Misfire:
        """From an app's settings, of which some may be missing."""
        return cls().changed_by(given)

    def changed_by(self, given: Mapping[str, Any]) -> Misfire:
        """Return this policy with what the options of an entry say."""
        if given.get("neli_expires") is not None and given.get("expires") is not None:
            raise ConfigurationError(
                "neli_expires and expires are both set: give neli_expires, which counts from the slot, or expires, "
                "which counts from the sending"
            )
        fields = {
            field: given[name]
            for name, field in zip(OPTIONS, ("policy", "most", "grace", "expires"), strict=True)
            if given.get(name) is not None
        }
        return replace(self, **fields) if fields else self

    @property
    def limit(self) -> int:
        """How many slots need to be known by their time."""
        return self.most if self.policy == "fire_all" else 1


class Decision(NamedTuple):
    """``run``: the slots to run, oldest first; ``left_out``: how many others will never run."""

    run: tuple[datetime, ...]
    left_out: int


def decide(rule: Misfire, owed: Owed, now: datetime, *, deadline: float | None = None) -> Decision:
    """Which of the slots ``owed`` at ``now`` (aware) run.

    ``deadline`` is `beat_cron_starting_deadline` (seconds; crontabs only) and goes first: what is older than that never
    runs, nor does what is later than the policy's grace or has expired. Of the others `fire_all` runs the newest
    ``most``, the other two the newest one.
    """
    grace = rule.grace
    if grace is None and rule.policy == "skip":
        grace = SKIP_GRACE
    slots = owed.newest[-rule.limit :]
    bounds = [bound for bound in (grace, deadline, rule.expires) if bound is not None]
    if bounds:
        late = min(bounds)
        slots = tuple([slot for slot in slots if (now - slot).total_seconds() <= late])
    return Decision(run=slots, left_out=owed.total - len(slots))


def _is_seconds(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= LONGEST
