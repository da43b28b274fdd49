"""The members of a beat election, by their notes; they log an error if they are of different apps.

Two apps in one group elect one leader, which sends the schedule of its own app alone: without this error, the schedule
of the other app would stop in silence. The leader repeats it; a standby, in whose log the users of the other app look,
logs it once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Final

from celery_neli.exceptions import RecordError
from celery_neli.logs import LogLimit, escaping
from celery_neli.schedule_topic.codec import MEMBER, Kind, Note, apps_of, decode_note, living, sharing

__all__ = ["MemberNotes"]

#: Seconds until the same line may be logged again.
REPEAT_AFTER: Final = 60.0
#: Seconds for which a standby must know of another app: while it reads the topic, a member may only seem to be there.
SETTLE: Final = 5.0
#: Members that are remembered; a flood of forged notes must not fill the memory.
MOST: Final = 1_000

logger = escaping(logging.getLogger(__name__))


class MemberNotes:
    """What the notes of the other members say. Belongs to the thread that ticks; waits for nothing."""

    def __init__(self, name: str, app: str | None, group: str, *, clock: Callable[[], float] = time.time) -> None:
        """`name` and `app` are those of this member; `clock` returns Unix seconds."""
        self._name, self._app, self._group, self._clock = name, app, group, clock
        self._notes: dict[str, Note] = {}
        self._strangers = False
        self._standby_logged = False
        self._since: float | None = None  # when this member found another app, while it stands by
        self._limit = LogLimit(REPEAT_AFTER)

    def read(self, changes: Mapping[tuple[Kind, str], bytes | None]) -> None:
        """Take over the notes among records that were read; None deletes one. A note that cannot be read is ignored."""
        for (kind, name), value in changes.items():
            if kind != MEMBER:
                continue
            self._notes.pop(name, None)
            if value is None:
                continue
            try:
                self._notes[name] = decode_note(value)
            except RecordError:
                continue  # of a newer release or of a stranger
            if len(self._notes) > MOST:
                del self._notes[next(iter(self._notes))]
        self._strangers = any(note.app not in (None, self._app) for note in self._notes.values())

    def warn(self, *, leads: bool) -> None:
        """Log an error if members of another app are alive: once a minute at most while this member leads, and once in
        the process while it stands by. Called each turn.
        """
        if self._app is None or not self._strangers or (self._standby_logged and not leads):
            self._since = None
            return
        now = self._clock()
        others = {name: note for name, note in self._notes.items() if name != self._name}
        apps = {self._app: [self._name]}
        for app, names in apps_of(living(others, None, now)).items():
            apps.setdefault(app, []).extend(names)
        told = sharing(apps, self._group)
        if told is None:
            self._since = None
        elif leads:
            if self._limit.allows("apps"):
                logger.error("beat: app=%s leads group=%s: %s", self._app, self._group, told)
        elif self._since is None:
            self._since = now
        elif now - self._since >= SETTLE:
            self._standby_logged = True
            logger.error("beat: app=%s stands by in group=%s: %s", self._app, self._group, told)
