"""Entries spread over several leaders: who owns which, and how a beat with more shards takes over."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_neli.beat.replicated.claims import Watermarks
from celery_neli.beat.replicated.term import begin
from celery_neli.config import owner, parent
from celery_neli.election.role_state import Payload
from celery_neli.exceptions import ConfigurationError
from tests.unit.beats import NOON, World

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

names = st.text(min_size=1)
#: As many entries as each of four shards has some of, each second.
MANY = {f"entry-{n}": 1.0 for n in range(24)}
ALL = {"neli_misfire": "fire_all", "neli_in_doubt": "skip"}


# -- who owns what --


@given(names, st.integers(1, 300))
def test_one_shard_more_splits_one_shard_only(name: str, shards: int) -> None:
    """An entry stays where it is, or moves from the new shard's parent to the new one."""
    before, after = owner(name, shards), owner(name, shards + 1)
    assert 0 <= before < shards
    if before != after:
        assert (after, before) == (shards, parent(shards))


@given(st.integers(1, 1000))
def test_a_parent_is_an_earlier_shard(shard: int) -> None:
    """So each shard comes from the first one in the end."""
    assert 0 <= parent(shard) < shard


def test_shards_are_the_same_in_every_process_and_release() -> None:
    """Written down: if these change, beats of two releases both send an entry, or neither."""
    expected = {
        "a": [0, 1, 1, 3, 3, 3, 3, 3],
        "report": [0, 0, 0, 0, 4, 4, 4, 4],
        "ä€😀": [0, 1, 1, 3, 3, 3, 3, 7],
        "": [0] * 8,
    }
    found = {name: [owner(name, shards) for shards in range(1, 9)] for name in expected}
    assert found == expected


def test_powers_of_two_spread_evenly() -> None:
    """To a few percent, of many entries."""
    for shards in (2, 4, 8):
        counts = Counter(owner(f"entry-{n}", shards) for n in range(8000))
        assert set(counts) == set(range(shards))
        assert max(counts.values()) < 1.15 * min(counts.values())


# -- what a term begins with --


def tells(**records: Mapping[str, Any] | None) -> Callable[[int], Payload]:
    """What the roles' newest records carry: ``r0`` of the first one and so on."""

    def told(shard: int) -> Payload:
        data = records.get(f"r{shard}")
        return Payload(term=None if data is None else 1, data=data, known=True)

    return told


def test_a_fresh_start_begins_with_nothing() -> None:
    """The first shard at once; the others when it has said by how many it goes."""
    first = begin(0, 2, tells(), now=100.0)
    assert first is not None
    assert (first.marks, dict(first.data)) == (None, {"shards": 2})
    assert begin(1, 2, tells(), now=100.0) is None
    second = begin(1, 2, tells(r0={"shards": 2, "claimed": 5.0, "done": 4.0}), now=100.0)
    assert second is not None
    assert second.marks is None


def test_a_term_begins_with_the_marks_that_its_role_found() -> None:
    """And keeps what it found for shards that are split from it."""
    data = {"shards": 2, "claimed": 9.0, "done": 8.0, "split": {"1": {"claimed": 5.0, "done": 4.0}}}
    beginning = begin(0, 2, tells(r0=data), now=100.0)
    assert beginning is not None
    assert beginning.marks == Watermarks(9.0, 8.0)
    assert beginning.data == {"shards": 2, "split": {"1": {"claimed": 5.0, "done": 4.0}}}


def test_a_new_shard_waits_until_its_parent_is_led_by_the_new_number() -> None:
    """Until then the parent's leader sends its entries: also one of a release that tells no number."""
    marks = {"claimed": 9.0, "done": 8.0}
    assert begin(1, 2, tells(r0=marks), now=100.0) is None
    assert begin(1, 2, tells(r0={"shards": 1, **marks}), now=100.0) is None
    assert begin(3, 4, tells(r0={"shards": 4, **marks}, r1={"shards": 2, **marks}), now=100.0) is None
    split = {"shards": 4, "claimed": 12.0, "done": 11.0, "split": {"3": marks}}
    beginning = begin(3, 4, tells(r1=split), now=100.0)
    assert beginning is not None
    assert beginning.marks == Watermarks(9.0, 8.0)


