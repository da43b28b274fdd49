"""Definitions that several processes write at once, as beats read them: void ones, and pauses that end."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from celery_neli.schedule_topic.codec import ENTRY, Definition, decode_definition, encode_definition, succeeding
from celery_neli.schedule_topic.pauses import Standing, effective
from celery_neli.schedule_topic.versions import head_of
from tests.unit.beats import START, World

if TYPE_CHECKING:
    from tests.unit.beats import Process

MADE = Definition(task="t", schedule="PT10S", since=START)


def leading() -> World:
    world = World({"e": 3600.0})
    world.leader()
    world.beat()
    world.ticks(until=2)
    return world


def write(world: World, new: Definition, current: Definition | None = None) -> Definition:
    """Write what replaces `current`, whatever is there."""
    made = succeeding(new, current)
    world.log.append((ENTRY, "r", encode_definition(made), None))
    return made


def definitions(world: World) -> list[Any]:
    return [value for kind, name, value, _ in world.log if (kind, name) == (ENTRY, "r")]


def task_of(beat: Process) -> str:
    return str(beat.entry("r").task)


@pytest.mark.parametrize("apart", [0, 1], ids=["read at once", "read one by one"])
def test_a_void_definition_changes_nothing_and_the_leader_writes_the_other_one_again(apart: int) -> None:
    """Once; and the standby writes nothing."""
    world = leading()
    first = write(world, MADE)
    world.ticks(until=3)
    counts = write(world, replace(MADE, task="u"), first)
    world.ticks(until=3 + apart)
    void = write(world, replace(MADE, task="v"), first)
    world.ticks(until=20)
    assert [task_of(beat) for beat in world.beats] == ["u", "u"]
    found = definitions(world)
    assert len(found) == 4
    last = decode_definition(found[-1])
    assert (last.version, last.base, last.task) == (counts.version, counts.version, "u")
    assert last.revision == void.revision + 1


def test_the_next_leader_repairs_what_the_last_one_did_not() -> None:
    world = leading()
    world.beats[0].crash()
    first = write(world, MADE)
    write(world, replace(MADE, task="u"), first)
    write(world, replace(MADE, task="v"), first)
    world.beats[1].member.lead()
    world.ticks(until=20)
    assert task_of(world.beats[1]) == "u"
    assert decode_definition(definitions(world)[-1]).task == "u"
    assert len(definitions(world)) == 4


def test_there_is_one_repair_for_each_void_record_at_most() -> None:
    """However long two processes go on: the topic does not fill by itself."""
    world = leading()
    first = write(world, MADE)
    world.ticks(until=3)
    write(world, replace(MADE, task="u"), first)
    for number in range(50):
        write(world, replace(MADE, task=f"v{number}"), first)
        if number % 3 == 0:
            world.ticks(until=4 + number / 10)
    world.ticks(until=60)
    assert len(definitions(world)) <= 2 + 50 + 50
    settled = len(definitions(world))
    world.ticks(until=120)
    assert len(definitions(world)) == settled
    assert task_of(world.beats[0]) == "u"


def test_what_was_put_in_the_place_of_a_removed_entry_survives_the_deletion_of_that() -> None:
    """The leader deletes what stood for it at that moment."""
    world = leading()
    gone = write(world, replace(MADE, removed=True), write(world, MADE))
    world.ticks(until=50)
    assert all("r" not in beat.names() for beat in world.beats)
    assert head_of(definitions(world)[-1]).removed
    write(world, replace(MADE, task="u"), gone)
    world.log.append((ENTRY, "r", None, None))  # by a leader that had not read it yet
    world.ticks(until=200)
    assert [task_of(beat) for beat in world.beats] == ["u", "u"]
    assert decode_definition(definitions(world)[-1]).task == "u"


@pytest.mark.parametrize("fails", [None, 30, 45], ids=["one leader", "a fail-over in the pause", "one after it"])
def test_a_pause_ends_by_itself_whoever_leads_then(fails: int | None) -> None:
    """No slot of it runs, the first one after it does; nothing is written for that."""
    world = leading()
    first = write(world, MADE)
    world.ticks(until=15)
    write(world, replace(MADE, paused=True, until=START + 42), first)
    if fails is not None:
        world.ticks(until=fails)
        world.beats[0].crash()
        world.beats[1].member.lead()
    world.ticks(until=75)
    assert world.slots("r") == [10, 52, 62, 72]
    assert len(definitions(world)) == 2


@pytest.mark.parametrize(
    ("definition", "rules", "expected"),
    [
        (None, (), Standing(False, 0.0, float("inf"))),
        (MADE, (), Standing(False, START, float("inf"))),
        (replace(MADE, paused=True), (), Standing(True, START, float("inf"))),
        (replace(MADE, paused=True, until=START + 9), (), Standing(True, START, START + 9)),
        (replace(MADE, paused=True, until=START + 5), (), Standing(False, START + 5, float("inf"))),
        (replace(MADE, until=START + 9), (), Standing(False, START, float("inf"))),
        (MADE, (START + 9, None), Standing(True, START, float("inf"))),
        (MADE, (START + 3, START + 7), Standing(True, START + 3, START + 7)),
        (None, (START + 4,), Standing(False, START + 4, float("inf"))),
    ],
)
def test_what_an_entry_is_follows_from_its_records_and_the_clock(
    definition: Definition | None, rules: tuple[float | None, ...], expected: Standing
) -> None:
    """Five seconds after it was defined."""

    class Rule:
        def __init__(self, until: float | None) -> None:
            self.until = until

    assert effective(definition, [Rule(until) for until in rules], START + 5) == expected
