"""What a worker's main process does with a message of a leader-only task, before the pool (Celery: `Task.Strategy`).

A message that is wrong must cost nothing but itself. Celery rejects one for which a handler raises `InvalidTaskError`,
but most other errors that a message can cause end a worker, and some count as a lost connection (kombu's Redis lists
KeyError): the worker reconnects, and receives the same message again. So these errors become an `InvalidTaskError`
here, or reject the request where no caller would catch that.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Final

from billiard.exceptions import TimeLimitExceeded
from celery.exceptions import InvalidTaskError, TaskRevokedError
from celery.utils.imports import symbol_by_name
from celery.worker import state
from celery.worker.request import Request
from celery.worker.strategy import default
from kombu.entity import Queue
from kombu.exceptions import ContentDisallowed, DecodeError

from celery_neli.beat.publish import DATA_ERRORS, is_transport_error
from celery_neli.config import enabled
from celery_neli.exceptions import ConfigurationError
from celery_neli.logs import escaping
from celery_neli.printable import printable
from celery_neli.worker.consumer_step import consume_led_roles, end_worker
from celery_neli.worker.in_flight import InFlight, in_flight_of
from celery_neli.worker.redelivery import counts, forward, give_back, published_to
from celery_neli.worker.task_marking import Mark, mark_of, role_of, role_queue

MESSAGE_ERRORS: Final = (*DATA_ERRORS, AttributeError)
TERMINATION: Final = 1.0
"""Seconds after which a child that exceeded its hard time limit is dead: Celery reports it twice, then kills it by
SIGTERM and, 0.1 s later, SIGKILL (billiard's `on_hard_timeout`).
"""

logger = escaping(logging.getLogger(__name__))


def leader_only(task: Any, app: Any, consumer: Any, **options: Any) -> Any:
    """Return the handler of a marked task's messages; Celery asks for one with each connection.

    While this worker leads, it is Celery's own. Otherwise a message from the role's queue goes back there, and one from
    another queue meets what `on_standby` says. Ends a worker whose settings are wrong.
    """
    if not enabled(app):
        return default(task, app, consumer, **options)
    mark = mark_of(task)
    assert mark is not None, f"{task.name} has the strategy of @leader_only and no mark"
    try:
        role, in_flight = check(task, mark, app), in_flight_of(app)
        if in_flight is None:
            raise ConfigurationError(
                f"{task.name} is @leader_only, and this worker takes part in no election: call "
                "celery_neli.install(app), or set imports = ['celery_neli.auto']"
            )
    except ConfigurationError as exc:
        end_worker(exc)
    queue, lease = role_queue(app, role), in_flight.leases.role(role)
    base = symbol_by_name(task.Request)

    def reporting_to(reporter: InFlight | Untracked) -> Any:
        task.Request = type("LeaderRequest", (LeaderRequest, base), {"in_flight": reporter, "role": role})
        try:
            return default(task, app, consumer, **options)
        finally:
            task.Request = base

    run, fail = reporting_to(in_flight), reporting_to(Untracked())

    def leave(message: Any) -> None:
        consume_led_roles(consumer, in_flight)
        give_back(message, queue)
        counts.add("sent_back", role)

    # Nothing in here may wait for the broker: py-amqp delivers the next messages during such a wait, and then takes one
    # answer for another.
    def on_message(message: Any, *rest: Any) -> Any:
        if message.body is None:
            message.body = b""  # Celery takes its length when it rejects the message
        try:
            if lease.may_start():
                with rejecting():
                    return run(message, *rest)
            if published_to(message, queue):
                consumer.call_soon(leave, message)  # it would come again at once as long as we consume
            elif mark.on_standby == "forward":
                _forward(message, queue, consumer.connection)
                counts.add("forwarded", role)
            else:
                with rejecting():
                    if mark.on_standby == "fail" or _awaited(message):
                        return fail(message, *rest)  # the check before the body raises NotLeader
                message.ack_log_error(logger, consumer.connection_errors)
                counts.add("skipped", role)
        except InvalidTaskError:
            in_flight.message_rejected(message)
            raise
        return None

    return on_message


def check(task: Any, mark: Mark, app: Any) -> str:
    """Return the role of a marked task. Raises `ConfigurationError` for no such role, or a mark against its options."""
    role = role_of(app, mark.role, f"{task.name}: @leader_only")
    if mark.on_standby == "skip" and not task.ignore_result:
        raise ConfigurationError(
            f"{task.name} is @leader_only(on_standby='skip') and has a result, which no caller would ever get: "
            "set ignore_result=True, or on_standby='forward'"
        )
    return role


def check_all(app: Any) -> None:
    """Raise `ConfigurationError` for the first task of `app`, by name, that no worker could run. Finalises `app`."""
    for _, task in sorted(app.tasks.items()):
        if (mark := mark_of(task)) is not None:
            check(task, mark, app)


def _forward(message: Any, queue: Queue, connection: Any) -> None:
    """Forward a message. What the broker does wrong becomes the end of the connection, where it would end the worker:
    Celery reconnects, and receives the message again. What the message does wrong must not end the connection.
    """
    try:
        forward(message, queue)
    except Exception as exc:
        if isinstance(exc, MESSAGE_ERRORS) and not is_transport_error(connection, exc, given=True):
            raise InvalidTaskError(f"it cannot be forwarded: {printable(repr(exc))}") from exc
        name = printable(message.headers.get("id"))
        raise ConnectionResetError(f"message not forwarded id={name}: {printable(repr(exc))}") from exc


def _awaited(message: Any) -> bool:
    """Return True if a caller or a chord waits for the end of this run."""
    embed = message.payload
    if not isinstance(embed, dict):
        _, _, embed = embed
    elif "args" not in embed:  # protocol 1, or what Celery calls a hybrid
        raise InvalidTaskError("the message has no args")
    chord = (embed or {}).get("chord")
    return bool(chord) or message.headers.get("ignore_result") is False


@contextmanager
def rejecting() -> Iterator[None]:
    """Turn an error that a message caused inside into an `InvalidTaskError`; those that Celery knows stay as they are.

    What runs inside must not wait for the broker, which may cause such errors too.
    """
    try:
        yield
    except (InvalidTaskError, ContentDisallowed, DecodeError):
        raise
    except MESSAGE_ERRORS as exc:
        raise InvalidTaskError(printable(f"the message is not a task's: {exc!r}", 300)) from exc


def _wrap_execute(execute: Callable[..., Any]) -> Callable[..., Any]:
    def execute_using_pool(self: Any, pool: Any, **kwargs: Any) -> Any:
        if not self.in_flight.begin(self):
            state.task_ready(self)
            raise TaskRevokedError(self.id)  # the caller frees the slot of the pool
        try:
            job = execute(self, pool, **kwargs)
        except MESSAGE_ERRORS as exc:  # a timer may have called this, and then catches nothing
            self.in_flight.ended(self)
            logger.error("message rejected task=%s id=%s: it cannot be handed to the pool: %r", self.name, self.id, exc)
            self.reject(requeue=False)
            state.task_ready(self)
            raise TaskRevokedError(self.id) from exc
        except BaseException:
            self.in_flight.ended(self)
            raise
        self.in_flight.submitted(self, job)
        return job

    return execute_using_pool


def _wrap_success(success: Callable[..., Any]) -> Callable[..., Any]:
    def on_success(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return success(self, *args, **kwargs)
        finally:
            self.in_flight.ended(self)

    return on_success


class Untracked:
    """Stands for `InFlight` in a request that a standby lets fail: it may begin, and nothing waits for it."""

    def begin(self, request: Any) -> bool:
        """Return True."""
        return True

    def _ignore(self, *_: Any) -> None: ...

    arrived = submitted = ended = leave = accepted = dying = _ignore


class LeaderRequest(Request):
    """A request that rejects its message if no request can be made of it, and reports to `InFlight` what becomes of it.

    It stands before the task's own class. Celery makes a subclass for speed (`create_request_cls`), whose methods do
    not call ours: so they are wrapped. In the worker's main process, the timer's thread may run `execute_using_pool`
    (pools without an event loop), and a pool's thread may report the end.
    """

    in_flight: ClassVar[InFlight | Untracked]
    role: ClassVar[str]
    term: int | None = None
    """The term in which the request was handed to the pool."""
    job: Any = None
    """What the pool returned when the request was handed over, while it runs."""
    ended = False
    killed = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, wrap in (("execute_using_pool", _wrap_execute), ("on_success", _wrap_success)):
            if name in cls.__dict__:
                setattr(cls, name, wrap(cls.__dict__[name]))

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with rejecting():
            super().__init__(*args, **kwargs)
            hash((self.id, self.name))  # Celery looks them up
            _hard, _soft = self.time_limits
            for limit in self.time_limits:  # the pool reads them while the task runs: an error would end the worker
                if limit is not None and not (isinstance(limit, (int, float)) and -math.inf < limit < math.inf):
                    raise InvalidTaskError(f"invalid time limit: {printable(limit)}")
        self.in_flight.arrived(self)

    def acknowledge(self) -> None:
        """Acknowledge the message, as Celery also does when it drops it: expired, revoked."""
        super().acknowledge()
        self.in_flight.leave(self)

    def reject(self, requeue: bool = False) -> None:
        """Reject the message, as Celery also does when it drops it: an ETA that is no date."""
        super().reject(requeue=requeue)
        self.in_flight.leave(self)

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """Note that a child (thread, greenlet) has begun the task; maybe one that must be killed by now."""
        super().on_accepted(pid, time_accepted)
        self.in_flight.accepted(self, time_accepted)

    def on_failure(self, exc_info: Any, *args: Any, **kwargs: Any) -> None:
        """Note that the task failed; `InFlight` has reported that of a child that it killed."""
        try:
            if not self.killed:
                super().on_failure(exc_info, *args, **kwargs)
        finally:
            if isinstance(getattr(exc_info.exception, "exc", exc_info.exception), TimeLimitExceeded):
                self.in_flight.dying(self, TERMINATION)
            else:
                self.in_flight.ended(self)

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Note that a time limit passed; at a hard one Celery kills the child next."""
        try:
            super().on_timeout(soft, timeout)
        finally:
            if not soft:
                self.in_flight.dying(self, TERMINATION)
