"""What became of a slot, judged from the facts: a verdict, a sentence, and what happened when. Pure."""

from __future__ import annotations

from typing import Final

from celery_neli.explain.events import events_of
from celery_neli.explain.facts import (
    Facts,
    Gap,
    added_after,
    bulk_pause_at,
    gap_at,
    pause_at,
    schedule_change_after,
    term_at,
)
from celery_neli.explain.report import Story
from celery_neli.explain.told import verdict_of_history
from celery_neli.explain.verdict import Verdict, is_before_log, without_leader
from celery_neli.explain.words import Words, named, span
from celery_neli.printable import printable
from celery_neli.timeline import Claim

SOON: Final = 15.0  # seconds after a slot within which it may be on its way


def explain(facts: Facts, words: Words | None = None) -> Story:
    """Return the story of the slot. Never raises for facts that contradict each other: the history counts first."""
    words = words or Words()
    found = _Judge(facts, words).verdict()
    unknown = [*found.unknown]
    if facts.no_history and not any(facts.no_history in each for each in unknown):
        unknown.append(f"What its task did, and what policies decided: {facts.no_history}.")
    if facts.log_problem and not any(facts.log_problem in each for each in unknown):
        unknown.append(f"Who led, and what was claimed: {facts.log_problem}.")
    elif is_before_log(facts):
        begins = words.time(facts.log_begins)
        unknown.append(f"Who led, and what was claimed: the leader topic holds nothing from before {begins}.")
    return Story(
        entry=facts.entry,
        slot=facts.slot,
        verdict=found.name,
        ran=found.ran,
        summary=found.why,
        events=events_of(facts, words),
        unknown=unknown,
        role=facts.role,
        claims=tuple(facts.claims),
        run=facts.run,
    )


