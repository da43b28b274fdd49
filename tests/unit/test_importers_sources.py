"""Imports from the real things: RedBeat on Redis, django-celery-beat on SQLite, a shelf of PersistentScheduler."""

from __future__ import annotations

import dbm
import importlib
import json
import os
import shelve
import time
import warnings
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import celery.beat
import pytest
from celery.schedules import crontab, schedule

from celery_neli.exceptions import NeliError
from celery_neli.periodic.importers import Found, Row, carry_over, shelf
from celery_neli.periodic.importers.stores import read_django, read_redbeat
from celery_neli.schedule.slots import once
from tests.unit.schedulers import make_app
from tests.unit.schedules import Desk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from celery import Celery

    from celery_neli.periodic.importers import Source

UTC = timezone.utc
LAST = datetime(2026, 6, 1, 10, 30, tzinfo=UTC)


def by_name(source: Source) -> dict[str, Any]:
    return {each.name: each for each in source.entries}


def carried(app: Celery, source: Source) -> tuple[Desk, dict[str, Row]]:
    desk = Desk(app)
    desk.now = time.time()
    return desk, {row.name: row for row in carry_over(source, desk.editor())}


# -- RedBeat --


@pytest.fixture
def redbeat_app(redis_url: str) -> Celery:
    static = {"static": {"task": "t", "schedule": 60.0}}
    return make_app(redbeat_redis_url=redis_url, redbeat_redis_options={}, beat_schedule=static)


def save(app: Celery, name: str, when: Any, **given: Any) -> Any:
    from redbeat import RedBeatSchedulerEntry

    return RedBeatSchedulerEntry(name, "shop.t", when, app=app, **given).save()


def test_entries_of_redbeat_are_carried_over(redbeat_app: Celery) -> None:
    """With arguments and options; what ran and how often; what is disabled is paused."""
    save(redbeat_app, "ran", schedule(300), args=[1], kwargs={"a": 2}, options={"queue": "q"})
    ran = save(redbeat_app, "cron", crontab("*/5", "8-18"))
    next(ran)
    save(redbeat_app, "off", schedule(60), enabled=False)
    found = by_name(read_redbeat(redbeat_app))
    assert set(found) == {"ran", "cron", "off"}
    desk, rows = carried(redbeat_app, read_redbeat(redbeat_app))
    assert {row.action for row in rows.values()} == {"added"}
    entry = desk.look("ran")
    assert (entry.task, entry.schedule, entry.args, entry.kwargs) == ("shop.t", "PT5M", (1,), {"a": 2})
    assert entry.options == {"queue": "q"}
    assert (desk.look("cron").schedule, desk.look("cron").runs) == ("*/5 8-18 * * *", 1)
    assert time.time() - 60 < (desk.look("cron").last or 0) <= time.time()
    assert desk.look("off").paused


def test_the_last_run_of_redbeat_is_the_last_run_here(redbeat_app: Celery) -> None:
    """To the microsecond; an entry that never ran has none."""
    save(redbeat_app, "e", schedule(300)).reschedule(LAST)
    save(redbeat_app, "new", schedule(300), last_run_at=None)
    from redbeat import RedBeatSchedulerEntry

    definition = RedBeatSchedulerEntry.from_key("redbeat:new", app=redbeat_app)
    definition.reschedule(LAST)
    assert by_name(read_redbeat(redbeat_app))["e"].last == LAST.timestamp()


def test_of_redbeats_static_entries_the_state_is_carried_over(redbeat_app: Celery) -> None:
    """RedBeat keeps a copy of beat_schedule: that is defined once, in the settings."""
    from redbeat import RedBeatScheduler

    RedBeatScheduler(redbeat_app, lock_key=None)
    save(redbeat_app, "own", schedule(60))
    desk, rows = carried(redbeat_app, read_redbeat(redbeat_app))
    assert {name: row.action for name, row in rows.items()} == {"static": "state", "own": "added"}
    assert desk.store.definition("static") is None


def test_what_redbeat_has_and_text_cannot_say_is_left_out(redbeat_app: Celery) -> None:
    """A recurrence rule, and what RedBeat itself cannot read; each with its reason."""
    import redis
    from redbeat.schedules import rrule

    save(redbeat_app, "rule", rrule("YEARLY", dtstart=LAST))
    save(redbeat_app, "broken", schedule(60))
    save(redbeat_app, "deleted", schedule(60))
    with redis.Redis.from_url(redbeat_app.conf.redbeat_redis_url) as client:
        client.hset("redbeat:broken", "definition", "{")
        client.delete("redbeat:deleted")
    _, rows = carried(redbeat_app, read_redbeat(redbeat_app))
    assert {name: row.action for name, row in rows.items()} == {"rule": "left out", "broken": "left out"}
    assert "rrule cannot be written as text" in rows["rule"].notes[0]
    assert "RedBeat itself" in rows["broken"].notes[0]


