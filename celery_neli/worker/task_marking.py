"""The mark that `@leader_only` leaves on a task, and the queue of each role, to which marked tasks are sent.

With nothing installed, each publisher sends a marked task to its role's queue, and each worker receives it with the
strategy of `strategy.py`.

A role's queue never enters `app.amqp.queues`: a worker may consume what is in there after any reconnect (Celery 5.5:
`Queues.consume_from`), whether it leads or not.

Celery makes a class of each task function for each app, at once or later. So the mark goes onto the function, and from
there onto each class as it is made.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from typing import Any, Final

from celery import _state
from celery.app.task import Task
from celery.local import PromiseProxy, Proxy
from kombu.entity import Queue

from celery_neli.config import check_names, enabled, leader_queue, setting
from celery_neli.exceptions import ConfigurationError

STANDBY: Final = ("forward", "skip", "fail")
STRATEGY: Final = "celery_neli.worker.strategy:leader_only"
DESTINATIONS: Final = ("queue", "exchange", "routing_key")
HELP: Final = "put @leader_only right above the function, below @app.task or @shared_task"


def role_of(app: Any, role: str | None, decorator: str = "@leader_only") -> str:
    """Return `role`, or the only configured one for None. Raises `ConfigurationError`, which names the known roles."""
    known: tuple[str, ...] = setting(app, "neli_roles")
    names = ", ".join(map(repr, known))
    if role is None and len(known) > 1:
        raise ConfigurationError(
            f"{decorator} names no role, and neli_roles has {len(known)}: write role=... with one of {names}"
        )
    if role is not None and role not in known:
        raise ConfigurationError(f"{decorator} with role={role!r}: no such role; neli_roles has {names}")
    return role or known[0]


def role_queue(app: Any, role: str | None = None) -> Queue:
    """Return the queue that the leader of `role` (None: the only one) consumes: the same object each time.

    It is made as the app makes a queue that is declared nowhere, whether or not it may create missing queues. Does not
    connect. May be called from any thread. Raises `ConfigurationError`.
    """
    role = role_of(app, role)
    of_app: dict[str, Queue] = vars(app).setdefault("neli_queues", {})
    if role not in of_app:
        check_names(app)
        of_app[role] = app.amqp.Queues(None, create_missing=True)[leader_queue(app, role)]
    return of_app[role]


def role_queues(app: Any) -> Iterator[tuple[str, Queue]]:
    """Yield each role with its queue."""
    for role in setting(app, "neli_roles"):
        yield role, role_queue(app, role)


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Mark:
    """The options of one use of `@leader_only`; two uses are never equal."""

    role: str | None
    on_standby: str
    stop_on_loss: bool
    wrap: Callable[[Callable[..., Any], type[Task] | None], Callable[..., Any]]
    """Returns the body in the check of `leader_only.py`, given the body and the task's class (None: a function)."""

    def __post_init__(self) -> None:
        if self.role is not None and not isinstance(self.role, str):
            raise TypeError(f"@leader_only(role={self.role!r}): give the name of a role, one of neli_roles")
        if self.on_standby not in STANDBY:
            raise ValueError(
                f"@leader_only(on_standby={self.on_standby!r}): give one of {', '.join(map(repr, STANDBY))}"
            )


def mark_of(task: Any) -> Mark | None:
    """Return the mark of a task, a task class or a function; None if any process may run it. Never blocks."""
    found = getattr(task, "neli_mark", None)
    if found is None:
        found = getattr(getattr(task, "run", None), "neli_mark", None)
    return found if isinstance(found, Mark) else None


def mark_target(target: Any, mark: Mark) -> bool:
    """Mark a task, a task class or what `@app.task` and `@shared_task` made; return False if `target` is none of them.
    Raises TypeError if it is marked already, or its options name a queue.
    """
    kind = type(target)  # never isinstance: it would evaluate a proxy, and so load the app's configuration
    if kind is PromiseProxy:
        _mark_promise(target, mark)
    elif kind is Proxy:
        _mark_shared(target, mark)
    elif issubclass(kind, Task):
        _mark_task(target, mark)
    elif issubclass(kind, type) and issubclass(target, Task):
        _mark_class(target, mark)
    else:
        return False
    return True


