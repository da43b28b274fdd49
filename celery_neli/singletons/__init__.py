"""`@singleton`: a function that one worker of the fleet calls again and again, while it leads a role.

    @celery_neli.singleton(app, every=1.0)
    def relay() -> None:
        ...

Importing the module only registers the function. A worker that has joined the election runs it, in a thread of its main
process for each singleton (`runner`), or with `isolate=True` in a process of its own (`session`). Beats, children of a
pool, web processes and commands do not.

A *session* is a time in which this worker leads the role without a break. `setup` runs before its first run of the
function, and again until it returns once; `teardown` runs after the last, if `setup` had returned. Right before each
call the lease is checked (R3 of docs/protocol.md), so nothing starts once the role is lost.

A handover waits for the run and for `teardown`, for `neli_drain_timeout` at most, while heartbeats go on. At a fence,
a thread learns from `still_leader()` that the lease is gone, and a process is terminated (SIGTERM, then SIGKILL 2 s
later; it misses its `teardown`). The same happens to a run that outlasts `neli_drain_timeout`. A thread cannot be
stopped from outside: it is abandoned when the worker exits. Runs in one process never overlap.

After `max_failures` in a row the worker resigns the role, with its tasks and its sound singletons. So that workers with
the same fault do not pass it to and fro, this worker's singleton then rests: 10 s, doubled each time in a row without
one run that returned, up to 5 min. If the worker leads the role in that time, it does the role's other work.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import celery
from celery import Celery, _state
from celery.local import Proxy

from celery_neli.exceptions import ConfigurationError

F = TypeVar("F", bound=Callable[[], Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Singleton:
    """One registered function. `name` is `module:qualified.name`; `role` None stands for the only one; `path` is the
    `sys.path` by which its module was imported, which may be more than there is later.
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


def registered(app: Any) -> tuple[Singleton, ...]:
    """Return the singletons of `app`, in the order of their registration."""
    return tuple(getattr(app, "neli_singletons", ()))


def find(name: str, role: str | None) -> tuple[Any, Singleton]:
    """Return the registration of this name and role, with its app. Raises `ConfigurationError` if there is none."""
    for app in _state._get_active_apps():  # noqa: SLF001 - all that there are
        for each in registered(app):
            if (each.name, each.role) == (name, role):
                return app, each
    raise ConfigurationError(
        f"@singleton(isolate=True) on {name}: an import of its module does not register it; "
        "apply the decorator in that module, where it runs whenever the module is imported"
    )


def singleton(
    app: Celery,
    *,
    role: str | None = None,
    every: float = 0.1,
    isolate: bool = False,
    setup: Callable[[], Any] | None = None,
    teardown: Callable[[], Any] | None = None,
    max_failures: int = 10,
) -> Callable[[F], F]:
    """Register a function without arguments, to be called again and again by the worker of `app` that leads `role`.

    In the function, `current_term()` is the term, a fencing token, and `still_leader()` returns True while the lease
    holds. Registering does not load the app's configuration and starts nothing. With `neli_enabled = False` every
    worker runs the function, in term 0, and retries failures without an end.

    Args:
        app: the Celery app.
        role: one of `neli_roles`; None for the only one. A worker refuses an unknown role when it starts.
        every: seconds from the end of one run to the start of the next.
        isolate: run it in a process of its own, which imports the function's module and so must apply the decorator
            again. Otherwise it runs in a thread of the worker's main process (a greenlet under gevent), and a run that
            keeps the interpreter's lock for seconds delays the worker's heartbeats.
        setup: called without arguments before the first run of a session.
        teardown: called without arguments after the last run of a session.
        max_failures: after so many failures in a row the worker resigns the role. Any exception is a failure, also of
            `setup`; the next run follows after 0.1 s, doubled with each failure up to 10 s, and not before `every`.

    Returns a decorator that returns the function as it is. Raises `ConfigurationError`, which names a wrong parameter.
    """
    found: Any = app._get_current_object() if issubclass(type(app), Proxy) else app  # noqa: SLF001 - Celery's name, for current_app
    for parameter, value, fits, wanted in (
        ("app", app, isinstance(found, Celery), "the Celery app, as in @singleton(app)"),
        ("role", role, role is None or isinstance(role, str), "one of the names in neli_roles"),
        ("every", every, _is_positive(every, (int, float)), "a number of seconds above 0"),
        ("max_failures", max_failures, _is_positive(max_failures, int), "a whole number, at least 1"),
        ("isolate", isolate, isinstance(isolate, bool), "True or False"),
    ):
        if not fits:
            raise ConfigurationError(f"@singleton: {parameter} = {value!r}: give {wanted}")
    for parameter, hook in (("setup", setup), ("teardown", teardown)):
        if hook is not None:
            _check_callable(parameter, hook)

    def register(function: F) -> F:
        _check_callable("function", function)
        name = _name(function)
        if isolate:
            _check_importable(name)
        made = Singleton(
            function=function, name=name, role=role, every=float(every), isolate=isolate, setup=setup,
            teardown=teardown, max_failures=max_failures, path=tuple(map(str, sys.path)),
        )  # fmt: skip
        of_app: list[Singleton] = vars(found).setdefault("neli_singletons", [])  # `worker/control.py` reads it
        if "<" not in name:  # its module was loaded again; a lambda's name is not its own
            of_app[:] = [each for each in of_app if (each.name, each.role) != (name, role)]
        of_app.append(made)
        found.steps["worker"].add("celery_neli.singletons.runner:SingletonsStep")  # loaded by a worker only
        return function

    return register


def _is_positive(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and 0 < value < math.inf


def _check_callable(parameter: str, value: Any) -> None:
    if issubclass(type(value), (Proxy, celery.Task)):  # by type: a look at the proxy would load the configuration
        raise ConfigurationError(
            f"@singleton: {parameter} is a Celery task: give a function, with @singleton below @app.task if it is both"
        )
    if not callable(value):
        raise ConfigurationError(f"@singleton: {parameter} = {value!r}: give a function without arguments")
    if inspect.iscoroutinefunction(value):
        raise ConfigurationError(
            f"@singleton: {parameter} = {_name(value)} is a coroutine function: give one that calls asyncio.run"
        )
    try:
        inspect.signature(value).bind()
    except TypeError:
        raise ConfigurationError(
            f"@singleton: {parameter} = {_name(value)} needs arguments: it is called with none"
        ) from None
    except ValueError:
        return  # a builtin without a signature


def _name(function: Any) -> str:
    module = getattr(function, "__module__", None) or type(function).__module__
    return f"{module}:{getattr(function, '__qualname__', f'<{type(function).__name__}>')}"


def _check_importable(name: str) -> None:
    if name.startswith("__main__:"):
        why = "cannot import the script that was started; move the function into a module that the script imports"
    elif "<" in name:
        why = "must find it by import; make it a function of a module, with a name (no lambda, not inside a function)"
    else:
        return
    raise ConfigurationError(f"@singleton: isolate = True on {name}: a new process {why}")