@pytest.mark.parametrize("field", ['"args": 5', '"kwargs": 5', '"options": [1]', '"task": 7', '"schedule": "text"'])
def test_a_field_of_redbeat_that_is_none_costs_its_entry_alone(redbeat_app: Celery, field: str) -> None:
    """In one line; the other is carried over."""
    import redis

    save(redbeat_app, "good", schedule(60))
    save(redbeat_app, "bad", schedule(60))
    with redis.Redis.from_url(redbeat_app.conf.redbeat_redis_url) as client:
        stored = json.loads(client.hget("redbeat:bad", "definition"))
        client.hset("redbeat:bad", "definition", json.dumps({**stored, **json.loads(f"{{{field}}}")}))
    _, rows = carried(redbeat_app, read_redbeat(redbeat_app))
    assert {name: row.action for name, row in rows.items()} == {"good": "added", "bad": "left out"}


def test_a_running_redbeat_is_told_of_and_left_alone(redbeat_app: Celery) -> None:
    """It is not disturbed: Redis holds what it held."""
    import redis

    save(redbeat_app, "e", schedule(60))
    assert read_redbeat(redbeat_app).warning is None
    with redis.Redis.from_url(redbeat_app.conf.redbeat_redis_url) as client:
        client.set("redbeat::lock", "somebody")
        before = {key: client.dump(key) for key in client.scan_iter()}
        assert "stop it" in str(read_redbeat(redbeat_app).warning)
        assert {key: client.dump(key) for key in client.scan_iter()} == before


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1", "memory://"])
def test_a_redis_that_does_not_answer_is_an_error(url: str) -> None:
    """In one sentence."""
    app = make_app(redbeat_redis_url=url, redbeat_redis_options={})
    with pytest.raises(NeliError, match="RedBeat's Redis"):
        read_redbeat(app)


# -- django-celery-beat --


@pytest.fixture
def rows(django_tables: None) -> Iterator[Any]:
    from django_celery_beat.models import (
        ClockedSchedule,
        CrontabSchedule,
        IntervalSchedule,
        PeriodicTask,
        SolarSchedule,
    )

    PeriodicTask.objects.all().delete()
    yield Rows()
    for model in (PeriodicTask, ClockedSchedule, CrontabSchedule, IntervalSchedule, SolarSchedule):
        model.objects.all().delete()


class Rows:
    """Rows of django-celery-beat."""

    def add(self, name: str, *, set_last: datetime | None = None, **fields: Any) -> None:
        from django_celery_beat.models import PeriodicTask

        if not {"interval", "crontab", "solar", "clocked"} & set(fields):
            fields["interval"] = self.interval(5, "minutes")
        PeriodicTask.objects.create(name=name, task="shop.t", **fields)
        if set_last is not None:
            PeriodicTask.objects.filter(name=name).update(last_run_at=set_last)

    def interval(self, every: int, period: str) -> Any:
        from django_celery_beat.models import IntervalSchedule

        return IntervalSchedule.objects.get_or_create(every=every, period=period)[0]

    def crontab(self, zone: str, **fields: str) -> Any:
        from django_celery_beat.models import CrontabSchedule

        return CrontabSchedule.objects.create(timezone=zone, **fields)

    def clocked(self, at: datetime) -> Any:
        from django_celery_beat.models import ClockedSchedule

        return ClockedSchedule.objects.create(clocked_time=at)


def soon(**ahead: float) -> datetime:
    return (datetime.now(UTC) + timedelta(**ahead)).replace(microsecond=0)


def test_a_row_of_django_celery_beat_is_carried_over(rows: Rows) -> None:
    """With its arguments and options, its last run and its count."""
    rows.add(
        "e", args="[1]", kwargs='{"a": 2}', queue="q", routing_key="r", exchange="x", priority=0, expire_seconds=60,
        headers='{"h": 1}', last_run_at=LAST, total_run_count=7,
    )  # fmt: skip
    desk, carried_ = carried(make_app(beat_schedule={}), read_django(make_app()))
    found = desk.look("e")
    assert carried_["e"].action == "added"
    assert (found.task, found.schedule, found.args, found.kwargs) == ("shop.t", "PT5M", (1,), {"a": 2})
    assert found.options == {
        "queue": "q", "routing_key": "r", "exchange": "x", "priority": 0, "expires": 60,
        "headers": {"h": 1, "periodic_task_name": "e"},
    }  # fmt: skip
    assert (found.last, found.runs, found.since) == (LAST.timestamp(), 7, LAST.timestamp())


