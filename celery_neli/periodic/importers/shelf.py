"""What PersistentScheduler keeps in its file (`celerybeat-schedule`), a shelf of pickles, read from a copy of it.

`load` describes what a pickle would make, and imports and calls nothing. The opcodes are those of Python's own
unpickler: for each class or function that a pickle names it gets a class of this module, which keeps what it is called
with. `Revival` makes objects of the description, if all of its classes are those that Celery's file has, or trusted.
`read` asks both for the entries of the file.
"""

from __future__ import annotations

import dbm
import io
import pickle
import pickletools
import pkgutil
import re
import shutil
import tempfile
import zoneinfo
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

from celery.beat import ScheduleEntry
from celery.schedules import crontab, schedule, solar
from celery.utils.time import LocalTimezone

from celery_neli.exceptions import ConfigurationError, NeliError
from celery_neli.periodic.importers import Found, Source, found_or_left_out, seconds
from celery_neli.printable import printable
from celery_neli.schedule.cron import cron
from celery_neli.schedule.slots import once
from celery_neli.schedule_topic.values import MAX_INT, shown

SUFFIXES = ("", ".db", ".dat", ".dir", ".bak", ".pag", "-wal", "-journal")  # what the kinds of dbm append to the name
ATTEMPTS = 3  # attempts, because a copy that was made while a beat wrote the file may be torn
MOST = 1 << 28  # bytes, more than any schedule has
ENTRIES = b"entries"
WARNING = "a beat that runs writes its file every few minutes: stop it first, for its last runs are in no file yet"
#: Opcodes that refer to objects by other means than a name: registered extensions, and what the pickle's author keeps.
ELSEWHERE = frozenset(("EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID", "NEXT_BUFFER", "READONLY_BUFFER"))
#: Opcodes whose argument is an index of a list, which Python makes that long.
PLACES = frozenset(("PUT", "BINPUT", "LONG_BINPUT"))
RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # modules that Python 2 has under other names


@dataclass(eq=False, repr=False)
class Made:
    """An object that a pickle would make by calling `of` (a `Named`, or what another call returned) with `args`, or as
    a `bare` instance of it, and then by setting its state and items. None of that is done.
    """

    of: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    bare: bool = False
    state: Any = None
    items: list[Any] = field(default_factory=list)

    def __call__(self, *args: Any, **kwargs: Any) -> Made:
        """Describe a call of this object."""
        return Made(self, args, kwargs)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def append(self, item: Any) -> None:
        """Keep an item."""
        self.items.append(item)

    add = append

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))


class Named(type):
    """A class or function that a pickle names; `name` is its dotted path. A pickle cannot change it."""

    name: str

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        """Describe a call; one of `getattr`, by which methods of classes are pickled, is what it names."""
        if cls.name != _GETATTR:
            return Made(cls, args, kwargs)
        if len(args) == 2 and isinstance(args[0], Named) and isinstance(args[1], str) and not kwargs:
            return _named(f"{args[0].name}.{args[1]}")
        return _named(_GETATTR + "(…)")

    def __setattr__(cls, name: str, value: Any) -> None:
        raise pickle.UnpicklingError("it changes a class")


def _named(path: str) -> Named:
    def make(cls: Any, *args: Any, **kwargs: Any) -> Made:
        return Made(cls, args, kwargs, bare=True)

    return Named("Named", (), {"__slots__": (), "__new__": make, "name": path})


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _named(f"{RENAMED.get(module, module)}.{name}")


def load(data: bytes) -> Any:
    """Return what is pickled in ``data``: plain values, and a `Made` for anything else. Runs nothing that it names, and
    raises anything if it is not a pickle, or refers to something outside itself.
    """
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in ELSEWHERE:
            raise ValueError(f"the pickle refers to something outside itself ({opcode.name})")
        if opcode.name in PLACES and int(argument or 0) > len(data):
            raise ValueError("the pickle asks for more memory than it can need")
    return _Unpickler(io.BytesIO(data)).load()


def parts(value: Any) -> Iterator[Any]:
    """Yield ``value`` and all that is in it, each object once, however deep."""
    seen: set[int] = set()
    left = [value]
    while left:
        each = left.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        if isinstance(each, (list, tuple, set, frozenset)):
            left += each
        elif isinstance(each, dict):
            left += (*each, *each.values())
        elif isinstance(each, Made):
            left += (each.of, each.args, each.kwargs, each.state, each.items)


_GETATTR = "builtins.getattr"
ENTRY_CLASS = "celery.beat.ScheduleEntry"