class _Annotations(dict[str, Any]):
    """A function's annotations, which mark the class of each task that Celery makes of it, whenever and for each app.

    Celery has no hook for that: `Celery._task_from_fun` calls `type(name, bases, namespace)` with the function's
    annotations in the namespace, and Python calls `__set_name__` of what it finds there (PEP 487). `functools.wraps`
    and `pydantic=True` hand them on.
    """

    def __init__(self, annotations: dict[str, Any], mark: Mark) -> None:
        super().__init__(annotations)
        self.mark = mark

    def __set_name__(self, owner: type, name: str) -> None:
        if not issubclass(owner, Task):
            return
        owner.__annotations__ = dict(self)
        try:
            _mark_class(owner, self.mark)
        except TypeError as exc:
            refusal = exc

            def new(cls: type, *args: Any, **kwargs: Any) -> Any:
                raise refusal

            # Python before 3.12 would hide it in a RuntimeError. Celery makes the instance next: raise it there.
            owner.__new__ = new  # type: ignore[method-assign, assignment]


def mark_function(function: Any, mark: Mark) -> None:
    """Let each task that Celery makes of `function` from now on be marked."""
    found = getattr(function, "__annotations__", None)
    if isinstance(found, _Annotations) and found.mark is not mark:
        raise TypeError(f"{function.__module__}.{function.__qualname__} is @leader_only twice: take one of them away")
    try:
        function.__annotations__ = _Annotations(found or {}, mark)
    except AttributeError:
        raise TypeError(f"@leader_only cannot mark {function!r}: {HELP}") from None


def _mark_class(cls: type[Task], mark: Mark) -> None:
    """Mark a task class and the classes made of it (`base=`)."""
    if "neli_mark" in cls.__dict__:
        raise TypeError(f"{cls.__module__}.{cls.__name__} is @leader_only twice: take one of them away")
    _refuse_destinations(cls)
    routed = hasattr(cls, "neli_mark")
    of: Any = cls  # for attributes that Celery's class does not declare, or declares otherwise
    of.neli_mark = mark
    of.Strategy = STRATEGY
    if not routed:
        of.apply_async = _sent_to_role_queue(of.apply_async)
        of.signature_from_request = of.subtask_from_request = _retried_without_queue(of.signature_from_request)
    _wrap_run(cls, mark)
    own, on_bound = of.__dict__.get("__init_subclass__"), of.on_bound.__func__

    def init_subclass(subclass: type[Task], /, **options: Any) -> None:
        own.__func__(subclass, **options) if own else super(cls, subclass).__init_subclass__(**options)
        _refuse_destinations(subclass)
        _wrap_run(subclass, mark)

    def bound(subclass: type[Task], app: Any, /) -> None:
        on_bound(subclass, app)
        _wrap_run(subclass, mark)  # the setting task_annotations may have put another `run` there

    of.__init_subclass__ = classmethod(init_subclass)
    of.on_bound = classmethod(bound)


def _refuse_destinations(cls: type[Task]) -> None:
    for option in DESTINATIONS:
        value = getattr(cls, option, None)
        if value is not None:
            raise TypeError(
                f"the task {cls.name or cls.__name__} has {option}={value!r} and is @leader_only, which sends it to "
                f"the role's own queue: take {option} or @leader_only away"
            )


