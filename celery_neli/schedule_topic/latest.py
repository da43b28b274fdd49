"""The latest of what the schedule topic holds, for one that reads it from its beginning, in order. Pure."""

from __future__ import annotations

from celery_neli.schedule_topic.codec import ENTRY, STATE, Kind, outdated
from celery_neli.schedule_topic.versions import Marks, head_of


class Latest:
    """The values that count, of each key: a void definition changes nothing, nor does a state of a deposed leader."""

    def __init__(self) -> None:
        self._values: dict[tuple[Kind, str], bytes] = {}
        self._marks = Marks()

    def add(self, entry: tuple[Kind, str], value: bytes | None) -> bool:
        """Take the next record, None if it is a tombstone; return False if it is a void definition."""
        kind, name = entry
        if kind == ENTRY and not self._marks.counts(name, value):
            return False
        before = self._values.pop(entry, None)
        if kind == STATE and before is not None and outdated(value, by=before):
            value = before
        if value is not None:
            self._values[entry] = value
        return True

    def values(self) -> dict[tuple[Kind, str], bytes]:
        """Return what is there, without definitions that stand for an entry that was removed."""
        return {
            (kind, name): value
            for (kind, name), value in self._values.items()
            if kind != ENTRY or not head_of(value).removed
        }
