"""One process in one election, record by record and turn by turn (`Stage`)."""

from __future__ import annotations

from typing import Any

import pytest

from celery_neli.election.lease import CLOCK_RATES
from celery_neli.election.records import End, Entry, Lost, Record, Started, encode
from celery_neli.election.role_state import LeaderAcquired, LeaderFenced, LeaderRevoked, Payload
from celery_neli.exceptions import TopicError
from tests.unit.stage import Stage


def heartbeat(author: str, **more: Any) -> Record:
    return Record(kind="beat", member=author, seq=1, lease=4.0, **more)


def test_a_member_leads_once_it_has_read_its_claim_back() -> None:
    """Not when it has sent it; and the grant says so before the event does."""
    stage = Stage()
    assert stage.turn() == []
    assert [record.kind for record in stage.journal.sent] == ["claim"]
    assert not stage.holds()
    assert stage.echo(after=0.5) == [LeaderAcquired("leader", 0)]
    assert stage.leads()
    assert stage.grant().until == 100.0 + 4.0


def test_it_joins_the_group_when_the_topic_is_found_and_not_when_it_closes() -> None:
    """The group decides who is induced; who is leaving is not to come back."""
    stage = Stage()
    assert not stage.group.joined
    stage.turn()
    assert stage.group.joined
    stage.member.close()
    stage.turn(Lost(0, "expired"), Started(0, 5, oldest=True))
    assert not stage.group.joined


def test_a_resigning_leader_is_revoked_and_releases_when_its_barrier_is_done() -> None:
    """`leading` ends with `resign`, before any turn; `held` when the release leaves; then nothing more is told."""
    stage = Stage().lead()
    stage.member.resign()
    assert (stage.leads(), stage.holds()) == (False, True)
    assert stage.turn() == [LeaderRevoked("leader", 0)]
    assert stage.member.draining
    held_at_release = []
    stage.journal.on_append = lambda record: held_at_release.append(stage.holds()) if record.kind == "release" else None
    stage.member.state("leader").drained(0)
    assert stage.turn() == []
    assert held_at_release == [False]
    assert not stage.member.draining


def test_a_barrier_that_overruns_is_fenced() -> None:
    """After `drain_timeout` the release goes without it, and whoever is still at work is told to stop."""
    stage = Stage().lead()
    stage.member.resign()
    assert stage.turn() == [LeaderRevoked("leader", 0)]
    changes = [change for _ in range(21) for change in stage.echo(after=0.5)]
    assert changes == [LeaderFenced("leader", 0)]
    assert "release" in {record.kind for record in stage.journal.sent}


def test_the_barrier_of_an_earlier_term_frees_no_later_one() -> None:
    """It comes back long after it was given up, when this member leads again and drains again."""
    stage = Stage().lead()
    stage.member.resign()
    stage.turn()
    assert stage.turn(after=4.0) == [LeaderFenced("leader", 0)]
    stage.echo(after=4.1)
    acquired = stage.echo()
    assert [type(change) for change in acquired] == [LeaderAcquired]
    stage.member.resign()
    assert stage.turn() == [LeaderRevoked("leader", acquired[0].term)]
    stage.member.state("leader").drained(0)
    stage.turn()
    assert stage.holds()


def test_who_is_fenced_in_a_drain_gives_the_role_up_if_late_beats_bring_it_back() -> None:
    """Nobody has work in flight any more; waiting for the barrier would hold up the handover for nothing."""
    stage = Stage().lead()
    stage.member.resign()
    stage.turn()
    stage.turn(after=3.0)
    assert stage.turn(after=1.5) == [LeaderFenced("leader", 0)]
    assert stage.echo() == []
    assert stage.journal.sent[-1].kind == "release"


def test_a_leader_whose_lease_runs_out_is_fenced_and_resumes_when_late_beats_are_read() -> None:
    """The term is the same: nobody led meanwhile (R5)."""
    stage = Stage().lead()
    stage.turn(after=1.0)
    assert stage.turn(after=3.5) == [LeaderFenced("leader", 0)]
    assert not stage.holds()
    assert stage.echo() == [LeaderAcquired("leader", 0)]


