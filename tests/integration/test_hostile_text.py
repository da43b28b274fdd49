"""Text that others wrote, through every command that prints it."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from confluent_kafka import Producer

from celery_neli.cli import neli
from celery_neli.config import from_app
from celery_neli.schedule_topic.codec import MAX_KEY, key_of, partition_of
from tests.unit import hostile
from tests.unit.schedulers import make_app

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Celery

    from celery_neli.embedded import EmbeddedKafka

pytestmark = pytest.mark.integration

#: The texts that may be names: a longer key belongs to no entry and to no member.
NAMES = [text for text in hostile.TEXTS if len(key_of("e", text)) <= MAX_KEY]


@pytest.fixture
def app(embedded_kafka: EmbeddedKafka) -> Celery:
    """An app whose topics hold hostile entries, members and records, and one good entry."""
    app = make_app(
        neli_group="g",
        neli_kafka=embedded_kafka.bootstrap_servers,
        neli_scheduler=None,
        beat_schedule={"static": {"task": "t", "schedule": 60.0}},
    )
    config = from_app(app, "beat")
    embedded_kafka.create_topic(config.topic)
    embedded_kafka.create_topic(config.schedule_topic, partitions=17)
    now = time.time()
    producer = Producer({"bootstrap.servers": embedded_kafka.bootstrap_servers})
    fields = {"task": "t", "schedule": "PT1M", "args": [], "kwargs": {}}
    for number, text in enumerate(hostile.TEXTS):
        for value, name in [
            (hostile.definition(text), f"e{number}"),
            (hostile.definition(text, **fields), text),
            (hostile.definition(text, schedule="solar:" + text, task="t"), f"s{number}"),
            (
                hostile.definition(text, schedule="solar:" + text, task="t", args=[], kwargs={}, changes=[]),
                f"t{number}",
            ),
        ]:
            producer.produce(config.schedule_topic, value, key_of("e", name), partition=partition_of("e", name))
        producer.produce(config.schedule_topic, hostile.note(text, at=now), key_of("m", text), partition=16)
        record = {
            "v": 1,
            "kind": "claim",
            "member": text[:400] + "/1",
            "seq": number,
            "lease": 60.0,
            "seen": number - 1,
        }
        producer.produce(config.topic, json.dumps(record).encode(), text[:400].encode("utf-8", "replace"), partition=0)
    producer.produce(
        config.schedule_topic,
        hostile.definition("good", **fields),
        key_of("e", "good"),
        partition=partition_of("e", "good"),
    )
    assert producer.flush(20) == 0
    producer.close()
    return app


@pytest.fixture(params=["utf-8", "ascii"])
def run(app: Celery, request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Run `celery neli …` on a terminal of this encoding; what it printed must be lines that harm none."""

    def command(*arguments: str) -> Any:
        runner = CliRunner(charset=request.param)
        result = runner.invoke(neli, arguments, obj=SimpleNamespace(app=app), catch_exceptions=False)
        for line in result.output.split("\n"):
            assert line.isprintable(), line[:200]
            assert not line.startswith(hostile.FORGED[:10])
            assert len(line) <= 15_000 or "--json" in arguments
        return result

    return command


def test_the_list_shows_all_entries(run: Callable[..., Any]) -> None:
    """One line each, the good one among them; as JSON, the names are exact."""
    told = run("schedule", "list")
    assert told.exit_code == 0
    assert sum(line.startswith("good ") for line in told.output.splitlines()) == 1
    assert len(told.output.splitlines()) == 1 + 2 + 3 * len(hostile.TEXTS) + len(NAMES)
    names = {each["name"] for each in json.loads(run("schedule", "list", "--json").output)}
    assert names >= {*NAMES, "good", "static"}


@pytest.mark.parametrize("name", hostile.TEXTS[:-2], ids=range(len(hostile.TEXTS) - 2))
def test_each_entry_can_be_shown_paused_and_removed(run: Callable[..., Any], name: str) -> None:
    """Whatever its name and its changes hold: that is how it is got rid of."""
    assert run("schedule", "show", name).exit_code == 0
    assert json.loads(run("schedule", "show", name, "--json").output)["name"] == name
    for verb in ("pause", "resume", "run"):
        run("schedule", verb, name)
    assert run("schedule", "remove", name).exit_code == 0
    told = run("schedule", "show", name)
    assert told.exit_code == 1
    assert len(told.output.splitlines()) == 1


@pytest.mark.parametrize("name", ["e0", "e3", "e5", "e8", "s0", "s3", "s8", "t5", "t8"])
def test_entries_of_hostile_tasks_and_schedules_can_be_shown(run: Callable[..., Any], name: str) -> None:
    """Although no beat runs them."""
    assert run("schedule", "show", name).exit_code == 0


def test_status_names_members_and_leaders(run: Callable[..., Any]) -> None:
    """By escaped names; as JSON, by exact ones."""
    told = run("status")
    assert "role leader:" in told.output
    (election,) = json.loads(run("status", "--json").output)["elections"]
    assert {each["name"] for each in election["schedules"]} >= {*NAMES}
    assert election["roles"][0]["leader"] == hostile.TEXTS[-1][:400]


def test_an_unknown_name_is_told_in_one_line(run: Callable[..., Any]) -> None:
    """Also if it is hostile itself."""
    for text in hostile.TEXTS:
        told = run("resign", "--to", f"no{text}")
        assert told.exit_code == 1
        assert told.output.startswith("Error: ")
        assert len(told.output.splitlines()) == 1
