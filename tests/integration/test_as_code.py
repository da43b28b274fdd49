"""`celery neli schedule export`, `diff` and `apply` on a real Kafka: thousands of entries, and processes that die."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from confluent_kafka import Consumer, KafkaException, TopicPartition

from celery_neli import periodic
from celery_neli.config import from_app
from celery_neli.periodic.cli import schedule
from celery_neli.periodic.store import Topic
from celery_neli.schedule_topic.codec import ENTRY
from celery_neli.schedule_topic.write import Write
from tests.unit.schedulers import make_app

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from celery import Celery

pytestmark = pytest.mark.integration

SEED = random.randrange(2**32)


@pytest.fixture
def app(kafka: str, names: Callable[[str], str]) -> Celery:
    return make_app(neli_group=names("g"), neli_kafka=kafka, neli_scheduler=None, neli_history=False)


@pytest.fixture
def run(app: Celery) -> Callable[..., tuple[int, str]]:
    """`celery neli schedule …` in this process: exit status and everything printed."""

    def command(*args: str, given: str | None = None) -> tuple[int, str]:
        result = CliRunner().invoke(schedule, args, obj=SimpleNamespace(app=app), catch_exceptions=False, input=given)
        return result.exit_code, result.output

    return command


def records(app: Celery) -> int:
    """Return how many records the schedule topic has got, also those that were compacted since."""
    config = from_app(app, "beat")
    topic = f"{config.topic}.schedule"
    consumer = Consumer({"bootstrap.servers": app.conf.neli_kafka, "group.id": "none"})
    try:
        partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
        return sum(consumer.get_watermark_offsets(TopicPartition(topic, each), timeout=10)[1] for each in partitions)
    except KafkaException:
        return 0
    finally:
        consumer.close()


def file_of(numbers: range, *, version: int = 0, owner: str = "team") -> str:
    """Return a file of entries; an even number's arguments change with the version."""
    lines = ["version: 1", f"owner: {owner}", "entries:"]
    for number in numbers:
        value = version if number % 2 == 0 else 0
        lines += [
            f"  report-{number:05}:", "    task: shop.report", f"    schedule: {number % 60} 7 * * mon-fri",
            f"    args: [{number}, {value}]", "    kwargs:", "      deep: true",
        ]  # fmt: skip
    return "\n".join(lines) + "\n"


def test_five_thousand_entries_twice(app: Celery, run: Any) -> None:
    """The first time each is one record; the second time nothing is written; what is exported is what was applied."""
    text = file_of(range(5000))
    begin = time.monotonic()
    status, output = run("apply", "-", given=text)
    first = time.monotonic() - begin
    assert (status, output.splitlines()[-1]) == (0, "standard input: 5000 added")
    written = records(app)
    assert written == 5000
    begin = time.monotonic()
    assert run("apply", "-", given=text)[1].splitlines()[-1] == "standard input: 5000 unchanged"
    second = time.monotonic() - begin
    assert records(app) == written
    assert run("diff", "-", given=text)[0] == 0
    status, exported = run("export", "--owner", "team")
    assert (status, exported.replace("schedule: '", "schedule: ").replace("fri'", "fri")) == (0, text)
    print(f"apply of 5,000 entries: {first:.1f} s; the second time: {second:.1f} s")


