"""The options that say when an entry runs: what they take, what each mistake costs, and where they are heeded."""

from __future__ import annotations

import json
import logging
import pickle
import sys
from datetime import date, datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from celery import beat
from celery.schedules import crontab, schedule, solar
from click.testing import CliRunner

import celery_neli.periodic.cli.entries
from celery_neli import ReplicatedScheduler, Scheduler, cron
from celery_neli.beat.wrapped import LeasedMixin
from celery_neli.exceptions import ConfigurationError
from celery_neli.ordinary_beat import WHEN_OPTIONS, OrdinaryBeat
from celery_neli.periodic import cli
from celery_neli.periodic.shape import UNHEEDED, shape
from celery_neli.periodic.static import check_static
from celery_neli.schedule import calendars
from celery_neli.schedule import shaped as shapes
from celery_neli.schedule.calendars import Calendar, holidays
from celery_neli.schedule.shaped import shaped
from celery_neli.schedule.slots import missed, next_slot, once
from tests.unit.beats import NOON, World, _Store
from tests.unit.schedulers import make_app

UTC = timezone.utc


def is_closed(day: date) -> bool:
    """A calendar: Wednesdays."""
    return day.isoweekday() == 3


def is_broken(day: date) -> bool:
    """A calendar that fails."""
    raise OSError("no\nroute")


class NoFunction:
    """It cannot be called."""


OF_HERE = f"{__name__}.is_closed"
#: By option: a value that is wrong, the schedule beside it, what else is given, and what the line says.
WRONG: list[tuple[str, Any, str, dict[str, Any], str]] = [
    ("neli_timezone", "Europe/Berln", "0 9 * * *", {}, "did you mean Europe/Berlin?"),
    ("neli_timezone", "localtime", "0 9 * * *", {}, "give its name, such as 'Europe/Berlin'"),
    ("neli_timezone", "../../etc/passwd", "0 9 * * *", {}, "give a name such as 'Europe/Berlin'"),
    ("neli_timezone", "", "0 9 * * *", {}, "there is no such time zone here"),
    ("neli_timezone", 1, "0 9 * * *", {}, "give the name of a time zone"),
    ("neli_timezone", "UTC", "5m", {}, "give a crontab, or leave the time zone out"),
    ("neli_timezone", "UTC", "at:2030-01-01T00:00Z", {}, "give a crontab, or leave the time zone out"),
    ("neli_timezone", "UTC", "solar:sunset,48,11", {}, "give a crontab, or leave the time zone out"),
    ("neli_timezone", "UTC", "CRON_TZ=Asia/Tokyo 0 9 * * *", {}, "names Asia/Tokyo already: leave one of them out"),
    ("neli_jitter", -1, "5m", {}, "give a number of seconds from 0 to 2678400"),
    ("neli_jitter", "60", "5m", {}, "give a number of seconds from 0 to 2678400"),
    ("neli_jitter", True, "5m", {}, "give a number of seconds from 0 to 2678400"),
    ("neli_jitter", 1e9, "5m", {}, "give a number of seconds from 0 to 2678400"),
    ("neli_jitter", 301, "5m", {}, "longer than the 300 s between two of its slots: give less"),
    ("neli_jitter", 301, "*/5 * * * *", {}, "longer than the 300 s between two of its slots: give less"),
    ("neli_jitter", 11, "cron:*/10 * * * * *", {}, "longer than the 10 s between two of its slots: give less"),
    ("neli_jitter", 60, "relative:PT1H", {}, "leave relative out, or give a crontab"),
    ("neli_start", "soon", "5m", {}, "give an aware datetime, or ISO text such as"),
    ("neli_start", "2026-02-30T00:00", "5m", {}, "give an aware datetime, or ISO text such as"),
    ("neli_start", 5, "5m", {}, "an aware datetime, or ISO text such as"),
    ("neli_start", "0001-01-01T00:00", "5m", {}, "give a time of the years 2 to 9998"),
    ("neli_start", "2030-01-01T00:00Z", "relative:PT1H", {}, "leave relative out, or give a crontab"),
    ("neli_end", "9999-12-31T23:59", "5m", {}, "give a time of the years 2 to 9998"),
    ("neli_end", "2030-01-01T00:00Z", "5m", {"neli_start": "2030-01-01T00:00Z"}, "it is not after neli_start"),
    ("neli_end", "2030-01-01T00:00+01:00", "5m", {"neli_start": "2029-12-31T23:00Z"}, "it is not after neli_start"),
    ("neli_max_runs", 0, "5m", {}, "give a whole number from 1 to 2147483647"),
    ("neli_max_runs", 1.0, "5m", {}, "give a whole number from 1 to 2147483647"),
    ("neli_max_runs", True, "5m", {}, "give a whole number from 1 to 2147483647"),
    ("neli_max_runs", "3", "5m", {}, "give a whole number from 1 to 2147483647"),
    ("neli_calendar", "holidays:DEE-BY", "5m", {}, "knows no place 'DEE-BY'"),
    ("neli_calendar", "holidays:DE-QQ", "5m", {}, "DE has no part 'QQ'; it has "),
    ("neli_calendar", "holidays:", "5m", {}, "give the code of a country, such as DE"),
    ("neli_calendar", "holidays:DE,", "5m", {}, "give the code of a country, such as DE"),
    ("neli_calendar", "", "5m", {}, "'holidays:DE-BY'"),
    ("neli_calendar", "only", "5m", {}, "'holidays:DE-BY'"),
    ("neli_calendar", 5, "5m", {}, "give text such as 'holidays:DE-BY'"),
    ("neli_calendar", "closed", "5m", {}, "'holidays:DE-BY'"),
    ("neli_tags", "a", "5m", {}, "give a list of 1 to 20 different texts"),
    ("neli_tags", [], "5m", {}, "give a list of 1 to 20 different texts"),
    ("neli_tags", ["a", "a"], "5m", {}, "give a list of 1 to 20 different texts"),
    ("neli_tags", ["a\nb"], "5m", {}, "give a list of 1 to 20 different texts"),
    ("neli_tags", [" a"], "5m", {}, "give a list of 1 to 20 different texts"),
    ("neli_tags", [1], "5m", {}, "give a list of 1 to 20 different texts"),
    ("neli_tags", [str(n) for n in range(21)], "5m", {}, "give a list of 1 to 20 different texts"),
    ("neli_timzone", "UTC", "0 9 * * *", {}, "did you mean neli_timezone?"),
]
IDS = [f"{name}={str(value)[:30]!r} {when}" for name, value, when, _, _ in WRONG]


