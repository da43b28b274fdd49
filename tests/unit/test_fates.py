"""What became of a slot by the order of the log: of several attempts of backfills one counts, for every reader."""

from __future__ import annotations

from typing import Any

import pytest

from celery_neli.history.fates import Fate, Fates
from celery_neli.history.records import RunRecord, SlotRecord, decode, encode
from celery_neli.history.runs import Runs


def told(outcome: str, attempt: str = "", **more: Any) -> SlotRecord:
    policy = "backfill" if attempt else ""
    given = {"entry": "e", "task": "t", "slot": 60.0, "at": 100.0, "member": attempt or "beat", "policy": policy}
    return SlotRecord(outcome=outcome, attempt=attempt, **{**given, **more})


def ran(state: str = "succeeded") -> RunRecord:
    return RunRecord(entry="e", task="t", slot=60.0, id="i", state=state, at=101.0, worker="w")


def fate_of(*records: SlotRecord | RunRecord) -> Fate:
    fates = Fates("e", 0.0, 120.0)
    for each in records:
        fates.add(each)
    return fates.of(60.0)


def test_the_first_attempt_in_the_log_counts() -> None:
    """The second one is void, also after the first has told what came of it."""
    first, second = told("sending", "a"), told("sending", "b")
    fate = fate_of(first, second)
    assert (fate.won, fate.open) == ({"a"}, "a")
    fate = fate_of(first, second, told("sent", "a"))
    assert fate.won == {"a"}
    assert fate.sent is not None
    assert fate.sent.member == "a"


@pytest.mark.parametrize("before", [told("sent"), ran("started"), told("sent", "x")])
def test_an_attempt_behind_a_run_is_void(before: SlotRecord | RunRecord) -> None:
    """Whether a beat, a worker or another backfill told of it."""
    assert fate_of(before, told("sending", "a")).won == set()


@pytest.mark.parametrize("before", [told("failed"), told("skipped", policy="misfire"), told("refused")])
def test_what_was_not_sent_may_be_attempted(before: SlotRecord) -> None:
    """A leader told that it did not send it."""
    assert fate_of(before, told("sending", "a")).won == {"a"}


def test_a_failed_attempt_makes_way() -> None:
    """It is known that its message did not leave."""
    assert fate_of(told("sending", "a"), told("failed", "a"), told("sending", "b")).won == {"a", "b"}


def test_an_attempt_in_doubt_is_replaced_by_one_that_names_it() -> None:
    """And by one only, however many try."""
    fate = fate_of(told("sending", "a"), told("sending", "b", over="a"), told("sending", "c", over="a"))
    assert (fate.won, fate.open) == ({"a", "b"}, "b")
    # What the void one says of itself changes nothing.
    fate = fate_of(told("sending", "a"), told("sending", "b"), told("skipped", "b"))
    assert fate.open == "a"


def test_slots_that_a_leader_found_in_doubt_together_are_in_doubt() -> None:
    """One record stands for all of them."""
    fates = Fates("e", 0.0, 200.0)
    fates.add(told("in_doubt", slot=180.0, first=60.0, count=3, policy="skip"))
    assert [fates.doubt(each) is not None for each in (0.0, 60.0, 120.0, 180.0, 190.0)] == [0, 1, 1, 1, 0]


def test_records_of_other_entries_and_times_are_no_part_of_it() -> None:
    """Neither are runs without a slot."""
    fates = Fates("e", 50.0, 120.0)
    for each in (told("sent", entry="f"), told("sent", slot=40.0), told("sent", slot=None)):
        fates.add(each)
    assert fates.of(60.0).sent is fates.of(40.0).sent is None


def test_the_new_fields_are_written_and_read() -> None:
    """And left out where they say nothing, so that records of beats stay as they were."""
    record = told("sending", "a", over="b")
    assert decode(encode(record)) == record
    assert b"attempt" not in encode(told("sent"))
    assert b"over" not in encode(told("sent"))


def outcome(*records: SlotRecord | RunRecord) -> str | None:
    found = set()
    for order in (records, records[::-1]):
        runs = Runs()
        for each in order:
            runs.add(each)
        found.add(runs.of("e")[0].outcome)
    (one,) = found
    return one


def test_the_history_shows_an_attempt_that_did_not_end() -> None:
    """It says more than that a policy left the slot out, and less than that it was sent; in any order of records."""
    skipped = told("skipped", policy="misfire")
    assert outcome(skipped, told("sending", "a")) == "sending"
    assert outcome(skipped, told("sending", "a"), told("sent", "a")) == "sent"
    assert outcome(skipped, told("sending", "a"), told("refused", "a")) == "refused"
    assert outcome(told("sending", "a"), told("failed", "a")) == "failed"
    assert outcome(told("sending", "a"), told("sending", "b"), told("skipped", "b"), told("sent", "a")) == "sent"
    assert outcome(told("sending", "a"), told("sending", "b"), told("skipped", "b"), told("failed", "a")) == "failed"
