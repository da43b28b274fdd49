"""The scheduler of its own: due entries from a heap, slots in place of moments, what was missed by policy."""

from __future__ import annotations

import itertools
import logging
import math
import time
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
from celery import beat as celery_beat
from celery.beat import BeatLazyFunc, ScheduleEntry
from celery.schedules import crontab, schedule, solar

from celery_neli.beat.replicated.entries import Entries
from celery_neli.beat.replicated.standalone import ReplicatedScheduler
from celery_neli.exceptions import ConfigurationError
from tests.unit.fakes import FakeLeadership
from tests.unit.schedulers import Beat, Kind, eventually, in_mid_dispatch, make_app

if TYPE_CHECKING:
    from pathlib import Path

NOON = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)
SECOND = timedelta(seconds=1)


class Recording(ReplicatedScheduler):
    """Sends nowhere, and keeps (time since noon in seconds, name, slot since noon or None) of each run."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.ran: list[tuple[float, str, float | None]] = []
        super().__init__(*args, **kwargs)

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        at = self.neli_engine.sender.slot
        slot = None if at is None else (at - NOON).total_seconds()
        self.ran.append(((self.app.now() - NOON).total_seconds(), entry.name, slot))


class Rig:
    """A scheduler on a clock that the test moves, in seconds since noon."""

    def __init__(self, cls: type[ReplicatedScheduler] = Recording, **conf: Any) -> None:
        self.now = 0.0
        self.app = make_app(**conf)
        self.app.now = lambda: NOON + timedelta(seconds=self.now)
        self.scheduler: Any = cls(app=self.app)

    def add(self, name: str, when: Any, last: float = 0.0, **fields: Any) -> Any:
        fields.setdefault("task", "t")
        return self.scheduler.add(name=name, schedule=when, last_run_at=NOON + last * SECOND, **fields)

    def ticks(self, until: float) -> None:
        """Tick as beat does, sleeping as told, until that time; the clock stands at it then."""
        for _ in range(20_000):
            wait = self.scheduler.tick()
            if wait > 0:
                if self.now + wait > until:
                    self.now = until
                    return
                self.now = math.ceil((self.now + wait) * 1e6) / 1e6  # a clock ticks in microseconds
        raise AssertionError("it never waited")

    def ran(self, name: str | None = None) -> list[float]:
        """When each run happened."""
        return [at for at, who, _ in self.scheduler.ran if name in (None, who)]

    def slots(self) -> list[float | None]:
        return [slot for _, _, slot in self.scheduler.ran]

    def last(self, name: str) -> float:
        return float((self.scheduler.schedule[name].last_run_at - NOON).total_seconds())


def test_slots_that_are_missed_again_are_counted_again() -> None:
    """As many as the first time, of the same entry."""
    rig = Rig()
    rig.add("e", 10)
    for late in (65.0, 165.0, 265.0):
        rig.now = late
        rig.ticks(until=late + 0.5)
    assert rig.slots() == [60, 160, 260]
    assert rig.scheduler.neli_engine.left_out.total == 5 + 9 + 9


def test_intervals_do_not_drift() -> None:
    """However late each tick comes, the next slot counts from the slot."""
    rig = Rig()
    rig.add("e", 10)
    for late in (10.4, 20.9, 30.3, 41.0):
        rig.now = late
        assert rig.scheduler.tick() == 0
    assert rig.slots() == [10, 20, 30, 40]
    assert rig.last("e") == 40
    assert rig.scheduler.schedule["e"].total_run_count == 4
    rig.ticks(until=49)
    rig.ticks(until=51)
    assert rig.slots()[-1] == 50


def test_each_entry_runs_at_its_time() -> None:
    """Over an hour, with the sleeps that the scheduler asks for; nothing twice, nothing late."""
    rig = Rig(timezone="UTC")
    rig.add("fast", 7)
    rig.add("slow", timedelta(minutes=10))
    rig.add("cron", crontab(minute="*/5", app=rig.app))
    rig.add("relative", timedelta(minutes=1), relative=True)
    rig.ticks(until=3601)
    assert rig.ran("fast") == pytest.approx([7.0 * n for n in range(1, 515)], abs=0.02)
    assert rig.ran("slow") == pytest.approx([600.0 * n for n in range(1, 7)], abs=0.02)
    assert rig.ran("cron") == pytest.approx([300.0 * n for n in range(1, 13)], abs=0.02)
    assert rig.ran("relative") == pytest.approx([60.0 * n for n in range(1, 61)], abs=0.02)
    assert all(slot is not None and 0 <= at - slot < 0.02 for at, _, slot in rig.scheduler.ran)


def test_it_does_not_spin_before_an_entry_is_due() -> None:
    """A few ticks for a slot, where Celery's scheduler makes hundreds in the last hundredth of a second."""
    rig = Rig()
    rig.add("e", 10)
    waits = []
    while not rig.scheduler.ran:
        waits.append(rig.scheduler.tick())
        rig.now = math.ceil((rig.now + waits[-1]) * 1e6) / 1e6
    assert len(waits) <= 4
    assert rig.ran() == [pytest.approx(10, abs=0.001)]


