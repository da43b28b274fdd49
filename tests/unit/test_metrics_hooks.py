"""What the election, the beat, the worker and Kafka's clients tell those who count: at which moment, and with what."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

import pytest

from celery_neli import hooks
from celery_neli.election.records import End, Lost, Record
from celery_neli.exceptions import TopicError
from celery_neli.kafka.client_log import ClientLog
from celery_neli.singletons import Singleton
from celery_neli.singletons.runner import Runner
from celery_neli.worker.leader_only import Unelected
from celery_neli.worker.redelivery import Counts
from tests.unit.schedulers import Kind
from tests.unit.stage import Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Told = list[tuple[Any, ...]]


@pytest.fixture
def listen() -> Iterator[Callable[[hooks.Hook], Told]]:
    """What a hook tells from now on."""
    added: list[tuple[hooks.Hook, Callable[..., None]]] = []

    def to(hook: hooks.Hook) -> Told:
        told: Told = []

        def receiver(*values: Any) -> None:
            told.append(values)

        hook.add(receiver)
        added.append((hook, receiver))
        return told

    yield to
    for hook, receiver in added:
        hook.remove(receiver)


@pytest.mark.parametrize(
    ("case", "cause"),
    [
        ("claimed", hooks.DEPOSED),
        ("late", hooks.EXPIRED),
        ("denied", hooks.EXPIRED),
        ("stood still", hooks.FROZEN),
        ("overrun", hooks.UNDRAINED),
        ("lost", hooks.LOG_LOST),
        ("crashed", hooks.CRASHED),
        ("resigned", hooks.RESIGNED),
        ("backs off", hooks.FAILING),
        ("asked", hooks.ASKED),
        ("closed", hooks.CLOSED),
        ("stalled", hooks.STALLED),
    ],
)
def test_each_term_ends_once_and_says_why(case: str, cause: str, listen: Callable[[hooks.Hook], Told]) -> None:
    """Also those that are handed over, of whose end there is no event."""
    stage, told = Stage().lead(), listen(hooks.term_ended)
    member = stage.member
    if case == "claimed":
        stage.echo()
        stage.write(Record(kind="claim", member="x/1", seq=1, lease=4.0, seen=len(stage.journal.log[0]) - 1))
        stage.echo()
    elif case == "late":
        for _ in range(9):
            stage.turn(after=0.5)
    elif case == "denied":
        stage.journal.topic_error = TopicError("no right")
        for _ in range(9):
            stage.turn(after=0.5)
    elif case == "stood still":
        stage.turn(after=4.5)
    elif case == "lost":
        stage.turn(Lost(0, "truncated"))
    elif case == "crashed":
        member.abandon()
    else:
        if case in ("resigned", "overrun"):
            member.resign()
        elif case == "backs off":
            member.state("leader").back_off()
        elif case == "asked":
            stage.write(Record(kind="request", member="x/1", seq=1, lease=0.0, to="x/1", term=0))
        elif case == "closed":
            member.close()
        else:
            member.candidate = False
        stage.echo()
        if case == "overrun":
            for _ in range(21):
                stage.echo(after=0.5)
        else:
            assert told == [], "its work is still in flight"
            member.state("leader").drained(0)
            stage.turn()
    assert told == [("g", "leader", cause)]
    stage.turn(after=0.1)
    assert len(told) == 1


def test_a_heartbeat_tells_its_round_trip_and_what_the_lease_had_left(listen: Callable[[hooks.Hook], Told]) -> None:
    """The claim has a round trip, too, and no lease before it."""
    told, stage = listen(hooks.renewed), Stage()
    stage.turn()
    stage.echo(after=0.2)  # the claim is read back, and a heartbeat leaves at once
    stage.echo(after=0.3)
    assert told == [
        ("g", "leader", pytest.approx(0.2), None),
        ("g", "leader", pytest.approx(0.3), pytest.approx(4.0 - 0.2 - 0.3)),
    ]


def test_a_term_that_follows_a_lost_one_begins_without_a_margin(listen: Callable[[hooks.Hook], Told]) -> None:
    """The lease of the same member ran out, and it has claimed the role again."""
    stage = Stage().lead()
    stage.echo()
    stage.turn(End(0), after=4.5)
    told = listen(hooks.renewed)
    stage.echo(after=0.1)
    assert stage.leads()
    assert told == [("g", "leader", pytest.approx(0.1), None)]


def test_after_the_log_is_lost_nothing_is_known_of_a_leader() -> None:
    """A time without a leader that no one can know would raise an alarm."""
    stage = Stage().lead()
    stage.echo()
    assert stage.member.state("leader").vacant_for() == 0
    stage.turn(Lost(0, "truncated"), after=60.0)
    assert stage.member.state("leader").vacant_for() is None


def test_a_term_that_begins_knows_the_gap(listen: Callable[[hooks.Hook], Told]) -> None:
    """From the end of the lease that ran out, or from the release, until the claim was read back."""
    told, stage = listen(hooks.term_begun), Stage()
    stage.write(Record(kind="claim", member="x/1", seq=1, lease=4.0, seen=-1))
    stage.turn()
    stage.echo()
    assert stage.member.state("leader").vacant_for() == 0
    stage.turn(End(0), after=4.5)
    assert stage.member.state("leader").vacant_for() == pytest.approx(0.5)
    stage.echo(after=0.25)
    assert told == [("g", "leader", hooks.EXPIRED, pytest.approx(0.75))]
    assert stage.member.state("leader").vacant_for() == 0


def test_after_a_release_the_gap_is_short_and_a_first_term_has_none(listen: Callable[[hooks.Hook], Told]) -> None:
    """A release says that the role is vacant, and at once."""
    told, stage = listen(hooks.term_begun), Stage()
    assert stage.member.state("leader").vacant_for() is None
    stage.lead()
    stage.member.resign()
    stage.echo()
    stage.member.state("leader").drained(0)
    stage.turn()
    stage.echo()
    assert stage.member.state("leader").vacant_for() == 0
    stage.write(Record(kind="claim", member="x/1", seq=1, lease=4.0, seen=len(stage.journal.log[0]) - 1))
    stage.echo(after=1.0)
    stage.write(Record(kind="release", member="x/1", seq=2, lease=4.0, term=3, seen=len(stage.journal.log[0]) - 1))
    stage.echo()
    stage.turn(End(0), after=0.5)
    stage.echo()
    assert told == [("g", "leader", hooks.UNKNOWN, None), ("g", "leader", hooks.RELEASED, pytest.approx(0.5))]


def test_a_beat_tells_how_long_its_turns_and_messages_took(
    tmp_path: Path, listen: Callable[[hooks.Hook], Told]
) -> None:
    """A turn without what it waited after it; a message until the transport has it."""
    turns, messages = listen(hooks.turn), listen(hooks.published)
    kind = Kind(tmp_path)
    kind.leadership.grant(3).join()
    began = time.perf_counter()
    with kind.beat() as beat:
        beat.turns()
    took = time.perf_counter() - began
    assert len(messages) == 1, "one entry is due"
    assert len(turns) >= 2
    assert 0 < messages[0][0] < sum(seconds for (seconds,) in turns) < took


class Trouble:
    """An error as librdkafka's client passes it."""

    def name(self) -> str:
        return "_TRANSPORT"

    def str(self) -> str:
        return "localhost:1: connect failed"


