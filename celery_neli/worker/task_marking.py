"""What `@leader_only` leaves on a task, so that every process that knows the task treats it alike: a publisher sends it
to the role's own queue, and a worker takes it with our strategy. Nothing needs to be installed for that.

A task is a class that Celery makes out of a function, sometimes at once, sometimes when the app is finalised, and once
for each app. So the mark goes onto the function, and from there onto each class as it is made.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, Final

from celery import _state
from celery.app.task import Task
from celery.local import PromiseProxy, Proxy

from celery_neli.config import enabled
from celery_neli.worker.queues import leader_queue

if TYPE_CHECKING:
    from kombu.entity import Queue

STANDBY: Final = ("forward", "skip", "fail")
STRATEGY: Final = "celery_neli.worker.strategy:leader_only"
DESTINATIONS: Final = ("queue", "exchange", "routing_key")
HELP: Final = "put @leader_only right above the function, below @app.task or @shared_task"

Gate = Callable[[Callable[..., Any], "type[Task] | None"], Callable[..., Any]]
"""Closes a body: given it and the task's class (None: a plain function), returns the body that asks first."""


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Mark:
    """What one use of `@leader_only` asks for; two uses are never equal. `role` None: the only role configured."""

    role: str | None
    on_standby: str
    stop_on_loss: bool

    def __post_init__(self) -> None:
        if self.role is not None and not isinstance(self.role, str):
            raise TypeError(f"@leader_only(role={self.role!r}): give the name of a role, one of neli_roles")
        if self.on_standby not in STANDBY:
            raise ValueError(
                f"@leader_only(on_standby={self.on_standby!r}): give one of {', '.join(map(repr, STANDBY))}"
            )


def mark_of(task: Any) -> Mark | None:
    """The mark of a task, a task class or a function; None: anybody may run it. Never blocks."""
    found = getattr(task, "neli_mark", None)
    if found is None:
        found = getattr(getattr(task, "run", None), "neli_mark", None)
    return found if isinstance(found, Mark) else None


class _Annotations(dict[str, Any]):
    """A function's annotations, which mark the class of each task that Celery makes of the function.

    Celery has no hook for that: `Celery._task_from_fun` calls `type(name, bases, namespace)` with the function's
    annotations in the namespace, and Python calls `__set_name__` of what it finds there (PEP 487). `functools.wraps`
    and `pydantic=True` hand them on. So it works in every process, at whatever time the class is made, for each app.
    """

    def __init__(self, annotations: dict[str, Any], mark: Mark, gate: Gate) -> None:
        super().__init__(annotations)
        self.mark, self._gate = mark, gate

    def __set_name__(self, owner: type, name: str) -> None:
        if not issubclass(owner, Task):
            return
        owner.__annotations__ = dict(self)
        try:
            mark_class(owner, self.mark, self._gate)
        except TypeError as refusal:
            # Python before 3.12 would hide it in a RuntimeError: Celery makes the instance next, and is told there.
            owner.__new__ = _refusing(refusal)  # type: ignore[method-assign]


def _refusing(refusal: TypeError) -> Any:
    def new(cls: type, *args: Any, **kwargs: Any) -> Any:
        raise refusal

    return new


def mark_function(function: Any, mark: Mark, gate: Gate) -> None:
    """Let each task that Celery makes of `function` from now on be marked, and closed by `gate`."""
    found = getattr(function, "__annotations__", None)
    if isinstance(found, _Annotations) and found.mark is not mark:
        raise TypeError(f"{function.__module__}.{function.__qualname__} is @leader_only twice: take one of them away")
    try:
        function.__annotations__ = _Annotations(getattr(function, "__annotations__", None) or {}, mark, gate)
    except AttributeError:
        raise TypeError(f"@leader_only cannot mark {function!r}: {HELP}") from None


def mark_class(cls: type[Task], mark: Mark, gate: Gate) -> None:
    """Mark a task's class and those made of it (`base=`). TypeError: it is marked, or sent somewhere by its options."""
    if "neli_mark" in cls.__dict__:
        raise TypeError(f"{cls.__module__}.{cls.__name__} is @leader_only twice: take one of them away")
    _refuse_destinations(cls)
    routed = hasattr(cls, "neli_mark")
    of: Any = cls  # what follows are attributes that Celery's class does not declare, or declares otherwise
    of.neli_mark = mark
    of.Strategy = STRATEGY
    if not routed:
        of.apply_async = _to_the_leader(of.apply_async)
        of.signature_from_request = of.subtask_from_request = _retried_there(of.signature_from_request)
    close(cls, gate)
    own, on_bound = of.__dict__.get("__init_subclass__"), of.on_bound.__func__

    def init_subclass(subclass: type[Task], /, **options: Any) -> None:
        own.__func__(subclass, **options) if own else super(cls, subclass).__init_subclass__(**options)
        _refuse_destinations(subclass)
        close(subclass, gate)

    def bound(subclass: type[Task], app: Any, /) -> None:
        on_bound(subclass, app)
        close(subclass, gate)  # the setting task_annotations may have put another `run` there

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