@pytest.mark.parametrize(
    ("every", "period", "text"), [(3, "days", "P3D"), (90, "minutes", "PT1H30M"), (1_500_000, "microseconds", "PT1.5S")]
)
def test_intervals_of_django_celery_beat(rows: Rows, every: int, period: str, text: str) -> None:
    """Of any period."""
    rows.add("e", interval=rows.interval(every, period))
    desk, _ = carried(make_app(beat_schedule={}), read_django(make_app()))
    assert desk.look("e").schedule == text


def test_solar_events_of_django_celery_beat(rows: Rows) -> None:
    """As text."""
    pytest.importorskip("ephem")
    from django_celery_beat.models import SolarSchedule

    rows.add("e", solar=SolarSchedule.objects.create(event="sunset", latitude="-37.81", longitude="144.96"))
    desk, _ = carried(make_app(beat_schedule={}), read_django(make_app()))
    assert desk.look("e").schedule == "solar:sunset,-37.81,144.96"


@pytest.mark.parametrize(
    ("row_zone", "app_zone", "fields", "carried_over"),
    [
        ("Europe/Berlin", "Europe/Berlin", {"minute": "0", "hour": "4"}, True),
        ("Europe/Paris", "Europe/Berlin", {"minute": "0", "hour": "4"}, True),
        ("UTC", "Europe/Berlin", {"minute": "0", "hour": "4"}, False),
        ("UTC", "Europe/Berlin", {"minute": "*/5"}, True),
        ("Asia/Kolkata", "Europe/Berlin", {"minute": "*/5"}, False),
        ("UTC", "Europe/Berlin", {"minute": "0", "day_of_week": "mon"}, False),
        ("UTC", "UTC", {"minute": "0, 30", "day_of_week": "1,2"}, True),
    ],
)
def test_a_crontab_of_another_zone_is_not_run_at_another_time(
    rows: Rows, row_zone: str, app_zone: str, fields: dict[str, str], carried_over: bool
) -> None:
    """It is left out and said so, unless the clocks of both zones say the same."""
    rows.add("e", crontab=rows.crontab(row_zone, **fields))
    app = make_app(timezone=app_zone, beat_schedule={})
    desk, carried_ = carried(app, read_django(app))
    if carried_over:
        assert desk.look("e").schedule == "{} {} * * {}".format(
            fields["minute"].replace(" ", ""), fields.get("hour", "*"), fields.get("day_of_week", "*")
        )
    else:
        assert carried_["e"].action == "left out"
        assert row_zone in carried_["e"].notes[0]
        assert app_zone in carried_["e"].notes[0]


def test_clocked_rows_become_one_offs(rows: Rows) -> None:
    """Also one that is overdue, since beat was down; one that ran is over."""
    ahead, past = soon(hours=1), soon(hours=-1)
    rows.add("ahead", clocked=rows.clocked(ahead), one_off=True)
    rows.add("overdue", clocked=rows.clocked(past), one_off=True)
    rows.add("ran", clocked=rows.clocked(past), one_off=True, total_run_count=1)
    rows.add("done", clocked=rows.clocked(past), one_off=True, enabled=False)
    rows.add("waits", clocked=rows.clocked(ahead), one_off=True, enabled=False)
    app = make_app(beat_schedule={})
    found = by_name(read_django(app))
    assert found["ahead"].schedule == once(ahead, app=app)
    desk, carried_ = carried(app, read_django(app))
    assert {name: row.action for name, row in carried_.items()} == {
        "ahead": "added", "overdue": "added", "waits": "added", "ran": "left out", "done": "left out",
    }  # fmt: skip
    assert desk.look("ahead").next == ahead.timestamp()
    assert desk.look("overdue").next == past.timestamp()
    assert desk.look("waits").paused


def test_a_one_off_interval_runs_one_time(rows: Rows) -> None:
    """At its next due time."""
    last = soon(minutes=-1)
    rows.add("e", one_off=True, set_last=last)
    rows.add("ran", one_off=True, total_run_count=1, set_last=last)
    desk, carried_ = carried(make_app(beat_schedule={}), read_django(make_app()))
    assert desk.look("e").next == last.timestamp() + 300
    assert str(desk.look("e").schedule).startswith("at:")
    assert "one time" in carried_["e"].notes[0]
    assert carried_["ran"].action == "left out"


