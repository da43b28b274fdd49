"""The rules R1 to R9 of one role, told record by record on a clock that stands still."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_neli.config import Config
from celery_neli.election.lease import CLOCK_RATES, FOREVER, Lease, name_of
from celery_neli.election.records import Record

TIMING = Config(group="test", heartbeat_interval=0.5, heartbeat_timeout=4.0, takeover_delay=0.1, drain_timeout=10.0)


class Log:
    """A log that several leases read and append to, at times that the test names."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def append(self, record: Record | None) -> Record:
        assert record is not None, "nothing was due"
        self.records.append(record)
        return record

    def read(self, lease: Lease, now: float) -> None:
        for offset in range(lease.newest + 1, len(self.records)):
            lease.read(offset, self.records[offset], now)
        lease.end()


def member(name: str, *, start: int = 0, oldest: bool = True, now: float = 0.0) -> Lease:
    lease = Lease(f"{name}/1", TIMING)
    lease.begin(start, now, oldest=oldest)
    return lease


def elected(log: Log, name: str = "a") -> Lease:
    """A leader of term 0 since the time 0."""
    lease = member(name)
    lease.end()
    lease.induced = True
    log.append(lease.tick(0.0))
    log.read(lease, 0.0)
    assert lease.leading(0.0)
    return lease


def heartbeat(author: str, *, term: int, seen: int, seq: int = 50, lease: float = 4.0, **more: Any) -> Record:
    return Record(kind="beat", member=author, seq=seq, lease=lease, term=term, seen=seen, **more)


@pytest.mark.parametrize(("identity", "name"), [("a/1", "a"), ("a/b/1", "a/b"), ("stranger", "stranger"), ("/1", "/1")])
def test_a_name_is_an_identity_without_its_nonce(identity: str, name: str) -> None:
    """A stranger may write an identity that has none: it is shown as it is."""
    assert name_of(identity) == name


def test_a_lease_runs_from_the_send_of_the_record_that_bought_it() -> None:
    """However late the record is read back (R1)."""
    log, a = Log(), member("a")
    a.end()
    log.append(a.tick(1.0))
    log.read(a, 1.0)
    assert a.until == 1.0 + 4.0
    log.append(a.tick(1.2))
    log.read(a, 3.0)
    assert a.until == 1.2 + 4.0
    assert a.held(5.19)
    assert not a.held(5.2)


def test_a_claim_that_is_read_back_after_its_lease_makes_no_leader() -> None:
    """What it bought has run out; the term stands, nobody leads."""
    log, a = Log(), member("a")
    a.end()
    log.append(a.tick(0.0))
    log.read(a, 4.5)
    assert not a.held(4.5)


def test_a_holder_is_heard_only_by_what_comes_after_the_end_of_the_log() -> None:
    """The last record of a log may be of one long gone; its lease may be running nevertheless, for its own length."""
    log = Log()
    elected(log)
    reader = member("b", now=100.0)
    log.read(reader, 100.0)
    assert reader.holder == "a/1"
    assert not reader.live
    assert reader.may_be_held(104.0)
    assert not reader.may_be_held(104.1)
    log.append(heartbeat("a/1", term=0, seen=0))
    log.read(reader, 100.5)
    assert reader.live
    assert reader.may_be_held(104.5)
    log.append(Record(kind="release", member="a/1", seq=60, lease=0.01, term=0, seen=1))
    log.read(reader, 101.0)
    assert not reader.live
    assert not reader.may_be_held(101.0)


def test_of_two_claims_the_first_in_the_log_is_effective() -> None:
    """For everybody alike: a claim is a compare-and-set on the log's position."""
    log, a, b = Log(), member("a"), member("b")
    for each in (a, b):
        each.end()
        each.induced = True
        log.append(each.tick(0.0))
    for each in (a, b):
        log.read(each, 0.1)
    assert a.leading(0.1)
    assert not b.held(0.1)
    assert (b.holder, b.term) == ("a/1", 0)


def test_a_claim_does_not_depose_a_leader_whose_beat_came_first() -> None:
    """The claimant saw less than the log held."""
    log = Log()
    a = elected(log)
    log.append(a.tick(0.5))
    log.append(Record(kind="claim", member="b/1", seq=1, lease=4.0, seen=0))
    log.read(a, 0.6)
    assert a.leading(0.6)
    assert a.term == 0


