"""The schedule topic loses records while beats run: what runs, what `list` shows and what can be removed stay one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from celery_neli.beat.replicated import inventory
from celery_neli.exceptions import NeliError
from celery_neli.periodic.view import entry_names
from celery_neli.schedule_topic.codec import ENTRY, STATE
from tests.unit.beats import World

if TYPE_CHECKING:
    from tests.unit.beats import Process


def lose(world: World, *kept: str) -> None:
    """All records but those of these entries are gone, and every beat finds out."""
    world.log[:] = [record for record in world.log if record[1] in kept]
    for beat in world.beats:
        beat.topic.forget()


def shown(world: World) -> set[str]:
    """The names in `celery neli schedule list`."""
    return entry_names(world.edit())


def running(beat: Process) -> set[str]:
    """The entries that the beat has, paused or not."""
    return beat.names()


def two_beats() -> tuple[World, Process, Process]:
    """A leader and a standby that know a runtime entry, one that is paused, and a pause of a static entry."""
    world = World({"e": 10.0, "p": 10.0})
    leader = world.leader()
    standby = world.beat()
    world.ticks(until=1)
    world.put("r", "PT10S")
    world.put("q", "PT10S")
    world.edit().pause("q")
    world.edit().pause("p")
    world.ticks(until=15)
    assert world.slots("r") == [11]
    return world, leader, standby


def test_the_leader_writes_back_what_the_topic_has_lost(caplog: pytest.LogCaptureFixture) -> None:
    """Entries with their history, pauses and states; each beat says loudly how many were lost, and what to do."""
    world, leader, standby = two_beats()
    before = {key: value for key, value in leader.topic.values().items() if key[0] == ENTRY}
    lose(world)
    world.ticks(until=16)
    assert {key: value for key, value in leader.topic.values().items() if key[0] == ENTRY} == before
    assert {name for kind, name in leader.topic.values() if kind == STATE} == {"e", "p", "q", "r"}
    assert shown(world) == running(leader) == running(standby) == {"e", "p", "q", "r"}
    assert caplog.text.count("schedule lost entries=3") == 2
    assert "celery neli schedule list" in caplog.text
    world.ticks(until=35)
    assert world.slots("r") == [11, 21, 31]
    assert (world.slots("q"), world.slots("p")) == ([], [])


def test_what_was_written_back_can_be_removed() -> None:
    """By every beat, and it stays so after a handover."""
    world, leader, standby = two_beats()
    lose(world)
    world.ticks(until=16)
    world.edit().remove("r")
    world.ticks(until=17)
    leader.hand_over()
    standby.member.lead()
    world.ticks(until=45)
    assert world.slots("r") == [11]
    assert shown(world) == running(standby) == {"e", "p", "q"}


@pytest.mark.parametrize("end", ["hand over", "crash"])
def test_a_successor_writes_back_what_the_leader_could_not(end: str) -> None:
    """The topic is lost, and with it the leader."""
    world, leader, standby = two_beats()
    lose(world)
    if end == "crash":
        leader.crash()
    else:
        leader.hand_over()
    world.ticks(until=16)
    assert shown(world) == {"e", "p"}
    standby.member.lead()
    world.ticks(until=35)
    assert shown(world) == running(standby) == {"e", "p", "q", "r"}
    assert {name for kind, name in standby.topic.values() if kind == STATE} == {"e", "p", "q", "r"}
    assert set(world.slots("r")) >= {11, 21, 31}


def test_a_topic_that_lost_some_records_keeps_the_others() -> None:
    """What is there still is as it is there, not as the leader knew it."""
    world, leader, _ = two_beats()
    world.put("s", "PT30S")
    world.ticks(until=16)
    lose(world, "r", "p")
    world.put("r", "PT5S")
    world.ticks(until=17)
    assert shown(world) == running(leader) == {"e", "p", "q", "r", "s"}
    world.ticks(until=35)
    assert world.slots("r")[1:] == [21, 26, 31]


def test_an_entry_that_was_put_again_meanwhile_is_not_written_over() -> None:
    """The later word counts, though the topic had lost the earlier one."""
    world, leader, _ = two_beats()
    lose(world)
    world.put("r", "PT7S")
    world.ticks(until=16)
    definition = world.edit().runtime("r")
    assert definition is not None
    assert definition.schedule == "PT7S"
    assert leader.entry("r").schedule.seconds == 7


@pytest.mark.parametrize("who", ["leader", "standby"])
def test_removals_that_a_beat_did_not_hear_of_are_made_up_for(who: str, caplog: pytest.LogCaptureFixture) -> None:
    """A beat was cut off for longer than Kafka keeps tombstones: the topic is right, and nothing is written back."""
    world, leader, standby = two_beats()
    beat = leader if who == "leader" else standby
    world.log[:] = [record for record in world.log if record[1] not in ("r", "p") or record[0] != ENTRY]
    beat.topic.torn = False
    beat.topic.forget()
    world.ticks(until=16)
    assert running(beat) == {"e", "p", "q"}
    assert shown(world) == {"e", "p", "q"}
    assert "p" in beat.scheduler.schedule, "its pause was ended"
    assert "schedule removed entries=2" in caplog.text
    with pytest.raises(NeliError):
        world.edit().remove("r")


def test_a_topic_that_is_read_again_whole_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """A position was lost, and no record with it."""
    world, leader, standby = two_beats()
    before = dict(leader.topic.values())
    for beat in (leader, standby):
        beat.topic.forget()
    world.ticks(until=16)
    assert set(leader.topic.values()) >= set(before)
    assert running(leader) == running(standby) == {"e", "p", "q", "r"}
    assert "schedule lost" not in caplog.text
    world.ticks(until=25)
    assert world.slots("r") == [11, 21]


def test_a_lost_entry_that_ran_for_its_only_time_stays_gone() -> None:
    """It was removed on purpose."""
    world, leader, _ = two_beats()
    world.put("once", world.time().replace(second=20))
    world.ticks(until=25)
    assert world.slots("once") == [20]
    lose(world)
    world.ticks(until=26)
    assert "once" not in shown(world) | running(leader)


@pytest.mark.parametrize("away", [False, True])
def test_a_standby_that_knows_more_than_a_new_leader_asks_for_the_role(
    monkeypatch: pytest.MonkeyPatch, *, away: bool
) -> None:
    """The leader was killed when the topic was lost, and leads again as a new process, which knows nothing. A standby
    that did not hear of the topic itself for a while may know what was removed since, and does not ask.
    """
    world, leader, standby = two_beats()
    leader.crash()
    lose(world)
    standby.topic.away = away
    world.leader()
    world.ticks(until=30)
    assert standby.member.asked == []
    monkeypatch.setattr(inventory, "PATIENCE", -1.0)
    world.ticks(until=60)
    assert bool(standby.member.asked) is not away
    world.beats[-1].hand_over()
    standby.member.lead()
    world.ticks(until=75)
    assert shown(world) == running(standby) == running(world.beats[-1]) == {"e", "p", "q", "r"}
    assert world.slots("r")[-1] == 71
    asked = len(standby.member.asked)
    world.ticks(until=100)
    assert len(standby.member.asked) == asked
