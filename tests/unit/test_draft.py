"""What code of others reads and changes in `sender.scheduler.schedule`, from the moment at which Celery gives it."""

from __future__ import annotations

import copy
import logging
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from celery import beat as celery_beat
from celery.beat import ScheduleEntry
from celery.schedules import crontab, schedule
from celery.signals import beat_init

from celery_neli.beat.scheduler import Scheduler
from celery_neli.config import owner
from tests.unit.beats import NOON, World
from tests.unit.fakes import FakeLeadership, FakeTopic
from tests.unit.schedulers import Beat, Database, Kind, RedBeat, an_hour_ago, eventually, make_app
from tests.unit.test_role_runner import outer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

OURS = "celery_neli.ReplicatedScheduler"
CELERYS = "celery.beat.Scheduler"
SCHEDULE = {
    "static": {"task": "t", "schedule": 3600.0, "options": {"headers": {"a": 1}}},
    "other": {"task": "t", "schedule": crontab(minute="7"), "args": (1,)},
}


@pytest.fixture(params=[OURS, CELERYS])
def beat(request: pytest.FixtureRequest) -> Any:
    """A beat that is not started yet, over each scheduler that keeps its entries in memory."""
    made = Beat(make_app(neli_scheduler=request.param, beat_schedule=copy.deepcopy(SCHEDULE)))
    yield made
    made.stop()


def due(name: str, app: Any, **fields: Any) -> ScheduleEntry:
    """An entry that is due at once."""
    return ScheduleEntry(name, "t", an_hour_ago(), 0, schedule(1800.0, app=app), app=app, **fields)


def names(beat: Beat, count: int) -> set[str]:
    return {each["neli_beat_entry"] for each in beat.sends(count)}


# -- before there is a leader --


def test_the_schedule_is_there_before_there_is_a_leader(beat: Beat, tmp_path: Path) -> None:
    """As Celery's has it: with tasks, arguments, options and default entries."""
    found = beat.scheduler.schedule
    assert set(found) == {"static", "other"}
    assert (found["other"].task, found["other"].args, found["other"].schedule) == ("t", (1,), crontab(minute="7"))
    assert found["static"].options["headers"] == {"a": 1}
    assert beat.scheduler.get_schedule() is found
    assert isinstance(found, dict)
    expiring = Beat(make_app(neli_scheduler=beat.app.conf.neli_scheduler, result_backend=tmp_path.as_uri()))
    expiring.app.conf.result_expires = 60
    assert set(expiring.scheduler.schedule) == {"celery.backend_cleanup"}


def test_looking_at_the_schedule_starts_nothing(beat: Beat) -> None:
    """Neither a thread nor the election."""
    before = threading.active_count()
    assert beat.scheduler.schedule
    assert threading.active_count() == before
    assert beat.leadership.started == 0


def by_item(scheduler: Any, entry: Any) -> None:
    scheduler.schedule["new"] = entry


def by_update(scheduler: Any, entry: Any) -> None:
    scheduler.schedule.update(new=entry)


def by_setdefault(scheduler: Any, entry: Any) -> None:
    scheduler.schedule.setdefault("new", entry)


def by_dict(scheduler: Any, entry: Any) -> None:
    scheduler.update_from_dict({"new": {"task": "t", "schedule": 1800.0, "last_run_at": an_hour_ago()}})


def by_entry(scheduler: Any, entry: Any) -> None:
    scheduler.update_from_dict({"new": entry})


def by_merge(scheduler: Any, entry: Any) -> None:
    new = {"task": "t", "schedule": 1800.0, "last_run_at": an_hour_ago()}
    scheduler.merge_inplace({**scheduler.app.conf.beat_schedule, "new": new})


def by_add(scheduler: Any, entry: Any) -> None:
    assert scheduler.add(name="new", task="t", schedule=1800.0, last_run_at=an_hour_ago()).name == "new"


def by_plain_dict(scheduler: Any, entry: Any) -> None:
    scheduler.schedule["new"] = {"task": "t", "schedule": 1800.0, "last_run_at": an_hour_ago()}


def by_mapping(scheduler: Any, entry: Any) -> None:
    scheduler.schedule = {**scheduler.schedule, "new": entry}