def test_a_blind_claim_is_void_for_those_who_know_if_anything_lies_between() -> None:
    """Effective or not, a record or none; they judge it like a reader that knows nothing."""
    log = Log()
    a = elected(log)
    log.append(Record(kind="request", member="x/1", seq=0, lease=0.0, to="a"))
    log.append(Record(kind="claim", member="b/1", seq=1, lease=4.0, end=1))
    log.read(a, 0.5)
    a.read(3, None, 0.5)
    a.read(4, Record(kind="claim", member="b/1", seq=2, lease=4.0, end=3), 0.5)
    assert (a.leading(0.5), a.term) == (True, 0)
    a.read(5, Record(kind="claim", member="b/1", seq=3, lease=4.0, end=5), 0.5)
    assert (a.holder, a.term) == ("b/1", 5)


def test_others_wait_for_the_lease_that_the_holder_announces() -> None:
    """Not for their own setting; and by a hundredth longer, for clocks differ in rate (R2)."""
    log, b = Log(), member("b")
    b.induced = True
    log.append(Record(kind="claim", member="a/1", seq=1, lease=10.0, seen=-1))
    log.read(b, 1.0)
    due = 1.0 + 10.0 * CLOCK_RATES
    assert b.tick(due - 0.01) is None
    assert b.wake(2.0) == due
    assert b.tick(due) is not None


def test_a_released_role_is_claimed_at_once_by_the_induced_member_and_later_by_others() -> None:
    """The others give it the head start of `takeover_delay`."""
    log, induced, other = Log(), member("b"), member("c")
    log.append(Record(kind="claim", member="a/1", seq=1, lease=4.0, seen=-1))
    log.append(Record(kind="release", member="a/1", seq=2, lease=4.0, seen=0, term=0))
    induced.induced = True
    for each in (induced, other):
        log.read(each, 1.0)
    assert induced.tick(1.0) is not None
    assert other.tick(1.0) is None
    assert other.tick(1.1) is not None


def test_a_beat_that_arrives_behind_the_release_of_its_term_is_void() -> None:
    """The role is vacant, and stays so: its author has stopped."""
    log, b = Log(), member("b")
    b.induced = True
    log.append(Record(kind="claim", member="a/1", seq=1, lease=4.0, seen=-1))
    log.append(Record(kind="release", member="a/1", seq=3, lease=4.0, seen=0, term=0))
    log.append(heartbeat("a/1", term=0, seen=0, seq=2))
    log.read(b, 0.0)
    claim = b.tick(0.0)
    assert claim is not None
    assert claim.seen == 1


def test_a_head_start_is_drawn_for_each_term() -> None:
    """So that several members that are not induced do not claim together, again and again."""
    draws = itertools.count()
    log, c = Log(), Lease("c/1", TIMING, delay=lambda: next(draws) / 100)
    c.begin(0, 0.0, oldest=True)
    waits = []
    for term in (0, 2, 4):
        log.append(Record(kind="claim", member="a/1", seq=term + 1, lease=4.0, seen=term - 1))
        log.append(Record(kind="release", member="a/1", seq=term + 2, lease=4.0, seen=term, term=term))
        log.read(c, 1.0)
        waits.append(c.wake(1.0) - 1.0)
    assert len(set(waits)) == 3


def test_a_member_named_in_a_request_goes_before_the_induced_one() -> None:
    """Whoever asked the holder to resign chose the successor."""
    log, induced, named = Log(), member("b"), member("c")
    log.append(Record(kind="claim", member="a/1", seq=1, lease=4.0, seen=-1))
    log.append(Record(kind="request", member="cli/1", seq=0, lease=0.0, to="c"))
    log.append(Record(kind="release", member="a/1", seq=2, lease=4.0, seen=0, term=0))
    induced.induced = True
    for each in (induced, named):
        log.read(each, 1.0)
    assert named.tick(1.0) is not None
    assert induced.tick(1.0) is None
    assert induced.tick(1.44) is None, "the named one may lead other roles, and read late"
    assert induced.tick(1.46) is not None, "the named one may not come"


