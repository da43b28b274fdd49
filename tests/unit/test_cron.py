"""`celery_neli.cron` as a schedule: in any beat, as text, pickled, compared, and refused with the reason."""

from __future__ import annotations

import copy
import math
import pickle
import shelve
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import celery.beat
import pytest
import pytz
from celery.schedules import crontab
from hypothesis import given, settings
from hypothesis import strategies as st
from redbeat.decoder import RedBeatJSONEncoder

import celery_neli
from celery_neli import cron
from celery_neli.beat.publish import due_slot
from celery_neli.beat.replicated.member_notes import fingerprint
from celery_neli.beat.replicated.standalone import ReplicatedScheduler
from celery_neli.exceptions import ConfigurationError
from celery_neli.periodic.definition import schedule_of_text
from celery_neli.periodic.importers import shelf
from celery_neli.periodic.text import human, parse, read, text_of
from celery_neli.schedule.due import look
from celery_neli.schedule.policies import Misfire
from celery_neli.schedule.slots import has_slots, missed, next_slot
from tests.unit.beats import World
from tests.unit.schedulers import make_app

if TYPE_CHECKING:
    from pathlib import Path

UTC = timezone.utc
APP = make_app(timezone="America/New_York")
NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)  # a Monday
SECOND = timedelta(seconds=1)
LINES = [
    "30 7 * * mon-fri",
    "*/10 * * * * *",
    "0 0 L * *",
    "0 9 LW * friL",
    "0 0 * jan-mar,12 fri#2,mon#1",
    "0 0 13 * fri",
    "59 59 23 31 12 *",
]


class Clock:
    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


def test_it_is_public_though_a_module_has_its_name() -> None:
    """That module is `celery_neli.schedule.cron`, so nothing hides the class."""
    assert celery_neli.cron is cron
    assert isinstance(cron, type)


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("tz", [None, "Europe/Berlin"])
def test_text_copies_and_pickles_are_the_same_schedule(line: str, tz: str | None) -> None:
    """The text is read by the class, by `periodic.put` and in `beat_schedule`, and a set knows them as one."""
    when = cron(line, tz=tz, app=APP)
    texts = cron(str(when)), read(parse(str(when), app=APP), app=APP), read(parse(when, app=APP), app=APP)
    for other in (*texts, copy.copy(when), copy.deepcopy(when), pickle.loads(pickle.dumps(when))):  # noqa: S301
        assert (other, hash(other), str(other), repr(other)) == (when, hash(when), str(when), repr(when))
        other.app = APP
        assert next_slot(other, NOON) == next_slot(when, NOON)
    assert text_of(when) == str(when)
    assert {when: 1}[texts[0]] == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("0 0 * * mon", "0  0 * * 1"),
        ("0 0 * * SUN", "0 0 * * 7"),
        ("0 0 * * sunL", "0 0 * * 7L"),
        ("0 0 * * 0#2", "0 0 * * sun#2"),
        ("@daily", "0 0 * * *"),
        ("0,15,30,45 3 * * *", "0-59/15 3 * * *"),
        ("0 0 * jan *", "0 0 * 1 *"),
        ("0 0 0 * * *", "0 0 * * *"),
        ("0 0 l * *", "0 0 L * *"),
        ("0 0 * * mon-sun", "0 0 * * 1-7"),
        ("TZ=Europe/Berlin @hourly", "CRON_TZ=Europe/Berlin 0 * * * *"),
        ("cron: CRON_TZ=UTC 0 0 * * *", "tz=UTC @midnight"),
    ],
)
def test_lines_that_name_the_same_times_are_equal(one: str, other: str) -> None:
    """So that a beat does not take a respelling for a change."""
    assert cron(one) == cron(other)
    assert hash(cron(one)) == hash(cron(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (cron("0 0 * * *"), cron("0 0 * * *", tz="UTC")),
        (cron("0 0 * * *", tz="Europe/Berlin"), cron("0 0 * * *", tz="UTC")),
        (cron("*/30 0 * * *"), cron("0,30 0 * * *")),  # at a change of the clock
        (cron("0 0 */1 * mon"), cron("0 0 1-31 * mon")),  # both days, or either
        (cron("0 0 * * fri#2"), cron("0 0 * * fri#3")),
        (cron("30 0 0 * * *"), cron("0 0 * * *")),
        (cron("0 0 * * *", nowfun=Clock(NOON)), cron("0 0 * * *")),
        (cron("0 0 * * *"), crontab(0, 0)),
        (cron("0 0 * * *"), "cron:0 0 * * *"),
    ],
)
def test_other_times_zones_and_classes_are_not_equal(one: Any, other: Any) -> None:
    """A changed schedule must be noticed."""
    assert one != other


