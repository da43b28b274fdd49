"""The clock of a lease (R8)."""

from __future__ import annotations

import time


def boottime() -> float:
    """Seconds on a clock that never goes back and counts a suspended machine and a stopped process; monotonic where
    there is none.
    """
    return time.clock_gettime(_CLOCK)


_CLOCK: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