def test_a_favour_is_for_the_next_term_only() -> None:
    """When the member that was asked for has led and released, nobody waits for it again."""
    log, b = Log(), member("b")
    b.induced = True
    for record in (
        Record(kind="claim", member="a/1", seq=1, lease=4.0, seen=-1),
        Record(kind="request", member="cli/1", seq=0, lease=0.0, to="c"),
        Record(kind="release", member="a/1", seq=2, lease=4.0, seen=0, term=0),
        Record(kind="claim", member="c/1", seq=1, lease=4.0, seen=2),
        Record(kind="release", member="c/1", seq=2, lease=4.0, seen=3, term=3),
    ):
        log.append(record)
    log.read(b, 0.0)
    assert b.tick(0.0) is not None


def test_a_member_that_asked_for_itself_goes_first_and_no_namesake() -> None:
    """A request may name an identity: two members may have one name."""
    log, asking, namesake = Log(), member("b"), Lease("b/2", TIMING)
    namesake.begin(0, 0.0, oldest=True)
    log.append(Record(kind="claim", member="a/1", seq=1, lease=4.0, seen=-1))
    log.read(asking, 0.5)
    assert log.append(asking.ask()) == Record(kind="request", member="b/1", seq=1, lease=0.0, to="b/1", term=0)
    log.append(Record(kind="release", member="a/1", seq=2, lease=4.0, seen=0, term=0))
    for each in (asking, namesake):
        log.read(each, 1.0)
    assert asking.lost is None
    assert asking.tick(1.0) is not None
    assert namesake.tick(1.19) is None


def test_a_holder_heeds_a_namesake() -> None:
    """Asked by another process of its own name, it is asked; asked to make way for itself, it is not."""
    log = Log()
    a = elected(log)
    for to, asked in (("a/2", True), ("a/1", False), ("a", False), (None, True)):
        log.append(Record(kind="request", member="x/1", seq=0, lease=0.0, to=to))
        log.read(a, 0.1)
        assert a.asked == asked, to


def test_a_request_about_an_earlier_term_asks_nobody() -> None:
    """It was late, or doubled: the role has changed hands meanwhile."""
    log = Log()
    log.append(Record(kind="claim", member="b/1", seq=1, lease=4.0, seen=-1))
    log.append(Record(kind="release", member="b/1", seq=2, lease=4.0, seen=0, term=0))
    a = member("a")
    a.induced = True
    log.read(a, 0.0)
    log.append(a.tick(0.0))
    log.append(Record(kind="request", member="c/1", seq=1, lease=0.0, to="c/1", term=0))
    log.read(a, 0.1)
    assert not a.asked
    log.append(Record(kind="request", member="c/1", seq=2, lease=0.0, to="c/1", term=2))
    log.read(a, 0.1)
    assert a.asked


def test_who_made_way_for_another_that_does_not_come_is_back_after_its_head_start() -> None:
    """Of two members, one may die after it has asked: nobody else is there to lead."""
    log = Log()
    a = elected(log)
    log.append(Record(kind="request", member="b/1", seq=1, lease=0.0, to="b/1", term=0))
    log.read(a, 1.0)
    a.resign(1.0)
    a.drained()
    assert log.append(a.tick(1.0)).kind == "release"
    log.read(a, 1.1)
    assert a.tick(1.54) is None
    assert a.tick(1.56) is not None


@pytest.mark.parametrize(("early", "heartbeats"), [(0.0, False), (0.25, True)])
def test_a_heartbeat_may_leave_before_its_time_with_others(early: float, heartbeats: bool) -> None:
    """One turn for the heartbeats of several roles."""
    a = elected(Log())
    a.tick(0.0)
    assert (a.tick(0.3, early=early) is not None) == heartbeats
    assert (a.heartbeat_due(0.4), a.heartbeat_due(0.5)) == (heartbeats and False, not heartbeats)


def test_after_a_claim_comes_no_other_before_the_log_was_read_to_its_end_and_the_claim_is_old() -> None:
    """A claim that nobody has judged may still take effect."""
    a = member("a")
    a.end()
    a.induced = True
    assert a.tick(0.0) is not None
    assert a.tick(100.0) is None, "the log was not read since"
    a.end()
    assert a.tick(3.9) is None, "the claim may still be read"
    assert a.claiming(3.9)
    assert a.tick(4.0) is not None


