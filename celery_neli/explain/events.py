"""What happened around a slot, one line each with its time: terms, claims, what was sent, what the task did. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from celery_neli import hooks
from celery_neli.explain.facts import Facts, gap_within, pause_at, schedule_change_after, term_at
from celery_neli.explain.words import Words, named, span
from celery_neli.history.runs import Run
from celery_neli.timeline import DEPOSED, EXPIRED, HANDED_OVER, RELEASED, Claim, Term


def events_of(facts: Facts, words: Words) -> list[tuple[float, str]]:
    """Return what happened, in the order of the times."""
    if facts.slot is None:
        return []
    found = [(at, what) for at, what in _events(facts, facts.slot, words) if at is not None]
    return sorted(found, key=lambda each: each[0])


def _events(facts: Facts, slot: float, words: Words) -> Iterator[tuple[float | None, str]]:
    due = slot + facts.shift
    if facts.exact and due <= facts.now:
        yield due, "the slot was due" + (f", {facts.shift:.3f} s after its time (neli_jitter)" if facts.shift else "")
    yield from _of_definition(facts, slot)
    if facts.exact and due <= facts.now:
        yield from _of_terms(facts, due)
        for claim in facts.claims:
            yield from _of_claim(claim)
    if facts.run is not None:
        yield from _of_run(facts.run)


def _of_definition(facts: Facts, slot: float) -> Iterator[tuple[float | None, str]]:
    told = []
    if (pause := pause_at(facts.changes, slot, paused=facts.paused)) is not None:
        told += [each for each in (pause.begin, pause.end) if each is not None]
    if (changed := schedule_change_after(facts.changes, slot)) is not None:
        told.append(changed[0])
    for change in told:
        yield change.at, f"{named(change.by)}: {named(change.what)}"
    if facts.removed is not None:
        yield facts.removed, "the entry was removed"


def _of_terms(facts: Facts, slot: float) -> Iterator[tuple[float | None, str]]:
    """Tell of the term at the slot, or of those around the gap, and of those that claimed it later."""
    told_at = facts.run.at if facts.run is not None and facts.run.at is not None else slot
    gap = gap_within(facts.terms, slot, told_at)
    around = [term_at(facts.terms, slot)] if gap is None else [gap.before, gap.after]
    claimed = {each.term for each in facts.claims}
    told = [each for each in facts.terms if each in around or each.term in claimed]
    last = max((each.at or each.settled or slot for each in facts.claims), default=slot)
    for term in told:
        yield term.began, f"term {term.term} of {named(term.leader)} began" + _after(term)
        if term.ended is not None and (term.ended <= last or (gap is not None and term is gap.before)):
            yield term.ended, f"term {term.term} of {named(term.leader)} ended: {ending(term)}"


def _after(term: Term) -> str:
    return "" if term.gap is None or term.gap < 0.05 else f", after {span(term.gap)} without a leader"


def ending(term: Term) -> str:
    """Return how a term ended, in words."""
    if term.end == RELEASED:
        return "its leader released the role"
    if term.end == HANDED_OVER:
        by = "an operator" if term.asked_by == "request" else named(term.asked_by)
        whom = "" if not term.asked_for else f" for {named(_name(term.asked_for))}"
        return f"handed over{whom}, as {by} had asked"
    if term.end == EXPIRED:
        return f"its lease of {span(term.lease)} ran out"
    if term.end == DEPOSED:
        return "another member claimed the role before the lease had run out, by the times of the records"
    return "the log does not show how"


def _name(member: str) -> str:
    return member.rpartition("/")[0] or member


def _of_claim(claim: Claim) -> Iterator[tuple[float | None, str]]:
    who = f"term {claim.term}"
    doubt = ", which an earlier term had claimed and not settled" if claim.doubt else ""
    yield claim.at, f"{who} claimed the slot{doubt} (offset {claim.offset})"
    yield claim.read_back, f"by then {named(claim.leader)} had read its claim back: its next record shows it"
    if claim.settled is not None:
        yield claim.settled, f"{who} recorded that everything up to the slot is settled (offset {claim.settled_offset})"


def _of_run(run: Run) -> Iterator[tuple[float | None, str]]:
    term = "" if run.term is None else f" in term {run.term}"
    by = f"{named(run.member)}{term}" if run.member else f"the leader{term}"
    if run.outcome == hooks.SENT:
        late = "" if run.late is None or run.late < 0.001 else f", {run.late:.3f} s after its slot"
        sure = f", as {named(run.id)}" if run.id else ""
        yield run.at, f"{by} had sent its message{sure}{late} (confirmed as far as the task broker can)"
    elif run.outcome == hooks.SENDING:
        yield run.at, f"a backfill by {named(run.member)} began to send its message"
    elif run.outcome == hooks.FAILED:
        yield run.at, f"{by} could not send it: {named(run.error)}"
    elif run.outcome == hooks.REFUSED:
        yield run.at, f"the application refused to send it: {named(run.error)}"
    elif run.outcome == hooks.SKIPPED:
        yield run.at, f"{by} left it out (policy {named(run.policy)})"
    elif run.outcome == hooks.IN_DOUBT:
        yield run.at, f"{by} found it in doubt and skipped it"
    worker = named(run.worker)
    yield run.started, f"{worker} started its task {named(run.task)}"
    if run.state is not None:
        runtime = "" if run.runtime is None else f" after {run.runtime:.3f} s"
        error = f": {named(run.error)}" if run.error else ""
        yield run.finished, f"{worker} told that its task {named(run.state)}{runtime}{error}"
