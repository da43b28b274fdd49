"""What the timeline makes of the log of a role: terms, how they ended, and the gaps between them."""

from __future__ import annotations

import logging
import time
from contextlib import closing
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka import Producer
from hypothesis import given
from hypothesis import strategies as st

from celery_neli.config import Config
from celery_neli.election.lease import Lease
from celery_neli.election.records import Record, decode, encode
from celery_neli.embedded import EmbeddedKafka
from celery_neli.exceptions import NeliError
from celery_neli.timeline import RoleTimeline, SlotWatch, Term, TimelineFollower, read_terms, read_timelines
from celery_neli.timeline import follower as follower_module
from celery_neli.timeline.follower import ENOUGH

if TYPE_CHECKING:
    from collections.abc import Iterator

LOG = logging.getLogger("celery_neli.test")
T = 1_700_000_000.0
LEASE = 4.0


class Log:
    """A role's log, written by hand. Times are seconds after `T`."""

    def __init__(self) -> None:
        self.records: list[tuple[bytes, float]] = []
        self._seq = 0
        self._last = -1
        self._term = -1

    def add(self, kind: Any, member: str, at: float, **fields: Any) -> int:
        """Add an effective record; fields may make it a void one. Return its offset."""
        self._seq += 1
        offset = len(self.records)
        given: dict[str, Any] = {"seq": self._seq, "lease": LEASE, "seen": self._last}
        if kind != "claim":
            given["term"] = self._term
        if kind == "request":
            given.update(lease=0.0)
            given.pop("seen")
        given |= fields
        self.records.append((encode(Record(kind=kind, member=f"{member}/1", **given)), T + at))
        if kind != "request" and given["seen"] == self._last:
            self._last = offset
            self._term = offset if kind == "claim" else self._term
        return offset

    def lead(self, member: str, begin: float, end: float, **fields: Any) -> int:
        """Let a member claim at `begin` and send a heartbeat each second until `end`."""
        term = self.add("claim", member, begin, **fields)
        at = begin + 1
        while at <= end:
            self.add("beat", member, at, **fields)
            at += 1
        return term

    def read(self, start: int = 0, **options: Any) -> RoleTimeline:
        timeline = RoleTimeline(Config(group="g"), "leader", start, oldest=start == 0, **options)
        for offset, (value, at) in enumerate(self.records):
            if offset >= start:
                timeline.read(offset, value, at)
        return timeline

    def terms(self, now: float, start: int = 0) -> list[Term]:
        return self.read(start).terms(T + now)


def shown(terms: list[Term]) -> list[tuple[str, float | None, float | None, str, float | None]]:
    def since(at: float | None) -> float | None:
        return None if at is None else at - T

    return [(each.leader, since(each.began), since(each.ended), each.end, each.gap) for each in terms]


@pytest.fixture
def log() -> Log:
    return Log()


def test_a_released_term_ends_with_its_release_and_the_next_claim_ends_the_gap(log: Log) -> None:
    log.lead("a", 0, 10)
    log.add("release", "a", 11)
    log.lead("b", 13, 20)
    assert shown(log.terms(20)) == [("a", 0, 11, "released", None), ("b", 13, None, "lives", 2)]


def test_a_killed_leaders_term_ends_with_its_lease(log: Log) -> None:
    """Not with the claim of its successor, nor with its last heartbeat."""
    log.lead("a", 0, 10)
    log.lead("b", 16, 20)
    assert shown(log.terms(20)) == [("a", 0, 14, "expired", None), ("b", 16, None, "lives", 2)]


def test_the_last_term_is_over_when_its_lease_has_run_out(log: Log) -> None:
    log.lead("a", 0, 10)
    assert shown(log.terms(13.9)) == [("a", 0, None, "lives", None)]
    assert shown(log.terms(14.1)) == [("a", 0, 14, "expired", None)]


def test_a_request_is_the_reason_of_the_release_that_follows_it(log: Log) -> None:
    log.lead("a", 0, 10)
    log.add("request", "request", 10.5, to="b")
    log.add("release", "a", 11)
    log.lead("b", 11.1, 12)
    first, second = log.terms(12)
    assert (first.end, first.asked_by, first.asked_for) == ("handed over", "request", "b")
    assert (second.asked_by, second.gap) == (None, pytest.approx(0.1))


