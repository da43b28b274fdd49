"""The slots of entries with options that shape their schedules, compared with a clock that is looked at.

Celery's crontab in a zone of its own, `celery_neli.cron` with seconds, `L` and `#`, intervals and single times, as they
are and with a start, an end, a calendar and a jitter, around changes of the clock from 2020 to 2040. `NELI_DST_CASES`
says how many changes are looked at, of some 700 in thirty zones.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from functools import cache
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest
from celery.beat import ScheduleEntry
from celery.schedules import crontab, schedule

from celery_neli.periodic.shape import shape
from celery_neli.schedule.cron import cron
from celery_neli.schedule.due import Forecast
from celery_neli.schedule.shaped import shift_for
from celery_neli.schedule.slots import is_over, missed, next_slot, nominal, once, shift_of
from tests.unit.schedulers import make_app
from tests.unit.wall_clock import MINUTE, SECOND, ZONES, Crontab, Line, WallClock, changes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery

UTC = timezone.utc
CASES = int(os.environ.get("NELI_DST_CASES", "2"))
YEARS = (2020, 2040)
DAY = timedelta(days=1)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@cache
def app_in(zone: str) -> Celery:
    app = make_app(timezone=zone)
    app.now = lambda: datetime(2026, 1, 1, tzinfo=UTC)
    return app


@dataclass
class Case:
    """A schedule with the options of its entry, and the slots that the clock says, without the jitter's shift."""

    text: str
    when: Any
    options: dict[str, Any]
    expected: list[datetime]
    floats: bool = False
    last: datetime | None = field(default=None)


