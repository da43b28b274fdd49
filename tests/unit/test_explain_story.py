"""What `explain` says of a slot for each outcome: a verdict, whether it ran, and a sentence that says why."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from celery_neli.explain.facts import Facts
from celery_neli.explain.report import Story, lines_of
from celery_neli.explain.story import explain
from celery_neli.history.runs import Run
from celery_neli.schedule_topic.codec import Change, State
from celery_neli.schedule_topic.rules import Pause
from celery_neli.timeline import Claim, Term

SLOT = 1_700_031_600.0  # 2023-11-15 07:00:00 UTC
NOW = SLOT + 3600


def term(number: int, leader: str, began: float, ended: float | None = None, **more: Any) -> Term:
    """A term; times are seconds after the slot."""
    end = more.pop("end", "lives" if ended is None else "expired")
    return Term(
        role="leader",
        term=number,
        leader=leader,
        member=f"{leader}/1",
        began=SLOT + began,
        ended=None if ended is None else SLOT + ended,
        end=end,
        heard=SLOT + (3600 if ended is None else ended),
        lease=4.0,
        **more,
    )


STEADY = (term(7, "beat1", -3600),)
GAP = (term(7, "beat1", -3600, -10), term(90, "beat2", 4, gap=14.0))
CLAIM = Claim(term=7, leader="beat1", offset=8, at=SLOT - 0.5, read_back=SLOT - 0.4, settled=SLOT + 1, settled_offset=9)


def facts(**more: Any) -> Facts:
    given: dict[str, Any] = {
        "entry": "report",
        "now": NOW,
        "slot": SLOT,
        "schedule": "0 * * * *",
        "terms": STEADY,
        "claims": (CLAIM,),
        "misfire": "fire_once",
        "in_doubt": "send",
        "state": State(SLOT + 3600, 9, 7),
    }
    return Facts(**{**given, **more})


def run(**more: Any) -> Run:
    given: dict[str, Any] = {
        "entry": "report",
        "slot": SLOT,
        "id": "the-id",
        "task": "shop.report",
        "outcome": "sent",
        "at": SLOT + 0.01,
        "attempts": 1,
        "member": "beat1",
        "term": 7,
    }
    return Run(**{**given, **more})


SENT = (
    "beat1 in term 7 had sent its message, as the-id, 0.010 s after its slot (confirmed as far as the task broker can)"
)
DONE = {"state": "succeeded", "started": SLOT + 1, "finished": SLOT + 3, "runtime": 2.0, "worker": "w1@host"}


def judged(**more: Any) -> Story:
    return explain(facts(**more))


def test_a_slot_that_was_sent_and_whose_task_succeeded() -> None:
    story = judged(run=run(**DONE))
    assert (story.verdict, story.ran) == ("succeeded", True)
    assert story.summary == "It was sent on time. Its task succeeded on w1@host in 2.0 s."
    assert story.unknown == []
    assert [what for _, what in story.events] == [
        "term 7 of beat1 began",
        "term 7 claimed the slot (offset 8)",
        "by then beat1 had read its claim back: its next record shows it",
        "the slot was due",
        SENT,
        "term 7 recorded that everything up to the slot is settled (offset 9)",
        "w1@host started its task shop.report",
        "w1@host told that its task succeeded after 2.000 s",
    ]


def test_a_slot_that_was_sent_and_of_which_no_worker_told() -> None:
    story = judged(run=run())
    assert (story.verdict, story.ran) == ("sent", True)
    assert "No worker told" in story.summary
    assert "celery_neli.install(app)" in story.unknown[0]


@pytest.mark.parametrize(
    ("state", "ran", "words"),
    [
        ("started", True, "was started, and no worker has told of its end"),
        ("failed", True, "Its task failed after 2 retries on w1@host. Error: ValueError: no"),
        ("retried", True, "Its task failed and is retried"),
        ("revoked", False, "was revoked and did not run"),
        ("rejected", False, "rejected the message"),
        ("ignored", True, "Its task was ignored"),
    ],
)
def test_what_the_task_did(state: str, ran: bool, words: str) -> None:
    story = judged(run=run(state=state, worker="w1@host", retries=2, error="ValueError: no"))
    assert (story.verdict, story.ran) == (state, ran)
    assert words in story.summary


def test_a_slot_that_a_backfill_sent() -> None:
    """Its lateness is no leader's."""
    story = judged(run=run(policy="backfill", member="ada@host", term=None, at=SLOT + 3000, **DONE))
    assert (story.verdict, story.ran) == ("succeeded", True)
    assert story.summary.startswith("A backfill by ada@host sent it at ")
    assert "late" not in story.summary


