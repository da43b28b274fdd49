"""What shows that a process is well: what moved, what it lacks, what it leads."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery

from celery_neli.config import Config
from celery_neli.election.leadership import Leadership
from celery_neli.exceptions import TopicError
from celery_neli.health.vitals import Vitals
from celery_neli.worker.in_flight import InFlight, state
from tests.processes import wait_until
from tests.unit.memory_log import MemoryLog
from tests.unit.stage import Stage

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass
class Process:
    """A leadership, as far as its health goes, and the time."""

    election: str = "beat"
    roles: tuple[str, ...] = ("leader", "mail")
    live: bool = True
    lacks: str = ""
    led: set[str] = field(default_factory=set)
    turned_at: float = 1.0
    renewer_turned_at: float = 1.0
    working: Callable[[], bool] | None = None
    excused: Callable[[], bool] | None = None
    away: str = ""
    now: float = 100.0
    config: Config = field(default_factory=lambda: Config(group="g", stall_timeout=20))

    def missing(self) -> str:
        return self.lacks

    def leading(self, role: str) -> bool:
        return role in self.led

    def vitals(self) -> Vitals:
        leadership: Any = self
        return Vitals(leadership, kafka_away=lambda: self.away, clock=lambda: self.now)

    def pass_time(self, vitals: Vitals, seconds: int, *, turns: bool = True, renews: bool = True) -> None:
        for _ in range(seconds):
            self.now += 1
            self.turned_at += turns
            self.renewer_turned_at += renews
            vitals.look()


def test_what_moves_is_well_however_long() -> None:
    """Standby or leader: that it leads nothing is no matter."""
    process = Process()
    vitals = process.vitals()
    process.pass_time(vitals, 1000)
    report = vitals.report()
    assert (report.live, report.ready, report.leads) == (True, True, ())
    process.led.add("mail")
    assert vitals.report().leads == ("mail",)


@pytest.mark.parametrize(
    ("still", "said"),
    [
        ({"turns": False}, "the beat's loop has not moved for 31 s"),
        ({"renews": False}, "the thread that renews the lease has not moved for 31 s"),
    ],
)
def test_what_stands_still_is_named_after_one_and_a_half_stall_timeouts(still: dict[str, bool], said: str) -> None:
    """Not before, since a leader without progress mends that by resigning; and it is well as soon as it moves."""
    process = Process()
    vitals = process.vitals()
    process.pass_time(vitals, 5)
    process.pass_time(vitals, 30, **still)
    assert vitals.report().live
    process.pass_time(vitals, 1, **still)
    report = vitals.report()
    assert (report.hung, report.live, report.ready) == ((said,), False, False)
    process.pass_time(vitals, 1)
    assert vitals.report().live


def test_a_short_stall_timeout_does_not_make_probes_nervous() -> None:
    """Anything may stand still for 15 s."""
    process = Process(config=Config(group="g", stall_timeout=1))
    vitals = process.vitals()
    process.pass_time(vitals, 15, turns=False)
    assert vitals.report().live
    process.pass_time(vitals, 1, turns=False)
    assert not vitals.report().live


def test_a_rare_heartbeat_does_not_look_like_a_thread_that_hangs() -> None:
    """The thread may wait for half of it."""
    process = Process(config=Config(group="g", stall_timeout=20, heartbeat_interval=90, heartbeat_timeout=300))
    vitals = process.vitals()
    process.pass_time(vitals, 200, renews=False)
    assert vitals.report().live


def test_a_process_that_stood_still_as_a_whole_is_well_when_it_goes_on() -> None:
    """Stopped, or starved, for an hour: nothing could move in that time."""
    process = Process()
    vitals = process.vitals()
    process.pass_time(vitals, 5)
    process.now += 3600
    vitals.look()
    assert vitals.report().live


def test_a_watch_that_hangs_is_not_well() -> None:
    """Nobody sees then if the rest moves."""
    process = Process()
    vitals = process.vitals()
    process.pass_time(vitals, 5)
    process.now += 31
    assert vitals.report().hung == ("the thread that watches the others has not moved for 31 s",)


def test_a_loop_that_is_excused_may_stand_still() -> None:
    """A worker waits for its task broker, or for a task of its own. Before the first turn, it is starting."""
    process = Process(excused=lambda: True)
    vitals = process.vitals()
    process.pass_time(vitals, 100, turns=False)
    assert vitals.report().live
    starting = Process(turned_at=0.0)
    vitals = starting.vitals()
    starting.pass_time(vitals, 100, turns=False)
    assert vitals.report().live


def test_a_process_that_stops_is_live_and_not_ready() -> None:
    """A worker may drain for hours, and its loop and its threads have ended."""
    process = Process(live=False, lacks="it is leaving the election")
    vitals = process.vitals()
    process.pass_time(vitals, 100, turns=False, renews=False)
    process.now += 1000
    report = vitals.report()
    assert (report.live, report.ready, report.missing) == (True, False, ("it is leaving the election",))


def test_kafka_away_makes_it_unready_and_no_more() -> None:
    """No restart brings Kafka back."""
    process = Process(away="no broker of Kafka answers")
    report = process.vitals().report()
    assert (report.live, report.ready, report.missing) == (True, False, ("no broker of Kafka answers",))


def test_the_loop_is_asked_to_turn() -> None:
    """The leadership's thread asks it, too, but not while it waits in a handover."""
    asked: list[bool] = []
    process = Process(working=lambda: asked.append(True) or True)
    process.pass_time(process.vitals(), 3)
    assert len(asked) == 3