def test_a_claim_is_judged_as_soon_as_another_record_takes_effect() -> None:
    """Nothing can come of it any more: its author need not wait until it is old before it claims again."""
    log, a = Log(), member("a")
    a.end()
    a.induced = True
    a.tick(0.0)
    log.append(Record(kind="claim", member="b/1", seq=1, lease=0.5, seen=-1))
    log.read(a, 0.0)
    assert not a.claiming(0.0)
    vacant = 0.5 * CLOCK_RATES
    assert a.tick(vacant - 0.01) is None
    assert a.tick(vacant) is not None


def test_a_resigning_leader_holds_until_its_release_is_sent() -> None:
    """It leads no more at once, sends heartbeats while the barrier runs, and then gives the role up (R3, R4)."""
    log = Log()
    a = elected(log)
    log.append(a.tick(0.5))
    a.resign(0.6)
    assert (a.leading(0.6), a.held(0.6)) == (False, True)
    assert log.append(a.tick(1.1)).kind == "beat"
    log.read(a, 1.1)
    a.drained()
    assert log.append(a.tick(1.2)).kind == "release"
    assert not a.held(1.2), "not only when the release is read back"


def test_a_barrier_is_awaited_for_drain_timeout_at_most() -> None:
    """Then the release goes without it."""
    log = Log()
    a = elected(log)
    a.resign(0.0)
    for heartbeats in range(1, 21):
        assert log.append(a.tick(heartbeats * 0.5 - 0.25)).kind == "beat"
        log.read(a, heartbeats * 0.5 - 0.25)
    assert log.append(a.tick(10.0)).kind == "release"


def test_a_release_is_sent_again_until_it_is_read_back_or_the_lease_ends() -> None:
    """It may be lost, and the others would wait for the whole lease; what it gave up stays given up."""
    a = elected(Log())
    a.resign(0.0)
    a.drained()
    sent = [a.tick(turn * 0.25) for turn in range(16)]
    assert [record.kind for record in sent if record is not None] == ["release"] * 8
    assert not a.held(0.1)
    assert a.tick(4.0) is None


def test_who_was_fenced_has_nothing_to_resign() -> None:
    """Asked to resign then, it does not stand back from claiming."""
    a = elected(Log())
    a.end()
    a.resign(4.0)
    claim = a.tick(4.0)
    assert claim is not None
    assert claim.kind == "claim"


def test_who_resigned_stands_back_for_its_own_lease() -> None:
    """After the release, and as long after the lease's end if the release is lost (R4)."""
    log = Log()
    a = elected(log)
    a.resign(0.0)
    a.drained()
    release = log.append(a.tick(0.0))
    lost = elected(Log())
    lost.resign(0.0)
    lost.drained()
    assert lost.tick(0.0) == release
    log.read(a, 0.2)
    assert a.tick(4.1) is None
    assert a.tick(4.2) is not None
    lost.end()
    assert lost.tick(7.9) is None
    assert lost.tick(8.0) is not None


def test_who_holds_no_more_does_not_beat() -> None:
    """Else one that cannot read would keep the role from everybody for ever (R5)."""
    a = elected(Log())
    assert a.tick(3.9).kind == "beat"  # type: ignore[union-attr]
    record = a.tick(4.0)
    assert record is None or record.kind == "claim"


def test_late_beats_bring_a_lease_back() -> None:
    """Beats that were sent in time and are read after the lease ran out: the leader goes on (goNELI's resume)."""
    log = Log()
    a = elected(log)
    log.append(a.tick(3.0))
    assert not a.held(4.5)
    log.read(a, 4.5)
    assert a.leading(4.5)
    assert a.until == 7.0


def test_beats_that_change_places_shorten_no_lease() -> None:
    """The older one is read last, and was sent first."""
    log = Log()
    a = elected(log)
    older, newer = a.tick(1.0), a.tick(2.0)
    log.append(newer)
    log.append(older)
    log.read(a, 2.5)
    assert a.until == 2.0 + 4.0


def test_a_record_of_another_with_the_same_number_takes_nothing_from_ones_own() -> None:
    """Numbers are each author's own."""
    log = Log()
    a = elected(log)
    own = log.append(a.tick(1.0))
    log.records.insert(1, Record(kind="claim", member="b/1", seq=own.seq, lease=4.0, seen=-1))
    log.read(a, 1.0)
    assert a.until == 1.0 + 4.0