def test_errors_of_kafka_are_told_by_name(listen: Callable[[hooks.Hook], Told]) -> None:
    """Also those that are not worth a line."""
    told = listen(hooks.kafka_error)
    trouble: Any = Trouble()
    ClientLog(logging.getLogger(__name__), {"bootstrap.servers": "h:1"}, one_shot=True).remark(trouble)
    assert told == [("_TRANSPORT",)]


def test_leader_tasks_that_a_worker_did_not_run_are_told(listen: Callable[[hooks.Hook], Told]) -> None:
    """As they are counted."""
    told, counts = listen(hooks.leader_task), Counts()
    counts.add("forwarded", "mail")
    assert told == [("forwarded", "mail")]
    assert counts.of_role("mail") == {"forwarded": 1, "sent_back": 0, "skipped": 0}


def test_a_singleton_tells_of_each_turn(listen: Callable[[hooks.Hook], Told]) -> None:
    """Whether it failed or not."""
    told = listen(hooks.singleton)
    outcomes = iter([True, OSError("down"), True])

    class Session:
        def run(self) -> bool:
            outcome = next(outcomes, None)
            if isinstance(outcome, OSError):
                raise outcome
            if outcome is None:
                runner.close()
            return bool(outcome)

        def end(self) -> None: ...

    singleton = Singleton(name="m:work", function=lambda: None, every=0.0)
    runner = Runner(singleton, Unelected("leader"), lambda term: Session(), None, wait=lambda seconds: None)
    runner.clock = iter(range(1000)).__next__
    runner.run()
    assert told == [("m:work", "leader", False), ("m:work", "leader", True), ("m:work", "leader", False)]


def test_a_receiver_that_raises_costs_nothing_else(listen: Callable[[hooks.Hook], Told]) -> None:
    """Least of all a lease."""

    def receiver(*values: Any) -> None:
        raise RuntimeError("broken")

    hooks.renewed.add(receiver)
    try:
        stage = Stage().lead()
        stage.turn(after=0.5)
        stage.echo()
        assert stage.leads()
    finally:
        hooks.renewed.remove(receiver)
