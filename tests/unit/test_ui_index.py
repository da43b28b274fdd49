"""What the page keeps: the last runs of each entry in little memory, and the schedule."""

from __future__ import annotations

import random
import tracemalloc
from typing import Any

import pytest

from celery_neli.history.records import RunRecord, SlotRecord
from celery_neli.history.runs import Runs
from celery_neli.schedule_topic.codec import Definition, State, encode_definition, encode_state
from celery_neli.schedule_topic.rules import Pause, encode_pause
from celery_neli.ui.run_index import BAD, DOUBT, OK, RUNNING, SENT, SKIPPED, RunIndex, kind_of
from celery_neli.ui.schedule_index import ScheduleIndex
from tests.ui.example import app_of


def slot(entry: str, at: float, **more: Any) -> SlotRecord:
    given = {"task": "t", "outcome": "sent", "at": at + 0.5, "member": "b", "role": "leader", "term": 7, **more}
    return SlotRecord(entry=entry, slot=at, id=f"{entry}/{at:g}", **given)


def task(entry: str, at: float, state: str, **more: Any) -> RunRecord:
    return RunRecord(
        entry=entry, task="t", slot=at, id=f"{entry}/{at:g}", state=state, at=at + 1, worker="w", **more
    )  # fmt: skip


def test_runs_are_kept_as_the_history_tells_them() -> None:
    """Whatever the records say and however they are mixed, what is kept of a run is what the history's own fold has."""
    choice = random.Random(3)
    for _ in range(20):
        records: list[SlotRecord | RunRecord] = []
        for number in range(3):
            at = float(number)
            records.append(slot("a", at, outcome=choice.choice(["sent", "failed", "refused"]), error="no"))
            if choice.random() < 0.5:
                records.append(slot("a", at, outcome="in_doubt", policy=choice.choice(["send", "skip"])))
            for state in ("started", "retried", "succeeded", "failed"):
                if choice.random() < 0.7:
                    runtime = None if state == "started" else 1.5
                    records.append(task("a", at, state, runtime=runtime, retries=choice.randrange(3), error="e"))
        choice.shuffle(records)
        index, whole = RunIndex(), Runs()
        for record in records:
            index.add(record)
            whole.add(record)
        assert [each.as_dict() for each in index.of("a")] == [
            {**each.as_dict(), "first": None} for each in whole.of("a")
        ]


def test_the_newest_runs_of_an_entry_are_kept() -> None:
    """By their slots, in whatever order they come."""
    index = RunIndex(per_entry=5)
    slots = list(range(20))
    random.Random(1).shuffle(slots)
    for each in slots:
        index.add(slot("a", float(each)))
    assert [run.slot for run in index.of("a")] == [19.0, 18.0, 17.0, 16.0, 15.0]
    assert len(index) == 5


def test_what_a_worker_tells_late_joins_its_slot() -> None:
    """A task that ran while many later slots passed is one run, with its beat and its worker."""
    index = RunIndex()
    index.add(slot("a", 0.0, policy="x"))
    index.add(task("a", 0.0, "started"))
    for number in range(1, 30):
        index.add(slot("a", float(number)))
    index.add(task("a", 0.0, "failed", error="late", runtime=30.0))
    last = index.of("a")[-1]
    assert (last.slot, last.outcome, last.member, last.term) == (0.0, "sent", "b", 7)
    assert (last.state, last.worker, last.error, last.started) == ("failed", "w", "late", 1.0)
    assert len(index.of("a")) == 30


@pytest.mark.parametrize(
    ("records", "kind"),
    [
        ([slot("a", 1.0)], SENT),
        ([slot("a", 1.0), task("a", 1.0, "started")], RUNNING),
        ([task("a", 1.0, "succeeded"), slot("a", 1.0)], OK),
        ([slot("a", 1.0), task("a", 1.0, "revoked")], BAD),
        ([slot("a", 1.0, outcome="refused")], BAD),
        ([slot("a", 1.0, outcome="skipped")], SKIPPED),
        ([slot("a", 1.0, outcome="in_doubt", policy="skip")], DOUBT),
        ([slot("a", 1.0, outcome="in_doubt", policy="send"), slot("a", 1.0), task("a", 1.0, "succeeded")], OK),
    ],
)
def test_what_a_run_came_to(records: list[Any], kind: str) -> None:
    """In the page's words: what its worker told counts before what became of its slot."""
    index = RunIndex()
    for each in records:
        index.add(each)
    assert index.kinds("a") == [kind]
    assert index.last_kind("a") == kind_of(index.of("a")[0]) == kind