def test_a_slot_of_which_a_backfill_told_no_end() -> None:
    """It may have been sent, unless its worker told of it."""
    began = {"outcome": "sending", "policy": "backfill", "member": "ada@host", "term": None}
    story = judged(run=run(**began))
    assert (story.verdict, story.ran) == ("in doubt", None)
    assert "it may have been sent" in story.summary
    assert "a backfill by ada@host began to send its message" in [what for _, what in story.events]
    assert judged(run=run(**began, **DONE)).verdict == "succeeded"


def test_a_slot_that_a_backfill_could_not_send() -> None:
    """Nothing tries it again by itself."""
    story = judged(run=run(outcome="failed", policy="backfill", member="ada@host", term=None, error="OSError: gone"))
    assert (story.verdict, story.ran) == ("not sent", False)
    assert story.summary == "A backfill by ada@host could not send it. Error: OSError: gone."


def test_a_slot_that_was_resent_in_doubt() -> None:
    doubt = Claim(term=90, leader="beat2", doubt=True, offset=95, at=SLOT + 4.1, settled=SLOT + 5, settled_offset=97)
    first = Claim(term=7, leader="beat1", offset=8, at=SLOT - 0.5)
    story = judged(
        terms=(term(7, "beat1", -3600, 2), term(90, "beat2", 4, gap=2.0)),
        claims=(first, doubt),
        run=run(at=SLOT + 4.2, member="beat2", term=90, in_doubt="send", **DONE),
    )
    assert (story.verdict, story.ran) == ("succeeded", True)
    assert "It was sent 4.2 s late: the leader beat1 was not heard of after" in story.summary
    assert "an earlier leader may or may not have sent it, and was sent again: neli_in_doubt = 'send'." in story.summary
    told = [what for _, what in story.events]
    assert "term 90 claimed the slot, which an earlier term had claimed and not settled (offset 95)" in told
    assert "term 7 of beat1 ended: its lease of 4.0 s ran out" in told


def test_a_slot_that_was_skipped_in_doubt() -> None:
    story = judged(run=run(outcome="in_doubt", policy="skip", in_doubt="skip"))
    assert (story.verdict, story.ran) == ("skipped in doubt", False)
    assert "neli_in_doubt = 'skip'" in story.summary


def test_a_slot_that_the_misfire_policy_left_out() -> None:
    """With the gap that made it late, and the slot that ran in its place."""
    later = run(slot=SLOT + 3, at=SLOT + 5)
    left_out = run(outcome="skipped", policy="misfire", count=3, first=SLOT - 2, at=SLOT + 5, id=None)
    story = judged(run=left_out, later=later, terms=GAP, misfire="fire_once")
    assert (story.verdict, story.ran) == ("misfire", False)
    assert "together with 2 others by the misfire policy: neli_misfire = 'fire_once'" in story.summary
    assert "no member led the role from 2023-11-15 06:59:50.000 UTC to 2023-11-15 07:00:04.000 UTC (14 s)" in (
        story.summary
    )
    assert story.summary.endswith("The next slot that ran is that of 2023-11-15 07:00:03 UTC.")


def test_a_slot_that_was_left_out_though_it_was_in_doubt_may_have_been_sent() -> None:
    left_out = run(outcome="skipped", policy="misfire", count=2, first=SLOT, at=SLOT + 5, in_doubt="send")
    story = judged(run=left_out, terms=GAP)
    assert (story.verdict, story.ran) == ("misfire", None)
    assert "an earlier leader had claimed it, and may have sent it" in story.summary


def test_a_slot_that_the_overlap_policy_left_out() -> None:
    story = judged(run=run(outcome="skipped", policy="overlap"))
    assert (story.verdict, story.ran) == ("overlap", False)
    assert "neli_overlap = 'skip'" in story.summary


def test_a_slot_that_failed_and_is_retried() -> None:
    story = judged(run=run(outcome="failed", attempts=3, at=SLOT + 9, error="OperationalError: refused"))
    assert (story.verdict, story.ran) == ("not sent", False)
    assert "tried 3 times, the last time at 2023-11-15 07:00:09.000 UTC, and retries it" in story.summary
    assert "OperationalError: refused" in story.summary


def test_a_slot_that_failed_and_was_sent_then() -> None:
    story = judged(run=run(at=SLOT + 9, attempts=3))
    assert (story.verdict, story.ran) == ("sent", True)
    assert "9.0 s late: sending it failed 2 times before" in story.summary


