"""`celery neli schedule runs` and `periodic.runs`: what became of slots, in words, and why there is nothing to show."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from click.testing import CliRunner

from celery_neli import periodic
from celery_neli.config import from_app
from celery_neli.embedded import EmbeddedKafka
from celery_neli.exceptions import ConfigurationError, NeliError
from celery_neli.history.records import RunRecord, SlotRecord, encode, key_of, partition_of
from celery_neli.kafka.client_log import ClientLog
from celery_neli.kafka.properties import history_producer_properties
from celery_neli.kafka.writer import Writer
from celery_neli.periodic.cli import schedule
from celery_neli.periodic.run_history import since_of

LOG = logging.getLogger("celery_neli.cli")
SEVEN = datetime(2026, 12, 1, 7, tzinfo=timezone.utc).timestamp()


def slot(entry: str, when: float, outcome: str, **more: Any) -> SlotRecord:
    given = {"task": "shop.report", "member": "a", "role": "leader", "term": 219, "id": f"{entry}{when}"}
    return SlotRecord(entry=entry, slot=when, outcome=outcome, **{**given, "at": when + 0.25, **more})


def task(entry: str, when: float, state: str, **more: Any) -> RunRecord:
    given = {"task": "shop.report", "worker": "celery@w1", "id": f"{entry}{when}"}
    return RunRecord(entry=entry, slot=when, state=state, **{**given, "at": when + 2.0, **more})


RECORDS = [
    slot("report", SEVEN, "sent"),
    task("report", SEVEN, "started", at=SEVEN + 0.5),
    task("report", SEVEN, "succeeded", runtime=1.5),
    slot("report", SEVEN + 60, "failed", error="OSError: \x1b[2Jgone"),
    slot("report", SEVEN + 60, "sent", at=SEVEN + 65),
    task("report", SEVEN + 60, "failed", at=SEVEN + 4000, runtime=3700.0, error="ValueError: x", retries=2),
    slot("tidy\x1b[2J", SEVEN - 60, "skipped", policy="misfire", count=3, first=SEVEN - 180),
    slot("tidy\x1b[2J", SEVEN - 30, "in_doubt", policy="skip"),
    RunRecord(entry="tidy\x1b[2J", task="t", slot=None, id="h", state="started", at=SEVEN - 5, worker="celery@w2"),
]


@pytest.fixture(scope="module")
def app() -> Iterator[Celery]:
    with EmbeddedKafka() as kafka:
        found = Celery("test", broker="memory://", set_as_current=False)
        found.conf.update(neli_group="g", neli_kafka=kafka.bootstrap_servers, result_expires=None)
        config = from_app(found, "beat")
        kafka.create_topic(config.history_topic, partitions=4)
        log = ClientLog(LOG, config.properties)
        with closing(Writer(config, log, config.history_topic, history_producer_properties(config))) as writer:
            records = [(partition_of(key_of(each)), key_of(each), encode(each)) for each in RECORDS]
            assert not writer.send_all(records, 10.0)
        yield found


def run(app: Celery, *arguments: str) -> Any:
    return CliRunner().invoke(schedule, ("runs", *arguments), obj=SimpleNamespace(app=app), catch_exceptions=False)


def test_a_table_of_all_entries(app: Celery) -> None:
    """The newest first; names and errors are escaped."""
    result = run(app)
    assert result.exit_code == 0
    lines = [line.split("  ") for line in result.output.splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert cells == [
        ["SLOT", "ENTRY", "OUTCOME", "LATE", "STATE", "RUNTIME", "WORKER", "TERM", "NOTE"],
        [
            "2026-12-01 07:01:00Z", "report", "sent", "5.00s", "failed", "1:01:40", "celery@w1", "219",
            "2 attempts to send; after 2 retries; ValueError: x",
        ],
        ["2026-12-01 07:00:00Z", "report", "sent", "0.25s", "succeeded", "1.50s", "celery@w1", "219"],
        ["by hand", r"tidy\x1b[2J", "-", "-", "started", "-", "celery@w2", "-"],
        ["2026-12-01 06:59:30Z", r"tidy\x1b[2J", "in_doubt", "-", "-", "-", "-", "219", "in doubt: skip"],
        [
            "2026-12-01 06:59:00Z", r"tidy\x1b[2J", "skipped", "-", "-", "-", "-", "219",
            "policy misfire; 3 slots since 2026-12-01 06:57:00Z",
        ],
    ]  # fmt: skip


def test_a_table_of_one_entry(app: Celery) -> None:
    """Without its name in each line."""
    lines = run(app, "report", "--limit", "1").output.splitlines()
    assert len(lines) == 2
    assert "ENTRY" not in lines[0]
    assert "07:01:00Z" in lines[1]


def test_only_what_failed(app: Celery) -> None:
    """The limit counts those."""
    found = json.loads(run(app, "--failed", "--limit", "2", "--json").output)
    assert [(each["entry"], each["outcome"], each["state"]) for each in found] == [
        ("report", "sent", "failed"),
        ("tidy\x1b[2J", "in_doubt", None),
    ]


def test_json_has_all_that_is_known(app: Celery) -> None:
    """With plain values."""
    (found,) = json.loads(run(app, "report", "--since", "2026-12-01T07:30Z", "--json").output)
    assert found["late"] == 5.0
    assert (found["error"], found["term"], found["attempts"]) == ("ValueError: x", 219, 2)


def test_an_entry_without_runs(app: Celery) -> None:
    """Says so; it may have been removed, or never run."""
    assert run(app, "nobody\x1b").output == "no runs recorded of nobody\\x1b\n"


def test_the_api_takes_each_kind_of_time(app: Celery) -> None:
    """A datetime, how long ago, and Unix seconds."""
    at = SEVEN + 3600
    for since in (at, datetime.fromtimestamp(at, timezone.utc), timedelta(seconds=time.time() - at)):
        assert [found.slot for found in periodic.runs(app, since=since)] == [SEVEN + 60]
    assert [found.slot for found in periodic.runs(app, "report", limit=1)] == [SEVEN + 60]


@pytest.mark.parametrize(
    ("given", "field"),
    [({"since": "2h"}, "since"), ({"since": True}, "since"), ({"since": 1e300}, "since"), ({"limit": 0}, "limit"),
     ({"limit": "5"}, "limit"), ({"name": 5}, "name")],
)  # fmt: skip
def test_a_wrong_value_is_named(app: Celery, given: dict[str, Any], field: str) -> None:
    """Before Kafka is asked."""
    with pytest.raises(ConfigurationError, match=field):
        periodic.runs(app, **given)


def test_what_is_meant_by_since() -> None:
    """How long ago, or since when."""
    assert [since_of(each) for each in ("90s", "30 m", "1.5h", "7d", "2w")] == [
        timedelta(seconds=90), timedelta(minutes=30), timedelta(hours=1.5), timedelta(days=7), timedelta(weeks=2),
    ]  # fmt: skip
    assert since_of("2026-12-01T07:00Z").timestamp() == since_of("2026-12-01 07:00").timestamp() == SEVEN
    for wrong in ("", "yesterday", "5", "99999999999999d"):
        with pytest.raises(ConfigurationError, match="2h"):
            since_of(wrong)


def app_of(**conf: Any) -> Celery:
    app = Celery("test", broker="memory://", set_as_current=False)
    app.conf.update({"neli_group": "g", **conf})
    return app


def test_no_history_says_why(app: Celery) -> None:
    """It is off, or there is none yet; the exit status is 1."""
    servers = app.conf.neli_kafka
    cases = {
        "neli_history = False": app_of(neli_kafka=servers, neli_history=False),
        "neli_enabled = False": app_of(neli_kafka=servers, neli_enabled=False),
        "there is no history topic other.beat.neli.history": app_of(neli_kafka=servers, neli_group="other"),
    }
    for says, of in cases.items():
        result = run(of)
        assert result.exit_code == 1
        assert says in result.output
        assert len(result.output.splitlines()) == 1
        with pytest.raises(NeliError, match=says):
            periodic.runs(of)
