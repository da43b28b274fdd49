"""Limit how often a log line is repeated."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final

__all__ = ["LogLimit"]

REMEMBERED: Final = 256


class LogLimit:
    """Allows the first line of each key, then one every `every` seconds. Memory is bounded: of more keys than
    `remembered`, those that were allowed longest ago are forgotten, and allowed again.

    Never blocks and never raises. One thread at a time.
    """

    def __init__(
        self, every: float, *, remembered: int = REMEMBERED, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._every, self._remembered, self._clock = every, remembered, clock
        self._allowed: OrderedDict[Hashable, tuple[float, int]] = OrderedDict()  # when, and how many since were not

    def ask(self, key: Hashable) -> int | None:
        """Return how many lines of this key were suppressed since the last allowed one, or None: suppress this one."""
        now = self._clock()
        at, suppressed = self._allowed.get(key, (None, 0))
        if at is not None and now - at < self._every:
            self._allowed[key] = at, suppressed + 1
            return None
        self._allowed[key] = now, 0
        self._allowed.move_to_end(key)
        if len(self._allowed) > self._remembered:
            self._allowed.popitem(last=False)
        return suppressed

    def allows(self, key: Hashable) -> bool:
        """Return True if a line of this key may be logged now."""
        return self.ask(key) is not None
