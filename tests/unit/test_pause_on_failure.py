"""`neli_pause_on_failure`: which failures count, who asks for those before, and what becomes of the entry."""

from __future__ import annotations

import logging
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery

from celery_neli import alarms, hooks, signals
from celery_neli.alarms import pauser
from celery_neli.alarms.entries import WatchedEntries
from celery_neli.alarms.failures import MOST, Failures, Rule
from celery_neli.alarms.overdue import Overdue
from celery_neli.alarms.pauser import Pauser
from celery_neli.config import from_app
from celery_neli.exceptions import NeliError
from celery_neli.history.records import RunRecord
from celery_neli.history.runs import Run
from celery_neli.history.topic import NoHistory
from celery_neli.schedule_topic.codec import ENTRY, Definition, encode_definition
from tests.processes import wait_until
from tests.unit.beats import World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOON = 1_800_000_000.0


def run(number: float, state: str = "failed", *, name: str = "e", by_hand: bool = False, **more: Any) -> RunRecord:
    """The run of the slot that many seconds after noon, which ends a second later."""
    given = {"slot": None if by_hand else NOON + number, "id": f"id {number:g}", "at": NOON + number + 1, **more}
    given.setdefault("error", "broken" if state == "failed" else "")
    return RunRecord(entry=name, task="t", state=state, worker="w", **given)


class Watch:
    """Failures of `e` by a rule, seen by a process that reads the history from `since` on (seconds after noon)."""

    def __init__(self, *states: tuple[float, str] | RunRecord, most: int = 3, since: float = -60.0) -> None:
        self.rule: Rule | None = Rule(most=most)
        self.failures = Failures(since=NOON + since)
        self.add(*states)

    def add(self, *states: tuple[float, str] | RunRecord) -> None:
        for each in states:
            self.failures.record(each if isinstance(each, RunRecord) else run(*each))

    def judge(self) -> list[tuple[int | None, str]]:
        found = self.failures.judge(lambda name: self.rule, NOON + 1e6)
        return [(each.count, each.last.id) for each in found]


def test_so_many_failures_in_a_row_pause_an_entry_that_has_begun_since() -> None:
    watch = Watch((1, "failed"), (2, "failed"), since=-10)
    watch.rule = Rule(most=3, since=NOON)
    assert watch.judge() == []
    watch.add((3, "failed"))
    assert watch.judge() == [(3, "id 3")]
    assert watch.judge() == [], "once"


@pytest.mark.parametrize("state", ["started", "retried", "revoked", "rejected", "ignored"])
def test_what_is_neither_good_nor_bad_is_passed_over(state: str) -> None:
    """A retry is no failure for good, nor is it an end of the row."""
    watch = Watch((0, "succeeded"), (1, "failed"), (2, state), (3, "failed"), (4, state))
    watch.rule = Rule(most=3, since=NOON)
    assert watch.judge() == []
    watch.add((5, "failed"))
    assert watch.judge() == [(3, "id 5")]


def test_a_success_begins_the_count_over() -> None:
    watch = Watch((1, "failed"), (2, "failed"), (3, "succeeded"), (4, "failed"), (5, "failed"))
    assert watch.judge() == []
    watch.add((6, "failed"))
    assert watch.judge() == [(3, "id 6")]


def test_records_may_come_late_and_twice() -> None:
    """Workers write by turns, and Kafka's client may write again; the times in the records decide."""
    watch = Watch((1, "failed"), (3, "failed"), (3, "failed"), (2, "succeeded"), (1, "failed"), (4, "failed"))
    assert watch.judge() == []
    watch.add((5, "failed"))
    assert watch.judge() == [(3, "id 5")]


def test_a_run_that_was_started_again_counts_once() -> None:
    """After a redelivery one slot may fail twice."""
    watch = Watch(*(run(2, at=NOON + at) for at in (3, 4, 5)))
    watch.failures.before("e", [])
    assert watch.judge() == []
    watch.add((6, "failed"), (7, "failed"))
    assert watch.judge() == [(3, "id 7")]


