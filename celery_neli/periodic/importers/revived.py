"""Make objects from a pickle that was read inert: of the classes that Celery's file has, and of trusted ones."""

from __future__ import annotations

import importlib
import re
import zoneinfo
from collections import OrderedDict
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from functools import reduce
from typing import Any
from uuid import UUID

from celery.beat import ScheduleEntry
from celery.schedules import crontab, schedule, solar
from celery.utils.time import LocalTimezone

from celery_neli.periodic.importers.inert_pickle import Made, Named, parts
from celery_neli.schedule.once import once

__all__ = ["ENTRY_CLASS", "Revival", "is_path"]

ENTRY_CLASS = "celery.beat.ScheduleEntry"
_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")


def is_path(text: str) -> bool:
    """Return True if it may be the dotted path of a class."""
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


def _nothing(*args: Any) -> None:
    return None


def _utc() -> tzinfo:
    return timezone.utc


def _local(*args: Any) -> tzinfo:
    zone: tzinfo = LocalTimezone()
    return zone


#: What Celery's scheduler writes into its file, and plain values that arguments may hold. None of it runs other code.
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
    "pytz._UTC": _utc,
    "pytz._p": _of_pytz,
    "pytz.FixedOffset": lambda minutes: timezone(timedelta(minutes=minutes)),
    "dateutil.tz.tz.tzutc": _utc,
    "dateutil.tz.tz.tzlocal": _local,
    "dateutil.tz.tz.tzoffset": _offset,
    "dateutil.tz.tz.tzfile": _of_file,
    "dateutil.tz.tz._ttinfo": _nothing,
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
    """Makes objects of what `inert_pickle.load` returned, if all of their classes are admitted.

    ``trust``: dotted paths of classes and functions that are admitted besides Celery's own; they are imported, and
    their code runs.
    """

    def __init__(self, trust: frozenset[str] = frozenset()) -> None:
        self._trust = trust
        #: By id: what was made, and the original, so that no other object gets its id.
        self._done: dict[int, tuple[Any, Any]] = {}

    def refused(self, value: Any) -> str | None:
        """Return the dotted path of something in ``value`` that is not admitted; None if it may be made."""
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
        """Make the object, which must not be `refused`. Raises whatever its classes raise."""
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
            return found  # its arguments are all of it
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
        while True:  # of a class within a class, the module's name is shorter
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