@pytest.mark.parametrize("fields", [{"to": "a", "term": 0}, {"to": "a/1", "term": 0}, {"to": "b", "term": 3}])
def test_a_request_that_the_holder_does_not_obey_is_no_reason(log: Log, fields: dict[str, Any]) -> None:
    """One that favours the holder itself, or means another term."""
    log.lead("a", 0, 10)
    log.add("request", "request", 10.5, **fields)
    log.add("release", "a", 11)
    assert log.terms(12)[0].end == "released"


def test_a_claim_within_the_lease_deposes(log: Log) -> None:
    """Members never do that: a stranger may, or clocks that differ."""
    log.lead("a", 0, 10)
    log.add("claim", "b", 11)
    assert shown(log.terms(12)) == [("a", 0, 11, "deposed", None), ("b", 11, None, "lives", 0)]


def test_void_records_and_garbage_change_nothing(log: Log) -> None:
    """A rival's claim that comes late, a deposed leader's heartbeat, bytes that are no record."""
    log.lead("a", 0, 3)
    log.add("claim", "rival", 3.5, seen=1)
    log.records.append((b"\xff not a record", T + 3.6))
    log.lead("a", 3.7, 3)
    log.add("beat", "a", 4, term=0, seen=3)
    assert [each.leader for each in log.terms(5)] == ["a", "a"]


def test_a_member_that_claims_again_after_its_lease_has_run_out_begins_another_term(log: Log) -> None:
    log.lead("a", 0, 3)
    log.lead("a", 8, 9)
    assert shown(log.terms(9)) == [("a", 0, 7, "expired", None), ("a", 8, None, "lives", 1)]


def test_a_log_whose_begin_has_expired_says_so(log: Log) -> None:
    """The begin of its first term is unknown, the rest is as in the whole log."""
    log.lead("a", 0, 10)
    log.lead("b", 16, 20)
    timeline = log.read(5)
    assert (timeline.partial, timeline.first, timeline.unbegun) == (True, T + 5, 0)
    assert shown(timeline.terms(T + 20)) == [("a", None, 14, "expired", None), ("b", 16, None, "lives", 2)]
    timeline.learn(0, T)
    assert shown(timeline.terms(T + 20)) == shown(log.terms(20))
    assert timeline.unbegun is None


def test_a_claim_that_was_read_before_the_state_was_known_has_its_time(log: Log) -> None:
    """A reader that begins in the gap reads the claim, and learns only from the heartbeat that it counted."""
    log.lead("a", 0, 10)
    log.lead("b", 16, 20)
    start = 11  # the claim of b
    assert shown(log.terms(20, start)) == [("b", 16, None, "lives", None)]


def test_a_log_that_contradicts_itself_leaves_the_end_of_a_term_unknown(log: Log) -> None:
    """As one that was truncated and written on (R9). What comes behind it is known by its heartbeats."""
    log.lead("a", 0, 3)
    stranger = Record(kind="beat", member="x/1", seq=1, lease=LEASE, term=90, seen=91)
    log.records.append((encode(stranger), T + 4))
    assert shown(log.terms(5)) == [("a", 0, None, "unknown", None)]
    assert not log.terms(5)[0].covers(T + 60)
    log.add("claim", "b", 10, seen=None, end=5)  # blind
    assert [each.leader for each in log.terms(12)] == ["a", "b"]


def test_a_term_goes_on_behind_a_place_where_the_log_was_unclear(log: Log) -> None:
    log.lead("a", 0, 3)
    stranger = Record(kind="beat", member="x/1", seq=1, lease=LEASE, term=90, seen=91)
    log.records.append((encode(stranger), T + 4))
    for at in (5, 6):
        offset = log.add("beat", "a", at, seen=4)
        log.add("beat", "a", at + 0.5, seen=offset)
    assert shown(log.terms(6)) == [("a", 0, None, "lives", None)]


