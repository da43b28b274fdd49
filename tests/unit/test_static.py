"""Entries of `beat_schedule`: the same texts as at runtime, each mistake on a line of its own, and no other entry
stopped by one.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery import beat
from celery.schedules import BaseSchedule, crontab, schedule

from celery_neli.beat.replicated.standalone import ReplicatedScheduler
from celery_neli.config import shard_roles
from celery_neli.exceptions import ConfigurationError, NeliError
from celery_neli.periodic.static import check_static
from celery_neli.periodic.view import entry_names, view_of
from celery_neli.schedule.slots import once
from tests.unit.beats import NOON, World
from tests.unit.fakes import FakeLeadership
from tests.unit.schedulers import Beat, an_hour_ago, make_app
from tests.unit.schedules import Desk

APP = make_app(timezone="UTC")


@APP.task(name="shop.tidy", shared=False)
def tidy(shop: int = 0) -> None:
    """A task."""


def wrong(entry: Any, name: Any = "e") -> list[str]:
    """What is wrong with one entry."""
    found = check_static({name: entry}, APP)
    assert bool(found.mistakes) != bool(found.entries)
    return [line for lines in (*found.mistakes.values(), *found.doubts.values()) for line in lines]


def entry(**fields: Any) -> dict[str, Any]:
    return {"task": "t", "schedule": 10, **fields}


class Own:
    """A schedule of an application's own, of no class of Celery's."""

    def now(self) -> datetime:
        return NOON

    def is_due(self, last_run_at: datetime) -> tuple[bool, float]:
        return False, 60.0


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("*/5 * * * *", crontab("*/5")),
        ("@hourly", crontab(0)),
        ("5m", schedule(300)),
        ("30s", schedule(30)),
        ("every 5 minutes", schedule(300)),
        ("PT1H", schedule(3600)),
        ("relative:PT1H", schedule(3600, relative=True)),
        ("at:2026-12-01T10:00:00Z", once(datetime(2026, 12, 1, 10, tzinfo=timezone.utc))),
        (datetime(2026, 12, 1, 10), once(datetime(2026, 12, 1, 10, tzinfo=timezone.utc))),  # noqa: DTZ001
        (30, schedule(30)),
        (timedelta(minutes=5), schedule(300)),
    ],
)  # fmt: skip
def test_texts_mean_the_same_as_at_runtime(given: Any, expected: Any) -> None:
    """In `beat_schedule`, and where an application adds an entry."""
    scheduler = ReplicatedScheduler(app=make_app(beat_schedule={"e": entry(schedule=given)}, timezone="UTC"))
    assert scheduler.schedule["e"].schedule == expected
    scheduler.add(name="added", task="t", schedule=given)
    assert scheduler.schedule["added"].schedule == expected
    scheduler.update_from_dict({"updated": entry(schedule=given)})
    assert scheduler.schedule["updated"].schedule == expected
    scheduler.merge_inplace({"merged": entry(schedule=given)})
    assert scheduler.schedule["merged"].schedule == expected
    desk = Desk()
    desk.put("e", given)
    assert desk.editor().entry("e").schedule == expected


def test_a_text_may_be_relative() -> None:
    """As a number may."""
    scheduler = ReplicatedScheduler(app=make_app(beat_schedule={"e": entry(schedule="1h", relative=True)}))
    assert scheduler.schedule["e"].schedule.relative


@pytest.mark.parametrize("when", [crontab(0), schedule(5), type("Mine", (crontab,), {})(), Own()])
def test_objects_that_decide_for_themselves_stay_untouched(when: Any) -> None:
    """Celery's schedules, classes of one's own, and what only behaves like one."""
    found = check_static({"e": entry(schedule=when)}, APP)
    assert found.entries["e"]["schedule"] is when


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (entry(schedule="often"), r"^schedule = 'often': write a crontab"),
        (entry(schedule="61 * * * *"), r"^schedule = '61 \* \* \* \*': no crontab"),
        (entry(schedule=0), r"^schedule = 0: .*give a number of seconds above 0"),
        (entry(schedule=-5), r"^schedule = -5: .*give a number of seconds above 0"),
        (entry(schedule=timedelta(0)), r"^schedule = datetime.timedelta\(0\): .*above 0"),
        (entry(schedule=schedule(0)), r"^schedule = <freq: now>: .*above 0"),
        (entry(schedule=schedule(None)), r"^schedule = .*its interval is None"),
        (entry(schedule=float("nan")), r"^schedule = nan: "),
        (entry(schedule=float("inf")), r"^schedule = inf: "),
        (entry(schedule=1e12), r"^schedule = 1000000000000.0: .*hundred years"),
        (entry(schedule=10**400), r"^schedule = 1000.*: no number"),
        (entry(schedule=True), r"^schedule = True: bool is not a schedule"),
        (entry(schedule=None), r"^schedule is missing: give"),
        (entry(schedule={"every": 5}), r"^schedule = .*dict is not a schedule; write"),
        (entry(schedule=crontab), r"^schedule = .*the class crontab is not a schedule"),
        (entry(schedule=tidy.s()), r"^schedule = .*Signature is not a schedule"),
        (entry(schedule=0.5, relative=True), r"^schedule = .*a second at least"),
        ({"task": "t"}, r"^schedule is missing: give"),
        ({"schedule": 5}, r"^task is missing: give"),
        (entry(task=None), r"^task is missing: give"),
        (entry(task=5), r"^task = 5: give the name of a task"),
        (entry(task=""), r"^task = '': give the name of a task"),
        (entry(task=tidy.s() | tidy.si()), r"^task = .*a chain cannot be an entry"),
        (entry(args=5), r"^args = 5: give a list"),
        (entry(args="abc"), r"^args = 'abc': give a list"),
        (entry(kwargs=[1]), r"^kwargs = \[1\]: give a dict"),
        (entry(kwargs={1: 2}), r"^kwargs = \{1: 2\}: give a dict"),
        (entry(options=["queue"]), r"^options = \['queue'\]: give a dict"),
        (entry(options={"quue": "q"}), r"^options: there is no option quue; did you mean queue\?"),
        (
            entry(options={"neli_misfir": "skip"}),
            r"^options: there is no option neli_misfir; did you mean neli_misfire",
        ),
        (entry(options={"neli_misfire": "often"}), r"^neli_misfire = 'often': give one of"),
        (entry(options={"neli_overlap": "x"}), r"^neli_overlap = 'x': give one of"),
        (entry(options={"countdown": "soon"}), r"^options: countdown = 'soon': give a number of seconds"),
        (entry(options={"expires": "soon"}), r"^options: expires = 'soon': give"),
        (entry(options={"priority": 5.5}), r"^options: priority = 5.5: give a whole number"),
        (entry(options={"queue": ["a"]}), r"^options: queue = \['a'\]: give the name of a queue"),
        (entry(shedule=5), r"^shedule = 5: there is no such field; did you mean schedule\?"),
        (entry(enabled=False), r"^enabled = False: there is no such field; there are app, args, kwargs, last_run_at"),
        ("*/5 * * * *", r"^'\*/5 \* \* \* \*': give a dict with a task and a schedule"),
        (None, r"^None: give a dict"),
        (tidy.s(), r"^shop.tidy\(\): give a dict with a task and a schedule"),
        (entry(last_run_at="yesterday"), r"^last_run_at = 'yesterday': give a datetime"),
        (entry(last_run_at=datetime.min), r"^last_run_at = .*years 2 to 9998"),  # noqa: DTZ901
        (entry(total_run_count="x"), r"^total_run_count = 'x': give a whole number"),
        (entry(total_run_count=-5), r"^total_run_count = -5: give a whole number"),
        (entry(total_run_count=2.5), r"^total_run_count = 2.5: give a whole number"),
        (entry(schedule="at:9999-12-31T23:59:59Z"), r"^schedule = 'at:9.*years 2 to 9998"),
        (entry(schedule=datetime.max), r"^schedule = .*years 2 to 9998"),  # noqa: DTZ901
        (entry(schedule="30.5"), r"^schedule = '30.5': a number needs a unit, such as '30.5s'"),
        (entry(options={"serializer": "x"}), r"^options: serializer = 'x': this process has none"),
        (entry(args=[1, 2, 3], task="shop.tidy"), r"^args = \[1, 2, 3\]: shop.tidy does not take these arguments"),
        (entry(options={"tenant": 5}), r"^options: Celery knows no option tenant: it is passed on"),
    ],
)
def test_a_mistake_is_one_line_with_its_field_its_value_and_what_to_do(given: Any, says: str) -> None:
    """One, and no other."""
    (line,) = wrong(given)
    assert re.search(says, line), line
    assert len(line.splitlines()) == 1


def test_all_mistakes_of_an_entry_are_listed() -> None:
    """So that one look at the log is enough."""
    lines = wrong({"task": 5, "schedule": "often", "args": "x", "kwargs": 5, "options": {"quue": 1}, "shedule": 1})
    assert [line.split(" ")[0] for line in lines] == ["shedule", "schedule", "args", "kwargs", "task", "options:"]


@pytest.mark.parametrize("name", [5, None, ("a",)])
def test_a_name_is_a_string(name: Any) -> None:
    """Its state could not be found again."""
    assert wrong(entry(), name) == [f"name = {name!r}: give a string"]


def test_a_name_is_short_enough_to_be_found_again() -> None:
    """Readers of the schedule topic refuse longer keys: the state of the entry would be lost at each handover."""
    assert wrong(entry(), "x" * 8190) == []
    (line,) = wrong(entry(), "ö" * 4096)
    assert re.search(r"^name = 'ööö.*: give at most 8190 bytes$", line)


def test_what_celery_takes_is_taken() -> None:
    """Nothing that runs with Celery is called wrong."""
    options = {
        "queue": "q",
        "expires": timedelta(hours=1).total_seconds(),
        "headers": {"a": 1},
        "task_id": "1",
        "eta": None,
    }
    lazy = beat.BeatLazyFunc(lambda: 5)
    for given in (
        entry(args=(lazy,), kwargs={"a": {1, 2}}, options=options),
        entry(args=None, kwargs=None, options=None),
        entry(relative=True, schedule=60),
        beat.ScheduleEntry(name="x", task="t", schedule=schedule(5), app=APP),
    ):
        assert wrong(given) == []


def test_a_task_or_a_signature_is_taken_over() -> None:
    """As at runtime."""
    found = check_static({"a": entry(task=tidy), "b": entry(task=tidy.s(7).set(queue="q"))}, APP).entries
    assert found["a"]["task"] == found["b"]["task"] == "shop.tidy"
    assert (tuple(found["b"]["args"]), found["b"]["options"]) == ((7,), {"queue": "q"})


# -- a beat --

BAD = {
    "zero": entry(schedule=0),
    "text": entry(schedule="often"),
    "lost": {"schedule": 5},
    "odd": entry(options={"quue": 1}),
    "policy": entry(options={"neli_overlap": "skip"}),
    "none": None,
    "ran": entry(last_run_at="yesterday"),
    "count": entry(total_run_count="x"),
}


@pytest.mark.parametrize("shards", [1, 2])
def test_a_beat_runs_the_good_entries_and_tells_the_bad_ones_once(
    shards: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A line for each mistake when the process starts, of whichever shard the entry is; none later, no traceback."""
    world = World({"good": 10.0, "text too": 20.0})
    beat_ = world.beat(shards=shards)
    beat_.app.conf.beat_schedule = {"good": entry(), **BAD, "text too": entry(schedule="20s")}
    for role in shard_roles(shards):
        beat_.member.lead(role)
    world.ticks(until=41)
    assert world.slots("good") == [10, 20, 30, 40]
    assert world.slots("text too") == [20, 40]
    assert {each.entry for each in world.sent} == {"good", "text too"}
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    lines = [record.getMessage().split(" ")[1] for record in errors]
    assert sorted(lines) == sorted(f"entry={name}" for name in BAD)
    assert not any(record.exc_info for record in errors)


