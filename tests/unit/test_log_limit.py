"""How often a log line is repeated."""

from __future__ import annotations

from celery_neli.logs import LogLimit


def test_one_line_per_key_and_span_and_the_next_says_how_many_were_suppressed() -> None:
    """The first line of a key is logged at once; others of the same span are counted."""
    now = 0.0
    limit = LogLimit(60.0, clock=lambda: now)
    assert limit.ask("a") == 0
    assert limit.ask("b") == 0
    assert [limit.ask("a") for _ in range(3)] == [None, None, None]
    now = 60.0
    assert limit.ask("a") == 3
    assert limit.ask("a") is None
    now = 120.0
    assert limit.ask("a") == 1
    assert limit.allows("b")


def test_memory_is_bounded() -> None:
    """Of many keys the oldest are forgotten, and only those are allowed again."""
    limit = LogLimit(60.0, remembered=10, clock=lambda: 0.0)
    assert all(limit.allows(key) for key in range(1000))
    assert not limit.allows(999)
    assert limit.allows(0)
