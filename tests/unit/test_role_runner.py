"""The runner of one role of a beat and its host; several of them behind Celery's interface."""

from __future__ import annotations

import logging
import time
from typing import Any, ClassVar

import pytest

from celery_neli.beat import role_runner
from celery_neli.beat.replicated.member_notes import fingerprint
from celery_neli.beat.replicated.standalone import ReplicatedScheduler
from celery_neli.beat.scheduler import Scheduler
from celery_neli.exceptions import ConfigurationError
from celery_neli.schedule_topic.codec import MEMBER, decode_note
from tests.unit.beats import NOON, Process, World
from tests.unit.schedulers import eventually


class Failing(ReplicatedScheduler):
    """Raises what the test says, when it is built or when it ticks."""

    building: BaseException | None = None
    ticking: BaseException | None = None
    builds: ClassVar[list[str]] = []

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.builds.append("again")
        if self.building is not None:
            raise self.building
        super().__init__(*args, **kwargs)

    def tick(self, *args: Any, **kwargs: Any) -> float:
        if self.ticking is not None:
            raise self.ticking
        return super().tick(*args, **kwargs)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> type[Failing]:
    """A class of the test's own; pauses after failures are short."""
    monkeypatch.setattr(role_runner, "FIRST_PAUSE", 0.01)
    return type("Mine", (Failing,), {"builds": []})


@pytest.fixture
def world() -> World:
    return World({"e": 10.0})


def turn_until(beat: Process, condition: Any, *, what: str) -> None:
    eventually(lambda: (beat.turn_role(), condition())[1], what=what)


# -- failures --


def test_a_led_scheduler_that_raises_hands_over(
    world: World, failing: type[Failing], caplog: pytest.LogCaptureFixture
) -> None:
    """Its term is over with nothing lost; it is kept, not built anew, and serves the next one."""
    beat = world.leader(scheduler=failing)
    world.ticks(until=15)
    failing.ticking = RuntimeError("no calendar")
    beat.turn()
    assert beat.fails()
    assert not beat.serves()
    assert world.marks()[1] <= world.now
    turn_until(beat, lambda: beat.member.resigned, what="the resignation")
    failing.ticking = None
    beat.turn()
    assert not beat.serves(), "a term that ended is not taken up again"
    beat.member.release()
    beat.member.lead()
    world.ticks(until=25)
    assert world.slots() == [10, 20]
    assert beat.in_doubt == 0
    assert len(failing.builds) == 1
    assert caplog.text.count("the scheduler failed (RuntimeError: no calendar)") == 1


def test_pauses_after_failures_grow(world: World, failing: type[Failing]) -> None:
    """What fails is not tried in a loop."""
    failing.building = RuntimeError("no calendar")
    beat = world.leader(scheduler=failing)
    pauses: list[float] = []
    for _ in range(4):
        pause = beat.turn_role()
        assert pause is not None
        pauses.append(pause)
        time.sleep(pause)
    assert pauses == [0.01, 0.02, 0.04, 0.08]


def test_a_scheduler_that_cannot_be_built_is_tried_again_while_it_leads(
    world: World, failing: type[Failing], caplog: pytest.LogCaptureFixture
) -> None:
    """And makes no progress meanwhile; said when it fails, and when it works again."""
    caplog.set_level(logging.INFO)
    failing.building = OSError("no zone files")
    beat = world.leader(scheduler=failing)
    beat.turn_role()
    assert beat.fails()
    assert beat.member.resigned == []
    failing.building = None
    turn_until(beat, lambda: not beat.fails(), what="another attempt")
    world.ticks(until=15)
    assert world.slots() == [10]
    assert caplog.text.count("cannot be built (OSError: no zone files)") == 1
    assert "the scheduler works again" in caplog.text


def test_a_schedule_that_cannot_be_is_handed_to_another(
    world: World, failing: type[Failing], caplog: pytest.LogCaptureFixture
) -> None:
    """Time mends no configuration: the role is given away at once, with the reason."""
    failing.building = ConfigurationError("beat entry 'e': neli_misfire = 'never'")
    beat = world.leader(scheduler=failing)
    beat.turn_role()
    assert beat.member.resigned == ["leader"]
    assert "neli_misfire = 'never'" in caplog.text