def test_the_entry_s_time_zone_is_kept_in_its_last_run() -> None:
    """A relative interval is rounded on the local clock, also after a run."""
    rig = Rig(timezone="Asia/Kolkata")  # half an hour off
    rig.app.now = lambda: (NOON + timedelta(seconds=rig.now)).astimezone(rig.app.timezone)
    rig.scheduler.add(name="e", task="t", schedule=timedelta(hours=1), relative=True)
    rig.ticks(until=2 * 3600)
    assert rig.slots() == [1800, 5400]


# -- what was missed --


@pytest.mark.parametrize(
    ("options", "slots", "left_out"),
    [
        ({}, [60], 5),
        ({"neli_misfire": "fire_all"}, [10, 20, 30, 40, 50, 60], 0),
        ({"neli_misfire": "fire_all", "neli_misfire_max": 2}, [50, 60], 4),
        ({"neli_misfire": "fire_all", "neli_misfire_grace": 30.0}, [40, 50, 60], 3),
        ({"neli_misfire": "skip"}, [60], 5),
        ({"neli_misfire": "skip", "neli_misfire_grace": 3.0}, [], 6),
        ({"neli_misfire_grace": 3.0}, [], 6),
    ],
)
@pytest.mark.parametrize("given", ["settings", "options"])
def test_a_late_start_goes_by_the_misfire_policy(
    options: dict[str, Any], slots: list[float], left_out: int, given: str, caplog: pytest.LogCaptureFixture
) -> None:
    """65 seconds after the last run of a ten-second entry; then it goes on in step."""
    rig = Rig(**(options if given == "settings" else {}))
    rig.add("e", 10, options=options if given == "options" else {})
    rig.now = 65.0
    rig.ticks(until=65.5)
    assert rig.slots() == slots
    assert rig.last("e") == 60
    assert rig.scheduler.neli_engine.left_out.total == left_out
    said = [record.getMessage() for record in caplog.records if "slots missed" in record.getMessage()]
    assert len(said) == (1 if left_out else 0), "said once"
    if said:
        assert f"entry=e left_out={left_out} " in said[0]
    rig.ticks(until=81)
    assert rig.slots() == [*slots, 70, 80]


def test_a_late_start_that_skips_counts_no_run() -> None:
    """The entry is behind its slots, but it did not run."""
    rig = Rig(neli_misfire="skip", neli_misfire_grace=1.0)
    rig.add("e", 10)
    rig.now = 65.0
    rig.ticks(until=66)
    assert rig.scheduler.schedule["e"].total_run_count == 0
    assert rig.last("e") == 60


def test_catching_up_lets_others_in_between() -> None:
    """A hundred slots of one entry do not stand before another's one."""
    rig = Rig(neli_misfire="fire_all")
    rig.add("behind", 1)
    rig.add("other", 30, last=35)
    rig.now = 65.0
    rig.ticks(until=65.2)
    names = [name for _, name, _ in rig.scheduler.ran]
    assert names.index("other") < 3
    assert names.count("behind") == 65


def test_the_deadline_of_crontabs_goes_before_the_policy(caplog: pytest.LogCaptureFixture) -> None:
    """What is older than `beat_cron_starting_deadline` never runs; it is said, and the next slot runs."""
    rig = Rig(beat_cron_starting_deadline=60, neli_misfire="fire_all")
    rig.add("cron", crontab(minute="*/5", app=rig.app))
    rig.add("interval", 300)  # the deadline is none of its business
    rig.now = 400.0
    rig.ticks(until=500)
    assert [(name, slot) for _, name, slot in rig.scheduler.ran] == [("interval", 300)]
    assert rig.last("cron") == 300
    assert "entry=cron left_out=1 " in caplog.text
    rig.ticks(until=601)
    assert ("cron", 600) in [(name, slot) for _, name, slot in rig.scheduler.ran]


