"""What is known of one slot of an entry, from the three topics and the schedule: plain values, for `story` to judge."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from celery_neli.history.runs import Run
from celery_neli.schedule_topic.codec import MAX_CHANGES, Change, State
from celery_neli.schedule_topic.rules import Pause as BulkPause
from celery_neli.timeline import Claim, Term

_PAUSED = re.compile(r"paused(?: until (?P<until>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)Z)?")
_SCHEDULE = re.compile(
    r"changed (?:task, )?schedule (?P<old>.+) -> (?P<new>.+?)(?:, (?:args|kwargs|options))*", re.DOTALL
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of one slot. Times are Unix seconds; None where something is unknown or does not exist."""

    entry: str
    now: float
    slot: float | None  # None: no slot of the entry was due yet
    exact: bool = True  # False: the schedule has no slot then; `before` and `after` are its nearest ones
    before: float | None = None
    after: float | None = None
    shift: float = 0.0  # how many seconds after its slot it is due (neli_jitter)
    left_out: str = ""  # why the entry's options leave out the slot
    schedule: str = ""  # its text, as it was at the time of the slot

    # The entry, by the schedule topic and this process's beat_schedule
    exists: bool = True
    runtime: bool = False  # it was put at runtime; else it is in beat_schedule
    problem: str = ""  # why no beat runs it
    paused: bool = False  # by itself
    held: Sequence[BulkPause] = ()  # the pauses of many entries that it is one of, ended ones too
    since: float | None = None  # no slot at or before it runs
    changes: Sequence[Change] = ()
    removed: float | None = None  # when its definition was deleted
    state: State | None = None
    states: Sequence[tuple[float, State]] = ()  # those that Kafka still has, with the times of their records
    misfire: str = ""
    overlap: str = "skip"  # its policy, if it has one
    in_doubt: str = ""

    # The role, by the leader topic
    role: str = "leader"
    roles: int = 1
    terms: Sequence[Term] = ()
    log_begins: float | None = None  # the time of its first record, None if nothing is missing before it
    log_problem: str = ""  # why it was not read
    claims: Sequence[Claim] = ()
    marked: bool = True  # its records tell which slots were claimed

    # The history
    run: Run | None = None  # what it says of the slot, maybe with others that were left out together
    later: Run | None = None  # the first run of a later slot that was sent
    no_history: str = ""  # why it says nothing

    @property
    def due(self) -> float | None:
        """When the slot was due."""
        return None if self.slot is None else self.slot + self.shift


class Gap(NamedTuple):
    """A time without a leader: `begin` and `end` are None where the log does not show them, or it lasts."""

    begin: float | None
    end: float | None
    before: Term | None
    after: Term | None

    @property
    def seconds(self) -> float | None:
        """Return how long it was."""
        return None if self.begin is None or self.end is None else self.end - self.begin


class Pause(NamedTuple):
    """A pause: the changes that began and ended it, None if the entry does not remember it, or it lasts."""

    begin: Change | None
    end: Change | None
    until: float | None = None  # when it ends by itself, to the second


def gap_at(terms: Sequence[Term], moment: float) -> Gap | None:
    """Return the time without a leader at this moment, None if a term covers it."""
    if any(each.covers(moment) for each in terms):
        return None
    before = next((each for each in reversed(terms) if each.ended is not None and each.ended <= moment), None)
    after = next((each for each in terms if each.began is not None and each.began > moment), None)
    return Gap(before.ended if before else None, after.began if after else None, before, after)


def gap_within(terms: Sequence[Term], begin: float, end: float) -> Gap | None:
    """Return the first time without a leader that touches `begin` to `end`, None if there was always one."""
    if (gap := gap_at(terms, begin)) is not None:
        return gap
    ends = sorted(each.ended for each in terms if each.ended is not None and begin <= each.ended < end)
    return next((gap for gap in (gap_at(terms, each) for each in ends) if gap is not None), None)


def term_at(terms: Sequence[Term], moment: float) -> Term | None:
    """Return the term that covers this moment."""
    return next((each for each in terms if each.covers(moment)), None)


def pause_at(changes: Sequence[Change], moment: float, *, paused: bool) -> Pause | None:
    """Return the pause of an entry at this moment; `paused`: it is paused now."""
    begin: Change | None = None
    until: float | None = None
    known = len(changes) < MAX_CHANGES  # the first change is the entry's first
    for change in changes:
        if (paused_by := _PAUSED.fullmatch(change.what)) is not None:
            if begin is None or (until is not None and until < change.at):
                begin = change
            known, until = True, _unix(paused_by["until"])
        elif change.what == "resumed":
            ended = change.at if until is None else min(until, change.at)
            if moment < ended and (begin.at <= moment if begin is not None else not known):
                return Pause(begin, change)
            begin, until, known = None, None, True
    if begin is not None:
        return Pause(begin, None, until) if begin.at <= moment <= (moment if until is None else until) else None
    return Pause(None, None) if paused and not any(each.what == "resumed" for each in changes) else None


def _unix(text: str | None) -> float | None:
    return None if text is None else datetime.fromisoformat(f"{text}+00:00").timestamp()


def bulk_pause_at(held: Sequence[BulkPause], moment: float) -> BulkPause | None:
    """Return the pause of many entries that held the entry at this moment."""
    return next((each for each in held if each.at <= moment and (each.until is None or moment <= each.until)), None)


def schedule_change_after(changes: Sequence[Change], moment: float) -> tuple[Change, str, str] | None:
    """Return the first change of the schedule after this moment, with the old text and the new one."""
    for change in changes:
        if change.at > moment and (found := _SCHEDULE.fullmatch(change.what)):
            return change, found["old"], found["new"]
    return None


def added_after(changes: Sequence[Change], moment: float) -> Change | None:
    """Return the change by which the entry was put, if that was after this moment."""
    first = changes[0] if changes else None
    return first if first is not None and first.at > moment and first.what == "added" else None