def _latin1(content: Any, encoding: Any) -> bytes:
    """Return bytes, which the older protocols of pickle encode as text."""
    return bytes(content.encode("latin1") if isinstance(content, str) else memoryview(content))


def _of_pytz(*args: Any) -> tzinfo:
    """Return a fixed offset for a zone of pytz that has one: pytz keeps the offset of the time in its zone."""
    return timezone(timedelta(seconds=args[1])) if len(args) > 1 else zoneinfo.ZoneInfo(args[0])


def _of_file(*args: Any) -> tzinfo:
    """Return the zone whose file's path dateutil keeps."""
    names = [each.rpartition("zoneinfo/")[2] for each in args if isinstance(each, str)]
    return _local() if names[0].endswith("localtime") else zoneinfo.ZoneInfo(names[0])


def _offset(name: Any = None, offset: Any = 0) -> tzinfo:
    return timezone(offset if isinstance(offset, timedelta) else timedelta(seconds=offset))


def _local(*args: Any) -> tzinfo:
    zone: tzinfo = LocalTimezone()
    return zone


#: What Celery's scheduler writes to its file, and plain values that arguments may hold. None of it runs other code.
_PLAIN: tuple[Any, ...] = (
    *(schedule, crontab, cron, solar, once, date, datetime, time, timedelta, timezone, zoneinfo.ZoneInfo),
    *(complex, frozenset, set, OrderedDict, Decimal, UUID),
)
_ADMITTED: Mapping[str, Callable[..., Any]] = {
    ENTRY_CLASS: ScheduleEntry,
    **{f"{kind.__module__}.{kind.__qualname__}": kind for kind in _PLAIN},
    "celery.utils.time.LocalTimezone": _local,
    "pytz._UTC": lambda: timezone.utc,
    "pytz._p": _of_pytz,
    "pytz.FixedOffset": lambda minutes: timezone(timedelta(minutes=minutes)),
    "dateutil.tz.tz.tzutc": lambda: timezone.utc,
    "dateutil.tz.tz.tzlocal": _local,
    "dateutil.tz.tz.tzoffset": _offset,
    "dateutil.tz.tz.tzfile": _of_file,
    "dateutil.tz.tz._ttinfo": lambda *_: None,
    "dateutil.tz._tzfile._unpickle": _of_file,
    "dateutil.tz._tzfile.tzfile": _of_file,
    "zoneinfo.ZoneInfo._unpickle": lambda key, *_: zoneinfo.ZoneInfo(key),
    "_codecs.encode": _latin1,
    "builtins.bytearray": lambda content=b"", encoding="latin1": bytearray(_latin1(content, encoding)),
    "builtins.bytes": lambda content=b"", encoding="latin1": _latin1(content, encoding),
}
#: Classes whose pickles hold the value in the state, not in the arguments.
_BY_STATE: Mapping[str, Callable[[Any], Any]] = {
    "dateutil.tz.tz.tzoffset": lambda state: _offset(state["_name"], state["_offset"]),
    "uuid.UUID": lambda state: UUID(int=state["int"]),
}


class Revival:
    """Makes objects of what `load` returned, if all of their classes are admitted.

    ``trust`` has the dotted paths of classes and functions that are admitted besides Celery's own. They are imported,
    and their code runs.
    """

    def __init__(self, trust: frozenset[str] = frozenset()) -> None:
        self._admitted = trust | _ADMITTED.keys()
        #: What was made, by the id of the original, which is kept so that no other object gets its id.
        self._done: dict[int, tuple[Any, Any]] = {}

    def refused(self, value: Any) -> str | None:
        """Return the dotted path of a class in ``value`` that is not admitted; None if it may be made."""
        paths = (each.name for each in parts(value) if isinstance(each, Named))
        return next((path for path in paths if path not in self._admitted), None)

    def make(self, value: Any) -> Any:
        """Make the object, which must not be `refused`. Raises what its classes raise."""
        if id(value) not in self._done:
            self._done[id(value)] = self._made(value), value
        return self._done[id(value)][0]

    def _made(self, value: Any) -> Any:
        if isinstance(value, Named):
            return _ADMITTED.get(value.name) or pkgutil.resolve_name(value.name)
        if isinstance(value, Made):
            return self._call(value)
        if isinstance(value, (list, tuple, set, frozenset)):
            return type(value)(map(self.make, value))
        if isinstance(value, dict):
            return {self.make(key): self.make(each) for key, each in value.items()}
        return value

    def _call(self, made: Made) -> Any:
        of, args, kwargs = map(self.make, (made.of, made.args, made.kwargs))
        path = made.of.name if isinstance(made.of, Named) else ""
        if path in _BY_STATE and made.state is not None:
            return _BY_STATE[path](self.make(made.state))
        if path in _ADMITTED:
            found = of(*args, **kwargs)  # its arguments say all of it
        else:
            found = of.__new__(of, *args, **kwargs) if made.bare else of(*args, **kwargs)
            if made.state is not None:
                _set_state(found, self.make(made.state))
        for each in map(self.make, made.items):
            if hasattr(found, "keys"):
                found[each[0]] = each[1]
            else:
                (found.add if hasattr(found, "add") else found.append)(each)
        return found