def test_a_policy_that_does_not_exist_is_refused_where_it_is_given(caplog: pytest.LogCaptureFixture) -> None:
    """With the entry's name, and nothing was added; of `beat_schedule`, the other entries are."""
    rig = Rig()
    with pytest.raises(ConfigurationError, match="beat entry 'e': neli_misfire = 'once'"):
        rig.add("e", 10, options={"neli_misfire": "once"})
    assert "e" not in rig.scheduler.schedule
    entry = {"task": "t", "schedule": 10, "options": {"neli_misfire_max": 0}}
    bad = Rig(beat_schedule={"e": entry, "good": {"task": "t", "schedule": 10}})
    assert list(bad.scheduler.schedule) == ["good"]
    assert "entry=e is left out: neli_misfire_max = 0: give" in caplog.text
    with pytest.raises(ConfigurationError, match="neli_misfire_grace"):
        Rig(neli_misfire_grace=-1)


def test_the_policy_is_no_part_of_the_message() -> None:
    """Celery would send unknown options along as properties."""
    app = make_app()
    scheduler = ReplicatedScheduler(app=app)
    sent: list[dict[str, Any]] = []
    scheduler.send_task = lambda *args, **options: sent.append(options)
    options = {"neli_misfire": "skip", "neli_misfire_grace": 5, "queue": "q"}
    scheduler.add(name="e", task="t", schedule=1, last_run_at=NOON, options=options)
    scheduler.apply_async(scheduler.schedule["e"], producer=object(), advance=False)
    assert "queue" in sent[0]
    assert not [name for name in sent[0] if name.startswith("neli_")]
    assert scheduler.schedule["e"].options == options


# -- custom classes --


class Every(schedule):
    """A class of a user's own: due when it says so."""

    def __init__(self, answers: list[Any], **kwargs: Any) -> None:
        super().__init__(10, **kwargs)
        self.answers = answers

    def is_due(self, last_run_at: datetime) -> Any:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_schedules_that_know_only_is_due_are_asked() -> None:
    """Once for the heap, once when it is time; their last run is the present, and they have no slot."""
    rig = Rig()
    rig.add("e", Every([(False, 5), (True, 20), (False, 20)], app=rig.app))
    rig.ticks(until=6)
    assert rig.slots() == [None]
    assert rig.last("e") == rig.ran()[0] == pytest.approx(5, abs=0.02)


def test_a_schedule_that_is_not_due_at_its_time_does_not_hold_up_the_others() -> None:
    """It is looked at again when it said; the one behind it has its turn."""
    rig = Rig()
    rig.add("stuck", Every([(False, 5), (False, 100)], app=rig.app))
    rig.add("ready", 6)
    rig.ticks(until=20)
    assert [name for _, name, _ in rig.scheduler.ran] == ["ready"] * 3


def test_a_schedule_that_fails_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is logged, and tried again a while later."""
    said: list[Any] = []
    monkeypatch.setattr(celery_beat, "error", lambda *args, **kwargs: said.append(args[1]))
    rig = Rig(beat_max_loop_interval=30)
    rig.add("broken", Every([RuntimeError("no calendar"), RuntimeError("still none"), (True, 50)], app=rig.app))
    rig.add("well", 10)
    rig.ticks(until=65)
    assert said == ["broken", "broken"]
    assert len(rig.ran("well")) == 6
    assert rig.ran("broken") == [pytest.approx(60, abs=0.1)]


def test_a_custom_entry_advances_itself() -> None:
    """By its own `next`, which may do more; its last run is what it says."""

    class Own(ScheduleEntry):
        def _next_instance(self, last_run_at: datetime | None = None) -> Any:
            assert last_run_at is None
            return super()._next_instance(last_run_at=self.last_run_at + timedelta(seconds=11))

        __next__ = next = _next_instance

    class OwnScheduler(Recording):
        Entry = Own

    rig = Rig(OwnScheduler)
    rig.add("e", 10)
    rig.ticks(until=30)
    assert rig.slots() == [10, 21]


def test_a_custom_entry_and_a_custom_scheduler_decide_what_is_due() -> None:
    """As with Celery's."""

    class Lazy(ScheduleEntry):
        def is_due(self) -> Any:
            return False, 60

    class NeverDue(Recording):
        def is_due(self, entry: Any) -> Any:
            return False, 60

    for cls in (type("OfLazyEntries", (Recording,), {"Entry": Lazy}), NeverDue):
        rig = Rig(cls)
        rig.add("e", 10)
        rig.ticks(until=50)
        assert rig.ran() == []