class _Judge:
    def __init__(self, facts: Facts, words: Words) -> None:
        self.facts, self.words = facts, words

    def verdict(self) -> Verdict:
        facts = self.facts
        if (told := verdict_of_history(facts, self.words)) is not None:
            return told
        for judge in (
            self._of_absence,
            self._of_schedule,
            self._of_definition,
            self._of_state,
            self._of_leaders,
        ):
            if (found := judge()) is not None:
                return found
        why = "No source says what became of it"
        begins = f": no record of it is in the history, and {self._no_log()}" if self._no_log() else ""
        return Verdict("unknown", None, f"{why}{begins or ''}.", self._no_records(facts))

    # What the schedule says

    def _of_absence(self) -> Verdict | None:
        facts = self.facts
        if facts.exists:
            return None
        if facts.removed is not None:
            if facts.slot is not None and facts.slot < facts.removed:
                return None if facts.exact and facts.terms else self._removed()
            return self._removed()
        return Verdict(
            "removed",
            False,
            "The entry is in the schedule no more: it was removed, or taken out of beat_schedule, at a time that the "
            "schedule topic does not hold any more.",
        )

    def _removed(self) -> Verdict:
        at = self.words.time(self.facts.removed)
        return Verdict("removed", False, f"The entry was removed from the schedule at {at}.")

    def _of_schedule(self) -> Verdict | None:
        facts, words = self.facts, self.words
        if facts.slot is None:
            following = "" if facts.after is None else f": its first one is {words.time(facts.after)}"
            return Verdict("not due", False, f"No slot of the entry was due yet{following}.")
        if not facts.exact:
            nearest = [words.time(each) for each in (facts.before, facts.after) if each is not None]
            verb = "slots are" if len(nearest) > 1 else "slot is"
            near = f" The nearest {verb} {' and '.join(nearest)}." if nearest else ""
            schedule = f" ({named(facts.schedule)})" if facts.schedule else ""
            why = f": {printable(facts.left_out)}" if facts.left_out else ""
            text = f"{words.time(facts.slot)} is not a slot of the entry{schedule}{why}.{near}"
            return Verdict("not a slot", False, text)
        if facts.slot + facts.shift > facts.now:
            wait = f"It is not due yet, but in {span(facts.slot + facts.shift - facts.now)}."
            return Verdict("not due", False, wait)
        return None

    def _of_definition(self) -> Verdict | None:
        facts, words, slot = self.facts, self.words, self.facts.slot
        assert slot is not None
        if (pause := pause_at(facts.changes, slot, paused=facts.paused)) is not None:
            begin = "since a time that the entry does not remember"
            if pause.begin is not None:
                begin = f"since {words.time(pause.begin.at)}, by {named(pause.begin.by)}"
            end = "" if pause.until is None else f", until {words.time(pause.until)}"
            end = end if pause.end is None else f", until {words.time(pause.end.at)}, by {named(pause.end.by)}"
            return Verdict("paused", False, f"The entry was paused {begin}{end}.")
        if (bulk := bulk_pause_at(facts.held, slot)) is not None:
            end = "" if bulk.until is None else f", until {words.time(bulk.until)}"
            end += f", by {named(bulk.ended_by)}" if bulk.ended_by else ""
            why = f" ({printable(bulk.note)})" if bulk.note else ""
            begin = f"since {words.time(bulk.at)}, by {named(bulk.by)}"
            return Verdict("paused", False, f"The pause of {printable(bulk.what)}{why} held the entry {begin}{end}.")
        if (added := added_after(facts.changes, slot)) is not None:
            return Verdict(
                "made later",
                False,
                f"The entry was made at runtime after this slot: at {words.time(added.at)}, by {named(added.by)}.",
            )
        if facts.runtime and facts.since is not None and slot <= facts.since:
            changed = schedule_change_after(facts.changes, slot)
            if changed is not None:
                change, old, new = changed
                return Verdict(
                    "changed later",
                    False,
                    f"The schedule of the entry was changed at {words.time(change.at)}, by {named(change.by)}, from "
                    f"{named(old)} to {named(new)}; this slot had not run by then, and was dropped.",
                )
            return Verdict(
                "made later", False, f"The entry begins at {words.time(facts.since)}: no slot before that runs."
            )
        if facts.problem:
            return Verdict("not run", False, f"No beat runs the entry: {named(facts.problem)}.")
        return None

    # What the states of the entry say

    def _of_state(self) -> Verdict | None:
        """Judge by the states: the first one that has the slot behind it counts one run more, or not."""
        facts, slot = self.facts, self.facts.slot
        assert slot is not None
        at_slot = [(at, each) for at, each in facts.states if abs(each.last - slot) < 1e-3]
        before = [each for _, each in facts.states if each.last < slot - 1e-3]
        if at_slot and before:
            at, state = at_slot[0]
            if state.runs > before[-1].runs:
                return Verdict(
                    "sent",
                    True,
                    f"It was sent: the state of the entry, written at {self._at(at)}, counts a run for it.",
                    self._no_records(facts),
                )
            if not state.open:
                return Verdict(
                    "left out",
                    False,
                    f"It was left out on purpose: the state of the entry, written at {self._at(at)}, has it behind it "
                    "and counts no run for it. That is what misfire and overlap policies do, and neli_in_doubt = "
                    "'skip'.",
                    self._no_records(facts),
                )
        return self._of_beginning(slot)

    def _of_beginning(self, slot: float) -> Verdict | None:
        facts = self.facts
        first = next(iter(facts.states), None)
        # The first state of an entry has what it begins with as its last run, and counts no run.
        if first is not None and first[1].runs == 0 and first[1].last >= slot:
            return Verdict(
                "not yet known",
                False,
                f"No leader knew the entry at that time: its first state, written at {self._at(first[0])}, says that "
                f"it begins after {self.words.time(first[1].last)}.",
            )
        leads = term_at(facts.terms, facts.now) is not None
        if facts.state is None and facts.exists and facts.marked and leads and not facts.claims:
            return Verdict(
                "not yet known",
                False,
                "No leader has written a state of the entry: the beat that leads does not know it yet, or its "
                "beat_schedule lacks it (celery neli status shows whose schedules differ).",
            )
        return None

    # What the leader topic says

    def _of_leaders(self) -> Verdict | None:
        facts, slot = self.facts, self.facts.slot
        assert slot is not None
        if facts.log_problem or is_before_log(facts):
            return None
        if facts.state is not None and facts.state.waits and facts.state.last < slot:
            why = "the task of an earlier slot has not finished: neli_overlap = 'queue_one'"
            return Verdict("waits", False, f"It waits, because {why}. The newest slot that waits runs when it has.")
        gap = gap_at(facts.terms, slot + facts.shift)
        claimed = [each for each in facts.claims if each.offset is not None]
        settled = next((each for each in facts.claims if each.settled is not None), None)
        if gap is not None and gap.end is None:
            return Verdict(
                "no leader",
                False,
                f"It was not sent: {without_leader(facts, gap, self.words)}, and none has led since.",
            )
        if settled is None and (now := gap_at(facts.terms, facts.now)) is not None:
            return self._of_the_dead(now, claimed)
        if settled is not None:
            return Verdict(
                "settled",
                None,
                f"Term {settled.term} of {named(settled.leader)} claimed and settled it: it was sent, or left out on "
                "purpose.",
                self._no_records(facts, "Which of the two: "),
            )
        if facts.now - slot < SOON:
            how = "claimed, and not settled yet" if claimed else "not claimed yet"
            return Verdict("under way", None, f"It was due {span(facts.now - slot)} ago: it is {how}.")
        if facts.state is not None and facts.state.open and facts.state.last < slot:
            return Verdict(
                "not sent",
                False,
                "It is still owed: sending this entry's tasks fails, and the leader retries (its state is marked "
                "open).",
                self._no_records(facts, "Why sending fails: "),
            )
        if claimed:
            last = claimed[-1]
            return Verdict(
                "in doubt",
                None,
                f"Term {last.term} of {named(last.leader)} claimed it, and no record says that it was settled: it may "
                "have been sent or not.",
                self._no_records(facts),
            )
        if gap is not None:
            return Verdict(
                "no leader",
                False,
                f"It was not sent in time: {without_leader(facts, gap, self.words)}. No term has claimed it.",
            )
        if not facts.marked:
            return Verdict(
                "unknown",
                None,
                "The beat that led has a scheduler that claims no slots, so the leader topic does not tell what became "
                "of it.",
                self._no_records(facts),
            )
        return Verdict(
            "not claimed",
            False,
            "A member led, and no term has claimed this slot: the beat that led did not know the entry, or knew it "
            "with another schedule.",
        )

    def _of_the_dead(self, now: Gap, claimed: list[Claim]) -> Verdict:
        """Judge a slot that is not settled while no member leads: the next leader decides."""
        died = "no member leads now" if now.begin is None else f"no member has led since {self._at(now.begin)}"
        if not claimed:
            why = f"It was not sent: the leader had not claimed it, and {died}. The next leader finds it missed"
            return Verdict("no leader", False, f"{why}, and its misfire policy decides.")
        last = claimed[-1]
        who = f"Term {last.term} of {named(last.leader)} claimed it, and {died}"
        may = "It may have been sent or not: the next leader finds it in doubt, and neli_in_doubt decides"
        return Verdict("in doubt", None, f"{who}. {may}.", self._no_records(self.facts))

    # Parts of sentences

    def _no_log(self) -> str:
        facts = self.facts
        if facts.log_problem:
            return "the leader topic could not be read"
        return "the leader topic no longer holds that time" if is_before_log(facts) else ""

    def _no_records(self, facts: Facts, what: str = "") -> tuple[str, ...]:
        why = facts.no_history or (
            "the history could be read, and has no record of the slot (records may be lost, or were written before "
            "neli_history was on)"
        )
        return (f"{what or 'More about it: '}{why}.",)

    def _at(self, seconds: float | None) -> str:
        return self.words.time(seconds, exact=True)
