"""Whether code of Celery's or kombu's is what it was when it was installed: not overridden, not patched."""

from __future__ import annotations

from types import FunctionType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["is_genuine", "source_of"]


def source_of(module: ModuleType) -> str:
    """The file that the module's functions were compiled from."""
    for value in vars(module).values():
        if type(value) is FunctionType and value.__module__ == module.__name__ and not hasattr(value, "__wrapped__"):
            return value.__code__.co_filename
    return str(module.__file__)


def is_genuine(owner: Any, name: str, source: str) -> bool:
    """Whether ``owner.name`` is a function, or a method, written in the file ``source``.

    A wrapper that copies the name, the module or even the code of what it wraps (functools, wrapt: Sentry, Datadog, New
    Relic, mocks) is none.
    """
    found = getattr(owner, name, None)
    function = getattr(found, "__func__", found)
    return type(function) is FunctionType and function.__code__.co_filename == source
