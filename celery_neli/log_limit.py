"""Limit how often a log line is repeated."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import TYPE_CHECKING, Any, Final, cast

from celery_neli.printable import printable

if TYPE_CHECKING:
    import logging

__all__ = ["EntryLines", "LogLimit"]

REMEMBERED: Final = 256


class LogLimit:
    """Allows the first line of each key, then one every `every` seconds. Remembers at most `remembered` keys: those
    that were allowed longest ago are forgotten, and allowed again.

    Never blocks and never raises. One thread at a time.
    """

    def __init__(
        self, every: float, *, remembered: int = REMEMBERED, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._every, self._remembered, self._clock = every, remembered, clock
        #: When a line was allowed, and how many were suppressed since.
        self._allowed: OrderedDict[Hashable, tuple[float, int]] = OrderedDict()

    def ask(self, key: Hashable) -> int | None:
        """Return how many lines of this key were suppressed since the last allowed one, or None: suppress this one."""
        now = self._clock()
        at, suppressed = self._allowed.get(key, (None, 0))
        if at is not None and 0 <= now - at < self._every:
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

    def expired(self) -> Iterator[tuple[Hashable, int]]:
        """Forget the keys whose span is over, and return those of which lines were suppressed in it, with how many."""
        now = self._clock()
        while self._allowed:
            key, (at, suppressed) = next(iter(self._allowed.items()))
            if 0 <= now - at < self._every:
                return
            del self._allowed[key]
            if suppressed:
                yield key, suppressed


class EntryLines:
    """Warnings that an entry may cause with each slot: each kind is logged once a minute for each entry. The next line
    says how many were suppressed; if there is none, `summarize` does. One thread at a time.
    """

    EVERY: Final = 60.0
    ENTRIES: Final = 10_000

    def __init__(self, log: logging.Logger, *, clock: Callable[[], float]) -> None:
        """`clock`: of the entries' slots, in seconds."""
        self._log = log
        self._limit = LogLimit(self.EVERY, remembered=self.ENTRIES, clock=clock)
        self._summary_at = 0.0

    def warning(self, kind: str, entry: str, msg: str, *args: Any) -> None:
        """Log this line about `entry`, unless one of its kind was logged within the last minute."""
        suppressed = self._limit.ask((kind, entry))
        if suppressed:
            self._log.warning(f"{msg} suppressed=%d", *args, suppressed)
        elif suppressed is not None:
            self._log.warning(msg, *args)

    def summarize(self, now: float) -> None:
        """Log, once a minute at most, how many suppressed lines no later line has counted: one line per kind. `now`: by
        the clock.
        """
        if 0 <= self._summary_at - now <= self.EVERY:
            return
        self._summary_at = now + self.EVERY
        found: dict[str, dict[str, int]] = {}
        for key, suppressed in self._limit.expired():
            kind, entry = cast("tuple[str, str]", key)
            found.setdefault(kind, {})[entry] = suppressed
        for kind, counts in found.items():
            shown = ", ".join(printable(each, 60) for each in list(counts)[:5]) + (", …" if len(counts) > 5 else "")
            text, count = "beat: lines suppressed about=%s count=%d entries=%d: %s", sum(counts.values())
            self._log.warning(text, kind, count, len(counts), shown)
