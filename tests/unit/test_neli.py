"""`Neli`: goNELI's contract, on real threads and a log in memory."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from celery_neli import (
    ClosedError,
    Config,
    ConfigurationError,
    LeaderAcquired,
    LeaderFenced,
    LeaderRevoked,
    Neli,
    State,
)
from celery_neli.election.records import Record, decode, encode
from celery_neli.election.role_state import Payload
from celery_neli.exceptions import TopicError
from tests.processes import wait_until as wait
from tests.unit.memory_log import MemoryLog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from celery_neli.election.role_state import LeaderEvent

QUICK = {"heartbeat_interval": 0.05, "heartbeat_timeout": 0.4, "takeover_delay": 0.02, "drain_timeout": 2.0}


def wait_until(holds: Callable[[], bool]) -> None:
    wait(holds, timeout=10, what="it")


@pytest.fixture
def log() -> MemoryLog:
    return MemoryLog()


@pytest.fixture
def make(log: MemoryLog) -> Iterator[Callable[..., Neli]]:
    made: list[Neli] = []

    def make(barrier: Callable[[LeaderEvent], None] | None = None, **settings: object) -> Neli:
        config = Config(group="test", name=f"m{len(made)}", **{**QUICK, **settings})  # type: ignore[arg-type]
        neli = Neli(config, barrier, connect=log.connect)
        made.append(neli)
        return neli

    yield make
    for neli in made:
        neli.close()


def test_pulse_waits_for_leadership_and_returns_at_once_when_it_is_there(make: Callable[..., Neli]) -> None:
    """A pulse gives some time to be elected; a leader's pulse does not wait."""
    neli = make()
    assert neli.pulse(timeout=5)
    assert neli.is_leader
    began = time.monotonic()
    assert neli.pulse(timeout=5)
    assert time.monotonic() - began < 1


def test_one_of_two_leads(make: Callable[..., Neli]) -> None:
    """The second's pulse ends at its timeout, without leadership."""
    first, second = make(), make()
    assert first.pulse(timeout=5)
    assert not second.pulse(timeout=0.2)
    assert first.is_leader
    assert not second.is_leader
    assert second.deadline is None


def test_a_standby_says_whom_it_stands_by_for(make: Callable[..., Neli], caplog: pytest.LogCaptureFixture) -> None:
    """Else its log would not tell it from a process that hangs; once for each leader."""
    caplog.set_level(logging.INFO, "celery_neli")
    first, second, third = make(), make(), make()
    assert first.pulse(timeout=5)
    second.start()
    third.start()

    def lines(name: str) -> list[str]:
        said = [record.getMessage() for record in caplog.records if f"name={name} " in record.getMessage()]
        return [line.split(" term=")[0] for line in said if line.startswith("standing by")]

    wait_until(lambda: lines("m1") and lines("m2"))
    first.close()
    assert second.pulse(timeout=5) or third.pulse(timeout=5)
    leader, standby = ("m1", "m2") if second.is_leader else ("m2", "m1")
    wait_until(lambda: len(lines(standby)) == 2)
    assert lines(standby) == ["standing by role=leader leader=m0", f"standing by role=leader leader={leader}"]
    assert lines("m0") == []


def test_a_standby_does_not_stand_by_for_a_leader_long_gone(
    make: Callable[..., Neli], log: MemoryLog, caplog: pytest.LogCaptureFixture
) -> None:
    """The log of an election that ended with a crash names the dead at its end; a new member just takes over."""
    caplog.set_level(logging.INFO, "celery_neli")
    log.records.append(encode(Record(kind="claim", member="dead/1", seq=1, lease=0.5, seen=-1)))
    neli = make()
    assert neli.pulse(timeout=10)
    assert "dead" not in caplog.text


def test_nothing_starts_before_the_first_pulse(make: Callable[..., Neli], log: MemoryLog) -> None:
    """A Neli that is only made starts no thread and opens no client."""
    threads = set(threading.enumerate())
    neli = make()
    assert neli.state is State.LIVE
    assert set(threading.enumerate()) <= threads  # threads of earlier tests may end in between
    assert log.connected == 0


