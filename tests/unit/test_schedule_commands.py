"""`celery neli schedule` and `periodic` on a topic that strangers wrote to: every row is there, no command ends."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from click.testing import CliRunner

from celery_neli import periodic
from celery_neli.config import from_app
from celery_neli.embedded import EmbeddedKafka
from celery_neli.periodic.cli import schedule
from celery_neli.schedule_topic.codec import ENTRY, MEMBER, STATE, State, encode_state
from celery_neli.schedule_topic.topic import read_notes, write
from tests.unit.test_hostile_records import HOSTILE

LOG = logging.getLogger("celery_neli.cli")


@pytest.fixture(scope="module")
def app() -> Iterator[Celery]:
    """An app whose topic holds every hostile record as a definition, a state and a note, and two good entries."""
    with EmbeddedKafka() as kafka:
        found = Celery("test", broker="memory://", set_as_current=False)
        found.conf.update(
            neli_group="g", neli_kafka=kafka.bootstrap_servers, result_expires=None,
            beat_schedule={
                "static": {"task": "t", "schedule": "5m"},
                "zero": {"task": "t", "schedule": 0},
                "odd": {"task": "t", "schedule": 5, "kwargs": {"a": {(1, 2): {3}}}},
            },
        )  # fmt: skip
        config = from_app(found, "beat")
        periodic.put(found, "a", "t", "5m")
        records: list[Any] = []
        for number, name in enumerate(sorted(HOSTILE)):
            value = HOSTILE[name][0][:500_000]
            records += [(kind, f"bad-{number}", value) for kind in (ENTRY, STATE, MEMBER)]
        records.append((STATE, "a", encode_state(State(9e17, 1, 1))))
        write(config, records, log=LOG)
        periodic.put(found, "z", "t", "5m")
        yield found


def run(app: Celery, *arguments: str) -> Any:
    return CliRunner().invoke(schedule, arguments, obj=SimpleNamespace(app=app), catch_exceptions=False)


def test_every_entry_is_a_row(app: Celery) -> None:
    """Good and bad ones; of those that cannot be read the row says why."""
    rows = {each.name: each for each in periodic.list(app)}
    bad = {f"bad-{number}" for number in range(len(HOSTILE))}
    assert rows.keys() == bad | {"a", "z", "static", "zero", "odd"}
    assert {name for name, row in rows.items() if str(row.problem).startswith("cannot be shown: ")} == bad | {"zero"}
    result = run(app, "list")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert len(lines) == len(rows) + 1
    unshown = [line for line in lines if "cannot be shown: " in line]
    assert len(unshown) == len(bad) + 1
    assert not [line for line in unshown if "active" in line or "beat entry" in line]
    found = json.loads(run(app, "list", "--json").output)
    assert {each["name"] for each in found} == rows.keys()


def test_every_entry_can_be_shown_and_removed(app: Celery) -> None:
    """One by one."""
    for name in ("a", "static", "zero", "odd", "bad-0", "bad-7"):
        for more in ((), ("--json",)):
            assert run(app, "show", name, *more).exit_code == 0
    for what in ("pause", "resume", "run", "remove"):
        result = run(app, what, "zero")
        assert result.exit_code == 1
        assert len(result.output.splitlines()) == 1
    assert run(app, "remove", "bad-0").exit_code == 0
    assert periodic.get(app, "bad-0") is None


def test_notes_that_cannot_be_read_are_left_out(app: Celery) -> None:
    """`celery neli status` shows the others."""
    assert read_notes(from_app(app, "beat"), log=LOG) == {}


def test_what_is_wrong_is_one_line(app: Celery) -> None:
    """With the field, its value and what to do; nothing is written."""
    before = [each.name for each in periodic.list(app)]
    for arguments, says in (
        (("x", "t", "0s"), "schedule = '0s': "),
        (("x", "t", "5m", "--options", '{"quue": "q"}'), "did you mean queue?"),
        (("x", "t", "5m", "--options", '{"countdown": "soon"}'), "countdown = 'soon': "),
        (("x", "t", "5m", "--args", "[" * 80 + "]" * 80), "nested more than 64 deep"),
        (("x", "t", "5m", "--args", "[" * 5000 + "]" * 5000), "args"),
        (("x", "celery.backend_cleanup", "5m", "--args", "[1]"), "does not take these arguments"),
    ):
        result = run(app, "add", *arguments)
        assert result.exit_code == 1
        assert says in result.output
        assert len(result.output.splitlines()) == 1
    assert [each.name for each in periodic.list(app)] == before
