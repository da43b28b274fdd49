"""Leader tasks that reach workers which do not lead, in numbers: they all go on to the leader."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest
from celery import Celery

from tests.processes import wait_until

if TYPE_CHECKING:
    from tests.fleet.fleet import Fleet

pytestmark = [pytest.mark.smoke, pytest.mark.slow]
COUNT = 200


@pytest.mark.parametrize("fleet", ["redis", "rabbitmq"], indirect=True)
def test_a_burst_is_forwarded(fleet: Fleet) -> None:
    """Sent by name from a process that knows no task, so to the queue that all consume: faster than they forward."""
    fleet.top_up()
    leader = fleet.members.wait_leader()
    app = Celery(broker=fleet.members.settings["broker_url"], set_as_current=False)
    sent = {f"burst-{uuid.uuid4().hex[:8]}-{number}" for number in range(COUNT)}
    with app.connection_for_write() as connection, app.amqp.Producer(connection) as producer:
        for each in sent:
            app.send_task("fleet.leader.late", (0.0,), task_id=each, producer=producer, ignore_result=True)

    def ran() -> dict[str, str]:
        return {run.task: run.worker for run in fleet.records()[0] if run.task in sent and run.end is not None}

    wait_until(lambda: len(ran()) == COUNT, timeout=60, what=f"{COUNT} runs, see {fleet.members.directory}")
    assert set(ran().values()) == {leader.name}
    received = {each.worker for each in fleet.records()[1] if each.task in sent}
    assert received == {leader.name}, "who forwards a message does not receive a task"
