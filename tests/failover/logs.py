"""What beats tell in their logs of slots in doubt."""

from __future__ import annotations

import re
from datetime import datetime

from tests.failover.judge import Doubt

_LINE = re.compile(
    r"slots in doubt entry=(?P<entry>.+) count=(?P<count>\d+)\+? "
    r"first=(?P<first>.+) last=(?P<last>.+) policy=(?P<policy>\w+)$",
    re.MULTILINE,
)


def doubts_in(log: str, *, beat: str) -> list[Doubt]:
    """The doubts told in a beat's log."""
    return [
        Doubt(
            entry=found["entry"], count=int(found["count"]), first=datetime.fromisoformat(found["first"]),
            last=datetime.fromisoformat(found["last"]), policy=found["policy"], beat=beat,
        )
        for found in _LINE.finditer(log)
    ]  # fmt: skip
