"""What a file of celery beat may hold: nothing in it runs, and what is sound in it is taken over."""

from __future__ import annotations

import dbm.dumb
import decimal
import enum
import io
import os
import pickle
import uuid
from collections import OrderedDict
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from celery.beat import ScheduleEntry
from celery.schedules import crontab, schedule, solar
from celery.utils.time import LocalTimezone
from click.testing import CliRunner

from celery_neli.exceptions import ConfigurationError, NeliError
from celery_neli.periodic.importers import Found, Row, carry_over, shelf
from celery_neli.periodic.importers.shelf import load, parts
from celery_neli.schedule.slots import once
from tests.unit.schedulers import make_app
from tests.unit.schedules import Desk

LAST = datetime(2026, 6, 1, 10, 30, 15, 250000, tzinfo=timezone.utc)
HERE = __name__


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


class Tides(schedule):
    """A schedule of a user's own."""


class OwnEntry(ScheduleEntry):
    """An entry of a user's own."""


class Colour(enum.Enum):
    RED = 1


def entry(name: str = "e", when: Any = None, last: datetime | None = LAST, runs: int = 7, **given: Any) -> Any:
    return ScheduleEntry(name, "t", last, runs, when or schedule(60), app=make_app(), **given)


def write(path: Path, entries: Any, protocol: int = 4) -> Path:
    """A file as PersistentScheduler has it."""
    data = entries if isinstance(entries, bytes) else pickle.dumps(entries, protocol)
    with dbm.dumb.open(str(path), "n") as store:
        store["entries"] = data
    return path


def read(path: Path, **given: Any) -> dict[str, Any]:
    return {each.name: each for each in shelf.read(make_app(), path, **given).entries}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "celerybeat-schedule"


# -- what Celery writes --


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "when",
    [
        schedule(60), schedule(timedelta(hours=1), relative=True), crontab("*/5", "8-18", "mon-fri"),
        solar("sunset", -37.81, 144.96), once(LAST),
    ],
    ids=["schedule", "relative", "crontab", "solar", "once"],
)  # fmt: skip
def test_all_of_celery_s_schedules_are_read(path: Path, when: Any, protocol: int) -> None:
    """With the last run and the count, whatever the protocol."""
    entries = {"e": entry(when=when, args=(1,), kwargs={"a": [2]}, options={"expires": timedelta(1)})}
    found = read(write(path, entries, protocol))["e"]
    assert (found.last, found.runs, found.task) == (LAST.timestamp(), 7, "t")


def zones() -> list[Any]:
    return [
        timezone.utc, timezone(timedelta(hours=5, minutes=45), "X"), ZoneInfo("Europe/Berlin"), ZoneInfo("UTC"),
        ZoneInfo.no_cache("America/St_Johns"), LocalTimezone(),
    ]  # fmt: skip


@pytest.mark.parametrize("zone", zones(), ids=str)
@pytest.mark.parametrize("at", [LAST, datetime(2026, 10, 25, 1, 30, tzinfo=timezone.utc)], ids=["summer", "fold"])
def test_a_last_run_is_the_same_moment_in_every_zone(path: Path, zone: Any, at: datetime) -> None:
    """Celery writes it in the zone of the app."""
    assert read(write(path, {"e": entry(last=at.astimezone(zone))}))["e"].last == at.timestamp()


def test_a_last_run_of_dateutil_s_zones_is_read(path: Path) -> None:
    """An app's `timezone` may be one."""
    from dateutil import tz

    for zone in (tz.tzutc(), tz.tzoffset("x", -5400), tz.tzlocal(), tz.gettz("Europe/Berlin")):
        assert read(write(path, {"e": entry(last=LAST.astimezone(zone))}))["e"].last == LAST.timestamp(), zone


@pytest.mark.parametrize(
    "zone",
    [b"cpytz\n_UTC\n(tR", b"cpytz\n_p\n(VEurope/Berlin\nI7200\nI3600\nVCEST\ntR", b"cpytz\nFixedOffset\n(I120\ntR"],
)
def test_a_last_run_of_pytz_s_zones_is_read(path: Path, zone: bytes) -> None:
    """Celery had them before 5.3; pytz need not be here."""
    hours = 0 if b"_UTC" in zone else 2
    local = LAST.replace(tzinfo=None) + timedelta(hours=hours)
    when = b"cdatetime\ndatetime\n(" + pickle.dumps(local.__reduce__()[1][0], 2)[2:-1] + zone + b"tR"
    pickled = b"\x80\x02}(Veinzelner\nccelery.beat\nScheduleEntry\n(Ve\nVt\n" + when + b"I3\nNtRu."
    assert read(write(path, pickled))["einzelner"].last == LAST.timestamp()