def is_one_line(text: str, name: str, value: Any) -> bool:
    return "\n" not in text and f"{name}" in text and (name == "neli_timzone" or repr(value)[:40] in text)


@pytest.mark.parametrize(("name", "value", "when", "more", "says"), WRONG, ids=IDS)
def test_a_wrong_value_is_one_line_that_says_what_would_do(
    name: str, value: Any, when: str, more: dict[str, Any], says: str
) -> None:
    """From `put`, which stores nothing; in `beat_schedule`, where the entry is left out; and on the command line."""
    world = World()
    with pytest.raises(ConfigurationError) as raised:
        world.put("e", when, options={**more, name: value})
    assert says in str(raised.value)
    assert is_one_line(str(raised.value), name, value)
    assert world.log == []

    app = make_app(timezone="UTC", neli_scheduler=None)
    found = check_static({"e": {"task": "t", "schedule": when, "options": {**more, name: value}}}, app)
    assert not found.entries
    [line] = found.mistakes["e"]
    assert says in line or (name == "neli_calendar" and "give " in line)
    assert is_one_line(line, name, value)


@pytest.mark.parametrize(("name", "value", "when", "more", "says"), WRONG, ids=IDS)
def test_a_wrong_value_on_the_command_line_is_one_line(
    name: str, value: Any, when: str, more: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the JSON of `--options`; nothing is stored."""
    world = World()

    def put(app: Any, key: str, task: Any, when: Any, **fields: Any) -> None:
        world.put(key, when, options=fields["options"])

    monkeypatch.setattr(celery_neli.periodic.cli.entries.periodic, "put", put)
    app = make_app()
    options = json.dumps({**more, name: value})
    found = CliRunner().invoke(
        cli.schedule, ["add", "e", "t", when, "--options", options], obj=SimpleNamespace(app=app)
    )
    assert found.exit_code == 1
    [line] = found.output.splitlines()
    assert says in line
    assert name in line
    assert world.log == []


def test_the_command_line_has_an_option_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Together they are the entry's options."""
    stored: list[Any] = []
    monkeypatch.setattr(
        celery_neli.periodic.cli.entries.periodic, "put", lambda *_, **fields: stored.append(fields["options"])
    )
    monkeypatch.setattr(celery_neli.periodic.cli.entries, "say_entry", lambda *_: None)
    words = [
        *("--tz", "Europe/Berlin", "--start", "2026-12-01T10:00", "--end", "2027-01-01T00:00", "--max-runs", "3"),
        *("--calendar", "only holidays:DE-BY", "--jitter", "60", "--tag", "a", "--tag", "b"),
    ]
    found = CliRunner().invoke(
        cli.schedule, ["add", "e", "t", "0 9 * * *", *words], obj=SimpleNamespace(app=make_app())
    )
    assert found.exit_code == 0, found.output
    [options] = stored
    assert options == {
        "neli_timezone": "Europe/Berlin", "neli_start": "2026-12-01T10:00", "neli_end": "2027-01-01T00:00",
        "neli_max_runs": 3, "neli_calendar": "only holidays:DE-BY", "neli_jitter": 60.0, "neli_tags": ["a", "b"],
    }  # fmt: skip


def test_without_the_library_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """And for which option."""
    monkeypatch.setitem(sys.modules, "holidays", None)
    with pytest.raises(ConfigurationError) as raised:
        World().put("e", "5m", options={"neli_calendar": "holidays:FR"})
    assert str(raised.value) == (
        "options: neli_calendar = 'holidays:FR': needs the library holidays: pip install \"celery-neli[calendars]\""
    )


@pytest.mark.parametrize("source", ["os.path", OF_HERE, "os:system", "celery_neli.cron"])
def test_a_record_runs_no_code_of_its_choice(source: str) -> None:
    """A path is refused at runtime, also one that can be imported; by its name in `neli_calendars` it is taken."""
    app = make_app(timezone="UTC", neli_scheduler=None, neli_calendars={"closed": OF_HERE})
    with pytest.raises(ConfigurationError, match=r"give one of neli_calendars \(closed\), or 'holidays:DE-BY'"):
        shape(app, "e", crontab(app=app), {"neli_calendar": source}, runtime=True)
    made = shape(app, "e", crontab(app=app), {"neli_calendar": "closed"}, runtime=True)
    assert made.calendar == Calendar("closed", is_closed)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("no.such.module", "cannot be imported"),
        (f"{__name__}.NOON", "is no function"),
        (f"{__name__}.NoFunction", "is no function"),
    ],
)
def test_a_calendar_of_beat_schedule_that_is_none_is_one_line(given: str, says: str) -> None:
    """The entry is left out."""
    found = check_static({"e": {"task": "t", "schedule": 60, "options": {"neli_calendar": given}}}, make_app())
    assert [says in line and f"neli_calendar = {given!r}" in line for line in found.mistakes["e"]] == [True]


