"""Pauses of many entries, as beats apply them from their records and the clock."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from celery.schedules import crontab

from celery_neli.beat.replicated import bulk_pauses
from celery_neli.exceptions import ConfigurationError, RecordError
from celery_neli.schedule.shaped import shift_for
from celery_neli.schedule_topic.codec import PAUSE
from celery_neli.schedule_topic.rules import Pause, decode_pause, encode_pause
from tests.unit.beats import NOON, World

RULE = Pause(id="1", of="all", at=0.0, by="ann")


def noon(seconds: float) -> float:
    return NOON.timestamp() + seconds


def tell(world: World, pause: Pause) -> Pause:
    """As if another process had made, changed or ended the pause."""
    world.log.append((PAUSE, pause.id, encode_pause(pause), None))
    return pause


def leading(**conf: Any) -> World:
    world = World({"e": 10.0, "other": 10.0}, **conf)
    world.leader()
    world.ticks(until=5)
    return world


def test_no_slot_of_a_pause_runs_and_the_first_after_its_end_does() -> None:
    """It ends by itself: nothing is written."""
    world = leading()
    tell(world, replace(RULE, until=noon(30)))
    world.ticks(until=56)
    assert world.slots() == world.slots("other") == [40, 50]


def test_a_pause_of_a_prefix_leaves_others_alone_and_holds_what_is_put_later() -> None:
    world = leading()
    tell(world, replace(RULE, of="prefix", value="e", until=noon(40)))
    world.put("e2", "PT10S")
    world.ticks(until=56)
    assert world.slots() == [50]
    assert world.slots("other") == [10, 20, 30, 40, 50]
    assert world.slots("e2") == [50]


def test_a_pause_of_a_tag_finds_it_among_the_options() -> None:
    world = World({"e": {"task": "t", "schedule": 10.0, "options": {"neli_tags": ["night"]}}, "f": 10.0})
    world.leader()
    world.ticks(until=5)
    tell(world, replace(RULE, of="tag", value="night"))
    world.ticks(until=25)
    assert (world.slots(), world.slots("f")) == ([], [10, 20])


def test_a_pause_that_is_ended_by_hand_ends_at_that_time() -> None:
    """From then on intervals count."""
    world = leading()
    pause = tell(world, RULE)
    world.ticks(until=25)
    tell(world, replace(pause, until=noon(25), ended_by="bob"))
    world.ticks(until=46)
    assert world.slots() == [35, 45]


def test_an_entry_that_is_paused_by_itself_stays_paused_after_a_pause_of_many() -> None:
    world = leading()
    world.edit().pause("other")
    tell(world, replace(RULE, until=noon(20)))
    world.ticks(until=35)
    assert (world.slots(), world.slots("other")) == ([30], [])


@pytest.mark.parametrize("crash", [15, 21])
@pytest.mark.parametrize("stood_by", [True, False])
def test_a_successor_agrees_on_a_pause(crash: float, stood_by: bool) -> None:
    """Whether it takes over while the pause holds or after its end, which its predecessor may not have seen."""
    world = leading()
    standby = world.beat() if stood_by else None
    tell(world, replace(RULE, until=noon(20)))
    world.ticks(until=crash)
    world.beats[0].crash()
    if standby is None:
        world.leader()
    else:
        standby.member.lead()
    world.ticks(until=41)
    assert world.slots() == world.slots("other") == [30, 40]


def test_a_slot_that_ran_after_a_pause_does_not_run_again_with_a_successor() -> None:
    world = leading()
    tell(world, replace(RULE, until=noon(20)))
    world.ticks(until=35)
    world.beats[0].crash()
    world.leader()
    world.ticks(until=41)
    assert world.slots() == [30, 40]


def test_a_slot_after_the_end_is_owed_though_the_watermark_has_passed_it() -> None:
    """The pause was ended a while ago, and the leader that reads of it dies before the slot is sent."""
    world = leading()
    pause = tell(world, RULE)
    world.ticks(until=27)
    world.beats[0].crash()
    tell(world, replace(pause, until=noon(15), ended_by="bob"))
    world.leader()
    world.ticks(until=36)
    assert world.slots() == [25, 35]


def test_an_entry_that_comes_due_before_the_pause_has_come_to_it_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred thousand entries take seconds, in small portions; each is asked once more before it is sent."""
    monkeypatch.setattr(bulk_pauses, "STEP", 1)
    monkeypatch.setattr(bulk_pauses, "PORTION", -1.0)
    world = World({f"e{number}": 10.0 for number in range(30)})
    world.leader()
    world.ticks(until=9.9)
    world.now = 10.0
    tell(world, RULE)
    world.ticks(until=21)
    assert world.sent == []


def test_a_pause_that_ended_a_day_ago_is_deleted_by_the_leader() -> None:
    """And one that ended an hour ago is not."""
    world = leading()
    tell(world, replace(RULE, id="old", until=noon(-90_000)))
    tell(world, replace(RULE, id="young", until=noon(-3600)))
    world.ticks(until=12)
    written = [(name, value) for kind, name, value, writer in world.log if kind == PAUSE and writer]
    assert written == [("old", None)]
    assert world.slots() == [10]


def test_a_record_that_cannot_be_read_is_skipped_alone() -> None:
    world = leading()
    world.log.append((PAUSE, "bad", b'{"v":1,"of":"everything","at":0}', None))
    world.ticks(until=12)
    assert world.slots() == [10]


@pytest.mark.parametrize("field", [{"of": "some"}, {"until": 1e300}, {"of": "tag"}, {"note": "n" * 2000}])
def test_what_no_process_could_read_is_not_written(field: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        encode_pause(replace(RULE, **field))


def test_a_pause_is_read_as_it_was_written() -> None:
    pause = replace(RULE, of="prefix", value="tenant-42/", until=noon(5), note="why", ended_by="bob")
    assert decode_pause("1", encode_pause(pause)) == pause
    with pytest.raises(RecordError):
        decode_pause("1", b"{}")


def test_a_slot_of_a_pause_that_its_jitter_moves_behind_the_end_does_not_run() -> None:
    """As with a pause of the entry alone, and as a successor has it that reads the state."""
    options = {"neli_jitter": 9}
    world = World({"e": {"task": "t", "schedule": crontab(), "options": options}})
    shift = shift_for("e", 9).total_seconds()
    assert shift > 1
    world.leader()
    world.ticks(until=5)
    tell(world, replace(RULE, until=noon(60 + shift / 2)))
    world.ticks(until=130)
    assert [slot // 60 for slot in world.slots()] == [2]
