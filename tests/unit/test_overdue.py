"""What is overdue, by the records of the schedule topic and of the history alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from celery.beat import ScheduleEntry
from celery.schedules import crontab, schedule

from celery_neli.alarms.entries import WatchedEntries
from celery_neli.alarms.overdue import Alarm, Entry, Overdue
from celery_neli.history.records import RunRecord, SlotRecord, WorkerRecord
from celery_neli.periodic.call import option_mistakes
from celery_neli.schedule.policies import OWN_OPTIONS
from celery_neli.schedule.slots import id_at
from celery_neli.schedule_topic.codec import ENTRY, STATE, Definition, State, encode_definition, encode_state
from celery_neli.schedule_topic.rules import Pause

if TYPE_CHECKING:
    from celery_neli.schedule_topic.codec import Kind

START = 1_800_000_000.0  # a full minute
MOST = 1000


@pytest.fixture(scope="module")
def app() -> Celery:
    made = Celery("overdue", set_as_current=False)
    made.conf.update(neli_group="shop", timezone="UTC")
    return made


def overdue(**options: Any) -> Overdue:
    return Overdue(group="shop.beat", **options)


def every(seconds: float, app: Celery, **options: Any) -> Entry:
    return Entry(task="shop.tidy", schedule=schedule(seconds, app=app), base=START, **options)


def sent(entry: str, slot: float, *, late: float = 0.0, outcome: str = "sent", **more: Any) -> SlotRecord:
    return SlotRecord(
        entry=entry, task="shop.tidy", slot=slot, outcome=outcome, at=slot + late, member="beat1",
        id=id_at("shop.beat", entry, slot), **more,
    )  # fmt: skip


def ran(entry: str, slot: float, state: str, at: float) -> RunRecord:
    return RunRecord(
        entry=entry, task="shop.tidy", slot=slot, id=id_at("shop.beat", entry, slot), state=state, at=at, worker="w1"
    )


def told(found: list[Alarm]) -> list[tuple[str, str, float | None]]:
    return [(each.entry, each.reason, None if each.slot is None else each.slot - START) for each in found]


# -- slots that were not sent --


def test_a_slot_is_overdue_a_minute_and_a_tenth_of_its_interval_after_it_and_not_before(app: Celery) -> None:
    watch = overdue()
    watch.put("tidy", every(600, app))
    assert watch.wake == START + 600 + 120
    assert watch.judge(START + 719, MOST) == []
    (alarm,) = watch.judge(START + 720, MOST)
    assert (alarm.kind, alarm.entry, alarm.task, alarm.reason) == ("slot_overdue", "tidy", "shop.tidy", "not_sent")
    assert (alarm.slot, alarm.deadline, alarm.allowance) == (START + 600, START + 720, 120)
    assert alarm.id == id_at("shop.beat", "tidy", START + 600)
    assert watch.judge(START + 1300, MOST) == []


def test_an_entry_s_own_allowance_comes_before_the_setting_and_that_before_the_default(app: Celery) -> None:
    watch = overdue(overdue=30.0)
    watch.put("own", every(600, app, overdue=5.0))
    watch.put("others", every(600, app))
    assert told(watch.judge(START + 605, MOST)) == [("own", "not_sent", 600)]
    assert told(watch.judge(START + 630, MOST)) == [("others", "not_sent", 600)]


def test_a_daily_entry_s_allowance_is_an_hour_and_a_minute(app: Celery) -> None:
    watch = overdue()
    daily = crontab(minute="0", hour="7", app=app)
    watch.put("daily", Entry(task="t", schedule=daily, base=START))
    (alarm,) = watch.judge(START + 3 * 86_400, MOST)
    assert alarm.allowance == 3660
    assert alarm.count == 2, "the last one is due for less than that"


def test_an_alarm_has_the_allowance_of_its_own_slot(app: Celery) -> None:
    """A crontab's intervals differ: ten minutes, then fifty."""
    watch = overdue()
    watch.put("uneven", Entry(task="t", schedule=crontab(minute="0,10", app=app), base=START + 30))
    watch.put("the same", Entry(task="t", schedule=crontab(minute="0,10", app=app), base=START + 700))
    first = watch.judge(START + 600 + 360, MOST)
    assert [(each.entry, each.deadline - START, each.allowance) for each in first] == [("uneven", 960, 360)]
    second = watch.judge(START + 3600 + 120, MOST)
    assert sorted((each.entry, each.deadline - START, each.allowance) for each in second) == [
        ("the same", 3720, 120),
        ("uneven", 3720, 120),
    ]


