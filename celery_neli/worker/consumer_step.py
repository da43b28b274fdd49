"""The consumer receives from a role's queue while this worker leads the role."""

from __future__ import annotations

import logging
import time
from typing import Any, NoReturn

from celery import bootsteps
from celery.exceptions import WorkerShutdown
from celery.platforms import EX_FAILURE
from celery.utils.quorum_queues import detect_quorum_queues
from kombu.entity import Queue
from kombu.transport.native_delayed_delivery import (
    bind_queue_to_native_delayed_delivery_exchange,
    declare_native_delayed_delivery_exchanges_and_queues,
)

from celery_neli import signals
from celery_neli.exceptions import ConfigurationError
from celery_neli.logs import escaping
from celery_neli.worker.in_flight import POLL_INTERVAL, InFlight, in_flight_of
from celery_neli.worker.task_marking import role_queues

logger = escaping(logging.getLogger(__name__))


class RoleQueues(bootsteps.StartStopStep):
    """Applies the leases with each transition and each connection: after `Tasks`, before the event loop."""

    name = "celery_neli.RoleQueues"
    label = "Role queues"
    requires = ("celery.worker.consumer.tasks:Tasks",)

    _in_flight: InFlight
    _declared = False

    def include_if(self, consumer: Any) -> bool:
        """Return True if the worker takes part in the election."""
        in_flight = in_flight_of(consumer.app)
        if in_flight is not None:
            self._in_flight = in_flight
        return in_flight is not None

    def create(self, consumer: Any) -> None:
        """Receive the transitions, on the leadership's thread. A handover waits for `hand_over` after all receivers."""
        leadership = self._in_flight.leadership
        leadership.barrier = self.hand_over
        signals.leadership_acquired.connect(self.changed, sender=leadership, weak=False)
        signals.leadership_revoked.connect(self.changed, sender=leadership, weak=False)
        signals.leadership_fenced.connect(self.fenced, sender=leadership, weak=False)

    def start(self, consumer: Any) -> None:
        """Consume what this worker leads, and declare all role queues, since a standby forwards to them.

        A worker that can never consume one of them ends when it starts; later its other queues need it.
        """
        for _, queue in role_queues(consumer.app):
            try:
                declare(consumer, queue)
            except ConfigurationError as exc:
                if not self._declared:
                    end_worker(exc)
                logger.error("%s", exc)
        self._declared = True
        _bind_delayed(consumer)
        self._in_flight.connected(consumer)
        consume_led_roles(consumer, self._in_flight)

    def stop(self, consumer: Any) -> None:
        """Note that the connection is lost; or, as the worker stops and is to wait for the pool, send back the rest."""
        if self._in_flight.consumer is None:
            return
        if consumer.blueprint.state == bootsteps.RUN:
            self._in_flight.disconnected()
        else:
            self._in_flight.send_back(everything=True)
            self._in_flight.consumer = None

    def changed(self, **_: Any) -> None:
        """Begin or cease to consume the role's queue, and send back what has not begun."""
        self._in_flight.call_soon(self._apply)

    def hand_over(self, role: str) -> None:
        """Return when no task of the role runs, or with the lease, also after an error: it must not release early."""
        try:
            self.changed()
            self._in_flight.wait_until_idle(role)
        except Exception:
            logger.exception("handover failed role=%s: the lease is kept to its end", role)
            while self._in_flight.leases.role(role).may_finish():
                time.sleep(POLL_INTERVAL)

    def fenced(self, *, role: str, term: int, **_: Any) -> None:
        """Leave the role's queue, send back, and kill what runs if the settings say so."""
        self.changed()
        self._in_flight.fenced(role, term)

    def _apply(self) -> None:
        consumer = self._in_flight.consumer
        if consumer is not None:
            consume_led_roles(consumer, self._in_flight)
            self._in_flight.send_back()


def consume_led_roles(consumer: Any, in_flight: InFlight) -> None:
    """Consume the queue of each role that this worker leads now, and of no other role. On the consumer's thread.

    Waits for the broker. A role whose queue the broker refuses is resigned; other errors are raised.
    """
    tasks = consumer.task_consumer
    if tasks is None:
        return
    added = False
    for role, queue in role_queues(consumer.app):
        leads = in_flight.leases.role(role).may_start()
        consumed = any(each.name == queue.name for each in tasks.queues)
        if leads and not consumed:
            try:
                declare(consumer, queue)
            except ConfigurationError as exc:
                logger.error("role resigned role=%s: %s", role, exc)
                in_flight.leadership.role(role).resign(back_off=True)
                continue
            tasks.add_queue(queue)
            added = True
            logger.info("leader queue consumed role=%s queue=%s", role, queue.name)
        elif not leads and consumed:
            tasks.cancel_by_queue(queue.name)
            logger.info("leader queue left role=%s queue=%s", role, queue.name)
    if added and tasks.on_message is not None:  # else the loop has yet to begin, and consumes all
        tasks.consume()


def declare(consumer: Any, queue: Queue) -> None:
    """Declare `queue`, on a channel of its own, since RabbitMQ closes the one on which it refuses: that raises
    `ConfigurationError` with its answer. Waits for the broker.
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


def end_worker(error: ConfigurationError) -> NoReturn:
    """End a running worker in an orderly way, where another error would be logged with its traceback."""
    logger.critical("%s", error)
    raise WorkerShutdown(EX_FAILURE) from error


def _bind_delayed(consumer: Any) -> None:
    """Bind the role queues to RabbitMQ's delays (ETAs with quorum queues), as Celery does with the queues it knows."""
    app = consumer.app
    if not detect_quorum_queues(app, app.connection_for_write().transport.driver_type)[0]:
        return
    with app.connection_for_write() as connection:
        declare_native_delayed_delivery_exchanges_and_queues(
            connection, app.conf.broker_native_delayed_delivery_queue_type
        )
        for _, queue in role_queues(app):
            if queue.exchange.type != "direct":  # the publisher does not delay these either
                bound: Any = queue(connection.default_channel)
                bound.declare()
                bind_queue_to_native_delayed_delivery_exchange(connection, queue)
