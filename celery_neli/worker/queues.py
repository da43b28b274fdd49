"""The queue of each role's leader: made by the app's own rules, known to every publisher, consumed by the leader only.

It never enters `app.amqp.queues`: what is in there, a worker may consume after any reconnect (Celery 5.5:
`Queues.consume_from`), whether it leads or not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from celery.utils.quorum_queues import detect_quorum_queues
from kombu.entity import Queue

from celery_neli.config import check_names, worker_settings
from celery_neli.exceptions import ConfigurationError


def roles_of(app: Any) -> tuple[str, ...]:
    """The roles that workers of `app` contend for: `neli_roles`. Loads the app's configuration."""
    return tuple(app.conf.get("neli_roles") or ("leader",))


def role_of(app: Any, role: str | None) -> str:
    """`role`, or the only one there is if it is None. Raises `ConfigurationError`, which names the known ones."""
    known = roles_of(app)
    if role is None:
        if len(known) > 1:
            raise ConfigurationError(
                f"@leader_only names no role, and neli_roles has {len(known)}: "
                f"write @leader_only(role=...) with one of {', '.join(map(repr, known))}"
            )
        return known[0]
    if role not in known:
        raise ConfigurationError(
            f"@leader_only(role={role!r}): no such role; neli_roles has {', '.join(map(repr, known))}"
        )
    return role


def leader_queue(app: Any, role: str | None = None) -> Queue:
    """The queue that the leader of `role` (None: the only role) consumes. The same object each time; do not change it.

    Exchange, type and arguments are what the app gives to a queue that nobody declared (`task_create_missing_queue_*`,
    `task_queue_max_priority`, `app.amqp.autoexchange`), whether or not it may create missing ones. Neither blocks nor
    connects; may be called from any thread. Raises `ConfigurationError`.
    """
    role = role_of(app, role)
    of_app: dict[str, Queue] | None = getattr(app, "neli_queues", None)
    if of_app is None:
        app.neli_queues = of_app = {}  # on the app itself: `app` may be Celery's proxy of it
    if role not in of_app:
        check_names(app)
        name = worker_settings(app).leader_queue.replace("{role}", role)
        of_app[role] = app.amqp.Queues(None, create_missing=True)[name]
    return of_app[role]


def leader_queues(app: Any) -> Iterator[tuple[str, Queue]]:
    """Each role with its queue."""
    for role in roles_of(app):
        yield role, leader_queue(app, role)


def refuse_shared(app: Any) -> None:
    """Raise `ConfigurationError` if this worker was told to consume a leader queue whether it leads or not."""
    consumed = app.amqp.queues.consume_from
    declared = {each if isinstance(each, str) else each.name for each in app.conf.get("task_queues") or ()}
    for role, queue in leader_queues(app):
        if queue.name not in consumed:
            continue
        if queue.name in declared:
            where = "task_queues names it: take it out, @leader_only tasks find it by themselves"
        elif queue.name == app.conf.task_default_queue:
            where = "task_default_queue names it: choose another name for either"
        else:
            where = "-Q names it: leave it out, the leader consumes it by itself"
        raise ConfigurationError(
            f"the queue {queue.name!r} is for the leader of role {role!r}, and this worker would consume it "
            f"whether it leads or not; {where}"
        )


def refuse_lone_quorum(app: Any) -> None:
    """Raise `ConfigurationError` if RabbitMQ would refuse the leader queues: they are quorum queues, and no other queue
    of the app is, so that Celery limits the prefetch for all consumers together (global QoS).
    """
    driver = app.connection_for_read().transport.driver_type
    queue: Any  # what kombu's types know of it lacks the arguments
    for _, queue in leader_queues(app):
        quorum = (queue.queue_arguments or {}).get("x-queue-type") == "quorum"
        if driver == "amqp" and quorum and not detect_quorum_queues(app, driver)[0]:
            raise ConfigurationError(
                f"task_create_missing_queue_type = 'quorum' makes {queue.name!r} a quorum queue, and "
                f"task_default_queue_type = {app.conf.task_default_queue_type!r}: RabbitMQ lets a worker consume both "
                "kinds only if Celery knows of one; set task_default_queue_type = 'quorum' too"
            )
