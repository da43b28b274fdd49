"""The marks of a term: what is claimed, what is done, and what they tell a successor."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_neli.beat.replicated.claims import ASTRAY, FOREVER, Claims, Offer, Watermarks
from celery_neli.election.role_state import Payload

T0 = 1_700_000_000.0
INTERVAL = 0.5


class Term:
    """The claims of term 7, with a log that gives back what was offered when the test says so."""

    def __init__(self, inherited: Watermarks | None = None, *, now: float = T0, resolved: bool = True) -> None:
        self.told = Payload(term=7, data=None if inherited is None else inherited.as_data(), own=True, known=True)
        self.claims = Claims(term=7, interval=INTERVAL, inherited=inherited, now=now)
        self.offers: list[Offer] = []
        if resolved:
            self.claims.resolve()

    def turn(self, now: float, next_due: float | None = None, unsettled: float | None = None) -> Offer | None:
        offer = self.claims.turn(now, next_due, next_due if unsettled is None else unsettled, self.told)
        if offer is not None:
            self.offers.append(offer)
        return offer

    def read_back(self) -> None:
        self.told = Payload(term=7, data=self.offers[-1].marks.as_data(), own=True, known=True)


def test_a_slot_is_covered_once_a_record_of_the_term_that_claims_it_was_read_back() -> None:
    """Not when it was offered, nor by another term's record."""
    term = Term()
    offer = term.turn(T0, T0 + 0.2)
    assert offer is not None
    assert offer.hurry
    assert offer.marks.claimed == T0 + INTERVAL
    assert not term.claims.covers(T0 + 0.2)
    for told in (Payload(7, offer.marks.as_data(), own=False), Payload(6, offer.marks.as_data(), own=True)):
        term.told = told
        term.turn(T0 + 0.1, T0 + 0.2)
        assert not term.claims.covers(T0 + 0.2)
    term.read_back()
    term.turn(T0 + 0.1, T0 + 0.2)
    assert term.claims.covers(T0 + 0.2)
    assert not term.claims.covers(T0 + INTERVAL + 0.1)


def test_slots_in_doubt_are_covered_by_the_claim_that_repeats_them() -> None:
    """The claim of the term is an own record."""
    term = Term(Watermarks(T0 - 1, T0 - 3))
    term.turn(T0, T0 - 2)
    assert term.claims.covers(T0 - 2)
    assert not term.claims.covers(T0 - 0.5)


def test_what_a_clean_release_tells_to_be_untried_is_covered_by_a_claim_without_those_words_only() -> None:
    """Whoever leads next would take a slot that was published for one that nobody has tried."""
    term = Term(Watermarks(T0, T0, attempted=T0 - 9))
    offer = term.turn(T0, T0 - 2)
    assert not term.claims.covers(T0 - 2)
    assert offer == Offer(Watermarks(T0 + INTERVAL, T0), hurry=True)
    term.read_back()
    term.turn(T0, T0 - 2)
    assert term.claims.covers(T0 - 2)


def test_slots_are_claimed_half_an_interval_before_they_are_due() -> None:
    """So that a slot need not wait for Kafka; who sleeps is told when to come back."""
    term = Term()
    due = T0 + 10
    term.turn(T0, due)
    assert [offer.hurry for offer in term.offers] == [False], "what is done is told, without hurry"
    assert term.claims.wake(due) == due - INTERVAL / 2
    offer = term.turn(due - INTERVAL / 2, due)
    assert offer is not None
    assert offer.hurry
    assert offer.marks.claimed == due + INTERVAL / 2
    assert term.claims.wake(due + 9) == due + 9 - INTERVAL / 2
    term.read_back()
    term.turn(due - 0.1, due)
    assert term.claims.wake(due) == FOREVER
    term.turn(due + 0.01, due)
    assert sum(offer.hurry for offer in term.offers) == 1
    assert term.claims.wake(None) == FOREVER


def test_dense_slots_take_two_hurried_records_in_an_interval_and_each_is_claimed_in_time() -> None:
    """A hundred slots a second, a tenth of a second until a record is read back."""
    term, now, due, late = Term(), T0, T0 + 0.01, 0.0
    arrives: list[tuple[float, Offer]] = []
    while now < T0 + 20:
        while arrives and arrives[0][0] <= now:
            term.told = Payload(7, arrives.pop(0)[1].marks.as_data(), own=True)
        offer = term.turn(now, due)
        if offer is not None:
            arrives.append((now + 0.1, offer))
        while due <= now and term.claims.covers(due):
            late = max(late, now - due) if now > T0 + 1 else 0.0
            due += 0.01
        now += 0.005
    assert late < 0.01
    assert sum(offer.hurry for offer in term.offers) <= 20 / INTERVAL * 2 + 1
    assert len(term.offers) <= 20 / INTERVAL * 6