def test_a_slot_that_the_application_refused() -> None:
    story = judged(run=run(outcome="refused", error="ValueError: not today"))
    assert (story.verdict, story.ran) == ("refused", False)
    assert "ValueError: not today" in story.summary


def test_a_slot_in_a_time_without_a_leader_was_sent_late() -> None:
    story = judged(run=run(at=SLOT + 4.3, member="beat2", term=90, **DONE), terms=GAP)
    assert story.ran is True
    assert "It was sent 4.3 s late: no member led the role from 2023-11-15 06:59:50.000 UTC to" in story.summary
    told = [what for _, what in story.events]
    assert "term 90 of beat2 began, after 14 s without a leader" in told


def test_a_slot_of_a_leader_that_had_died_and_whose_lease_still_ran() -> None:
    """It was not heard of any more, and the lease ended after the slot."""
    dead = replace(GAP[0], ended=SLOT + 2, heard=SLOT - 2)
    story = judged(run=run(at=SLOT + 4.3, member="beat2", term=90, **DONE), terms=(dead, GAP[1]))
    assert (
        "4.3 s late: the leader beat1 was not heard of after 2023-11-15 06:59:58.000 UTC, and no member led the role "
        "from 2023-11-15 07:00:02.000 UTC to 2023-11-15 07:00:04.000 UTC (2.0 s). Its task succeeded"
    ) in story.summary
    told = [what for _, what in story.events]
    assert "term 7 of beat1 ended: its lease of 4.0 s ran out" in told


def test_no_leader_at_the_time_and_none_since() -> None:
    story = judged(terms=GAP[:1], claims=(), state=State(SLOT - 3600, 8, 7))
    assert (story.verdict, story.ran) == ("no leader", False)
    assert "no member led the role from 2023-11-15 06:59:50.000 UTC, and none has led since" in story.summary


def test_an_entry_of_another_shards_role_had_no_leader_of_its_own() -> None:
    """The role is named: others may have had a leader."""
    story = judged(terms=GAP[:1], claims=(), role="leader-1", roles=2, state=State(SLOT - 3600, 8, 7))
    assert "no member led role leader-1 from" in story.summary


PAUSED = Change(at=SLOT - 500, by="ada@ops", what="paused")
RESUMED = Change(at=SLOT + 500, by="bob@ops", what="resumed")
ADDED = Change(at=SLOT - 9000, by="ada@ops", what="added")


def test_a_paused_entry() -> None:
    """Since when, and by whom."""
    story = judged(paused=True, changes=(ADDED, PAUSED), claims=())
    assert (story.verdict, story.ran) == ("paused", False)
    assert story.summary == "The entry was paused since 2023-11-15 06:51:40 UTC, by ada@ops."


def test_a_pause_that_is_over() -> None:
    story = judged(changes=(ADDED, PAUSED, RESUMED), since=SLOT + 500, claims=())
    assert story.verdict == "paused"
    assert story.summary.endswith("by ada@ops, until 2023-11-15 07:08:20 UTC, by bob@ops.")


def test_a_pause_that_ends_by_itself() -> None:
    """It holds the slots up to its end, which the change names, and no later one."""
    paused = Change(at=SLOT - 500, by="ada@ops", what="paused until 2023-11-15 07:00:00Z")
    assert explain(facts(changes=(ADDED, paused), slot=SLOT + 600, claims=(), run=None)).verdict != "paused"
    story = judged(changes=(ADDED, paused), claims=())
    assert story.verdict == "paused"
    assert story.summary.endswith("by ada@ops, until 2023-11-15 07:00:00 UTC.")


def test_a_pause_of_many_entries_is_named() -> None:
    """With its note and its author; it is no reason for slots before it."""
    rule = Pause(id="1", of="tag", value="night", at=SLOT - 500, by="ada@ops", note="the move", until=SLOT + 500)
    story = judged(held=(rule,), claims=())
    assert (story.verdict, story.ran) == ("paused", False)
    assert story.summary.startswith(
        "The pause of tag 'night' (the move) held the entry since 2023-11-15 06:51:40 UTC, by ada@"
    )
    for at in (-600.0, 600.0):
        assert explain(facts(held=(rule,), slot=SLOT + at, claims=(), run=None)).verdict != "paused"


@pytest.mark.parametrize("at", [-600.0, 600.0])
def test_a_pause_at_another_time_is_no_reason(at: float) -> None:
    story = explain(facts(changes=(ADDED, PAUSED, RESUMED), slot=SLOT + at, claims=(), run=None))
    assert story.verdict != "paused"