def test_the_watermarks_of_the_newest_record_are_the_terms(log: Log) -> None:
    log.add("claim", "a", 0, data={"claimed": T + 1, "done": T})
    log.add("beat", "a", 1, data={"claimed": T + 3, "done": T + 2})
    assert [(each.claimed, each.settled) for each in log.terms(1)] == [(T + 3, T + 2)]


def test_an_observer_sees_the_records_that_count_and_no_other(log: Log) -> None:
    seen: list[tuple[int, float, int, str]] = []
    log.lead("a", 0, 1)
    log.add("claim", "rival", 1.5, seen=0)
    log.add("release", "a", 2)
    log.read(observe=lambda offset, at, term, record: seen.append((offset, at - T, term, record.kind)))
    assert seen == [(0, 0, 0, "claim"), (1, 1, 0, "beat"), (3, 2, 0, "release")]


@given(st.data())
def test_whatever_is_in_the_log_the_timeline_agrees_with_the_members_on_who_leads(data: st.DataObject) -> None:
    """It raises nothing; its last term is that of a member's fold; terms do not overlap, and begin in order."""
    config = Config(group="g")
    member, timeline = Lease("/", config), RoleTimeline(config, "leader", 0, oldest=True)
    member.begin(0, 0.0, oldest=True)
    offsets = st.integers(min_value=-1, max_value=14)
    for offset in range(data.draw(st.integers(min_value=1, max_value=14))):
        kind: Any = data.draw(st.sampled_from(["claim", "claim", "beat", "beat", "release", "request", None]))
        value = b"garbage"
        if kind is not None:
            blind = kind == "claim" and data.draw(st.booleans())
            term = None if kind == "claim" else data.draw(st.one_of(st.just(member.term), offsets))
            record = Record(
                kind=kind,
                member=f"{data.draw(st.sampled_from('ab'))}/1",
                seq=offset + 1,
                lease=LEASE,
                seen=None if blind or kind == "request" else data.draw(st.one_of(st.just(member.last), offsets)),
                term=None if term is None else max(0, term),
                end=max(0, data.draw(offsets)) if blind else None,
                data=data.draw(st.sampled_from([None, {"claimed": "x"}, {"claimed": T, "done": T - 1}])),
            )
            value = encode(record)
        member.read(offset, decode(value) if kind else None, 0.0)
        if member.lost is not None:
            member.restart("/", 0.0)
        timeline.read(offset, value, T + offset)
        terms = timeline.terms(T + offset)
        last = terms[-1] if terms else None
        leads = last if last is not None and last.lives else None
        if member.known:
            assert (member.holder is None) == (leads is None)
            if leads is not None:
                assert (leads.member, leads.term) == (member.holder, member.term)
        for before, after in pairwise(terms):
            if before.ended is not None and after.began is not None:
                assert before.ended <= after.began


def test_what_the_records_say_of_a_slot(log: Log) -> None:
    """Claimed, read back by the next record, settled; what a claim repeats of earlier terms is none of its own."""
    slot = T + 5
    log.add("claim", "a", 0, data={"claimed": T, "done": T})
    log.add("beat", "a", 1, data={"claimed": T + 1, "done": T})
    claimed = log.add("beat", "a", 4, data={"claimed": slot + 1, "done": T + 3})
    log.add("beat", "a", 4.5, data={"claimed": slot + 1, "done": T + 4})
    settled = log.add("beat", "a", 6, data={"claimed": slot + 3, "done": slot + 0.5})
    log.add("release", "a", 7, data={"claimed": slot + 1, "done": slot + 1, "tried": 0.0})
    log.add("claim", "b", 8, data={"claimed": slot + 1, "done": slot + 1, "tried": 0.0})
    log.add("beat", "b", 9, data={"claimed": slot + 9, "done": slot + 4})
    watch = SlotWatch(slot)
    log.read(observe=watch)
    (found,) = watch.claims
    assert (found.term, found.leader, found.doubt, found.given_back) == (0, "a", False, False)
    assert (found.offset, found.at, found.read_back) == (claimed, T + 4, T + 4.5)
    assert (found.settled_offset, found.settled) == (settled, T + 6)


