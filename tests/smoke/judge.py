"""Judges what the processes of one election wrote of themselves: did two hold it at once, did a deposed one send?

Processes of one machine share one clock (CLOCK_BOOTTIME), so their records (see `recorder.py`) compare. An interval
begins and ends *inside* the time in which the lease held, so what overlaps here did overlap.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Held:
    """`member` held `term` from `start` to `end` (seconds, CLOCK_BOOTTIME); `margin`: the least left of its lease."""

    member: str
    term: int
    start: float
    end: float
    margin: float = 0.0


@dataclass(frozen=True, slots=True)
class Transition:
    """A signal that the process received: `kind` is acquired, revoked or fenced; `at` is CLOCK_BOOTTIME."""

    member: str
    kind: str
    term: int
    at: float


def read(path: Path, member: str) -> tuple[list[Held], list[Transition]]:
    """What one process wrote, up to the last whole line. A file that is not there yet is empty."""
    held: list[Held] = []
    transitions: list[Transition] = []
    was_held = False
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    for line in lines:
        word, *values = line.split()
        if word == "free":
            was_held = False
        elif word == "held":
            term, start, end, margin = int(values[0]), float(values[1]), float(values[2]), float(values[3])
            last = held[-1] if was_held else None
            if last is not None and last.term == term:
                held[-1] = Held(member, term, last.start, end, min(margin, last.margin))
            elif end >= start:
                held.append(Held(member, term, start, end, margin))
                was_held = True
        else:
            transitions.append(Transition(member, word, int(values[0]), float(values[1])))
    return held, transitions


def overlaps(intervals: Iterable[Held]) -> list[tuple[Held, Held]]:
    """Pairs of different members, or different terms, that held at the same time."""
    ordered = sorted(intervals, key=lambda each: (each.start, each.end))
    found = []
    for index, one in enumerate(ordered):
        for other in ordered[index + 1 :]:
            if other.start > one.end:
                break
            if (one.member, one.term) != (other.member, other.term):
                found.append((one, other))
    return found


def falls(terms: Sequence[int]) -> list[tuple[int, int, int]]:
    """Where the terms of messages, in the order of their arrival, fall: (position, the term before, the lower one)."""
    return [(at, one, two) for at, (one, two) in enumerate(itertools.pairwise(terms), 1) if two < one]
