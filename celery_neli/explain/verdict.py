"""What a judge of a slot returns, and the words that judges share. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from celery_neli.explain.facts import Facts, Gap
from celery_neli.explain.words import Words, named, span
from celery_neli.timeline import EXPIRED


@dataclass(frozen=True, slots=True)
class Verdict:
    """One word or two, if it ran (None: that is not known), the reason, and what is not known."""

    name: str
    ran: bool | None
    why: str
    unknown: tuple[str, ...] = ()


def is_before_log(facts: Facts) -> bool:
    """Return True if the leader topic does not hold the time of the slot any more."""
    return facts.due is not None and facts.log_begins is not None and facts.due < facts.log_begins


def without_leader(facts: Facts, gap: Gap, words: Words) -> str:
    """Return since when and until when no member led the role."""
    role = f"role {facts.role}" if facts.roles > 1 else "the role"
    begin = "" if gap.begin is None else f" from {words.time(gap.begin, exact=True)}"
    end = "" if gap.end is None else f" to {words.time(gap.end, exact=True)}"
    long = "" if gap.seconds is None else f" ({span(gap.seconds)})"
    text = f"no member led {role}{begin}{end}{long}"
    before = gap.before
    if before is not None and before.end == EXPIRED and facts.due is not None and facts.due < (gap.begin or 0.0):
        heard = "" if before.heard is None else f" after {words.time(before.heard, exact=True)}"
        text = f"the leader {named(before.leader)} was not heard of{heard}, and {text}"
    return text