def test_runs_of_slots_before_the_entry_was_resumed_do_not_count() -> None:
    """Not even if they end after that. One by hand counts by its end."""
    watch = Watch((1, "failed"), (2, "failed"), run(9, at=NOON + 20), run(3, by_hand=True))
    watch.rule = Rule(most=3, since=NOON + 10)
    assert watch.judge() == []
    watch.add((11, "failed"), run(12, by_hand=True), (13, "failed"))
    assert watch.judge() == [(3, "id 13")]


def test_what_was_before_is_asked_for_once() -> None:
    """By a process that took over the watch, and sees the last of the failures only."""
    watch = Watch((1, "failed"))
    assert watch.judge() == [(None, "id 1")]
    older = Watch((-2000, "failed"), (-1000, "failed"), (-3000, "succeeded"))
    ends = [each for story in older.failures._stories.values() for each in story.failed.values()]  # noqa: SLF001
    watch.failures.before("e", ends)
    assert watch.judge() == [(3, "id 1")]


def test_what_was_before_may_be_a_success() -> None:
    watch = Watch((1, "failed"), (2, "failed"))
    assert watch.judge() == [(None, "id 2")]
    watch.failures.before("e", [])
    assert watch.judge() == []
    watch.add((3, "failed"))
    assert watch.judge() == [(3, "id 3")]


@pytest.mark.parametrize("how", ["a success was seen", "it was resumed since"])
def test_what_was_before_is_not_asked_for_where_it_does_not_count(how: str) -> None:
    watch = Watch((1, "failed"))
    if how == "it was resumed since":
        watch.rule = Rule(most=3, since=NOON - 59)
        assert watch.judge() == []
    else:
        watch.judge()
        watch.add((2, "succeeded"), (3, "failed"))
        assert watch.judge() == []


def test_an_entry_without_the_option_or_that_is_paused_is_let_be() -> None:
    watch = Watch(*((number, "failed") for number in range(5)))
    watch.rule = None
    assert watch.judge() == []


def test_an_entry_is_paused_by_one_rule_once_and_again_after_it_was_resumed() -> None:
    """Until its definition says that it is paused, further runs may fail."""
    watch = Watch((1, "failed"), most=1)
    assert watch.judge() == [(1, "id 1")]
    assert watch.rule is not None
    watch.failures.paused("e", watch.rule)
    watch.add((2, "failed"))
    assert watch.judge() == []
    watch.rule = Rule(most=1, since=NOON + 5)
    watch.add((6, "failed"))
    assert watch.judge() == [(1, "id 6")]


def test_nothing_is_judged_before_it_is_known_what_the_entry_is() -> None:
    """It may have been resumed in between."""
    watch = Watch((1, "failed"), most=1)
    assert watch.failures.judge(lambda name: watch.rule, NOON + 1.5) == []
    assert watch.failures
    assert len(watch.failures.judge(lambda name: watch.rule, NOON + 2.5)) == 1


def test_memory_is_bounded() -> None:
    watch = Watch((-1, "succeeded"), *((number, "failed") for number in range(10 * MOST)), most=MOST)
    assert watch.judge() == [(MOST, f"id {10 * MOST - 1}")]


# -- of which entries --


def rule_of(definition: Definition | None, **options: Any) -> Rule | None:
    app = Celery("rules", set_as_current=False)
    static = {}
    if options:
        static["e"] = SimpleNamespace(task="t", schedule=None, options=options)
    entries = WatchedEntries(app, Overdue(group="g"), static, now=NOON)
    if definition is not None:
        entries.apply(ENTRY, "e", encode_definition(definition), NOON)
    return entries.rule("e")


def test_entries_of_beat_schedule_and_of_runtime_have_rules() -> None:
    """Unless they are paused, or gone. Which version of a definition the rule is of is known."""
    given = {"task": "t", "schedule": "PT1M", "options": {"neli_pause_on_failure": 3}, "since": 5.0}
    assert rule_of(Definition(**given, version="v")) == Rule(most=3, since=5.0, version="v")
    assert rule_of(Definition(**given, paused=True)) is None
    assert rule_of(Definition(**given, removed=True)) is None
    assert rule_of(Definition(**{**given, "options": {}})) is None
    assert rule_of(None) is None
    pause = Definition(task=None, schedule=None, static=True, since=7.0)
    assert rule_of(None, neli_pause_on_failure=2) == Rule(most=2)
    assert rule_of(pause, neli_pause_on_failure=2) == Rule(most=2, since=7.0)
    assert rule_of(pause) is None
    assert rule_of(Definition(task=None, schedule=None, static=True, paused=True), neli_pause_on_failure=2) is None