def test_a_late_beat_of_an_earlier_term_is_void_and_contradicts_nothing() -> None:
    """Neither that of a deposed holder, nor the holder's own of a term that it had before."""
    log, c = Log(), member("c")
    log.append(Record(kind="claim", member="a/1", seq=1, lease=1.0, seen=-1))
    log.append(Record(kind="claim", member="b/1", seq=1, lease=1.0, seen=0))
    log.append(heartbeat("a/1", term=0, seen=0))
    log.read(c, 0.0)
    assert (c.lost, c.holder, c.last) == (None, "b/1", 1)
    log.append(Record(kind="claim", member="a/1", seq=60, lease=1.0, seen=1))
    log.append(heartbeat("a/1", term=0, seen=0, seq=51))
    log.read(c, 0.0)
    assert (c.lost, c.holder, c.term, c.last) == (None, "a/1", 3, 3)


def test_a_hurried_beat_is_awaited_until_it_is_read_back_itself() -> None:
    """An earlier record of one's own, or one of another, tells nothing of it."""
    log = Log()
    a = elected(log)
    log.append(a.tick(0.5))
    a.heartbeat_now()
    hurried = log.append(a.tick(0.6))
    a.read(1, log.records[1], 0.7)
    assert a.awaited(0.7)
    a.read(2, hurried, 0.8)
    assert not a.awaited(0.8)


def test_a_doubled_beat_buys_nothing_twice() -> None:
    """Its send is known, and counts once."""
    log = Log()
    a = elected(log)
    record = log.append(a.tick(1.0))
    log.read(a, 1.0)
    log.append(record)
    log.read(a, 4.0)
    assert a.until == 5.0


def test_who_begins_late_knows_nothing_without_a_certificate() -> None:
    """Claims tell nothing of what was before them; it neither judges nor claims, and may look further back (R7)."""
    a = member("a", start=10, oldest=False)
    a.read(10, Record(kind="claim", member="b/1", seq=1, lease=4.0, seen=8), 0.0)
    a.end()
    assert not a.known
    assert a.holder is None
    assert a.wake(0.0) == FOREVER
    assert a.tick(1000.0) is None


def test_a_beat_that_has_seen_the_first_record_read_is_a_certificate() -> None:
    """Its author held the role then, and what came since was read."""
    a = member("a", start=10, oldest=False)
    a.read(10, Record(kind="claim", member="c/1", seq=9, lease=4.0, seen=3), 0.0)
    a.read(11, heartbeat("b/1", term=4, seen=8), 0.0)
    assert not a.known, "something between 8 and 10 may have been effective"
    a.read(12, heartbeat("b/1", term=4, seen=9, seq=51), 0.0)
    assert (a.known, a.holder, a.term, a.last) == (True, "b/1", 4, 12)


def test_a_release_is_a_certificate_too() -> None:
    """Its author held the role until then: now nobody does."""
    a = member("a", start=10, oldest=False)
    a.read(10, Record(kind="release", member="b/1", seq=5, lease=4.0, term=4, seen=9), 0.0)
    assert (a.known, a.holder, a.term, a.last) == (True, None, 4, 10)


def test_the_longest_lease_that_was_announced_is_waited_for_not_the_last() -> None:
    """A blind claimant cannot tell whose lease runs."""
    a = member("a", start=10)
    a.induced = True
    a.read(10, Record(kind="claim", member="b/1", seq=1, lease=20.0, seen=3), 0.0)
    a.read(11, Record(kind="claim", member="c/1", seq=1, lease=1.0, seen=3), 1.0)
    a.end()
    assert a.tick(20.0 * CLOCK_RATES - 0.01) is None
    assert a.tick(20.0 * CLOCK_RATES) is not None


def test_what_was_read_before_looking_back_is_read_again_and_not_kept() -> None:
    """Else a record that was no certificate would be judged by a state that it does not belong to."""
    a = member("a", start=10, oldest=False)
    a.read(10, Record(kind="claim", member="c/1", seq=9, lease=4.0, seen=8), 0.0)
    a.read(11, heartbeat("c/1", term=10, seen=3, seq=10), 0.0)
    a.begin(8, 0.0, oldest=False)
    a.read(8, heartbeat("b/1", term=4, seen=7), 0.0)
    assert (a.known, a.holder, a.term, a.last) == (True, "b/1", 4, 8)