def test_solar_events_run_once_each() -> None:
    """The moment of an event is not exact: looked for from itself it could be found again."""
    pytest.importorskip("ephem")
    rig = Rig()
    rig.add("e", solar("sunrise", 52.5, 13.4, app=rig.app))
    rig.ticks(until=3 * 86400)
    assert len(rig.ran()) == 3


# -- changes of the schedule --


def test_changes_of_the_schedule_are_noticed_at_the_next_tick() -> None:
    """Set, deleted, updated, merged, replaced as a whole."""
    rig = Rig()
    schedule_ = rig.scheduler.schedule
    rig.scheduler.tick()
    rig.add("a", 5)
    rig.scheduler.update_from_dict({"b": {"task": "t", "schedule": 7.0, "last_run_at": NOON}})
    assert 4.9 < rig.scheduler.tick() <= 5
    del schedule_["a"]
    assert 6.9 < rig.scheduler.tick() <= 7
    rig.scheduler.merge_inplace({"b": {"task": "t", "schedule": 3.0}})
    assert 2.9 < rig.scheduler.tick() <= 3
    schedule_["b"] = rig.scheduler.Entry(name="b", task="t", schedule=2, last_run_at=NOON, app=rig.app)
    assert 1.9 < rig.scheduler.tick() <= 2
    rig.scheduler.schedule = {"c": rig.scheduler.Entry(name="c", task="t", schedule=1, last_run_at=NOON, app=rig.app)}
    assert 0.9 < rig.scheduler.tick() <= 1
    rig.scheduler.schedule = Entries(schedule_)
    assert 1.9 < rig.scheduler.tick() <= 2
    rig.scheduler.schedule.clear()
    assert rig.scheduler.tick() == rig.scheduler.max_interval


def test_a_mapping_of_the_caller_s_own_is_kept_and_watched() -> None:
    """It may be changed by whoever holds it, as with Celery."""
    own: dict[str, Any] = {}
    app = make_app()
    app.now = lambda: NOON
    scheduler = ReplicatedScheduler(app=app, schedule=own, lazy=True)
    assert scheduler.schedule is own
    assert scheduler.tick() == scheduler.max_interval
    own["e"] = scheduler.Entry(name="e", task="t", schedule=3, last_run_at=NOON, app=app)
    assert 2.9 < scheduler.tick() <= 3
    del own["e"]
    assert scheduler.tick() == scheduler.max_interval


def test_an_entry_that_is_taken_out_while_it_is_sent_does_not_come_back() -> None:
    """By a receiver of a publishing signal, say."""

    class Removing(Recording):
        def apply_entry(self, entry: Any, producer: Any = None) -> None:
            super().apply_entry(entry, producer)
            del self.schedule[entry.name]

    rig = Rig(Removing)
    rig.add("e", 10)
    rig.ticks(until=100)
    assert rig.slots() == [10]


def test_an_entry_that_is_put_back_after_its_reservation_is_due_again() -> None:
    """As when a term ends between its advance and its message: it is as it was."""

    class TakingBack(Recording):
        cut_off = True

        def apply_entry(self, entry: Any, producer: Any = None) -> None:
            if self.cut_off:
                self.cut_off = False
                self.schedule[entry.name] = entry
                raise SystemExit
            super().apply_entry(entry, producer)

    rig = Rig(TakingBack)
    rig.add("e", 10)
    rig.now = 10.0
    with pytest.raises(SystemExit):
        rig.scheduler.tick()
    assert rig.scheduler.neli_engine.sender.slot is None
    rig.ticks(until=15)
    assert rig.slots() == [10]
    assert rig.scheduler.schedule["e"].total_run_count == 1