def test_a_clock_of_its_own_is_pickled() -> None:
    """As far as it can be; text has none."""
    when = cron("0 0 * * *", nowfun=datetime.utcnow)
    again = pickle.loads(pickle.dumps(when))  # noqa: S301
    assert (again, again.nowfun) == (when, datetime.utcnow)
    with pytest.raises(ConfigurationError, match="nowfun"):
        text_of(when)


@pytest.mark.parametrize(
    "tz", ["Europe/Berlin", ZoneInfo("Europe/Berlin"), pytz.timezone("Europe/Berlin")], ids=["name", "zoneinfo", "pytz"]
)
def test_its_zone_is_its_own(tz: Any) -> None:
    """Whatever the app's is; without one it is in the app's."""
    when = cron("30 7 * * *", tz=tz, app=APP)
    assert (when.zone, str(when)) == ("Europe/Berlin", "CRON_TZ=Europe/Berlin 30 7 * * *")
    assert next_slot(when, NOON) == datetime(2026, 6, 2, 5, 30, tzinfo=UTC)
    assert next_slot(cron("30 7 * * *", app=APP), NOON - timedelta(hours=2)) == datetime(2026, 6, 1, 11, 30, tzinfo=UTC)
    assert cron("TZ=Europe/Berlin 30 7 * * *", tz=tz) == when


def test_days_are_those_that_either_field_names() -> None:
    """As cron has it; Celery's crontab wants both. A field that begins with a star restricts nothing."""
    when, celerys = cron("0 0 13 * fri", tz="UTC"), crontab(0, 0, day_of_month=13, day_of_week="fri")
    celerys.tz = UTC
    found, at = [], datetime(2026, 3, 1, tzinfo=UTC)
    for _ in range(4):
        slot = next_slot(when, at)
        assert slot is not None
        found.append(f"{slot:%m-%d}")
        at = slot
    assert found == ["03-06", "03-13", "03-20", "03-27"]
    assert next_slot(celerys, datetime(2026, 3, 14, tzinfo=UTC)) == datetime(2026, 11, 13, tzinfo=UTC)
    assert next_slot(cron("0 0 */2 * fri", tz="UTC"), NOON) == datetime(2026, 6, 5, tzinfo=UTC)


@pytest.mark.parametrize("scheduler", [celery.beat.Scheduler, ReplicatedScheduler])
def test_a_beat_sends_it_at_each_of_its_times(scheduler: type[Any]) -> None:
    """Celery's own scheduler and ours, to the second, from an object and from text."""
    clock = Clock(NOON + 3 * SECOND)
    when = cron("*/10 * * * * *", nowfun=clock)
    app = make_app(beat_schedule={"e": {"task": "t", "schedule": when, "options": {}}})
    app.now = clock
    sent: list[datetime] = []

    class Recording(scheduler):  # type: ignore[misc]
        def apply_async(self, entry: Any, *args: Any, **kwargs: Any) -> None:
            sent.append(clock.now)

    beat = Recording(app, max_interval=300)
    # Celery waits some milliseconds less.
    assert beat.tick() == pytest.approx(7, abs=0.1)
    for _ in range(40):
        clock.now += SECOND
        beat.tick()
    assert [at - NOON for at in sent] == [10 * n * SECOND for n in (1, 2, 3, 4)]