def test_a_leader_is_fenced_by_the_effective_claim_of_another() -> None:
    """Whatever its own clock says."""
    stage = Stage().lead()
    stage.echo()
    stage.write(Record(kind="claim", member="b/1", seq=1, lease=4.0, seen=len(stage.journal.log[0]) - 1))
    assert stage.echo() == [LeaderFenced("leader", 0)]


def test_closing_leaves_the_group_drains_and_releases() -> None:
    """The successor is induced while the barrier runs (R4)."""
    stage = Stage().lead()
    stage.member.close()
    assert not stage.group.joined
    assert stage.turn() == [LeaderRevoked("leader", 0)]
    assert not stage.member.closed
    stage.member.state("leader").drained(0)
    stage.turn()
    assert stage.member.closed


def test_closing_awaits_a_claim_under_way_and_releases_it_untold() -> None:
    """Else its lease would have to run out; nobody was told of it, so nobody needs to drain."""
    stage = Stage()
    stage.turn()
    stage.member.close()
    stage.turn()
    assert not stage.member.closed
    assert stage.echo() == []
    assert [record.kind for record in stage.journal.sent] == ["claim", "release"]
    assert stage.member.closed


def test_closing_gives_a_lost_claim_up_after_its_lease() -> None:
    """By then it would buy nothing."""
    stage = Stage()
    stage.turn()
    stage.member.close()
    stage.turn(after=4.0)
    assert stage.member.closed


@pytest.mark.parametrize(("to", "resigns"), [(None, True), ("other", True), ("m", False)])
def test_a_leader_resigns_on_request_unless_it_is_named_itself(to: str | None, resigns: bool) -> None:
    """`celery neli resign`, with or without a successor's name."""
    stage = Stage().lead()
    stage.write(Record(kind="request", member="cli/1", seq=0, lease=0.0, to=to))
    assert stage.echo() == ([LeaderRevoked("leader", 0)] if resigns else [])


def test_without_a_certificate_up_to_the_end_it_looks_further_back() -> None:
    """Once, until the journal has begun again (R7)."""
    stage = Stage(empty=False)
    for _ in range(3):
        stage.turn(Started(0, 10, oldest=False), End(0)) if not stage.journal.asked else stage.turn(End(0), after=2.0)
    assert stage.journal.asked == [("look_back", 0)]
    stage.turn(Started(0, 5, oldest=True), End(0))
    assert stage.journal.sent == []
    stage.turn(after=4.1)
    assert [record.blind for record in stage.journal.sent] == [True]


def test_a_lease_that_another_announces_is_waited_for_from_when_its_record_was_read() -> None:
    """Not from when the member began to wait for something to read: that may have taken long (R1, R2)."""
    stage = Stage()
    stage.write(Record(kind="claim", member="x/1", seq=1, lease=4.0, seen=-1))
    read = stage.journal.read

    def late(timeout: float) -> list[Any]:
        stage.now += 0.5
        return read(timeout)

    stage.journal.read = late  # type: ignore[method-assign]
    stage.echo()
    read_at = stage.now
    stage.journal.read = read  # type: ignore[method-assign]
    stage.turn(after=4.0 * CLOCK_RATES - 0.01)
    assert stage.journal.sent == []
    stage.turn(after=read_at + 4.0 * CLOCK_RATES - stage.now)
    assert [record.kind for record in stage.journal.sent] == ["claim"]


def test_the_end_is_asked_for_again_after_a_claim_that_was_lost() -> None:
    """Nothing new arrives, so the journal would never tell of the end; once a second, once the claim is old."""
    stage = Stage()
    stage.turn()
    stage.turn(after=3.9)
    assert stage.journal.asked == []
    for _ in range(4):
        stage.turn(after=0.5)
    assert stage.journal.asked == [("ask_end", 0)] * 2
    stage.turn(End(0))
    assert [record.kind for record in stage.journal.sent] == ["claim", "claim"]


def test_a_lost_position_fences_and_begins_anew_under_a_new_name() -> None:
    """The old lease may be believed by others: no claim before it has run out."""
    stage = Stage().lead()
    assert stage.turn(Lost(0, "truncated")) == [LeaderFenced("leader", 0)]
    stage.turn(Started(0, 0, oldest=True), End(0), after=0.1)
    assert stage.journal.sent == []
    stage.turn(after=4.1)
    assert [(record.kind, record.member) for record in stage.journal.sent] == [("claim", "m/2")]