def test_a_tick_looks_at_no_entry_that_is_not_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor compares any, whatever their number."""
    rig = Rig()
    for n in range(500):
        rig.add(f"e{n}", 1000)
    rig.add("due", 10)
    rig.scheduler.tick()
    looked: list[str] = []
    monkeypatch.setattr(ScheduleEntry, "__eq__", lambda *args: pytest.fail("compared"))
    monkeypatch.setattr(ScheduleEntry, "default_now", lambda self: looked.append(self.name) or rig.app.now())
    rig.ticks(until=31)
    assert len(rig.ran()) == 3
    assert set(looked) == {"due"} | ({looked[-1]} if looked[-1] != "due" else set())


# -- the clock --


def test_a_clock_that_goes_forward_goes_by_the_misfire_policy() -> None:
    """As if the process had been stopped."""
    rig = Rig()
    rig.add("e", 10)
    rig.ticks(until=11)
    rig.now = 3605.0
    rig.ticks(until=3611)
    assert rig.slots() == [10, 3600, 3610]


def test_a_clock_that_is_set_back_does_not_stop_intervals(caplog: pytest.LogCaptureFixture) -> None:
    """They begin anew. A crontab's slot that ran does not run again."""
    rig = Rig(timezone="UTC")
    rig.add("e", 10)
    rig.add("cron", crontab(minute="*/1", app=rig.app))
    rig.ticks(until=3601)
    ran = len(rig.ran("cron"))
    rig.now = 0.0
    rig.ticks(until=25)
    assert rig.ran("e")[-2:] == pytest.approx([10, 20], abs=0.02)
    assert "set back by 360" in caplog.text
    rig.ticks(until=3590)
    assert len(rig.ran("cron")) == ran
    rig.ticks(until=3700)
    assert len(rig.ran("cron")) == ran + 1


def test_a_clock_that_is_corrected_a_little_is_waited_for() -> None:
    """A slot has one name: none runs twice for a second's correction."""
    rig = Rig()
    rig.add("e", 10)
    rig.ticks(until=30.5)
    rig.now = 28.0
    rig.ticks(until=41)
    assert rig.slots() == [10, 20, 30, 40]


# -- what Celery offers --


def test_periodic_tasks_of_the_app_and_the_default_entries_are_there() -> None:
    """`add_periodic_task`, `beat_schedule`, the cleanup of results."""
    app = make_app(beat_schedule={"one": {"task": "t", "schedule": 5.0}})
    app.conf.update(result_expires=60)

    @app.task(name="two", shared=False)
    def two() -> None: ...

    app.add_periodic_task(6.0, two.s(1), name="two", neli_misfire="skip", queue="q")
    scheduler = ReplicatedScheduler(app=app)
    assert set(scheduler.schedule) == {"one", "two", "celery.backend_cleanup"}
    assert scheduler.schedule["two"].options["queue"] == "q"


def test_lazy_arguments_are_evaluated_for_each_message() -> None:
    """And not before."""
    calls: list[int] = []
    rig = Rig(ReplicatedScheduler)
    sent: list[Any] = []
    rig.scheduler.send_task = lambda name, args, kwargs, **options: sent.append((args, kwargs))
    lazy = BeatLazyFunc(lambda: calls.append(1) or len(calls))
    rig.add("e", 10, args=(lazy,), kwargs={"n": lazy})
    rig.ticks(until=21)
    assert sent == [([1], {"n": 2}), ([3], {"n": 4})]


def test_beat_sync_every_counts_what_was_sent() -> None:
    """On the fast path, too."""

    class Syncing(ReplicatedScheduler):
        synced = 0

        def sync(self) -> None:
            self.synced += 1

    rig = Rig(Syncing, beat_sync_every=2)
    rig.add("e", 10)
    rig.ticks(until=11)
    assert rig.scheduler.synced == 1, "the first one: nothing was synchronised yet"
    rig.ticks(until=71)
    assert rig.scheduler.synced == 1 + 3


def test_messages_of_one_entry_leave_in_the_order_of_their_slots() -> None:
    """The real message, through a broker in memory."""
    rig = Rig(ReplicatedScheduler, neli_misfire="fire_all")
    slots: list[Any] = []
    rig.scheduler.add(
        name="e", task="t", schedule=1, last_run_at=NOON, args=(BeatLazyFunc(lambda: len(slots) or slots.append(1)),)
    )
    rig.now = 5.0
    rig.ticks(until=5.5)
    assert rig.last("e") == 5
    with rig.app.connection_for_read() as connection:
        count = connection.default_channel.queue_declare(rig.app.conf.task_default_queue, passive=True).message_count
    assert count == 5


# -- under a lease --


class Own(Kind):
    """This scheduler inside celery_neli.Scheduler."""

    name = "celery_neli.beat.replicated.standalone.ReplicatedScheduler"


@pytest.fixture
def own(tmp_path: Path) -> Own:
    return Own(tmp_path)


