"""What a worker does with a message of a leader-only task, in its main process, before the pool (Celery:
`Task.Strategy`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from billiard.einfo import ExceptionInfo
from celery.utils.imports import symbol_by_name
from celery.worker.strategy import default

from celery_neli.config import enabled
from celery_neli.consuming import apply
from celery_neli.counts import counts
from celery_neli.drain import drain_of
from celery_neli.exceptions import ConfigurationError, NotLeader
from celery_neli.forward import forward, give_back
from celery_neli.marked import mark_of
from celery_neli.queues import leader_queue, role_of
from celery_neli.tracked import tracked, untracked

if TYPE_CHECKING:
    from kombu.entity import Queue

Handler = Callable[..., Any]

logger = logging.getLogger(__name__)


def leader_only(task: Any, app: Any, consumer: Any, **options: Any) -> Handler:
    """The strategy of a task marked `@leader_only`: a handler of its messages, made anew with each connection.

    This worker leads: Celery's own handler. It does not, and the message came by the role's queue: back, for the
    leader. By another queue: as `on_standby` says. Raises `ConfigurationError`, which ends the worker.
    """
    if not enabled(app):
        handler: Handler = default(task, app, consumer, **options)
        return handler
    mark = mark_of(task)
    assert mark is not None, f"{task.name} has the strategy of @leader_only and no mark"
    role = role_of(app, mark.role)
    drain = drain_of(app)
    if drain is None:
        raise ConfigurationError(
            f"{task.name} is @leader_only, and this worker takes part in no election: call celery_neli.install(app), "
            "or set imports = ['celery_neli.auto']"
        )
    if mark.on_standby == "skip" and not task.ignore_result:
        raise ConfigurationError(
            f"{task.name} is @leader_only(on_standby='skip') and has a result, which nobody would ever get: "
            "set ignore_result=True, or on_standby='forward'"
        )
    kind = symbol_by_name(task.Request)
    task.Request = untracked(kind)
    fail: Handler = default(task, app, consumer, **options)
    task.Request = tracked(kind, drain, role)
    handle: Handler = default(task, app, consumer, **options)
    queue = leader_queue(app, role)

    def on_message(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any) -> Any:
        if drain.lease.leading(role) is not None:
            return handle(message, body, ack, reject, callbacks)
        if came_by(message, queue):
            apply(consumer, drain)
            give_back(message, queue, consumer.connection_errors)
            counts.sent_back[role] += 1
        elif mark.on_standby == "forward":
            _forward(message, queue)
            counts.forwarded[role] += 1
        elif mark.on_standby == "fail":
            return fail(message, body, ack, reject, callbacks)  # the gate in the pool raises NotLeader
        elif _awaited(message, body):
            _fail(task, app, consumer, message, body, ack, reject)
        else:
            message.ack_log_error(logger, consumer.connection_errors)
            counts.skipped[role] += 1
        return None

    return on_message


def came_by(message: Any, queue: Queue) -> bool:
    """Whether `message` was published to `queue`, or, held back by RabbitMQ until its ETA, was to be."""
    info = message.delivery_info or {}
    exchange, key = info.get("exchange") or "", info.get("routing_key") or ""
    if exchange in ("", queue.exchange.name) and key == queue.routing_key:  # "": what Celery makes of a direct exchange
        return True
    return exchange.startswith("celery_delayed") and key.endswith(f".{queue.routing_key}")


def _forward(message: Any, queue: Queue) -> None:
    """What goes wrong ends the connection: Celery makes another one, with a pause, and the broker hands the message
    out again. Most errors of a broker would end the worker in place of that.
    """
    try:
        forward(message, queue)
    except Exception as exc:
        raise ConnectionResetError(f"message not forwarded id={message.headers.get('id')}: {exc!r}") from exc


def _awaited(message: Any, body: Any) -> bool:
    """Whether somebody waits for the end of this run: its caller, or a chord."""
    if message.headers.get("ignore_result") is False:
        return True
    if body is not None or "task" not in message.headers:  # protocol 1
        return bool((message.payload or {}).get("chord"))
    return bool(message.payload[2].get("chord"))


def _fail(task: Any, app: Any, consumer: Any, message: Any, body: Any, ack: Any, reject: Any) -> None:
    from celery.worker.strategy import proto1_to_proto2

    headers, decoded, utc = message.headers, False, True
    if body is not None or "task" not in message.headers:
        body, headers, decoded, utc = proto1_to_proto2(message, message.payload)
    request: Any = untracked(task.Request)(  # it never waits for anything
        message, on_ack=ack, on_reject=reject, app=app, hostname=consumer.hostname, eventer=consumer.event_dispatcher,
        task=task, connection_errors=consumer.connection_errors, body=body, headers=headers, decoded=decoded, utc=utc,
    )  # fmt: skip
    request.acknowledge()
    try:
        raise NotLeader(f"{task.name}[{request.id}] was to be skipped by a standby, and somebody waits for its result")
    except NotLeader:
        request.on_failure(ExceptionInfo())
