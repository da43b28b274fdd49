"""Slots that are due while the entry's last task is unfinished: they wait (`queue_one`), or cancel it."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
from celery.schedules import crontab

from celery_neli import hooks
from celery_neli.beat.replicated import overlaps
from celery_neli.schedule.policies import unfinished
from tests.unit.beats import START, Crash, World, seconds
from tests.unit.fakes import FakeTopic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.unit.beats import Process


class AskedAtOnce:
    """`WaitingSlots` that asks the result backend on the spot, by the clock of the test."""

    def __init__(self, app: Any, *, clock: Callable[[], float]) -> None:
        self._app, self._clock = app, clock
        self._last: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self._last)

    def last(self, name: str) -> Any:
        return self._last.get(name)

    def add(self, name: str, last: Any) -> None:
        self._last[name] = last

    def drop(self, name: str) -> None:
        self._last.pop(name, None)

    def ended(self) -> list[str]:
        now = self._clock()
        found = [
            name
            for name, each in self._last.items()
            if not unfinished(self._app, each.task_id, each.started, now, each.age, task=each.task)
        ]
        for name in found:
            del self._last[name]
        return found

    def clear(self) -> None:
        self._last.clear()

    close = clear


class Revokes:
    """Notes what is to be revoked, and whether that is allowed when it leaves."""

    made: list[Revokes]

    def __init__(self, app: Any) -> None:
        self.asked: list[tuple[str, str, Callable[[], bool]]] = []
        Revokes.made.append(self)

    def revoke(self, entry: str, task_id: str, *, allowed: Callable[[], bool]) -> None:
        self.asked.append((entry, task_id, allowed))

    def close(self) -> None:
        pass


class Scene:
    """A world whose entry `e` has an overlap policy, and what its tasks have come to."""

    def __init__(self, tmp_path: Path) -> None:
        self.directory = tmp_path
        self.told: list[hooks.SlotEvent] = []
        self.world = World()

    def of(self, policy: str, schedule: Any = 10.0, *, conf: Any = None, others: Any = None, **options: Any) -> World:
        given = {"neli_overlap": policy, "neli_overlap_age": 1000, **options}
        conf = {"result_backend": f"file://{self.directory}", **(conf or {})}
        entry = {"task": "t", "schedule": schedule, "options": given}
        self.world = World({"e": entry, **(others or {})}, **conf)
        return self.world

    def end(self, number: int = -1, status: str = "SUCCESS") -> None:
        """The task that was sent as that one ends."""
        sent = [each for each in self.world.sent if each.entry == "e"][number]
        self.world.beats[0].app.backend.store_result(sent.id, None, status)

    def skipped(self) -> list[tuple[float, str, int]]:
        """The slots that were left out: the last of each, by which policy, and how many."""
        return [
            (each.slot - START, each.policy, each.count)
            for each in self.told
            if each.outcome == hooks.SKIPPED and each.slot is not None
        ]

    def state(self) -> Any:
        return FakeTopic(self.world.log).states()["e"]


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setattr(overlaps, "WaitingSlots", AskedAtOnce)
    monkeypatch.setattr(overlaps, "Revoker", Revokes)
    Revokes.made = []
    made = Scene(tmp_path)
    hooks.slot.add(made.told.append)
    yield made
    hooks.slot.remove(made.told.append)
    for beat in made.world.beats:
        beat.stop()


# -- queue_one --


def test_of_slots_that_wait_the_newest_runs_once_when_the_last_task_has_ended(scene: Scene) -> None:
    """The older ones are told as left out, by this policy."""
    world = scene.of("queue_one")
    world.leader()
    world.ticks(until=41)
    assert world.slots() == [10]
    assert scene.skipped() == [(20, "overlap", 1), (30, "overlap", 1)]
    assert (scene.state().last - START, scene.state().open, scene.state().waits) == (30, True, True)
    scene.end()
    world.ticks(until=42)
    assert world.slots() == [10, 40]
    assert world.sent[-1].at < 41.5
    assert (scene.state().last - START, scene.state().open, scene.state().waits) == (40, False, False)
    world.ticks(until=61)
    assert world.slots() == [10, 40], "the second task is not finished, either"
    scene.end()
    world.ticks(until=62)
    assert world.slots() == [10, 40, 60]


def test_a_slot_whose_last_task_has_ended_does_not_wait(scene: Scene) -> None:
    world = scene.of("queue_one")
    world.leader()
    for until in (11, 21, 31):
        world.ticks(until=until)
        scene.end()
    assert world.slots() == [10, 20, 30]
    assert not scene.skipped()


@pytest.mark.parametrize("in_doubt", ["send", "skip"])
@pytest.mark.parametrize("how", ["crash", "hand_over"])
def test_a_slot_that_waits_survives_its_leader(scene: Scene, how: str, in_doubt: str) -> None:
    """Its successor knows that it was not sent, and sends it once: it is in no doubt, though it was claimed."""
    world = scene.of("queue_one", conf={"neli_in_doubt": in_doubt})
    first = world.leader()
    world.ticks(until=32)
    getattr(first, how)()
    second = world.leader()
    world.ticks(until=37)
    assert world.slots() == [10]
    scene.end()
    world.ticks(until=38)
    assert world.slots() == [10, 30]
    assert world.sent[-1].term != world.sent[0].term
    assert second.in_doubt == 0
    assert scene.skipped() == [(20, "overlap", 1)]


def test_a_task_that_ends_while_nobody_leads_lets_the_slot_go_under_the_successor(scene: Scene) -> None:
    world = scene.of("queue_one", conf={"neli_in_doubt": "skip"})
    first = world.leader()
    world.ticks(until=22)
    first.crash()
    scene.end()
    world.leader()
    world.ticks(until=28)
    assert world.slots() == [10, 20]


@pytest.mark.parametrize(("in_doubt", "slots"), [("send", [10, 20, 20]), ("skip", [10, 20])])
def test_a_slot_that_waited_and_was_sent_by_a_leader_that_died_is_in_doubt(
    scene: Scene, in_doubt: str, slots: list[float]
) -> None:
    """Before it is sent, Kafka no longer says that it waits."""
    world = scene.of("queue_one", conf={"neli_in_doubt": in_doubt})
    first = world.leader()
    world.ticks(until=22)
    scene.end()

    def die(entry: str) -> None:
        first.crash(arrives=False)
        raise Crash

    world.after_wire = die
    world.ticks(until=23)
    assert world.slots() == [10, 20]
    world.after_wire = lambda entry: None
    second = world.leader()
    world.ticks(until=28)
    assert world.slots() == slots
    assert second.in_doubt == 1


def test_no_slot_that_waited_is_sent_before_kafka_knows_that_it_may_have_been(scene: Scene) -> None:
    world = scene.of("queue_one")
    beat = world.leader()
    world.ticks(until=22)
    beat.topic.up = False
    scene.end()
    world.ticks(until=27)
    assert world.slots() == [10]
    beat.topic.up = True
    beat.topic.resend()
    world.ticks(until=28)
    assert world.slots() == [10, 20]


def test_a_slot_that_waits_holds_nothing_up(scene: Scene) -> None:
    """Other entries run, and the watermark passes it, once Kafka has the state that keeps it owed."""
    world = scene.of("queue_one", others={"other": 3.0})
    beat = world.leader()
    world.ticks(until=100)
    assert world.slots("other") == [3.0 * n for n in range(1, 34)]
    assert world.marks()[1] > 98
    beat.topic.up = False
    world.ticks(until=112)
    assert world.marks()[1] < 110, "of the slot that waits since then, Kafka has no state"


def test_a_slot_waits_no_longer_than_the_unfinished_task_counts(scene: Scene) -> None:
    world = scene.of("queue_one", 60.0, neli_overlap_age=75)
    world.leader()
    world.ticks(until=134)
    assert world.slots() == [60]
    world.ticks(until=136)
    assert world.slots() == [60, 120]


@pytest.mark.parametrize("options", [{"neli_misfire_grace": 5.0}, {"neli_expires": 5}, {"neli_misfire": "skip"}])
def test_a_slot_that_has_waited_too_long_for_its_policy_never_runs(scene: Scene, options: dict[str, Any]) -> None:
    """By then it is late, as any other would be: the misfire policy leaves it out."""
    world = scene.of("queue_one", 100.0, **options)
    world.leader()
    world.ticks(until=290)
    scene.end()
    world.ticks(until=292)
    assert world.slots() == [100]
    assert scene.skipped() == [(200, "misfire", 1)]
    assert not scene.state().waits
    world.ticks(until=301)
    assert world.slots() == [100, 300]


def test_a_crontab_waits_no_longer_than_its_starting_deadline(scene: Scene) -> None:
    world = scene.of("queue_one", crontab(), conf={"beat_cron_starting_deadline": 10})
    world.leader()
    world.ticks(until=150)
    scene.end()
    world.ticks(until=181)
    assert world.slots() == [60, 180]
    assert (120, "misfire", 1) in scene.skipped()


def test_with_fire_all_one_slot_waits_all_the_same(scene: Scene) -> None:
    """Also of those that were missed."""
    world = scene.of("queue_one", neli_misfire="fire_all")
    first = world.leader()
    world.ticks(until=11)
    first.crash()
    world.now = 55.0
    world.leader()
    world.ticks(until=56)
    assert world.slots() == [10]
    scene.end()
    world.ticks(until=57)
    assert world.slots() == [10, 50]


def test_an_entry_that_is_paused_while_a_slot_waits_runs_again_after_it_is_resumed(scene: Scene) -> None:
    """The slot that waited is one of those that pass in the pause."""
    world = scene.of("queue_one")
    world.leader()
    world.ticks(until=22)
    world.edit().pause("e")
    world.ticks(until=23)
    scene.end()
    world.ticks(until=26)
    assert world.slots() == [10]
    world.edit().resume("e")
    world.ticks(until=37)
    assert [round(each, 2) for each in world.slots()] == [10, 36]


def test_an_entry_that_may_overlap_from_now_on_does_not_wait(scene: Scene) -> None:
    world = World({"other": 50.0}, result_backend=f"file://{scene.directory}")
    scene.world = world
    world.leader()
    world.put("e", "PT10S", options={"neli_overlap": "queue_one"})
    world.ticks(until=25)
    assert len(world.slots()) == 1
    world.put("e", "PT10S")
    world.ticks(until=26)
    assert len(world.slots()) == 2, "what waited runs"
    world.ticks(until=36)
    assert len(world.slots()) == 3


def test_an_entry_that_is_removed_while_a_slot_waits_is_gone(scene: Scene) -> None:
    world = World({"other": 50.0}, result_backend=f"file://{scene.directory}")
    scene.world = world
    world.leader()
    world.put("e", "PT10S", options={"neli_overlap": "queue_one"})
    world.ticks(until=25)
    world.edit().remove("e")
    world.ticks(until=26)
    scene.end()
    world.ticks(until=45)
    assert len(world.slots()) == 1


# -- cancel_other --


def revoked(beat: int = -1) -> list[str]:
    return [task_id for _, task_id, _ in Revokes.made[beat].asked]


def test_a_slot_that_is_due_revokes_the_unfinished_task_and_runs(scene: Scene) -> None:
    world = scene.of("cancel_other")
    world.leader()
    world.ticks(until=31)
    assert world.slots() == [10, 20, 30]
    assert revoked() == [each.id for each in world.sent[:2]]
    assert all(allowed() for *_, allowed in Revokes.made[-1].asked)
    scene.end()
    world.ticks(until=41)
    assert world.slots() == [10, 20, 30, 40]
    assert len(revoked()) == 2, "a task that has ended is not revoked"


def test_a_leader_that_was_deposed_revokes_nothing(scene: Scene) -> None:
    """Its revoke may have waited for the task broker; the task may be its successor's by then."""
    world = scene.of("cancel_other")
    first = world.leader()
    world.ticks(until=21)
    (_, _, allowed), *_ = Revokes.made[0].asked
    assert allowed()
    first.fence()
    assert not allowed()
    world.leader()
    world.ticks(until=26)
    assert not allowed()


