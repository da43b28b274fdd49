"""The clock of a lease (R8)."""

from __future__ import annotations

import time
from functools import partial

boottime = partial(time.clock_gettime, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
"""Seconds on a clock that never goes back and counts a suspended machine and a stopped process (R8).

It is the monotonic clock where the system has no such clock.
"""
