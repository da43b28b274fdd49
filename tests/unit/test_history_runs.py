"""Runs: what the records of several processes say together of a slot, in whatever order they come."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_neli.history.records import RunRecord, SlotRecord
from celery_neli.history.runs import Run, Runs

SLOT = 1000.0


def slot(outcome: str, at: float, **more: Any) -> SlotRecord:
    given = {"entry": "e", "task": "t", "slot": SLOT, "id": "x", "member": "a", "role": "leader", "term": 7, **more}
    return SlotRecord(outcome=outcome, at=at, **given)


def task(state: str, at: float, **more: Any) -> RunRecord:
    given = {"entry": "e", "task": "t", "slot": SLOT, "id": "x", "worker": "w", **more}
    return RunRecord(state=state, at=at, **given)


def fold(*records: SlotRecord | RunRecord) -> Run:
    """Return the one run of these records, which must be the same in every order, and if some come twice."""
    found = []
    for seed in range(20):
        shuffled = [*records, *random.Random(seed).choices(records, k=seed % 3)]
        random.Random(seed).shuffle(shuffled)
        runs = Runs()
        for each in shuffled:
            runs.add(each)
        (run,) = runs
        assert runs.of("e") == [run]
        found.append(run)
    assert len(set(found)) == 1, set(found)
    return found[0]


def test_a_slot_that_was_sent_and_whose_task_succeeded() -> None:
    """The beat says when it was sent, the worker how it went."""
    run = fold(slot("sent", 1000.3), task("started", 1000.4), task("succeeded", 1002.4, runtime=1.9))
    assert (run.outcome, run.late, run.state, run.runtime) == ("sent", pytest.approx(0.3), "succeeded", 1.9)
    assert (run.started, run.finished, run.term, run.member, run.worker) == (1000.4, 1002.4, 7, "a", "w")
    assert not run.failed


def test_retries_of_sending_are_counted_and_what_was_sent_stays_sent() -> None:
    """A slot that failed twice and was sent then is sent, at the third attempt; its error is over."""
    run = fold(slot("failed", 1001.0, error="no"), slot("failed", 1002.0, error="no"), slot("sent", 1004.0))
    assert (run.outcome, run.attempts, run.late, run.error, run.failed) == ("sent", 3, 4.0, "", False)


def test_a_slot_that_fails_still_shows_the_last_error() -> None:
    """Of several failures the last one counts."""
    run = fold(slot("failed", 1001.0, error="first"), slot("failed", 1002.0, error="last"))
    assert (run.outcome, run.attempts, run.error, run.failed, run.late) == ("failed", 2, "last", True, None)


def test_a_slot_in_doubt_that_was_sent_again_was_first_sent_by_the_first() -> None:
    """The first leader sent it, crashed, and the second sent it again: it ran late by the first, in two attempts."""
    run = fold(
        slot("sent", 1000.1, member="a", term=7),
        slot("in_doubt", 1005.0, policy="send", member="b", term=9),
        slot("sent", 1005.1, member="b", term=9),
    )
    assert (run.outcome, run.in_doubt, run.attempts) == ("sent", "send", 2)
    assert (run.member, run.term, run.late) == ("a", 7, pytest.approx(0.1))


def test_a_slot_in_doubt_that_is_left_out_is_in_doubt() -> None:
    """Unless the first leader told that it was sent."""
    left_out = slot("in_doubt", 1005.0, policy="skip", count=3, first=990.0, member="b")
    run = fold(left_out)
    assert (run.outcome, run.in_doubt, run.count, run.first, run.failed) == ("in_doubt", "skip", 3, 990.0, True)
    assert fold(left_out, slot("sent", 1000.1)).outcome == "sent"
    assert not fold(left_out, task("succeeded", 1000.5)).failed


def test_a_range_that_the_misfire_policy_left_out_is_one_run() -> None:
    """It has its count and its first slot, and leaves the slot that ran alone."""
    runs = Runs()
    runs.add(slot("skipped", 1300.0, policy="misfire", slot=1240.0, id="last", first=1060.0, count=4))
    runs.add(slot("sent", 1300.1, slot=1300.0, id="now"))
    ran, left_out = runs
    assert (ran.slot, ran.outcome) == (1300.0, "sent")
    assert (left_out.slot, left_out.first, left_out.count, left_out.policy) == (1240.0, 1060.0, 4, "misfire")
    assert left_out.failed


def test_a_task_that_was_retried_runs_again() -> None:
    """The last that a worker told counts, with the start that belongs to it."""
    begun = (task("started", 1000.5), task("retried", 1001.0, error="again", runtime=0.5))
    again = fold(slot("sent", 1000.1), *begun, task("started", 1011.0, retries=1, worker="v"))
    assert (again.state, again.started, again.finished, again.runtime, again.retries) == (
        "started",
        1011.0,
        None,
        None,
        1,
    )
    assert (again.error, again.worker) == ("", "v")
    ended = fold(*begun, task("started", 1011.0, retries=1), task("failed", 1012.0, retries=1, error="ValueError: x"))
    assert (ended.state, ended.error, ended.failed) == ("failed", "ValueError: x", True)


def test_an_end_at_the_time_of_the_start_is_the_end() -> None:
    """A clock of few digits gives both the same time."""
    assert fold(task("started", 1001.0), task("succeeded", 1001.0)).state == "succeeded"


def test_a_task_of_which_only_the_worker_told_has_no_outcome() -> None:
    """The beat's record may be lost, or it was run by hand."""
    run = fold(task("succeeded", 1001.0, slot=None))
    assert (run.outcome, run.late, run.slot, run.when, run.failed) == (None, None, None, 1001.0, False)


