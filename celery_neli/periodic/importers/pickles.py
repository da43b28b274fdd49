"""Pickles, read without running what they name; and objects made from them, of classes that are admitted.

`load` describes what a pickle would make, and imports and calls nothing. The opcodes are those of Python's own
unpickler: for each class or function that a pickle names it gets a class of this module, which keeps what it is called
with. `Revival` makes objects of the description, if all of its classes are those that Celery's file has, or trusted.
"""

from __future__ import annotations

import importlib
import io
import pickle
import pickletools
import re
import zoneinfo
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from functools import reduce
from typing import Any
from uuid import UUID

from celery.beat import ScheduleEntry
from celery.schedules import crontab, schedule, solar
from celery.utils.time import LocalTimezone

from celery_neli.schedule.once import once

__all__ = ["ENTRY_CLASS", "Made", "Named", "Revival", "is_path", "load", "parts"]

#: Opcodes that refer to objects by other means than a name: registered extensions, and what the pickle's author keeps.
ELSEWHERE = frozenset(("EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID", "NEXT_BUFFER", "READONLY_BUFFER"))
#: Opcodes whose argument is an index of a list, which Python makes that long.
PLACES = frozenset(("PUT", "BINPUT", "LONG_BINPUT"))
#: Modules that Python 2 has under other names.
RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}


class Made:
    """An object that a pickle would make by calling `of` (a `Named`, or what another call returned) with `args`, and
    then by setting its state and items. None of that is done.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Describe the call; the unpickler makes it in place of what ``cls`` stands for."""
        made = object.__new__(Made)
        made._keep(cls, args, kwargs)
        return made

    def _keep(self, of: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.of, self.args, self.kwargs = of, args, kwargs
        self.state: Any = None
        self.items: list[Any] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Made:
        """Describe a call of this object."""
        made = object.__new__(Made)
        made._keep(self, args, kwargs)
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def append(self, item: Any) -> None:
        """Keep an item."""
        self.items.append(item)

    add = append

    def extend(self, items: Any) -> None:
        """Keep some items."""
        self.items.extend(items)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))


class Named(type):
    """A class or function that a pickle names; `name` is its dotted path. A pickle cannot change it."""

    name: str

    def __new__(cls, name: str) -> Named:
        """Return a class for this dotted path."""
        named = super().__new__(cls, "Made", (Made,), {"__slots__": ()})
        type.__setattr__(named, "name", name)
        return named

    def __init__(cls, name: str) -> None:
        super().__init__(name)

    def __setattr__(cls, name: str, value: Any) -> None:
        raise pickle.UnpicklingError("it changes a class")


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self._named: dict[str, Named] = {}

    def find_class(self, module: str, name: str) -> Any:
        path = f"{RENAMED.get(module, module)}.{name}"
        if path not in self._named:
            self._named[path] = Named(path)
        return self._named[path]


def load(data: bytes) -> Any:
    """Return what is pickled in ``data``: plain values, and a `Made` for anything else. Runs nothing that it names.

    Raises:
        ValueError: it is not a pickle, or refers to something outside itself.
    """
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name in ELSEWHERE:
                raise ValueError(f"the pickle refers to something outside itself ({opcode.name})")
            if opcode.name in PLACES and int(argument or 0) > len(data):
                raise ValueError("the pickle asks for more memory than it can need")
        return _Unpickler(data).load()
    except (ValueError, MemoryError, RecursionError):
        raise
    except Exception as exc:  # noqa: BLE001 - a damaged pickle may raise anything
        raise ValueError(f"it is not a valid pickle: {exc}") from None


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
            left.extend(each)
        elif isinstance(each, dict):
            left.extend(each)
            left.extend(each.values())
        elif isinstance(each, Made):
            left.extend((each.of, each.args, each.kwargs, each.state, each.items))


ENTRY_CLASS = "celery.beat.ScheduleEntry"
_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")


def is_path(text: str) -> bool:
    """Return True if the text may be the dotted path of a class."""
    return _PATH.fullmatch(text) is not None


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
_ADMITTED: Mapping[str, Callable[..., Any]] = {
    ENTRY_CLASS: ScheduleEntry,
    "celery.schedules.schedule": schedule,
    "celery.schedules.crontab": crontab,
    "celery.schedules.solar": solar,
    "celery.utils.time.LocalTimezone": _local,
    "celery_neli.schedule.once.once": once,
    "datetime.date": date,
    "datetime.datetime": datetime,
    "datetime.time": time,
    "datetime.timedelta": timedelta,
    "datetime.timezone": timezone,
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
    "zoneinfo.ZoneInfo": zoneinfo.ZoneInfo,
    "zoneinfo.ZoneInfo._unpickle": lambda key, *_: zoneinfo.ZoneInfo(key),
    "_codecs.encode": _latin1,
    "builtins.bytearray": lambda content=b"", encoding="latin1": bytearray(_latin1(content, encoding)),
    "builtins.bytes": lambda content=b"", encoding="latin1": _latin1(content, encoding),
    "builtins.complex": complex,
    "builtins.frozenset": frozenset,
    "builtins.set": set,
    "collections.OrderedDict": OrderedDict,
    "decimal.Decimal": Decimal,
    "uuid.UUID": UUID,
}
#: Classes whose pickles hold the value in the state, not in the arguments.
_BY_STATE: Mapping[str, Callable[[Any], Any]] = {
    "dateutil.tz.tz.tzoffset": lambda state: _offset(state["_name"], state["_offset"]),
    "uuid.UUID": lambda state: UUID(int=state["int"]),
}
#: A method of a class is pickled as a call of `getattr`.
_GETATTR = "builtins.getattr"
_BOUND = ("zoneinfo.ZoneInfo", "_unpickle")