def test_entries_of_one_crontab_have_its_next_slot_from_wherever_they_begin(app: Celery) -> None:
    watch = overdue(overdue=30.0)
    hourly = crontab(minute="0", app=app)
    for number in (3, 1, 2, 0):
        watch.put(f"e{number}", Entry(task="t", schedule=hourly, base=START + 3600 * number + 1))
    for number in range(4):
        found = watch.judge(START + 3600 * (number + 1) + 30, MOST)
        assert sorted(each.entry for each in found) == [f"e{each}" for each in range(number + 1)]


def test_a_settled_slot_is_not_overdue(app: Celery) -> None:
    watch = overdue()
    watch.put("tidy", every(60, app))
    for minute in range(1, 60):
        watch.settled("tidy", START + 60 * minute)
        assert watch.judge(START + 60 * minute + 59, MOST) == []


def test_each_slot_is_told_once_and_the_ones_after_it_too(app: Celery) -> None:
    watch = overdue()
    watch.put("tidy", every(60, app))
    found = [alarm for second in range(301) for alarm in watch.judge(START + second, MOST)]
    assert told(found) == [("tidy", "not_sent", slot) for slot in (60, 120, 180)]
    assert {each.count for each in found} == {1}


def test_many_slots_in_the_past_are_one_alarm_for_the_last_of_them(app: Celery) -> None:
    watch = overdue()
    watch.put("tidy", every(10, app))
    (alarm,) = watch.judge(START + 100_000, MOST)
    assert alarm.slot == START + 99_930
    assert alarm.count == 9_993


def test_a_leader_that_comes_back_is_not_overdue_for_what_it_leaves_out(app: Celery) -> None:
    """The misfire policy runs the last missed slot only; its state passes all of them."""
    watch = overdue()
    watch.put("tidy", every(30, app))
    assert watch.judge(START + 80, MOST) == []  # a fail-over within the allowance of 63 s
    watch.settled("tidy", START + 60)
    watch.record(sent("tidy", START + 30, outcome="skipped", policy="misfire"))
    watch.record(sent("tidy", START + 60, late=21))
    assert watch.judge(START + 150, MOST) == []


def test_a_removed_entry_is_not_overdue(app: Celery) -> None:
    watch = overdue()
    watch.put("tidy", every(60, app))
    watch.remove("tidy")
    assert watch.judge(START + 1000, MOST) == []
    assert watch.wake == float("inf")


def test_no_slot_of_a_pause_of_many_is_overdue_and_the_first_after_it_is(app: Celery) -> None:
    watch = overdue()
    watch.put("tidy", every(600, app, tags=("night",)))
    watch.put("other", every(600, app))
    watch.pauses["1"] = Pause(id="1", of="tag", value="night", at=START, by="ann", until=START + 1000)
    assert told(watch.judge(START + 730, MOST)) == [("other", "not_sent", 600)]
    assert told(watch.judge(START + 1710, MOST)) == [("other", "not_sent", 1200)]
    assert ("tidy", "not_sent", 1600) in told(watch.judge(START + 1721, MOST))


def test_why_a_slot_could_not_be_sent_is_told(app: Celery) -> None:
    watch = overdue()
    watch.put("tidy", every(60, app))
    watch.record(sent("tidy", START + 60, outcome="failed", error="OperationalError: refused"))
    (alarm,) = watch.judge(START + 126, MOST)
    assert (alarm.reason, alarm.error) == ("failed", "OperationalError: refused")