def test_is_due_says_so_and_when_next() -> None:
    """As Celery's crontab does, with `beat_cron_starting_deadline`; nothing is due after the last year."""
    clock = Clock(NOON + timedelta(minutes=29))
    app = make_app()
    when = cron("0 * * * *", nowfun=clock, app=app)
    assert when.is_due(NOON) == (False, 31 * 60)
    assert when.is_due(NOON - SECOND) == (True, 31 * 60)
    assert when.is_due((NOON - SECOND).replace(tzinfo=None)) == (True, 31 * 60)
    assert when.remaining_estimate(NOON) == timedelta(minutes=31)
    assert when.remaining_estimate(NOON - SECOND) == timedelta(minutes=-29)
    app.conf.beat_cron_starting_deadline = 29 * 60
    assert when.is_due(NOON - timedelta(days=1)).is_due
    app.conf.beat_cron_starting_deadline = 29 * 60 - 1
    assert when.is_due(NOON - timedelta(days=1)) == (False, 31 * 60)
    end = cron("0 12 1 1 *", tz="UTC", nowfun=Clock(datetime(9999, 6, 1, tzinfo=UTC)), app=app)
    assert end.is_due(datetime(9999, 6, 1, tzinfo=UTC)) == (False, math.inf)
    assert end.remaining_estimate(datetime(9999, 6, 1, tzinfo=UTC)) == timedelta.max


def test_its_slots_are_claimed_counted_and_left_out_as_those_of_crontabs() -> None:
    """By the misfire policy, also by `beat_cron_starting_deadline`; the slot of a message is exact."""
    when = cron("30 */10 * * * *", tz="UTC")
    assert has_slots(when)
    owed = missed(when, NOON, NOON + timedelta(hours=1), 2)
    assert owed is not None
    assert (owed.total, owed.exact) == (6, True)
    assert owed.newest[-1] == NOON + timedelta(minutes=50, seconds=30)
    many = missed(cron("* * * * * *", tz="UTC"), NOON, NOON + timedelta(days=300), 3)
    assert many is not None
    assert many.total >= 100
    assert not many.exact
    assert many.newest == tuple(NOON + timedelta(days=300) - n * SECOND for n in (2, 1, 0))
    app = make_app(beat_cron_starting_deadline=60)
    entry = celery.beat.ScheduleEntry("e", "t", NOON, 0, when, app=app)
    found = look(entry, NOON + timedelta(minutes=51), Misfire())
    assert found is not None
    assert (found.due, found.slot) == (True, NOON + timedelta(minutes=50, seconds=30))
    found = look(entry, NOON + timedelta(minutes=55), Misfire())
    assert found is not None
    assert (found.due, found.left_out) == (False, 6)
    last = datetime.now(UTC) - timedelta(hours=1)
    entry.last_run_at = last.replace(minute=0, second=0, microsecond=0)
    assert due_slot(entry) == entry.last_run_at + timedelta(seconds=30)


class Named(cron):
    """Decides as `cron`."""


class Deciding(cron):
    def is_due(self, last_run_at: datetime) -> Any:
        return super().is_due(last_run_at)


@pytest.mark.parametrize(("kind", "known"), [(Named, True), (Deciding, False)])
def test_a_class_that_overrides_what_decides_is_known_by_is_due_alone(kind: type[cron], known: bool) -> None:
    """It may know better; no text has its class."""
    when = kind("0 * * * *")
    assert has_slots(when) is known
    with pytest.raises(ConfigurationError, match="cannot be written as text"):
        text_of(when)


def test_celerys_file_keeps_it_and_redbeat_does_not(tmp_path: Path) -> None:
    """PersistentScheduler's shelf, which `celery neli schedule import file` reads, too; RedBeat refuses it aloud."""
    when, app = cron("30 7 * * mon-fri", tz="Europe/Berlin"), make_app()
    entry = celery.beat.ScheduleEntry("e", "t", NOON, 3, when, app=app)
    with shelve.open(str(tmp_path / "file")) as store:  # noqa: S301
        store["entries"] = {"e": entry}
    with shelve.open(str(tmp_path / "file")) as store:  # noqa: S301
        kept = store["entries"]["e"]
        assert kept.schedule == when
        assert kept.editable_fields_equal(entry)
    (found,) = shelf.read(app, tmp_path / "file").entries
    assert (found.name, found.runs, found.notes) == ("e", 3, ())
    with pytest.raises(TypeError, match="cron"):
        RedBeatJSONEncoder().encode(when)