class Bench:
    """A clock in a zone, and what is compared with it."""

    def __init__(self, zone: str, start: datetime, steps: int, step: timedelta, rng: random.Random) -> None:
        self.zone, self.tz, self.start, self.end, self.rng = zone, ZoneInfo(zone), start, start + steps * step, rng
        self.step, self.clock, self.app = step, WallClock(self.tz, start, steps, step), app_in(zone)
        self.seconds = step == SECOND
        self.days = sorted({at.astimezone(self.tz).date() for at in self.clock.moments})

    def cases(self) -> Iterator[Case]:
        """Yield each kind of schedule as it is, and with some options."""
        for text, when, runs, zoned in [*self.crons(), *self.intervals(), *self.times()]:
            yield self.case(text, when, runs, {}, zoned)
            for _ in range(3):
                yield self.case(text, when, runs, self.options(), zoned)

    def crons(self) -> Iterator[tuple[str, Any, Any, bool]]:
        for line in self.lines():
            text = " ".join(line if self.seconds else line[1:])
            zoned = self.rng.random() < 0.5
            yield text, cron(text, tz=None if zoned else self.zone, app=self.app), self.clock.runs(line), zoned
        for fields in () if self.seconds else self.crontabs():
            when = crontab(**fields._asdict(), app=app_in("Asia/Kolkata"))
            yield " ".join(fields), when, self.clock.runs(fields), True

    def lines(self) -> list[Line]:
        rng = self.rng
        return [
            Line(
                rng.choice(["0", "30", "*/7", "0,59", "58-59", "*"]) if self.seconds else "0",
                rng.choice(["*", "*/5", "*/25", "0", "30", "59", "0,30", "20-40/3", str(rng.randrange(60))]),
                rng.choice(["*", "*/2", "0", "1", "2", "3", "23", "0-3", "1,2", "2-3", str(rng.randrange(24))]),
                rng.choice(["*", "*", "*", "L", "LW", "1-7", "25-31", "13,L"]),
                rng.choice(["*", "*", "3,10,11", "mar-nov"]),
                rng.choice(["*", "*", "*", "sun", "mon-fri", "sunL", "sun#1", "sun#2", "5#3,sunL", "*/2"]),
            )
            for _ in range(4)
        ]

    def crontabs(self) -> list[Crontab]:
        rng = self.rng
        return [
            Crontab(
                rng.choice(["*", "*/5", "*/25", "0", "30", "0-59", "20-40/3", str(rng.randrange(60))]),
                rng.choice(["*", "*/2", "0", "1", "2", "3", "23", "0-3", "1,2", str(rng.randrange(24))]),
                rng.choice(["*", "*", "*", "*/2", "25-31"]),
                rng.choice(["*", "*", "3,10,11", "*/3"]),
                rng.choice(["*", "*", "0", "1-5", "*/2"]),
            )
            for _ in range(4)
        ]

    def intervals(self) -> Iterator[tuple[str, Any, Any, bool]]:
        for _ in range(3):
            every = self.step * self.rng.choice([1, 2, 5, 7, 45, 60, 90, 360])
            yield f"every {every}", schedule(every, app=self.app), every, False

    def times(self) -> Iterator[tuple[str, Any, Any, bool]]:
        at = self.rng.choice(self.clock.moments)
        yield f"at {at}", once(at, app=self.app), [at], False

    def options(self) -> dict[str, Any]:
        """Return some options, each with some chance. Times are given with an offset, or as the clock shows them."""
        rng, found = self.rng, {}
        if rng.random() < 0.5:
            found["neli_jitter"] = rng.choice([0.5, 1, 7, 60] if self.seconds else [1, 59, 60])
        times = sorted(rng.sample(self.clock.moments, 2))
        for name, at in zip(("neli_start", "neli_end"), times, strict=True):
            if rng.random() < 0.5:
                found[name] = self.spelt(at)
        if rng.random() < 0.6:
            chosen = set(rng.sample(self.days, min(rng.choice([1, 2]), len(self.days))))
            found["neli_calendar"] = chosen
            found["only"] = rng.random() < 0.5
        return found

    def spelt(self, at: datetime) -> Any:
        local = at.astimezone(self.tz).replace(tzinfo=None, fold=0)
        forms = [at, at.isoformat(), at.astimezone(ZoneInfo("Asia/Kathmandu")).isoformat()]
        return self.rng.choice([*forms, local.isoformat()] if self.clock.shows_once(local) else forms)

    def moment(self, given: Any) -> datetime | None:
        if given is None or isinstance(given, datetime):
            return given
        at = datetime.fromisoformat(given)
        return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=self.tz).astimezone(UTC)

    def case(self, text: str, when: Any, runs: Any, options: dict[str, Any], zoned: bool) -> Case:
        options = dict(options)
        only, days = options.pop("only", False), options.get("neli_calendar")
        start, end = self.moment(options.get("neli_start")), self.moment(options.get("neli_end"))
        if zoned:
            options["neli_timezone"] = self.zone
        if days is not None:
            name = f"{'only ' if only else ''}{__name__}.today"
            options["neli_calendar"] = name
        floats = False
        if isinstance(runs, timedelta):
            every = runs
            if options.get("neli_jitter", 0) > every.total_seconds():
                options["neli_jitter"] = every.total_seconds()
            floats = start is None and not options.get("neli_jitter")
            runs = self.clock.every(every, self.start if floats else start or EPOCH)
        elif "neli_jitter" in options and not isinstance(when, once):
            options["neli_jitter"] = min(options["neli_jitter"], 1 if self.seconds else 60)
        made = shape(self.app, f"entry {self.rng.randrange(1000)}", when, options, runtime=False)
        if days is not None:
            made.calendar = type(made.calendar)(made.calendar.name, days.__contains__, only=only)
        expected = self.clock.shaped(runs, start=start, end=end, days=days, only=only)
        return Case(f"{text} {options} {days} in {self.zone} after {self.start}", made, options, expected, floats)

    def compare(self, case: Case, forecast: Forecast) -> int:
        """Compare the chain of slots, slots after odd moments, and what was missed; return how many slots."""
        when, shift = case.when, timedelta(seconds=shift_of(case.when))
        expected = [at + shift for at in case.expected]
        begin, end = self.start + shift, self.end + shift
        found, at = [], next_slot(when, begin)
        while at is not None and at <= end:
            found.append(at)
            assert nominal(when, at) == at - shift
            at = next_slot(when, at)
        assert found == expected, case.text
        owed = missed(when, begin, end, 50)
        assert owed is not None, case.text
        assert list(owed.newest) == expected[-50:], case.text
        assert owed.total == len(expected) if owed.exact else 100 <= owed.total <= len(expected), case.text
        if at is not None or is_over(when):
            assert owed.upcoming == at, case.text
        for _ in range(0 if case.floats else 3):
            moment = begin + self.rng.random() * (end - begin)
            first = next((slot for slot in expected if slot > moment), None)
            slot = next_slot(when, self.rng.choice([moment, moment.astimezone(ZoneInfo("Asia/Kolkata"))]))
            assert (slot == first) if first else (slot is None or slot > end), f"{case.text}: after {moment}"
            entry = ScheduleEntry("e", "t", moment, 0, when, app=self.app)
            seen = forecast.next(entry)
            assert seen is not None
            if first is not None:
                assert abs(seen.now + seen.delay - first.timestamp()) < 1e-3, f"{case.text}: forecast after {moment}"
        return len(found)


def today(day: date) -> bool:
    """A calendar, replaced in each case by some days."""
    raise AssertionError("it is replaced")


