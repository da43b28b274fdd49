"""The demo's judge: a verdict counts only if the judge can find fault."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from example_project.display import report
from example_project.receipts import Ledger, Notice, Receipt, append
from example_project.summary import Stop, judge

if TYPE_CHECKING:
    from pathlib import Path

T0 = 1_800_000_000
ids = itertools.count()


def receipt(term: int | None, slot: float, *, sent: float | None = None, pid: int | None = None) -> Receipt:
    """A message of `term` for the slot T0 + `slot`, sent then, by one process per term."""
    moment = T0 + (slot if sent is None else sent)
    return Receipt(
        task_id=str(next(ids)),
        term=term,
        slot=T0 + slot,
        entry="every-second",
        sent=moment,
        sender=f"gen{pid or 1000 + (term or 0)}@host",
        received=moment + 0.1,
    )


def run(term: int, slots: range) -> list[Receipt]:
    return [receipt(term, slot) for slot in slots]


def test_one_leader_after_the_other() -> None:
    """Terms that follow each other, with every slot sent once: nothing to find fault with."""
    summary = judge([*run(3, range(5)), *run(9, range(5, 10))], [], until=T0 + 9.5)
    assert summary.exit_status == 0
    assert summary.terms == (3, 9)
    assert (summary.due, summary.sent, summary.doubled, summary.repeated) == (10, 10, 0, 0)
    assert (summary.missed_in_handovers, summary.missed_otherwise) == (0, 0)
    assert "Never did two lead at once" in report(summary)


def test_two_terms_at_once() -> None:
    """An old leader that still sends after the next one has begun: exit status 1, and it is said how long."""
    old, new = run(3, range(10)), [receipt(9, slot, sent=slot + 0.5) for slot in range(5, 15)]
    summary = judge(sorted([*old, *new], key=lambda each: each.received), [], until=T0 + 14.9)
    assert summary.exit_status == 1
    (overlap,) = summary.overlaps
    assert (overlap.a, overlap.b, overlap.seconds) == (3, 9, 3.5)
    assert (summary.missed_in_handovers, summary.missed_otherwise) == (0, 0)
    assert "TWO LED AT ONCE: terms 3 and 9" in report(summary)
    assert summary.as_dict()["two_led_at_once"] is True
    assert summary.as_dict()["ok"] is False


def test_one_message_of_a_woken_leader() -> None:
    """A woken leader that sends one message in its old term is found out, though the next one was quiet by then."""
    summary = judge([*run(3, range(5)), *run(9, range(9, 12)), receipt(3, 14)], [], until=T0 + 15)
    assert (summary.exit_status, summary.late) == (1, 0)
    assert [(each.a, each.b) for each in summary.overlaps] == [(3, 9)]


def test_the_order_of_arrival_does_not_hide_an_overlap() -> None:
    """Receipts in the order of their terms, and yet sent at the same time: an overlap."""
    summary = judge([*run(3, range(6)), *run(9, range(4, 8))], [], until=T0 + 8)
    assert summary.exit_status == 1


def test_two_processes_in_one_term() -> None:
    """A term belongs to one process: messages of two are an overlap, whenever they were sent."""
    summary = judge([receipt(3, 0), receipt(3, 1), receipt(3, 2, pid=4711)], [], until=T0 + 2.5)
    assert summary.exit_status == 1
    assert [(each.a, each.b) for each in summary.overlaps] == [(3, 3)]


def test_a_message_overtaken_on_its_way() -> None:
    """A message that was sent in time and arrived after the next term's first is counted, and is no overlap."""
    before, overtaken, after = run(3, range(4)), receipt(3, 4), run(9, range(9, 12))
    summary = judge([*before, after[0], overtaken, *after[1:]], [], until=T0 + 11.5)
    assert (summary.exit_status, summary.late) == (0, 1)