def test_a_pause_that_ends_by_itself_leaves_the_rule_for_slots_after_its_end() -> None:
    given = {"task": "t", "schedule": "PT1M", "options": {"neli_pause_on_failure": 3}, "since": 5.0}
    assert rule_of(Definition(**given, paused=True, until=9.0, version="v")) == Rule(most=3, since=9.0, version="v")


# -- what is done --


class Desk:
    """A `Pauser` and what it reads and changes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.app = Celery("pauses", set_as_current=False)
        self.app.conf.neli_group = "g"
        self.failures = Failures(since=NOON - 60)
        self.may = True
        self.runs: list[Run] = []
        self.paused: list[tuple[str, str, str]] = []
        self.errors: list[Exception] = []
        self.asked: list[dict[str, Any]] = []
        self.threads: set[int] = set()
        self.rule = Rule(most=3, version="v")
        monkeypatch.setattr(pauser, "read_runs", self._read)
        monkeypatch.setattr(pauser, "pause_entry", self._pause)
        self.pauser = Pauser(self.app, from_app(self.app, "beat"), self.failures, may=lambda: self.may)

    def _read(self, config: Any, **asked: Any) -> list[Run]:
        self.asked.append(asked)
        if self.errors:
            raise self.errors.pop(0)
        return [each for each in self.runs if asked["only"](each)]

    def _pause(self, app: Any, name: str, *, note: str, version: str) -> None:
        self.threads.add(threading.get_ident())
        if self.errors:
            raise self.errors.pop(0)
        self.paused.append((name, note, version))

    def turn(self) -> None:
        self.pauser.turn(lambda name: self.rule, NOON + 1e12)

    def fail(self, *numbers: int) -> None:
        for number in numbers:
            self.failures.record(run(number))
        self.turn()

    def until(self, condition: Callable[[], Any]) -> None:
        def met() -> Any:
            self.turn()
            return condition()

        wait_until(met, timeout=5, what="it", interval=0.01)


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    made = Desk(monkeypatch)
    yield made
    made.pauser.close()


def test_the_entry_is_paused_with_a_note_and_it_is_told(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """By a log line and a signal; on another thread than that which watches."""
    told: list[Any] = []

    def note(**given: Any) -> None:
        told.append(given)

    signals.entry_paused.connect(note)
    desk.failures.before("e", [])
    desk.fail(1, 2, 3)
    desk.until(lambda: told)
    signals.entry_paused.disconnect(note)
    assert desk.paused == [("e", "paused after 3 failed runs in a row: broken", "v")]
    assert threading.get_ident() not in desk.threads
    assert {key: told[0][key] for key in ("entry", "task", "failures", "error", "slot", "id")} == {
        "entry": "e", "task": "t", "failures": 3, "error": "broken", "slot": NOON + 3, "id": "id 3",
    }  # fmt: skip
    assert "entry paused entry=e failures=3 task=t id=id 3 error='broken'" in caplog.text
    desk.fail(4)
    desk.turn()
    assert len(desk.paused) == 1


def test_a_process_that_took_over_reads_what_was_before(desk: Desk) -> None:
    """Only of the entry that failed, and no more runs than it needs."""
    older = [
        Run(entry="e", slot=NOON - each, id=f"id {-each}", state="failed", finished=NOON - each) for each in (70, 80)
    ]
    desk.runs = [Run(entry="e", slot=NOON - 65, id="r", state="revoked", finished=NOON - 64), *older]
    desk.fail(1)
    desk.until(lambda: desk.paused)
    (asked,) = desk.asked
    assert (asked["name"], asked["limit"], asked["since"]) == ("e", 3, None)


def test_a_process_that_watches_no_more_pauses_nothing(desk: Desk) -> None:
    desk.may = False
    desk.failures.before("e", [])
    desk.fail(1, 2, 3)
    desk.until(lambda: not desk.pauser._under_way)  # noqa: SLF001
    assert desk.paused == []


def test_what_fails_is_tried_again(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Kafka may be away, or somebody changes the entry at the same time; one line says so."""
    monkeypatch.setattr(pauser, "RETRY", 0.05)
    desk.errors = [NeliError("Kafka does not answer"), NoHistory("none"), NeliError("changed"), ValueError("odd")]
    desk.fail(1)
    desk.until(lambda: not desk.errors or len(desk.asked) == 2)
    desk.fail(2, 3)
    desk.until(lambda: desk.paused)
    lines = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert lines[0] == "alarms: entry=e has failed and cannot be paused yet: Kafka does not answer"