def test_a_holder_that_begins_to_read_again_holds_nothing() -> None:
    """It knows nothing of what came in between."""
    a = elected(Log())
    a.begin(5, 1.0, oldest=True)
    assert not a.held(1.0)
    assert a.holder is None


def test_leases_that_were_announced_before_looking_back_are_waited_for() -> None:
    """If the log holds no certificate at all, they may be running (R7)."""
    a = member("a", start=10, oldest=False)
    a.induced = True
    a.read(10, Record(kind="claim", member="b/1", seq=1, lease=60.0, seen=8), 0.0)
    a.begin(5, 0.0, oldest=True)
    a.end()
    assert a.tick(60.0 * CLOCK_RATES - 0.01) is None
    assert a.tick(60.0 * CLOCK_RATES) is not None


def test_a_release_and_ones_own_records_announce_no_lease_to_wait_for() -> None:
    """Who released has stopped, and one's own lease is known."""
    a = member("a", start=10)
    a.induced = True
    a.end()
    claim = a.tick(5.0)
    assert claim is not None
    a.read(10, Record(kind="release", member="b/1", seq=1, lease=200.0, seen=3, term=2), 5.0)
    a.read(11, claim, 8.0)
    a.end()
    assert not a.known
    assert a.tick(9.0) is not None


def test_who_begins_again_trusts_the_log_again() -> None:
    """It meets the record that contradicted when it knows, and judges it then."""
    a = member("a", start=10, oldest=False)
    contradiction = heartbeat("b/1", term=90, seen=95)
    a.read(10, contradiction, 0.0)
    assert a.lost
    a.begin(8, 0.0, oldest=True)
    assert a.lost is None
    a.read(8, None, 0.0)
    a.read(9, None, 0.0)
    a.read(10, contradiction, 0.0)
    assert a.lost


def test_a_log_without_a_certificate_is_claimed_blind_after_every_lease_that_may_run() -> None:
    """Those announced by records that were read, and one of one's own length, for an empty log proves nothing (R7)."""
    a = member("a", start=10, now=100.0)
    a.induced = True
    a.end()
    assert a.tick(100.0 + 4.0 * CLOCK_RATES - 0.01) is None
    a.read(10, Record(kind="claim", member="b/1", seq=1, lease=9.0, seen=3), 101.0)
    assert a.tick(101.0 + 9.0 * CLOCK_RATES - 0.01) is None
    claim = a.tick(101.0 + 9.0 * CLOCK_RATES)
    assert claim is not None
    assert claim.blind
    assert claim.end == 11


@pytest.mark.parametrize("between", [None, heartbeat("x/1", term=3, seen=4)])
def test_any_record_at_all_voids_a_blind_claim(between: Record | None) -> None:
    """Even one that is void, or no record: nobody who judges it needs to know more than what stands there."""
    a = member("a", start=10, now=0.0)
    a.read(10, between, 0.0)
    a.read(11, Record(kind="claim", member="b/1", seq=1, lease=4.0, end=10), 0.0)
    assert (a.known, a.holder) == (False, None), "a void claim is no certificate"
    a.read(12, Record(kind="claim", member="b/1", seq=2, lease=4.0, end=12), 0.0)
    assert (a.known, a.holder, a.term) == (True, "b/1", 12)


@pytest.mark.parametrize(
    "record",
    [
        heartbeat("a/1", term=0, seen=5),
        Record(kind="claim", member="b/1", seq=1, lease=4.0, seen=1),
        Record(kind="claim", member="b/1", seq=1, lease=4.0, end=2),
        Record(kind="beat", member="a/1", seq=99, lease=4.0, term=0, seen=0),
        heartbeat("b/1", term=0, seen=0),
        Record(kind="beat", member="a/1", seq=2, lease=4.0, term=0, seen=0),
    ],
    ids=[
        "refers to a later offset",
        "claim on a later offset",
        "blind claim past itself",
        "own name, never sent",
        "own term, other holder",
        "own name, the number that comes next",
    ],
)
def test_a_record_that_the_log_cannot_hold_ends_the_trust_in_it(record: Record) -> None:
    """The log is not the one that was read: lead no more (R9)."""
    log = Log()
    a = elected(log)
    a.read(1, record, 0.1)
    assert a.lost
    assert not a.held(0.1)
    assert a.tick(0.6) is None