def test_a_log_that_contradicts_fences_and_is_begun_anew_behind_the_record_under_a_new_name() -> None:
    """Own records of before are a stranger's from then on; nothing is claimed before the old lease ends (R9)."""
    stage = Stage().lead()
    stage.write(heartbeat("b/1", term=0, seen=0))
    assert stage.echo() == [LeaderFenced("leader", 0)]
    for _ in range(8):
        stage.echo(after=0.5)
    assert "claim" not in {record.kind for record in stage.journal.sent}
    stage.echo(after=1.0)
    claim = stage.journal.sent[-1]
    assert (claim.kind, claim.member, claim.blind) == ("claim", "m/2", True)


def test_a_contradiction_before_anything_is_known_sends_the_reader_further_back() -> None:
    """It cannot tell yet which leases may be running."""
    stage = Stage(empty=False)
    stray = encode(heartbeat("b/1", term=90, seen=90))
    stage.turn(Started(0, 10, oldest=False), Entry(0, 10, stray), End(0))
    assert stage.journal.asked == [("look_back", 0)]
    stage.turn(Started(0, 3, oldest=True), Entry(0, 10, stray), End(0), after=0.1)
    assert stage.turn(after=4.0) == []
    assert stage.journal.sent == []
    stage.turn(End(0), after=0.2)
    assert [(record.member, record.end) for record in stage.journal.sent] == [("m/2", 11)]


CERTIFICATE = encode(heartbeat("b/1", term=4, seen=9))


def test_who_knows_does_not_look_back() -> None:
    """At the end of the log, or on a contradiction: it begins anew behind that, as it has met every lease (R7, R9)."""
    stage = Stage(empty=False)
    stage.turn(Started(0, 10, oldest=False), Entry(0, 10, CERTIFICATE), End(0))
    stage.turn(Entry(0, 11, encode(heartbeat("c/1", term=4, seen=9))), End(0))
    stage.turn(Entry(0, 12, encode(heartbeat("c/1", term=90, seen=90))), End(0))
    assert stage.journal.asked == []
    assert len([line for line in stage.log.lines if line.startswith("journal differs role=leader")]) == 1
    stage.turn(after=4.1)
    assert [(record.kind, record.end) for record in stage.journal.sent] == [("claim", 13)]


def test_a_contradiction_sends_a_reader_that_knows_nothing_further_back_at_once() -> None:
    """Not only when the log was read to its end, which may be far."""
    stage = Stage(empty=False)
    stage.turn(Started(0, 10, oldest=False), Entry(0, 10, encode(heartbeat("b/1", term=90, seen=90))))
    assert stage.journal.asked == [("look_back", 0)]


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("claimed", "x claimed the role"),
        ("late", "no heartbeat sent in the last 4.0 s was read back: Kafka is away or slow"),
        ("denied", "Kafka does not let this member read the leader topic t"),
        ("stood still", "this process stood still for 4.5 s"),
        ("overrun", "its work was not done within neli_drain_timeout, 10 s"),
        ("lost", "the log was lost, or it differs from the one that was read"),
    ],
)
def test_a_fenced_leader_says_why(case: str, reason: str) -> None:
    """For who reads the log."""
    stage = Stage().lead()
    if case == "claimed":
        stage.echo()
        stage.write(Record(kind="claim", member="x/1", seq=1, lease=4.0, seen=len(stage.journal.log[0]) - 1))
        changes = stage.echo()
    elif case == "late":
        changes = [change for _ in range(9) for change in stage.turn(after=0.5)]
    elif case == "denied":
        stage.journal.topic_error = TopicError(
            "Kafka does not let this member read the leader topic t: give it the right"
        )
        changes = list(stage.turn(after=0.5))
        stage.journal.topic_error = None  # it is told once
        changes += [change for _ in range(8) for change in stage.turn(after=0.5)]
    elif case == "stood still":
        changes = stage.turn(after=4.5)
    elif case == "overrun":
        stage.member.resign()
        stage.echo()
        changes = [change for _ in range(21) for change in stage.echo(after=0.5)]
    else:
        changes = stage.turn(Lost(0, "truncated"))
    assert [(type(change), change.reason) for change in changes] == [(LeaderFenced, reason)]


