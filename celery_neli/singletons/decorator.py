"""`@singleton`: a function that one worker of the fleet calls again and again, while it leads a role.

    @celery_neli.singleton(app, every=1.0)
    def relay() -> None:
        ...

Importing the module only registers. The calls (*turns*) begin in a worker of `app` that has joined the worker election,
and nowhere else: not in beat, not in a pool's child, not in a web process, not in `celery call`.

**When.** While this worker leads the role, turn after turn, `every` seconds from the end of one to the start of the
next. Right before each call the lease is asked (R3 of docs/protocol.md), so nothing starts once the role is lost. In
the functions `current_term()` is the term, the fencing token, and `still_leader()` says whether it is still held.

**Where.** In a thread of the worker's main process, one per singleton (a greenlet under gevent); tasks go on in the
pool meanwhile. A turn that keeps the interpreter's lock for seconds holds up the worker's heartbeats: for such work
there is `isolate=True`, a process of its own (`child.py`), which begins and ends with a stretch, writes to
the worker's standard error and has its log level. It imports the function's module by the `sys.path` of the import that
registered it (`celery -A` adds the working directory only while it imports) and the worker's present one. A worker
refuses to start if such a process cannot find the module at all.

**Hooks.** A *stretch* is a time in which this worker leads without a break. `setup()` runs before its first turn, and
again, as the turn does, until it returns once. `teardown()` runs after its last turn, however it ended, if `setup` had
returned. Neither takes an argument.

**Hand-over** (shutdown, `resign`, rebalancing): the running turn is awaited, then `teardown`, then the role is given
away; at most `neli_drain_timeout`, while heartbeats go on. **Fence** (the lease has run out): the running turn is told
by `still_leader()`; its isolated process is terminated (SIGTERM, after 2 s SIGKILL; a `teardown` is then missed). The
same happens to a turn that outlasts `neli_drain_timeout`. What a thread still does then cannot be stopped from outside;
it is abandoned when the worker exits. Turns of the same process never overlap; and those of another can only with a
turn that goes on without its lease: let long ones ask `still_leader()`.

**Failures.** What a turn raises (`setup` is part of the turn; `SystemExit` and `KeyboardInterrupt` are nothing special)
is logged, and the turn retried after a pause: 0.1 s, doubled by every failure in a row up to 10 s, and not less than
`every`. So is a turn whose isolated process died. After `max_failures` in a row the worker wraps up, says so as an
error and resigns the role: it stands back for one `neli_heartbeat_timeout`, and another gets the role if there is one.
The role moves as a whole, with its tasks and its sound singletons. So that workers with the same fault do not pass it
to and fro for ever, this worker's singleton begins anew only after a rest, counted from when it gave up: 10 s, doubled
by every time in a row without one turn that returned, up to 5 min. If it leads meanwhile, it does the role's other work
and does not resign. So when a fault of all workers ends, the singleton may be back as long after as the fault lasted.

With `neli_enabled = False` every worker of the app runs its singletons, in term 0 and without an end: for development
with one worker. Failures are retried for ever then.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import celery
from celery.local import Proxy

from celery_neli.exceptions import ConfigurationError
from celery_neli.singletons import registry
from celery_neli.singletons.supervisor import Singletons

if TYPE_CHECKING:
    from celery import Celery

F = TypeVar("F", bound=Callable[[], Any])


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

    The module's docstring says when and where, and what failures do. `role`: one of `neli_roles`; None: the only one.
    `every`: seconds from the end of a turn to the start of the next. `isolate`: in a process of its own, which imports
    the function's module; the decorator must run by that. `setup`, `teardown`: called before the first and after
    the last turn of a stretch. `max_failures`: so many in a row, and the worker resigns the role.

    The function is returned as it is: calling it is an ordinary call. Raises `ConfigurationError`, which names the
    parameter; an unknown role, and a worker without an election, are found when the worker starts. Does not load the
    app's configuration, starts nothing.
    """
    found: Any = app._get_current_object() if issubclass(type(app), Proxy) else app  # noqa: SLF001 - Celery's name, for current_app
    if not isinstance(found, celery.Celery):
        raise ConfigurationError(f"@singleton: app = {app!r}: give the Celery app, as in @singleton(app)")
    if not isinstance(role, (str, type(None))):
        raise ConfigurationError(f"@singleton: role = {role!r}: give one of the names in neli_roles")
    _check_numbers(every, max_failures)
    if not isinstance(isolate, bool):
        raise ConfigurationError(f"@singleton: isolate = {isolate!r}: give True or False")
    for parameter, hook in (("setup", setup), ("teardown", teardown)):
        if hook is not None:
            _check_callable(parameter, hook)

    def register(function: F) -> F:
        _check_callable("function", function)
        name = _name(function)
        if isolate:
            _check_importable(name)
        registry.add(
            found,
            registry.Singleton(
                function=function,
                name=name,
                role=role,
                every=float(every),
                isolate=isolate,
                setup=setup,
                teardown=teardown,
                max_failures=max_failures,
                path=tuple(map(str, sys.path)),
            ),
        )
        found.steps["worker"].add(Singletons)
        return function

    return register


def _check_numbers(every: Any, max_failures: Any) -> None:
    if isinstance(every, bool) or not isinstance(every, (int, float)) or not 0 < every < math.inf:
        raise ConfigurationError(f"@singleton: every = {every!r}: give a number of seconds above 0")
    if isinstance(max_failures, bool) or not isinstance(max_failures, int) or max_failures < 1:
        raise ConfigurationError(f"@singleton: max_failures = {max_failures!r}: give a whole number, at least 1")


def _check_callable(parameter: str, value: Any) -> None:
    if issubclass(type(value), (Proxy, celery.Task)):  # by type: a look at the proxy would load the configuration
        raise ConfigurationError(
            f"@singleton: {parameter} is a Celery task: give a function, with @singleton below @app.task if it is both"
        )
    if not callable(value):
        raise ConfigurationError(f"@singleton: {parameter} = {value!r}: give a function without arguments")
    if inspect.iscoroutinefunction(value):
        raise ConfigurationError(
            f"@singleton: {parameter} = {_name(value)} is a coroutine function: give an ordinary one, "
            "which may call asyncio.run"
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
    module, _, qualified = name.partition(":")
    if module == "__main__":
        raise ConfigurationError(
            f"@singleton: isolate = True on {name}: a new process cannot import the script that was started; "
            "move the function into a module that the script imports"
        )
    if "<" in qualified:
        raise ConfigurationError(
            f"@singleton: isolate = True on {name}: a new process must find it by import; "
            "make it a function of a module, with a name (no lambda, not inside a function)"
        )
