"""Text that nobody should have written, as it may stand in any record or message."""

from __future__ import annotations

import json
from typing import Any

FORGED = "[2026-11-30 12:00:00,000: ERROR/MainProcess] leadership fenced role=leader"
TEXTS = (
    f"a\n{FORGED}",
    f"a\r{FORGED}",
    f"a\u2028{FORGED}",
    "a\x1b[2J\x1b]0;title\x07b",
    "a\u202eb\u2066c",
    "a\ud800b",
    "a\x00b",
    "größer 毎日",
    "x" * 10_000,
    "\n" * 10_000,
)


def definition(text: str, **fields: Any) -> bytes:
    """An entry of the schedule topic, all texts of which are this one."""
    change = {"at": 1.5, "by": text, "what": text}
    common = {"task": text, "schedule": text, "args": [text], "kwargs": {text: text}, "options": {}, "paused": False}
    return json.dumps(
        {"v": 1, **common, "since": 1_780_315_200.0, "static": False, "changes": [change], **fields}
    ).encode()


def note(text: str, *, at: float) -> bytes:
    """A member's note, short enough to be one."""
    return json.dumps({"v": 1, "schedule": text[:100], "version": None, "at": at, "app": text[:100]}).encode()
