"""Singletons in real workers: one runs, also when the leader is stopped, killed or frozen, or the function fails."""

from __future__ import annotations

import json
import signal
import sys
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from tests.processes import wait_until
from tests.smoke import judge

if TYPE_CHECKING:
    from pathlib import Path

    from tests.smoke.members import Members, Process

pytestmark = [pytest.mark.smoke, pytest.mark.slow]
QUICK: dict[str, Any] = {"neli_heartbeat_interval": 0.3, "neli_heartbeat_timeout": 2.0}


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a singleton's record (see `singletons.py`)."""

    what: str
    term: int
    pid: int
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Relay:
    """What the singleton `relay` did, in all workers."""

    path: Path

    def lines(self, what: str | None = None) -> list[Line]:
        """In the order of their ends."""
        if not self.path.exists():
            return []
        words = [line.split() for line in self.path.read_text().split("\n")[:-1]]
        read = [Line(each[0], *map(int, each[1:3]), *map(float, each[3:])) for each in words]
        return [each for each in read if what in (None, each.what)]

    def wait_turn(self, *, but: tuple[int, ...] = ()) -> Line:
        """Wait for a turn of another term."""

        def turn() -> Line | None:
            return next((each for each in self.lines("turn") if each.term not in but), None)

        return wait_until(turn, timeout=40, what=f"a turn, see {self.path.parent}", interval=0.02)

    def assert_no_overlap(self) -> None:
        """No two turns of different terms, or of different processes, at the same time."""
        turns = [judge.Held(str(each.pid), each.term, each.start, each.end) for each in self.lines("turn")]
        assert judge.overlaps(turns) == []


@pytest.fixture
def relay(on_node: Members) -> Relay:
    on_node.project = "tests.smoke.singletons"
    on_node.settings.update(QUICK)
    return Relay(on_node.directory / "relay")


def workers(members: Members, count: int, *, pool: str = "prefork", turn: float = 0.05, **options: Any) -> None:
    """Start workers with the singleton `relay`; wait until all are ready."""
    told = {"SMOKE_SINGLETONS": json.dumps({"relay": options}), "SMOKE_TURN": str(turn)}
    told |= {"SMOKE_FAILS": "one"} if "max_failures" in options else {}
    for name in ("one", "two", "three")[:count]:
        members.worker("-P", pool, "-c", "1", name=name, environment=told)
        if "max_failures" in options:
            members.wait_leader()
    for each in members.all:
        wait_until(lambda each=each: " ready." in each.log, timeout=40, what=f"{each.name} to be ready")


