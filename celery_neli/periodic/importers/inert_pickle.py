"""Read a pickle without running anything: describe what it would make, and import and call nothing.

The opcodes are those of Python's own unpickler. For each class or function that a pickle names it gets a class of this
module, which keeps whatever it is called with.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Iterator
from typing import Any

__all__ = ["Made", "Named", "load", "parts"]

#: Opcodes that reach for objects elsewhere than by a name: registered extensions, and what the pickle's author kept.
ELSEWHERE = frozenset(("EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID", "NEXT_BUFFER", "READONLY_BUFFER"))
#: Opcodes whose argument is an index of a list, which Python makes as long as that.
PLACES = frozenset(("PUT", "BINPUT", "LONG_BINPUT"))
#: Modules that Python 2 had under other names.
RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}


class Made:
    """What a pickle would make by calling `of` (a `Named`, or what another call returned) with `args`; then its state
    and items. None of that is done.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """The unpickler calls this instead of what `cls` stands for."""
        made = object.__new__(Made)
        made._keep(cls, args, kwargs)
        return made

    def _keep(self, of: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.of, self.args, self.kwargs = of, args, kwargs
        self.state: Any = None
        self.items: list[Any] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Made:
        """Describe a call of what is made."""
        made = object.__new__(Made)
        made._keep(self, args, kwargs)
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def append(self, item: Any) -> None:
        """As a list's."""
        self.items.append(item)

    add = append

    def extend(self, items: Any) -> None:
        """As a list's."""
        self.items.extend(items)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))


class Named(type):
    """A class or function that a pickle names; `name` is its dotted path. Nothing of it can be changed."""

    name: str

    def __new__(cls, name: str) -> Named:
        """Return the class for this dotted path."""
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
    """Return what is pickled in ``data``: plain values, and a `Made` for all else. Runs nothing that it names.

    :raises ValueError: it is no pickle, or refers to something outside itself.
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