def test_a_pause_that_the_entry_does_not_remember() -> None:
    story = judged(paused=True, changes=(), claims=())
    assert (story.verdict, story.summary) == (
        "paused",
        "The entry was paused since a time that the entry does not remember.",
    )


def test_a_removed_entry() -> None:
    story = judged(exists=False, removed=SLOT - 60, claims=())
    assert (story.verdict, story.ran) == ("removed", False)
    assert "removed from the schedule at 2023-11-15 06:59:00 UTC" in story.summary


def test_an_entry_that_is_gone_at_a_time_that_nothing_holds() -> None:
    story = judged(exists=False, claims=(), state=None)
    assert story.verdict == "removed"


def test_an_entry_that_was_removed_after_its_slot_ran() -> None:
    """The history counts first."""
    story = judged(exists=False, removed=SLOT + 60, run=run(**DONE))
    assert story.verdict == "succeeded"
    assert (SLOT + 60, "the entry was removed") in story.events


def test_an_entry_made_at_runtime_after_the_slot() -> None:
    added = replace(ADDED, at=SLOT + 60)
    story = judged(runtime=True, changes=(added,), since=SLOT + 60, claims=())
    assert (story.verdict, story.ran) == ("made later", False)
    assert "after this slot: at 2023-11-15 07:01:00 UTC, by ada@ops" in story.summary


def test_a_schedule_that_changed_before_the_slot_had_run() -> None:
    change = Change(at=SLOT + 60, by="ada@ops", what="changed task, schedule 0,30 7 * * * -> PT1H, args, kwargs")
    story = judged(runtime=True, changes=(ADDED, change), since=SLOT + 60, claims=())
    assert (story.verdict, story.ran) == ("changed later", False)
    assert "from 0,30 7 * * * to PT1H" in story.summary


def test_a_time_that_is_not_a_slot() -> None:
    story = judged(exact=False, before=SLOT - 1800, after=SLOT + 1800, schedule="30 * * * *")
    assert (story.verdict, story.ran) == ("not a slot", False)
    assert story.summary == (
        "2023-11-15 07:00:00 UTC is not a slot of the entry (30 * * * *). The nearest slots are 2023-11-15 06:30:00 UTC"
        " and 2023-11-15 07:30:00 UTC."
    )


def test_a_slot_that_is_not_due_yet() -> None:
    story = judged(slot=NOW + 90)
    assert (story.verdict, story.ran, story.summary) == ("not due", False, "It is not due yet, but in 1 min 30 s.")


def test_an_entry_without_a_slot_so_far() -> None:
    story = judged(slot=None, after=NOW + 60)
    assert (story.verdict, story.ran) == ("not due", False)
    assert "its first one is 2023-11-15 08:01:00 UTC" in story.summary


def test_an_entry_that_no_leader_knew_yet() -> None:
    """Its first state says from when on it counts."""
    first = State(SLOT + 60, 0, 7)
    story = judged(claims=(), state=first, states=((SLOT + 61, first),))
    assert (story.verdict, story.ran) == ("not yet known", False)
    assert "it begins after 2023-11-15 07:01:00 UTC" in story.summary


def test_an_entry_that_the_leading_beat_does_not_know() -> None:
    story = judged(claims=(), state=None)
    assert (story.verdict, story.ran) == ("not yet known", False)
    assert "its beat_schedule lacks it" in story.summary


def test_an_entry_that_no_beat_can_run() -> None:
    story = judged(claims=(), problem="solar needs ephem")
    assert (story.verdict, story.ran) == ("not run", False)
    assert "solar needs ephem" in story.summary


# Without the history

OFF = "there is no history topic x: no beat or worker has recorded anything yet (neli_history = False)"


def test_without_the_history_the_states_tell_that_it_ran() -> None:
    states = ((SLOT - 3599, State(SLOT - 3600, 4, 7)), (SLOT + 1, State(SLOT, 5, 7)))
    story = judged(states=states, no_history=OFF)
    assert (story.verdict, story.ran) == ("sent", True)
    assert "written at 2023-11-15 07:00:01.000 UTC, counts a run" in story.summary
    assert story.unknown == [f"More about it: {OFF}."]


def test_without_the_history_the_states_tell_that_it_was_left_out() -> None:
    states = ((SLOT - 3599, State(SLOT - 3600, 4, 7)), (SLOT + 1, State(SLOT, 4, 7)))
    story = judged(states=states, no_history=OFF)
    assert (story.verdict, story.ran) == ("left out", False)


def test_without_the_history_a_settled_slot_may_have_been_left_out() -> None:
    story = judged(no_history=OFF)
    assert (story.verdict, story.ran) == ("settled", None)
    assert story.unknown == [f"Which of the two: {OFF}."]


