"""The next slots of an entry or a schedule, and what becomes of each: by `periodic.next_runs` and as a command."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from celery.schedules import crontab, schedule, solar
from click.testing import CliRunner

from celery_neli import cron, periodic
from celery_neli.exceptions import ConfigurationError, NeliError
from celery_neli.periodic.cli import schedule as commands
from celery_neli.periodic.preview import NextRun, preview
from celery_neli.schedule_topic.codec import PAUSE, State
from celery_neli.schedule_topic.rules import Pause, encode_pause
from tests.unit.schedulers import make_app
from tests.unit.schedules import NOON, Desk

UTC = timezone.utc
AT_NOON = datetime.fromtimestamp(NOON, UTC)  # 2026-06-01 12:00
SINCE = " since 2026-06-01 13:00:00Z"
APP = make_app(timezone="America/New_York")


@pytest.fixture
def desk() -> Desk:
    return Desk()


def of(desk: Desk, name: Any, n: int = 3, **given: Any) -> list[NextRun]:
    return preview(desk.app, name, n, editor=desk.editor(), **given).runs


def times(runs: list[NextRun]) -> list[str]:
    return [f"{each.slot:%d %H:%M}" for each in runs]


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ("CRON_TZ=Europe/Berlin 30 7 * * mon-fri", ["2026-06-02T07:30:00+02:00", "2026-06-03T07:30:00+02:00"]),
        (cron("30 7 * * *"), ["2026-06-02T07:30:00-04:00", "2026-06-03T07:30:00-04:00"]),
        ("30 7 * * *", ["2026-06-02T07:30:00-04:00", "2026-06-03T07:30:00-04:00"]),
        (crontab(30, 7), ["2026-06-02T07:30:00-04:00", "2026-06-03T07:30:00-04:00"]),
        ("1h", ["2026-06-01T09:00:00-04:00", "2026-06-01T10:00:00-04:00"]),
        (90, ["2026-06-01T08:01:30-04:00", "2026-06-01T08:03:00-04:00"]),
        ("at:2026-12-01T10:00:00Z", ["2026-12-01T05:00:00-05:00"]),
        ("at:2025-12-01T10:00:00Z", []),
    ],
)
def test_a_schedule_needs_no_entry_and_no_kafka(when: Any, expected: list[str]) -> None:
    """Its slots are in its own zone, or else in the app's, whose offset they show."""
    found = periodic.next_runs(APP, when, 2, after=AT_NOON)
    assert [each.slot.isoformat() for each in found] == expected
    assert all(each.runs and not each.notes for each in found)


def test_slots_are_shown_in_the_zone_that_is_asked_for() -> None:
    """By its name, or the zone itself; they are the same moments."""
    for tz in ("Asia/Kolkata", ZoneInfo("Asia/Kolkata")):
        (found,) = periodic.next_runs(APP, "TZ=Europe/Berlin 30 7 * * *", 1, tz=tz, after=AT_NOON)
        assert found.slot.isoformat() == "2026-06-02T11:00:00+05:30"
        assert found.as_dict()["utc"] == "2026-06-02T05:30:00Z"
    (found,) = periodic.next_runs(APP, "TZ=Europe/Berlin 30 7 * * *", 1)
    assert found.slot > datetime.now(UTC)


def test_what_the_caller_holds_stays_as_it_is() -> None:
    """A schedule without an app is asked as one of this app, and keeps none."""
    when, other = crontab(30, 7), make_app(timezone="Asia/Tokyo")
    assert when.tz is not None  # Celery keeps the zone of the current app, once it is asked for
    assert [str(each.slot) for each in periodic.next_runs(other, when, 1, after=AT_NOON)] == [
        "2026-06-02 07:30:00+09:00"
    ]
    assert [str(each.slot) for each in periodic.next_runs(APP, when, 1, after=AT_NOON)] == ["2026-06-02 07:30:00-04:00"]