def test_a_claim_that_is_not_read_back_is_repeated() -> None:
    """An offer that met a moment without a lease is ignored: nothing would be published ever again."""
    term = Term()
    term.turn(T0, T0)
    assert term.turn(T0 + 0.1, T0) is None
    assert term.claims.wake(T0) == T0 + INTERVAL / 2
    offer = term.turn(T0 + INTERVAL / 2, T0)
    assert offer is not None
    assert offer.hurry


def test_done_is_told_up_to_what_is_not_settled_and_never_in_a_hurry() -> None:
    """It goes with the next heartbeat, when it moved by a part of an interval."""
    term = Term(Watermarks(T0, T0))
    assert term.turn(T0 + 0.01, T0 + 60) is None
    offer = term.turn(T0 + 5, T0 + 60, T0 + 3)
    assert offer == Offer(Watermarks(claimed=T0 + 3 - 1e-6, settled=T0 + 3 - 1e-6), hurry=False)
    assert term.turn(T0 + 6, T0 + 60, T0 + 3) is None
    offer = term.turn(T0 + 7, T0 + 60)
    assert offer is not None
    assert offer.marks.settled == T0 + 7


def test_the_last_slot_before_a_pause_is_told_as_done_at_once() -> None:
    """Else it would be in doubt until the next one, an hour later."""
    term, due = Term(Watermarks(T0, T0)), T0 + 0.1
    term.turn(T0, due)
    term.read_back()
    assert term.turn(due, due) is None
    offer = term.turn(due + 0.001, due + 3600)
    assert offer is not None
    assert offer.marks.settled == due + 0.001
    assert not offer.hurry


def test_done_stays_where_it_was_until_every_entry_was_looked_at() -> None:
    """What the predecessor left undone is not known before."""
    term = Term(Watermarks(T0 - 1, T0 - 3), resolved=False)
    term.turn(T0, T0 + 0.1)
    assert term.offers[-1].marks.settled == T0 - 3
    term.claims.resolve()
    term.turn(T0 + 5, T0 + 6)
    assert term.offers[-1].marks.settled == T0 + 5


def test_a_clean_release_claims_no_more_than_is_done() -> None:
    """Nothing is in doubt then, and nothing is published any more."""
    term = Term(Watermarks(T0, T0))
    term.turn(T0, T0 + 0.2)
    term.read_back()
    term.turn(T0 + 0.1, T0 + 0.2)
    assert term.claims.closing(T0 + 0.1, T0 + 0.2) == Watermarks(T0 + 0.1, T0 + 0.1)
    assert not term.claims.covers(T0 + 0.2)


def test_a_clean_release_keeps_the_doubt_that_it_inherited_and_did_not_settle() -> None:
    """Its predecessor may have published that slot."""
    term = Term(Watermarks(T0 - 1, T0 - 3))
    term.turn(T0, T0 - 2)
    assert term.claims.closing(T0, T0 - 2) == Watermarks(claimed=T0 - 1, settled=T0 - 2 - 1e-6)


def test_a_clock_that_is_set_back_far_begins_the_marks_anew() -> None:
    """Nothing would run until it has caught up; a small step is waited for."""
    term = Term(Watermarks(T0, T0))
    term.turn(T0 + 10, T0 + 10.1)
    term.read_back()
    assert term.turn(T0 + 5, T0 + 10.1) is None
    assert term.claims.covers(T0 + 10.1)
    then = T0 - 2 * ASTRAY
    offer = term.turn(then, then + 1)
    assert offer == Offer(Watermarks(claimed=then, settled=then), hurry=True)
    assert not term.claims.covers(then + 1)
    assert term.turn(then + 0.9, then + 1) == Offer(Watermarks(then + 0.9 + INTERVAL, then + 0.9), hurry=True)


def test_after_a_clean_release_there_is_no_doubt_behind_what_was_tried() -> None:
    """Whatever was claimed, and be it done for other entries."""
    marks = Watermarks(claimed=T0, settled=T0, attempted=T0 - 5)
    assert Watermarks.of(marks.as_data()) == marks
    assert marks.doubtful == T0 - 5
    assert Watermarks(claimed=T0 + 5, settled=T0).doubtful == T0 + 5