def test_an_error_of_an_earlier_slot_is_no_reason(app: Celery) -> None:
    watch = overdue()
    watch.put("tidy", every(60, app))
    watch.record(sent("tidy", START + 60, outcome="failed", error="OperationalError: refused"))
    watch.record(sent("tidy", START + 60, late=5))
    watch.settled("tidy", START + 60)
    (alarm,) = watch.judge(START + 186, MOST)
    assert (alarm.slot, alarm.reason, alarm.error) == (START + 120, "not_sent", "")


def test_a_slot_that_the_application_refused_is_overdue_though_its_state_has_passed_it(app: Celery) -> None:
    watch = overdue()
    watch.put("tidy", every(60, app))
    watch.record(sent("tidy", START + 60, outcome="refused", error="ValueError: no"))
    watch.settled("tidy", START + 60)
    (alarm,) = watch.judge(START + 126, MOST)
    assert (alarm.reason, alarm.slot, alarm.error) == ("refused", START + 60, "ValueError: no")


def test_a_slot_left_out_in_doubt_is_settled(app: Celery) -> None:
    watch = overdue()
    watch.put("tidy", every(60, app))
    watch.record(sent("tidy", START + 60, outcome="in_doubt", policy="skip"))
    watch.settled("tidy", START + 60)
    assert watch.judge(START + 180, MOST) == []


def test_a_failed_send_of_an_entry_without_slots_is_told_unless_it_is_sent_after_all() -> None:
    """What another scheduler runs is known by its records alone."""
    watch = overdue()
    watch.record(sent("lost", START, outcome="failed", error="down"))
    watch.record(sent("late", START, outcome="failed", error="down"))
    watch.record(sent("late", START, late=20))
    assert told(watch.judge(START + 60, MOST)) == [("lost", "failed", 0)]


# -- tasks that do not start --


def test_a_task_that_no_worker_starts_is_overdue_if_workers_report(app: Celery) -> None:
    watch = overdue()
    watch.put("tidy", every(600, app))
    watch.record(WorkerRecord(worker="w1", at=START))
    watch.record(sent("tidy", START + 600, late=1))
    watch.settled("tidy", START + 600)
    assert watch.judge(START + 720, MOST) == []
    (alarm,) = watch.judge(START + 721, MOST)
    assert (alarm.kind, alarm.reason, alarm.slot) == ("slot_overdue", "not_started", START + 600)


@pytest.mark.parametrize("policy", ["backfill", "by hand"])
def test_what_no_beat_sent_is_not_overdue(app: Celery, policy: str) -> None:
    """Workers take a thousand slots of a backfill one by one; and one that fails is told to who began it."""
    watch = overdue(reports=True)
    watch.put("tidy", every(600, app))
    watch.settled("tidy", START + 600)
    for outcome in ("sending", "failed", "refused", "sent"):
        watch.record(sent("tidy", START + 600, outcome=outcome, policy=policy, attempt="a"))
    assert watch.judge(START + 1259, MOST) == []


def test_a_slot_that_was_refused_and_backfilled_is_not_overdue(app: Celery) -> None:
    watch = overdue(reports=True)
    watch.put("tidy", every(600, app))
    watch.settled("tidy", START + 600)
    watch.record(sent("tidy", START + 600, outcome="refused"))
    watch.record(sent("tidy", START + 600, policy="backfill", attempt="a"))
    assert watch.judge(START + 1259, MOST) == []


def test_where_no_worker_reports_a_sent_slot_is_done(app: Celery) -> None:
    watch = overdue()
    watch.put("tidy", every(600, app))
    watch.record(sent("tidy", START + 600))
    watch.settled("tidy", START + 600)
    assert watch.judge(START + 1300, MOST) == []


