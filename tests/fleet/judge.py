"""Judges the runs of a fleet's leader tasks: did two leaders work at once, and what became of each task?"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.fleet.runs import Received, Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What happened to `worker` (None: to all, by way of a broker) from `at` on; CLOCK_BOOTTIME, seconds.

    `frozen`: it was stopped in its time, and went on later. Its runs that began before `began_until` (`at`, and if only
    the main process was frozen, the end of the lease: the pool's children go on) may last into another's term.
    `lost_until`: tasks in hand between `at` and then may be lost, if they are acknowledged early; None: none may be.
    `in_flight`: how many may be lost on their way from the broker to a worker. That is 1 for a connection to Redis that
    breaks: kombu takes a message out of the queue (BRPOP), and notes only then that it has it.
    """

    at: float
    worker: str | None = None
    frozen: bool = False
    began_until: float = 0.0
    lost_until: float | None = None
    in_flight: int = 0


def overlaps(runs: Iterable[Run]) -> list[tuple[Run, Run]]:
    """Pairs of runs at the same time by different workers, or in different terms.

    A run without an end counts as its start alone: what overlaps here did overlap.
    """
    ordered = sorted(runs, key=lambda each: each.start)
    found = []
    open_: list[Run] = []
    for run in ordered:
        open_ = [each for each in open_ if _end(each) >= run.start]
        found += [(each, run) for each in open_ if (each.worker, each.term) != (run.worker, run.term)]
        open_.append(run)
    return found


def excused(pair: tuple[Run, Run], faults: Iterable[Fault]) -> bool:
    """Whether the older term's run was under way when its worker was frozen, and saw at its end that it led no more."""
    older = min(pair, key=lambda run: -1 if run.term is None else run.term)
    return older.still is False and any(
        fault.frozen and fault.worker == older.worker and older.start <= fault.began_until < _end(older)
        for fault in faults
    )


def _end(run: Run) -> float:
    return run.start if run.end is None else run.end


def done(runs: Iterable[Run]) -> set[str]:
    """The tasks whose body came to its end."""
    return {run.task for run in runs if run.end is not None}


def twice(runs: Iterable[Run]) -> dict[str, int]:
    """The tasks whose body began more than once, and how often."""
    return {task: count for task, count in Counter(run.task for run in runs).items() if count > 1}


def in_hand(fault: Fault, runs: Iterable[Run], received: Iterable[Received]) -> set[str]:
    """The tasks that the fault may have cost: in the hand of its worker, unstarted or running, when it struck."""
    if fault.lost_until is None:
        return set()
    until = fault.lost_until
    ours = [each for each in runs if fault.worker in (None, each.worker)]
    finished = {(each.worker, each.task) for each in ours if each.end is not None and each.end < fault.at}
    return {
        each.task
        for each in received
        if fault.worker in (None, each.worker) and each.at <= until and (each.worker, each.task) not in finished
    }


def unaccounted(
    sent: Iterable[str], runs: Iterable[Run], received: Iterable[Received], faults: Iterable[Fault]
) -> set[str]:
    """The tasks that were sent, did not come to their end, and were in no hand that a fault struck, nor on the way."""
    runs, received, faults = list(runs), list(received), list(faults)
    accounted = set().union(*(in_hand(fault, runs, received) for fault in faults))
    lost = set(sent) - done(runs) - accounted
    never_received = lost - {each.task for each in received}
    if len(never_received) <= sum(fault.in_flight for fault in faults):
        lost -= never_received
    return lost