@pytest.mark.timeout(7200)
def test_slots_are_those_of_a_clock_that_is_looked_at(record_property: Any) -> None:
    """Each minute for three days, and each second for some hours, around changes of the clock in both directions."""
    rng = random.Random(20261215)
    every = [(zone, at) for zone in ZONES for at in changes(ZoneInfo(zone), *YEARS)]
    chosen = rng.sample(every, min(CASES, len(every)))
    cases = slots = 0
    for number, (zone, at) in enumerate(chosen, 1):
        odd = timedelta(minutes=rng.randrange(60))
        for bench in (
            Bench(zone, at - DAY - odd, 3 * 24 * 60, MINUTE, rng),
            Bench(zone, at - timedelta(seconds=rng.randrange(2000, 3500)), 5400, SECOND, rng),
        ):
            forecast = Forecast()
            for case in bench.cases():
                slots += bench.compare(case, forecast)
                cases += 1
        if number % 50 == 0:
            print(f"{cases} schedules at {number} changes of the clock: {slots} slots compared", flush=True)
    print(f"{cases} schedules at {len(chosen)} of {len(every)} changes of the clock: {slots} slots compared")
    record_property("slots", slots)
    assert slots > 0


@pytest.mark.parametrize("zone", ["America/Havana", "Africa/Cairo", "Pacific/Apia", "America/Nuuk", "Asia/Beirut"])
def test_days_of_a_calendar_where_the_clock_is_changed_at_midnight(zone: str) -> None:
    """Also where the end of a day comes twice, or a day is left out."""
    rng = random.Random(zone)
    for at in changes(ZoneInfo(zone), 2011, 2026)[:2]:
        bench = Bench(zone, at - DAY, 2 * 24 * 60, MINUTE, rng)
        for days in ({day} for day in bench.days):
            for only in (False, True):
                for text in ("*/30 * * * *", "30 0,23 * * *", "59 23 * * *"):
                    when, runs = cron(text, app=bench.app), bench.clock.runs(Line.of(text))
                    case = bench.case(text, when, runs, {"neli_calendar": days, "only": only}, zoned=True)
                    bench.compare(case, Forecast())


def test_a_day_whose_end_comes_twice_is_left_out_to_the_second() -> None:
    """St. John's, 2 November 2008: a minute after midnight, the clock was set back to 23:01 of the first."""
    rng = random.Random(2)
    bench = Bench("America/St_Johns", datetime(2008, 11, 2, 2, tzinfo=UTC), 3600 * 3, SECOND, rng)
    assert len(bench.days) == 2
    when, runs = cron("* * * * * *", app=bench.app), bench.clock.runs(Line.of("* * * * * *"))
    options = {"neli_calendar": {bench.days[0]}, "only": False}
    assert bench.compare(bench.case("every second", when, runs, options, zoned=True), Forecast()) > 1000


def test_shifts_are_the_same_in_every_process_and_lie_within_the_jitter() -> None:
    """Whatever Python's hash is made of; less than the jitter, and a multiple of a 64th of a second."""
    names = ["e", "tidy-up-42", "Ü", "\ud800"]
    code = f"from celery_neli.schedule.shaped import shift_for; print([shift_for(n, 600) for n in {names!r}])"
    told = subprocess.run(
        [sys.executable, "-c", f"import datetime; {code}"], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )  # fmt: skip
    assert eval(told.stdout, {"datetime": __import__("datetime")}) == [shift_for(name, 600) for name in names]  # noqa: S307 - of this test
    assert shift_for("e", 600) == timedelta(seconds=148.765625)
    for n in range(500):
        for jitter in (0.1, 1, 60.5, 86400):
            shift = shift_for(f"e{n}", jitter)
            assert timedelta(0) <= shift < timedelta(seconds=jitter)
            assert shift % timedelta(microseconds=15625) == timedelta(0)


@pytest.mark.parametrize("zone", ["Asia/Kolkata", "America/New_York"])
def test_an_interval_begins_at_its_start_and_else_at_the_epoch(zone: str) -> None:
    """The first slot is the start itself."""
    app = app_in(zone)
    start = datetime(2026, 3, 1, 12, 7, 30, tzinfo=UTC)
    made = shape(app, "e", schedule(3600, app=app), {"neli_start": start}, runtime=True)
    assert next_slot(made, start - 3 * DAY) == start
    assert next_slot(made, start) == start + timedelta(hours=1)
    made = shape(app, "e", schedule(3600, app=app), {"neli_jitter": 600}, runtime=True)
    assert nominal(made, next_slot(made, start) or start) == datetime(2026, 3, 1, 13, tzinfo=UTC)