def test_a_slot_that_a_dead_leader_claimed_is_in_doubt_for_its_successor(log: Log) -> None:
    slot = T + 5
    log.add("claim", "a", 0, data={"claimed": T, "done": T})
    log.add("beat", "a", 4, data={"claimed": slot + 1, "done": T + 3})
    log.add("claim", "b", 12, data={"claimed": slot + 1, "done": T + 3})
    log.add("beat", "b", 13, data={"claimed": T + 14, "done": T + 3})
    log.add("beat", "b", 14, data={"claimed": T + 14, "done": T + 13})
    watch = SlotWatch(slot)
    log.read(observe=watch)
    first, second = watch.claims
    assert (first.doubt, first.settled) == (False, None)
    assert (second.doubt, second.settled) == (True, T + 14)


def test_what_a_successor_repeats_is_no_claim_of_its_own(log: Log) -> None:
    """Its first heartbeat carries what it found, with what was never tried (S1)."""
    slot = T + 5
    found = {"claimed": slot + 1, "done": T + 3, "tried": T + 4}
    log.add("claim", "b", 12, data=found)
    log.add("beat", "b", 13, data=found)
    own = log.add("beat", "b", 14, data={"claimed": T + 15, "done": T + 3})
    watch = SlotWatch(slot)
    log.read(observe=watch)
    assert [(each.doubt, each.offset) for each in watch.claims] == [(False, own)]


def test_a_slot_that_was_given_back_untried_is_not_in_doubt(log: Log) -> None:
    """A clean release says which slots were never given to the transport."""
    slot = T + 5
    log.add("claim", "a", 0, data={"claimed": T, "done": T})
    log.add("beat", "a", 4, data={"claimed": slot + 1, "done": T + 3})
    log.add("release", "a", 4.2, data={"claimed": T + 3, "done": T + 3, "tried": T + 3})
    log.add("claim", "b", 4.4, data={"claimed": T + 3, "done": T + 3, "tried": T + 3})
    watch = SlotWatch(slot)
    log.read(observe=watch)
    assert [(each.term, each.given_back, each.doubt) for each in watch.claims] == [(0, True, False)]


def test_the_number_of_terms_is_bounded(log: Log) -> None:
    for number in range(20):
        log.lead("a", 10 * number, 10 * number)
    assert len(log.read(most=5).terms(T)) <= 6


# On the embedded Kafka


class Topic:
    """A leader topic; `log` is what it holds."""

    def __init__(self, kafka: EmbeddedKafka) -> None:
        self.kafka, self.log = kafka, Log()
        self.config = Config(group="g.beat", kafka=kafka.bootstrap_servers, name="asker")
        self._written = 0

    def make(self) -> None:
        self.kafka.create_topic(self.config.topic, partitions=1)

    def write(self) -> None:
        """Write what was added to the log."""
        producer = Producer({"bootstrap.servers": self.kafka.bootstrap_servers})
        for value, at in self.log.records[self._written :]:
            producer.produce(self.config.topic, value, b"leader", partition=0, timestamp=round(at * 1000))
        assert producer.flush(20) == 0
        producer.close()
        self._written = len(self.log.records)


@pytest.fixture
def topic() -> Iterator[Topic]:
    with EmbeddedKafka() as kafka:
        yield Topic(kafka)


def test_the_terms_are_read_from_kafka_alone(topic: Topic) -> None:
    topic.make()
    topic.log.lead("a", 0, 10)
    topic.log.lead("b", 16, 20)
    topic.write()
    found = read_terms(topic.config, log=LOG)
    assert shown(found["leader"]) == [("a", 0, 14, "expired", None), ("b", 16, 24, "expired", 2)]


def test_a_topic_that_does_not_exist_has_no_terms(topic: Topic) -> None:
    assert read_terms(topic.config, log=LOG) == {}