@pytest.mark.parametrize("receipts", [[], [receipt(None, 1)], [receipt(3, 0), receipt(None, 1)]])
def test_messages_without_a_term(receipts: list[Receipt]) -> None:
    """Without messages, or with one that names no term, nothing is proved: exit status 2."""
    summary = judge(receipts, [], until=T0 + 5)
    assert summary.exit_status == 2
    assert "Not to be judged" in report(summary)


def test_missed_slots() -> None:
    """Slots without a leader are what a handover costs; one missed within a term, or at a silent end, is not."""
    first, second = run(3, range(5)), [receipt(9, 5, sent=8.6), *run(9, range(9, 15))]
    del second[3]  # slot 11
    summary = judge([*first, *second], [], until=T0 + 17.2)
    assert (summary.due, summary.sent) == (18, 11)
    assert summary.missed_in_handovers == 3  # 6, 7, 8
    assert summary.missed_otherwise == 4  # 11, 15, 16, 17


def test_doubled_slots() -> None:
    """A slot sent with two ids, one that the next leader repeats with its id, and a redelivery are told apart."""
    first = run(3, range(4))
    repeat = replace(receipt(9, 3, sent=4.0), task_id=first[3].task_id)
    summary = judge([*first, receipt(3, 2), repeat, *run(9, range(4, 6)), repeat], [], until=T0 + 5)
    assert (summary.doubled, summary.repeated, summary.redelivered) == (1, 1, 1)


def test_each_entry_has_slots_of_its_own() -> None:
    """An entry that began later owes nothing before; what one has missed is not made up for by the other."""
    late = [replace(receipt(3, slot), entry="added") for slot in (3, 5)]
    summary = judge([*run(3, range(6)), *late], [], until=T0 + 5.5)
    assert (summary.due, summary.sent, summary.missed_otherwise, summary.doubled) == (9, 8, 1, 0)


def test_hand_over_times() -> None:
    """From the signal to the sending of the next term's first message; what leaders were told is kept apart."""
    stops = [Stop(kind="SIGKILL", at=T0 + 4.5, term=3), Stop(kind="SIGTERM", at=T0 + 12.25, term=9)]
    receipts = [*run(3, range(5)), *run(9, range(9, 13)), *run(12, range(13, 16))]
    notices = {9: Notice(term=9, pid=1, at=T0 + 8.75)}
    summary = judge(receipts, stops, until=T0 + 15.5, notices=notices)
    assert summary.as_dict()["handovers"] == {"SIGTERM": [0.75], "SIGKILL": [4.5], "SIGSTOP": []}
    assert summary.as_dict()["told_to_lead"] == {"SIGTERM": [None], "SIGKILL": [4.25], "SIGSTOP": []}
    assert summary.unasked == 0


def test_a_hand_over_that_nobody_asked_for() -> None:
    """A change of leaders before the stop is not taken for the stop's effect, and is counted."""
    summary = judge(
        [*run(3, range(5)), *run(9, range(5, 9))], [Stop(kind="SIGTERM", at=T0 + 6.5, term=3)], until=T0 + 9
    )
    assert summary.as_dict()["handovers"]["SIGTERM"] == []
    assert summary.unasked == 1


def test_the_ledger_follows_the_file(tmp_path: Path) -> None:
    """Lines are read as they are written; one that is half written waits, and receipts keep their order."""
    file = tmp_path / "receipts.jsonl"
    ledger = Ledger(file)
    assert ledger.read() == []
    first, second = run(3, range(2))
    append(file, first)
    append(file, Notice(term=3, pid=77, at=1.5))
    line = json.dumps({"kind": "Receipt"})
    with file.open("a") as half:
        half.write(line[:7])
    assert ledger.read() == [first]
    assert ledger.notices[3].pid == 77
    with file.open("r+") as whole:
        whole.seek(file.stat().st_size - 7)
        whole.truncate()
    append(file, second)
    assert ledger.read() == [second]
    assert ledger.receipts == [first, second]
    assert first.pid == 1003