def test_the_changes_of_the_clock_are_told() -> None:
    """Of crontabs of both kinds: a time that is left out, and an hour that is repeated."""
    berlin = crontab(30, 2)
    berlin.app = make_app(timezone="Europe/Berlin")
    spring, autumn = datetime(2026, 3, 28, 12, tzinfo=UTC), datetime(2026, 10, 24, 12, tzinfo=UTC)
    for when in (cron("30 2 * * *", tz="Europe/Berlin"), berlin):
        first, second = periodic.next_runs(APP, when, 2, after=spring)
        assert first.slot.isoformat() == "2026-03-29T03:00:00+02:00"
        assert first.notes == ("the clock goes from 02:00 to 03:00: its time is left out",)
        assert second.notes == ()
    (at_three,) = periodic.next_runs(APP, "TZ=Europe/Berlin 0 3 * * *", 1, after=spring)
    assert at_three.notes == ()
    found = periodic.next_runs(APP, "TZ=Europe/Berlin */30 2 * * *", 4, after=autumn)
    assert [each.slot.isoformat()[11:] for each in found] == [
        "02:00:00+02:00", "02:30:00+02:00", "02:00:00+01:00", "02:30:00+01:00",
    ]  # fmt: skip
    assert [bool(each.notes) for each in found] == [False, False, True, True]
    assert found[3].notes == ("in the second pass of an hour that is repeated",)


def test_an_interval_counts_from_the_last_run_of_its_entry(desk: Desk) -> None:
    """Also after a time that is asked for."""
    desk.put("e", "1h")
    desk.store.set("e", State(NOON - 600, 1, 5, since=NOON - 7200))
    desk.now = NOON
    assert times(of(desk, "e")) == ["01 13:00", "01 14:00", "01 15:00"]  # from when it was put
    desk.now += 5400
    desk.store.set("e", State(NOON + 4200, 2, 5, since=NOON))
    assert times(of(desk, "e")) == ["01 14:10", "01 15:10", "01 16:10"]
    assert times(of(desk, "e", after=AT_NOON + timedelta(days=1))) == ["02 12:10", "02 13:10", "02 14:10"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [("16:00", True, ("overdue, runs at once: fire_once", "3 left out" + SINCE))]),
        ({"neli_misfire": "skip"}, [("16:00", False, ("overdue, left out: skip", "4 left out" + SINCE))]),
        (
            {"neli_misfire": "fire_all", "neli_misfire_max": 2},
            [
                ("15:00", True, ("overdue, runs at once: fire_all",)),
                ("16:00", True, ("overdue, runs at once: fire_all", "2 left out" + SINCE)),
            ],
        ),
        (
            {"neli_misfire_grace": 1800},
            [("16:00", True, ("overdue, runs at once: fire_once", "3 left out" + SINCE))],
        ),
    ],
)  # fmt: skip
def test_slots_that_are_owed_come_first(desk: Desk, options: Any, expected: list[Any]) -> None:
    """With what the misfire policy does to them; none of them if a time is asked for."""
    desk.put("e", "0 * * * *", options=options)
    desk.now = NOON + 4 * 3600 + 1200
    found = of(desk, "e", len(expected) + 1)
    assert [(f"{each.slot:%H:%M}", each.runs, each.notes) for each in found[:-1]] == expected
    assert (times(found[-1:]), found[-1].runs, found[-1].notes) == (["01 17:00"], True, ())
    assert times(of(desk, "e", 1, after=AT_NOON)) == ["01 13:00"]


def test_a_paused_entry_runs_for_no_slot(desk: Desk) -> None:
    """Of `beat_schedule`, too; neither does it owe any."""
    desk.put("e", "0 * * * *")
    for name in ("e", "static"):
        desk.editor().pause(name)
    desk.now += 2 * 3600
    for name, expected in (
        ("e", ["01 15:00", "01 16:00", "01 17:00"]),
        ("static", ["01 14:01", "01 14:02", "01 14:03"]),
    ):
        found = of(desk, name)
        assert times(found) == expected
        assert [(each.runs, each.notes) for each in found] == [(False, ("paused",))] * 3