def test_a_file_is_compared_and_applied_step_by_step(app: Celery, run: Any, tmp_path: Path) -> None:
    """What each command prints, and its exit status."""
    path = tmp_path / "schedule.yaml"
    path.write_text("version: 1\nowner: team\nentries:\n  a: {task: t, schedule: 5m}\n  b: {task: t, schedule: 1h}\n")
    unknown = f"note: {path}:4: this app does not know the task 't'; the workers must know it"
    added = ["+ a: t, PT5M", "+ b: t, PT1H"]
    assert run("diff", str(path)) == (2, "\n".join([*added, f"{path}: 2 to add", unknown, ""]))
    status, output = run("apply", str(path), "--dry-run")
    assert (status, output.splitlines()[-1]) == (0, f"{path}: 2 added (dry run: nothing was written)")
    assert records(app) == 0
    assert run("apply", str(path)) == (0, "\n".join([*added, unknown, f"{path}: 2 added", ""]))
    assert run("diff", str(path)) == (0, f"{path}: 2 unchanged\n")
    exported = run("export")[1]
    assert run("apply", "-", given=exported) == (0, "standard input: 2 unchanged\n")
    assert run("apply", "-", given=run("export", "--json")[1]) == (0, "standard input: 2 unchanged\n")
    periodic.put(app, "web", "t", "5m")
    assert run("export") == (1, "Error: the entries have 2 owners ('', 'team'), and a file has one: name --owner\n")
    assert run("export", "--owner", "team")[1] == exported
    assert run("export", "--prefix", "w")[1] == "version: 1\nentries:\n  web:\n    task: t\n    schedule: PT5M\n"

    path.write_text(
        "version: 1\nowner: team\nentries:\n  a: {task: t, schedule: 10m}\n  web: {task: t, schedule: 5m}\n"
    )
    status, output = run("diff", str(path))
    assert (status, output.splitlines()) == (2, [
        "~ a", "    schedule: PT5M -> PT10M", "- b", "! web: is there and has no owner: --adopt takes it over",
        f"{path}: 1 to change, 1 to prune, 1 of another owner", unknown,
    ])  # fmt: skip
    found = json.loads(run("diff", str(path), "--json")[1].splitlines()[0])
    assert [(each["name"], each["action"]) for each in found] == [("a", "change"), ("b", "prune"), ("web", "foreign")]
    assert found[0]["fields"] == {"schedule": {"old": "PT5M", "new": "PT10M"}}
    before = records(app)
    assert run("apply", str(path), "--prune") == (1, "\n".join([
        f"{path}:5: web: is there and has no owner: --adopt takes it over",
        f"Error: 1 mistake in {path}: nothing was changed", "",
    ]))  # fmt: skip
    assert records(app) == before
    status, output = run("apply", str(path), "--prune", "--adopt")
    assert (status, output.splitlines()) == (0, [
        "~ a", "    schedule: PT5M -> PT10M", "- b", "~ web", "    owner: - -> team", unknown,
        f"{path}: 2 changed, 1 removed",
    ])  # fmt: skip
    path.write_text("version: 1\nentries:\n  a: {task: t, schedule: 5x}\n  b: 5\n")
    for command in ("diff", "apply"):
        status, output = run(command, str(path))
        assert (status, len(output.splitlines()), output.splitlines()[-1]) == (
            1, 3, f"Error: 2 mistakes in {path}: nothing was changed",
        )  # fmt: skip
    assert run("diff", str(tmp_path / "none"))[0] == run("diff")[0] == run("diff", "--colour", "x")[0] == 1


def test_what_cannot_be_read_is_left_out_of_a_file_and_said(app: Celery, run: Any) -> None:
    """An export that lacks an entry does not look whole; nor does a file replace what a newer release wrote."""
    periodic.put(app, "good", "t", "5m")
    Topic(app).write([Write(ENTRY, "newer", b'{"v":2}')])
    status, output = run("export")
    assert (status, output.splitlines()[-1]) == (1, "left out: newer: its version is 2, this member knows 1")
    assert "  good:" in output
    status, output = run("apply", "-", given="version: 1\nentries:\n  newer: {task: t, schedule: 5m}\n")
    assert status == 1
    assert output.startswith("standard input:3: newer: its definition cannot be read here: its version is 2")


def test_killed_while_it_applies_the_next_time_ends_in_the_state_of_the_file(
    app: Celery, run: Any, kafka: str, tmp_path: Path
) -> None:
    """At random moments, in rounds that change, add and prune: no entry is ever half of what is wanted."""
    print(f"seed {SEED}")
    chance = random.Random(SEED)
    path = tmp_path / "schedule.yaml"
    slow = {"bootstrap.servers": kafka, "batch.num.messages": 1}  # so that the end comes in the middle
    settings = {"neli_group": app.conf.neli_group, "neli_kafka": slow, "neli_history": False}
    environment = {**os.environ, "SMOKE_SETTINGS": json.dumps(settings)}
    command = [sys.executable, "-m", "celery", "-A", "tests.smoke.project", "neli", "schedule", "apply", str(path)]
    partly = 0
    for version in range(1, 4):
        text = file_of(range(200 * version, 200 * version + 1000), version=version)
        path.write_text(text)
        before = records(app)
        process = subprocess.Popen([*command, "--prune"], env=environment, stdout=subprocess.DEVNULL)
        try:
            while records(app) == before and process.poll() is None:
                time.sleep(0.01)
            time.sleep(chance.choice((0, 0.02, 0.05, 0.1, 0.3)))
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        expected = {*text.splitlines()}
        for found in periodic.list(app, owner="team"):
            assert f"    args: [{found.args[0]}, {found.args[1]}]" in expected or found.args[1] < version
        status, _ = run("diff", str(path))
        partly += status == 2
        print(f"round {version}: {records(app) - before} records before the end")
        assert run("apply", str(path), "--prune")[0] == 0
        assert run("diff", str(path))[0] == 0
        assert len([*periodic.list(app, owner="team")]) == 1000
    assert partly, "no kill came in the middle"
