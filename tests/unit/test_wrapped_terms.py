"""Each wrapped scheduler through a term's whole life: acquired, revoked, fenced in mid-dispatch, taken back."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from tests.unit.schedulers import eventually, in_mid_dispatch

if TYPE_CHECKING:
    import pytest

    from tests.unit.schedulers import Kind


def test_a_standby_sends_and_writes_nothing(kind: Kind) -> None:
    """Standbys are read-only, however due an entry is."""
    with kind.beat() as beat:
        beat.turns()
        assert beat.sent() == []
        assert kind.runs() == 0


def test_a_leader_sends_what_is_due_once(kind: Kind) -> None:
    """After the acquisition the due entry goes out, with the term that it was sent in."""
    with kind.beat() as beat:
        beat.turns()
        kind.leadership.grant(7)
        (headers,) = beat.sends(1)
        beat.turns()
        assert len(beat.sent()) == 1
        assert (headers["neli_beat_term"], headers["neli_beat_entry"], headers["task"]) == (7, "entry", "t")
        assert headers["periodic_task_name"] == "entry"


def test_a_revoked_leader_records_what_ran_before_it_hands_over(kind: Kind) -> None:
    """When the receivers of leadership_revoked have returned, a successor can read what ran."""
    with kind.beat() as beat:
        kind.leadership.grant(1)
        beat.sends(1)
        handed_over = kind.leadership.revoke()
        handed_over.join(5)
        assert not handed_over.is_alive()
        assert kind.runs() == (1 if kind.stored else 0)


def test_a_hand_over_waits_for_the_message_in_flight(kind: Kind) -> None:
    """Revoked in mid-dispatch: the message leaves and is recorded, then the lease is given up."""
    reached, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        reached.set()
        go_on.wait(5)

    with kind.beat() as beat, in_mid_dispatch(beat.app, hold):
        kind.leadership.grant(1)
        assert reached.wait(5)
        handed_over = kind.leadership.revoke()
        handed_over.join(0.1)
        assert handed_over.is_alive()
        assert kind.leadership.held()
        go_on.set()
        handed_over.join(5)
        assert not handed_over.is_alive()
        assert len(beat.sent()) == 1
        assert kind.runs() == (1 if kind.stored else 0)


def test_a_term_that_ends_in_mid_dispatch_sends_nothing_and_records_nothing(
    kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    """The lease is asked right before the message leaves; the store is left as it was; the next term sends it."""
    with kind.beat() as beat:
        with in_mid_dispatch(beat.app, kind.leadership.fence) as seen:
            kind.leadership.grant(1)
            eventually(lambda: seen, what="dispatch")
            beat.turns()
            assert beat.sent() == []
            assert kind.runs() == 0
        assert "Message Error" not in caplog.text, "Celery took it for a failed publish, and the entry for run"
        kind.leadership.grant(5)
        (headers,) = beat.sends(1)
        assert headers["neli_beat_term"] == 5


def test_a_term_that_ends_in_mid_dispatch_needs_no_signal(kind: Kind) -> None:
    """Celery swallows a receiver's exception, so nothing depends on one."""
    with kind.beat() as beat, in_mid_dispatch(beat.app, kind.leadership.lapse) as seen:
        kind.leadership.grant(1)
        eventually(lambda: seen, what="dispatch")
        beat.turns()
        assert beat.sent() == []
        assert kind.runs() == 0


def test_a_later_term_of_the_same_process_does_not_finish_what_an_earlier_one_began(kind: Kind) -> None:
    """Between the advance of an entry and its message the lease was lost and won again: begin anew."""

    def lose_and_win() -> None:
        if kind.leadership.role().term == 1:
            kind.leadership.lapse()
            kind.leadership.grant(2)

    with kind.beat() as beat, in_mid_dispatch(beat.app, lose_and_win):
        kind.leadership.grant(1)
        (headers,) = beat.sends(1)
        beat.turns()
        assert len(beat.sent()) == 1
        assert headers["neli_beat_term"] == 2


def test_a_lease_that_comes_back_during_a_dispatch_sends_the_task_once(kind: Kind) -> None:
    """Late heartbeats read back revive the same term: what was cut off is sent, by a scheduler built anew."""
    calls: list[int] = []

    def blink_once() -> None:
        calls.append(1)
        if len(calls) == 1:
            kind.leadership.blink()

    with kind.beat() as beat, in_mid_dispatch(beat.app, blink_once):
        kind.leadership.grant(1)
        beat.sends(1)
        beat.turns()
        assert len(beat.sent()) == 1


def test_a_term_that_is_taken_back_does_not_send_again(kind: Kind) -> None:
    """Fenced after a run and leading again: what this process sent counts, written or not."""
    with kind.beat() as beat:
        kind.leadership.grant(1)
        beat.sends(1)
        beat.turns(2)
        kind.leadership.fence()
        beat.turns(2)
        kind.leadership.grant(1)
        beat.turns(4)
        assert len(beat.sent()) == 1


def test_a_fence_leaves_the_store_alone(kind: Kind) -> None:
    """What the successor has written since is not overwritten, neither now nor when the process ends."""
    with kind.beat(beat_sync_every=1000) as beat:
        kind.leadership.grant(1)
        beat.sends(1)
        beat.turns(2)
        before = kind.runs()
        kind.leadership.fence()
        beat.turns(2)
        assert kind.runs() == before
    assert kind.runs() == before


def test_sigterm_in_mid_dispatch_leaves_the_task_to_the_successor(kind: Kind) -> None:
    """Celery's handler closes the scheduler and raises SystemExit: what was not sent is not recorded as sent."""
    beat = kind.beat()

    def handler() -> None:
        beat.scheduler.close()
        assert kind.leadership.stopped == 0
        raise SystemExit

    with in_mid_dispatch(beat.app, handler), beat:
        kind.leadership.grant(1)
        eventually(beat.ended, what="end")
        assert isinstance(beat.raised, SystemExit)
        assert kind.leadership.stopped == 1
        assert beat.sent() == []
        assert kind.runs() == 0
