"""Periodic tasks at runtime through Kafka: the API and the command line, from several processes' points of view."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import celery.beat
import pytest
from celery.schedules import crontab
from click.testing import CliRunner

from celery_neli import periodic
from celery_neli.config import from_app
from celery_neli.exceptions import ConfigurationError, Conflict, NeliError
from celery_neli.periodic import aio
from celery_neli.periodic.cli import schedule
from celery_neli.periodic.store import Topic
from celery_neli.schedule_topic.codec import ENTRY, STATE, State, decode_definition, decode_state, encode_state
from celery_neli.schedule_topic.write import Write
from tests.unit.schedulers import make_app

if TYPE_CHECKING:
    from pathlib import Path

    from celery import Celery

    from celery_neli.embedded import EmbeddedKafka

pytestmark = pytest.mark.integration


@pytest.fixture
def app(embedded_kafka: EmbeddedKafka) -> Celery:
    app = make_app(
        neli_group="g",
        neli_kafka=embedded_kafka.bootstrap_servers,
        neli_scheduler=None,
        beat_schedule={"static": {"task": "t", "schedule": 60.0}},
    )

    @app.task(name="shop.tidy", shared=False)  # not of the apps of other tests
    def tidy(*args: Any, **kwargs: Any) -> None:
        """Nothing."""

    return app


@pytest.fixture
def run(app: Celery) -> Any:
    """`celery neli schedule …`: exit status and everything printed."""

    def command(*args: str) -> tuple[int, str]:
        result = CliRunner().invoke(schedule, args, obj=SimpleNamespace(app=app), catch_exceptions=False)
        return result.exit_code, result.output

    return command


def stored(app: Celery) -> dict[tuple[str, str], Any]:
    decoders = {ENTRY: decode_definition, STATE: decode_state}
    return {key: decoders[key[0]](value) for key, value in Topic(app).read().items()}


# -- the API --


def test_an_entry_makes_a_round_trip(app: Celery) -> None:
    """Put, paused, resumed, run, listed, removed; each seen by the next call, as by any other process."""
    assert periodic.get(app, "e") is None
    put = periodic.put(app, "e", "shop.tidy", crontab("0", "4"), args=[1], options={"queue": "q"}, by="alice")
    assert periodic.get(app, "e") == put
    assert (put.schedule, put.args, put.options, put.source) == ("0 4 * * *", (1,), {"queue": "q"}, "runtime")
    assert periodic.pause(app, "e", by="bob").paused
    assert [(each.name, each.paused) for each in periodic.list(app)] == [("e", True), ("static", False)]
    assert not periodic.resume(app, "e").paused
    assert periodic.run_now(app, "e").id
    found = periodic.get(app, "e")
    assert found is not None
    assert [(each.by, each.what) for each in found.changes[:2]] == [("alice", "added"), ("bob", "paused")]
    assert [each.what for each in found.changes[2:]] == ["resumed", "run now"]
    since = found.since or 0
    Topic(app).write([Write(STATE, "e", encode_state(State(last=since, runs=4, epoch=3, since=since)))])
    again = periodic.get(app, "e")
    assert again is not None
    assert (again.runs, again.last) == (4, found.since)
    periodic.remove(app, "e")
    assert [each.name for each in periodic.list(app)] == ["static"]
    assert periodic.get(app, "e") is None
    assert stored(app)[ENTRY, "e"].removed


def test_nothing_is_stored_of_what_is_refused(app: Celery) -> None:
    """The topic is not even made."""
    with pytest.raises(ConfigurationError, match="schedule"):
        periodic.put(app, "e", "shop.tidy", "often")
    with pytest.raises(NeliError, match="no entry"):
        periodic.pause(app, "e")
    assert stored(app) == {}


def test_without_kafka_there_is_one_error() -> None:
    """It names the broker; switched off, it says so."""
    app = make_app(neli_group="g", neli_kafka="127.0.0.1:1", neli_enabled=False)
    with pytest.raises(ConfigurationError, match="neli_enabled"):
        periodic.list(app)


def test_the_api_is_cheap_to_import() -> None:
    """A web process that may put an entry one day loads no Kafka client for it."""
    code = "import sys; from celery_neli import periodic; print('confluent_kafka' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


# -- the command line --


def test_the_command_line_does_what_the_api_does(app: Celery, run: Any) -> None:
    """Add, list, show, pause, resume, run, remove."""
    status, said = run(
        "add", "e", "shop.tidy", "PT30S", "--args", "[1]", "--kwargs", '{"a": 2}', "--queue", "q", "--misfire", "skip",
        "--options", '{"priority": 3}', "--by", "alice",
    )  # fmt: skip
    assert (status, said[:27]) == (0, "e: active, runtime, next 20")
    found = periodic.get(app, "e")
    assert found is not None
    assert (found.args, found.kwargs) == ((1,), {"a": 2})
    assert found.options == {"priority": 3, "queue": "q", "neli_misfire": "skip"}
    assert run("pause", "e", "--by", "bob") == (0, "e: paused, runtime, next -\n")
    assert run("pause", "static")[0] == 0
    lines = run("list")[1].splitlines()
    assert lines[0].split() == ["NAME", "SCHEDULE", "NEXT", "LAST", "RUNS", "STATE"]
    assert [line.split()[0] for line in lines[1:]] == ["e", "static"]
    assert "every 30 s" in lines[1]
    assert len({line.index("paused") for line in lines[1:]}) == 1
    shown = run("show", "e")[1]
    assert "PT30S (every 30 s)" in shown
    assert shown.index("bob  paused") < shown.index("alice  added")
    assert run("resume", "e")[0] == 0
    assert run("run", "e")[1].startswith("e: sent as ")
    assert run("remove", "e") == (0, "e: removed\n")
    assert periodic.get(app, "e") is None


def test_the_command_line_prints_json(app: Celery, run: Any) -> None:
    """What a program reads: all fields, times in Unix seconds."""
    periodic.put(app, "e", "shop.tidy", "PT30S", by="alice")
    listed = json.loads(run("list", "--json")[1])
    shown = json.loads(run("show", "e", "--json")[1])
    assert [each["name"] for each in listed] == ["e", "static"]
    assert listed[0] == shown
    assert (shown["schedule"], round(shown["next"] - shown["since"], 3), shown["changes"][0]["by"]) == (
        "PT30S",
        30,
        "alice",
    )


def test_a_task_that_the_app_does_not_know_is_told_of(app: Celery, run: Any) -> None:
    """It is added all the same: who sends need not import it."""
    status, said = run("add", "e", "nobody.knows", "PT30S")
    assert status == 0
    assert "does not know the task 'nobody.knows'" in said
    assert periodic.get(app, "e") is not None


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("add", "e", "t", "often"), "Error: schedule = 'often'"),
        (("add", "e", "t", "PT1S", "--args", "[1"), "Error: --args '[1' is not valid JSON"),
        (("add", "e", "t", "PT1S", "--kwargs", "[]"), "Error: --kwargs '[]' must be a JSON object"),
        (("add", "static", "t", "PT1S"), "beat_schedule has an entry of that name"),
        (("show", "statik"), "Error: there is no entry 'statik'; did you mean 'static'?"),
        (("remove", "static"), "Error: name = 'static': is in beat_schedule"),
        (("import", "file", "/nonexistent/schedule"), "Error: there is no file /nonexistent/schedule"),
    ],
)
def test_errors_are_one_line(app: Celery, run: Any, args: tuple[str, ...], says: str) -> None:
    """With exit status 1; nothing is stored."""
    status, said = run(*args)
    assert status == 1
    assert says in said
    assert len(said.strip().splitlines()) == 1
    assert stored(app) == {}


def test_redbeat_is_imported(app: Celery, run: Any, redis_url: str) -> None:
    """First what would be done, then done; what is there already is kept; what cannot be is listed."""
    from redbeat import RedBeatSchedulerEntry
    from redbeat.schedules import rrule

    app.conf.update(redbeat_redis_url=redis_url, redbeat_redis_options={})
    next(RedBeatSchedulerEntry("e", "shop.tidy", crontab("0", "4"), args=[1], app=app).save())
    status, dry = run("import", "redbeat", "--dry-run")
    assert (status, stored(app)) == (0, {})
    assert "dry run" in dry
    assert dry.splitlines()[1].split()[:2] == ["e", "added"]
    status, said = run("import", "redbeat", "--by", "alice")
    assert status == 0
    assert said.splitlines()[:2] == dry.splitlines()[:2]
    definition, state = stored(app)[ENTRY, "e"], stored(app)[STATE, "e"]
    assert (definition.schedule, definition.args, definition.since) == ("0 4 * * *", [1], state.last)
    assert (state.runs, definition.changes[0].by) == (1, "alice")
    RedBeatSchedulerEntry("rule", "shop.tidy", rrule("YEARLY"), app=app).save()
    status, said = run("import", "redbeat")
    assert status == 1
    assert "RedBeat: 1 kept, 1 left out" in said


def test_a_file_is_imported(app: Celery, run: Any, tmp_path: Path) -> None:
    """By its path, or by that of the settings."""
    path = str(tmp_path / "beat")
    beat = celery.beat.PersistentScheduler(app, schedule_filename=path)
    beat.schedule["static"] = next(beat.schedule["static"])
    beat.close()
    assert run("import", "file", path)[0] == 0
    assert stored(app)[STATE, "static"].runs == 1
    app.conf.beat_schedule_filename = path
    assert "1 kept" in run("import", "file")[1]


def test_django_celery_beat_is_imported(app: Celery, run: Any, tmp_path: Path) -> None:
    """Of its database, through its models."""
    from tests.unit import django_site

    django_site.configure(tmp_path)
    from django.db import connections
    from django_celery_beat.models import IntervalSchedule, PeriodicTask

    interval = IntervalSchedule.objects.create(every=5, period="minutes")
    row = PeriodicTask.objects.create(name="e", task="shop.tidy", interval=interval, enabled=False)
    try:
        assert run("import", "django")[0] == 0
        assert stored(app)[ENTRY, "e"].paused
        assert run("import", "django", "some/path")[0] == 2
    finally:
        row.delete()
        connections.close_all()


def test_the_topic_is_that_of_the_beats(app: Celery) -> None:
    """Not that of the workers' election."""
    assert from_app(app, "beat").schedule_topic == "g.beat.neli.schedule"


