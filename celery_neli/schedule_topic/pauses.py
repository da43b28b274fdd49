"""Whether an entry is paused at a moment, and since when its slots count: from its definition and the clock alone.

Nothing is written when a pause ends by itself: every beat computes the same from the same records, so no failover can
lose it. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple, Protocol

from celery_neli.schedule_topic.codec import Definition

NEVER: Final = float("inf")


class Rule(Protocol):
    """A pause that concerns the entry, and maybe others."""

    @property
    def until(self) -> float | None:
        """When it ends, or has ended (Unix seconds); None: it lasts until it is resumed."""


class Standing(NamedTuple):
    """What an entry is at a moment. Times are Unix seconds."""

    paused: bool
    since: float  # no slot at or before it is owed
    next_change: float  # when to ask again, if nothing is written before; infinity: never


def effective(definition: Definition | None, rules: Iterable[Rule], now: float) -> Standing:
    """Return what an entry is at `now`. `definition`: its own (of one in `beat_schedule`: its pause), None if it has
    none; `rules`: the pauses of many entries that it is one of.

    A pause that has ended counts as resumed at its end: no slot of it runs, the first one after it does.
    """
    since = 0.0 if definition is None else definition.since
    ends = [rule.until for rule in rules]
    if definition is not None and definition.paused:
        ends.append(definition.until)
    later = [NEVER if end is None else end for end in ends if end is None or end > now]
    since = max([since, *(end for end in ends if end is not None and end <= now)])
    return Standing(bool(later), since, max(later, default=NEVER))
