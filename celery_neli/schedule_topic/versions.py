"""Which definition of an entry counts: a compare-and-set that every reader of the log decides alike.

Each definition has a `version`, its name, and a `revision`: one more than that of its `base`, the definition that it
replaces. **A definition with a base is void if the one that is there has the same revision or a higher one**: another
writer was quicker. A void record changes nothing for any reader; its writer tries again, or raises `Conflict`.

Kafka compacts the log to the last record of each key, which may be a void one, or may keep a void one in front of
others. Hence the revision. A reader of what is left may take a void record for the one that counts; but the next one
that counts has a higher revision than all before it, and from then on every reader agrees. To compare versions would
not do: the successor of a definition that was compacted away would be void for such a reader, for ever. So who finds a
void record at the end, its writer or the beat that leads, writes the definition that counts again, with the next
revision (`repaired`). docs/protocol.md ("Definitions") has the proof. Pure.
"""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import Final, NamedTuple

from celery_neli.exceptions import RecordError
from celery_neli.schedule_topic import values
from celery_neli.schedule_topic.codec import MAX_BYTES, REVISION_MOST, Definition

_FIELDS: Final = (b'"version":', b'"base":', b'"revision":')


class Head(NamedTuple):
    """What decides whether a definition counts. What cannot be read has none of it, and counts."""

    version: str = ""
    base: str | None = None
    revision: int = 0
    removed: bool = False

    @property
    def mark(self) -> int:
        """All that later records ask of it, in one number: its revision, doubled, and 1 if a tombstone deletes it."""
        return 2 * self.revision + (self.removed or not self.version)


_PLAIN: Final = Head()


def head_of(value: bytes) -> Head:
    """Return the head of the definition in `value`. Takes 4 µs; raises nothing."""
    if not any(field in value for field in _FIELDS):
        return _PLAIN
    try:
        fields = values.parse(value, most=MAX_BYTES)
    except RecordError:
        return _PLAIN
    version, base, revision = (fields.get(name) for name in ("version", "base", "revision"))
    return Head(
        version if isinstance(version, str) else "",
        base if isinstance(base, str) else None,
        revision if type(revision) is int and 0 <= revision <= REVISION_MOST else 0,
        fields.get("removed") is True,
    )


def is_void(new: Head | None, current: int | None) -> bool:
    """Return True if a record changes nothing where a definition with the mark `current` is there (None: none is).

    `new` is None for a tombstone. It deletes what was `removed`, and what has no version; so one that a beat writes for
    a definition that was removed does not delete another one that somebody has put in the meantime.
    """
    if current is None:
        return False
    if new is None:
        return not current & 1
    return new.base is not None and new.revision <= current >> 1


class Marks:
    """The marks of the definitions that count, by name, for one that reads the log from its beginning, in order."""

    __slots__ = ("_marks",)

    def __init__(self) -> None:
        self._marks: dict[str, int] = {}

    def counts(self, name: str, value: bytes | None) -> bool:
        """Take the next record of an entry's definition; return True if it counts, False if it is void."""
        head = None if value is None else head_of(value)
        if is_void(head, self._marks.get(name)):
            return False
        if head is None:
            self._marks.pop(name, None)
        else:
            self._marks[name] = head.mark
        return True


Chain = tuple[bytes | None, ...]


def chain(before: bytes | Chain | None, value: bytes | None) -> bytes | Chain | None:
    """Return what is to be kept of an entry's definitions, in their order, where it is not known yet what was there
    before them: only those of which it depends on that whether they count, and the last one.
    """
    records = list(before) if isinstance(before, tuple) else [before]
    if value is None:
        return tuple(records) if records[-1] is None else (*records, None)
    new = head_of(value)
    if new.base is None:
        return value
    while records and (last := _conditional(records[-1])) is not None and last.revision < new.revision:
        records.pop()  # whichever of them counts, this one does
    if len(records) > 1 and (last := _conditional(records[-1])) is not None:
        first = None if records[-2] is None else head_of(records[-2])
        if first is not None and last.revision <= first.revision:
            records.pop()  # void, and not the last one any more
    return (*records, value) if records else value


def _conditional(value: bytes | None) -> Head | None:
    head = None if value is None else head_of(value)
    return None if head is None or head.base is None else head


def succeeding(new: Definition, current: Definition | None) -> Definition:
    """Return `new` as what replaces `current` (None: there is no definition), under a version of its own."""
    return _after(replace(new, version=secrets.token_hex(8)), current)


def repaired(current: Definition) -> Definition:
    """Return the definition that counts, to be written again behind a void record: same version, next revision."""
    return _after(current, current)


def _after(new: Definition, current: Definition | None) -> Definition:
    if current is None:
        return replace(new, base="", revision=1)
    if current.revision >= REVISION_MOST:  # forged: no next one would be higher, so one that always counts ends that
        return replace(new, base=None, revision=1)
    return replace(new, base=current.version, revision=current.revision + 1)


def repairs(void: bytes | None, current: bytes) -> bool:
    """Return True if it matters that the void record is the last one: it is not what counts, written twice."""
    if void is None:
        return True
    one, other = head_of(void), head_of(current)
    return (one.version, one.revision) != (other.version, other.revision)