def test_a_naive_last_run_is_in_utc(path: Path) -> None:
    """As everywhere in Celery; and None is none."""
    found = read(write(path, {"naive": entry(last=LAST.replace(tzinfo=None))}))
    assert found["naive"].last == LAST.timestamp()


def test_plain_values_in_arguments_stop_nothing(path: Path) -> None:
    """The arguments themselves are those of beat_schedule."""
    values = [decimal.Decimal("1.5"), uuid.uuid4(), {1, 2}, frozenset([3]), OrderedDict(a=1), b"x", bytearray(b"y"), 1j]
    for protocol in (2, 4):
        assert isinstance(read(write(path, {"e": entry(args=values)}, protocol))["e"], Found)


# -- what Celery never writes --


@pytest.mark.parametrize("where", ["the entry", "its schedule", "its arguments", "its last run", "its name"])
@pytest.mark.parametrize("trust", [(), (f"{HERE}.Tides",)])
def test_nothing_in_the_file_runs(path: Path, where: str, trust: tuple[str, ...]) -> None:
    """The entry is left out by name, and the class with it; the others are read."""
    bad, touched = entry("bad"), Touch(path.parent / "touched")
    entries: dict[Any, Any] = {"good": entry("good"), "bad": bad, "tides": entry("tides", Tides(60))}
    if where == "the entry":
        entries["bad"] = touched
    elif where == "its schedule":
        bad.schedule.run_every = touched
    elif where == "its arguments":
        bad.kwargs = {"deep": [{"er": (touched,)}]}
    elif where == "its last run":
        bad.last_run_at = touched
    else:
        entries[touched] = entries.pop("bad")
    found = read(write(path, entries), trust=trust)
    assert not touched.path.exists()
    assert (found["good"].last, found["good"].runs) == (LAST.timestamp(), 7)
    (left,) = [each for each in found.values() if isinstance(each, Row) and each.name != "tides"]
    if where != "its name":
        assert "posix.mkdir" in left.notes[0]
        assert "--trust posix.mkdir" in left.notes[0]
    assert isinstance(found["tides"], Found if trust else Row)


CODE = b"\x8c\x04code"


@pytest.mark.parametrize(
    "pickled",
    [
        b"cceleryschedules\nos.system\n(V%s\ntR.",
        b"\x80\x04\x8c\x10celery.schedules\x8c\x15sys.modules.os.system\x93\x8c\x02%s\x85R.",
        b"\x80\x04\x8c\x08builtins\x8c\x07getattr\x93\x8c\x08zoneinfo\x8c\x08ZoneInfo\x93\x8c\x07__doc__\x86R.",
        b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x02%s\x85R.",
        b"(Vx\nios\nsystem\n.", b"(cos\nsystem\nVx\no.",
        b"\x80\x04\x8c\x0fcelery.schedules\x8c\x07crontab\x93)}\x8c\x08__init__\x8c\x02os\x8c\x06system\x93s\x86b.",
        b"\x80\x02\x82\x01.", b"Psomething\n.", b"\x80\x04K\x01Q.", b"\x80\x02K\x01r\xff\xff\xff\x7f.", b"", b"no",
        b"N.",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.", b"\x80\x04" + b"]" * 300_000 + b"a" * 299_999 + b".",
    ],
    ids=range(16),
)  # fmt: skip
def test_a_file_that_is_no_schedule_is_one_line(path: Path, pickled: bytes) -> None:
    """Names within names, other opcodes that call, registered extensions, references outward, sizes that lie."""
    with pytest.raises(NeliError, match="cannot be read as a schedule of celery beat") as caught:
        read(write(path, pickled))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "value",
    [b"cos\nsystem\n", b"K\x07", b"\x8c\x04text", b"]", b"N",
     b"ccelery.beat\nScheduleEntry\n(Ve\nVt\nK\x05K\x07tR", b"ccelery.beat\nScheduleEntry\n)R",
     b"ccelery.beat\nScheduleEntry\n(Ve\nVt\nNVseven\ntR",
     b"ccelery.beat\nScheduleEntry\n(Ve\nVt\nNJ\xff\xff\xff\xfftR",
     b"ccelery.beat\nScheduleEntry\n(Ve\nVt\ncdatetime\ndatetime\n(Vshort\ntRK\x01tR",
     (b"ccelery.beat\nScheduleEntry\n(Ve\nVt\ncdatetime\ndatetime\n(M\x0f\x27K\x01K\x01cbuiltins\ngetattr\n(czoneinfo\nZoneInfo"
      b"\nV_unpickle\ntR(V../../etc/passwd\nK\x01tRtRK\x01tR")],
)  # fmt: skip
def test_an_entry_that_is_none_is_one_line(path: Path, value: bytes) -> None:
    """And the other one is read."""
    written = io.BytesIO()
    pickler = pickle.Pickler(written, 3)
    pickler.fast = True  # it refers to nothing that came before
    pickler.dump(entry("good"))
    good = written.getvalue()[2:-1]
    found = read(write(path, b"\x80\x04}(\x8c\x04good" + good + b"\x8c\x03bad" + value + b"u."))
    assert isinstance(found["good"], Found)
    if b")R" in value:
        assert found["bad"].last is None
    else:
        assert isinstance(found["bad"], Row)
        assert found["bad"].notes[0].isprintable()