def test_deadline_moves_with_every_heartbeat(make: Callable[..., Neli]) -> None:
    """The lease ends one heartbeat_timeout after the newest heartbeat was sent, on the member's clock."""
    neli = make()
    assert neli.pulse(timeout=5)
    first = neli.deadline
    assert first is not None
    assert neli.clock() < first <= neli.clock() + QUICK["heartbeat_timeout"]
    wait_until(lambda: (neli.deadline or 0) > first)


def test_a_leader_that_cannot_write_or_read_is_fenced_when_its_lease_ends(
    make: Callable[..., Neli], log: MemoryLog
) -> None:
    """Without its heartbeats read back the leader stops, in time, and says so to the barrier."""
    events: list[LeaderEvent] = []
    neli = make(events.append)
    assert neli.pulse(timeout=5)
    log.reachable = False
    wait_until(lambda: not neli.is_leader)
    wait_until(lambda: neli.pulse() or len(events) > 1)
    assert [type(event) for event in events] == [LeaderAcquired, LeaderFenced]
    assert isinstance(events[1], LeaderFenced)
    assert "was read back: Kafka is away or slow" in events[1].reason
    log.reachable = True
    assert neli.pulse(timeout=5)
    assert events[-1].term > events[0].term


def test_barrier_holds_up_the_hand_over_while_heartbeats_go_on(make: Callable[..., Neli], log: MemoryLog) -> None:
    """The successor waits until the barrier returns; the leader's heartbeats go on meanwhile (R4)."""
    let_go, seen = threading.Event(), threading.Event()

    def barrier(event: LeaderEvent) -> None:
        if isinstance(event, LeaderRevoked):
            seen.set()
            let_go.wait(10)

    first = make(barrier)
    assert first.pulse(timeout=5)
    second = make()
    second.start()
    closing = threading.Thread(target=first.close)
    closing.start()
    assert seen.wait(5)
    before = len(log.records)
    wait_until(lambda: len(log.records) > before + 12)  # longer than a lease
    assert not first.is_leader
    assert first.role("leader").may_finish()
    assert not second.pulse()
    let_go.set()
    assert second.pulse(timeout=5)
    closing.join(5)
    assert first.state is State.CLOSED
    kinds = [decode(value).kind for value in log.records]
    assert kinds.index("release") < len(kinds) - 1 - kinds[::-1].index("claim")


def test_a_barrier_that_overruns_is_fenced(make: Callable[..., Neli]) -> None:
    """After drain_timeout the role is released all the same, and the barrier is told to stop."""
    events: list[LeaderEvent] = []
    let_go = threading.Event()

    def barrier(event: LeaderEvent) -> None:
        events.append(event)
        if isinstance(event, LeaderRevoked):
            let_go.wait(10)

    first = make(barrier, drain_timeout=0.2)
    assert first.pulse(timeout=5)
    second = make()
    second.start()
    closing = threading.Thread(target=first.close)
    closing.start()
    assert second.pulse(timeout=5)
    assert not first.role("leader").may_finish()
    let_go.set()
    closing.join(5)
    assert [type(event) for event in events] == [LeaderAcquired, LeaderRevoked, LeaderFenced]
    assert isinstance(events[2], LeaderFenced)
    assert events[2].reason == "its work was not done within neli_drain_timeout, 0.2 s"


def test_what_a_barrier_raises_is_logged_and_holds_up_nothing(
    make: Callable[..., Neli], caplog: pytest.LogCaptureFixture
) -> None:
    """A failing barrier costs neither leadership nor the handover."""

    def barrier(event: LeaderEvent) -> None:
        raise RuntimeError("not today")

    neli = make(barrier)
    assert neli.pulse(timeout=5)
    neli.close()
    assert neli.state is State.CLOSED
    assert [
        record.getMessage().split(" event=")[0] for record in caplog.records if record.levelno == logging.ERROR
    ] == ["barrier failed"] * 2