def by_default_entries(scheduler: Any, entry: Any) -> None:
    scheduler.install_default_entries(scheduler.schedule)
    scheduler.get_schedule()["new"] = entry


def by_data(scheduler: Any, entry: Any) -> None:
    scheduler.data["new"] = entry


def by_setup(scheduler: Any, entry: Any) -> None:
    scheduler.setup_schedule()
    scheduler.data = {**scheduler.data, "new": entry}


def under_another_name(scheduler: Any, entry: Any) -> None:
    entry.name = "old"
    scheduler.schedule["new"] = entry


WAYS = [
    by_item, by_update, by_setdefault, by_dict, by_entry, by_merge, by_add, by_plain_dict, by_mapping,
    by_default_entries, by_data, by_setup, under_another_name,
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_an_entry_that_is_added_before_there_is_a_leader_runs(beat: Beat, way: Callable[[Any, Any], None]) -> None:
    """Whichever way it comes; it is in the schedule at once, and in that of the leader, with the others."""
    way(beat.scheduler, due("new", beat.app))
    assert set(beat.scheduler.schedule) == {"static", "other", "new"}
    beat.start()
    beat.leadership.grant(1)
    assert names(beat, 1) == {"new"}
    eventually(lambda: set(beat.scheduler.schedule) == {"static", "other", "new"}, what="the schedule")


def test_a_receiver_of_beat_init_may_change_the_schedule(beat: Beat) -> None:
    """`celery beat`'s own service, and a receiver as in other packages' documentation."""
    seen: list[set[str]] = []

    def receiver(sender: Any, **kwargs: Any) -> None:
        seen.append(set(sender.scheduler.schedule))
        sender.scheduler.schedule["new"] = due("new", sender.app)
        del sender.scheduler.schedule["other"]

    leadership = FakeLeadership()
    topic = FakeTopic()
    cls: Any = type("Scheduler", (Scheduler,), {"topic_factory": staticmethod(lambda *_: topic)})
    service = celery_beat.Service(
        beat.app, max_interval=0.02, scheduler_cls=lambda **given: cls(leadership=leadership, **given)
    )
    beat_init.connect(receiver, weak=False, dispatch_uid="draft")
    thread = threading.Thread(target=service.start, daemon=True)
    try:
        thread.start()
        leadership.grant(1)
        assert names(beat, 1) == {"new"}
    finally:
        beat_init.disconnect(dispatch_uid="draft")
        service.stop()
        thread.join(8)
    assert not thread.is_alive()
    assert seen == [{"static", "other"}]


def empty(scheduler: Any) -> None:
    scheduler.schedule.clear()


def take_out(scheduler: Any) -> None:
    del scheduler.schedule["static"]
    assert scheduler.schedule.pop("other", None) is not None


def take_items(scheduler: Any) -> None:
    while scheduler.schedule:
        scheduler.schedule.popitem()


@pytest.mark.parametrize("way", [empty, take_out, take_items])
def test_an_entry_that_is_taken_out_stays_out(beat: Beat, way: Callable[[Any], None]) -> None:
    """Also one of beat_schedule, in every term."""
    way(beat.scheduler)
    by_item(beat.scheduler, due("new", beat.app))
    beat.start()
    for term in (1, 2):
        beat.leadership.grant(term)
        beat.turns()
        eventually(lambda: set(beat.scheduler.schedule) == {"new"}, what="the schedule")
        beat.leadership.lapse()
        beat.turns()


def test_an_entry_that_is_changed_in_place_is_changed(beat: Beat) -> None:
    """Its schedule, its arguments, its options."""
    entry = beat.scheduler.schedule["other"]
    entry.schedule, entry.args, entry.last_run_at = schedule(1800.0, app=beat.app), (2,), an_hour_ago()
    entry.options["headers"] = {"mine": "yes"}
    beat.start()
    beat.leadership.grant(1)
    (message,) = beat.sends(1)
    assert (message["neli_beat_entry"], message["mine"]) == ("other", "yes")
    assert message["argsrepr"] in ("(2,)", "[2]")


def test_what_is_put_into_beat_schedule_after_that_counts(beat: Beat) -> None:
    """Cronitor takes an entry's headers away, and adds the entry again by `add_periodic_task`, with its own."""
    scheduler, app = beat.scheduler, beat.app

    @app.task(name="t", shared=False)  # type: ignore[untyped-decorator]
    def task() -> None: ...

    entry = scheduler.schedule["static"]
    headers = entry.options.pop("headers")
    app.add_periodic_task(entry.schedule, task.s().set(headers={**headers, "b": 2}), name="static")
    beat.start()
    beat.leadership.grant(1)
    eventually(lambda: getattr(beat.scheduler.schedule.get("static"), "args", None) is not None, what="the schedule")
    beat.turns()
    assert beat.scheduler.schedule["static"].options["headers"] == {"a": 1, "b": 2}


def test_an_entry_that_never_ran_begins_with_the_term_and_not_before(caplog: pytest.LogCaptureFixture) -> None:
    """It is as new as one of beat_schedule at a first start, and the object that was put there stays as it was."""
    world = World({"static": 10.0})
    process = world.beat()
    scheduler = outer(world, process)
    entry = ScheduleEntry("new", "t", None, 0, schedule(10.0, app=process.app), app=process.app)
    scheduler.schedule["new"] = entry
    world.now = 1.0
    scheduler.tick()
    world.now = 95.0
    process.member.lead()
    for _ in range(4):
        scheduler.tick()
    assert "slots missed" not in caplog.text
    assert scheduler.schedule["new"].last_run_at >= NOON + timedelta(seconds=91)
    assert entry.last_run_at == NOON
    scheduler.close()


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("text", "'text': give a dict with a task and a schedule"),
        (None, "None: give a dict with a task and a schedule"),
        (7, "7: give a dict with a task and a schedule"),
        ({"task": "t"}, "schedule is missing: "),
        ({"task": "t", "schedule": 5.0, "no": 1}, "no = 1: there is no such field; "),
        ({"task": "t", "schedule": 5.0, "options": 5}, "options = 5: give a dict "),
        ({"task": "t", "schedule": 0}, "schedule = 0"),
        ({"schedule": "never", "args": 5}, "; args = 5: give a list; task is missing: "),
    ],
)
def test_what_is_no_entry_costs_one_line(beat: Beat, value: Any, says: str, caplog: pytest.LogCaptureFixture) -> None:
    """With its name and the mistakes that it would have in `beat_schedule`; the others run, in each term."""
    beat.scheduler.schedule["bad\x1b"] = value
    by_item(beat.scheduler, due("new", beat.app))
    with caplog.at_level(logging.ERROR):
        beat.start()
        beat.leadership.grant(1)
        assert names(beat, 1) == {"new"}
        beat.leadership.lapse()
        beat.turns()
        beat.leadership.grant(2)
        beat.turns(5)
    told = [line for line in caplog.messages if "was changed in the schedule by code" in line]
    assert len(told) == 1
    assert r"entry=bad\x1b " in told[0]
    assert says in told[0]


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("way", [dict, lambda fields: ScheduleEntry(**fields, name="7")])
def test_a_name_that_is_no_text_costs_one_line(shards: int, way: Any, caplog: pytest.LogCaptureFixture) -> None:
    """With several shards as with one: a state is kept by an entry's name."""
    world = World()
    process = world.beat(shards=shards)
    scheduler = outer(world, process)
    scheduler.schedule[7] = way({"task": "t", "schedule": schedule(5.0, app=process.app)})
    with caplog.at_level(logging.ERROR):
        scheduler.tick()
    assert [each for each in caplog.messages if "name = 7: give a string" in each and "entry=7 " in each]
    assert 7 not in scheduler.schedule


