"""Entries that ran for the only time, or were removed, and what is written at the same moment."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from celery_neli.periodic.text import text_of
from celery_neli.schedule.slots import once
from celery_neli.schedule_topic.codec import ENTRY, STATE, Definition, decode_definition, encode_definition, succeeding
from celery_neli.schedule_topic.versions import head_of
from tests.unit.beats import NOON, START, Crash, World
from tests.unit.fakes import FakeTopic

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_neli.schedule_topic.codec import Kind


def leading() -> World:
    world = World({"e": 3600.0})
    world.leader()
    world.beat()
    world.put("r", once(NOON + timedelta(seconds=20)))
    world.ticks(until=2)
    return world


def current(world: World) -> Definition:
    return decode_definition(FakeTopic(world.log).values()[ENTRY, "r"])


def change(world: World, **fields: Any) -> None:
    """Another process changes what it has read."""
    old = current(world)
    world.log.append((ENTRY, "r", encode_definition(succeeding(replace(old, **fields), old)), None))


def before_write(world: World, kind: str, act: Callable[[], object], *, beat: int = 0) -> list[float]:
    """Do something just before a beat writes its next record of this kind about the entry. Return when that was."""
    topic, done = world.beats[beat].topic, list[float]()
    write = topic.write

    def writing(of: Kind, name: str, value: bytes | None) -> None:
        if (of, name, value is None) == (kind, "r", kind == STATE) and not done:
            done.append(world.now)
            act()
        write(of, name, value)

    topic.write = writing  # type: ignore[method-assign]
    return done


def last(world: World) -> bytes | None:
    """What compaction leaves of the entry's definition."""
    found: list[bytes | None] = [value for kind, name, value, _ in world.log if (kind, name) == (ENTRY, "r")]
    return found[-1]


def test_a_change_that_comes_just_before_the_removal_of_an_entry_that_ran_does_not_run_it_again() -> None:
    """The removal is void, and is written again on top of the change; no two repairs chase each other."""
    world = leading()
    done = before_write(world, ENTRY, lambda: change(world, args=[1]))
    world.ticks(until=30)
    assert done == [20.25]
    assert world.slots("r") == [20]
    assert all("r" not in beat.names() for beat in world.beats)
    found = [value for kind, name, value, _ in world.log if (kind, name) == (ENTRY, "r")]
    assert len(found) == 4
    world.ticks(until=200)
    assert world.slots("r") == [20]
    assert last(world) is None


def test_an_entry_that_gets_another_time_just_before_its_removal_runs_at_that_time_too() -> None:
    """And what compaction leaves is the change, not the removal."""
    world = leading()
    when = once(NOON + timedelta(seconds=40))
    before_write(world, ENTRY, lambda: change(world, schedule=text_of(when), since=world.clock()))
    world.ticks(until=30)
    assert world.slots("r") == [20]
    left = last(world)
    assert left is not None
    assert not head_of(left).removed
    world.ticks(until=200)
    assert world.slots("r") == [20, 40]
    assert last(world) is None


@pytest.mark.parametrize("after", range(1, 8))
def test_an_entry_that_ran_once_is_owed_to_no_leader_whatever_was_written_before_the_crash(after: int) -> None:
    """The beat is killed after so many more of its records, in whatever step of the removal; the next one starts late,
    and has read nothing before. Before the first, its slot is in doubt: `neli_in_doubt` says what happens.
    """
    world = leading()
    world.beats[1].crash()
    world.ticks(until=19)
    topic, written = world.beats[0].topic, 0
    write = topic.write

    def writing(kind: Kind, name: str, value: bytes | None) -> None:
        nonlocal written
        if name == "r":
            if written == after:
                raise Crash
            written += 1
        write(kind, name, value)

    topic.write = writing  # type: ignore[method-assign]
    world.ticks(until=180)
    world.beats[0].crash()
    world.beat().member.lead()
    world.ticks(until=400)
    assert world.slots("r") == [20]
    assert last(world) is None
    assert (STATE, "r") not in FakeTopic(world.log).values()


def test_what_is_put_while_the_state_of_a_removed_entry_is_deleted_stays_and_runs() -> None:
    world = leading()

    def put() -> None:
        gone = decode_definition(last(world) or b"")
        new = replace(gone, schedule="PT10S", removed=False, since=START + 80)
        world.log.append((ENTRY, "r", encode_definition(succeeding(new, gone)), None))

    done = before_write(world, STATE, put)
    world.ticks(until=109)
    assert done == [80.75]
    assert world.slots("r") == [20, 90, 100]
    world.beats[0].crash()
    world.beat().member.lead()
    world.ticks(until=200)
    assert world.slots("r") == [20, *range(90, 201, 10)]


def test_the_definition_of_a_removed_entry_is_there_until_its_state_is_gone() -> None:
    """However long Kafka takes to acknowledge that: without a state, an entry is owed what it has not run."""
    world = leading()
    topic = world.beats[0].topic
    topic.saved = lambda kind, name: kind != STATE  # type: ignore[method-assign]
    world.ticks(until=130)
    left = last(world)
    assert left is not None
    assert head_of(left).removed
    del topic.saved
    world.ticks(until=300)
    assert last(world) is None


def test_a_state_that_a_deposed_leader_deletes_late_is_written_again() -> None:
    """It deletes that of an entry that was removed, which somebody has put again by now."""
    world = leading()
    change(world, schedule="PT10S", since=world.clock())
    world.ticks(until=33)
    assert world.slots("r") == [12, 22, 32]
    world.log.append((STATE, "r", None, None))
    world.ticks(until=35)
    world.beats[0].crash()
    world.beats[1].crash()
    world.beat().member.lead()
    world.ticks(until=60)
    assert world.slots("r") == [12, 22, 32, 42, 52]
    assert world.state("r").runs == 5