def test_an_entry_that_add_periodic_task_adds_is_checked(caplog: pytest.LogCaptureFixture) -> None:
    """Celery puts it into `beat_schedule` as it was given."""
    app = make_app(beat_schedule={"good": entry()})

    @app.task(name="t", shared=False)
    def task() -> None:
        """A task."""

    app.add_periodic_task("*/5 * * * *", task.s(), name="text")
    app.add_periodic_task(0, task.s(), name="zero")
    app.add_periodic_task(60, task.s() | task.si(), name="chain")
    app.finalize()
    scheduler = ReplicatedScheduler(app=app)
    assert scheduler.schedule.keys() == {"good", "text"}
    assert scheduler.schedule["text"].schedule == crontab("*/5")
    assert "entry=zero is left out: schedule = 0: " in caplog.text
    assert "entry=chain is left out: task = 'celery.chain': no worker runs it" in caplog.text


def test_an_entry_that_is_added_to_a_running_scheduler_is_refused_where_it_is_added() -> None:
    """Nothing was added, and nothing ends."""
    scheduler = ReplicatedScheduler(app=make_app(beat_schedule={"good": entry()}))
    for given in (0, "often", float("nan"), {}, "at:9999-12-31T23:59:59Z"):
        for adds in (
            lambda fields: scheduler.add(name="e", **fields),
            lambda fields: scheduler.update_from_dict({"other": entry(), "e": fields}),
            lambda fields: scheduler.merge_inplace({"other": entry(), "e": fields}),
        ):
            with pytest.raises(ConfigurationError, match=r"^beat entry 'e': schedule = "):
                adds({"task": "t", "schedule": given})
    assert list(scheduler.schedule) == ["good"]
    for field in ("last_run_at", "total_run_count"):
        with pytest.raises(ConfigurationError, match=rf"^beat entry 'e': {field} = 'x': give"):
            scheduler.add(name="e", task="t", schedule=5, **{field: "x"})
    assert list(scheduler.schedule) == ["good"]