@pytest.mark.parametrize("marks", [{"claimed": 9, "done": 8, "tried": "1"}, {"claimed": 5, "done": 9, "tried": 1}])
def test_where_marks_are_nonsense_all_that_is_claimed_is_in_doubt(marks: dict[str, Any]) -> None:
    """Anybody may have written it."""
    found = Watermarks.of(marks)
    assert found is not None
    assert found.doubtful == 9


@pytest.mark.parametrize(
    "data",
    [
        None, {}, {"claimed": 1.0}, {"claimed": "1", "done": 1.0}, {"claimed": True, "done": 0.0},
        {"claimed": float("nan"), "done": 1.0}, {"claimed": float("inf"), "done": 1.0}, {"claimed": 1.0, "done": -1},
        {"claimed": 10**39, "done": 1.0}, {"claimed": [1], "done": None}, {"idle": 0.1},
    ],
)  # fmt: skip
def test_nonsense_is_no_mark(data: dict[str, Any] | None) -> None:
    """Anybody may have written it."""
    assert Watermarks.of(data) is None


def test_marks_that_contradict_each_other_leave_doubt_between_them() -> None:
    """One of them is wrong, and nobody knows which."""
    assert Watermarks.of({"claimed": 5, "done": 9}) == Watermarks(claimed=9.0, settled=5.0)


@pytest.mark.parametrize(
    ("marks", "seen"),
    [
        (Watermarks(T0 + 1, T0 - 1), Watermarks(T0 + 1, T0 - 1)),
        (Watermarks(T0 + 1e6, T0 - 1), Watermarks(T0, T0 - 1)),
        (Watermarks(T0 + 1e6, T0 + 1e6), Watermarks(T0, T0)),
        (Watermarks(T0 + 1e6, T0 + 100), Watermarks(T0 + 100, T0 + 100)),
        (Watermarks(T0 + 1e6, T0 + 1e6, T0 + 9e5), Watermarks(T0, T0, T0)),
    ],
)
def test_marks_of_a_clock_that_was_wrong_count_as_of_now(marks: Watermarks, seen: Watermarks) -> None:
    """Else nothing would run for eleven days."""
    assert Watermarks.of(marks.as_data(), now=T0) == seen


@given(
    st.lists(
        st.tuples(
            st.floats(-50, 20),
            st.none() | st.floats(-5, 5),
            st.none() | st.floats(-5, 5),
            st.booleans(),
        ),
        max_size=15,
    ),
    st.none() | st.tuples(st.floats(-200, 100), st.floats(0, 50)),
)
def test_marks_never_go_back_while_the_clock_does_not_go_far_astray(
    turns: list[tuple[float, float | None, float | None, bool]], found: tuple[float, float] | None
) -> None:
    """Whatever is asked: claimed and done rise, done is at most claimed, and the claim at most an interval ahead."""
    inherited = None if found is None else Watermarks(T0 + found[0] + found[1], T0 + found[0])
    term, latest = Term(inherited), T0
    before = inherited or Watermarks(0.0, 0.0)
    for step, ahead, back, reads in turns:
        now = max(latest + step, latest - ASTRAY / 2)
        latest = max(latest, now)
        offer = term.turn(now, None if ahead is None else now + ahead, None if back is None else now + back)
        if offer is not None:
            assert offer.marks.claimed >= max(before.claimed, offer.marks.settled)
            assert offer.marks.settled >= before.settled
            assert offer.marks.claimed <= max(before.claimed, latest + INTERVAL)
            before = offer.marks
        if reads and term.offers:
            term.read_back()


def test_how_far_states_are_saved_travels_with_the_marks() -> None:
    """Never above *done*; what is no time is not known; and none is told where none is known."""
    marks = Watermarks(claimed=9.0, settled=8.0, saved=7.0)
    assert Watermarks.of(marks.as_data()) == marks
    assert Watermarks.of({"claimed": 9, "done": 8, "saved": 20}) == Watermarks(claimed=9.0, settled=8.0, saved=8.0)
    assert Watermarks.of({"claimed": 9, "done": 8, "saved": "7"}) == Watermarks(claimed=9.0, settled=8.0)
    assert "saved" not in Watermarks(claimed=9.0, settled=8.0).as_data()