@pytest.mark.parametrize("given", [is_closed, OF_HERE, f"skip {OF_HERE}"])
def test_beat_schedule_may_name_a_function_or_give_it(given: Any) -> None:
    """It is asked for the days of the schedule's zone."""
    entries = {"e": {"task": "t", "schedule": "0 9 * * *", "options": {"neli_calendar": given}}}
    found = check_static(entries, make_app(timezone="Asia/Tokyo"))
    when = found.entries["e"]["schedule"]
    at, days = datetime(2026, 3, 1, tzinfo=UTC), []
    for _ in range(5):
        at = next_slot(when, at) or at
        days.append(at.astimezone(ZoneInfo("Asia/Tokyo")).isoweekday())
    assert days == [1, 2, 4, 5, 6]


def test_a_calendar_that_fails_counts_the_day_as_an_ordinary_one(caplog: pytest.LogCaptureFixture) -> None:
    """With `skip` the slot runs; with `only` it does not. One line says so."""
    world = World({"e": {"task": "t", "schedule": 3600.0, "options": {"neli_calendar": is_broken}}, "other": 3600.0})
    world.leader()
    world.ticks(until=2 * 3600)
    assert world.slots() == world.slots("other") == [3600.0, 7200.0]
    lines = [each.getMessage() for each in caplog.records if "calendar=" in each.getMessage()]
    assert len(lines) == 1
    assert "OSError: no\\nroute; the day counts as one that is not in it, so with mode=skip its slots run" in lines[0]