def gone(pid: int) -> bool:
    """Whether the process has ended; nobody may have asked for its status yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def led_by(members: Members, term: int) -> Process:
    """Who held this term."""

    def holder() -> Process | None:
        return next((each for each in members.all if term in {held.term for held in each.held()}), None)

    return wait_until(holder, timeout=5, what=f"the holder of term {term}", interval=0.02)


def test_one_works_and_a_successor_goes_on(on_node: Members, relay: Relay) -> None:
    """Of three workers one calls the function; after a SIGTERM and after a SIGKILL another does."""
    workers(on_node, 3)
    first = relay.wait_turn()
    one = led_by(on_node, first.term)
    at = one.signal(signal.SIGTERM)
    second = relay.wait_turn(but=(first.term,))
    two = led_by(on_node, second.term)
    assert one.wait_end() == 0
    print(f"\nfirst turn of the next leader {second.start - at:.3f} s after SIGTERM")
    assert second.start - at < 1.5  # handed over, not run out
    at = two.signal(signal.SIGKILL)
    third = relay.wait_turn(but=(first.term, second.term))
    print(f"first turn of the next leader {third.start - at:.3f} s after SIGKILL")
    assert {first.pid, second.pid, third.pid} == {each.process.pid for each in on_node.all}
    on_node.alive[0].signal(signal.SIGTERM)
    assert led_by(on_node, third.term).wait_end() == 0
    relay.assert_no_overlap()
    of_first = [each.what for each in relay.lines() if each.term == first.term]
    assert (of_first[0], of_first[-1]) == ("setup", "teardown")
    assert [each.term for each in relay.lines("teardown")] == [first.term, third.term]
    assert all("Traceback" not in each.log for each in on_node.all)


def test_an_isolated_one_stops_with_its_worker(on_node: Members, relay: Relay) -> None:
    """Killed: its child ends. Frozen: its child begins no turns once the lease is over. The next goes on after that."""
    workers(on_node, 3, turn=0.2, isolate=True)
    first = relay.wait_turn()
    one = led_by(on_node, first.term)
    assert first.pid != one.process.pid
    one.signal(signal.SIGKILL)
    wait_until(lambda: gone(first.pid), timeout=3, what="the end of the killed worker's child")
    second = relay.wait_turn(but=(first.term,))
    two = led_by(on_node, second.term)
    two.signal(signal.SIGSTOP)
    third = relay.wait_turn(but=(first.term, second.term))
    assert not gone(second.pid)
    last = max(each.end for each in relay.lines("turn") if each.term == second.term)
    two.signal(signal.SIGCONT)
    wait_until(lambda: gone(second.pid), timeout=10, what="the end of the deposed worker's child")
    assert last == max(each.end for each in relay.lines("turn") if each.term == second.term)
    led_by(on_node, third.term).signal(signal.SIGTERM)
    assert led_by(on_node, third.term).wait_end() == 0
    wait_until(lambda: gone(third.pid), timeout=1, what="the end of the child")
    relay.assert_no_overlap()


def test_a_turn_without_an_end_is_terminated_with_the_lease(on_node: Members, relay: Relay) -> None:
    """The child of a killed worker would go on for a minute: it has ended by the time that another begins."""
    on_node.settings["neli_drain_timeout"] = 2.0
    workers(on_node, 2, turn=60, isolate=True)
    (first,) = wait_until(lambda: relay.lines("began"), timeout=40, what="a turn that goes on", interval=0.02)
    led_by(on_node, first.term).signal(signal.SIGKILL)
    wait_until(lambda: len(relay.lines("began")) > 1, timeout=40, what="the next leader's turn", interval=0.02)
    assert gone(first.pid)
    (other,) = on_node.alive
    other.signal(signal.SIGTERM)
    assert other.wait_end() == 0  # after neli_drain_timeout, without the turn
    wait_until(lambda: gone(relay.lines("began")[1].pid), timeout=1, what="the end of its child")
    assert relay.lines("turn") == []


def test_a_function_that_fails_moves_to_another_worker(on_node: Members, relay: Relay) -> None:
    """It fails in the first worker only; after three failures in a row the other leads, and it works."""
    workers(on_node, 2, max_failures=3)
    turn = relay.wait_turn()
    two = led_by(on_node, turn.term)
    assert two.name == "two"
    (one, _) = on_node.all
    failed = relay.lines("failed")
    assert {each.pid for each in failed} == {one.process.pid}
    # It may have led twice, before the other had joined.
    assert set(Counter(each.term for each in failed).values()) == {3}
    assert "3 failures in a row (max_failures); resigning" in one.log
    assert one.log.count("RuntimeError: as told") == len(failed)
    relay.assert_no_overlap()


@pytest.mark.parametrize(
    ("pool", "isolate"), [("threads", False), ("solo", False), ("gevent", False), ("gevent", True)]
)
def test_it_runs_in_every_pool(pool: str, isolate: bool, on_node: Members, relay: Relay) -> None:
    """In the main process, or one of its own, from setup to teardown."""
    if pool == "gevent":
        pytest.importorskip("gevent")
        if isolate and sys.version_info < (3, 11):
            pytest.skip("refused: gevent with isolate needs Python 3.11")
    workers(on_node, 1, pool=pool, isolate=isolate)
    turn = relay.wait_turn()
    (one,) = on_node.all
    assert (turn.pid == one.process.pid) is not isolate
    one.signal(signal.SIGTERM)
    assert one.wait_end() == 0
    assert [each.what for each in relay.lines()][-1] == "teardown"
    assert "Traceback" not in one.log