# -- what web applications use --


def test_an_event_loop_has_the_same_functions(app: Celery) -> None:
    """As coroutines, with `async for` and `async with`."""

    async def use() -> list[str]:
        put = await aio.put(app, "a", "shop.tidy", "PT1M", note="first")
        with pytest.raises(Conflict):
            await aio.pause(app, "a", expected="another")
        assert (await aio.pause(app, "a", expected=put.version)).paused
        assert not (await aio.resume(app, "a")).paused
        async with aio.batch(app, owner="me") as batch:
            await batch.put("b", "shop.tidy", "PT1M")
            await batch.put("c", "shop.tidy", "PT1M")
            await batch.remove("a")
            assert len(batch) == 3
        assert await aio.get(app, "a") is None
        return [each.name async for each in aio.list(app, owner="me")]

    assert asyncio.run(use()) == ["b", "c"]


def test_the_command_line_tells_versions_and_notes(app: Celery, run: Any) -> None:
    """And changes nothing that has another version than was expected."""
    assert run("add", "e", "shop.tidy", "PT30S", "--owner", "me", "--note", "for tests", "--expected", "")[0] == 0
    found = periodic.get(app, "e")
    assert found is not None
    shown = run("show", "e")[1]
    assert f"version   {found.version}" in shown
    assert "owner     me" in shown
    assert "added: for tests" in shown
    status, said = run("pause", "e", "--expected", "another")
    assert status == 1
    assert "version 'another' was expected" in said
    assert len(said.splitlines()) == 1
    assert run("pause", "e", "--expected", found.version, "--note", "why not")[0] == 0
    assert run("list", "--prefix", "e", "--owner", "me", "--limit", "1")[1].count("\n") == 2
    assert run("list", "--prefix", "e", "--after", "e")[1].count("\n") == 1