def test_an_entry_with_a_policy_that_does_not_exist_costs_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """Where it is in beat_schedule beat does not start; here it stops no other."""
    made = Beat(make_app(neli_scheduler=OURS, beat_schedule={}))
    made.scheduler.schedule["bad"] = due("bad", made.app, options={"neli_misfire": "never"})
    by_item(made.scheduler, due("new", made.app))
    with made:
        made.leadership.grant(1)
        assert names(made, 1) == {"new"}
    assert "entry=bad was changed in the schedule by code, which has no effect: " in caplog.text
    assert "neli_misfire = 'never'" in caplog.text


# -- while it leads --


def test_what_is_changed_while_it_leads_stays_so_in_the_next_term(beat: Beat) -> None:
    """Of this process, as with Celery, whose scheduler has one term."""
    draft = beat.scheduler.schedule
    beat.start()
    beat.leadership.grant(1)
    eventually(lambda: beat.scheduler.schedule is not draft, what="a term")
    beat.turns()  # what another thread changes while the term begins may be lost
    beat.scheduler.schedule["new"] = due("new", beat.app)
    beat.scheduler.schedule.pop("other")
    beat.leadership.revoke().join(5)
    beat.turns()
    beat.leadership.grant(2)
    beat.turns()
    eventually(lambda: set(beat.scheduler.schedule) == {"static", "new"}, what="the schedule")
    assert names(beat, 1) == {"new"}


