"""What `celery neli watch` shows, as values; and what is new in it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from celery_neli.explain.events import ending
from celery_neli.explain.words import span
from celery_neli.history.runs import Run
from celery_neli.printable import printable
from celery_neli.timeline import Term

RECENT = 20  # terms of a role of which news may come


class News(NamedTuple):
    """Something that happened, at a time (Unix seconds)."""

    at: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleView:
    """One role of an election. `left`: seconds until its lease runs out, if no further heartbeat comes."""

    election: str
    role: str
    term: Term | None
    left: float = 0.0

    @property
    def led(self) -> bool:
        """Return True if a member leads it."""
        return self.term is not None and self.term.lives


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberView:
    """One member of an election; `leads` names its roles."""

    election: str
    name: str
    host: str = ""
    leads: Sequence[str] = ()
    answers: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Upcoming:
    """The next slot of an entry, and when it is due (Unix seconds); one whose due time is past is overdue."""

    entry: str
    slot: float
    due: float


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """All that is known at a moment `at`, by the clock that sets the records' times."""

    at: float
    roles: list[RoleView] = field(default_factory=list)
    members: list[MemberView] | None = None  # None: not known yet
    last: list[Run] = field(default_factory=list)  # newest first
    upcoming: list[Upcoming] = field(default_factory=list)  # the next first
    problems: list[str] = field(default_factory=list)


class TermNews:
    """Finds out what is new in the terms of one election. What it sees first is no news."""

    def __init__(self, election: str) -> None:
        self._election = election
        self._seen: dict[str, dict[int, str]] = {}  # by role: how each term ended, as far as was told
        self._begun = False

    def of(self, terms: Mapping[str, Sequence[Term]]) -> list[News]:
        """Return what began and ended since the last call, in the order of the times."""
        found: list[News] = []
        for role, all_ in terms.items():
            recent = all_[-RECENT:]
            before = self._seen.get(role, {})
            self._seen[role] = {each.term: each.end for each in recent}
            for term in recent if self._begun else ():
                found += self._of_term(term, before.get(term.term))
        self._begun = True
        return sorted(found, key=lambda each: each.at)

    def _of_term(self, term: Term, before: str | None) -> list[News]:
        what = f"{self._election} role {printable(term.role)}: term {term.term} of {printable(term.leader)}"
        found = []
        if before is None and term.began is not None:
            gap = "" if term.gap is None else f", after {span(term.gap)} without a leader"
            found.append(News(term.began, f"{what} began{gap}"))
        if not term.lives and term.end != before:
            at = term.ended if term.ended is not None else term.heard or 0.0
            found.append(News(at, f"{what} ended: {ending(term)}"))
        return found


def role_line(view: RoleView) -> str:
    """Return a role in one line."""
    what = f"{view.election} role {printable(view.role)}"
    term = view.term
    if term is None:
        return f"{what}: no member has led yet, as far as the log shows"
    if not term.lives:
        return f"{what}: NO LEADER: term {term.term} of {printable(term.leader)} ended: {ending(term)}"
    return f"{what}: {printable(term.leader)} leads, term {term.term}, lease left {max(0.0, view.left):.1f} s"


def run_line(run: Run) -> str:
    """Return what is known of a run in one line."""
    parts = [run.state or run.outcome or "?"]
    if run.policy:
        parts.append(f"policy {printable(run.policy)}")
    if run.in_doubt:
        parts.append("was in doubt")
    if run.count > 1:
        parts.append(f"{run.count} slots")
    if run.late is not None and run.late >= 1:
        parts.append(f"{span(run.late)} late")
    if run.runtime is not None:
        parts.append(f"ran {span(run.runtime)}")
    if run.worker:
        parts.append(f"on {printable(run.worker)}")
    if run.error:
        parts.append(printable(run.error))
    return ", ".join(parts)