@pytest.mark.parametrize("made", [lambda day: False, is_broken])
def test_a_calendar_that_lets_nothing_through_ends_the_search(made: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A beat says once that its time never comes; the others run; `put` refuses it."""
    asked: list[date] = []

    def names(day: date) -> Any:
        asked.append(day)
        return made(day)

    world = World({"other": 3600.0}, neli_calendars={"none": names})
    world.schedule["e"] = {"task": "t", "schedule": crontab(), "options": {"neli_calendar": "only none"}}
    world.leader()
    world.ticks(until=3600)
    assert world.slots() == []
    assert world.slots("other") == [3600.0]
    assert len(asked) < 5000
    assert len([each for each in caplog.records if "entry never due entry=e" in each.getMessage()]) == 1


def test_an_entry_of_one_time_with_a_jitter_runs_late_and_is_removed_then() -> None:
    """It is named by the time that was given."""
    world = World()
    world.leader()
    world.put("e", "at:2026-03-01T12:00:30Z", options={"neli_jitter": 40})
    world.ticks(until=39)
    assert world.slots() == []
    world.ticks(until=60)
    assert world.slots() == [30.0]
    assert [each.at for each in world.sent] == [30.0 + 9.90625]
    assert world.edit().known.definitions == {}
    with pytest.raises(ConfigurationError, match="never comes"):
        world.put("e", "at:2026-03-01T12:00:55Z", options={"neli_jitter": 40})


def test_a_calendar_that_is_slow_is_one_line_and_ends_the_search(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The thread that sends tasks waits for it: some seconds for one search at most."""
    now = [0.0]

    def think(day: date) -> bool:
        asked.append(day)
        now[0] += 1.5
        return True

    asked: list[date] = []
    monkeypatch.setattr(calendars, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(shapes, "time", SimpleNamespace(monotonic=lambda: now[0]))
    now[0] = 1.0
    made = shape(make_app(timezone="UTC"), "e", crontab(), {"neli_calendar": think}, runtime=False)
    assert next_slot(made, NOON) is None
    assert len(asked) == 5
    assert next_slot(made, NOON) is None
    assert len(asked) == 9, "it remembers what it was told"
    [line] = [each.getMessage() for each in caplog.records]
    assert "took 1.5 s for day=2026-03-01: while it thinks, no task is sent" in line


def test_put_refuses_an_entry_whose_time_never_comes() -> None:
    """It names the options, too."""
    world = World()
    options = {"neli_start": "2026-04-01T00:00", "neli_end": "2026-04-30T00:00"}
    with pytest.raises(ConfigurationError, match=r"'0 0 1 1 \*' with .*neli_end = '2026-04-30T00:00'.*never comes"):
        world.put("e", "0 0 1 1 *", options=options)
    assert world.log == []


@pytest.mark.parametrize(
    "inner",
    [crontab("*/5"), schedule(timedelta(minutes=5)), cron("*/5 * * * *", tz="Asia/Tokyo"), once(NOON)],
    ids=lambda each: type(each).__name__,
)
def test_a_shaped_schedule_is_pickled_and_compared_and_shown_as_the_other(inner: Any) -> None:
    """Two are equal if they have the same slots."""
    fields: dict[str, Any] = {
        "shift": timedelta(seconds=5), "start": NOON, "end": NOON + timedelta(days=1),
        "calendar": holidays("holidays:DE-BY"), "zone": ZoneInfo("Asia/Tokyo") if type(inner) is crontab else None,
    }  # fmt: skip
    made = shaped(inner, **fields)
    assert repr(made) == repr(inner)
    assert str(made) == str(inner)
    again = pickle.loads(pickle.dumps(made))  # noqa: S301 - of this test
    assert again == made
    assert next_slot(again, NOON - timedelta(days=1)) == next_slot(made, NOON - timedelta(days=1))
    for name, other in {
        "shift": timedelta(0), "start": None, "end": None, "calendar": holidays("holidays:DE-BY", True),
    }.items():  # fmt: skip
        assert shaped(inner, **{**fields, name: other}) != made
    assert made != inner


def test_celerys_own_questions_are_answered() -> None:
    """`is_due` and `remaining_estimate`, for schedulers and tools that ask the schedule."""
    app = make_app(timezone="UTC")
    app.now = lambda: NOON + timedelta(seconds=3)
    inner = crontab(app=app)
    made = shaped(inner, shift=timedelta(seconds=2))
    assert made.is_due(NOON) == (True, 59.0)
    assert made.is_due(NOON + timedelta(seconds=2)) == (False, 59.0)
    assert made.remaining_estimate(NOON + timedelta(seconds=2)) == timedelta(seconds=59)
    assert (made.app, made.tz) == (app, inner.tz)


def test_an_ordinary_beat_with_our_scheduler_heeds_them() -> None:
    """`ReplicatedScheduler` by itself: jitter, calendar, start, and the number of runs."""
    world = World()
    schedule = {
        "e": {"task": "t", "schedule": 60.0, "options": {"neli_max_runs": 2, "neli_jitter": 30}},
        "c": {"task": "t", "schedule": crontab(), "options": {"neli_start": NOON + timedelta(seconds=120)}},
        "d": {"task": "t", "schedule": crontab(), "options": {"neli_calendar": lambda day: True}},
    }
    app = make_app(timezone="UTC", beat_schedule=schedule, neli_enabled=False)
    app.now = world.time
    scheduler = ReplicatedScheduler(app, lazy=True)
    scheduler.setup_schedule()
    sent: list[tuple[str, float]] = []
    scheduler.apply_entry = lambda entry, producer=None: sent.append((entry.name, world.now))
    while world.now < 300:
        wait = scheduler.tick()
        world.now += max(0.01, wait)
    assert [name for name, _ in sent].count("e") == 2
    assert all(at % 60 > 1 for name, at in sent if name == "e")
    assert [round(at) for name, at in sent if name == "c"] == [120, 180, 240, 300][: [n for n, _ in sent].count("c")]
    assert [name for name, _ in sent].count("c") >= 3
    assert "d" not in [name for name, _ in sent]


def test_another_scheduler_says_that_the_options_have_no_effect() -> None:
    """One line for each entry, when it is built."""
    entries = {"e": {"task": "t", "schedule": "5m", "options": {"neli_jitter": 5, "neli_tags": ["a"]}}}
    found = check_static(entries, make_app(), kind=beat.ScheduleEntry, shaping=False)
    [doubt] = found.doubts["e"]
    assert doubt.startswith("options: neli_jitter: has no effect")
    assert found.entries["e"]["options"] == {"neli_tags": ["a"]}, "what it does not know is kept from its messages"
    assert type(found.entries["e"]["schedule"]) is schedule


def test_a_led_scheduler_of_another_kind_says_so_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Its entries keep the schedules that it knows."""
    entries = {"e": {"task": "t", "schedule": 60, "options": {"neli_jitter": 5}}}
    app = make_app(beat_schedule=entries)
    scheduler = type("Leased", (LeasedMixin, beat.Scheduler), {})(app, lazy=True)
    scheduler.update_from_dict(app.conf.beat_schedule)
    assert type(scheduler.schedule["e"].schedule) is schedule
    [line] = [each.getMessage() for each in caplog.records]
    assert line.startswith("beat_schedule: entry=e: options: neli_jitter: has no effect")


def test_an_entry_that_code_adds_to_a_scheduler_of_another_kind_is_refused() -> None:
    """Before anything was added."""
    scheduler = Scheduler(make_app(neli_group="g", neli_kafka="127.0.0.1:1"), lazy=True)
    with pytest.raises(ConfigurationError, match="beat entry 'e': options: neli_jitter: has no effect"):
        scheduler.add(name="e", task="t", schedule=60, options={"neli_jitter": 5})
    assert "e" not in scheduler.schedule


def test_an_entry_that_code_puts_into_a_scheduler_is_shaped() -> None:
    """As it is, and as one of its fields; a wrong option is refused."""
    app = make_app(timezone="UTC", neli_enabled=False)
    scheduler = ReplicatedScheduler(app, lazy=True)
    scheduler.neli_put(beat.ScheduleEntry("e", "t", schedule=crontab(), options={"neli_jitter": 5}, app=app))
    scheduler.add(name="f", task="t", schedule=crontab(), options={"neli_jitter": 5})
    assert {type(each.schedule) for each in scheduler.schedule.values()} == {shaped}
    with pytest.raises(ConfigurationError, match="beat entry 'g': options: neli_jitter = -5: give a number"):
        scheduler.add(name="g", task="t", schedule=crontab(), options={"neli_jitter": -5})


def test_a_search_that_found_nothing_is_repeated_a_day_later() -> None:
    """A calendar may name a day that is further away."""
    made = shape(make_app(timezone="UTC"), "e", crontab(), {"neli_calendar": lambda day: True}, runtime=False)
    owed = missed(made, NOON, NOON, 1)
    assert owed is not None
    assert (owed.total, owed.upcoming) == (0, NOON + timedelta(days=1))


def test_an_ordinary_beat_says_that_the_options_have_no_effect(caplog: pytest.LogCaptureFixture) -> None:
    """One line for all entries."""
    options = {"neli_calendar": "holidays:DE"}
    entries = {f"e{n}": {"task": "t", "schedule": 60, "options": options} for n in range(5)}
    app = make_app(beat_schedule=entries)
    with caplog.at_level(logging.WARNING):
        OrdinaryBeat().on_beat(SimpleNamespace(scheduler=beat.Scheduler(app, lazy=True)))
        OrdinaryBeat().on_beat(SimpleNamespace(scheduler=ReplicatedScheduler(app, lazy=True)))
    [line] = [each.getMessage() for each in caplog.records]
    assert line.startswith("beat: options=neli_calendar of entries=e0,e1,e2 and 2 more have no effect here: ")
    assert WHEN_OPTIONS == UNHEEDED


def test_a_solar_schedule_is_shaped_too() -> None:
    """Its slots are rounded seconds; a jitter does not find the same event twice."""
    pytest.importorskip("ephem")
    app = make_app(timezone="Europe/Berlin")
    inner = solar("sunset", 48.1, 11.6, app=app)
    plain, at = [], NOON
    for _ in range(4):
        at = next_slot(inner, at + timedelta(seconds=1)) or at
        plain.append(at)
    made, found, at = shaped(inner, shift=timedelta(seconds=5)), [], NOON
    for _ in range(4):
        at = next_slot(made, at + timedelta(seconds=1)) or at
        found.append(at - timedelta(seconds=5))
    assert found == plain


def test_the_topic_keeps_the_options_as_they_were_given() -> None:
    """Times may be datetimes; another process reads the same schedule."""
    world = World()
    start = datetime(2026, 3, 2, 9, tzinfo=timezone(timedelta(hours=1)))
    world.put("e", "0 9 * * *", options={"neli_start": start, "neli_timezone": "Europe/Berlin", "neli_jitter": 60})
    first, second = (world.edit().entry("e").schedule for _ in range(2))
    assert first == second
    assert first is not second
    assert first.start == start
    assert 0 < first.shift.total_seconds() < 60
    assert _Store(world.log).read()
