"""What the history tells of a slot, as a verdict. Pure."""

from __future__ import annotations

from typing import Final

from celery_neli import hooks
from celery_neli.explain.facts import Facts, Gap, gap_within
from celery_neli.explain.verdict import Verdict, is_before_log, without_leader
from celery_neli.explain.words import Words, named, span
from celery_neli.history.records import BACKFILL
from celery_neli.history.runs import FAILED, REJECTED, RETRIED, REVOKED, STARTED, SUCCEEDED, Run

LATE: Final = 1.0  # seconds after which a slot was sent late

#: What its task did: the verdict, if it ran, and the words.
TASKS: Final = {
    SUCCEEDED: ("succeeded", True, "Its task succeeded"),
    FAILED: ("failed", True, "Its task failed"),
    STARTED: ("started", True, "Its task was started, and no worker has told of its end"),
    RETRIED: ("retried", True, "Its task failed and is retried"),
    REVOKED: ("revoked", False, "Its task was revoked and did not run"),
    REJECTED: ("rejected", False, "Its worker rejected the message"),
}


def verdict_of_history(facts: Facts, words: Words) -> Verdict | None:
    """Return what the history tells, None if it tells nothing of the slot."""
    run = facts.run
    if run is None or (run.outcome is None and run.state is None):
        return None
    if run.outcome in (hooks.SENT, None) or run.state is not None:
        return _sent(facts, run, words)
    if run.outcome == hooks.SENDING:
        began = f"A backfill by {named(run.member)} began to send it at {words.time(run.at, exact=True)}"
        return Verdict("in doubt", None, _sentences(began, "What came of that is not known: it may have been sent"))
    if run.outcome == hooks.FAILED and run.policy == BACKFILL:
        unsent = f"A backfill by {named(run.member)} could not send it"
        return Verdict("not sent", False, _sentences(unsent, _error(run)))
    if run.outcome == hooks.FAILED:
        tries = f"{run.attempts} time{'s' if run.attempts != 1 else ''}"
        last = words.time(run.at, exact=True)
        tried = f"the leader {named(run.member)} tried {tries}, the last time at {last}, and retries it"
        return Verdict("not sent", False, _sentences(f"It could not be sent: {tried}", _error(run)))
    if run.outcome == hooks.REFUSED:
        return Verdict("refused", False, _sentences("The application refused to send it", _error(run)))
    if run.outcome == hooks.IN_DOUBT:
        doubt = "It was in doubt: an earlier leader may or may not have sent it"
        not_again = "It was not sent again, because neli_in_doubt = 'skip'"
        return Verdict("skipped in doubt", False, _sentences(doubt, not_again))
    return _skipped(facts, run, words)


def _sent(facts: Facts, run: Run, words: Words) -> Verdict:
    name, ran, task = TASKS.get(run.state or "", (run.state or "sent", True, f"Its task was {named(run.state)}"))
    unknown: tuple[str, ...] = ()
    if run.state is None:
        task = "No worker told what its task did"
        why = "no record of a worker is in the history. Workers that call celery_neli.install(app) write them"
        unknown = (f"What its task did: {why}.",)
    else:
        retries = f" after {run.retries} retr{'y' if run.retries == 1 else 'ies'}" if run.retries else ""
        worker = f" on {named(run.worker)}" if run.worker else ""
        runtime = "" if run.runtime is None else f" in {span(run.runtime)}"
        task += f"{retries}{worker}{runtime}"
    sent, late = "It was sent on time", None if run.late is None else run.late - facts.shift
    if run.outcome == hooks.SENT and run.policy == BACKFILL:
        sent = f"A backfill by {named(run.member)} sent it at {words.time(run.at, exact=True)}"
    elif run.outcome != hooks.SENT:
        sent = "It was sent, though no record of a beat says so"
    elif late is None:
        sent = "It was sent"
    elif facts.shift and late < LATE:
        sent = f"It was sent on time, {span(facts.shift)} after its slot by its neli_jitter"
    elif late >= LATE:
        sent = f"It was sent {span(late)} late{_why_late(facts, run, words)}"
    doubt = ""
    if run.in_doubt:
        may = "It was in doubt, because an earlier leader may or may not have sent it"
        doubt = f"{may}, and was sent again: neli_in_doubt = {named(run.in_doubt)!r}"
    return Verdict(name, ran, _sentences(sent, doubt, task, _error(run)), unknown)


def _why_late(facts: Facts, run: Run, words: Words) -> str:
    if (gap := _gap_before(facts, run)) is not None:
        return f": {without_leader(facts, gap, words)}"
    if run.attempts > 1:
        return f": sending it failed {run.attempts - 1} time{'s' if run.attempts > 2 else ''} before"
    return ""


def _skipped(facts: Facts, run: Run, words: Words) -> Verdict:
    if run.policy == "overlap":
        why = f"the task of an earlier slot had not finished: neli_overlap = {facts.overlap!r}"
        return Verdict("overlap", False, f"It was left out, because {why}.")
    many = f" together with {run.count - 1} other{'s' if run.count > 2 else ''}" if run.count > 1 else ""
    policy = f": neli_misfire = {facts.misfire!r}" if facts.misfire else ""
    why = f"It was left out{many} by the misfire policy{policy}, because it was late"
    if (gap := _gap_before(facts, run)) is not None:
        why += f": {without_leader(facts, gap, words)}"
    doubt = "It was in doubt, too: an earlier leader had claimed it, and may have sent it" if run.in_doubt else ""
    later = facts.later
    then = "" if later is None else f"The next slot that ran is that of {words.time(later.slot)}"
    return Verdict("misfire", None if run.in_doubt else False, _sentences(why, doubt, then))


def _gap_before(facts: Facts, run: Run) -> Gap | None:
    """Return the time without a leader that kept the slot from being served before something was told of it."""
    if facts.slot is None or is_before_log(facts):
        return None
    due = facts.slot + facts.shift
    return gap_within(facts.terms, due, due if run.at is None else max(due, run.at))


def _error(run: Run) -> str:
    return f"Error: {named(run.error)}" if run.error else ""


def _sentences(*parts: str) -> str:
    return " ".join(f"{part}." for part in parts if part)
