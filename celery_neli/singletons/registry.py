"""Which singletons an app has: what `@singleton` was told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from celery import _state

from celery_neli.exceptions import ConfigurationError


@dataclass(frozen=True, slots=True, kw_only=True)
class Singleton:
    """One registered function. `name` is `module:qualified.name`; `role` None stands for the only one; `path` is the
    `sys.path` by which its module was being imported, which may be more than there is later (see `isolated`).
    """

    function: Callable[[], Any]
    name: str
    role: str | None = None
    every: float = 0.1
    isolate: bool = False
    setup: Callable[[], Any] | None = None
    teardown: Callable[[], Any] | None = None
    max_failures: int = 10
    path: tuple[str, ...] = ()


def add(app: Any, singleton: Singleton) -> None:
    """Register. One of the same name and role is replaced: its module was loaded again. A lambda's name is not its
    own.
    """
    of_app: list[Singleton] = vars(app).setdefault("neli_singletons", [])  # `worker/control.py` reads it
    if "<" not in singleton.name:
        of_app[:] = [each for each in of_app if (each.name, each.role) != (singleton.name, singleton.role)]
    of_app.append(singleton)


def registered(app: Any) -> tuple[Singleton, ...]:
    """The singletons of `app`, in the order of their registration."""
    return tuple(getattr(app, "neli_singletons", ()))


def find(name: str, role: str | None) -> tuple[Any, Singleton]:
    """The registration of this name and role, with its app. Raises `ConfigurationError`."""
    for app in _state._get_active_apps():  # noqa: SLF001 - all that there are
        for each in registered(app):
            if (each.name, each.role) == (name, role):
                return app, each
    raise ConfigurationError(
        f"@singleton(isolate=True) on {name}: an import of its module does not register it; "
        "apply the decorator in that module, where it runs whenever the module is imported"
    )
