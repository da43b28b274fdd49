"""The judge of the fleets finds what it is there to find."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.fleet import judge, runs
from tests.fleet.judge import Fault
from tests.fleet.runs import Received, Run, RunLog

if TYPE_CHECKING:
    from pathlib import Path

ONE = Run("t1", "a", 5, 1.0, 2.0, True)


@pytest.mark.parametrize(
    ("other", "found"),
    [
        (Run("t2", "b", 9, 3.0, 4.0), 0),  # later
        (Run("t2", "b", 9, 1.5, 4.0), 1),  # before the first one ended
        (Run("t2", "b", 9, 1.2, 1.3), 1),  # within
        (Run("t2", "b", 9, 0.5, 2.5), 1),  # around
        (Run("t2", "b", 9, 1.5, None), 1),  # never ended, but began within
        (Run("t2", "b", 9, 0.5, None), 0),  # nobody knows that it went on
        (Run("t2", "a", 5, 1.5, 1.7), 0),  # one leader's pool runs two at once
        (Run("t2", "a", 9, 1.5, 1.7), 1),  # one worker in two terms
        (Run("t2", "b", None, 1.5, 1.7), 1),  # no leader at all
    ],
)
def test_overlaps_are_found(other: Run, found: int) -> None:
    """Two workers at once, or two terms; in whichever order they are given."""
    assert len(judge.overlaps([ONE, other])) == len(judge.overlaps([other, ONE])) == found


def test_an_overlap_with_a_long_run_is_found_behind_others() -> None:
    """Not only between neighbours."""
    long = Run("t0", "a", 5, 0.0, 9.0)
    late = Run("t2", "b", 9, 8.0, 8.1)
    assert judge.overlaps([long, ONE, late]) == [(long, late)]


FROZEN = Fault(at=1.5, worker="a", frozen=True, began_until=1.5)


@pytest.mark.parametrize(
    ("run", "fault", "excused"),
    [
        (Run("t1", "a", 5, 1.0, 9.0, False), FROZEN, True),
        (Run("t1", "a", 5, 1.0, 9.0, True), FROZEN, False),  # it believed to lead
        (Run("t1", "a", 5, 1.6, 9.0, False), FROZEN, False),  # it began when it was frozen
        (Run("t1", "c", 5, 1.0, 9.0, False), FROZEN, False),  # another worker was frozen
        (Run("t1", "a", 5, 1.0, 9.0, False), Fault(at=1.5, worker="a"), False),  # killed, not frozen
        (Run("t1", "a", 5, 1.0, 1.4, False), FROZEN, False),  # over when the worker was frozen
        (Run("t1", "a", 11, 1.0, 9.0, False), FROZEN, False),  # the later term is not the one that was deposed
    ],
)
def test_only_a_frozen_run_that_sees_its_loss_is_excused(run: Run, fault: Fault, excused: bool) -> None:
    """It cannot be called back, but it can know."""
    assert judge.excused((run, Run("t2", "b", 9, 1.2, 8.1, True)), [fault]) is excused


def test_what_ran_and_what_did_not_is_told() -> None:
    """A body that began only is not done; one that began again is told."""
    again = Run("t2", "b", 9, 5.0, None)
    assert judge.done([ONE, again]) == {"t1"}
    assert judge.twice([ONE, again, Run("t2", "b", 9, 6.0, 7.0)]) == {"t2": 2}


RECEIVED = [Received(f"t{number}", worker, at) for number, worker, at in [(1, "a", 0.5), (2, "a", 0.6), (3, "b", 0.7)]]


@pytest.mark.parametrize(
    ("fault", "lost"),
    [
        (Fault(at=9.0, worker="a", lost_until=9.0), {"t3"}),  # t2 was in its hand; t1 was done
        (Fault(at=1.5, worker="b", lost_until=1.5), {"t2"}),  # in another's hand
        (Fault(at=0.1, worker="a", lost_until=0.1), {"t2", "t3"}),  # received after that
        (Fault(at=0.1, lost_until=9.0), set()),  # the broker went, for all
        (Fault(at=9.0, worker="a"), {"t2", "t3"}),  # a fault that may lose nothing
    ],
)
def test_a_loss_is_accounted_for_by_the_hand_it_was_in(fault: Fault, lost: set[str]) -> None:
    """Only there, and only then."""
    assert judge.unaccounted(["t1", "t2", "t3"], [ONE], RECEIVED, [fault]) == lost


@pytest.mark.parametrize(
    ("in_flight", "sent", "lost"),
    [
        (1, ["t8"], set()),
        (0, ["t8"], {"t8"}),
        (1, ["t8", "t9"], {"t8", "t9"}),  # more than can have been on the way
        (1, ["t2"], {"t2"}),  # it had arrived
    ],
)
def test_one_may_be_lost_on_the_way_from_redis(in_flight: int, sent: list[str], lost: set[str]) -> None:
    """If nobody ever received it."""
    assert judge.unaccounted(sent, [ONE], RECEIVED, [Fault(at=9.0, in_flight=in_flight)]) == lost


def test_a_task_that_had_ended_before_the_fault_was_in_no_hand() -> None:
    """So it cannot be lost."""
    assert judge.in_hand(Fault(at=3.0, worker="a", lost_until=3.0), [ONE], RECEIVED) == {"t2"}
    assert judge.in_hand(Fault(at=1.9, worker="a", lost_until=1.9), [ONE], RECEIVED) == {"t1", "t2"}


def test_what_workers_write_is_read(tmp_path: Path) -> None:
    """Whole lines only; a body without an end is one without an end."""
    log = RunLog(tmp_path, "a")
    log.received("t1")
    log.start("t1", 5)
    log.end("t1", 5, still=True)
    log.start("t2", None)
    log.start("t3", 5)
    (path,) = tmp_path.iterdir()
    path.write_text(path.read_text() + "end t3 5 1")
    found, received = runs.Reader(tmp_path).read()
    assert [(run.task, run.worker, run.term, run.still) for run in found] == [
        ("t1", "a", 5, True),
        ("t2", "a", None, None),
        ("t3", "a", 5, None),
    ]
    assert [run.end is None for run in found] == [False, True, True]
    assert [each.task for each in received] == ["t1"]


def test_a_task_that_two_threads_run_at_once_is_two_runs(tmp_path: Path) -> None:
    """It came twice, as tasks acknowledged late may; each end belongs to the start of its own thread."""
    log = RunLog(tmp_path, "a")
    with ThreadPoolExecutor(1) as other:
        log.start("t1", 5)
        other.submit(log.start, "t1", 5).result()
        log.end("t1", 5, still=True)
        other.submit(log.end, "t1", 5, still=False).result()
    found, _ = runs.Reader(tmp_path).read()
    first, second = found
    assert (first.task, first.still, second.task, second.still) == ("t1", True, "t1", False)
    assert first.end is not None
    assert second.end is not None
    assert first.start <= second.start <= first.end <= second.end


def test_a_body_that_raised_has_no_end(tmp_path: Path) -> None:
    """Its thread begins the next."""
    log = RunLog(tmp_path, "a")
    log.start("t1", 5)
    log.start("t1", 5)
    log.end("t1", 5, still=True)
    found, _ = runs.Reader(tmp_path).read()
    assert [(run.task, run.end is None) for run in found] == [("t1", True), ("t1", False)]
