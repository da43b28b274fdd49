"""`@leader_only`: work that one process of the fleet does at a time, and the check of the lease before each body.

The check runs in the process that runs the body, a pool's child or the worker itself, through the memory that they
share (`election/shared_lease.py`): the decision when the message arrived may be old by now.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from typing import Any, Final, NoReturn, TypeVar, overload

from celery import _state
from celery.app.task import Task
from celery.exceptions import Ignore, Reject
from kombu.entity import Queue

from celery_neli.config import enabled, setting
from celery_neli.election.shared_lease import RoleLease, shared
from celery_neli.exceptions import ConfigurationError, LeadershipLost, NotLeader
from celery_neli.logs import escaping
from celery_neli.printable import printable
from celery_neli.worker.redelivery import counts, published_to
from celery_neli.worker.task_marking import Mark, mark_function, mark_of, mark_target, role_of, role_queue

T = TypeVar("T", bound=Callable[..., Any])
_UNSET: Final[Any] = object()

logger = escaping(logging.getLogger(__name__))


@dataclass(frozen=True)
class Unelected:
    """The lease of a role where `neli_enabled` is off: every process leads, in term 0. See `RoleLease`."""

    name: str

    def leading_term(self) -> int:
        """Return term 0."""
        return 0

    def may_finish(self, term: int | None = None) -> bool:
        """Return True."""
        return True

    may_start = may_finish


Lease = RoleLease | Unelected

Work = tuple[Lease, int, bool, object]
"""Lease, term, True if a loss is raised, and the mark of what began the work."""

WORK: Final[ContextVar[Work | None]] = ContextVar("celery_neli_work", default=None)


@contextmanager
def in_term(lease: Lease, term: int) -> Iterator[None]:
    """Let what runs inside be leader-only work of the role, begun in `term`. The caller has checked the lease."""
    token = WORK.set((lease, term, False, None))
    try:
        yield
    finally:
        WORK.reset(token)


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
    """Let a task or a function run only where `role` is led.

    Put it on a task, above or below `@app.task` or `@shared_task`, or on a task class. Calls go to the role's own
    queue, which only the leader consumes. A call that finds the lease gone after it came from that queue goes back
    there, whatever `on_standby` is.

    A plain function, a task called directly, `.apply()` and `task_always_eager` run if this process, or the worker that
    forked it, leads. Leader-only work may call other leader-only work of its role until it ends, also during a
    handover. With `neli_enabled = False` everything runs, everywhere. Any thread may call it.

    Args:
        target: the task, class or function; None if the decorator is called with options.
        role: the role to lead, one of `neli_roles`; None for the only one.
        on_standby: what a worker that does not lead does with a call that reaches it: "forward" it to the role's queue;
            "skip" it, that is acknowledge it (it fails if its result is awaited); or "fail" it with `NotLeader`.
        stop_on_loss: let `still_leader()` raise `LeadershipLost` in the body instead of returning False.
        default: what a direct call returns if this process does not lead; without it, the call raises `NotLeader`.
        app: the app of a plain function; the current app if left out.

    Returns:
        The task or class itself; for a plain function, the function with the check.

    Raises:
        TypeError: when decorating something else, or a task with a queue of its own.
        ValueError: when decorating with another `on_standby`.
        ConfigurationError: at the first use, for an unknown role; it lists the roles.
    """

    def wrap(body: Callable[..., Any], cls: type[Task] | None) -> Callable[..., Any]:
        return _with_check(body, mark, cls, app, default)

    def decorate(target: Any) -> Any:
        return target if mark_target(target, mark) else _checked_function(target, mark)

    mark = Mark(role=role, on_standby=on_standby, stop_on_loss=stop_on_loss, wrap=wrap)

    return decorate if target is None else decorate(target)


def _checked_function(function: Any, mark: Mark) -> Any:
    if isinstance(function, (type, staticmethod, classmethod, dict)) or not callable(function):
        raise TypeError(
            f"@leader_only takes a function, a task or a task class, not {function!r}"
            + (": put it below" if isinstance(function, (staticmethod, classmethod)) else "")
        )
    inner = inspect.unwrap(function)
    if inspect.iscoroutinefunction(inner) or inspect.isasyncgenfunction(inner) or inspect.isgeneratorfunction(inner):
        raise TypeError(
            f"@leader_only takes functions that do their work when called: {function!r} only begins it, "
            "and the lease may be gone when it goes on"
        )
    checked = mark.wrap(function, None)
    mark_function(checked, mark)
    return checked


def _with_check(body: Callable[..., Any], mark: Mark, cls: Any, app: Any, default: Any) -> Callable[..., Any]:
    """Return the body with the check before it, whose way is short for a leader: `benchmarks/gate.py` measures it."""
    wanted, stop_on_loss = mark.role, mark.stop_on_loss

    def run(lease: Lease, term: int, args: Any, kwargs: Any) -> Any:
        token = WORK.set((lease, term, stop_on_loss, mark))
        try:
            return body(*args, **kwargs)
        finally:
            WORK.reset(token)

    @wraps(body)
    def checked(*args: Any, **kwargs: Any) -> Any:
        mine = cls.app if cls is not None else app or _state.get_current_app()
        within = WORK.get()
        if within is not None and within[3] is mark:  # this very work checks again: another decorator is in between
            if within[0].may_finish(within[1]):
                return body(*args, **kwargs)
        elif (leases := shared(mine)) is not None:
            role = wanted or (leases.roles[0] if len(leases.roles) == 1 else role_of(mine, None))
            try:
                lease = leases.role(role)
            except KeyError:
                role_of(mine, role)  # raises for a role that is not configured, and names those that are
                raise ConfigurationError(
                    f"@leader_only(role={role!r}): neli_roles has it since this worker began; restart it"
                ) from None
            if within is not None and within[0] is lease:
                # part of other work of this leader: during a handover it may be finished (R3)
                term = within[1] if lease.may_finish(within[1]) else None
            elif cls is not None and _by_message(cls):
                term = lease.leading_term()
            else:  # the worker's main process does not know of it
                with lease.at_work() as term:
                    if term is not None:
                        return run(lease, term, args, kwargs)
            if term is not None:
                return run(lease, term, args, kwargs)
        elif not enabled(mine):
            return run(Unelected(wanted or ""), 0, args, kwargs)
        task = _state.get_current_task()
        if task is not None and mark_of(task) is mark and _by_message(type(task)):
            reject_or_redirect(task, mark)
        if default is not _UNSET:
            return default
        raise NotLeader(f"{body.__module__}.{getattr(body, '__qualname__', body)} {_reason(mine, mark.role)}")

    attributes: Any = checked
    attributes.neli_mark, attributes.neli_body = mark, body
    return checked


def _by_message(cls: Any) -> bool:
    """Return True if a message asked for this run. A task that calls itself, or is its own errback, has the message's
    request too, but beneath one of its own.
    """
    stack = cls.request_stack.stack
    return len(stack) == 1 and not stack[0].called_directly and not stack[0].is_eager


def _reason(app: Any, role: str | None) -> str:
    if shared(app) is None:
        return (
            "was not run: this process is not a worker in an election, so it leads nothing. Send it to one (.delay()); "
            "or give @leader_only a default; or, in tests, set neli_enabled = False. Workers join one by "
            "celery_neli.install(app), or imports = ['celery_neli.auto']"
        )
    return f"was not run: this process does not lead {role_of(app, role)!r}"


def reject_or_redirect(task: Task, mark: Mark) -> NoReturn:
    """End a task that a worker has begun and must not run: send it to its role's queue again, or do what `mark` says.

    For Celery's tracer it raises `Ignore` (the message is acknowledged, no result is stored), `Reject` or `NotLeader`.
    """
    app, request = task.app, task.request
    role, queue = role_of(app, mark.role), role_queue(app, mark.role)
    routed = published_to(request, queue)
    awaited = request.chord or vars(request).get("ignore_result") is False
    name = f"{task.name}[{printable(request.id)}]"
    if shared(app) is None or (not routed and (mark.on_standby == "fail" or (mark.on_standby == "skip" and awaited))):
        raise NotLeader(f"{name} {_reason(app, mark.role)}")
    if not routed and mark.on_standby == "skip":
        counts.add("skipped", role)
        raise Ignore(f"{name} was skipped: this worker does not lead {role!r}")
    try:
        _send_to(task, queue)
    except Exception as exc:
        if task.acks_late:
            raise Reject(exc, requeue=True) from exc
        raise NotLeader(
            f"{name} was not run: this worker no longer leads {role!r}, and sending it to {queue.name!r} failed: "
            f"{exc!r}"
        ) from exc
    counts.add("forwarded", role)
    logger.debug("forwarded role=%s task=%s id=%s queue=%s", role, task.name, request.id, queue.name)
    raise Ignore(f"{name} was sent to {queue.name!r}: this worker does not lead {role!r}")


def _send_to(task: Task, queue: Queue) -> None:
    """Publish the running task to its role's queue as `Task.retry` does, but not as a retry, and by Celery's own
    `apply_async`: that of a base class which refuses doubles would refuse it as its own double.
    """
    request = task.request
    given = {"ignore_result": request.ignore_result} if "ignore_result" in vars(request) else {}
    signature = task.signature_from_request(request, **given)
    task.push_request(called_directly=True)  # else Celery makes the task its own parent and its own child
    try:
        options = {**signature.options, "queue": queue, "exchange": "", "routing_key": queue.name}
        Task.apply_async(task, signature.args, signature.kwargs, **options)
    finally:
        task.pop_request()


def roles() -> tuple[str, ...]:
    """Return the roles of the current app that this process, or the worker that forked it, leads now: all of them with
    `neli_enabled = False`. They are in the order of `neli_roles`. It takes no lock; any thread may call it.
    """
    app = _state.get_current_app()
    leases = shared(app)
    if leases is not None:
        return tuple(role for role in leases.roles if leases.role(role).may_start())
    return () if enabled(app) else tuple(setting(app, "neli_roles"))


def current_term() -> int:
    """Return the term in which the calling leader-only work began: a fencing token for whatever the work writes to.

    The term rises from one leader of the role to the next; with `neli_enabled = False` it is 0. Raises LookupError if
    no leader-only work calls it; a thread that such work starts must be run in `contextvars.copy_context()`.
    """
    return _work()[1]


def still_leader() -> bool:
    """Return True if the calling leader-only work may go on: its lease holds, or a handover waits for it (R3).

    After a fence it returns False for good, since another process may lead already; with `stop_on_loss` it raises
    `LeadershipLost` instead. It does not block. Raises LookupError as `current_term` does.
    """
    lease, term, stop_on_loss, _ = _work()
    if lease.may_finish(term):
        return True
    if stop_on_loss:
        raise LeadershipLost(f"the lease of {lease.name!r}, term {term}, ended while its work ran: stopped")
    return False


def _work() -> Work:
    work = WORK.get()
    if work is None:
        raise LookupError("no leader-only work runs here: call it in a @leader_only task or function, or a singleton")
    return work