def test_since_reads_only_the_end_of_a_long_log_and_still_knows_when_its_term_began(topic: Topic) -> None:
    topic.make()
    topic.log.lead("a", 0, 100)
    topic.log.lead("b", 110, 110 + 3 * ENOUGH)
    topic.log.lead("c", 120 + 3 * ENOUGH, 130 + 3 * ENOUGH)
    topic.write()
    found = read_timelines(topic.config, log=LOG, since=T + 110 + 2.9 * ENOUGH)["leader"]
    assert found.start > ENOUGH
    assert [each[:3] for each in shown(found.terms(T + 130 + 3 * ENOUGH))] == [
        ("b", 110, 110 + 3 * ENOUGH + LEASE),
        ("c", 120 + 3 * ENOUGH, None),
    ]


def test_kafka_that_does_not_answer_is_an_error_of_one_question() -> None:
    config = Config(group="g.beat", kafka="127.0.0.1:1", name="asker")
    with pytest.raises(NeliError, match=r"g\.beat\.neli cannot be read: .*127\.0\.0\.1:1"):
        read_terms(config, log=LOG, timeout=1)


def until(follower: TimelineFollower, condition: Any, timeout: float = 15.0) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"not in time: {follower.terms()} {follower.problem}"
        follower.poll(0.1)


def test_a_follower_sees_a_handover_as_it_happens(topic: Topic) -> None:
    """Even where the topic comes later."""
    now = time.time() - T
    with closing(TimelineFollower(topic.config, log=LOG)) as follower:
        follower.poll(0.1)
        assert follower.terms() == {}
        topic.make()
        topic.log.lead("a", now, now)
        topic.write()
        until(follower, lambda: [each.leader for each in follower.terms().get("leader", [])] == ["a"])
        topic.log.add("release", "a", now + 0.5)
        topic.log.lead("b", now + 1, now + 1)
        topic.write()
        until(follower, lambda: [each.leader for each in follower.terms()["leader"]] == ["a", "b"])
        assert [each.end for each in follower.terms()["leader"]] == ["released", "lives"]


def test_a_follower_says_that_kafka_is_away_and_goes_on_when_it_is_back(topic: Topic) -> None:
    topic.make()
    topic.log.lead("a", 0, 1)
    topic.write()
    with closing(TimelineFollower(topic.config, log=LOG)) as follower:
        until(follower, lambda: follower.caught_up)
        topic.kafka.broker_down()
        until(follower, lambda: follower.problem, 30)
        assert len(follower.terms()["leader"]) == 1
        topic.kafka.broker_up()
        until(follower, lambda: not follower.problem, 30)  # though nothing is written
        topic.log.lead("b", 9, 9)
        topic.write()
        until(follower, lambda: len(follower.terms()["leader"]) == 2, 30)


def test_a_follower_goes_on_when_the_topic_was_deleted_and_made_again(topic: Topic) -> None:
    """What was before stays, with an end that is unknown."""
    now = time.time() - T
    topic.make()
    topic.log.lead("a", now, now)
    topic.write()
    with closing(TimelineFollower(topic.config, log=LOG)) as follower:
        until(follower, lambda: follower.caught_up)
        topic.kafka.delete_topic(topic.config.topic)
        until(follower, lambda: "there is no topic" in follower.problem)
        topic.make()
        again = Topic(topic.kafka)
        again.log.lead("b", now + 1, now + 1)
        again.write()
        until(follower, lambda: [each.leader for each in follower.terms()["leader"]] == ["a", "b"])
        assert [each.end for each in follower.terms()["leader"]] == ["unknown", "lives"]
        assert follower.problem == ""


def test_a_follower_of_a_quiet_topic_asks_if_brokers_answer(topic: Topic, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence says nothing; and where nothing is written, nothing but an answer says that Kafka is back."""
    monkeypatch.setattr(follower_module, "SILENT", 0.5)
    topic.make()
    topic.log.lead("a", 0, 1)
    topic.write()
    with closing(TimelineFollower(topic.config, log=LOG)) as follower:
        until(follower, lambda: follower.caught_up)
        topic.kafka.slow(3.0)
        until(follower, lambda: follower.problem)
        topic.kafka.slow(0.0)
        until(follower, lambda: not follower.problem)
