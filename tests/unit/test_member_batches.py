"""What a member makes of events that its journal hands over together: the same as of each by itself."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_neli.election.records import End, Entry, Event, Lost, Record, Started, encode
from tests.unit.stage import HandJournal, Stage

UNKNOWN_LEADER = encode(Record(kind="beat", member="b/1", seq=1, lease=4.0, term=90, seen=90))
RELEASED = [
    encode(Record(kind="claim", member="x/1", seq=1, lease=4.0, seen=-1)),
    encode(Record(kind="release", member="x/1", seq=2, lease=4.0, seen=0, term=0)),
]


def test_a_contradiction_that_follows_the_end_in_one_batch_stops_nobody_for_ever() -> None:
    """The member looks back from the end on: what else the batch holds says nothing to it (R7, R9)."""
    stage = Stage(empty=False)
    stage.turn(Started(0, 10, oldest=False), End(0), Entry(0, 10, UNKNOWN_LEADER))
    assert stage.journal.asked == [("look_back", 0)]
    stage.turn(Started(0, 10, oldest=True), End(0), after=0.1)
    stage.turn(after=4.1)
    assert [(record.kind, record.end) for record in stage.journal.sent] == [("claim", 10)]


def test_the_first_record_that_is_read_again_counts() -> None:
    """Else a member that looks back to the beginning of the log would take the holder's role for vacant."""
    stage = Stage(empty=False)
    stage.turn(Started(0, 2, oldest=False), End(0), Entry(0, 2, UNKNOWN_LEADER))
    entries = [Entry(0, offset, value) for offset, value in enumerate(RELEASED)]
    stage.turn(Started(0, 0, oldest=True), entries[0], after=0.1)
    assert stage.member.state("leader").leader() == ("x", 0)
    stage.turn(entries[1], End(0))
    assert [(record.kind, record.seen) for record in stage.journal.sent] == [("claim", 1)]


@pytest.mark.parametrize(
    "late",
    [
        [End(0), End(0)],
        [End(0), Entry(0, 10, UNKNOWN_LEADER), End(0)],
        [Entry(0, 10, UNKNOWN_LEADER), Entry(0, 11, UNKNOWN_LEADER), End(0)],
    ],
)
def test_one_look_back_is_asked_for_at_a_time(late: list[Event]) -> None:
    """A second one would go further back than is needed, or end the first."""
    stage = Stage(empty=False)
    stage.turn(Started(0, 10, oldest=False), *late)
    stage.turn(End(0), after=2.0)
    assert stage.journal.asked == [("look_back", 0)]


@pytest.mark.parametrize("late", [[], [Entry(0, 11, UNKNOWN_LEADER)], [End(0)], [End(0), Entry(0, 11, UNKNOWN_LEADER)]])
def test_what_a_batch_holds_behind_a_lost_position_says_nothing(late: list[Event]) -> None:
    """It is of the log that is gone."""
    stage = Stage(empty=False)
    stage.turn(Started(0, 10, oldest=False), Entry(0, 10, b"junk"), End(0), Lost(0, "truncated"), *late)
    stage.turn(Started(0, 3, oldest=True), End(0), after=0.1)
    stage.turn(after=4.1)
    assert [(record.kind, record.end) for record in stage.journal.sent] == [("claim", 3)]


# Any log, in any batches


class LogJournal(HandJournal):
    """Hands out a log as a `Journal` promises to, `sizes` events at a time; a look back ends what it read before."""

    def __init__(self, log: list[bytes], *, tail: int, ends: set[int], lost: set[int], sizes: list[int]) -> None:
        super().__init__(1)
        self.values, self.tail, self.ends, self.lost, self.sizes = log, tail, ends, lost, sizes
        self.start = self.at = tail
        self.begun = False
        self.end_told = False

    @property
    def done(self) -> bool:
        return self.begun and self.at == len(self.values) and self.end_told

    def _event(self) -> Event | None:
        if not self.begun:
            self.begun, self.end_told = True, False
            return Started(0, self.start, oldest=self.start == 0)
        if self.at in self.lost:
            self.lost.discard(self.at)
            self.begun, self.start = False, max(0, self.at - 3)
            self.at = self.start
            return Lost(0, "truncated")
        if self.at in self.ends and not self.end_told:
            self.end_told = True
            return End(0)
        if self.at < len(self.values):
            self.at, self.end_told = self.at + 1, False
            return Entry(0, self.at - 1, self.values[self.at - 1])
        if not self.end_told:
            self.end_told = True
            return End(0)
        return None

    def read(self, timeout: float) -> list[Event]:
        size = self.sizes.pop(0) if self.sizes else 1
        return [event for event in (self._event() for _ in range(size)) if event is not None]

    def look_back(self, role: int) -> None:
        super().look_back(role)
        if self.begun:  # else a position is being sought already
            self.begun, self.start = False, max(0, self.start - 4)
            self.at = self.start

    def ask_end(self, role: int) -> None:
        self.end_told = False


