"""The judge of failovers finds what it is there to find."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest

from tests.failover.judge import Doubt, Message, Outage, Slot, Verdict, judge
from tests.failover.logs import doubts_in

if TYPE_CHECKING:
    from collections.abc import Iterable

START = datetime(2025, 3, 30, 0, 59, 57, 123456, tzinfo=timezone.utc)
PERIODS = {"one": timedelta(seconds=1), "minutely": timedelta(minutes=1)}


def at(number: float) -> datetime:
    return START + timedelta(seconds=number)


def sent(*numbers: float, entry: str = "one", term: int = 5, **fields: Any) -> list[Message]:
    return [
        Message(**{"entry": entry, "slot": at(each), "id": f"id-{each}", "term": term, **fields}) for each in numbers
    ]


def doubt(first: float, last: float, *, policy: str = "send", entry: str = "one", count: int | None = None) -> Doubt:
    count = round(last - first) + 1 if count is None else count
    return Doubt(entry=entry, count=count, first=at(first), last=at(last), policy=policy)


def judged(messages: Iterable[Message], *doubts: Doubt, outages: Iterable[Outage] = ()) -> Verdict:
    return judge(messages, PERIODS, doubts=doubts, outages=outages)


def test_a_history_without_a_fault_has_none() -> None:
    """Each slot once, in whatever order they arrive, over a change of terms."""
    verdict = judged([*sent(0, 2, 1), *sent(4, 3, term=9), *sent(0, 60, 120, entry="minutely", term=9)])
    assert verdict.faults == {}
    assert verdict.slots == 5 + 3


@pytest.mark.parametrize(
    ("numbers", "missing"), [((0, 1, 3), [2]), ((0, 4), [1, 2, 3]), ((3, 0, 1), [2]), ((7,), []), ((0, 1), [])]
)
def test_a_slot_between_the_first_and_the_last_is_missing(numbers: tuple[int, ...], missing: list[int]) -> None:
    """However they arrive."""
    assert judged(sent(*numbers)).faults.get("missing", []) == [Slot("one", at(each)) for each in missing]


def test_a_minute_is_missing() -> None:
    """Other periods, too; an entry's gap is not filled by another entry."""
    verdict = judged([*sent(*range(121)), *sent(0, 120, entry="minutely")])
    assert verdict.faults == {"missing": [Slot("minutely", at(60))]}


def test_a_slot_with_two_ids_is_found_though_it_was_in_doubt() -> None:
    """Nobody could tell that the two are one."""
    verdict = judged([*sent(0, 1, 2), *sent(1, term=9, id="another")], doubt(1, 1))
    assert list(verdict.faults) == ["two_ids"]
    assert verdict.two_ids == [Slot("one", at(1))]


@pytest.mark.parametrize(
    ("told", "doubled"),
    [
        ([doubt(1, 1)], True),
        ([doubt(0, 3)], True),
        ([], False),
        ([doubt(2, 3)], False),
        ([doubt(0, 0)], False),
        ([doubt(1, 1, policy="skip")], False),
        ([doubt(0, 60, entry="minutely", count=2)], False),
    ],
)
def test_the_same_id_twice_is_right_only_in_doubt(told: list[Doubt], doubled: bool) -> None:
    """Told of this slot of this entry, by one who meant to send it again."""
    verdict = judged([*sent(0, 1, 2), *sent(1, term=9)], *told)
    assert verdict.doubled == [Slot("one", at(1))] * doubled
    assert verdict.faults == ({} if doubled else {"unexplained": [Slot("one", at(1))]})


def test_each_time_more_needs_a_doubt_of_its_own() -> None:
    """Three leaders, one doubt: one of the three is unexplained."""
    verdict = judged([*sent(0, 1, 2), *sent(1, term=9), *sent(1, term=12)], doubt(1, 1))
    assert (verdict.doubled, verdict.unexplained) == ([Slot("one", at(1))], [Slot("one", at(1))])
    assert judged([*sent(0, 1, 2), *sent(1, term=9), *sent(1, term=12)], doubt(1, 1), doubt(1, 2)).faults == {}


def test_one_leader_sends_twice_only_over_an_outage_of_the_broker() -> None:
    """A doubt is no reason: it is another leader's."""
    twice = [*sent(0, 1, 2), *sent(1)]
    assert judged(twice, doubt(1, 1)).unexplained == [Slot("one", at(1))]
    during, after = Outage(start=at(0.5), end=at(3)), Outage(start=at(1.5), end=at(3))
    assert judged(twice, outages=[during]).retried == [Slot("one", at(1))]
    assert judged(twice, outages=[during]).faults == {}
    assert judged(twice, outages=[after]).unexplained == [Slot("one", at(1))]


def test_an_outage_excuses_one_message_a_connection() -> None:
    """Each connection sends one at a time."""
    twice = [*sent(0, 1, 2, 3), *sent(1, 2)]
    assert judged(twice, outages=[Outage(start=at(0), end=at(3))]).unexplained == [Slot("one", at(2))]
    assert judged(twice, outages=[Outage(start=at(0), end=at(3), connections=2)]).faults == {}


def test_what_was_skipped_must_have_been_told() -> None:
    """By the entry and the slots."""
    verdict = judged(sent(0, 4), doubt(1, 2, policy="skip"), doubt(3, 3, policy="send"))
    assert verdict.skipped == [Slot("one", at(1)), Slot("one", at(2))]
    assert verdict.missing == [Slot("one", at(3))]
    assert verdict.in_doubt == 3


def test_a_doubt_must_count_its_slots() -> None:
    """All between the first and the last."""
    told = doubt(1, 3, count=2)
    assert judged(sent(0, 1, 2, 3), told).faults == {"miscounted": [told]}


def test_a_slot_beside_the_grid_is_found() -> None:
    """An interval that began anew: its slots are other ones."""
    assert judged(sent(0, 1, 2, 2.5)).faults == {"off_grid": [Slot("one", at(2.5))]}


def test_late_arrivals_of_an_earlier_term_are_counted() -> None:
    """They are no fault."""
    verdict = judged([*sent(0), *sent(2, term=9), *sent(1)])
    assert (verdict.stale, verdict.faults) == (1, {})


def test_a_beats_log_is_read() -> None:
    """One line an entry; a time with or without a T; other lines, and broken ones at the end, are not read."""
    log = f"""[2025-03-30 01:00:00,001: WARNING/MainProcess] slots in doubt entry=one count=2 first={at(1)} \
last={at(2)} policy=send
[2025-03-30 01:00:00,002: INFO/MainProcess] leadership acquired role=leader term=9
[2025-03-30 01:00:00,003: WARNING/MainProcess] slots in doubt entry=a b count=1 first={at(7).isoformat()} \
last={at(7).isoformat()} policy=skip
[2025-03-30 01:00:00,004: WARNING/MainProcess] slots in doubt entry=one count=2 first=20"""
    assert doubts_in(log, beat="b1") == [
        Doubt(entry="one", count=2, first=at(1), last=at(2), policy="send", beat="b1"),
        Doubt(entry="a b", count=1, first=at(7), last=at(7), policy="skip", beat="b1"),
    ]
