"""A schedule that knows what was changed in it: nobody has to compare a hundred thousand entries to find out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Entries"]

_MISSING = object()


class Entries(dict[str, Any]):
    """Entries by name: a dict that keeps the names that were set or deleted until they are asked for (`changes`).

    It begins to with the first call of that: before, whoever asks has to look at every entry anyway. Behaves as a dict
    in every other way; a copy and a pickle of it are plain dicts. An entry that is changed in place is not seen: tell
    with `note`.
    """

    __slots__ = ("_changed", "_watched")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._changed: dict[str, None] = {}
        self._watched = False

    def note(self, names: Iterable[str]) -> None:
        """These entries were changed in place."""
        if self._watched:
            self._changed.update(dict.fromkeys(names))

    def settle(self, name: str) -> None:
        """The last change of this entry needs no attention."""
        self._changed.pop(name, None)

    def changes(self) -> dict[str, None]:
        """The names that were set, deleted or noted since the last call, in order; they are forgotten."""
        self._watched = True
        changed, self._changed = self._changed, {}
        return changed

    @property
    def changed(self) -> bool:
        """Whether `changes` would return any."""
        return bool(self._changed)

    def __setitem__(self, name: str, entry: Any) -> None:
        _name(entry, name)
        super().__setitem__(name, entry)
        if self._watched:
            self._changed[name] = None

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name)
        self.note((name,))

    def setdefault(self, name: str, default: Any = None) -> Any:
        """As a dict's."""
        if name not in self:
            self[name] = default
        return self[name]

    def pop(self, name: str, default: Any = _MISSING) -> Any:
        """As a dict's."""
        if name in self:
            self.note((name,))
            return super().pop(name)
        if default is _MISSING:
            raise KeyError(name)
        return default

    def popitem(self) -> tuple[str, Any]:
        """As a dict's."""
        name, entry = super().popitem()
        self.note((name,))
        return name, entry

    def clear(self) -> None:
        """As a dict's."""
        self.note(self)
        super().clear()

    def update(self, *args: Any, **kwargs: Any) -> None:
        """As a dict's."""
        new = dict(*args, **kwargs)
        for name, entry in new.items():
            _name(entry, name)
        super().update(new)
        self.note(new)

    def __ior__(self, other: Any) -> Entries:  # type: ignore[misc,override]
        self.update(other)
        return self

    def copy(self) -> dict[str, Any]:
        """A plain dict."""
        return dict(self)

    __copy__ = copy

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


def _name(entry: Any, name: str) -> None:
    """Give the entry the name that it is set under: a tick advances an entry by its own, and would find this one due
    for ever.
    """
    if getattr(entry, "name", name) != name:
        entry.name = name
