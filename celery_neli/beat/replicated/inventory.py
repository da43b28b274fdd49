"""What is believed of the schedule topic: which definitions count, which it has lost, and which times are too far
ahead; and the few log lines about entries that are defined at runtime.

The topic may be deleted, cut, or lose records to a wrong retention while beats run. What they know of it then is all
that is left: the beat that leads writes it back, so that what runs, what `celery neli schedule list` shows and what
can be removed stay the same. A beat that was cut off for so long that it missed removals is another matter: then
the topic is right.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import datetime, timezone
from itertools import islice
from typing import Any

from celery_neli.beat.replicated.claims import ASTRAY
from celery_neli.logs import LogLimit, escaping
from celery_neli.printable import printable
from celery_neli.schedule_topic.codec import (
    FAR_AHEAD,
    MAX_CHANGES,
    START_AHEAD,
    Definition,
    decode_definition,
    encode_definition,
    repaired,
)
from celery_neli.schedule_topic.versions import head_of, is_void, repairs

#: How many records of entries that are not here are kept after the topic was read to its end.
ORPHANS = 1000
#: Names of entries in one line.
SHOWN = 10
#: Seconds in which a leader writes back some of what was lost, if it knows it.
PATIENCE = 15.0
#: Seconds for which an entry that was removed is kept as such.
REMOVED_FOR = 60.0
#: Seconds between two log lines of one kind about one entry, and how many entries are remembered.
LOGGED_EVERY, LOGGED_APART = 60.0, 1000
#: Seconds between two lines about one entry that cannot be read; in them at most `MANY` such lines are logged.
REFUSED_EVERY, MANY = 60.0, 20

logger = escaping(logging.getLogger(__name__))
#: What becomes of entries is told by the logger that has always told it.
lines = escaping(logging.getLogger("celery_neli.beat.replicated.states"))


class Inventory:
    """The definitions of one scheduler's entries, by name, as bytes. The thread that ticks."""

    def __init__(self) -> None:
        self._records: dict[str, bytes] = {}
        #: The definitions that the topic has lost, by name.
        self.lost: dict[str, None] = {}
        #: Monotonic seconds: when something was found to be lost, or was there again.
        self._lost_at = 0.0
        #: The names that were read since the topic is read from its beginning again; None: it is not.
        self._seen: set[str] | None = None
        #: Definitions that stand for an entry which was removed, and since when they are known (Unix seconds).
        self._removed: dict[str, tuple[bytes, float]] = {}
        #: The marks of definitions that cannot be read here.
        self._unread: dict[str, int] = {}
        #: Entries of which the last record in the log is a void one.
        self._void: dict[str, None] = {}

    def overdue(self, now: float) -> bool:
        """Return True if a leader that knows what is lost would have written of it by `now` (monotonic seconds)."""
        return bool(self.lost) and now - self._lost_at > PATIENCE

    def seen(self, name: str) -> None:
        """Note that the topic has a definition of this name, readable or not."""
        if self._seen is not None:
            self._seen.add(name)

    def is_void(self, name: str, value: bytes | None) -> bool:
        """Return True if the record that was read next changes nothing (versions.py), and note that it must be
        repaired.
        """
        known = self._seen is None or name in self._seen  # if not, it is not known to be before this record
        current = self._current(name) if known else None
        mark = self._unread.get(name) if known else None
        if mark is None:
            mark = None if current is None else head_of(current).mark
        if mark is None or not is_void(None if value is None else head_of(value), mark):
            self._void.pop(name, None)
            return False
        if current is not None and repairs(value, current):
            self._void[name] = None
        else:
            self._void.pop(name, None)
        return True

    def take_void(self, most: int) -> dict[str, bytes]:
        """Return up to so many definitions that count and that a void record stands behind, as they are to be written
        again.
        """
        taken = list(islice(self._void, most))
        for name in taken:
            del self._void[name]
        found = ((name, self._current(name)) for name in taken)
        return {name: encode_definition(repaired(decode_definition(value))) for name, value in found if value}

    def take_removed(self, most: int, now: float) -> list[str]:
        """Return up to so many entries that were removed a minute before `now` (Unix seconds): no change that began
        before that is still on its way. They are returned again a minute later, if they are still there.
        """
        taken = []
        for name, (value, since) in islice(self._removed.items(), most):
            if now - since < REMOVED_FOR:
                break
            taken.append((name, value))
        for name, value in taken:
            del self._removed[name]
            self._removed[name] = value, now
        return [name for name, _ in taken]

    def is_removed(self, name: str) -> bool:
        """Return True if its definition stands for an entry that was removed."""
        return name in self._removed

    def definition(self, name: str) -> Definition | None:
        """Return the definition of an entry as it was read, None if there is none."""
        value = self._records.get(name)
        return None if value is None else decode_definition(value)

    def _current(self, name: str) -> bytes | None:
        found = self._records.get(name)
        return self._removed[name][0] if found is None and name in self._removed else found

    def unreadable(self, name: str, value: bytes) -> None:
        """Note that the definition which counts cannot be read here."""
        self.forget(name)
        self._unread[name] = head_of(value).mark

    def keep_removed(self, name: str, value: bytes, now: float) -> None:
        """Keep the definition that stands for an entry which was removed, as it was read at ``now`` (Unix seconds)."""
        self.forget(name)
        self._removed[name] = value, now

    def keep(self, name: str, value: bytes) -> None:
        """Keep the definition that was read."""
        self._removed.pop(name, None)
        self._unread.pop(name, None)
        self._records[name] = value
        if name in self.lost:
            del self.lost[name]
            self._lost_at = time.monotonic()

    def forget(self, name: str) -> None:
        """Forget a definition that was removed on purpose."""
        known: tuple[dict[str, Any], ...] = (self._records, self._removed, self._unread, self._void, self.lost)
        for each in known:
            each.pop(name, None)

    def recount(self) -> None:
        """Note what is read from now on: the topic is read from its beginning again."""
        self._seen = set()

    def counted(self, *, torn: bool) -> list[str]:
        """Compare what is known with what the topic holds, which was read to its end since `recount`.

        Return the names of the definitions that were removed while this process did not hear of it. If the topic is
        ``torn``, all that is missing counts as lost instead: `take_lost` returns it.
        """
        seen, self._seen = self._seen, None
        missing = [] if seen is None else [name for name in self._records if name not in seen]
        if seen is not None:
            for each in (self._removed, self._unread, self._void):
                for name in each.keys() - seen:
                    each.pop(name)
        if not missing:
            return []
        shown = ", ".join(printable(name, 60) for name in missing[:SHOWN]) + (", …" if len(missing) > SHOWN else "")
        if not torn:
            logger.warning("schedule removed entries=%d while this beat did not hear of it: %s", len(missing), shown)
            return missing
        self.lost.update(dict.fromkeys(missing))
        self._lost_at = time.monotonic()
        logger.error(
            "schedule lost entries=%d: the schedule topic was deleted or cut, and with it what was put or paused at "
            "runtime; the beat that leads writes back what it knows. Compare `celery neli schedule list`, and remove "
            "what should not be there: %s", len(missing), shown,
        )  # fmt: skip
        return []

    def take_lost(self, most: int) -> dict[str, bytes]:
        """Return up to so many of the definitions that the topic has lost; the caller writes them."""
        taken = {name: self._records[name] for name in islice(self.lost, most)}
        for name in taken:
            del self.lost[name]
        return taken


