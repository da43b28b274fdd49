"""A member that leads and cannot serve comes back after a pause, and after a longer one each time."""

from __future__ import annotations

import pytest

from celery_neli.beat import role_runner
from celery_neli.election.records import Record
from celery_neli.election.role_state import FIRST_PAUSE, LONGEST_PAUSE, LeaderAcquired, StandBack
from tests.unit.beats import World
from tests.unit.test_member import Stage


def test_pauses_double_up_to_a_bound() -> None:
    """From a second to a minute, while each term is short."""
    back, now, pauses = StandBack(120.0), 1000.0, []
    for term in range(9):
        back.failed(now, term=term, led=0.1)
        pauses.append(back.until - now)
        now = back.until
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_a_term_that_was_served_is_forgiven() -> None:
    """So is a failure that lies long back."""
    back = StandBack(120.0)
    for term, now in enumerate((0.0, 1.0, 3.0)):
        back.failed(now, term=term, led=0.1)
    assert back.until == 3 + 4 * FIRST_PAUSE
    back.failed(500.0, term=8, led=400.0)
    assert back.until == 500 + FIRST_PAUSE
    back.failed(501.0, term=9, led=0.1)
    back.failed(503.0 + LONGEST_PAUSE + 0.1, term=10, led=0.1)
    assert back.until == 503.1 + LONGEST_PAUSE + FIRST_PAUSE


def test_one_term_fails_once() -> None:
    """However often its owner says so."""
    back = StandBack(120.0)
    for now in (0.0, 0.1, 0.2):
        back.failed(now, term=7, led=0.1)
    assert back.until == FIRST_PAUSE


def test_a_member_that_stands_back_claims_again_after_its_pause_and_not_before() -> None:
    """Without a rival, each of its terms begins later than the one before by twice as much."""
    stage = Stage().lead()
    acquired = []
    for _ in range(5):
        stage.member.state("leader").back_off()
        began = stage.now
        while not any(isinstance(each, LeaderAcquired) for each in stage.echo(after=0.05)):
            if stage.member.draining:
                stage.member.state("leader").drained()
            assert stage.now < began + 100
        acquired.append(round(stage.now - began))
    assert acquired == [4, 4, 4, 8, 16]  # a heartbeat timeout at least, as after any resignation (R4)


def test_a_member_that_stands_back_asks_nobody_for_the_role() -> None:
    """Not by the group's wish, nor for its newer schedule: it could not serve."""
    stage = Stage()
    stage.write(Record(kind="claim", member="other/1", seq=1, lease=4.0, seen=-1))
    stage.echo()
    stage.member.state("leader").back_off()
    stage.echo()
    stage.member.ask("leader")
    assert stage.journal.sent == []
    stage.echo(after=FIRST_PAUSE)
    stage.member.ask("leader")
    assert [record.kind for record in stage.journal.sent] == ["request"]


def test_a_beat_that_cannot_serve_says_so_once_and_stands_back(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line is not repeated with each term, and says how to get out."""
    monkeypatch.setattr(role_runner, "FIRST_PAUSE", 0.0)
    world = World({"e": 1.0})
    beat = world.beat(shards=1)
    for _ in range(5):
        beat.member.lead()
        world.election.role("leader").data = {"shards": 200, "claimed": 1.0, "done": 1.0}
        beat.turn()
        beat.member.release()
        beat.turn()
    assert len(beat.member.stood_back) == 5
    assert caplog.text.count("spread over 200") == 1
    assert "celery neli repair" in caplog.text
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("fault", ["topic", "scheduler"])
def test_a_beat_that_fails_for_long_stands_back(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its schedule topic cannot be read, or its scheduler raises until the lease is lost: others may do better."""
    monkeypatch.setattr(role_runner, "FIRST_PAUSE", 0.0)
    world = World({"e": 1.0})
    beat = world.leader()
    if fault == "topic":
        beat.topic.up = False
    else:
        beat.turn()
        monkeypatch.setattr(beat.scheduler, "tick", broken)
    beat.turn()
    assert beat.member.stood_back == [], "not for a moment's trouble"
    monkeypatch.setattr(role_runner, "UNREAD", -1.0)
    if fault == "scheduler":
        beat.fence()
    beat.turn()
    beat.turn()
    assert beat.member.stood_back == ["leader"], "once a term"


def test_a_term_that_was_lost_in_a_moments_trouble_is_claimed_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kafka was away: the next leader is there as soon as it is back."""
    world = World({"e": 1.0})
    beat = world.leader()
    beat.topic.up = False
    beat.turn()
    beat.fence()
    beat.turn()
    assert beat.member.stood_back == []


def broken(*args: object, **kwargs: object) -> float:
    raise RuntimeError("no calendar")