def test_people_read_it() -> None:
    """In the banner, which shows the entries' `repr`, in lists, and in the fingerprint that `status` compares."""
    when = cron("30 7 * * MON-FRI", tz="Europe/Berlin")
    assert repr(when) == "<cron: 30 7 * * mon-fri (Europe/Berlin)>"
    assert repr(cron("0 0 l * *")) == "<cron: 0 0 L * *>"
    assert human(str(when)) == "30 7 * * mon-fri (Europe/Berlin)"
    assert human(str(cron("0 0 13 * fri"))) == "0 0 13 * fri"

    def printed(when: Any) -> str:
        return fingerprint([SimpleNamespace(name="e", task="t", schedule=when, args=(), kwargs={}, options={})])

    assert printed(when) == printed(cron(str(when)))
    assert printed(when) != printed(cron("30 7 * * mon-fri", tz="UTC"))


@pytest.mark.parametrize(
    ("given_", "text"),
    [
        ("*/10 * * * * *", "cron:*/10 * * * * *"),
        ("0 9 L * *", "cron:0 9 L * *"),
        ("0 9 * * FRI#2", "cron:0 9 * * fri#2"),
        ("0 9 * jul friL", "cron:0 9 * jul friL"),
        ("cron:0 0 13 * fri", "cron:0 0 13 * fri"),
        (" tz=Europe/Berlin   @weekly", "CRON_TZ=Europe/Berlin 0 0 * * 0"),
        ("0 0 13 * fri", "0 0 13 * fri"),  # as before: Celery's crontab
        ("0 0 * jul fri", "0 0 * jul fri"),
        ("every 1 d 2 h", "P1DT2H"),
        ("1 week 2 days 3 hours", "P9DT3H"),
    ],
)
def test_text_that_celerys_crontab_knows_stays_one(given_: str, text: str) -> None:
    """Everything else that is a line of cron is read as one."""
    assert parse(given_, app=APP) == text


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("61 * * * *", "minute = '61': give *, 0-59"),
        ("0,15,99 * * * *", "minute = '0,15,99': '99' is wrong: give *, 0-59"),
        ("60 * * * * *", "second = '60': give *, 0-59"),
        ("* 24 * * *", "hour = '24': give *, 0-23"),
        ("*/0 * * * *", "minute = '*/0': give"),
        ("0 0 0 * *", "day of the month = '0': give *, 1-31"),
        ("0 0 15W * *", "day of the month = '15W': that is Quartz's: give LW"),
        ("0 0 * 13 *", "month = '13': give *, 1-12"),
        ("0 0 * foo *", "month = 'foo': give *, 1-12, a name (jan)"),
        ("0 0 * * 8", "day of the week = '8': give *, 0-7"),
        ("0 0 * * fri#6", "day of the week = 'fri#6': give"),
        ("0 0 * * L", "day of the week = 'l': give"),
        ("0 0 ? * mon", "day of the month = '?': that is Quartz's: give *"),
        ("0 0 * * fri-mon", "day of the week = 'fri-mon': it ends before it begins: give two ranges, such as fri-6,"),
        ("0 22-6 * * *", "hour = '22-6': it ends before it begins: give two ranges, such as 22-23,0-6"),
        ("0 0 30 2 *", "day of the month = '30': none of the months '2' has it"),
        ("0 0 31 apr,jun *", "day of the month = '31': none of the months 'apr,jun' has it"),
        ("0 0 */3 2 mon#5", "day of the week = 'mon#5': none is a day '*/3' of the months '2'"),
        ("* * *", "it has 3 fields: give five fields: minute, hour"),
        ("0 0 1 1 * 2027 x", "it has 7 fields: give five fields"),
        ("", "it has 0 fields: give"),
        ("@reboot", "'@reboot' is not known: write one of @yearly"),
        ("TZ=Europe/Berln * * * * *", "tz = 'Europe/Berln': there is no such time zone here; did you mean Europe/B"),
        ("TZ= * * * * *", "tz = '': there is no such time zone here"),
        ("TZ=../../etc/passwd * * * * *", "tz = '../../etc/passwd': there is no such time zone"),
        ("TZ=Europe * * * * *", "tz = 'Europe': there is no such time zone"),
        ("TZ=localtime * * * * *", "tz = 'localtime': hosts may differ in it"),
        ("1" * 3000, "it has 3000 characters: give at most 1000"),
        ("\x1b[2J\n0 * * * *", "second = '\\x1b[2j': give"),
        ("²L * * * *", "minute = '²l': give"),
        (5, "the line is 5: give text of five fields"),
        (None, "the line is None: give text"),
    ],
)  # fmt: skip
def test_a_wrong_line_costs_one_line_that_says_what_would_do(line: Any, says: str) -> None:
    """It names the field and its value, from the class and as text of an entry."""
    with pytest.raises(ConfigurationError) as caught:
        cron(line)
    assert f"): {says}" in str(caught.value)
    assert str(caught.value).isprintable()
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301
    if isinstance(line, str) and len(line) < 100:
        with pytest.raises(ConfigurationError) as caught:
            parse(line if line.startswith("TZ=") else f"cron:{line}", app=APP)
        assert f": {says}" in str(caught.value)
        assert str(caught.value).startswith("schedule = ")


