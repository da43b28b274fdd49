"""`@leader_only`: work that one process of the fleet does at a time, and the question asked right before it begins.

The lease is asked in the process that runs the body, a pool's child or the worker itself, through the memory that they
share (`election/shared.py`): what was decided when the message arrived may be old by now. Which queue such a task goes
by is `marked.py`, what a worker does with its message `strategy.py`.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar, overload

from celery import _state
from celery.app.task import Task
from celery.exceptions import Ignore, Reject
from celery.local import PromiseProxy, Proxy

from celery_neli.config import enabled
from celery_neli.election.shared_lease import SharedLease, shared
from celery_neli.exceptions import ConfigurationError, NotLeader
from celery_neli.logs import escaping
from celery_neli.printable import printable
from celery_neli.worker.context import WORK, current_term, in_term, still_leader
from celery_neli.worker.counters import counts
from celery_neli.worker.queues import leader_queue, role_of, roles_of
from celery_neli.worker.task_marking import (
    Mark,
    mark_class,
    mark_function,
    mark_of,
    mark_promise,
    mark_shared,
    mark_task,
)

if TYPE_CHECKING:
    from kombu.entity import Queue

__all__ = ["current_term", "in_term", "leader_only", "roles", "still_leader"]

T = TypeVar("T", bound=Callable[..., Any])
_UNSET: Final[Any] = object()

logger = escaping(logging.getLogger(__name__))


@overload
def leader_only(target: T, /) -> T: ...


@overload
def leader_only(
    *,
    role: str | None = None,
    on_standby: str = "forward",
    stop_on_loss: bool = False,
    default: Any = ...,
    app: Any = None,
) -> Callable[[T], T]: ...


def leader_only(
    target: Any = None,
    /,
    *,
    role: str | None = None,
    on_standby: str = "forward",
    stop_on_loss: bool = False,
    default: Any = _UNSET,
    app: Any = None,
) -> Any:
    """Let a task or a function run only where `role` is led (None: the only role of `neli_roles`).

    A task: above or below `@app.task` / `@shared_task`, or on a task class. Calls go to the role's own queue, which
    only the leader consumes. One that reaches another worker all the same is forwarded there (`on_standby="forward"`),
    acknowledged and dropped ("skip"; if somebody awaits its result it fails), or fails with `NotLeader` ("fail"); one
    that came by the role's queue and finds the lease gone goes back there, whatever `on_standby` is.

    A plain function, a task called directly, `.apply()` and `task_always_eager`: runs if this process, or the worker
    that forked it, leads; otherwise returns `default` if given, else raises `NotLeader`. `app`: of a plain function;
    the current app if left out. Work that is part of the leader's work of the same role may go on during a hand-over.

    With `neli_enabled = False` everything runs, everywhere.

    `stop_on_loss`: `still_leader()` raises `LeadershipLost` in the body instead of returning False.

    Raises at decoration TypeError (what is decorated; a task with a queue of its own), ValueError (`on_standby`); at
    the first use `ConfigurationError`, which lists the roles. From any thread; asking takes no lock and no system call.
    """
    mark = Mark(role=role, on_standby=on_standby, stop_on_loss=stop_on_loss)

    def gate(body: Callable[..., Any], cls: type[Task] | None) -> Callable[..., Any]:
        return _gate(body, mark, cls, app, default)

    def decorate(target: Any) -> Any:
        kind = type(target)  # never isinstance: it would evaluate a proxy, and so load the app's configuration
        if kind is PromiseProxy:
            mark_promise(target, mark, gate)
        elif kind is Proxy:
            mark_shared(target, mark, gate)
        elif issubclass(kind, Task):
            mark_task(target, mark, gate)
        elif issubclass(kind, type) and issubclass(target, Task):
            mark_class(target, mark, gate)
        else:
            return _closed_function(target, mark, gate)
        return target

    return decorate if target is None else decorate(target)


def _closed_function(function: Any, mark: Mark, gate: Callable[..., Any]) -> Any:
    if isinstance(function, (type, staticmethod, classmethod, dict)) or not callable(function):
        raise TypeError(
            f"@leader_only takes a function, a task or a task class, not {function!r}"
            + (": put it below" if isinstance(function, (staticmethod, classmethod)) else "")
        )
    inner = inspect.unwrap(function)
    for later in (inspect.iscoroutinefunction, inspect.isasyncgenfunction, inspect.isgeneratorfunction):
        if later(inner):
            raise TypeError(
                f"@leader_only takes functions that do their work when called: {function!r} only begins it, "
                "and the lease may be gone when it goes on"
            )
    closed = gate(function, None)
    mark_function(closed, mark, gate)
    return closed


def _gate(body: Callable[..., Any], mark: Mark, cls: Any, app: Any, default: Any) -> Callable[..., Any]:
    """The body that asks first. `cls`: the task's class, whose app it is. The way through the open gate is short on
    purpose: `benchmarks/gate.py`.
    """
    wanted, stop_on_loss = mark.role, mark.stop_on_loss

    def led(lease: SharedLease, role: str, term: int, args: Any, kwargs: Any) -> Any:
        token = WORK.set((lease, role, term, stop_on_loss, mark))
        try:
            return body(*args, **kwargs)
        finally:
            WORK.reset(token)

    @wraps(body)
    def gated(*args: Any, **kwargs: Any) -> Any:
        mine = cls.app if cls is not None else app or _state.get_current_app()
        within = WORK.get()
        if within is not None and within[4] is mark:  # this very work, asked again: another decorator is in between
            if within[0] is None or within[0].held(within[1], within[2]):
                return body(*args, **kwargs)
        elif (lease := shared(mine)) is not None:
            role = wanted or (lease.roles[0] if len(lease.roles) == 1 else role_of(mine, None))
            if role not in lease.roles:
                raise _unknown(mine, role)
            if within is not None and within[1] == role and within[0] is lease:
                # part of other work of this leader: during a hand-over it may be finished (R3)
                term = within[2] if lease.held(role, within[2]) else None
            elif cls is not None and _by_message(cls):
                term = lease.leading(role)
            else:  # the worker's main process does not know of it
                with lease.at_work(role) as term:
                    if term is not None:
                        return led(lease, role, term, args, kwargs)
            if term is not None:
                return led(lease, role, term, args, kwargs)
        elif not enabled(mine):
            with in_term(mine, wanted or "", 0, stop_on_loss=stop_on_loss, mark=mark):
                return body(*args, **kwargs)
        task = _state.get_current_task()
        if task is not None and mark_of(task) is mark and _by_message(type(task)):
            turn_away(task, mark)
        if default is not _UNSET:
            return default
        raise NotLeader(f"{body.__module__}.{getattr(body, '__qualname__', body)} {_reason(mine, mark.role)}")

    closed: Any = gated
    closed.neli_mark, closed.neli_body = mark, body
    return gated


def _by_message(cls: Any) -> bool:
    """Whether a message asks for this run of a task of class `cls`. A task that calls itself, or is its own errback,
    has the message's request too, but beneath one of its own.
    """
    stack = cls.request_stack.stack
    return len(stack) == 1 and not stack[0].called_directly and not stack[0].is_eager


def _unknown(app: Any, role: str) -> Exception:
    role_of(app, role)  # raises, and says which roles there are
    return ConfigurationError(f"@leader_only(role={role!r}): neli_roles has it since this worker began; restart it")


def _reason(app: Any, role: str | None) -> str:
    if shared(app) is None:
        return (
            "was not run: this process is not a worker in an election, so it leads nothing. Send it to one (.delay()); "
            "or give @leader_only a default; or, in tests, set neli_enabled = False. Workers join one by "
            "celery_neli.install(app), or imports = ['celery_neli.auto']"
        )
    return f"was not run: this process does not lead {role_of(app, role)!r}"


def turn_away(task: Task, mark: Mark) -> NoReturn:
    """In place of the body of a task that a worker has begun and must not run: send it to its role's queue again, or
    what `mark` asks for. Raises what Celery's tracer understands: Ignore (acknowledged, nothing stored), Reject, or
    NotLeader (stored as the task's failure).
    """
    from celery_neli.worker.strategy import came_by  # it loads Celery's worker, which is here by now

    app, request = task.app, task.request
    role, queue = role_of(app, mark.role), leader_queue(app, mark.role)
    routed = came_by(request, queue)
    awaited = request.chord or vars(request).get("ignore_result") is False
    name = f"{task.name}[{printable(request.id)}]"
    if shared(app) is None or (not routed and (mark.on_standby == "fail" or (mark.on_standby == "skip" and awaited))):
        raise NotLeader(f"{name} {_reason(app, mark.role)}")
    if not routed and mark.on_standby == "skip":
        counts.skipped[role] += 1
        raise Ignore(f"{name} was skipped: this worker does not lead {role!r}")
    try:
        send_again(task, queue)
    except Exception as exc:
        if task.acks_late:
            raise Reject(exc, requeue=True) from exc
        raise NotLeader(
            f"{name} was not run: this worker leads {role!r} no more, and sending it to {queue.name!r} failed: {exc!r}"
        ) from exc
    counts.forwarded[role] += 1
    logger.debug("forwarded role=%s task=%s id=%s queue=%s", role, task.name, request.id, queue.name)
    raise Ignore(f"{name} was sent to {queue.name!r}: this worker does not lead {role!r}")


def send_again(task: Task, queue: Queue) -> None:
    """Publish the task that runs to its role's queue, as `Task.retry` does, but as the same try.

    By Celery's own `apply_async`: that of a base class which refuses doubles would take the task for one of itself.
    """
    request = task.request
    given = {"ignore_result": request.ignore_result} if "ignore_result" in vars(request) else {}
    signature = task.signature_from_request(request, **given)
    task.push_request(called_directly=True)  # else Celery makes the task its own parent and its own child
    try:
        there = {**signature.options, "queue": queue, "exchange": "", "routing_key": queue.name}
        Task.apply_async(task, signature.args, signature.kwargs, **there)
    finally:
        task.pop_request()


def roles() -> tuple[str, ...]:
    """The roles of the current app that this process, or the worker that forked it, leads now, in the order of
    `neli_roles`; all of them with `neli_enabled = False`. Takes no lock; from any thread.
    """
    app = _state.get_current_app()
    lease = shared(app)
    if lease is not None:
        return tuple(role for role in lease.roles if lease.leading(role) is not None)
    return () if enabled(app) else roles_of(app)