def test_an_offset_that_was_read_already_is_ignored() -> None:
    """A journal may tell it again: the record there is judged once."""
    log = Log()
    a = elected(log)
    a.read(0, heartbeat("b/1", term=0, seen=0), 0.1)
    assert a.lost is None
    assert a.leading(0.1)


def test_a_log_that_contradicts_is_read_no_further_until_it_is_begun_anew() -> None:
    """That begins behind the record that told, whatever came with it."""
    log = Log()
    a = elected(log)
    a.read(1, heartbeat("b/1", term=0, seen=0), 0.1)
    a.read(2, Record(kind="claim", member="c/1", seq=1, lease=4.0, seen=0), 0.1)
    assert (a.lost is not None, a.term, a.newest) == (True, 0, 1)
    a.restart("a/2", 0.1)
    assert (a.start, a.lost) == (2, None)


@pytest.mark.parametrize("ends", ["never begun", "reread", "lose"])
def test_what_comes_before_reading_has_begun_says_nothing(ends: str) -> None:
    """Records, ends and contradictions are of a position that is given up."""
    a = Lease("a/1", TIMING)
    if ends == "reread":
        a.begin(10, 0.0, oldest=False)
        a.reread()
    elif ends == "lose":
        a.begin(10, 0.0, oldest=False)
        a.lose("a/2")
    for offset, record in enumerate((heartbeat("b/1", term=90, seen=95), heartbeat("b/1", term=9, seen=9)), 10):
        a.read(offset, record, 0.0)
    a.end()
    assert (a.lost, a.known, a.caught_up, a.holder) == (None, False, False, None)
    assert a.tick(1000.0) is None
    assert a.wake(0.0) == FOREVER


def test_who_begins_anew_has_a_new_name_and_waits_for_its_own_old_lease() -> None:
    """The others may not have noticed; what was announced and bought before still runs."""
    log = Log()
    a = elected(log)
    log.append(a.tick(3.0))
    log.read(a, 3.0)
    a.read(2, heartbeat("b/1", term=1, seen=1, lease=9.0), 3.1)
    assert a.lost
    a.restart("a/2", 3.1)
    a.induced = True
    a.read(3, Record(kind="claim", member="c/1", seq=1, lease=0.5, end=3), 3.1)
    assert (a.member, a.holder) == ("a/2", "c/1")
    a.end()
    assert a.tick(6.9) is None, "until 7.0 runs the lease of a/1"


def test_a_member_that_may_not_claim_does_not() -> None:
    """`candidate` is for those that close, stall or stand aside."""
    a = member("a")
    a.end()
    a.candidate = False
    assert a.tick(1000.0) is None
    assert a.wake(0.0) == FOREVER


def test_a_member_that_knows_by_a_certificate_may_claim() -> None:
    """It need not have read the log from its oldest record on (R7)."""
    a = member("a", start=10, oldest=False)
    a.induced = True
    a.read(10, Record(kind="release", member="b/1", seq=5, lease=4.0, term=4, seen=9), 0.0)
    a.end()
    claim = a.tick(0.0)
    assert claim is not None
    assert claim.seen == 10


def test_a_claim_under_way_shortens_no_wait() -> None:
    """A lease that was announced since runs longer than the claim is young."""
    a = member("a", start=10)
    a.induced = True
    a.end()
    assert a.tick(5.0) is not None
    a.read(10, Record(kind="claim", member="b/1", seq=1, lease=60.0, seen=3), 6.0)
    a.end()
    assert a.tick(6.0 + 60.0 * CLOCK_RATES - 0.01) is None
    assert a.tick(6.0 + 60.0 * CLOCK_RATES) is not None