def close(cls: type[Task], gate: Gate) -> None:
    """Put the gate around the body that `cls` itself defines, if there is none. Celery's own retries (`autoretry_for`)
    are around it.
    """
    run: Any = cls.__dict__.get("run")
    static = isinstance(run, staticmethod)
    body = run.__func__ if static else run
    if body is None or getattr(body, "neli_class", None) is cls:
        return
    inner: Any = getattr(body, "neli_body", None)
    direct = inner is not None and body.__wrapped__ is inner  # @leader_only right above the function
    closed: Any = gate(inner if direct else body, cls)
    closed.neli_class = cls
    of: Any = cls
    of.run = staticmethod(closed) if static else closed
    if "__wrapped__" in cls.__dict__:
        of.__wrapped__ = of.__dict__["run"]
    if direct and "__header__" in cls.__dict__:  # the check of arguments in apply_async
        of.__header__ = of.__dict__["app"].type_checker(inner, bound=not static)


def mark_task(task: Task, mark: Mark, gate: Gate) -> None:
    """Mark a task that is made already, and the function that it was made of, for the apps that come later."""
    cls = type(task)
    source = _source(cls)
    mark_class(cls, mark, gate)
    if "_orig_run" in vars(task):  # autoretry_for: the instance's `run` is Celery's and calls this
        vars(task)["_orig_run"] = cls.__dict__["run"].__get__(task, cls)
    if source is not None:
        mark_function(source, mark, gate)


def _source(cls: type[Task]) -> Any:
    """The function that @app.task was given; None: the class was written by hand."""
    if "_decorated" not in cls.__dict__:
        return None
    found: Any = cls.__dict__.get("_decorated_fun") or cls.__dict__["run"]  # the first from Celery 5.7 on
    found = getattr(found, "__func__", found)
    if getattr(found, "__globals__", {}).get("__name__") == "celery.app.base":  # pydantic=True
        found = found.__wrapped__
    return found


def mark_promise(promise: PromiseProxy, mark: Mark, gate: Gate) -> None:
    """Mark the task that `@app.task` promises, without asking for it: that would load the app's configuration."""
    if promise.__evaluated__():
        mark_task(promise.__maybe_evaluate__(), mark, gate)
        return
    try:
        (function,) = object.__getattribute__(promise, "_Proxy__args")
    except (AttributeError, ValueError):
        raise TypeError(f"@leader_only does not know what this version of Celery makes of @app.task: {HELP}") from None
    mark_function(function, mark, gate)


def mark_shared(proxy: Proxy, mark: Mark, gate: Gate) -> None:
    """Mark the tasks of `@shared_task`: those of apps that are finalised already, and those to come."""
    found = inspect.getclosurevars(object.__getattribute__(proxy, "_Proxy__local")).nonlocals
    function = found.get("fun")
    if not callable(function) or "name" not in found:
        raise TypeError(f"@leader_only takes a function or a task, not this proxy: {HELP}")
    for app in _state._get_active_apps():  # noqa: SLF001 - as @shared_task does itself
        if app.finalized:
            task = app.tasks.get(found["name"] or app.gen_task_name(function.__name__, function.__module__))
            if task is not None and _source(type(task)) is function:
                mark_task(task, mark, gate)
    mark_function(function, mark, gate)


def _to_the_leader(apply_async: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(apply_async)
    def routed(self: Task, args: Any = None, kwargs: Any = None, *more: Any, **options: Any) -> Any:
        if all(options.get(option) is None for option in DESTINATIONS) and not self.app.conf.task_always_eager:
            queue = _queue(self)
            if queue is not None:  # all three, or the setting task_routes would have a say
                options.update(queue=queue, exchange="", routing_key=queue.name)
        return apply_async(self, args, kwargs, *more, **options)

    return routed


def _retried_there(signature_from_request: Callable[..., Any]) -> Callable[..., Any]:
    """Celery would name the queue that the task came from, look it up, and so have it consumed by every worker."""

    @wraps(signature_from_request)
    def signature(self: Task, *args: Any, **options: Any) -> Any:
        made = signature_from_request(self, *args, **options)
        if all(options.get(option) is None for option in DESTINATIONS) and _queue(self) is not None:
            for option in DESTINATIONS:
                made.options.pop(option, None)
        return made

    return signature


def _queue(task: Task) -> Queue | None:
    mark = mark_of(task)
    return leader_queue(task.app, mark.role) if mark is not None and enabled(task.app) else None