def test_a_new_shard_waits_for_what_is_not_known_yet() -> None:
    """Its parent's records were not read to the end."""
    data = {"shards": 2, "claimed": 9.0, "done": 8.0}
    assert begin(1, 2, lambda shard: Payload(data=data if shard == 0 else None, known=False), now=100.0) is None


def test_marks_are_handed_to_those_shards_only_that_are_split_from_this_one() -> None:
    """From one to four at once: to the second and the third; the fourth is the second's."""
    marks = {"claimed": 9.0, "done": 8.0}
    first = begin(0, 4, tells(r0={"shards": 1, **marks}), now=100.0)
    assert first is not None
    assert first.data == {"shards": 4, "split": {"1": marks, "2": marks}}
    second = begin(1, 4, tells(r0=first.data), now=100.0)
    assert second is not None
    assert second.marks == Watermarks(9.0, 8.0)
    assert second.data == {"shards": 4, "split": {"3": marks}}


def test_the_number_cannot_be_lowered() -> None:
    """Said with both numbers."""
    data = {"shards": 4, "claimed": 9.0, "done": 8.0}
    with pytest.raises(ConfigurationError, match=r"neli_shards = 2.*spread over 4.*set neli_shards = 4"):
        begin(0, 2, tells(r0=data), now=100.0)


@pytest.mark.parametrize("value", [True, "2", None, 1.5])
def test_a_number_that_is_none_counts_as_nothing(value: Any) -> None:
    """The log may hold anything."""
    assert begin(1, 2, tells(r0={"shards": value, "claimed": 9.0, "done": 8.0}), now=100.0) is None


# -- beats with several shards --


def check(world: World, until: float, *, first: float = 1.0) -> None:
    """Each slot of each entry left, once."""
    assert not world.doubled()
    wanted = [first + n for n in range(int(until - first) + 1)]
    assert {name: world.slots(name) for name in MANY} == dict.fromkeys(MANY, wanted)


def lead_all(world: World, shards: int) -> None:
    """Roles without a leader are led, by a beat each."""
    for beat in [world.beat(shards=shards) for _ in range(2)]:
        for role in beat.roles:
            if world.election.role(role).holder is None:
                beat.member.lead(role)


def test_one_beat_may_lead_all_shards() -> None:
    """It sends everything, once."""
    world = World(MANY, **ALL)
    beat = world.beat(shards=4)
    for role in beat.roles:
        beat.member.lead(role)
    world.ticks(until=5.5)
    check(world, 5)


def test_several_beats_share_the_entries() -> None:
    """Each sends its own, and together they send all."""
    world = World(MANY, **ALL)
    beats = [world.beat(shards=2) for _ in range(2)]
    terms = [beat.member.lead(role) for beat, role in zip(beats, beats[0].roles, strict=True)]
    world.ticks(until=5.5)
    check(world, 5)
    for shard, term in enumerate(terms):
        assert {each.entry for each in world.sent if each.term == term} == {
            name for name in MANY if owner(name, 2) == shard
        }


def test_a_fail_over_of_one_shard_stops_no_other() -> None:
    """The successor goes on where it was; the misfire policy is its own."""
    world = World(MANY, neli_misfire="fire_all")
    beats = [world.beat(shards=2) for _ in range(2)]
    for beat, role in zip(beats, beats[0].roles, strict=True):
        beat.member.lead(role)
    world.ticks(until=5.5)
    beats[1].crash()
    world.ticks(until=8.5)
    assert all((len(world.slots(name)) == 8) == (owner(name, 2) == 0) for name in MANY)
    beats[0].member.lead("leader-1")
    world.ticks(until=10.5)
    assert {name: sorted(set(world.slots(name))) for name in MANY} == {
        key: [float(n) for n in range(1, 11)] for key in MANY
    }