def test_a_successor_revokes_what_its_predecessor_sent(scene: Scene) -> None:
    world = scene.of("cancel_other")
    first = world.leader()
    world.ticks(until=11)
    first.hand_over()
    world.leader()
    world.ticks(until=21)
    assert world.slots() == [10, 20]
    assert revoked() == [world.sent[0].id]


def test_a_slot_that_cannot_be_sent_revokes_once(scene: Scene) -> None:
    world = scene.of("cancel_other")
    world.leader()
    world.ticks(until=11)
    _fail_once(world)
    world.ticks(until=25)
    assert world.slots() == [10, 20]
    assert revoked() == [world.sent[0].id]


def _fail_once(world: World) -> None:
    from kombu.exceptions import OperationalError

    def fail(entry: str) -> None:
        world.before_wire = lambda _: None
        raise OperationalError("away")

    world.before_wire = fail


def test_a_task_is_never_revoked_by_its_own_slot(scene: Scene, request: pytest.FixtureRequest) -> None:
    """Workers would throw away the message that is sent now: one in doubt is sent again under the same id."""
    world = scene.of("cancel_other")
    first = world.leader()

    def die(entry: str) -> None:
        first.crash(arrives=False)
        raise Crash

    world.after_wire = die
    world.ticks(until=11)
    world.after_wire = lambda entry: None
    world.put_state("e", 0.0, epoch=1, sent=START + 10)
    second: Process = world.leader()
    world.ticks(until=16)
    assert (world.slots(), second.in_doubt) == ([10, 10], 1)
    assert revoked() == []