@pytest.mark.parametrize("swapped", [False, True])
def test_a_task_that_started_is_not_overdue_in_whatever_order_the_records_come(app: Celery, *, swapped: bool) -> None:
    watch = overdue()
    watch.put("tidy", every(600, app))
    records = [sent("tidy", START + 600), ran("tidy", START + 600, "started", START + 601)]
    for record in reversed(records) if swapped else records:
        watch.record(record)
    watch.settled("tidy", START + 600)
    assert watch.judge(START + 1300, MOST) == []


def test_an_expired_task_that_a_worker_drops_is_not_overdue(app: Celery) -> None:
    watch = overdue(reports=True)
    watch.put("tidy", every(600, app))
    watch.record(sent("tidy", START + 600))
    watch.settled("tidy", START + 600)
    watch.record(ran("tidy", START + 600, "revoked", START + 660))
    assert watch.judge(START + 1300, MOST) == []


def test_a_countdown_is_no_delay(app: Celery) -> None:
    watch = overdue(reports=True)
    watch.put("tidy", every(600, app, countdown=100.0))
    watch.record(sent("tidy", START + 600))
    watch.settled("tidy", START + 600)
    assert watch.judge(START + 819, MOST) == []
    assert told(watch.judge(START + 820, MOST)) == [("tidy", "not_started", 600)]


def test_a_slot_has_one_alarm_when_it_is_sent_after_it_was_told(app: Celery) -> None:
    watch = overdue(reports=True)
    watch.put("tidy", every(600, app))
    assert told(watch.judge(START + 720, MOST)) == [("tidy", "not_sent", 600)]
    watch.record(sent("tidy", START + 600, late=150))
    watch.settled("tidy", START + 600)
    assert watch.judge(START + 1300, MOST) == []


# -- tasks that do not end --


def test_a_run_is_overdue_once_its_limit_is_over(app: Celery) -> None:
    watch = overdue(max_runtime=50.0)
    watch.put("tidy", every(600, app, max_runtime=20.0))
    watch.record(ran("tidy", START, "started", START + 1))
    watch.record(ran("unknown", START, "started", START + 1))
    assert watch.judge(START + 20, MOST) == []
    (alarm,) = watch.judge(START + 21, MOST)
    assert (alarm.kind, alarm.reason, alarm.worker, alarm.started) == ("run_overdue", "not_finished", "w1", START + 1)
    assert told(watch.judge(START + 51, MOST)) == [("unknown", "not_finished", 0)]
    watch.record(ran("tidy", START, "started", START + 60))  # redelivered: one alarm for the slot
    assert watch.judge(START + 500, MOST) == []


@pytest.mark.parametrize("end", ["succeeded", "failed", "retried", "revoked"])
def test_a_run_that_has_ended_is_not_overdue(app: Celery, end: str) -> None:
    watch = overdue(max_runtime=20.0)
    watch.record(ran("tidy", START, "started", START + 1))
    watch.record(ran("tidy", START, end, START + 10))
    assert watch.judge(START + 100, MOST) == []


def test_without_a_limit_no_run_is_overdue(app: Celery) -> None:
    watch = overdue()
    watch.put("tidy", every(600, app))
    watch.record(ran("tidy", START, "started", START + 1))
    assert watch.wake == START + 720


# -- several watchers, one after another --


def test_what_one_watcher_has_told_the_next_does_not_repeat_and_nothing_is_left_out(app: Celery) -> None:
    records = [sent("queued", START + 60), ran("slow", START, "started", START + 1)]
    found: list[Alarm] = []
    at = float("-inf")
    for begin, end in ((0, 100), (110, 170), (200, 300)):
        watch = overdue(told=at, reports=True, max_runtime=150.0)  # it knows what the topics hold, and `told`
        watch.put("tidy", every(60, app))
        for record in records:
            watch.record(record)
        for second in range(begin, end):
            found += watch.judge(START + second, MOST)
        at = watch.told
    assert sorted(told(found)) == sorted(
        [
            ("queued", "not_started", 60),
            ("slow", "not_finished", 0),
            *(("tidy", "not_sent", slot) for slot in (60, 120, 180)),
        ]
    )