def test_pulse_after_close_is_a_clear_error(make: Callable[..., Neli]) -> None:
    """The error names the member and says what to do."""
    neli = make()
    neli.close()
    assert neli.state is State.CLOSED
    with pytest.raises(ClosedError, match=r"m0 was closed.*make a new Neli"):
        neli.pulse()


def test_cancel_ends_a_pulse(make: Callable[..., Neli]) -> None:
    """A waiting pulse returns soon after its cancel is set."""
    first, second = make(), make()
    assert first.pulse(timeout=5)
    cancel = threading.Event()
    threading.Timer(0.2, cancel.set).start()
    began = time.monotonic()
    assert not second.pulse(timeout=30, cancel=cancel)
    assert time.monotonic() - began < 10


def test_close_wakes_a_pulse(make: Callable[..., Neli]) -> None:
    """A pulse under way returns when another thread closes the `Neli`."""
    first, second = make(), make()
    assert first.pulse(timeout=5)
    threading.Timer(0.2, second.close).start()
    began = time.monotonic()
    assert not second.pulse(timeout=30)
    assert time.monotonic() - began < 10


def test_barrier_may_close(make: Callable[..., Neli]) -> None:
    """Closing from within the barrier begins to close and does not wait for itself."""
    closed = threading.Event()

    def barrier(event: LeaderEvent) -> None:
        if isinstance(event, LeaderAcquired):
            neli.close()
            closed.set()

    neli = make(barrier)
    neli.pulse(timeout=5)
    assert closed.is_set()
    neli.close()
    assert neli.wait_closed(5)


def test_resign_hands_over_and_stands_back(make: Callable[..., Neli]) -> None:
    """After a resignation another member leads, and the one that resigned stays a member."""
    first, second = make(), make()
    assert first.pulse(timeout=5)
    second.start()
    first.resign()
    assert second.pulse(timeout=5)
    first.pulse()
    assert not first.is_leader
    second.close()
    assert first.pulse(timeout=5)


def test_a_leader_that_is_not_pulsed_resigns_and_is_a_candidate_again_when_it_is(
    make: Callable[..., Neli], caplog: pytest.LogCaptureFixture
) -> None:
    """Heartbeats alone keep nobody in office; the log shows where the owner's thread is."""
    caplog.set_level(logging.INFO, "celery_neli")
    neli = make(stall_timeout=1.0)
    assert neli.pulse(timeout=5)
    wait_until(lambda: not neli.is_leader)
    neli.deliver(0)
    here = Path(__file__).name
    wait_until(
        lambda: any(
            "no progress for 1 s" in record.getMessage() and here in record.getMessage() for record in caplog.records
        )
    )
    assert neli.pulse(timeout=5)


def test_background_works_only_while_leading(make: Callable[..., Neli]) -> None:
    """The task runs again and again in the leader, and in nobody else."""
    runs: list[str] = []
    first, second = make(), make()
    assert first.pulse(timeout=5)
    pulsers = [
        neli.background(lambda name=neli.config.name: (runs.append(name), time.sleep(0.01))) for neli in (first, second)
    ]  # type: ignore[misc]
    wait_until(lambda: len(runs) > 5)
    assert set(runs) == {"m0"}
    first.close()
    assert pulsers[0].wait(5)
    wait_until(lambda: "m1" in runs)
    pulsers[1].close()
    count = len(runs)
    assert pulsers[1].wait(0)
    assert len(runs) == count


def test_a_background_task_that_fails_hands_over(make: Callable[..., Neli]) -> None:
    """What the task raises comes out of wait(), and the `Neli` is closed."""

    def task() -> None:
        raise RuntimeError("broken")

    neli = make()
    pulser = neli.background(task)
    with pytest.raises(RuntimeError, match="broken"):
        pulser.wait(5)
    assert neli.wait_closed(5)