def test_when_the_predecessor_was_active_stays_while_a_term_lasts() -> None:
    """It is about the last leader before, whatever the present one writes."""
    stage = Stage()
    stage.write(Record(kind="claim", member="x/1", seq=1, lease=4.0, seen=-1))
    stage.echo()
    read = stage.now
    stage.echo(after=5.0)
    for _ in range(5):
        stage.echo(after=0.5)
    assert stage.leads()
    assert stage.member.state("leader").predecessor_active_until == read


def test_a_newer_version_ends_its_part_for_good() -> None:
    """It leads no more, claims no more, in no role, and does not read the log again and again (R9)."""
    stage = Stage("leader", "second").lead()
    stage.write(b'{"v":2}')
    assert stage.echo() == [LeaderFenced("leader", 0), LeaderRevoked("second", 0)]
    assert stage.member.outdated
    assert any("upgrade" in line for line in stage.log.lines)
    stage.member.state("second").drained(0)
    stage.echo()
    for _ in range(30):
        assert stage.echo(after=1.0) == []
    assert stage.turn(Lost(0, "expired"), Started(0, 50, oldest=False), End(0), after=5.0) == []
    assert stage.turn(after=60.0) == []
    assert ("look_back", 0) not in stage.journal.asked
    assert "claim" not in {record.kind for record in stage.journal.sent}


def test_junk_is_skipped_with_one_warning_a_minute() -> None:
    """A stranger may write thousands."""
    stage = Stage().lead()
    for _ in range(20):
        stage.write(b"junk")
        stage.echo(after=0.5)
    assert stage.leads()
    assert len([line for line in stage.log.lines if "skipped" in line]) == 1