def test_its_threads_begin_and_end() -> None:
    """A look that fails is logged and not the last one."""
    process = Process()
    vitals, looks = process.vitals(), []

    def fail() -> bool:
        looks.append(True)
        raise RuntimeError("no")

    process.working = fail
    vitals.start()
    end = time.monotonic() + 10
    while len(looks) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    vitals.stop()
    vitals.stop()
    assert len(looks) >= 2


def test_what_a_member_lacks() -> None:
    """It has joined when it has read the leader topic to its end and the group counts it in, leader or not."""
    stage = Stage(empty=False)
    stage.member.step(0)
    assert stage.member.unready == "the leader topic g.neli was not read to its end yet"
    stage = Stage().lead()
    assert stage.member.unready == ""
    stage.group.is_member = False
    assert stage.member.unready == "the consumer group g was not joined yet"
    stage.member.topic_error = TopicError("the topic is missing")
    assert stage.member.unready == "the topic is missing"
    stage.member.topic_error, stage.member.outdated = None, True
    assert "newer version of the protocol" in stage.member.unready


def test_a_workers_loop_may_wait_for_its_broker_and_a_solo_one_for_its_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another loop may not, and each turn of it is noted."""
    monkeypatch.setattr(state, "active_requests", set())  # other tests may have left some
    leadership: Any = Process()
    anything: Any = object()
    solo, other = (InFlight(anything, leadership, anything, inline=inline) for inline in (True, False))
    assert solo.excused()
    assert other.excused()
    assert other.unready() == "the task broker is not connected"

    class Consumer:
        pool = None

        def call_soon(self, call: Callable[[], None]) -> None:
            call()

    leadership.turned_at = 0.0
    for each in (solo, other):
        each.connected(Consumer())
        assert not each.excused()
        assert each.unready() == ""
    assert leadership.turned_at > 0
    monkeypatch.setattr(state, "active_requests", {object()})
    assert solo.excused()
    assert not other.excused()


def test_the_thread_that_renews_is_seen_to_move_also_while_it_fails() -> None:
    """It rests for up to 30 s between two attempts, which must not look as if it hung."""
    log = MemoryLog()
    config = Config(group="g", heartbeat_interval=0.05, heartbeat_timeout=0.4, takeover_delay=0.02, stall_timeout=1)
    leadership = Leadership(Celery("shop", set_as_current=False), "worker", config, connect=log.connect)
    assert (leadership.live, leadership.missing()) == (False, "it has not begun to take part yet")
    leadership.start()
    try:
        wait_until(leadership.leading, timeout=10, what="the lead")
        assert (leadership.live, leadership.missing()) == (True, "")
        moves(leadership)
        log.broken = log.failing = RuntimeError("no")
        wait_until(leadership.missing, timeout=10, what="the failure")
        for _ in range(3):
            moves(leadership)
        assert leadership.missing() == "it has not begun to take part yet"
        log.broken = log.failing = None
        wait_until(lambda: not leadership.missing(), timeout=20, what="the next attempt")
        leadership.unready = lambda: "the owner is busy"
        assert leadership.missing() == "the owner is busy"
    finally:
        leadership.stop()
    assert (leadership.live, leadership.missing()) == (False, "it is leaving the election")


def moves(leadership: Leadership) -> None:
    """Wait until the thread that renews has moved; it does so every second."""
    before = leadership.renewer_turned_at
    wait_until(lambda: leadership.renewer_turned_at > before, timeout=2, what="a move")