def _set_state(found: Any, state: Any) -> None:
    if hasattr(found, "__setstate__"):
        found.__setstate__(state)
        return
    values, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
    for name, value in {**(values or {}), **(slots or {})}.items():
        object.__setattr__(found, name, value)


def read(app: Any, path: Path, *, trust: Collection[str] = ()) -> Source:
    """Return all entries in the file. It is copied first, so a beat that has it open is not disturbed.

    The file is a shelf of pickles, which would run code when they are unpickled. They are read as a description
    (`load`). An entry that holds anything but Celery's schedules, datetimes and plain values is left out, unless its
    class is in ``trust`` (dotted paths): such classes are imported and called. Raises `NeliError` if there is no such
    file, or it is not a file of Celery's.
    """
    for name in trust:
        if re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", name) is None:
            raise ConfigurationError(
                f"trust = {printable(name)!r}: give the dotted path of a class: shop.schedules.Tides"
            )
    files = [found for suffix in SUFFIXES if (found := path.with_name(path.name + suffix)).is_file()]
    if not files:
        raise NeliError(f"there is no file {path}: give the path that celery beat has as its --schedule")
    error = Exception()
    for _ in range(ATTEMPTS):
        try:
            entries = _entries(path.name, files)
            break
        except Exception as exc:  # noqa: BLE001 - a dbm and a pickle may raise anything
            error = exc
    else:
        why = printable(str(error) or repr(error))
        raise NeliError(f"{path} cannot be read as a schedule of celery beat: {why}") from None
    revival = Revival(frozenset(trust))
    rows = [
        found_or_left_out(
            key if isinstance(key, str) else f"an entry whose name is not text ({type(key).__name__})",
            partial(_found, revival, key, value),
        )
        for key, value in entries.items()
    ]
    return Source(what=path.name, entries=sorted(rows, key=lambda each: each.name), mirrors=True, warning=WARNING)


def _entries(name: str, files: list[Path]) -> dict[Any, Any]:
    if sum(each.stat().st_size for each in files) > MOST:
        raise LookupError(f"it has more than {MOST >> 20} MiB")
    with tempfile.TemporaryDirectory(prefix="celery-neli-") as directory:
        for each in files:
            shutil.copyfile(each, Path(directory) / each.name)
        with dbm.open(str(Path(directory) / name), "r") as store:
            if ENTRIES not in store:
                raise LookupError("it holds no entries; a beat that has it open may not have written it yet: stop it")
            entries = load(store[ENTRIES])
    if not isinstance(entries, dict):
        raise LookupError("what it holds as entries is not a dict")
    return entries


def _found(revival: Revival, name: Any, value: Any) -> Found:
    if not isinstance(name, str):
        raise NeliError("its name is not text")
    if not isinstance(value, Made):
        raise NeliError(f"is not an entry of a schedule but a {type(value).__name__}")
    path = revival.refused(value)
    if path is not None:
        raise NeliError(f"holds {printable(path)}, whose code would run: allow it by --trust {printable(path)}")
    if isinstance(value.of, Named) and value.of.name == ENTRY_CLASS:
        fields = dict(zip(("name", "task", "last_run_at", "total_run_count"), value.args, strict=False), **value.kwargs)
        task, runs = fields.get("task"), fields.get("total_run_count")
        last = revival.make(fields.get("last_run_at"))
    else:
        entry = revival.make(value)
        if not isinstance(entry, ScheduleEntry):
            raise NeliError(f"is not an entry of a schedule but a {printable(type(entry).__name__)}")
        task, runs, last = entry.task, entry.total_run_count, entry.last_run_at
    if not isinstance(last, (datetime, type(None))):
        raise NeliError(f"cannot be read: last_run_at = {shown(last)}: it must be a datetime")
    if type(runs or 0) is not int or not 0 <= (runs or 0) <= MAX_INT:
        raise NeliError(f"cannot be read: total_run_count = {shown(runs)}: it must be an integer from 0 on")
    return Found(name=name, task=task, schedule=None, last=seconds(last), runs=runs or 0)
