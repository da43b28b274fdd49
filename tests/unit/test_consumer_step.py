"""A worker consumes a role's queue while it leads the role."""

from __future__ import annotations

import logging

import pytest
from celery.exceptions import WorkerShutdown

from celery_neli.worker.consumer_step import consume_led_roles
from tests.unit.workers import Worker


def test_a_standby_consumes_ordinary_queues_only() -> None:
    """And the app knows no other."""
    worker = Worker()
    worker.connect()
    assert worker.consumes() == set(worker.app.amqp.queues) == {worker.ordinary}


def test_an_acquisition_begins_to_consume_and_a_revocation_ends_it() -> None:
    """On the consumer's own thread."""
    worker = Worker()
    worker.connect()
    receivers = worker.step
    worker.lease.lead()
    receivers.changed()
    assert worker.consumes() == {worker.ordinary}
    worker.turn()
    assert worker.consumes() == {worker.ordinary, worker.queue()}
    assert worker.consumer.task_consumer.consuming_from(worker.queue())
    worker.lease.drain()
    receivers.hand_over(role="leader")
    worker.turn()
    assert worker.consumes() == {worker.ordinary}
    worker.lease.lead(8)
    receivers.changed()
    worker.lease.lose(8)
    receivers.fenced(role="leader", term=8)
    worker.turn()
    assert worker.consumes() == {worker.ordinary}
    assert set(worker.app.amqp.queues) == {worker.ordinary}


def test_what_is_consumed_is_not_consumed_again(caplog: pytest.LogCaptureFixture) -> None:
    """Two signals may tell of one change."""
    worker = Worker()
    worker.connect()
    worker.lease.lead()
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            worker.step.changed()
            worker.turn()
    assert caplog.text.count("leader queue consumed") == 1


def test_nothing_is_taken_before_the_loop_runs() -> None:
    """Nobody could handle it: the loop sets the handler, and begins to consume."""
    worker = Worker()
    worker.connect()
    worker.consumer.task_consumer.on_message = None
    worker.lease.lead()
    consume_led_roles(worker.consumer, worker.in_flight)
    assert worker.consumes() == {worker.ordinary, worker.queue()}
    assert not worker.consumer.task_consumer.consuming_from(worker.queue())


def test_each_connection_begins_with_what_is_led_then() -> None:
    """What was consumed before it was lost is forgotten."""
    worker = Worker(neli_roles=["billing", "mail"])
    worker.lease.lead(role="billing")
    worker.connect()
    assert worker.consumes() == {worker.ordinary, worker.queue("billing")}
    worker.step.stop(worker.consumer)
    worker.lease.lose(role="billing")
    worker.lease.lead(role="mail")
    worker.connect()
    assert worker.consumes() == {worker.ordinary, worker.queue("mail")}


def test_a_queue_added_by_hand_is_left_by_a_standby() -> None:
    """`celery control add_consumer`, which Celery remembers across connections."""
    worker = Worker()
    worker.connect()
    worker.consumer.add_task_queue(worker.queue())
    worker.step.stop(worker.consumer)
    worker.connect()
    assert worker.consumes() == {worker.ordinary}


def test_changes_while_disconnected_wait_for_the_connection() -> None:
    """A transition then touches nothing."""
    worker = Worker()
    worker.connect()
    receivers = worker.step
    worker.lease.lead()
    receivers.changed()
    worker.step.stop(worker.consumer)
    worker.turn()
    assert worker.consumes() == {worker.ordinary}
    worker.connect()
    assert worker.consumes() == {worker.ordinary, worker.queue()}


def test_a_worker_that_could_never_consume_a_role_queue_ends(caplog: pytest.LogCaptureFixture) -> None:
    """A standby, too, before it is elected: one line has the queue, the broker's answer and what to do."""
    worker = Worker(neli_roles=["billing", "mail"])
    worker.refused.add(worker.queue("mail"))
    with pytest.raises(WorkerShutdown) as ended:
        worker.connect()
    assert ended.value.code == 1
    (record,) = [each for each in caplog.records if each.levelname == "CRITICAL"]
    assert all(
        each in record.getMessage() for each in (worker.queue("mail"), "PRECONDITION_FAILED", "neli_leader_queue")
    )
    assert record.exc_info is None


def test_a_role_whose_queue_is_refused_later_is_resigned(caplog: pytest.LogCaptureFixture) -> None:
    """The worker's other work goes on, also with a new connection."""
    worker = Worker(neli_roles=["billing", "mail"])
    worker.connect()
    worker.refused.add(worker.queue("billing"))
    worker.lease.lead(role="billing")
    worker.lease.lead(role="mail")
    worker.step.changed()
    worker.turn()
    assert worker.leadership.resigned == ["billing"]
    assert worker.consumes() == {worker.ordinary, worker.queue("mail")}
    assert worker.consumer.task_consumer.channel.closed is False  # RabbitMQ closes the one that asked
    assert caplog.text.count("PRECONDITION_FAILED") == 1
    worker.step.stop(worker.consumer)
    worker.connect()
    assert worker.leadership.resigned == ["billing", "billing"]
    assert worker.consumes() == {worker.ordinary, worker.queue("mail")}


def test_each_connection_declares_the_queues_again(caplog: pytest.LogCaptureFixture) -> None:
    """A standby forwards to them, and a broker may come back empty. What is refused then ends nothing."""
    worker = Worker(neli_roles=["billing", "mail"])
    worker.connect()
    worker.consumer.connection.default_channel.queue_delete(worker.queue("mail"))
    worker.step.stop(worker.consumer)
    worker.refused.add(worker.queue("billing"))
    worker.connect()
    assert worker.consumer.connection.default_channel._has_queue(worker.queue("mail"))  # noqa: SLF001 - kombu's own way
    assert "PRECONDITION_FAILED" in caplog.text
