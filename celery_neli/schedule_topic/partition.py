"""What a process knows of one partition of the schedule topic: where the record of each key stands that counts.

For a process that changes a few of a hundred thousand entries: 24 bytes for a key. Pure; not thread-safe.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator
from typing import Final

from celery_neli.exceptions import RecordError
from celery_neli.schedule_topic.codec import ENTRY, Kind, decode_state
from celery_neli.schedule_topic.versions import head_of, is_void

GONE: Final = -1  # the offset of a key that was deleted
MERGE: Final = 4096  # changes that are kept apart while it is read; then they are merged
FEW: Final = 128  # ... and afterwards
_UNREADABLE: Final = -2  # the mark of a state that has no epoch


class Partition:
    """The latest records of one partition that were read so far, of which `next` is the offset of the one to come.

    `last`: the offset and the time of the last record that was read, which tell if the topic is still the same.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Know nothing."""
        self.next = 0
        self.last: tuple[int, float] | None = None
        # Sorted by the hash of the key: its offset; the mark of a definition (versions.py), the epoch of a state.
        self._hashes, self._offsets, self._marks = array("q"), array("q"), array("q")
        self._recent: dict[int, tuple[int, int]] = {}

    def __len__(self) -> int:
        """Return how many keys it has, or a few more."""
        return len(self._hashes) + len(self._recent)

    def offset(self, key: bytes) -> int | None:
        """Return where the record of a key stands that counts, None if it has none."""
        found = self._find(hash(key))
        return None if found is None or found[0] == GONE else found[0]

    def add(self, offset: int, at: float, key: bytes, kind: Kind, value: bytes | None) -> bool:
        """Take the next record; return False if it is void (versions.py), or a state of a leader that another one has
        followed.
        """
        self.next, self.last = offset + 1, (offset, at)
        hashed, mark = hash(key), 0
        before = self._find(hashed)
        current = None if before is None or before[0] == GONE else before[1]
        if kind == ENTRY:
            head = None if value is None else head_of(value)
            if is_void(head, current):
                return False
            mark = 0 if head is None else head.mark
        elif value is not None:
            mark = _epoch(value)
            if current is not None and _UNREADABLE < mark < current:
                return False
        self._recent[hashed] = (GONE if value is None else offset), mark
        if len(self._recent) > max(MERGE, len(self._hashes)):
            self._merge()
        return True

    def settle(self) -> None:
        """Make it small: no more is read now."""
        if len(self._recent) > max(FEW, len(self._hashes) >> 4):
            self._merge()

    def skip(self, offset: int) -> None:
        """Note that everything before `offset` was read."""
        self.next = max(self.next, offset)

    def _find(self, hashed: int) -> tuple[int, int] | None:
        found = self._recent.get(hashed)
        if found is not None:
            return found
        place = bisect_left(self._hashes, hashed)
        if place < len(self._hashes) and self._hashes[place] == hashed:
            return self._offsets[place], self._marks[place]
        return None

    def _merge(self) -> None:
        rows = sorted(self._rows())
        self._hashes, self._offsets, self._marks = (array("q", [row[column] for row in rows]) for column in range(3))
        self._recent = {}

    def _rows(self) -> Iterator[tuple[int, int, int]]:
        for hashed, offset, mark in zip(self._hashes, self._offsets, self._marks, strict=True):
            if hashed not in self._recent:
                yield hashed, offset, mark
        for hashed, (offset, mark) in self._recent.items():
            if offset != GONE:
                yield hashed, offset, mark


def _epoch(value: bytes) -> int:
    try:
        return decode_state(value).epoch
    except RecordError:
        return _UNREADABLE