def test_a_member_wakes_when_its_barrier_must_end_and_not_for_a_log_that_it_cannot_use() -> None:
    """Nothing is due while the log contradicts, or before it was read to its end."""
    log = Log()
    a = elected(log)
    a.resign(0.25)
    for heartbeats in range(1, 22):
        log.append(a.tick(heartbeats * 0.5 - 0.5))
        log.read(a, heartbeats * 0.5 - 0.5)
    assert a.wake(10.2) == 10.25
    assert log.append(a.tick(10.25)).kind == "release"
    assert a.wake(10.3) == 10.75, "the release may be lost"
    contradicted = elected(Log())
    contradicted.read(1, heartbeat("b/1", term=0, seen=0), 0.1)
    assert contradicted.wake(0.1) == FOREVER
    late = member("b")
    assert late.wake(0.0) == FOREVER


def test_data_are_repeated_by_claims_and_never_move_back_within_a_term() -> None:
    """A doubled, late heartbeat is effective as a heartbeat, its data are old."""
    log = Log()
    a = elected(log)
    a.data_out = {"claimed": 1}
    first = log.append(a.tick(0.5))
    log.read(a, 0.5)
    a.data_out = {"claimed": 2}
    log.append(a.tick(1.0))
    log.append(first)
    b = member("b")
    for each in (a, b):
        log.read(each, 1.1)
        assert each.data == {"claimed": 2}
    assert (a.data_own, b.data_own) == (True, False)
    claim = b.tick(50.0)
    assert claim is not None
    assert claim.data == {"claimed": 2}


def test_data_that_were_offered_in_one_term_are_not_sent_in_the_next() -> None:
    """Another may have led between: the first heartbeats of a new term repeat what its claim found."""
    log = Log()
    a = elected(log)
    a.data_out = {"claimed": 1}
    log.append(Record(kind="claim", member="b/1", seq=1, lease=1.0, seen=0, data={"claimed": 9}))
    log.append(Record(kind="release", member="b/1", seq=2, lease=1.0, seen=1, term=1, data={"claimed": 9}))
    log.read(a, 0.1)
    log.append(a.tick(0.1))
    log.read(a, 0.2)
    a.heartbeat_now()
    assert log.append(a.tick(0.2)).data == {"claimed": 9}


@pytest.mark.parametrize("drained", [False, True])
def test_the_next_turn_is_due_when_something_is(drained: bool) -> None:
    """A heartbeat, the end of the lease, the end of the barrier; at once when the barrier has returned."""
    a = elected(Log())
    a.tick(0.1)
    assert a.wake(0.2) == 0.6
    a.resign(0.2)
    if drained:
        a.drained()
    assert a.wake(0.2) == (0.2 if drained else 0.6)
    a.heartbeat_now()
    assert a.wake(0.2) <= 0.2


# Two readers agree (R7)

BLIND, CLAIM, BEAT, RELEASE = range(4)
moves = st.tuples(st.sampled_from([BLIND, CLAIM, BEAT, BEAT, BEAT, RELEASE]), st.integers(0, 3), st.integers(0, 6))


@settings(deadline=None, max_examples=300)
@given(st.lists(moves, min_size=4, max_size=40), st.data())
def test_readers_that_begin_at_different_offsets_agree_once_they_know(
    history: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    """Of any log that honest members may have written: each record says what its author knew at some earlier time."""
    exact = Lease("exact/1", TIMING)
    exact.begin(0, 0.0, oldest=True)
    states = [(None, -1, -1)]
    log: list[Record] = []
    for kind, author, late in history:
        holder, term, last = states[max(0, len(states) - 1 - late)]
        seq, name = len(log) + 1, f"m{author}/1"
        if kind == BLIND:
            log.append(Record(kind="claim", member=name, seq=seq, lease=4.0, end=max(0, len(log) - late // 3)))
        elif kind == CLAIM or holder is None:
            log.append(Record(kind="claim", member=name, seq=seq, lease=4.0, seen=last))
        else:
            log.append(
                Record(
                    kind="beat" if kind == BEAT else "release", member=holder, seq=seq, lease=4.0, term=term, seen=last
                )
            )
        exact.read(len(log) - 1, log[-1], 0.0)
        states.append((exact.holder, exact.term, exact.last))
    start = data.draw(st.integers(1, len(log) - 1))
    late_reader = Lease("late/1", TIMING)
    late_reader.begin(start, 0.0, oldest=False)
    for offset in range(start, len(log)):
        late_reader.read(offset, log[offset], 0.0)
        assert late_reader.lost is None
        if late_reader.known:
            assert (late_reader.holder, late_reader.term, late_reader.last) == states[offset + 1]