def test_a_start_in_the_future_is_kept(rows: Rows) -> None:
    """An interval is due at its start, a crontab at its first time from then on."""
    start = soon(days=2).replace(minute=30, second=0)
    rows.add("interval", start_time=start, interval=rows.interval(1, "hours"))
    rows.add("cron", start_time=start, crontab=rows.crontab("UTC", minute="30"))
    rows.add("begun", start_time=soon(days=-2), set_last=LAST)
    desk, _ = carried(make_app(beat_schedule={}), read_django(make_app()))
    assert desk.look("interval").next == start.timestamp()
    assert desk.look("cron").next == start.timestamp()
    assert desk.look("begun").since == LAST.timestamp()


def test_what_is_disabled_or_expires(rows: Rows) -> None:
    """Disabled is paused; expired is left out; what will expire is sent with that option, and said so."""
    ends = soon(days=1)
    rows.add("off", enabled=False)
    rows.add("expired", expires=soon(days=-1))
    rows.add("expires", expires=ends, description="text")
    desk, carried_ = carried(make_app(beat_schedule={}), read_django(make_app()))
    assert desk.look("off").paused
    assert carried_["expired"].action == "left out"
    assert desk.look("expires").options["expires"] == ends
    assert "no worker runs it" in carried_["expires"].notes[0]
    assert "description" in carried_["expires"].notes[1]


def test_a_row_that_never_ran_owes_what_came_since_it_was_changed(rows: Rows) -> None:
    """As DatabaseScheduler reckons it."""
    from django_celery_beat.models import PeriodicTask

    rows.add("e")
    PeriodicTask.objects.filter(name="e").update(date_changed=LAST)
    (found,) = read_django(make_app()).entries
    assert isinstance(found, Found)
    assert (found.last, found.since) == (None, LAST.timestamp())


def test_a_row_that_cannot_be_read_is_left_out(rows: Rows) -> None:
    """Bad JSON, or no schedule; the others are carried over."""
    from django_celery_beat.models import PeriodicTask

    rows.add("json", args="[")
    rows.add("none")
    PeriodicTask.objects.filter(name="none").update(interval=None)
    rows.add("good")
    found = by_name(read_django(make_app()))
    assert isinstance(found["json"], Row)
    assert "no schedule" in found["none"].notes[0]
    assert isinstance(found["good"], Found)


# -- times without an offset in Django's database --


@pytest.fixture(params=["Asia/Shanghai", "UTC", "America/Los_Angeles"])
def zone_of_django(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ZoneInfo]:
    """Django with `USE_TZ = False` in some zone; the app's zone is another one."""
    from django.test import override_settings

    monkeypatch.setenv("TZ", os.environ.get("TZ", "UTC"))  # Django sets it
    with override_settings(USE_TZ=False, TIME_ZONE=request.param):
        yield ZoneInfo(request.param)


def stored(at: datetime, zone: ZoneInfo) -> datetime:
    """A time as the database has it."""
    return at.astimezone(zone).replace(tzinfo=None)


@pytest.mark.parametrize("app_zone", ["UTC", "Asia/Shanghai"])
def test_times_without_an_offset_are_in_djangos_time_zone(zone_of_django: ZoneInfo, rows: Rows, app_zone: str) -> None:
    """All of them: of clocked rows, starts, ends, last runs and changes."""
    from django_celery_beat.models import PeriodicTask

    zone, ahead, last, ends = zone_of_django, soon(hours=1), soon(minutes=-2), soon(days=1)
    rows.add("clocked", clocked=rows.clocked(stored(ahead, zone)), one_off=True)
    rows.add("starts", start_time=stored(ahead, zone))
    rows.add("ran", set_last=stored(last, zone), total_run_count=3)
    rows.add("once", one_off=True, set_last=stored(last, zone))
    rows.add("ends", expires=stored(ends, zone))
    rows.add("over", expires=stored(soon(minutes=-1), zone))
    rows.add("new")
    PeriodicTask.objects.filter(name="new").update(date_changed=stored(last, zone))
    app = make_app(timezone=app_zone, beat_schedule={})
    desk, carried_ = carried(app, read_django(app))
    assert desk.look("clocked").next == ahead.timestamp()
    assert desk.look("starts").next == ahead.timestamp()
    assert (desk.look("ran").last, desk.look("ran").next) == (last.timestamp(), last.timestamp() + 300)
    assert desk.look("once").next == last.timestamp() + 300
    assert desk.look("ends").options["expires"] == ends
    assert f"is sent after {ends:%Y-%m-%d %H:%M:%S} UTC" in carried_["ends"].notes[0]
    assert (carried_["over"].action, carried_["over"].notes) == ("left out", ("it has expired",))
    assert desk.look("new").since == last.timestamp()