def defined_at(definition: Definition) -> float:
    """Return when it was first put (Unix seconds), or minus infinity if its oldest changes may have been dropped."""
    changes = definition.changes
    return changes[0].at if 0 < len(changes) < MAX_CHANGES else float("-inf")


def trim(records: dict[str, Any]) -> list[str]:
    """Forget all but the `ORPHANS` newest records of entries that are not here; return the names of the others."""
    names = list(records)[:-ORPHANS]
    for name in names:
        del records[name]
    return names


class Ahead:
    """Judges times by the clock ``moment`` (Unix seconds), and logs those ahead of it as often as ``limit`` allows.

    A forged record, or a leader whose clock was years ahead, must not silence an entry for ever; a clock that was fast
    for a while must not make it run twice. The bounds are in docs/protocol.md ("Slots", S8). One thread at a time.
    """

    def __init__(self, moment: Callable[[], float], limit: LogLimit) -> None:
        self._moment, self._limit = moment, limit

    def begins(self, name: str, since: float) -> float:
        """Return when the entry begins: never before the time from which on it was defined, if that is believed."""
        return 0.0 if since > 0 and self.is_far(name, "since", since, START_AHEAD) else since

    def is_far(self, name: str, field: str, at: float, most: float = FAR_AHEAD) -> bool:
        """Return True if this time is more than ``most`` seconds ahead of the clock, and not believed. Log that, and
        also that an entry waits for a time ahead.
        """
        ahead = at - self._moment()
        if ahead > ASTRAY and self._limit.allows((field, name)):
            logger.warning(
                "schedule: entry=%s %s=%s is %.0f s ahead of this clock: %s", name, field,
                datetime.fromtimestamp(at, timezone.utc).isoformat(), ahead,
                "it is not believed, and the entry runs without it" if ahead > most
                else "the entry does not run before; if a clock was wrong, put the entry again, or pause and resume it",
            )  # fmt: skip
        return ahead > most


class EntryLines:
    """Logs what becomes of entries; ``level`` is that of changes."""

    def __init__(self) -> None:
        self.level = logging.INFO
        self.limit = LogLimit(LOGGED_EVERY, remembered=LOGGED_APART)
        self._refused = LogLimit(REFUSED_EVERY)

    def changed(self, name: str, what: str) -> None:
        """Log what was done to an entry."""
        if not lines.isEnabledFor(self.level):
            return  # nor does it use up the limit of the lines that are shown
        if (suppressed := self.limit.ask((what, name))) is not None:
            more = f" suppressed={suppressed}" if suppressed else ""
            lines.log(self.level, "schedule: entry=%s was %s%s", name, what, more)

    def left_out(self, name: str, why: str) -> None:
        """Log that an entry cannot be run here."""
        if self.limit.allows(name) and any(self._refused.allows(line) for line in range(MANY)):
            lines.error("schedule: entry=%s cannot be read here, and is left out: %s", name, why)

    def hidden(self, name: str) -> None:
        """Log that a definition is not used, because beat_schedule has an entry of that name."""
        if self.limit.allows(("hidden", name)):
            lines.warning("schedule: entry=%s is in beat_schedule: what was put under its name is not used", name)