# -- shards --


def test_with_shards_each_entry_goes_to_its_own() -> None:
    """Before there is a leader, while some shards are led here, and when all are: one schedule."""
    entries = {f"e{n}": 1.0 for n in range(8)}
    world = World(entries)
    process = world.beat(shards=3)
    scheduler = outer(world, process)
    new = [f"new{n}" for n in range(12)]

    def add(name: str) -> None:
        when = schedule(1.0, app=process.app)
        scheduler.schedule[name] = ScheduleEntry(name, "t", NOON, 0, when, app=process.app)

    for name in new[:4]:
        add(name)
    del scheduler.schedule["e0"]
    for role in process.roles:
        world.election.role(role)
    process.member.lead(process.roles[0])
    scheduler.tick()
    for name in new[4:8]:
        add(name)
    assert scheduler.schedule.pop("e1").name == "e1"
    for role in process.roles[1:]:
        process.member.lead(role)
    for _ in range(3):
        scheduler.tick()
    for name in new[8:]:
        add(name)
    del scheduler.schedule["e2"]
    assert set(scheduler.schedule) == {"e3", "e4", "e5", "e6", "e7", *new}
    for shard, entries_of_shard in enumerate(scheduler.schedule.maps):
        assert {owner(name, 3) for name in entries_of_shard} == {shard}
    scheduler.schedule = {name: entry for name, entry in scheduler.schedule.items() if name in new}
    assert set(scheduler.schedule) == set(new)
    scheduler.close()


# -- schedulers with a store --


def test_what_a_database_has_is_shown_and_cannot_be_put_there_by_code(
    tmp_path: Path, django_tables: None, caplog: pytest.LogCaptureFixture
) -> None:
    """In one line; what it has runs."""
    with (beat := Database(tmp_path).beat()):
        pass
    database = Database(tmp_path)
    beat = database.beat()
    assert set(beat.scheduler.schedule) == {"entry"}
    beat.scheduler.schedule["new"] = due("new", beat.app)
    with beat:
        database.leadership.grant(1)
        assert names(beat, 1) == {"entry"}
        beat.turns()
    assert caplog.text.count("entry=new was changed in the schedule by code, which has no effect") == 1


def test_redbeat_keeps_its_own(tmp_path: Path, redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Likewise."""
    redbeat = RedBeat(tmp_path, redis_url)
    beat = redbeat.beat()
    assert set(beat.scheduler.schedule) == {"entry"}
    beat.scheduler.schedule["new"] = due("new", beat.app)
    with beat:
        redbeat.leadership.grant(1)
        assert names(beat, 1) == {"entry"}
    assert caplog.text.count("entry=new was changed in the schedule by code, which has no effect") == 1


def test_a_file_is_not_opened_before_its_term(tmp_path: Path) -> None:
    """Another beat may have it open; what is added runs, and is in the file."""
    kind = Kind(tmp_path)
    kind.name = "celery.beat.PersistentScheduler"
    beat = kind.beat()
    assert set(beat.scheduler.schedule) == {"entry"}
    assert list(tmp_path.iterdir()) == []
    by_item(beat.scheduler, due("new", beat.app))
    with beat:
        kind.leadership.grant(1)
        assert names(beat, 2) == {"entry", "new"}