def test_a_leader_sends_what_is_due_once_with_the_slot_that_it_is_for(own: Own) -> None:
    """Two half-hours have passed since the last run: once, for the later one."""
    with own.beat() as beat:
        beat.turns()
        assert beat.sent() == []
        own.leadership.grant(7)
        (headers,) = beat.sends(1)
        beat.turns()
        assert len(beat.sent()) == 1
        assert (headers["neli_beat_term"], headers["neli_beat_entry"], headers["task"]) == (7, "entry", "t")
        assert headers["periodic_task_name"] == "entry"
        assert own.leadership.predecessor_active is not None
        slot = own.leadership.predecessor_active + timedelta(hours=1)
        assert headers["neli_beat_slot"] == slot.isoformat()


def test_a_term_that_ends_in_mid_dispatch_sends_nothing_and_the_next_one_does(own: Own) -> None:
    """With and without a signal; the entry is put back."""
    for take in (FakeLeadership.fence, FakeLeadership.lapse):
        own.leadership = FakeLeadership()
        own.leadership.predecessor_active = datetime.now(timezone.utc) - timedelta(hours=1)
        with own.beat() as beat:
            with in_mid_dispatch(beat.app, lambda take=take: take(own.leadership)) as seen:
                own.leadership.grant(1)
                eventually(lambda seen=seen: seen, what="dispatch")
                beat.turns()
                assert beat.sent() == []
            own.leadership.grant(5)
            (headers,) = beat.sends(1)
            assert headers["neli_beat_term"] == 5


def test_a_term_that_ends_on_the_fast_path_sends_nothing(own: Own) -> None:
    """No receiver of a signal there: the lease is asked by the producer, right before the wire."""
    conf = {"beat_schedule": {f"e{n}": {"task": "t", "schedule": 0.05} for n in range(5)}}
    with own.beat(**conf) as beat:
        own.leadership.grant(1)
        beat.sends(10)
        own.leadership.lapse()
        beat.turns()
        sent = len(beat.sent())
        beat.turns()
        assert len(beat.sent()) == sent
        own.leadership.grant(2)
        beat.sends(sent + 5)
        assert {headers["neli_beat_term"] for headers in beat.sent()[sent:]} == {2}
        slots = [(headers["neli_beat_entry"], headers["neli_beat_slot"]) for headers in beat.sent()]
        assert len(slots) == len(set(slots)), "each slot once, in both terms"


def test_a_term_that_is_taken_back_does_not_send_again(own: Own) -> None:
    """What this process sent counts."""
    with own.beat() as beat:
        own.leadership.grant(1)
        beat.sends(1)
        beat.turns(2)
        own.leadership.fence()
        beat.turns(2)
        own.leadership.grant(1)
        beat.turns(4)
        assert len(beat.sent()) == 1


def test_a_hand_over_waits_for_the_message_in_flight(own: Own) -> None:
    """And the entry counts as run."""
    with own.beat() as beat:
        threads: list[Any] = []
        with in_mid_dispatch(beat.app, lambda: threads.append(own.leadership.revoke())):
            own.leadership.grant(1)
            beat.sends(1)
        threads[0].join(5)
        assert not own.leadership.held()


def test_switched_off_it_is_a_scheduler_like_any_other() -> None:
    """With `neli_enabled = False`: no lease, no Kafka."""
    from celery_neli.beat.scheduler import Scheduler

    app = make_app(neli_enabled=False, neli_scheduler=Own.name, beat_schedule={})
    assert type(Scheduler(app)) is ReplicatedScheduler


def test_idle_ticks_cost_the_same_for_ten_and_for_many(caplog: pytest.LogCaptureFixture) -> None:
    """A rough guard; the figures are the benchmark's."""
    caplog.set_level(logging.CRITICAL)

    def cost(count: int) -> float:
        rig = Rig()
        for n in range(count):
            rig.add(f"e{n}", 1000)
        rig.scheduler.tick()
        times = []
        for _ in range(200):
            began = time.perf_counter()
            rig.scheduler.tick()
            times.append(time.perf_counter() - began)
        return sorted(times)[20]

    assert cost(5000) < 3 * cost(10)


def test_beat_drives_it(own: Own) -> None:
    """A second or so of real time."""
    conf = {"beat_schedule": {"e": {"task": "t", "schedule": 0.2}}}
    own.leadership.predecessor_active = None
    app = make_app(neli_scheduler=Own.name, **conf)
    with Beat(app, leadership=own.leadership) as beat:
        own.leadership.grant(1)
        headers = beat.sends(4)
        slots = [datetime.fromisoformat(each["neli_beat_slot"]) for each in headers]
        assert [b - a for a, b in itertools.pairwise(slots)] == [timedelta(seconds=0.2)] * (len(slots) - 1)