def test_clients_that_cannot_be_made_do_not_end_the_member(
    make: Callable[..., Neli], log: MemoryLog, caplog: pytest.LogCaptureFixture
) -> None:
    """It stays a standby, says why, and joins when they can."""
    log.failing = OSError("no route")
    neli = make()
    assert not neli.pulse(timeout=0.1)
    wait_until(lambda: any("election failed" in record.getMessage() for record in caplog.records))
    log.failing = None
    assert neli.pulse(timeout=10)


def test_trouble_with_the_topic_is_said_once_for_as_long_as_it_is_the_same(
    make: Callable[..., Neli], log: MemoryLog, caplog: pytest.LogCaptureFixture
) -> None:
    """And again when it comes back, though the words are the same."""
    said = "Kafka does not let this member read the leader topic t"

    def lines() -> int:
        return sum(record.getMessage() == said for record in caplog.records)

    neli = make()
    assert neli.pulse(timeout=5)
    for times in (1, 2):
        log.broken = TopicError(said)
        wait_until(lambda times=times: lines() == times)  # type: ignore[misc]
        wait_until(lambda: not neli.is_leader)
        assert lines() == times
        log.broken = None
        assert neli.pulse(timeout=10)
    assert lines() == 2


def test_a_file_that_is_gone_when_clients_are_made_again_is_one_line(
    make: Callable[..., Neli], log: MemoryLog, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a stack; the member goes on when it is back."""
    neli = make()
    assert neli.pulse(timeout=5)
    log.failing = ConfigurationError("neli_kafka has ssl.ca.location = '/gone.pem', a file that cannot be read")
    log.broken = RuntimeError("clients are to be made again")
    wait_until(lambda: "/gone.pem" in caplog.text)
    (line,) = [record for record in caplog.records if "/gone.pem" in record.getMessage()]
    assert line.exc_info is None
    log.failing = log.broken = None
    assert neli.pulse(timeout=10)


def test_clients_that_the_settings_forbid_are_told_to_the_caller(make: Callable[..., Neli], log: MemoryLog) -> None:
    """No retry mends a bad property: start raises, and nothing was started."""
    log.failing = ConfigurationError("neli_kafka has acks='1'")
    neli = make()
    threads = threading.active_count()
    with pytest.raises(ConfigurationError, match="acks"):
        neli.pulse()
    assert threading.active_count() == threads


def test_a_forked_child_leads_nothing(make: Callable[..., Neli]) -> None:
    """The lease belongs to the process that bought it."""
    neli = make()
    assert neli.pulse(timeout=5)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, b"leads" if neli.is_leader else b"nothing")
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(read, 10) == b"nothing"
    os.close(read)
    os.close(write)
    assert neli.is_leader


def test_context_manager_joins_and_hands_over(log: MemoryLog) -> None:
    """Entering starts the member; leaving releases the role."""
    with Neli(Config(group="test", name="m", **QUICK), connect=log.connect) as neli:  # type: ignore[arg-type]
        wait_until(lambda: neli.is_leader)
    assert neli.state is State.CLOSED
    assert decode(log.records[-1]).kind == "release"


def test_a_leader_whose_thread_fails_is_fenced_before_it_leads_again(make: Callable[..., Neli], log: MemoryLog) -> None:
    """Its barrier hears that the term is over: what began in it must stop."""
    events: list[LeaderEvent] = []
    neli = make(events.append)
    assert neli.pulse(timeout=5)
    log.broken = RuntimeError("a bug")
    wait_until(lambda: neli.pulse() is False)
    log.broken = None
    assert neli.pulse(timeout=10)
    assert [type(event) for event in events] == [LeaderAcquired, LeaderFenced, LeaderAcquired]
    assert events[0].term == events[1].term < events[2].term


def test_a_member_made_anew_is_no_candidate_while_its_owner_is_stalled(
    make: Callable[..., Neli], log: MemoryLog, caplog: pytest.LogCaptureFixture
) -> None:
    """A failure of the election does not wipe out that the owner hangs."""
    caplog.set_level(logging.INFO, "celery_neli")
    neli = make(stall_timeout=1.0)
    assert neli.pulse(timeout=5)
    wait_until(lambda: not neli.is_leader)
    neli.deliver(0)
    wait_until(lambda: decode(log.records[-1]).kind == "release")
    log.broken = RuntimeError("a bug")
    wait_until(lambda: any(record.getMessage().startswith("election failed") for record in caplog.records))
    log.broken = None
    wait_until(lambda: log.connected == 2)
    released = len(log.records)
    rival = make()
    assert rival.pulse(timeout=5)  # the role is free, and it is the rival that takes it
    assert {decode(value).member.partition("/")[0] for value in log.records[released:]} == {"m1"}
    rival.close()
    assert neli.pulse(timeout=10)


def test_a_flood_of_resignations_does_not_hold_up_the_heartbeats(make: Callable[..., Neli]) -> None:
    """Whatever other threads ask for, and however often, the lease is renewed."""
    neli = make(roles=("leader",), heartbeat_timeout=1.5, heartbeat_interval=0.1)
    assert neli.pulse(timeout=5)
    first, over = neli.deadline, threading.Event()
    assert first is not None

    def flood() -> None:
        while not over.is_set():
            neli.resign("another role")

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        wait_until(lambda: neli.pulse() and (neli.deadline or 0) > first + 2)
    finally:
        over.set()
        thread.join()


def test_a_child_forked_while_a_lock_is_held_does_not_hang(make: Callable[..., Neli]) -> None:
    """In a child the `Neli` is closed: asking, pulsing and closing it waits for nothing."""
    neli = make()
    assert neli.pulse(timeout=5)
    locked, forked = threading.Event(), threading.Event()

    def hold() -> None:
        renewal = neli._renewal  # noqa: SLF001
        with renewal._starting, renewal.bell._condition:  # as start(), close() and its thread do  # noqa: SLF001
            locked.set()
            forked.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    assert locked.wait(5)
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(5)  # ends a child that hangs
        status = 1
        try:
            neli.resign()
            neli.deliver(1.0)
            neli.close()
            neli.pulse(1.0)
        except ClosedError:
            status = 0 if neli.wait_closed() and neli.state is State.CLOSED else 2
        finally:
            os._exit(status)
    forked.set()
    holder.join()
    assert os.waitpid(pid, 0)[1] == 0
    assert neli.pulse(timeout=5)


def test_start_after_close_is_a_clear_error(make: Callable[..., Neli]) -> None:
    """Also for one that had been started: it must not look as if it took part."""
    neli = make()
    neli.start()
    neli.close()
    with pytest.raises(ClosedError, match="make a new Neli"):
        neli.start()


def test_a_background_task_that_exits_hands_over(make: Callable[..., Neli]) -> None:
    """SystemExit ends the thread; nobody may stay in office without one."""
    neli = make()
    pulser = neli.background(sys.exit)
    with pytest.raises(SystemExit):
        pulser.wait(5)
    assert neli.wait_closed(5)


def datas(log: MemoryLog) -> list[dict[str, Any]]:
    """What the records of the log carry, but for their authors' idleness."""
    records = [decode(value) for value in log.records]
    return [{name: each for name, each in (record.data or {}).items() if name != "idle"} for record in records]


def test_what_is_offered_in_a_hurry_is_read_back_at_once(log: MemoryLog) -> None:
    """Not at the next heartbeat, which is seconds away, and not when the leader looks at its log anyway."""
    heard = threading.Event()
    config = Config(group="test", name="m", roles=("leader",), heartbeat_interval=5.0, heartbeat_timeout=15.0)
    neli = Neli(config, connect=log.connect, on_readback=heard.set)
    try:
        assert neli.pulse(timeout=5)
        term = neli.role("leader").term
        assert term is not None
        wait_until(lambda: len(log.records) == 2)
        for number in range(3):
            heard.clear()
            began = time.monotonic()
            neli.role("leader").set_payload(term, {"claimed": number}, now=True)
            assert heard.wait(5)
            assert time.monotonic() - began < 1
            assert neli.role("leader").last_payload == Payload(term, {"claimed": number}, own=True, known=True)
    finally:
        neli.close()
    assert datas(log)[-1] == {"claimed": 2}


def test_an_offer_without_hurry_goes_with_the_next_heartbeat(make: Callable[..., Neli], log: MemoryLog) -> None:
    """Of many, the last one; it costs no record of its own."""
    neli = make(heartbeat_interval=0.5, heartbeat_timeout=3.0)
    assert neli.pulse(timeout=5)
    term = neli.role("leader").term
    assert term is not None
    wait_until(lambda: len(log.records) == 2)
    for number in range(1000):
        neli.role("leader").set_payload(term, {"claimed": number})
    wait_until(lambda: neli.role("leader").last_payload.data == {"claimed": 999})
    assert len(log.records) <= 4


def test_what_is_offered_before_the_barrier_returns_is_in_the_release(
    make: Callable[..., Neli], log: MemoryLog
) -> None:
    """A clean release tells how far the work came."""
    revoked: list[LeaderRevoked] = []

    def barrier(event: LeaderEvent) -> None:
        if isinstance(event, LeaderRevoked):
            neli.role("leader").set_payload(event.term, {"claimed": 1})
            neli.role("leader").set_payload(event.term, {"claimed": 2})
            revoked.append(event)

    neli = make(barrier)
    assert neli.pulse(timeout=5)
    neli.close()
    assert revoked
    assert (decode(log.records[-1]).kind, datas(log)[-1]) == ("release", {"claimed": 2})


def test_a_bad_offer_is_refused_to_the_caller_and_ends_nothing(make: Callable[..., Neli], log: MemoryLog) -> None:
    """Nothing that was offered may break the thread that renews."""
    neli = make()
    assert neli.pulse(timeout=5)
    term = neli.role("leader").term
    assert term is not None
    with pytest.raises(ValueError, match="no record can carry"):
        neli.role("leader").set_payload(term, {"claimed": float("nan")}, now=True)
    with pytest.raises(ValueError, match="none of the roles leader"):
        neli.role("other").set_payload(term, {"claimed": 1.0})
    with pytest.raises(ValueError, match="none of the roles leader"):
        neli.role("other").ask()
    neli.role("leader").set_payload(term + 1, {"claimed": 1.0}, now=True)
    records = len(log.records)
    wait_until(lambda: len(log.records) > records + 2)
    assert neli.is_leader
    assert datas(log)[-1] == {}


def test_what_a_listener_raises_is_logged_and_ends_no_lease(log: MemoryLog, caplog: pytest.LogCaptureFixture) -> None:
    """It runs on the thread that renews."""

    def fail() -> None:
        raise RuntimeError("deaf")

    neli = Neli(Config(group="test", name="m", roles=("leader",), **QUICK), connect=log.connect, on_readback=fail)  # type: ignore[arg-type]
    try:
        assert neli.pulse(timeout=5)
        term = neli.role("leader").term
        assert term is not None
        neli.role("leader").set_payload(term, {"claimed": 1.0})
        wait_until(lambda: "on_readback failed" in caplog.text)
        first = neli.deadline or 0.0
        wait_until(lambda: (neli.deadline or 0.0) > first)
    finally:
        neli.close()


def test_a_role_that_is_asked_for_is_handed_over(make: Callable[..., Neli]) -> None:
    """To the one that asks, though the group has not assigned it."""
    first, second, third = make(), make(), make()
    assert first.pulse(timeout=5)
    second.start()
    third.start()
    wait_until(lambda: second.role("leader").leader() is not None)
    second.role("leader").ask()
    wait_until(lambda: first.pulse() is False and second.pulse())
    assert not third.is_leader
