"""Who shows or judges slots with a jitter, with a calendar, or of an entry that ends: all name the same slot."""

from __future__ import annotations

from datetime import date, datetime, timedelta, timezone
from typing import Any

import pytest
from celery import Celery
from celery.schedules import crontab, schedule

from celery_neli import cron, hooks
from celery_neli.alarms.entries import WatchedEntries
from celery_neli.alarms.overdue import Overdue
from celery_neli.alarms.sentry import monitor_config
from celery_neli.beat.replicated.member_notes import fingerprint
from celery_neli.explain.when import Slots
from celery_neli.periodic.preview import preview
from celery_neli.periodic.shape import shape
from celery_neli.periodic.static import check_static
from celery_neli.schedule.slots import id_at, nominal, shift_of
from celery_neli.schedule_topic.codec import ENTRY, STATE, State, encode_state
from celery_neli.ui.schedule_index import ScheduleIndex
from tests.unit.beats import NOON, START, World
from tests.unit.schedulers import make_app

UTC = timezone.utc
SHIFT = 9.90625  # of the entry "e" with a jitter of 40 s


def app_of(schedule: dict[str, Any]) -> Celery:
    return make_app(timezone="UTC", neli_scheduler=None, neli_group="shop", beat_schedule=schedule)


def entry(when: Any, **options: Any) -> dict[str, Any]:
    return {"task": "t", "schedule": when, "options": {f"neli_{name}": each for name, each in options.items()}}


class Watch:
    """The watcher, for one entry of beat_schedule that has a state."""

    def __init__(self, when: Any, *, last: float = 0.0, runs: int = 0, **options: Any) -> None:
        from celery.beat import Scheduler

        app = app_of({})
        found = check_static({"e": entry(when, **options)}, app)
        lazy = Scheduler(app, schedule={}, lazy=True)
        lazy.merge_inplace(found.entries)
        self.overdue = Overdue(group="shop.beat")
        self.entries = WatchedEntries(app, self.overdue, dict(lazy.schedule), now=START)
        self.tell(last, runs)

    def tell(self, last: float, runs: int) -> None:
        state = State(last=START + last, runs=runs, epoch=1)
        self.entries.apply(STATE, "e", encode_state(state), START + last)

    def alarms(self, until: float) -> list[tuple[float, float]]:
        return [((each.slot or 0) - START, each.deadline - START) for each in self.overdue.judge(START + until, 100)]


def test_a_slot_with_jitter_is_overdue_an_allowance_after_it_was_due() -> None:
    """Not before its shift has passed; the alarm names the slot, and its id is that of the task."""
    watch = Watch(crontab(), jitter=40)
    assert watch.alarms(60 + 66 + SHIFT - 0.01) == []
    [alarm] = watch.overdue.judge(START + 60 + 66 + SHIFT, 100)
    assert alarm.slot == START + 60
    assert alarm.deadline == START + 60 + 66 + SHIFT
    assert alarm.id == id_at("shop.beat", "e", START + 60)
    watch = Watch(crontab(), jitter=40)
    watch.tell(60, 1)  # it ran
    assert watch.alarms(120 + 66 + SHIFT - 0.01) == []
    assert watch.alarms(120 + 66 + SHIFT) == [(120, 120 + 66 + SHIFT)]


def test_no_alarm_is_raised_of_an_entry_that_is_finished() -> None:
    """By the number of its runs, or by its end."""
    watch = Watch(60, max_runs=2, last=60, runs=1)
    assert watch.alarms(120 + 66) == [(120, 186)]
    watch.tell(180, 2)
    assert watch.alarms(1000) == []
    watch = Watch(crontab(), end=NOON + timedelta(seconds=60), last=60, runs=1)
    assert watch.alarms(1000) == []


def test_no_alarm_is_raised_of_a_day_that_a_calendar_leaves_out() -> None:
    """The first one is of the day after."""
    watch = Watch(crontab(minute="0"), calendar=lambda day: day == date(2026, 3, 1), overdue=60)
    assert watch.alarms(12 * 3600) == []
    assert watch.alarms(12 * 3600 + 60) == [(12 * 3600, 12 * 3600 + 60)]


