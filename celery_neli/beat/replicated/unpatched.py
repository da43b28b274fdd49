"""Tell whether a function of Celery's or kombu's is as it was installed: neither overridden nor patched."""

from __future__ import annotations

from types import FunctionType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["is_unpatched", "source_of"]


def source_of(module: ModuleType) -> str:
    """Return the file that the module's functions were compiled from."""
    for value in vars(module).values():
        if type(value) is FunctionType and value.__module__ == module.__name__ and not hasattr(value, "__wrapped__"):
            return value.__code__.co_filename
    return str(module.__file__)


def is_unpatched(owner: Any, name: str, source: str) -> bool:
    """Return True if ``owner.name`` is a function, or a method, written in the file ``source``.

    False for a wrapper, although it copies the name, the module or even the code of what it wraps (functools, wrapt:
    Sentry, Datadog, New Relic, mocks).
    """
    found = getattr(owner, name, None)
    function = getattr(found, "__func__", found)
    return type(function) is FunctionType and function.__code__.co_filename == source