def test_slots_run_again_after_the_end_of_a_pause(desk: Desk) -> None:
    """The note says until when it is paused; the first slot after that runs, and an interval starts over at the end."""
    desk.put("cron", "0 * * * *")
    desk.put("interval", "1h")
    until = desk.now + 2.25 * 3600
    note = ("paused until 2026-06-01 14:15:00Z",)
    for name, expected in (
        ("cron", [("13:00", False, note), ("14:00", False, note), ("15:00", True, ()), ("16:00", True, ())]),
        ("interval", [("13:00", False, note), ("14:00", False, note), ("15:15", True, ()), ("16:15", True, ())]),
    ):
        desk.editor().pause(name, until=until)
        found = of(desk, name, 4)
        assert [(f"{each.slot:%H:%M}", each.runs, each.notes) for each in found] == expected
        later = of(desk, name, 1, after=AT_NOON + timedelta(hours=3.5))
        assert [(f"{each.slot:%H:%M}", each.runs) for each in later] == [(expected[-1][0], True)]


def test_an_entry_of_beat_schedule_that_never_ran_counts_from_where_a_leader_began_it(desk: Desk) -> None:
    """So that the next slot of an interval is the one that `list` names."""
    desk.store.set("static", State(NOON - 20, 0, 5))
    assert [f"{each.slot:%H:%M:%S}" for each in of(desk, "static", 2)] == ["12:00:40", "12:01:40"]
    assert desk.look("static").next == NOON + 40


def test_a_slot_names_the_pause_of_many_entries_that_holds_it(desk: Desk) -> None:
    """By the words of `list`, so that one knows which pause to end."""
    desk.put("e", "0 * * * *")
    rule = Pause(id="1", of="prefix", value="e", at=desk.now, by="ann")
    desk.store.values[PAUSE, rule.id] = encode_pause(rule)
    (found,) = of(desk, "e", 1)
    assert (found.runs, found.notes) == (False, ("paused by the pause of prefix 'e'",))


def test_other_options_are_told(desk: Desk) -> None:
    """As far as they may keep a slot's task from running."""
    desk.app.conf.result_backend = "redis://"
    desk.put("e", "0 * * * *", options={"neli_overlap": "skip", "neli_expires": 90, "neli_overlap_age": 60})
    (found,) = of(desk, "e", 1)
    assert (found.runs, found.notes) == (True, ("left out if the run before is unfinished", "expires after 90 s"))
    notes = {"queue_one": "waits if", "cancel_other": "revokes the run before if", "allow": ""}
    for policy, note in notes.items():
        desk.put("e", "0 * * * *", options={"neli_overlap": policy})
        (found,) = of(desk, "e", 1)
        assert all(each.startswith(note) for each in found.notes)
        assert len(found.notes) == bool(note)


def test_nothing_runs_under_a_scheduler_that_does_not_know_the_entry(desk: Desk) -> None:
    """The slots are shown all the same, with the reason."""
    desk.put("e", "0 * * * *")
    desk.app.conf.neli_scheduler = "celery.beat.Scheduler"
    (found,) = of(desk, "e", 1)
    assert not found.runs
    assert found.notes[0].startswith("not run: ")


def test_a_name_of_beat_schedule_comes_before_a_schedule_of_the_same_text() -> None:
    """A runtime entry of such a name has to be asked for as an entry."""
    desk = Desk(make_app(beat_schedule={"5m": {"task": "t", "schedule": 3600.0}}))
    desk.put("@daily", "0 3 * * *")
    assert preview(desk.app, "5m", 1, editor=desk.editor()).what == "5m: every 1 h"
    assert preview(desk.app, "@daily", 1, editor=desk.editor()).what == "0 0 * * *"
    for given in ("@daily", desk.look("@daily")):
        assert preview(desk.app, given, 1, editor=desk.editor(), named=True).what == "@daily: 0 3 * * *"
    assert preview(desk.app, desk.look("@daily"), 1, editor=desk.editor()).what == "@daily: 0 3 * * *"