def test_a_note_is_one_line_of_limited_length(desk: Desk) -> None:
    """Errors are the texts of others."""
    desk.failures.before("e", [])
    for number in (1, 2, 3):
        desk.failures.record(run(number, error="a\n\x1b[31m" + "b" * 390))
    desk.until(lambda: desk.paused)
    (_, note, _), *_ = desk.paused
    assert note.isprintable()
    assert len(note) <= pauser.MOST_OF_A_NOTE + 1


# -- who takes part in watching --


class FakeWatcher:
    made: list[FakeWatcher]

    def __init__(self, app: Any, leadership: Any, on_alarm: Any, *, alarms: bool = True) -> None:
        self.alarms, self.stopped = alarms, False
        FakeWatcher.made.append(self)

    def start(self) -> None: ...

    def stop(self) -> None:
        self.stopped = True


@pytest.fixture
def watchers(monkeypatch: pytest.MonkeyPatch) -> list[FakeWatcher]:
    from celery_neli.alarms import watcher

    FakeWatcher.made = []
    monkeypatch.setattr(watcher, "Watcher", FakeWatcher)
    return FakeWatcher.made


def started(election: str = "worker", **conf: Any) -> Any:
    app = Celery("watches", set_as_current=False)
    app.conf.update(neli_group="g", neli_alarms=False, **conf)
    return alarms.start(app, SimpleNamespace(election=election))  # type: ignore[arg-type]


PAUSING = {"e": {"task": "t", "schedule": 5.0, "options": {"neli_pause_on_failure": 3}}}


@pytest.mark.parametrize("election", ["beat", "worker"])
def test_without_alarms_a_process_watches_for_failures_if_beat_schedule_wants_it(
    election: str, watchers: list[FakeWatcher]
) -> None:
    part = started(election, beat_schedule=PAUSING)
    assert [each.alarms for each in watchers] == [False]
    part.stop()
    assert watchers[0].stopped


def test_without_alarms_and_without_such_entries_nobody_watches(watchers: list[FakeWatcher]) -> None:
    """Nor without the history, by which failures are counted."""
    assert started(beat_schedule={"e": {"task": "t", "schedule": 5.0}, "odd": None, "worse": {"options": 5}}) is None
    assert started(beat_schedule=PAUSING, neli_history=False) is None
    assert watchers == []


def test_a_beat_without_alarms_watches_from_the_first_runtime_entry_on_that_wants_it(
    watchers: list[FakeWatcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It begins on another thread, once."""
    begun: list[Callable[[], None]] = []
    monkeypatch.setattr(alarms, "spawn", lambda target, *, name: begun.append(target))
    part = started("beat")
    assert watchers == []
    world = World({"other": 50.0})
    world.leader()
    world.put("plain", "PT10S", options={"queue": "q"})
    world.ticks(until=1)
    assert watchers == []
    for name in ("e", "f"):
        world.put(name, "PT10S", options={"neli_pause_on_failure": 3})
    world.ticks(until=2)
    (begin,) = begun
    assert watchers == []
    begin()
    assert [each.alarms for each in watchers] == [False]
    part.stop()
    assert not hooks.pausing


def test_who_raises_alarms_relieves_who_does_not_and_any_other_process_the_beat_that_leads() -> None:
    from celery_neli.alarms.watcher import rank_of

    ranks = [rank_of(quiet=quiet, beat=beat) for quiet in (False, True) for beat in (False, True)]
    assert ranks == [0, 1, 2, 3]