@pytest.mark.parametrize("end", ["hand over", "crash"])
@pytest.mark.parametrize("steps", [(1, 2, 4), (1, 4), (2, 3, 4), (1, 3)])
def test_the_number_is_raised_while_others_lead_with_the_lower_one(steps: tuple[int, ...], end: str) -> None:
    """No slot is lost, none doubled; the new shards wait for those that they are split from."""
    world = World(MANY, neli_misfire="fire_all", neli_in_doubt="skip" if end == "hand over" else "send")
    lead_all(world, steps[0])
    now = 5.3
    world.ticks(until=now)
    for shards in steps[1:]:
        old = list(world.beats)
        new = world.beat(shards=shards)
        for role in new.roles:
            if world.election.role(role).holder is None:
                new.member.lead(role)
        now += 3
        world.ticks(until=now)  # side by side
        for role in reversed(new.roles):
            holder = world.election.role(role).holder
            beat = next((each for each in old if each.member is holder), None)
            if beat is None:
                continue
            if end == "hand over":
                beat.hand_over(role)
            else:
                beat.member.vanish(role)
            new.member.lead(role)
            now += 1.4
            world.ticks(until=now)
        for beat in old:
            beat.crash()
        now += 2
        world.ticks(until=now)
    wanted = [float(n) for n in range(1, int(now) + 1)]
    assert {name: sorted(set(world.slots(name))) for name in MANY} == dict.fromkeys(MANY, wanted)
    if end == "hand over":
        assert not world.doubled()
    assert {each.term for each in world.sent if each.at > now - 1} == {
        world.election.role(role).term for role in world.beats[-1].roles
    }


def test_a_beat_with_a_lower_number_resigns(caplog: pytest.LogCaptureFixture) -> None:
    """It would send entries of other shards. Another one may be set right."""
    world = World(MANY, **ALL)
    lead_all(world, 2)
    world.ticks(until=3.5)
    for beat in world.beats:
        beat.crash()
    low = world.beat(shards=1)
    low.member.lead()
    sent = len(world.sent)
    low.turn()
    assert low.member.resigned == ["leader"]
    assert len(world.sent) == sent
    assert "set neli_shards = 2" in caplog.text


def test_a_new_shard_begins_as_soon_as_its_parent_does() -> None:
    """The parent says so in a record that leaves at once, however long nothing of it is due."""
    world = World({})
    beat = world.beat(shards=2)
    for role in beat.roles:
        beat.member.lead(role)
    world.ticks(until=0.3)
    assert all(map(beat.serves, beat.roles))


def test_runtime_entries_are_their_shards_too() -> None:
    """Of a beat that leads all: each is in one scheduler."""
    world = World({}, **ALL)
    beats = [world.beat(shards=2) for _ in range(2)]
    for beat, role in zip(beats, beats[0].roles, strict=True):
        beat.member.lead(role)
    world.ticks(until=1)
    for n in range(8):
        world.put(f"r{n}", "PT1S")
    world.ticks(until=4.5)
    assert {f"r{n}": world.slots(f"r{n}") for n in range(8)} == {f"r{n}": [2, 3, 4] for n in range(8)}


def test_entries_that_are_added_go_to_their_shard() -> None:
    """Added to each scheduler, kept by one."""
    world = World({})
    beat = world.beat(
        shards=3, added=[{"name": f"a{n}", "task": "t", "schedule": 1.0, "last_run_at": NOON} for n in range(9)]
    )
    for role in beat.roles:
        beat.member.lead(role)
    world.ticks(until=2.5)
    assert [world.slots(f"a{n}") for n in range(9)] == [[1, 2]] * 9
    assert Counter(name for each in beat.schedulers for name in each.schedule) == dict.fromkeys(
        (f"a{n}" for n in range(9)), 1
    )
