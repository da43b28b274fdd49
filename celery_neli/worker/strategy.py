"""What a worker does with a message of a leader-only task, in its main process, before the pool (Celery:
`Task.Strategy`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from billiard.einfo import ExceptionInfo
from celery.exceptions import InvalidTaskError
from celery.utils.imports import symbol_by_name
from celery.worker.strategy import default, hybrid_to_proto2

from celery_neli.beat.publish import is_transport_error
from celery_neli.config import enabled
from celery_neli.exceptions import ConfigurationError, NotLeader
from celery_neli.logs import escaping
from celery_neli.printable import printable
from celery_neli.worker.consumer_step import apply
from celery_neli.worker.counters import counts
from celery_neli.worker.in_flight import drain_of
from celery_neli.worker.malformed import MESSAGE_ERRORS, checked, rejecting
from celery_neli.worker.queues import leader_queue, role_of
from celery_neli.worker.redelivery import forward, give_back
from celery_neli.worker.refusal import end_worker
from celery_neli.worker.request import tracked
from celery_neli.worker.task_marking import mark_of

if TYPE_CHECKING:
    from kombu.entity import Queue

    from celery_neli.worker.in_flight import Drain

Handler = Callable[..., Any]

logger = escaping(logging.getLogger(__name__))


def leader_only(task: Any, app: Any, consumer: Any, **options: Any) -> Handler:
    """The strategy of a task marked `@leader_only`: a handler of its messages, made anew with each connection.

    This worker leads: Celery's own handler. It does not, and the message came by the role's queue: back, for the
    leader. By another queue: as `on_standby` says. Ends a worker that cannot: its settings are wrong.
    """
    if not enabled(app):
        handler: Handler = default(task, app, consumer, **options)
        return handler
    mark = mark_of(task)
    assert mark is not None, f"{task.name} has the strategy of @leader_only and no mark"
    try:
        role = check(task, app)
        drain = _drain(task, app)
    except ConfigurationError as exc:
        end_worker(exc)
    kind = symbol_by_name(task.Request)
    task.Request = checked(kind)
    fail: Handler = default(task, app, consumer, **options)
    task.Request = tracked(kind, drain, role)
    handle: Handler = default(task, app, consumer, **options)
    queue = leader_queue(app, role)

    def leave(message: Any) -> None:
        apply(consumer, drain)
        give_back(message, queue)
        counts.sent_back[role] += 1

    # Nothing in here may wait for the broker: py-amqp delivers the next messages inside of such a wait, and then takes
    # one answer for another.
    def on_message(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any) -> Any:
        if message.body is None:
            message.body = b""  # Celery takes its length when it rejects the message
        try:
            return take(message, body, ack, reject, callbacks)
        except InvalidTaskError:
            drain.rejected(message)
            raise

    def take(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any) -> Any:
        if drain.lease.leading(role) is not None:
            with rejecting():
                return handle(message, body, ack, reject, callbacks)
        if came_by(message, queue):
            consumer.call_soon(leave, message)  # it would come again at once as long as we consume
        elif mark.on_standby == "forward":
            _forward(message, queue, consumer.connection)
            counts.forwarded[role] += 1
        elif mark.on_standby == "fail":
            with rejecting():
                return fail(message, body, ack, reject, callbacks)  # the gate in the pool raises NotLeader
        else:
            with rejecting():
                request = _request(task, app, consumer, message, ack, reject) if _awaited(message) else None
            if request is not None:
                _fail(request)
            else:
                message.ack_log_error(logger, consumer.connection_errors)
                counts.skipped[role] += 1
        return None

    return on_message


def check(task: Any, app: Any) -> str:
    """The role of a task marked `@leader_only`. Raises `ConfigurationError` if there is none such, or if the mark
    contradicts the task.
    """
    mark = mark_of(task)
    assert mark is not None
    try:
        role = role_of(app, mark.role)
    except ConfigurationError as exc:
        raise ConfigurationError(f"{task.name}: {exc}") from None
    if mark.on_standby == "skip" and not task.ignore_result:
        raise ConfigurationError(
            f"{task.name} is @leader_only(on_standby='skip') and has a result, which nobody would ever get: "
            "set ignore_result=True, or on_standby='forward'"
        )
    return role


def check_all(app: Any) -> None:
    """Raise `ConfigurationError` for the first task of `app` that no worker could run, by name. Finalises `app`."""
    for _, task in sorted(app.tasks.items()):
        if mark_of(task) is not None:
            check(task, app)


def _drain(task: Any, app: Any) -> Drain:
    drain = drain_of(app)
    if drain is None:
        raise ConfigurationError(
            f"{task.name} is @leader_only, and this worker takes part in no election: call celery_neli.install(app), "
            "or set imports = ['celery_neli.auto']"
        )
    return drain


def came_by(message: Any, queue: Queue) -> bool:
    """Whether `message` was published to `queue`, or, held back by RabbitMQ until its ETA, was to be."""
    info = message.delivery_info if isinstance(message.delivery_info, dict) else {}
    exchange, key = (info.get(name) or "" for name in ("exchange", "routing_key"))
    if not isinstance(exchange, str) or not isinstance(key, str):
        return False
    if exchange in ("", queue.exchange.name) and key == queue.routing_key:  # "": what Celery makes of a direct exchange
        return True
    return exchange.startswith("celery_delayed") and key.endswith(f".{queue.routing_key}")


def _forward(message: Any, queue: Queue, connection: Any) -> None:
    """What the broker does wrong ends the connection: Celery makes another one, with a pause, and the broker hands the
    message out again. Most errors of a broker would end the worker instead. What the message does wrong does not end
    the connection: the message would come again and again.
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


def _request(task: Any, app: Any, consumer: Any, message: Any, ack: Any, reject: Any) -> Any:
    body, headers, decoded, utc = message.body, message.headers, False, True
    if isinstance(message.payload, dict):
        body, headers, decoded, utc = hybrid_to_proto2(message, message.payload)
    options = {"body": body, "headers": headers, "decoded": decoded, "utc": utc, "on_ack": ack, "on_reject": reject}
    return checked(task.Request)(  # it never waits for anything
        message, app=app, hostname=consumer.hostname, eventer=consumer.event_dispatcher, task=task,
        connection_errors=consumer.connection_errors, **options,
    )  # fmt: skip


def _fail(request: Any) -> None:
    request.acknowledge()
    name = f"{request.task.name}[{printable(request.id)}]"
    try:
        raise NotLeader(f"{name} was to be skipped by a standby, and somebody waits for its result")
    except NotLeader:
        failure = ExceptionInfo()
    try:
        request.on_failure(failure)
    except Exception as exc:  # noqa: BLE001 - any result backend's; the message is acknowledged
        logger.error("result not stored task=%s: %r", name, exc)