def test_a_slot_that_was_claimed_by_a_leader_that_died_and_has_no_successor_yet() -> None:
    """The next leader decides."""
    claim = replace(CLAIM, settled=None, settled_offset=None)
    story = judged(claims=(claim,), terms=(term(7, "beat1", -3600, 2),), state=State(SLOT - 3600, 4, 7))
    assert (story.verdict, story.ran) == ("in doubt", None)
    assert "the next leader finds it in doubt, and neli_in_doubt decides" in story.summary


def test_a_slot_that_was_not_claimed_by_the_leader_that_died() -> None:
    story = judged(claims=(), terms=(term(7, "beat1", -3600, 2),), state=State(SLOT - 3600, 4, 7))
    assert (story.verdict, story.ran) == ("no leader", False)
    assert "no member has led since 2023-11-15 07:00:02.000 UTC. The next leader finds it missed" in story.summary


def test_a_slot_that_was_claimed_and_never_settled() -> None:
    claim = replace(CLAIM, settled=None, settled_offset=None)
    story = judged(claims=(claim,), state=State(SLOT - 3600, 4, 7))
    assert (story.verdict, story.ran) == ("in doubt", None)
    assert "no record says that it was settled" in story.summary


def test_a_slot_of_an_entry_that_is_open_is_still_owed() -> None:
    story = judged(
        claims=(replace(CLAIM, settled=None, settled_offset=None),), state=State(SLOT - 3600, 4, 7, open=True)
    )
    assert (story.verdict, story.ran) == ("not sent", False)


def test_a_slot_that_waits_for_the_task_of_an_earlier_one() -> None:
    """Whatever the watermarks say of it."""
    waits = State(SLOT - 3600, 4, 7, open=True, waits=True)
    for claims in ((CLAIM,), (replace(CLAIM, settled=None, settled_offset=None),)):
        story = judged(claims=claims, state=waits)
        assert (story.verdict, story.ran) == ("waits", False)
        assert "neli_overlap = 'queue_one'" in story.summary


def test_a_slot_that_was_due_a_moment_ago() -> None:
    claim = replace(CLAIM, settled=None, settled_offset=None)
    story = judged(claims=(claim,), now=SLOT + 1)
    assert (story.verdict, story.ran) == ("under way", None)
    assert "claimed, and not settled yet" in story.summary


def test_a_slot_that_no_term_has_claimed() -> None:
    story = judged(claims=(), state=State(SLOT + 3600, 9, 7), states=())
    assert (story.verdict, story.ran) == ("not claimed", False)


def test_a_scheduler_that_claims_no_slots() -> None:
    story = judged(claims=(), marked=False, states=(), state=None)
    assert (story.verdict, story.ran) == ("unknown", None)
    assert "claims no slots" in story.summary


def test_what_has_expired_from_the_topics_is_said() -> None:
    """The leader topic keeps a day, the history two weeks."""
    expired = "the history keeps records for 14 days (neli_history_retention)"
    story = judged(log_begins=SLOT + 100, terms=(), claims=(), states=(), no_history=expired)
    assert (story.verdict, story.ran) == ("unknown", None)
    assert "the leader topic no longer holds that time" in story.summary
    assert any(expired in each for each in story.unknown)
    assert any("holds nothing from before 2023-11-15 07:01:40 UTC" in each for each in story.unknown)


def test_a_leader_topic_that_cannot_be_read_is_said() -> None:
    story = judged(run=run(**DONE), log_problem="Kafka does not answer", terms=(), claims=())
    assert story.verdict == "succeeded"
    assert story.unknown == ["Who led, and what was claimed: Kafka does not answer."]


def test_texts_of_others_are_escaped_and_the_lines_are_whole() -> None:
    change = Change(at=SLOT - 5, by="ev\x1b[2Jil\nname", what="paused")
    story = explain(facts(entry="re\nport", changes=(change,), paused=True, claims=()))
    lines = lines_of(story)
    assert lines[0] == "re\\nport, slot 2023-11-15 07:00:00 UTC: paused"
    assert all(each.isprintable() for each in lines)


def test_the_json_is_plain() -> None:
    found = json.loads(json.dumps(judged(run=run(**DONE)).as_dict()))
    assert set(found) == {
        "entry", "slot", "verdict", "ran", "summary", "events", "unknown", "role", "claims", "run"
    }  # fmt: skip
    assert found["events"][0] == {"at": SLOT - 3600, "what": "term 7 of beat1 began"}
    assert (found["claims"][0]["offset"], found["run"]["id"]) == (8, "the-id")