class Deciding(schedule):
    def is_due(self, last_run_at: Any) -> Any:
        return super().is_due(last_run_at)


@pytest.mark.parametrize(
    ("given_", "says"),
    [
        ({"n": 0}, "n = 0: give a whole number from 1"),
        ({"n": True}, "n = True"),
        ({"n": 10**9}, "n = 1000000000"),
        ({"tz": "Mars"}, "tz = 'Mars': there is no such time zone"),
        ({"tz": 5}, "tz = 5"),
        ({"after": 5}, "after = 5: give a datetime"),
        ({"name_or_schedule": Deciding(60)}, "only the schedule itself knows"),
        ({"name_or_schedule": "statik"}, "there is no entry 'statik'; did you mean 'static'?, and it is no schedule"),
        ({"name_or_schedule": "TZ=UTC 61 * * * *"}, "minute = '61': give"),
        ({"name_or_schedule": "61 * * * *"}, "there is no entry '61 * * * *', and it is no schedule: "),
        ({"name_or_schedule": None}, "None: NoneType is not a schedule"),
        ({"name_or_schedule": "bad"}, "beat entry 'bad': cannot be shown"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(given_: dict[str, Any], says: str) -> None:
    """Of each argument."""
    desk = Desk(make_app(beat_schedule={"static": {"task": "t", "schedule": 5}, "bad": {"task": "t", "schedule": 0}}))
    with pytest.raises(NeliError) as caught:
        preview(desk.app, **{"name_or_schedule": "static", **given_}, editor=desk.editor())
    assert says in str(caught.value)
    with pytest.raises(ConfigurationError, match="app = "):
        periodic.next_runs(None, "5m")


def test_solar_events_are_shown() -> None:
    """One each day."""
    pytest.importorskip("ephem")
    found = periodic.next_runs(APP, solar("sunset", 52.5, 13.4), 2, tz="Europe/Berlin", after=AT_NOON)
    assert [f"{each.slot:%d %H}" for each in found] == ["01 21", "02 21"]


def run(*arguments: str) -> Any:
    return CliRunner().invoke(commands, ["next", *arguments], obj=SimpleNamespace(app=APP), catch_exceptions=False)


def test_the_command_shows_a_schedule() -> None:
    """With the offset of each slot, or as JSON."""
    result = run("CRON_TZ=Europe/Berlin 30 7 * * mon-fri", "-n", "3", "--tz", "America/New_York")
    assert result.exit_code == 0
    head, columns, *rows = result.output.splitlines()
    assert head == "30 7 * * mon-fri (Europe/Berlin), shown in America/New_York"
    assert columns.split() == ["SLOT", "UTC", "RUNS", "NOTE"]
    assert len(rows) == 3
    assert all(row.endswith("yes") and ("-04:00" in row or "-05:00" in row) for row in rows)
    found = json.loads(run("@daily", "--json").output)
    assert len(found) == 10
    assert found[0].keys() == {"slot", "utc", "runs", "notes"}
    assert run("at:2020-01-01T00:00:00Z").output.splitlines()[-1] == "no slot will come"


def test_the_command_refuses_in_one_line() -> None:
    """With exit status 1."""
    for arguments, says in {
        ("TZ=Mars 0 * * * *", "--json"): "tz = 'Mars'",
        ("*/20 61 * * * *",): "minute = '61'",
        ("5m", "--tz", "Mars"): "tz = 'Mars'",
    }.items():
        result = run(*arguments)
        assert result.exit_code == 1
        assert says in result.output
        assert len(result.output.splitlines()) == 1