def test_one_object_that_is_in_itself_many_times_costs_once(path: Path) -> None:
    """Lists of lists of one list, sixty deep: two to the sixty."""
    many: list[Any] = []
    for _ in range(60):
        many = [many, many]
    found = read(write(path, {"e": entry(args=[many])}))["e"]
    assert isinstance(found, Found)
    assert sum(1 for _ in parts(load(pickle.dumps(many)))) == 61
    endless: list[Any] = []
    endless.append(endless)
    assert isinstance(read(write(path, {"e": entry(args=[endless])}))["e"], Found)


def test_a_name_that_would_reach_the_terminal_is_shown_and_not_obeyed(path: Path) -> None:
    """In the table, and in the reason."""
    entries = {"evil\x1b[2J\n": entry("evil\x1b[2J\n"), "x": pickle.loads(pickle.dumps(1))}  # noqa: S301 - our own
    source = shelf.read(make_app(), write(path, entries))
    assert all(row.notes for row in carry_over(source, Desk().editor(), dry_run=True))


# -- what is trusted --


def test_what_is_trusted_is_taken_over(path: Path) -> None:
    """A schedule, an entry and arguments of one's own; without trust, each is left out and its class named."""
    own = OwnEntry("own", "t", LAST, 9, crontab("5"), app=make_app())
    entries = {"tides": entry(when=Tides(30)), "own": own, "colour": entry(args=[Colour.RED]), "plain": entry()}
    write(path, entries)
    found = read(path)
    assert [name for name in entries if isinstance(found[name], Found)] == ["plain"]
    assert f"--trust {HERE}.OwnEntry" in found["own"].notes[0]
    found = read(path, trust=[f"{HERE}.{name}" for name in ("Tides", "OwnEntry", "Colour")])
    assert {name: (each.last, each.runs) for name, each in found.items()} == {
        "tides": (LAST.timestamp(), 7),
        "own": (LAST.timestamp(), 9),
        "colour": (LAST.timestamp(), 7),
        "plain": (LAST.timestamp(), 7),
    }


def test_a_trusted_class_that_fails_costs_its_entry_alone(path: Path) -> None:
    """Or that is not there any more."""
    write(path, {"gone": b"", "plain": entry()})
    gone = b"\x80\x02}(\x8c\x04goneclost_module\nLost\n)Ru."
    write(path, gone)
    found = read(path, trust=["lost_module.Lost"])
    assert "lost_module" in found["gone"].notes[0]


@pytest.mark.parametrize("name", ["", "os", "os.", "a b.c", "os.system()", "x\n.y"])
def test_what_is_no_path_of_a_class_cannot_be_trusted(path: Path, name: str) -> None:
    """Before the file is opened."""
    with pytest.raises(ConfigurationError, match="trust = "):
        read(path, trust=[name])


# -- the file --


def test_files_that_cannot_be_read_are_one_line(path: Path) -> None:
    """Empty, a directory, not ours to read, of another kind of program."""
    path.touch()
    with pytest.raises(NeliError, match="cannot be read"):
        read(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(NeliError, match="there is no file"):
        read(path)
    with dbm.dumb.open(str(path / "other"), "n") as store:
        store["something"] = b"else"
    with pytest.raises(NeliError, match="holds no entries"):
        read(path / "other")
    write(path / "list", [entry()])
    with pytest.raises(NeliError, match="not a dict"):
        read(path / "list")


def test_a_file_in_a_directory_that_cannot_be_written_is_read(path: Path) -> None:
    """Nothing is made beside it."""
    write(path, {"e": entry()})
    path.parent.chmod(0o500)
    try:
        before = sorted(path.parent.iterdir())
        assert isinstance(read(path)["e"], Found)
        assert sorted(path.parent.iterdir()) == before
    finally:
        path.parent.chmod(0o700)


# -- the command --


def test_the_help_says_that_nothing_runs() -> None:
    """And what does."""
    from celery_neli.periodic.cli import schedule as command

    output = " ".join(CliRunner().invoke(command, ["import", "--help"]).output.split())
    assert "The command runs none of it, with or without --dry-run, except for classes that you --trust" in output
