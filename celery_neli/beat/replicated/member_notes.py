"""What the members of a beat election write of themselves, and read of each other.

Each writes the fingerprint of its `beat_schedule`, which `celery neli status` compares, and the name of its app. Two
apps in one group elect one leader, which sends the schedule of its own app alone: without the error that is logged
here, the schedule of the other app would stop in silence. The leader repeats it; a standby, in whose log the users of
the other app look, logs it once.

The fingerprint is the same in every process that has the same entries. It is a hash of text like that of `repr`, but
for the order of sets and dicts, addresses of objects, and functions, which differ between processes or releases.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from enum import Enum
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, Final

from celery import Celery
from celery.schedules import crontab, schedule

from celery_neli.exceptions import RecordError
from celery_neli.logs import LogLimit, escaping
from celery_neli.schedule_topic.codec import MEMBER, Kind, Note, decode_note
from celery_neli.schedule_topic.notes import living, names_by, sharing
from celery_neli.schedule_topic.versions import Chain

#: Seconds until the same line may be logged again.
REPEAT_AFTER: Final = 60.0
#: Seconds for which a standby must know of another app: while it reads the topic, a member may only seem to be there.
SETTLE: Final = 5.0
#: Members that are remembered; a flood of forged notes must not fill the memory.
MOST: Final = 1_000
#: Levels of nested values that are followed; values that refer to themselves end there.
DEEPEST: Final = 50
#: How many of these levels an object counts for: its attributes may lead far away from the entry.
OBJECT: Final = 20
_ADDRESS = re.compile(r" at 0x[0-9A-Fa-f]+")
_FREQUENCY = re.compile(r"<freq: ([0-9.]+) (day|hour|minute|second)s?>")
_SECONDS = {"day": 86_400, "hour": 3_600, "minute": 60, "second": 1}
#: In the order of `repr(crontab)`.
_CRONTAB = ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")

logger = escaping(logging.getLogger(__name__))


class MemberNotes:
    """What the notes of the other members say. Belongs to the thread that ticks; waits for nothing."""

    def __init__(self, name: str, app: str | None, group: str, *, clock: Callable[[], float] = time.time) -> None:
        """`name` and `app` are those of this member; `clock` returns Unix seconds."""
        self._name, self._app, self._group, self._clock = name, app, group, clock
        #: The notes of the others, and whether one of them is of another app.
        self._notes: dict[str, Note] = {}
        self._strangers = False
        self._standby_logged = False
        self._since: float | None = None  # when this member found another app, while it stands by
        self._limit = LogLimit(REPEAT_AFTER)

    def read(self, changes: Mapping[tuple[Kind, str], bytes | Chain | None]) -> None:
        """Take over the notes among records that were read; None deletes one. A note that cannot be read is ignored."""
        for (kind, name), value in changes.items():
            if kind != MEMBER or name == self._name:
                continue
            self._notes.pop(name, None)
            with contextlib.suppress(RecordError):  # of a newer release or of a stranger
                if isinstance(value, bytes):
                    self._notes[name] = decode_note(value)
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
        apps = {self._app: [self._name]}
        for app, names in names_by(living(self._notes, None, now), "app").items():
            apps.setdefault(app, []).extend(names)
        apps_shared = sharing(apps, self._group)
        if apps_shared is None:
            self._since = None
        elif leads:
            if self._limit.allows("apps"):
                logger.error("beat: app=%s leads group=%s: %s", self._app, self._group, apps_shared)
        elif self._since is None:
            self._since = now
        elif now - self._since >= SETTLE:
            self._standby_logged = True
            logger.error("beat: app=%s stands by in group=%s: %s", self._app, self._group, apps_shared)


def fingerprint(entries: Iterable[Any]) -> str:
    """Return eight hex digits that differ where the entries of beat_schedule differ, in whatever order they are."""
    digest = 0
    for entry in entries:
        text = canonical((entry.name, entry.task, entry.schedule, entry.args, entry.kwargs, entry.options))
        digest ^= int.from_bytes(hashlib.blake2s(text.encode("utf-8", "surrogatepass"), digest_size=4).digest(), "big")
    return f"{digest:08x}"


def canonical(value: Any, depth: int = 0) -> str:
    """Return text that equals that of any equal value, in whatever process. Mostly, it is the `repr`."""
    if depth > DEEPEST:
        return "..."
    inside = functools.partial(canonical, depth=depth + 1)
    if type(value) is tuple:
        return f"({', '.join(map(inside, value))}{',' if len(value) == 1 else ''})"
    if type(value) is list:
        return f"[{', '.join(map(inside, value))}]"
    if isinstance(value, Enum):
        return f"<{type(value).__name__}.{value.name}: {inside(value.value)}>"
    if isinstance(value, (FunctionType, BuiltinFunctionType, MethodType, type)):
        return f"<{value.__module__}.{value.__qualname__}>"
    if isinstance(value, functools.partial):
        return f"partial{inside((value.func, value.args, value.keywords))}"
    if isinstance(value, Mapping):
        pairs = sorted((inside(key), inside(each)) for key, each in value.items())
        return _named(value, dict, f"{{{', '.join(f'{key}: {each}' for key, each in pairs)}}}")
    if isinstance(value, AbstractSet):
        members = ", ".join(sorted(map(inside, value)))
        return _named(value, set, f"{{{members}}}" if members else "set()")
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, memoryview, range)):
        return f"{type(value).__name__}[{', '.join(map(inside, value))}]"
    if isinstance(value, crontab):
        return _of_crontab(value, inside)
    if type(value) is schedule:
        return _of_interval(value)
    if isinstance(value, Celery):
        return f"<Celery {value.main}>"
    return _of_object(value, functools.partial(canonical, depth=depth + OBJECT))


def _named(value: Any, plain: type, text: str) -> str:
    return text if type(value) is plain else f"{type(value).__name__}({text})"


def _of_crontab(value: Any, inside: Callable[[Any], str]) -> str:
    """Return the `repr` of Celery 5.7, with sets in order, and with the attributes that a subclass adds."""
    fields = [getattr(value, f"_orig_{name}") for name in _CRONTAB]
    shown = " ".join(each if isinstance(each, str) else inside(each) for each in fields)
    text = f"<crontab: {shown} (m/h/dM/MY/d)>"
    if type(value) is crontab:
        return text
    added = {name: each for name, each in vars(value).items() if name not in vars(crontab())}
    return f"<{type(value).__qualname__} {text} {inside(added)}>"


def _of_interval(value: Any) -> str:
    """Return `repr(schedule)`, which rounds, and add the exact seconds where they differ."""
    text, seconds = repr(value), value.run_every.total_seconds()
    found = _FREQUENCY.fullmatch(text)
    exact = found is not None and float(found[1]) * _SECONDS[found[2]] == seconds
    return text + ("" if exact else f" {seconds!r}") + (" relative" if value.relative else "")


def _of_object(value: Any, inside: Callable[[Any], str]) -> str:
    """Return its `repr`, or its attributes if the `repr` shows an address or may show a set."""
    try:
        text = repr(value)
    except Exception as exc:  # noqa: BLE001 - of a user's class; it must not cost the whole fingerprint
        text = f"<{type(value).__qualname__} without a repr: {type(exc).__name__}>"
    if ("{" not in text and _ADDRESS.search(text) is None) or isinstance(value, (str, bytes)):
        return text
    attributes = dict(getattr(value, "__dict__", {}))
    for cls in type(value).__mro__:
        slots = vars(cls).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            attributes[name] = getattr(value, name, None)
    if not attributes:
        return _ADDRESS.sub("", text)
    return f"<{type(value).__module__}.{type(value).__qualname__} {inside(attributes)}>"
