"""Nothing in memory that only grows: a beat that runs and runs ends with what it began with."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from celery_neli.beat.replicated import inventory
from tests.soak.world import Sink, World

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Simulated seconds that are watched: each takes half a real one. By hand: NELI_SOAK_SECONDS=3600.
SECONDS = int(os.environ.get("NELI_SOAK_SECONDS", "60"))
#: Simulated seconds before: caches fill, of which the largest holds a thousand schedules.
WARM_UP = max(12, SECONDS // 5)
#: Objects, and bytes of the process, however long it is watched. A leak of one object a message is 60,000 in a minute;
#: what the objects are too few or too large to show (beyond 512 bytes they are not counted), the bytes do.
BLOCKS, BYTES = 3_000, 1_000_000
STATM = Path("/proc/self/statm")


@pytest.fixture
def silence() -> Iterator[None]:
    """No log records: pytest keeps them."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.slow
@pytest.mark.timeout(300 + 5 * SECONDS)
def test_a_beat_ends_with_the_memory_that_it_began_with(
    silence: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a thousand tasks a second: entries of all kinds, put, run and removed; messages that fail; term after term."""
    monkeypatch.setattr(inventory, "REMOVED_FOR", 5.0)  # of removed entries, it keeps those of the last minute
    world = World(tmp_path)
    for _ in range(WARM_UP):
        world.second()
    types = _types()
    sent, blocks, resident = Sink.sent, _blocks(), _resident()
    for _ in range(SECONDS):
        world.second()
    grown, swollen = _blocks() - blocks, _resident() - resident
    print(
        f"{Sink.sent - sent} messages in {SECONDS} s, {Sink.refused} refused; "
        f"memory grew by {grown} objects, the process by {swollen} bytes"
    )
    assert Sink.sent - sent >= 900 * SECONDS, "what did not run shows nothing"
    assert Sink.refused
    assert grown <= BLOCKS, (_types() - types).most_common(10)
    assert swollen <= BYTES, (_types() - types).most_common(10)


def _blocks() -> int:
    gc.collect()
    return sys.getallocatedblocks()


def _resident() -> int:
    """Bytes; of Linux alone."""
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if STATM.exists() else 0


def _types() -> Counter[str]:
    """How many there are of each type that can hold others."""
    gc.collect()
    return Counter(type(each).__qualname__ for each in gc.get_objects())