def test_junk_of_a_kind_is_one_kind_whatever_it_holds() -> None:
    """A stranger who writes another number each time gets no further line."""
    stage = Stage().lead()
    for exponent in range(400, 700):
        stage.write(b'{"v":1,"x":1e%d}' % exponent)
        stage.write(b'{"v":1,"x":%d}' % 10 ** (exponent // 5))
    stage.echo(after=0.5)
    assert len([line for line in stage.log.lines if "skipped" in line]) == 2


def test_a_missing_topic_is_kept_as_trouble_and_ends_no_lease_early() -> None:
    """The lease runs out by itself, if reading does not come back."""
    stage = Stage().lead()
    stage.journal.topic_error = TopicError("the leader topic is missing")
    assert stage.turn(after=1.0) == []
    assert stage.member.topic_error is stage.journal.topic_error
    assert stage.leads()
    assert stage.turn(after=3.1) == [LeaderFenced("leader", 0)]
    stage.journal.topic_error = None
    stage.turn()
    assert stage.member.topic_error is None


def test_roles_are_led_and_resigned_one_by_one() -> None:
    """Each has its own lease."""
    stage = Stage("leader", "second").lead()
    stage.member.resign("second")
    assert stage.turn() == [LeaderRevoked("second", 0)]
    assert stage.leads("leader")
    assert not stage.leads("second")


def test_offered_data_are_sent_with_the_next_beat_and_known_when_read_back() -> None:
    """`told` tells whether this member wrote them in its present term."""
    stage = Stage().lead()
    stage.member.state("leader").set_payload(0, {"claimed": 7}, now=True)
    stage.turn()
    assert stage.journal.sent[-1].data == {"claimed": 7}
    assert stage.member.state("leader").payload == Payload(term=0, data=None, own=False, known=True)
    stage.echo()
    assert stage.member.state("leader").payload == Payload(term=0, data={"claimed": 7}, own=True, known=True)


def test_it_is_heard_when_other_data_were_read_back_from_an_own_record() -> None:
    """Not with every heartbeat that repeats them, though its idleness differs, nor for what others write."""
    stage = Stage().lead()
    stage.member.state("leader").set_payload(0, {"claimed": 7})
    stage.echo(after=0.5)
    assert stage.heard == 0
    for number in range(6):
        stage.member.progressed = stage.now - number
        stage.echo(after=0.5)
        assert stage.heard == 1
    stage.write(Record(kind="claim", member="x/1", seq=1, lease=4.0, seen=len(stage.journal.log[0]) - 1, data={"a": 1}))
    stage.echo()
    assert stage.member.state("leader").payload == Payload(
        len(stage.journal.log[0]) - 1, {"a": 1}, own=False, known=True
    )
    assert stage.heard == 1


def test_nothing_can_be_offered_for_a_term_that_is_not_held_nor_what_no_record_can_carry() -> None:
    """Marks of one term in the records of another would let slots vanish."""
    stage = Stage().lead()
    stage.member.state("leader").set_payload(1, {"claimed": 7}, now=True)
    stage.turn()
    stage.turn(after=0.1)
    assert stage.journal.sent == [], "no heartbeat is hurried"
    with pytest.raises(ValueError, match="no record can carry"):
        stage.member.state("leader").set_payload(0, {"claimed": float("nan")})
    stage.turn(after=1)
    stage.turn(after=3.5)
    stage.member.state("leader").set_payload(0, {"claimed": 7})
    stage.echo()
    assert stage.leads(), "resumed by heartbeats that come late"
    stage.turn(after=0.5)
    assert {record.data for record in stage.journal.sent} == {None}


def test_a_leader_that_crashes_before_it_offers_anything_hands_on_what_it_found() -> None:
    """All records of a term repeat what its claim repeated, and tell the idleness of their own author."""
    stage = Stage()
    marks = {"claimed": 9.0, "done": 8.0}
    stage.write(Record(kind="claim", member="x/1", seq=1, lease=4.0, seen=-1))
    stage.write(Record(kind="beat", member="x/1", seq=2, lease=4.0, seen=0, term=0, data={**marks, "idle": 3.0}))
    stage.echo()
    stage.member.progressed = stage.now
    stage.echo(after=5)
    for _ in range(4):
        stage.member.progressed = stage.now
        stage.echo(after=0.5)
    assert [record.kind for record in stage.journal.sent] == ["claim", "beat", "beat", "beat", "beat"]
    assert [record.data for record in stage.journal.sent[1:]] == [{**marks, "idle": 0.5}] * 4
    third = Stage()
    third.journal.log = [stage.journal.log[0]]
    third.echo()
    assert third.member.state("leader").payload == Payload(2, marks, own=False, known=True)


def test_a_hurried_beat_is_awaited_until_it_was_read_back() -> None:
    """Its author's thread then reads at once; an ordinary one may be read back late."""
    stage = Stage().lead()
    stage.turn(after=0.5)
    assert not stage.member.expecting
    stage.member.state("leader").set_payload(0, {"claimed": 7}, now=True)
    stage.journal.sent.clear()
    stage.turn()
    assert [record.data for record in stage.journal.sent] == [{"claimed": 7}]
    assert stage.member.expecting
    stage.turn(after=0.1)
    assert stage.member.expecting
    stage.echo()
    assert not stage.member.expecting


def test_a_role_can_be_asked_for_at_once() -> None:
    """A request in one's own favour, for the term that is known; nobody asks himself, nor one who closes."""
    stage = stage_beside("leader")
    stage.member.ask("leader")
    request = stage.journal.sent[-1]
    assert (request.kind, request.to, request.term) == ("request", "m/1", 0)
    stage.journal.sent.clear()
    stage.member.close()
    stage.turn()
    stage.member.ask("leader")
    leader = Stage().lead()
    leader.member.ask("leader")
    assert stage.journal.sent == leader.journal.sent == []


def test_an_abandoned_member_holds_nothing_more() -> None:
    """Its thread has ended: nobody would notice that it is fenced."""
    stage = Stage().lead()
    assert stage.member.abandon() == [LeaderFenced("leader", 0)]
    assert not stage.holds()


def test_an_abandoned_member_tells_nothing_and_fences_once() -> None:
    """Other threads that still ask it hear of no term."""
    stage = Stage().lead()
    stage.member.abandon()
    assert stage.member.state("leader").payload == Payload()
    assert stage.member.abandon() == []


def test_a_leader_is_told_of_while_there_is_one() -> None:
    """Not before the log is known, and not when the role was released."""
    stage = Stage(empty=False)
    assert stage.member.state("leader").leader() is None
    claim = encode(Record(kind="claim", member="x/1", seq=1, lease=4.0, seen=-1))
    release = encode(Record(kind="release", member="x/1", seq=2, lease=4.0, seen=0, term=0))
    stage.turn(Started(0, 0, oldest=True), Entry(0, 0, claim))
    assert stage.member.state("leader").leader() == ("x", 0)
    stage.turn(Entry(0, 1, release))
    assert stage.member.state("leader").leader() is None


def test_a_step_waits_for_a_record_as_long_as_it_may_and_nothing_is_due() -> None:
    """Not beyond the next heartbeat, and never for less than nothing."""
    stage = Stage().lead()
    stage.turn()
    waits: list[float] = []
    stage.journal.read = lambda timeout: waits.append(timeout) or []  # type: ignore[method-assign,func-returns-value]
    stage.member.step(0.1)
    stage.member.step(9.0)
    stage.now += 3.0
    stage.member.step(9.0)
    assert waits == [0.1, pytest.approx(0.5), 0.0]


def test_it_wakes_for_the_next_beat_and_at_once_for_a_release() -> None:
    """Whoever turns it may wait so long for something to read."""
    stage = Stage().lead()
    stage.turn()
    assert stage.member.wake() == pytest.approx(stage.now + 0.5)
    stage.member.resign()
    stage.turn()
    stage.member.state("leader").drained(0)
    assert stage.member.wake() <= stage.now


def test_heartbeats_tell_how_long_the_owner_has_been_idle_and_a_drain_counts() -> None:
    """What falls due while a leader hangs or hands over is left to the successor: it must know since when."""
    stage = Stage().lead()
    stage.member.progressed = stage.now
    stage.turn(after=0.5)
    stage.member.progressed = stage.now
    stage.echo(after=0.5)
    stage.member.resign()
    stage.member.progressed = stage.now + 1.5  # a standby's loop makes turns, but starts nothing
    stage.echo(after=2)
    stage.member.state("leader").drained(0)
    stage.turn(after=1)
    told = [(record.kind, (record.data or {})["idle"]) for record in stage.journal.sent]
    assert told == [("beat", 0.5), ("beat", 0.5), ("beat", 2.0), ("release", 3.0)]


@pytest.mark.parametrize(
    ("data", "idle"),
    [
        ({"idle": 3.5}, 3.5),
        (None, 0),
        ({}, 0),
        ({"idle": -1}, 0),
        ({"idle": "3"}, 0),
        ({"idle": True}, 0),
        ({"idle": 1e9}, 0),
    ],
)
def test_the_predecessor_was_active_when_its_owner_last_made_progress(data: dict[str, Any] | None, idle: float) -> None:
    """Not when its last heartbeat was read: heartbeats go on while it hangs."""
    stage = Stage()
    stage.write(Record(kind="claim", member="x/1", seq=1, lease=4.0, seen=-1))
    stage.write(Record(kind="beat", member="x/1", seq=2, lease=4.0, seen=0, term=0, data=data))
    stage.echo()
    read = stage.now
    stage.echo(after=5)
    stage.echo(after=0.1)
    assert stage.leads()
    assert stage.member.state("leader").predecessor_active_until == pytest.approx(read - idle)


def test_a_claim_is_no_progress() -> None:
    """Who dies right after it leaves to its successor what the leader before it has left."""
    stage = Stage()
    stage.write(Record(kind="claim", member="x/1", seq=1, lease=4.0, seen=-1))
    stage.write(Record(kind="beat", member="x/1", seq=2, lease=4.0, seen=0, term=0, data={"idle": 2.0}))
    stage.echo()
    read = stage.now
    stage.write(Record(kind="claim", member="y/1", seq=1, lease=4.0, seen=1))
    stage.echo(after=3.0)
    stage.echo(after=5.0)
    stage.echo(after=0.1)
    assert stage.leads()
    assert stage.member.state("leader").predecessor_active_until == pytest.approx(read - 2.0)


def stage_beside(*roles: str) -> Stage:
    """`m`, to which every one of `roles` is assigned, and `x`, which leads them all."""
    stage = Stage(*roles)
    for role in range(len(roles)):
        stage.write(Record(kind="claim", member="x/1", seq=1, lease=4.0, seen=-1), role)
    stage.echo()
    return stage


def pass_time(stage: Stage, seconds: float) -> None:
    """`x` goes on beating meanwhile."""
    for _ in range(round(2 * seconds)):
        for role, log in enumerate(stage.journal.log):
            stage.write(Record(kind="beat", member="x/1", seq=len(log) + 9, lease=4.0, seen=0, term=0), role)
        stage.echo(after=0.5)


def test_a_member_asks_for_each_of_several_roles_that_the_group_has_assigned_to_it() -> None:
    """Once all has been stable for `rebalance_after`, and it says so; a lone role stays where it is (R10)."""
    several, alone = stage_beside("leader", "second"), stage_beside("leader")
    several.group.induced = frozenset({1})
    for stage in (several, alone):
        pass_time(stage, 31)
    assert [(record.kind, record.to, record.term) for record in several.journal.sent] == [("request", "m/2", 0)]
    assert len([line for line in several.log.lines if "asking for role=second leader=x term=0" in line]) == 1
    assert alone.journal.sent == []


@pytest.mark.parametrize("ends", ["resigns", "stalls"])
def test_a_member_that_gave_a_role_up_by_itself_does_not_ask_for_it_as_soon(ends: str) -> None:
    """What made it resign may be there still."""
    stage = Stage("leader", "second").lead()
    if ends == "resigns":
        stage.member.resign("leader")
    else:
        stage.member.candidate = False
    stage.turn()
    stage.member.candidate = True
    stage.member.state("leader").drained(0)
    stage.turn()
    stage.echo()
    stage.write(Record(kind="claim", member="x/1", seq=1, lease=100.0, seen=len(stage.journal.log[0]) - 1))
    for _ in range(2 * 60):
        stage.echo(after=0.5)
    assert "request" not in {record.kind for record in stage.journal.sent}
    stage.echo(after=0.5)
    assert "request" in {record.kind for record in stage.journal.sent}


def test_a_leader_that_was_asked_by_a_member_hands_over_to_it_alone_that_role() -> None:
    """Gracefully: the barrier runs, the release follows."""
    stage = Stage("leader", "second").lead()
    stage.write(Record(kind="request", member="y/1", seq=1, lease=0.0, to="y/1", term=0), role=1)
    assert stage.echo() == [LeaderRevoked("second", 0)]
    stage.member.state("second").drained(0)
    stage.turn()
    assert [record.kind for record in stage.journal.sent if record.kind == "release"] == ["release"]
    assert stage.leads("leader")


def test_the_beats_of_all_roles_leave_together() -> None:
    """One turn of the thread for all, however apart the roles were acquired."""
    stage = Stage("leader", "second", empty=False)
    stage.turn(Started(0, 0, oldest=True), End(0))
    stage.echo()
    stage.turn(Started(1, 0, oldest=True), End(1), after=0.3)
    stage.echo()
    for _ in range(3):
        stage.echo(after=stage.member.wake() - stage.now)
    stage.journal.sent.clear()
    times = set()
    stage.journal.on_append = lambda record: times.add(stage.now)
    for _ in range(20):
        stage.echo(after=stage.member.wake() - stage.now)
    assert len(stage.journal.sent) == 2 * len(times)


def test_what_a_member_waits_for_is_to_be_read_at_once() -> None:
    """The release of a role that is assigned to it, its claim; not what others do among each other."""
    stage = stage_beside("leader", "second")
    assert stage.member.expecting
    stage.group.induced = frozenset()
    stage.turn()
    assert not stage.member.expecting
    leading = Stage("leader", "second")
    leading.group.induced = frozenset()
    leading.turn()
    leading.turn(after=0.2)
    assert leading.member.expecting, "its claims are under way"
    leading.echo()
    assert leading.leads()
    assert not leading.member.expecting


def test_another_list_of_roles_is_noticed_once_a_minute() -> None:
    """The role is the partition; a record whose key names another role was written by somebody with another list."""
    stage = Stage("leader", "second").lead()
    for second in range(70):
        at = len(stage.journal.log[1]) + second
        record = Record(kind="request", member="x/1", seq=0, lease=0.0, to="m", term=0)
        stage.turn(
            Entry(1, 100 + at, encode(record), "billing"), Entry(0, 100 + at, encode(record), "leader"), after=1.0
        )
    said = [line for line in stage.log.lines if "roles differ" in line]
    assert len(said) == 2
    for part in ("partition=1", "name=m has role=second", "name=x has role=billing"):
        assert part in said[0]