def test_an_entry_that_was_added_before_the_first_tick_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """By `Scheduler.add`, which keeps what it was given until there is a scheduler: a wrong one is logged then."""
    world = World({"e": 10.0})
    fine = {"name": "fine", "task": "t", "schedule": timedelta(seconds=10)}
    world.beat(added=[{**fine, "name": "bad", "options": {"neli_misfire": "often"}}, fine]).member.lead()
    world.ticks(until=11)
    assert (world.slots("e"), world.slots("fine"), world.slots("bad")) == ([10], [10], [])
    assert "beat: entry=bad is left out: beat entry 'bad': neli_misfire = 'often': " in caplog.text


def test_a_beat_schedule_that_is_no_dict_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """What was made at runtime could run all the same."""
    assert dict(ReplicatedScheduler(app=make_app(beat_schedule=["e"])).schedule) == {}
    assert "beat_schedule = ['e']: give a dict" in caplog.text


@pytest.mark.parametrize("scheduler", ["celery.beat.Scheduler", "celery.beat.PersistentScheduler"])
def test_another_scheduler_under_the_lease_runs_the_good_entries(
    scheduler: str, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """It would not be built otherwise: each mistake is logged with the name of the entry."""
    leadership = FakeLeadership()
    leadership.predecessor_active = an_hour_ago()
    app = make_app(neli_scheduler=scheduler, beat_schedule={"good": entry(schedule="30m"), **BAD})
    del app.conf.beat_schedule["policy"]  # which that scheduler does not know
    with Beat(app, leadership=leadership, schedule_filename=str(tmp_path / "schedule")) as running:
        leadership.grant(7).join()
        (sent,) = running.sends(1)
    assert sent["task"] == "t"
    assert running.raised is None
    for name in ("zero", "text", "lost", "odd", "none", "ran", "count"):
        assert f"beat_schedule: entry={name} is left out: " in caplog.text
    assert "entry=good" not in caplog.text
    assert "cannot be built" not in caplog.text


# -- commands --


def test_entries_that_are_left_out_are_rows() -> None:
    """With all their mistakes; the others are shown."""
    desk = Desk(make_app(beat_schedule={"good": entry(), "bad": {"task": 5, "schedule": "often"}}))
    editor = desk.editor()
    assert entry_names(editor) == {"good", "bad"}
    assert view_of(editor, "good").problem is None
    problem = str(view_of(editor, "bad").problem)
    assert problem.startswith("cannot be shown: schedule = 'often': ")
    assert "; task = 5: " in problem


@pytest.mark.parametrize("what", ["pause", "resume", "run_now", "remove", "put"])
def test_an_entry_that_is_left_out_is_changed_in_the_code(what: str) -> None:
    """A command says what is wrong with it, or where it is."""
    desk = Desk(make_app(beat_schedule={"bad": entry(schedule="often")}))
    change: Callable[[str], object] = desk.put if what == "put" else getattr(desk.editor(), what)
    with pytest.raises(NeliError, match="beat_schedule"):
        change("bad")
    assert not desk.store.writes


def test_a_schedule_that_cannot_be_looked_at_is_a_row() -> None:
    """A crontab of another release, say, that lacks what this one reads."""
    odd = crontab(0)
    vars(odd).clear()
    app = make_app(beat_schedule={"good": entry(), "e": entry(schedule=odd)})
    editor = Desk(app).editor()
    assert "AttributeError" in str(view_of(editor, "e").problem)
    assert view_of(editor, "good").problem is None
    assert list(ReplicatedScheduler(app=app).schedule) == ["good"]
    odd = crontab(0)
    del vars(odd)["_orig_minute"]
    app.conf.beat_schedule["e"] = entry(schedule=odd)
    editor = Desk(app).editor()
    assert "AttributeError" in str(view_of(editor, "e").problem)
    assert view_of(editor, "good").problem is None


def test_a_schedule_whose_repr_raises_is_a_row() -> None:
    """Whatever an application's class does costs its own entry."""

    class Silent(BaseSchedule):  # type: ignore[misc]
        """Cannot be shown."""

        def is_due(self, last_run_at: datetime) -> tuple[bool, float]:
            return False, 60.0

        def __repr__(self) -> str:
            raise RuntimeError

    desk = Desk(make_app(beat_schedule={"good": entry(), "e": entry(schedule=Silent())}))
    editor = desk.editor()
    assert {name: view_of(editor, name).schedule for name in entry_names(editor)} == {"good": "PT10S", "e": "<Silent>"}