def test_trouble_is_found_and_ends() -> None:
    """A run that failed needs a look until it is told that it succeeded; one that was in doubt needs it in any case."""
    index = RunIndex()
    index.add(slot("a", 1.0, outcome="failed"))
    index.add(slot("b", 2.0, outcome="in_doubt", policy="send"))
    assert [run.entry for run in index.troubled()] == ["b", "a"]
    assert index.troubled_since(1.5) == 1
    index.add(slot("a", 1.0))
    index.add(slot("b", 2.0))
    assert [run.entry for run in index.troubled()] == ["b"]
    assert [run.entry for run in index.recent(10)] == ["b", "a"]


def test_memory_is_bounded() -> None:
    """Fifty runs of an entry take some ten kilobytes, and entries that nothing was told of lately are forgotten."""
    index = RunIndex(most_entries=100)
    tracemalloc.start()
    for name in range(400):
        for number in range(60):
            index.add(slot(f"entry-{name}", float(number)))
            index.add(task(f"entry-{name}", float(number), "succeeded", runtime=1.0))
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(index) == 100 * 50
    assert index.of("entry-0") == []
    assert size < 100 * 25_000 + 1_500_000


def test_entries_come_and_go() -> None:
    """The topic's records are folded: the latest definition counts, a state of an older term does not."""
    index = ScheduleIndex(app_of(beat_schedule={"static": {"task": "s", "schedule": 5.0}}), clock=lambda: 1_000.0)
    assert index.names() == ["celery.backend_cleanup", "static"]
    made = encode_definition(Definition(task="t", schedule="PT10S", since=900.0))
    index.add("e", "a", made)
    index.add("s", "a", encode_state(State(990.0, 9, 5, 900.0)))
    index.add("s", "a", encode_state(State(950.0, 5, 4, 900.0)))
    found = index.view("a")
    assert found is not None
    assert (found.task, found.last, found.runs, found.next) == ("t", 990.0, 9, 1_000.0)
    due = index.due(found, 3)
    assert due is not None
    assert [each.timestamp() for each in due.times] == [1_000.0, 1_010.0, 1_020.0]
    assert index.names("T") == ["a", "static"]
    index.add("e", "a", encode_definition(Definition(task="u", schedule="PT10S", since=900.0, paused=True)))
    assert index.names("t") == ["static"]
    assert index.names(state="paused") == ["a"]
    assert index.counts() == (3, 1)
    index.add("e", "a", None)
    assert index.view("a") is None
    assert index.names() == ["celery.backend_cleanup", "static"]


def test_a_record_that_cannot_be_read_costs_itself_alone() -> None:
    """It is shown with its problem, and found by its state."""
    index = ScheduleIndex(app_of())
    index.add("e", "broken", b'{"v": 99}')
    index.add("s", "broken", b"\xff")
    index.add("e", "whole", encode_definition(Definition(task="t", schedule="PT10S")))
    assert index.names(state="problem") == ["broken"]
    found = index.view("broken")
    assert found is not None
    assert "cannot be shown" in str(found.problem)
    assert index.names(state="active") == ["celery.backend_cleanup", "whole"]
    index.clear()
    assert index.names() == ["celery.backend_cleanup"]


def test_an_entry_whose_pause_has_ended_by_itself_is_not_among_the_paused() -> None:
    now = [10.0]
    index = ScheduleIndex(app_of(), clock=lambda: now[0])
    index.add("e", "made", encode_definition(Definition(task="t", schedule="PT1M", paused=True, until=20.0)))
    assert "made" in index.names(state="paused")
    now[0] = 20.0
    assert "made" not in index.names(state="paused")
    assert "made" in index.names(state="active")


def test_entries_that_a_pause_of_many_holds_are_among_the_paused() -> None:
    now = [10.0]
    night = {"task": "s", "schedule": 5.0, "options": {"neli_tags": ["night"]}}
    index = ScheduleIndex(app_of(beat_schedule={"static": night}), clock=lambda: now[0])
    for name, options in (("made", {"neli_tags": ["night"]}), ("other", {})):
        index.add("e", name, encode_definition(Definition(task="t", schedule="PT1M", options=options)))
    index.add("p", "1", encode_pause(Pause(id="1", of="tag", value="night", at=0.0, by="ann", until=20.0)))
    assert index.names(state="paused") == ["made", "static"]
    assert "other" in index.names(state="active")
    now[0] = 20.0
    assert index.names(state="paused") == []