@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens_each_slot_is_sent_once_or_told_as_left_out(scene: Scene, seed: int) -> None:
    """Tasks end at random, leaders are killed, hand over or lose their lease at any time, Kafka is away for a while.

    With `skip`, no slot runs twice. A slot in doubt is left out, and told.
    """
    rng = random.Random(seed)
    world = scene.of("queue_one", 4.0, conf={"neli_in_doubt": "skip"}, others={"other": 3.0})
    leader = world.leader()
    for _ in range(60):
        world.ticks(until=world.now + rng.choice((0.05, 0.3, 1.0, 4.0, 9.0)))
        what = rng.random()
        if what < 0.5 and world.slots():
            scene.end(status=rng.choice(("SUCCESS", "FAILURE")))
        elif what < 0.65:
            leader.topic.up = not leader.topic.up
            if leader.topic.up:
                leader.topic.resend()
        elif what < 0.85:
            if leader.topic.up and rng.random() < 0.5:
                leader.hand_over()
            else:
                rng.choice((leader.crash, leader.fence))()
            world.ticks(until=world.now + rng.choice((0.1, 5.0)))
            leader = world.leader()
    if not leader.topic.up:
        leader.topic.up = True
        leader.topic.resend()
    if world.slots():
        scene.end()
    world.ticks(until=world.now + 5)
    assert not world.doubled()
    ends = [each.slot - START for each in scene.told if each.entry == "e" and each.slot is not None]
    sent = world.slots()
    first = min(ends)
    told = sum(each.count for each in scene.told if each.entry == "e" and each.outcome != hooks.SENT) + len(sent)
    expected = len(seconds(max(*ends, *sent), every=4.0, first=first))
    assert told >= expected, "each slot was sent, or told as left out"
    assert world.slots("other")[-1] > world.now - 4