def test_a_topic_that_cannot_be_read_is_no_progress(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Said once; the handover need not wait for anybody."""
    beat = world.leader()
    beat.topic.up = False
    for _ in range(3):
        assert beat.turn_role() == 0.0
        assert beat.fails()
        assert not beat.serves()
        assert beat.is_down("leader")
    assert caplog.text.count("the schedule topic cannot be read to its end") == 1
    beat.topic.up = True
    beat.turn_role()
    assert not beat.fails()
    assert beat.serves()
    assert not beat.is_down("leader")


def test_a_revocation_waits_until_the_scheduler_is_down(world: World) -> None:
    """And for nothing while another role's shard waits to begin."""
    beat = world.beat(shards=2)
    beat.member.lead("leader-1")
    assert beat.turn_role(1) == role_runner.LATER
    assert beat.is_down("leader-1")
    beat.member.lead("leader")
    beat.turn()
    assert not beat.is_down("leader")
    assert not beat.is_down("leader-1")
    beat.hand_over("leader")
    assert beat.is_down("leader")
    assert not beat.is_down("leader-1")


# -- what beats tell each other --


def test_a_beat_with_a_newer_version_asks_for_the_role() -> None:
    """Once in a while, and only of one that leads with an older version, or none."""
    world = World({"e": 10.0})
    world.leader(neli_schedule_version=3)
    world.ticks(until=11)
    older = world.beat(neli_schedule_version=2)
    same = world.beat(neli_schedule_version=3)
    newer = world.beat(neli_schedule_version=4)
    without = world.beat()
    world.ticks(until=21)
    assert [each.member.asked for each in (older, same, without)] == [[], [], []]
    assert newer.member.asked == ["leader"]


def test_a_leader_without_a_version_is_older_than_all() -> None:
    """Its records tell none."""
    world = World({"e": 10.0})
    world.leader()
    newer = world.beat(neli_schedule_version=0)
    world.ticks(until=11)
    assert newer.member.asked == ["leader"]


def test_a_member_tells_which_schedule_it_has() -> None:
    """A hash of its own, which is the same for the same schedule; beside the ticks. Gone when it stops."""
    world = World({"e": 10.0, "f": 20.0})
    beats = [world.beat(), world.beat({"f": 20.0, "e": 10.0}), world.beat({"e": 10.0, "f": 21.0})]
    for beat in beats:
        beat.turn()

    def notes() -> dict[str, str]:
        for beat in beats:
            beat.note()
        found = beats[0].topic.values()
        return {name: decode_note(value).schedule for (kind, name), value in found.items() if kind == MEMBER}

    found = eventually(lambda: len(notes()) == 3 and notes(), what="notes")
    assert found["beat-0"] == found["beat-1"] != found["beat-2"]
    beats[0].stop()
    assert set(notes()) == {"beat-1", "beat-2"}


def test_what_is_made_at_runtime_is_no_part_of_a_member_s_schedule() -> None:
    """Nor is a pause, or how often an entry ran."""
    world = World({"e": 10.0, "f": 20.0})
    beat = world.leader()
    beat.turn()
    before = fingerprint(beat.static())
    world.put("r", "PT5S")
    world.edit().pause("f")
    world.ticks(until=25)
    assert fingerprint(beat.static()) == before


# -- several roles behind Celery's interface --


class Outer(Scheduler):
    """`celery_neli.Scheduler`, in a world."""


def outer(world: World, process: Process) -> Any:
    """The outer scheduler over the process's election and topic; its ticks wait for no more than a moment."""
    cls: Any = type("Outer", (Outer,), {"topic_factory": staticmethod(lambda *_: process.topic)})
    process.app.conf.neli_scheduler = "celery_neli.ReplicatedScheduler"
    return cls(app=process.app, leadership=process.member, max_interval=0.001)


def test_a_beat_with_several_roles_shows_one_schedule() -> None:
    """All entries of the shards that it leads; what is added to it goes to their shard."""
    names = [f"e{n}" for n in range(8)]
    world = World(dict.fromkeys(names, 1.0))
    scheduler = outer(world, process := world.beat(shards=3))
    scheduler.add(name="early", task="t", schedule=1.0, last_run_at=NOON)
    assert set(scheduler.schedule) == {*names, "early"}
    for role in process.roles:
        process.member.lead(role)
    for _ in range(3):
        scheduler.tick()
    scheduler.add(name="late", task="t", schedule=1.0, last_run_at=NOON)
    assert set(scheduler.schedule) == {*names, "early", "late"}
    scheduler.close()


def test_a_hung_shard_is_no_progress_for_the_beat(monkeypatch: pytest.MonkeyPatch) -> None:
    """A beat whose topic cannot be read does not look alive, however often it turns."""
    world = World({"e": 10.0})
    scheduler = outer(world, process := world.beat())
    scheduler.tick()
    turns = process.member.turns
    assert turns == 1
    process.topic.up = False
    process.member.lead()
    for _ in range(3):
        scheduler.tick()
    assert process.member.turns == turns
    process.topic.up = True
    scheduler.tick()
    assert process.member.turns == turns + 1
    scheduler.close()
