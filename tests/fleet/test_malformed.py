"""Messages that no sane publisher sends, on real brokers: workers keep their connections, and the neighbours run."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery

from tests.processes import wait_until

if TYPE_CHECKING:
    from tests.fleet.fleet import Fleet

pytestmark = [pytest.mark.smoke, pytest.mark.slow]

TASK = "fleet.leader.late"
BODY = b"[[0.0], {}, {}]"

#: Headers in place of the sound ones, None for one that is left out; the body; properties.
ODD: list[tuple[dict[str, Any], bytes, dict[str, Any]]] = [
    ({"id": None}, BODY, {}),
    ({"id": ["a", "list"]}, BODY, {}),
    ({"eta": "soon"}, BODY, {}),
    ({"expires": "soon"}, BODY, {}),
    ({"timelimit": ["1", "2"]}, BODY, {}),
    ({"stamped_headers": 5}, BODY, {}),
    ({"compression": "what/ever"}, BODY, {}),
    ({}, b"{", {}),
    ({}, b"5", {}),
    ({}, b"null", {}),
    ({}, b"[[]]", {}),
    ({"task": None}, b'{"task": "fleet.leader.late", "args": 5, "kwargs": 5}', {}),
]
#: RabbitMQ itself refuses these.
WITHOUT_AMQP: list[tuple[dict[str, Any], bytes, dict[str, Any]]] = [
    ({}, BODY, {"expiration": "abc"}),
    ({}, BODY, {"priority": "high"}),
    ({}, BODY, {"delivery_mode": "perhaps"}),
    ({}, BODY, {"correlation_id": 5}),
]


def publish(channel: Any, queue: str, headers: dict[str, Any], body: bytes, properties: dict[str, Any]) -> None:
    """Below kombu's Producer, which would mend or refuse some of it."""
    sound = {"lang": "py", "task": TASK, "id": uuid.uuid4().hex}
    headers = {name: value for name, value in {**sound, **headers}.items() if value is not None}
    copy = channel.prepare_message(body, 0, "application/json", "utf-8", headers, dict(properties))
    channel.basic_publish(copy, exchange="", routing_key=queue)


@pytest.mark.parametrize("fleet", ["redis", "rabbitmq"], indirect=True)
def test_odd_messages_cost_a_fleet_nothing_but_themselves(fleet: Fleet) -> None:
    """Each worker gets them by the common queue, so standbys forward them; some go to the role's own queue at once."""
    fleet.top_up(count=2)
    leader = fleet.members.wait_leader()
    app = Celery(broker=fleet.members.settings["broker_url"], set_as_current=False)
    redis = fleet.members.settings["broker_url"].startswith("redis")
    sent = []
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        for headers, body, properties in [*ODD, *(WITHOUT_AMQP if redis else [])]:
            for queue in ("celery", f"{fleet.members.group}.leader.leader", "celery"):
                publish(channel, queue, headers, body, properties)
                sent.append(f"good-{uuid.uuid4().hex}")
                publish(channel, queue, {"id": sent[-1]}, BODY, {})

    def ran() -> dict[str, str]:
        return {run.task: run.worker for run in fleet.records()[0] if run.task in sent and run.end is not None}

    wait_until(lambda: len(ran()) == len(sent), timeout=60, what=f"{len(sent)} runs, see {fleet.members.directory}")
    assert set(ran().values()) == {leader.name}
    for worker in fleet.members.alive:
        assert "onnection to broker lost" not in worker.log, worker.log[-3000:]
        assert "nrecoverable error" not in worker.log, worker.log[-3000:]
    assert len(fleet.members.alive) == 2