def _wrap_run(cls: type[Task], mark: Mark) -> None:
    """Wrap the body that `cls` itself defines, once. Celery's own retries (`autoretry_for`) stay around it."""
    run: Any = cls.__dict__.get("run")
    static = isinstance(run, staticmethod)
    body = run.__func__ if static else run
    if body is None or getattr(body, "neli_class", None) is cls:
        return
    inner: Any = getattr(body, "neli_body", None)
    direct = inner is not None and body.__wrapped__ is inner  # @leader_only right above the function
    checked: Any = mark.wrap(inner if direct else body, cls)
    checked.neli_class = cls
    of: Any = cls
    of.run = staticmethod(checked) if static else checked
    if "__wrapped__" in cls.__dict__:
        of.__wrapped__ = of.__dict__["run"]
    if direct and "__header__" in cls.__dict__:  # the check of arguments in apply_async
        of.__header__ = of.__dict__["app"].type_checker(inner, bound=not static)


def _mark_task(task: Task, mark: Mark) -> None:
    """Mark a task that exists, and the function that it was made of, for the apps that come later."""
    cls = type(task)
    source = _source(cls)
    _mark_class(cls, mark)
    if "_orig_run" in vars(task):  # autoretry_for: the instance's `run` is Celery's and calls this
        vars(task)["_orig_run"] = cls.__dict__["run"].__get__(task, cls)
    if source is not None:
        mark_function(source, mark)


def _source(cls: type[Task]) -> Any:
    """Return the function that @app.task was given, or None for a class that was written by hand."""
    if "_decorated" not in cls.__dict__:
        return None
    found: Any = cls.__dict__.get("_decorated_fun") or cls.__dict__["run"]  # the first from Celery 5.7 on
    found = getattr(found, "__func__", found)
    if getattr(found, "__globals__", {}).get("__name__") == "celery.app.base":  # pydantic=True
        found = found.__wrapped__
    return found


def _mark_promise(promise: PromiseProxy, mark: Mark) -> None:
    """Mark the task that `@app.task` promises, without evaluating it: that would load the app's configuration."""
    if promise.__evaluated__():
        _mark_task(promise.__maybe_evaluate__(), mark)
        return
    try:
        (function,) = object.__getattribute__(promise, "_Proxy__args")
    except (AttributeError, ValueError):
        raise TypeError(f"@leader_only does not know what this version of Celery makes of @app.task: {HELP}") from None
    mark_function(function, mark)


def _mark_shared(proxy: Proxy, mark: Mark) -> None:
    """Mark the tasks of `@shared_task`: those of apps that are finalised already, and those to come."""
    found = inspect.getclosurevars(object.__getattribute__(proxy, "_Proxy__local")).nonlocals
    function = found.get("fun")
    if not callable(function) or "name" not in found:
        raise TypeError(f"@leader_only takes a function or a task, not this proxy: {HELP}")
    for app in _state._get_active_apps():  # noqa: SLF001 - as @shared_task does itself
        if app.finalized:
            task = app.tasks.get(found["name"] or app.gen_task_name(function.__name__, function.__module__))
            if task is not None and _source(type(task)) is function:
                _mark_task(task, mark)
    mark_function(function, mark)


def _sent_to_role_queue(apply_async: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(apply_async)
    def routed(self: Task, args: Any = None, kwargs: Any = None, *more: Any, **options: Any) -> Any:
        queue = None if self.app.conf.task_always_eager else _queue_for(self, options)
        if queue is not None:  # all three options, or the setting task_routes would have a say
            options.update(queue=queue, exchange="", routing_key=queue.name)
        return apply_async(self, args, kwargs, *more, **options)

    return routed


def _retried_without_queue(signature_from_request: Callable[..., Any]) -> Callable[..., Any]:
    """Celery would name the queue that the task came from, look it up, and so let every worker consume it."""

    @wraps(signature_from_request)
    def signature(self: Task, *args: Any, **options: Any) -> Any:
        made = signature_from_request(self, *args, **options)
        if _queue_for(self, options) is not None:
            for option in DESTINATIONS:
                made.options.pop(option, None)
        return made

    return signature


def _queue_for(task: Task, options: dict[str, Any]) -> Queue | None:
    """Return the queue of a marked task's role, unless the options of the call name a destination."""
    mark = mark_of(task)
    if mark is None or any(options.get(option) is not None for option in DESTINATIONS) or not enabled(task.app):
        return None
    return role_queue(task.app, mark.role)
