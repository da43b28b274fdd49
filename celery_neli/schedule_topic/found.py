"""What was read from the schedule topic and not taken yet: the latest value of each key."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from celery_neli.logs import LogLimit
from celery_neli.printable import printable, printable_error
from celery_neli.schedule_topic.codec import STATE, Kind, kind_of, outdated
from celery_neli.threads import original

REFUSED_EVERY = 60.0  # seconds between two lines about one record
REFUSED_LINES = 20  # of one kind of record in that time, however many there are
_NONE: Any = object()

Entries = dict[tuple[Kind, str], bytes | None]


def fold(entries: Entries, entry: tuple[Kind, str], value: bytes | None) -> bool:
    """Put what was read into `entries`, at their end; False: a state of a higher term stays."""
    before = entries.pop(entry, None)
    if entry[0] == STATE and before is not None and outdated(value, by=before):
        entries[entry] = before
        return False
    entries[entry] = value
    return True


class Found:
    """Records that one thread reads and another takes. `own(key, value)` tells whether one was written here."""

    def __init__(self, own: Callable[[bytes, bytes | None], bool], log: logging.Logger) -> None:
        self._own, self._log = own, log
        self._lock: Any = original("_thread", "allocate_lock")()  # for greenlets and threads alike
        self._entries: Entries = {}
        self.generation = 0
        """How often the topic has been read from its beginning again."""
        self.taken = 0
        """The generation of what `take` returned last."""
        self._limit, self._lines = LogLimit(REFUSED_EVERY), LogLimit(REFUSED_EVERY)

    def add(self, key: bytes | None, value: bytes | None) -> bool:
        """Add a record; return True if there is something new to take. A bad record costs itself alone."""
        try:
            return self._add(key, value)
        except Exception as exc:  # noqa: BLE001 - unforeseen: the other records are still read
            self.refuse("", f"key={printable(key)}: {printable_error(exc)}")
            return False

    def _add(self, key: bytes | None, value: bytes | None) -> bool:
        own = key is not None and self._own(key, value)
        if own and not self._entries:
            return False
        entry = kind_of(key)
        if entry is None:
            self.refuse("", f"key={printable(key)}: nothing of ours")
            return False
        with self._lock:
            new = fold(self._entries, entry, value)
            if new and own:
                del self._entries[entry]
        return new and not own

    def take(self) -> Entries:
        """What was added since the last call, but own records and what they replaced."""
        with self._lock:
            entries, self._entries = self._entries, {}
            self.taken = self.generation
        return entries

    def begin_again(self) -> None:
        """Begin a new generation: the topic is read from its beginning again, so what was not taken yet is dropped."""
        with self._lock:
            self._entries = {}
            self.generation += 1

    def refuse(self, kind: str, what: str) -> None:
        """Log that a record is skipped: one line a minute about each record, at most twenty about one ``kind``, and one
        about records of no kind of ours, "".
        """
        lines = REFUSED_LINES if kind else 1
        if self._limit.allows((kind, what)) and any(self._lines.allows((kind, line)) for line in range(lines)):
            self._log.warning("schedule record skipped %s", what)
