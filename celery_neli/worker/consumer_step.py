"""The worker's consumer takes from a role's queue while this worker leads the role, and from no leader queue else."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from celery import bootsteps
from celery.utils.quorum_queues import detect_quorum_queues
from kombu.transport.native_delayed_delivery import (
    bind_queue_to_native_delayed_delivery_exchange,
    declare_native_delayed_delivery_exchanges_and_queues,
)

from celery_neli.exceptions import ConfigurationError
from celery_neli.logs import escaping
from celery_neli.worker.in_flight import drain_of
from celery_neli.worker.queues import leader_queues, refuse_lone_quorum, refuse_shared
from celery_neli.worker.refusal import end_worker, refusing

if TYPE_CHECKING:
    from kombu.entity import Queue

    from celery_neli.worker.in_flight import Drain

logger = escaping(logging.getLogger(__name__))


class LeaderQueues(bootsteps.StartStopStep):
    """Applies the queue set anew from the lease with each connection to the task broker.

    In the consumer's blueprint, after `Tasks`, which makes the consumer of tasks; before the event loop.
    """

    name = "celery_neli.LeaderQueues"
    label = "Leader queues"
    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        self._drain: Drain | None = None
        self._declared = False

    def include_if(self, consumer: Any) -> bool:
        """Where the worker takes part in the election. Raises `ConfigurationError`, which ends the worker's start."""
        self._drain = drain_of(consumer.app)
        if self._drain is None:
            return False
        with refusing():
            refuse_shared(consumer.app)
            refuse_lone_quorum(consumer.app)
        return True

    def start(self, consumer: Any) -> None:
        """Connected: consume from what this worker leads. The loop begins to take messages later.

        All are declared, for what a standby forwards. A worker that can never consume one of them ends at its start,
        before it is elected for that; later the other queues need it.
        """
        if self._drain is None:
            return
        for _, queue in leader_queues(consumer.app):
            try:
                declare(consumer, queue)
            except ConfigurationError as exc:
                if not self._declared:
                    end_worker(exc)
                logger.error("%s", exc)
        self._declared = True
        _bind_delayed(consumer)
        self._drain.connected(consumer)
        apply(consumer, self._drain)

    def stop(self, consumer: Any) -> None:
        """The connection is lost, or the worker stops: then what has not begun goes back, before the pool is waited
        for.
        """
        if self._drain is None or self._drain.consumer is None:
            return
        if consumer.blueprint.state == bootsteps.RUN:
            self._drain.disconnected()
        else:
            self._drain.send_back(everything=True)
            self._drain.consumer = None

    def shutdown(self, consumer: Any) -> None:
        """Nothing more: the worker has stopped."""


def apply(consumer: Any, drain: Drain) -> None:
    """Consume from the queue of each role that this worker leads now, and from no other leader queue. On the consumer's
    thread; waits for the broker. A role whose queue the broker refuses is resigned; other errors are raised.
    """
    tasks = consumer.task_consumer
    if tasks is None:
        return
    added = False
    for role, queue in leader_queues(consumer.app):
        leads = drain.lease.leading(role) is not None
        if leads and not any(each.name == queue.name for each in tasks.queues):
            try:
                declare(consumer, queue)
            except ConfigurationError as exc:
                logger.error("role resigned role=%s: %s", role, exc)
                drain.leadership.stand_back(role)
                continue
            tasks.add_queue(queue)
            added = True
            logger.info("leader queue consumed role=%s queue=%s", role, queue.name)
        elif not leads and any(each.name == queue.name for each in tasks.queues):
            tasks.cancel_by_queue(queue.name)
            logger.info("leader queue left role=%s queue=%s", role, queue.name)
    if added and tasks.on_message is not None:  # else the loop has yet to begin, and consumes all
        tasks.consume()


def declare(consumer: Any, queue: Queue) -> None:
    """Declare `queue`, on a channel of its own: RabbitMQ closes the one on which it refuses. Waits for the broker.
    Raises `ConfigurationError` with its answer, if it does.
    """
    channel = consumer.connection.channel()
    bound: Any = queue(channel)
    try:
        bound.declare()
    except consumer.connection.channel_errors as exc:
        raise ConfigurationError(
            f"the broker refuses the leader's queue {queue.name!r}: {exc}. If it exists with other arguments, delete "
            "it once it is empty, or choose another name (neli_leader_queue); otherwise give the user its permissions"
        ) from exc
    finally:
        channel.close()


def _bind_delayed(consumer: Any) -> None:
    """Let RabbitMQ bring what it holds back until its ETA (quorum queues) to the leader queues too: Celery's own step
    binds the queues that it knows.
    """
    app = consumer.app
    if not detect_quorum_queues(app, app.connection_for_write().transport.driver_type)[0]:
        return
    with app.connection_for_write() as connection:
        declare_native_delayed_delivery_exchanges_and_queues(
            connection, app.conf.broker_native_delayed_delivery_queue_type
        )
        for _, queue in leader_queues(app):
            if queue.exchange.type != "direct":  # the publisher does not delay these either
                bound: Any = queue(connection.default_channel)
                bound.declare()
                bind_queue_to_native_delayed_delivery_exchange(connection, queue)