@pytest.mark.parametrize(
    ("tz", "says"),
    [
        (timezone(timedelta(hours=2)), "give the name of a time zone"),
        (5, "tz = 5: give the name"),
        ("Mars", "there is no such time zone"),
        ("UTC", "and the text names Europe/Berlin: give one of them"),
    ],
)
def test_a_wrong_zone_is_refused(tz: Any, says: str) -> None:
    """A fixed offset has no name that text could keep."""
    with pytest.raises(ConfigurationError, match=says):
        cron("TZ=Europe/Berlin 0 0 * * *", tz=tz)


def test_an_entry_put_at_runtime_runs_no_more_often_than_it_may() -> None:
    """`neli_least_interval` counts for seconds, also across the minute."""
    app = make_app(neli_least_interval=5.0)
    assert str(schedule_of_text("*/5 * * * * *", app)) == "cron:*/5 * * * * *"
    assert str(schedule_of_text("0,59 */2 * * * *", app)) == "cron:0,59 */2 * * * *"
    for text, every in (("*/4 * * * * *", 4), ("0,59 * * * * *", 1)):
        with pytest.raises(ConfigurationError, match=f"every {every} s is more often .* neli_least_interval = 5 s"):
            schedule_of_text(text, app)


def test_a_zone_that_is_not_there_any_more_costs_the_entry_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another host may lack it: the text cannot be read there, and says why."""
    text = parse("TZ=Europe/Berlin @daily", app=APP)
    missing: Callable[[str], Any] = ZoneInfo.no_cache
    monkeypatch.setattr("celery_neli.schedule.cron.ZoneInfo", lambda name: missing(f"{name}x"))
    with pytest.raises(ConfigurationError, match="there is no such time zone here"):
        read(text, app=APP)


def test_a_leader_that_dies_leaves_no_second_out_and_none_twice() -> None:
    """Slots of seconds are claimed and settled as all others, and the successor goes on with the next one."""
    world = World({"e": cron("*/10 * * * * *", tz="UTC"), "f": cron("5 * * * * *", tz="Europe/Berlin")})
    leader = world.leader()
    world.ticks(until=32)
    leader.crash()
    world.ticks(until=36)
    world.leader()
    world.ticks(until=72)
    assert world.slots("e") == [10, 20, 30, 40, 50, 60, 70]
    assert world.slots("f") == [5, 65]
    assert world.doubled() == {}


#: Of fields, good and bad ones.
PARTS = ["*", "*/0", "5", "L", "LW", "1-3", "3-1", "fri#2", "friL", "99", "jan", "/", ",", "-", "#"]


@settings(max_examples=150, deadline=None)
@given(
    text=st.one_of(
        st.text(max_size=30),
        st.text("0123456789*,/-#LWlwmonfrijan@=:TZ ", max_size=30),
        st.lists(st.sampled_from(PARTS), min_size=4, max_size=7).map(" ".join),
    )
)
def test_no_text_raises_anything_else(text: str) -> None:
    """A definition that a stranger wrote costs its own entry alone; what can be read comes back as it is."""
    for make in (cron, lambda given_: read(f"cron:{given_}", app=APP), lambda given_: read(given_, app=APP)):
        try:
            when = make(text)
        except ConfigurationError as exc:
            line = str(exc)
        else:
            line = text_of(when)
            assert read(line, app=APP) == when
        assert line.isprintable()