def test_entries_of_one_line_of_cron_share_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of one crontab do."""
    from celery_neli.alarms import overdue as module
    from celery_neli.alarms.overdue import Entry

    asked: list[Any] = []
    find = module.next_slot
    monkeypatch.setattr(module, "next_slot", lambda when, after: asked.append(when) or find(when, after))
    watch, line = Overdue(group="g"), cron("0 * * * *", app=app_of({}))
    for number in range(10):
        watch.put(f"e{number}", Entry(task="t", schedule=line, base=START + number))
    assert len(asked) == 2


def test_sentry_knows_lines_of_cron_and_the_schedule_behind_a_jitter() -> None:
    """In five fields; with seconds, an end or a calendar there is no monitor."""
    app = app_of({})

    def config(when: Any, **options: Any) -> Any:
        return monitor_config(shape(app, "e", when, options, runtime=False), app)

    line = cron("30 7 * * friL", tz="Europe/Berlin")
    assert config(line) == {"schedule": {"type": "crontab", "value": "30 7 * * 5L"}, "timezone": "Europe/Berlin"}
    assert config(cron("*/10 * * * * *")) is None
    zoned = config(crontab(30, 7, app=app), neli_timezone="Asia/Tokyo")
    assert zoned == {"schedule": {"type": "crontab", "value": "30 7 * * *"}, "timezone": "Asia/Tokyo"}
    late = config(schedule(3600, app=app), neli_jitter=600)
    assert late == {
        "schedule": {"type": "interval", "value": 1, "unit": "hour"},
        "timezone": "UTC",
        "checkin_margin": 4,
    }
    assert config(crontab(app=app), neli_end=NOON) is None
    assert config(crontab(app=app), neli_calendar="holidays:DE") is None


def test_what_a_beat_tells_names_the_slot_and_says_when_it_was_due() -> None:
    """So lateness counts from when it was due."""
    told: list[hooks.SlotEvent] = []
    hooks.slot.add(told.append)
    try:
        world = World({"e": entry(crontab(), jitter=40)})
        world.leader()
        world.ticks(until=100)
    finally:
        hooks.slot.remove(told.append)
    [event] = told
    assert (event.slot, event.due) == (START + 60, START + 60 + SHIFT)
    assert event.id == id_at("test.beat", "e", START + 60)


def test_the_left_out_slots_are_logged_by_their_names(caplog: pytest.LogCaptureFixture) -> None:
    """Of a misfire policy, and of the in-doubt one."""
    world = World({"e": entry(crontab(), jitter=40)})
    beats = [world.leader(), world.beat()]
    world.ticks(until=100)
    beats[0].crash()
    world.ticks(until=250)
    beats[1].member.lead()
    world.ticks(until=260)
    [line] = [each.getMessage() for each in caplog.records if "slots missed" in each.getMessage()]
    assert "first=2026-03-01 12:02:00+00:00" in line
    assert "last=2026-03-01 12:04:00+00:00" in line
    assert "runs=2026-03-01 12:04:00+00:00" in line


def test_the_next_slot_is_shown_by_its_name() -> None:
    """In `list` and on the page, with those after it; the state's last slot, too."""
    world = World()
    world.leader()
    world.put("e", "* * * * *", options={"neli_jitter": 40})
    world.ticks(until=65)
    index = ScheduleIndex(app_of({}), clock=world.clock)
    for kind, name, value, _ in world.log:
        index.add(kind, name, value)
    view = index.view("e")
    assert view is not None
    assert (view.next, view.due, view.last) == (START + 60, START + 60 + SHIFT, None)
    world.ticks(until=100)
    for kind, name, value, _ in world.log:
        index.add(kind, name, value)
    view = index.view("e")
    assert view is not None
    assert (view.next, view.last, view.finished) == (START + 120, START + 60, False)
    due = index.due(view, 3)
    assert due is not None
    assert [each.timestamp() - START for each in due.times] == [120, 180, 240]


def test_an_entry_whose_runs_are_over_is_finished() -> None:
    """Also one of beat_schedule, and one whose end has passed; it is not removed."""
    world = World({"e": entry(1.0, max_runs=2), "past": entry(crontab(), end=NOON + timedelta(seconds=60))})
    world.leader()
    world.put("r", "1s", options={"neli_max_runs": 3})
    world.ticks(until=120)
    app = app_of(world.schedule)
    index = ScheduleIndex(app, clock=world.clock)
    for kind, name, value, _ in world.log:
        index.add(kind, name, value)
    for name, runs in {"e": 2, "past": 1, "r": 3}.items():
        view = index.view(name)
        assert view is not None
        assert (view.runs, view.next, view.finished) == (runs, None, True)
    assert ENTRY in [kind for kind, name, _, _ in world.log if name == "r"]


