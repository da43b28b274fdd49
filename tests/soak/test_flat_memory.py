"""Nothing in memory that only grows: a beat that runs and runs ends with what it began with."""

from __future__ import annotations

import gc
import linecache
import logging
import os
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from tests.soak.world import Sink, World

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Simulated seconds that are watched. By hand: NELI_SOAK_SECONDS=3600, which takes some hours.
SECONDS = int(os.environ.get("NELI_SOAK_SECONDS", "8"))
#: Simulated seconds before: caches fill, of which the largest holds a thousand schedules.
WARM_UP = max(11, SECONDS // 5)
#: Bytes: dicts in which keys come and go are made anew, larger, now and then. A leak of one object a message is more.
GROWTH = 200_000


@pytest.fixture
def silence() -> Iterator[None]:
    """No log records: pytest keeps them."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.slow
@pytest.mark.timeout(300 + 5 * SECONDS)
def test_a_beat_ends_with_the_memory_that_it_began_with(silence: None, tmp_path: Path) -> None:
    """At a thousand tasks a second: entries of all kinds, put, run and removed; messages that fail; term after term."""
    world = World(tmp_path)
    tracemalloc.start()
    try:
        for _ in range(WARM_UP):
            world.second()
        sent, before = Sink.sent, _held()
        snapshot = tracemalloc.take_snapshot()
        for _ in range(SECONDS):
            world.second()
        grown = _held() - before
        largest = tracemalloc.take_snapshot().compare_to(snapshot, "lineno")[:10] if grown > GROWTH else []
    finally:
        tracemalloc.stop()
    print(f"{Sink.sent - sent} messages in {SECONDS} s, {Sink.refused} refused; memory grew by {grown} bytes")
    assert Sink.sent - sent >= 900 * SECONDS, "what did not run shows nothing"
    assert Sink.refused
    assert grown <= GROWTH, "\n".join(map(str, largest))


def _held() -> int:
    linecache.clearcache()  # the sources of stacks that were logged
    gc.collect()
    return tracemalloc.get_traced_memory()[0]
