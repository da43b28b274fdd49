"""The evidence: one line of JSON for each message that the worker received, in the order of their arrival."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """A message that reached the worker. Times are seconds since 1970; None where the message did not say."""

    task_id: str
    term: int | None
    slot: float | None
    entry: str | None
    sent: float | None
    sender: str | None  # Celery's own header "origin": gen<pid>@<host>
    received: float

    @property
    def pid(self) -> int | None:
        """The process that sent it."""
        found = re.match(r"gen(\d+)@", self.sender or "")
        return int(found[1]) if found else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """A beat was told that it leads. What beats say of themselves is no evidence: for the display only."""

    term: int
    pid: int
    at: float


def epoch(moment: str | None) -> float | None:
    """Seconds since 1970 of an ISO 8601 time."""
    return None if moment is None else datetime.fromisoformat(moment).timestamp()


def append(file: Path, line: Receipt | Notice) -> None:
    """Add a line; in one piece, for several processes write to the file."""
    data = json.dumps({"kind": type(line).__name__, **asdict(line)}) + "\n"
    handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, data.encode())
    finally:
        os.close(handle)


class Ledger:
    """Reads the file as it grows."""

    def __init__(self, file: Path) -> None:
        self.receipts: list[Receipt] = []
        self.notices: dict[int, Notice] = {}  # by term, the first of each
        self._file = file
        self._position = 0

    def read(self) -> list[Receipt]:
        """Take in what is new; returns the new receipts. A line that is still being written waits for the next call."""
        if not self._file.exists():
            return []
        with self._file.open("rb") as file:
            file.seek(self._position)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._position += len(whole)
        before = len(self.receipts)
        for line in whole.splitlines():
            fields = json.loads(line)
            if fields.pop("kind") == "Receipt":
                self.receipts.append(Receipt(**fields))
            else:
                notice = Notice(**fields)
                self.notices.setdefault(notice.term, notice)
        return self.receipts[before:]