def test_last_runs_are_in_utc_where_database_scheduler_writes_them_so(zone_of_django: ZoneInfo, rows: Rows) -> None:
    """With `DJANGO_CELERY_BEAT_TZ_AWARE = False`; what people entered is in Django's time zone all the same."""
    from django.test import override_settings
    from django_celery_beat.schedulers import DatabaseScheduler

    ahead = soon(hours=1)
    with override_settings(DJANGO_CELERY_BEAT_TZ_AWARE=False):
        rows.add("clocked", clocked=rows.clocked(stored(ahead, zone_of_django)), one_off=True)
        rows.add("ran")
        app = make_app(beat_schedule={})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, for utcnow()
            scheduler = DatabaseScheduler(app)
            before = time.time()
            scheduler.reserve(scheduler.schedule["ran"])
            scheduler.sync()
        desk, _ = carried(app, read_django(app))
    assert desk.look("clocked").next == ahead.timestamp()
    assert before <= (desk.look("ran").last or 0) <= time.time()


def test_with_use_tz_times_have_an_offset(rows: Rows) -> None:
    """Whatever Django's time zone."""
    from django.test import override_settings

    ahead = soon(hours=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", os.environ.get("TZ", "UTC"))
        with override_settings(USE_TZ=True, TIME_ZONE="Asia/Shanghai"):
            rows.add("clocked", clocked=rows.clocked(ahead), one_off=True)
            app = make_app(timezone="America/Los_Angeles", beat_schedule={})
            desk, _ = carried(app, read_django(app))
    assert desk.look("clocked").next == ahead.timestamp()


# -- a file of celery beat --


def kinds() -> list[str]:
    found = []
    for name in ("dbm.gnu", "dbm.ndbm", "dbm.sqlite3", "dbm.dumb"):
        try:
            importlib.import_module(name)
        except ImportError:
            continue
        found.append(name)
    return found


@pytest.fixture(params=kinds())
def shelf_file(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A file that Celery's PersistentScheduler wrote, of each kind that this Python has."""
    dbm.open(str(tmp_path / "any"), "n").close()  # now it knows the kinds
    monkeypatch.setattr(dbm, "_defaultmod", importlib.import_module(request.param))
    path = tmp_path / "celerybeat-schedule"
    schedule_ = {"static": {"task": "t", "schedule": 60.0}, "cron": {"task": "t", "schedule": crontab("0", "4")}}
    app = make_app(beat_schedule={**schedule_, "gone": {"task": "t", "schedule": 5.0}})
    scheduler = celery.beat.PersistentScheduler(app, schedule_filename=str(path))
    for name in ("static", "gone"):
        scheduler.schedule[name].last_run_at = LAST
        scheduler.schedule[name] = next(scheduler.schedule[name])
        scheduler.schedule[name].last_run_at = LAST
    scheduler.sync()
    yield scheduler, path, make_app(beat_schedule=schedule_)
    scheduler.close()


def test_a_file_gives_the_state_of_beat_schedule(shelf_file: Any) -> None:
    """While the beat that wrote it has it open; what beat_schedule has no more is left out."""
    _, path, app = shelf_file
    desk, rows_ = carried(app, shelf.read(app, path))
    assert {name: row.action for name, row in rows_.items()} == {"static": "state", "cron": "state", "gone": "left out"}
    assert (desk.look("static").last, desk.look("static").runs) == (LAST.timestamp(), 1)
    assert desk.look("static").next == LAST.timestamp() + 60
    assert desk.look("cron").runs == 0


def test_the_file_is_left_as_it_was(shelf_file: Any) -> None:
    """Nothing is written beside it either, and its beat goes on writing."""
    scheduler, path, app = shelf_file
    before = {each.name: each.read_bytes() for each in path.parent.iterdir()}
    shelf.read(app, path)
    assert {each.name: each.read_bytes() for each in path.parent.iterdir()} == before
    scheduler.schedule["static"] = next(scheduler.schedule["static"])
    scheduler.close()
    assert by_name(shelf.read(app, path))["static"].runs == 2


def test_a_file_that_is_none_is_an_error(tmp_path: Path) -> None:
    """In one sentence, with the path."""
    app = make_app()
    with pytest.raises(NeliError, match=r"there is no file .*nothing"):
        shelf.read(app, tmp_path / "nothing")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(NeliError, match=r"text cannot be read as a schedule"):
        shelf.read(app, tmp_path / "text")
    with shelve.open(str(tmp_path / "other")) as other:  # noqa: S301 - our own
        other["x"] = 1
    with pytest.raises(NeliError, match=r"other cannot be read as a schedule"):
        shelf.read(app, tmp_path / "other")