def test_a_beat_that_knows_no_id_and_a_worker_are_joined_by_the_slot() -> None:
    """A beat with a wrapped scheduler does not know the task's id."""
    run = fold(slot("sent", 1000.1, id=None), task("started", 1000.2), task("succeeded", 1000.4))
    assert (run.id, run.outcome, run.state) == ("x", "sent", "succeeded")


def test_a_beat_that_knows_no_slot_and_a_worker_are_joined_by_the_id() -> None:
    """A schedule of one's own may have no slots; the message has a time all the same."""
    run = fold(slot("sent", 1000.1, slot=None), task("succeeded", 1000.4))
    assert (run.slot, run.outcome, run.state) == (SLOT, "sent", "succeeded")


def test_two_messages_of_one_slot_are_two_runs() -> None:
    """They have different ids."""
    runs = Runs()
    for each in (task("succeeded", 1001.0, id="x"), task("succeeded", 1002.0, id="y")):
        runs.add(each)
    assert {run.id for run in runs} == {"x", "y"}


def test_the_newest_runs_of_an_entry_are_kept() -> None:
    """However they come; those of another entry are not touched."""
    slots = list(range(20))
    random.Random(5).shuffle(slots)
    runs = Runs(most=4)
    runs.add(slot("sent", 1.0, entry="other", slot=1.0, id="o"))
    for each in slots:
        runs.add(slot("sent", each + 0.5, slot=float(each), id=str(each)))
    assert [run.slot for run in runs.of("e")] == [19.0, 18.0, 17.0, 16.0]
    assert runs.entries() == ["other", "e"]
    assert len(runs) == 5
    runs.forget(18.0)
    assert [run.slot for run in runs] == [19.0, 18.0]
    assert runs.of("other") == []


def test_a_run_that_was_dropped_may_come_again() -> None:
    """Nothing of it is left behind by which a later record would be joined to it."""
    runs = Runs(most=1)
    runs.add(slot("sent", 1.5, slot=1.0, id="1"))
    runs.add(slot("sent", 2.5, slot=2.0, id="2"))
    assert runs.add(task("succeeded", 2.9, slot=1.0, id="1")).outcome is None
    assert [run.id for run in runs] == ["2"]


records = st.builds(
    slot,
    st.sampled_from(["sent", "failed", "refused", "in_doubt", "skipped"]),
    st.integers(1000, 1010).map(float),
    policy=st.sampled_from(["send", "skip"]),
    member=st.sampled_from("ab"),
) | st.builds(
    task,
    st.sampled_from(["started", "succeeded", "failed", "retried", "revoked", "rejected", "ignored"]),
    st.integers(1000, 1010).map(float),
    worker=st.sampled_from("vw"),
)


@given(st.lists(records, min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_the_order_of_records_does_not_matter(given: list[SlotRecord | RunRecord], rnd: random.Random) -> None:
    """In any order, and with some of them twice, the same run comes out."""

    def outcome(order: list[SlotRecord | RunRecord]) -> list[Run]:
        runs = Runs()
        for each in order:
            runs.add(each)
        return list(runs)

    shuffled = [*given, *rnd.choices(given, k=2)]
    rnd.shuffle(shuffled)
    assert outcome(shuffled) == outcome(given)
    assert len(outcome(given)) == 1


def test_a_run_as_plain_values() -> None:
    """For JSON: all that is known, and how late it was."""
    run = fold(slot("sent", 1000.5))
    assert run.as_dict() | {"late": 0.5, "entry": "e", "state": None} == run.as_dict()
    assert replace(run, outcome="failed").as_dict()["late"] is None