def test_of_too_many_alarms_the_rest_comes_with_the_next_call(app: Celery) -> None:
    watch = overdue()
    for number in range(25):
        watch.put(f"e{number}", every(60, app))
    first = watch.judge(START + 126, 10)
    assert len(first) == 10
    assert watch.told == float("-inf"), "a successor must not take the rest for told"
    rest = [*watch.judge(START + 126, 10), *watch.judge(START + 126, 10)]
    assert len({each.entry for each in first + rest}) == 25
    assert watch.told == START + 126


def test_a_look_at_ten_thousand_entries_costs_what_is_due(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """The heap is asked, not each entry."""
    from celery_neli.alarms import overdue as module

    watch = overdue()
    hourly = schedule(3600, app=app)
    for number in range(10_000):
        watch.put(f"e{number}", Entry(task="t", schedule=hourly, base=START + number))
    looks: list[Any] = []
    real = module.missed
    monkeypatch.setattr(module, "missed", lambda *given: looks.append(given) or real(*given))
    found = [each for second in range(10) for each in watch.judge(START + 3600 + 420 + second, MOST)]
    assert len(found) == len(looks) == 10


# -- the options of an entry --


@pytest.mark.parametrize("name", ["neli_overdue", "neli_max_runtime"])
def test_an_allowance_is_a_number_of_seconds_and_no_part_of_the_message(name: str) -> None:
    for runtime in (True, False):
        for good in (0.5, 60, None):
            assert list(option_mistakes({name: good}, runtime=runtime)) == []
        for bad in (0, -1, "60", True, float("nan"), 1e12):
            (mistake,) = option_mistakes({name: bad}, runtime=runtime)
            assert mistake.startswith(f"options: {name} = ")
        (mistake,) = option_mistakes({f"{name}x": 1}, runtime=runtime)
        assert name in mistake
    assert name in OWN_OPTIONS, "the sender leaves these out"


# -- what the schedule topic says --


class Topic:
    """A schedule topic, and the entries of `beat_schedule` of the process that watches."""

    def __init__(self, app: Celery, *static: str, **options: Any) -> None:
        self.overdue = overdue()
        when = schedule(60, app=app)
        entries = {name: ScheduleEntry(name, "shop.tidy", schedule=when, options=options, app=app) for name in static}
        self.entries = WatchedEntries(app, self.overdue, entries, now=START)

    def state(self, name: str, last: float, *, term: int = 5, at: float = START, **more: Any) -> None:
        self.apply(STATE, name, encode_state(State(last=last, runs=1, epoch=term, **more)), at)

    def define(
        self, name: str, since: float, *, paused: bool = False, static: bool = False, at: float = START, **more: Any
    ) -> None:
        definition = Definition(
            task=None if static else "shop.tidy", schedule=None if static else "60s", paused=paused, since=since,
            static=static, **more,
        )  # fmt: skip
        self.apply(ENTRY, name, encode_definition(definition), at)

    def apply(self, kind: Kind, name: str, value: bytes | None, at: float = START) -> None:
        self.entries.apply(kind, name, value, at)

    def judge(self, after: float) -> list[tuple[str, str, float | None]]:
        return told(self.overdue.judge(START + after, MOST))


def test_where_no_beat_has_ever_led_the_entries_count_from_when_the_watcher_began(app: Celery) -> None:
    topic = Topic(app, "tidy")
    assert topic.judge(125) == []
    assert topic.judge(126) == [("tidy", "not_sent", 60)]


def test_an_entry_that_the_leader_does_not_know_is_not_watched_until_it_does(app: Celery) -> None:
    """This process may be older or newer than the leader."""
    topic = Topic(app, "tidy", "new")
    topic.state("tidy", START + 60)
    assert topic.judge(180) == []
    topic.state("new", START + 120)
    topic.state("tidy", START + 120)
    assert topic.judge(245) == []
    assert sorted(topic.judge(246)) == [("new", "not_sent", 180), ("tidy", "not_sent", 180)]


def test_a_slot_that_waits_for_the_last_task_is_not_overdue(app: Celery) -> None:
    """It is late on purpose. If the leader dies over it, the next slot is."""
    topic = Topic(app, "tidy")
    topic.state("tidy", START + 60, open=True, waits=True, at=START + 120.5)
    assert topic.judge(245) == []
    assert topic.judge(246) == [("tidy", "not_sent", 180)]


def test_a_paused_entry_is_not_overdue_and_after_it_is_resumed_its_next_slot_may_be(app: Celery) -> None:
    topic = Topic(app, "fixed")
    topic.state("fixed", START)
    topic.define("made", START)
    topic.define("made", START, paused=True)
    topic.define("fixed", START, paused=True, static=True)
    assert topic.judge(1000) == []
    topic.define("made", START + 1000)
    topic.define("fixed", START + 1000, static=True)
    assert topic.judge(1125) == []
    assert sorted(topic.judge(1126)) == [("fixed", "not_sent", 1060), ("made", "not_sent", 1060)]


def test_an_entry_whose_pause_has_ended_by_itself_may_be_overdue_with_its_next_slot(app: Celery) -> None:
    topic = Topic(app, "fixed")
    topic.state("fixed", START)
    topic.define("made", START, paused=True, until=START + 1000)
    topic.define("fixed", START, paused=True, static=True, until=START + 1000)
    assert topic.judge(1085) == []
    assert sorted(topic.judge(1126)) == [("fixed", "not_sent", 1060), ("made", "not_sent", 1060)]


def test_an_entry_that_is_marked_as_removed_is_not_overdue(app: Celery) -> None:
    """Also while no beat leads that would delete the mark."""
    topic = Topic(app)
    topic.define("made", START)
    topic.define("made", START, removed=True)
    assert topic.judge(1000) == []


def test_a_removed_definition_is_not_overdue(app: Celery) -> None:
    topic = Topic(app)
    topic.define("made", START)
    topic.apply(ENTRY, "made", None)
    topic.apply(STATE, "made", None)
    assert topic.judge(1000) == []


def test_a_state_of_an_older_term_settles_nothing(app: Celery) -> None:
    topic = Topic(app, "tidy")
    topic.state("tidy", START, term=7)
    topic.state("tidy", START + 600, term=6)
    assert topic.judge(126) == [("tidy", "not_sent", 60)]


def test_a_state_far_ahead_silences_no_alarm(app: Celery) -> None:
    """A forged record, or a leader whose clock was years ahead."""
    topic = Topic(app, "tidy")
    topic.state("tidy", START + 10 * 86_400)
    assert topic.judge(126) == [("tidy", "not_sent", 60)]


def test_a_record_that_cannot_be_read_costs_itself_alone(app: Celery) -> None:
    topic = Topic(app, "tidy")
    topic.state("tidy", START)
    topic.apply(STATE, "tidy", b"\xff")
    topic.apply(ENTRY, "made", b"{}")
    assert topic.judge(126) == [("tidy", "not_sent", 60)]


def test_a_schedule_that_raises_costs_its_entry_alone(app: Celery) -> None:
    errors: list[str] = []
    watch = overdue(on_error=lambda name, error: errors.append(f"{name}: {error}"))
    watch.put("good", every(60, app))
    watch.put("bad", every(60, app))
    bad = schedule(60, app=app)
    watch.put("bad", Entry(task="t", schedule=bad, base=START))
    bad.run_every = None  # as a class of an application may come to
    assert told(watch.judge(START + 126, MOST)) == [("good", "not_sent", 60)]
    assert [each.partition(":")[0] for each in errors] == ["bad"]
    assert told(watch.judge(START + 186, MOST)) == [("good", "not_sent", 120)]