class Revival:
    """Makes objects of what `load` returned, if all of their classes are admitted.

    ``trust`` has the dotted paths of classes and functions that are admitted besides Celery's own. They are imported,
    and their code runs.
    """

    def __init__(self, trust: frozenset[str] = frozenset()) -> None:
        self._trust = trust
        #: What was made, by the id of the original, which is kept so that no other object gets its id.
        self._done: dict[int, tuple[Any, Any]] = {}

    def refused(self, value: Any) -> str | None:
        """Return the dotted path of a class in ``value`` that is not admitted; None if it may be made."""
        for each in parts(value):
            path = None
            if isinstance(each, Named):
                path = each.name
            elif isinstance(each, Made) and isinstance(each.of, Named) and each.of.name == _GETATTR:
                path = None if _bound(each) in self._trust | _ADMITTED.keys() else _bound(each)
            if path is not None and path != _GETATTR and path not in _ADMITTED and path not in self._trust:
                return path
        return None

    def make(self, value: Any) -> Any:
        """Make the object, which must not be `refused`. Raises what its classes raise."""
        found = self._done.get(id(value))
        if found is not None:
            return found[0]
        made = self._made(value)
        self._done[id(value)] = made, value
        return made

    def _made(self, value: Any) -> Any:
        if isinstance(value, Named):
            return self._function(value.name)
        if isinstance(value, Made):
            return self._call(value)
        if isinstance(value, (list, tuple, set, frozenset)):
            return type(value)(self.make(each) for each in value)
        if isinstance(value, dict):
            return {self.make(key): self.make(each) for key, each in value.items()}
        return value

    def _call(self, made: Made) -> Any:
        if isinstance(made.of, Named) and made.of.name == _GETATTR:
            return self._function(_bound(made))
        of = self.make(made.of)
        args, kwargs = self.make(made.args), self.make(made.kwargs)
        named = made.of.name if isinstance(made.of, Named) else ""
        if named in _BY_STATE and named not in self._trust and made.state is not None:
            return _BY_STATE[named](self.make(made.state))
        found = of(*args, **kwargs) if named in _ADMITTED or not isinstance(of, type) else _instance(of, args, kwargs)
        if named in _ADMITTED and of is not crontab and of is not OrderedDict:
            return found  # its arguments say all of it
        if made.state is not None:
            _set_state(found, self.make(made.state))
        for each in made.items:
            _add(found, self.make(each))
        return found

    def _function(self, path: str) -> Callable[..., Any]:
        if path not in self._trust:
            return _ADMITTED[path]
        module, _, rest = path.rpartition(".")
        names = [rest]
        while True:  # the module's name is shorter if the class is within a class
            try:
                found: Any = importlib.import_module(module)
                found = reduce(getattr, names, found)
            except ModuleNotFoundError as exc:
                if "." not in module or not (exc.name or "").startswith(module):
                    raise
                module, _, rest = module.rpartition(".")
                names.insert(0, rest)
            else:
                return found  # type: ignore[no-any-return]


def _bound(made: Made) -> str:
    """Return the dotted path that a call of `getattr` names."""
    if len(made.args) == 2 and isinstance(made.args[0], Named) and isinstance(made.args[1], str) and not made.kwargs:
        return f"{made.args[0].name}.{made.args[1]}"
    return _GETATTR + "(…)"


def _instance(of: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Make an instance by `__new__` alone, or by calling a class that defines how it is pickled."""
    kind: Any = of
    plain = kind.__reduce__ is object.__reduce__ and kind.__reduce_ex__ is object.__reduce_ex__
    return of.__new__(of, *args, **kwargs) if plain else of(*args, **kwargs)


def _set_state(found: Any, state: Any) -> None:
    if hasattr(found, "__setstate__"):
        found.__setstate__(state)
        return
    values, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
    for name, value in {**(values or {}), **(slots or {})}.items():
        object.__setattr__(found, name, value)


def _add(found: Any, item: Any) -> None:
    if hasattr(found, "keys"):
        found[item[0]] = item[1]
    elif hasattr(found, "add"):
        found.add(item)
    else:
        found.append(item)