@pytest.mark.parametrize("n", [1, 20])
def test_a_preview_says_what_the_options_do_to_each_slot(n: int) -> None:
    """Which holiday, how much later, which is the first and the last; days that are left out have a row."""
    world = World()
    world.put(
        "e", "0 9 * * *",
        options={
            "neli_timezone": "Europe/Berlin", "neli_calendar": "holidays:DE-BY", "neli_jitter": 40,
            "neli_start": "2026-04-02T00:00", "neli_end": "2026-04-07T12:00",
        },
    )  # fmt: skip
    found = preview(world.edit().app, "e", n, editor=world.edit(), named=True)
    rows = [(f"{each.slot:%m-%d %H:%M:%S%z}", each.runs, "; ".join(each.notes)) for each in found.runs]
    later = "sent 9.90625 s later: neli_jitter".replace("9.90625", f"{SHIFT:g}")
    out = "neli_calendar = 'skip holidays:DE-BY' leaves out 2026-04-0"
    assert (
        rows
        == [
            ("04-02 09:00:00+0200", True, f"{later}; the first one: neli_start"),
            ("04-03 09:00:00+0200", False, f"{out}3 (Good Friday)"),
            ("04-04 09:00:00+0200", True, later),
            ("04-05 09:00:00+0200", True, later),
            ("04-06 09:00:00+0200", False, f"{out}6 (Easter Monday)"),
            ("04-07 09:00:00+0200", True, f"{later}; the last one: neli_end"),
        ][:n]
    )


def test_a_preview_ends_with_the_last_run() -> None:
    """Of those that are left."""
    world = World()
    world.leader()
    world.put("e", "1s", options={"neli_max_runs": 4})
    world.ticks(until=2)
    found = preview(world.edit().app, "e", 10, editor=world.edit(), named=True)
    assert [each.notes for each in found.runs] == [(), ("the last of 4 runs: neli_max_runs",)]
    world.ticks(until=10)
    assert preview(world.edit().app, "e", 10, editor=world.edit(), named=True).runs == []


def test_explain_finds_slots_by_their_names() -> None:
    """With a jitter, on days of a calendar, and of an interval that counts from its last run."""
    app = app_of({})
    when = shape(app, "e", crontab(app=app), {"neli_jitter": 40}, runtime=False)
    slots = Slots(when, None)
    assert [slots.at_or_after(START + 1), slots.after(START), slots.before(START)] == [
        START + 60, START + 60, START - 60,
    ]  # fmt: skip
    assert slots.at_or_after(START) == START
    daily = schedule(7200, app=app)
    skipped = shape(app, "e", daily, {"neli_calendar": lambda day: day.isoweekday() == 7}, runtime=False)
    slots = Slots(skipped, START + 600)  # on a Sunday
    assert slots.after(START + 600) == START + 600 + 6 * 7200
    monday = START + 600 + 6 * 7200
    assert slots.before(monday) == START + 600 - 7 * 7200
    assert Slots(skipped, None).known is False


def test_what_options_make_of_a_schedule_does_not_change_its_fingerprint_but_they_do() -> None:
    """In every process the same, although each has objects of its own."""

    def of(when: Any = None, **options: Any) -> str:
        from celery.beat import Scheduler

        app = app_of({})
        lazy = Scheduler(app, schedule={}, lazy=True)
        lazy.merge_inplace(check_static({"e": entry(when or crontab(hour={3, 4}), **options)}, app).entries)
        return fingerprint(lazy.schedule.values())

    assert of(jitter=40, calendar="holidays:DE-BY") == of(jitter=40, calendar="holidays:DE-BY")
    assert of(jitter=40) != of(jitter=41)
    assert of(7200, jitter=40) != of(7201, jitter=40), "both have the same repr"


def test_a_nominal_slot_is_the_slot_of_any_other_schedule() -> None:
    """Those have no shift."""
    assert nominal(crontab(), NOON) == NOON
    assert shift_of(crontab()) == 0.0
    assert datetime(2026, 3, 1, 12, tzinfo=UTC) == NOON