def outcome(log: list[bytes], *, tail: int, ends: set[int], lost: set[int], sizes: list[int]) -> object:
    """What a member knows in the end, and what it claims when every lease has run out."""
    journal = LogJournal(log, tail=tail, ends=set(ends), lost=set(lost), sizes=list(sizes))
    stage = Stage(empty=False, journal=journal)
    stage.member.candidate = False
    for _ in range(200 + 20 * len(log)):
        stage.member.step(0)
        if journal.done:
            break
    assert journal.done, "it reads the log again and again"
    knows = stage.member.state("leader").payload, stage.member.state("leader").leader(), stage.member.outdated
    stage.member.candidate = True
    for _ in range(5):
        stage.now += 1000.0
        stage.member.step(0)
    claims = [(record.kind, record.seen, record.end, record.data) for record in journal.sent if record.kind == "claim"]
    assert stage.member.outdated or claims, "it stands by for ever"
    return knows, claims[:1]


KINDS = st.sampled_from(["claim", "blind", "beat", "beat", "release", "junk", "stray", "stray", "own", "newer"])
PLACES = st.sets(st.integers(0, 20), max_size=5)
ENDS = PLACES | st.just(set(range(21)))
SIZES = st.lists(st.integers(1, 12), max_size=20)
steps = st.tuples(KINDS, st.integers(1, 3), st.integers(0, 4))


def written(history: list[tuple[str, int, int]]) -> list[bytes]:
    """A log that members may have written, with records that contradict it, or are none, here and there."""
    log: list[bytes] = []
    holder, term, last = "m1/1", 0, -1
    for kind, author, back in history:
        at, name = len(log), f"x{author}/1"
        if kind == "claim":
            record = Record(
                kind="claim",
                member=name,
                seq=at + 1,
                lease=4.0,
                seen=last if back < 4 else max(-1, last - 1),
                data={"at": at},
            )
            if back != 4:
                holder, term, last = name, at, at
        elif kind == "blind":
            record = Record(kind="claim", member=name, seq=at + 1, lease=4.0, end=max(0, at - back // 3))
            if not back // 3:
                holder, term, last = name, at, at
        elif kind in ("beat", "release"):
            record = Record(
                kind="beat" if kind == "beat" else "release",
                member=holder, seq=at + 1, lease=4.0, term=term, seen=max(0, last), data={"at": at},
            )  # fmt: skip
            last = at
        elif kind == "stray":
            record = Record(kind="beat", member=name, seq=at + 1, lease=4.0, term=at + back, seen=at)
        elif kind == "own":
            record = Record(kind="claim", member="m/1", seq=99, lease=4.0, seen=last)
        else:
            log.append(b'{"v":2}' if kind == "newer" and back == 4 else b"junk")
            continue
        log.append(encode(record))
    return log


@settings(deadline=None, max_examples=300)
@given(st.lists(steps, min_size=1, max_size=20), st.integers(0, 20), ENDS, SIZES)
def test_a_member_judges_alike_however_its_events_are_bundled(
    history: list[tuple[str, int, int]], back: int, ends: set[int], sizes: list[int]
) -> None:
    """Ends, contradictions and looks back in any order: it knows the same in the end, and is as ready to lead."""
    log = written(history)
    start = max(0, len(log) - back)
    one_by_one = outcome(log, tail=start, ends=ends, lost=set(), sizes=[])
    assert outcome(log, tail=start, ends=ends, lost=set(), sizes=sizes) == one_by_one
    assert outcome(log, tail=start, ends=ends, lost=set(), sizes=[1000] * 9) == one_by_one


@settings(deadline=None, max_examples=300)
@given(st.lists(steps, min_size=1, max_size=20), st.integers(0, 20), ENDS, PLACES, SIZES)
def test_a_member_that_loses_its_position_anywhere_in_a_batch_is_ready_to_lead_again(
    history: list[tuple[str, int, int]], back: int, ends: set[int], lost: set[int], sizes: list[int]
) -> None:
    """Whatever it was doing: it comes to the end of the log, and claims when every lease has run out."""
    log = written(history)
    assert outcome(log, tail=max(0, len(log) - back), ends=ends, lost=lost, sizes=sizes)


def test_leases_that_were_announced_before_looking_back_are_remembered_when_the_log_is_another() -> None:
    """A topic made anew is empty, but who led by the old one may still believe in its lease (R7)."""
    stage = Stage(empty=False)
    announced = encode(Record(kind="claim", member="b/1", seq=1, lease=60.0, seen=8))
    stage.turn(Started(0, 10, oldest=False), Entry(0, 10, announced), End(0), Lost(0, "leader topic gone"))
    stage.turn(Started(0, 0, oldest=True), End(0))
    stage.turn(after=60.0)
    assert stage.journal.sent == []
    stage.turn(after=0.7)
    assert [record.kind for record in stage.journal.sent] == ["claim"]
