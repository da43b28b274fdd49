"""Many terms that end in many ways, at random: each slot is sent, or left out and counted; twice only if in doubt."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest
from celery.schedules import crontab
from kombu.exceptions import OperationalError

from tests.unit.beats import Crash, Process, World, seconds

SCHEDULE = {
    "a": 1.0, "b": 0.7, "c": crontab(), "d": 3.0,
    # Shifted by 1.77 s; its slots lie at multiples of the interval all the same.
    "t": {"task": "t", "schedule": 2.0, "options": {"neli_jitter": 2.0}},
}  # fmt: skip
#: Of the entries that are intervals.
INTERVALS = {"a": 1.0, "b": 0.7, "d": 3.0, "t": 2.0}
ENDS = ("crash", "crash in the midst", "hand over", "fence", "lost and back")


class Run:
    """Terms of two beats for a minute, by one random generator."""

    def __init__(self, seed: int, policy: str) -> None:
        self.random = random.Random(seed)
        self.world = World(
            SCHEDULE,
            neli_misfire="fire_all",
            neli_misfire_max=100_000,
            neli_in_doubt=policy,
            neli_publish_parallel=self.random.choice([1, 1, 4]),
        )
        self.world.election.latency = self.random.choice([0, 0.02, 0.05, 0.3])
        self.world.before_wire = lambda entry: self._on_wire("before", entry)
        self.world.after_wire = lambda entry: self._on_wire("after", entry)
        self.in_doubt = 0
        #: Until when messages of an entry fail; after how many messages the process is killed, and at which side.
        self._failing: dict[str, float] = {}
        self._kill: tuple[str, int] | None = None

    def play(self) -> None:
        """A minute of terms, and one that is left in peace until all has calmed down."""
        while self.world.now < 60:
            self.term()
        self._failing.clear()
        self.world.beat().member.lead()
        self.world.ticks(until=self.world.now + 70)
        for beat in self.world.beats:
            self._count(beat)

    def term(self) -> None:
        draw, world = self.random, self.world
        for beat in [each for each in world.beats if each.dead]:
            world.beats.remove(beat)
        while len(world.beats) < 2:
            world.beat()
        beat = draw.choice(world.beats)
        beat.member.lead()
        for _ in range(draw.randint(1, 4)):
            fault = draw.random()
            if fault < 0.25:
                self._failing[draw.choice("abdt")] = world.now + draw.uniform(0, 5)
            beat.topic.up = fault < 0.85
            world.ticks(until=world.now + draw.choice([0.001, 0.1, 0.5, draw.uniform(0, 4)]))
            if draw.random() < 0.7:
                beat.topic.up = True
                beat.topic.resend()
        self._end(beat, draw.choice(ENDS))
        if not beat.dead:
            beat.topic.up = True
            beat.topic.resend()
        else:
            self._count(beat)
        world.now += draw.choice([0, 0.5, 3])

    def _end(self, beat: Process, how: str) -> None:
        draw, world = self.random, self.world
        if how == "crash":
            beat.crash(arrives=draw.random() < 0.5)
        elif how == "crash in the midst":
            self._kill = draw.choice(["before", "after"]), draw.randint(1, 4)
            world.ticks(until=world.now + 3)
            self._kill = None
            if not beat.dead:
                beat.crash()
        elif how == "hand over":
            beat.hand_over()
        else:
            beat.fence()
            world.ticks(until=world.now + draw.choice([0, 1.5]))
            if how == "lost and back":
                beat.member.take_back()
                world.ticks(until=world.now + draw.uniform(0, 2))
                beat.hand_over()

    def _on_wire(self, side: str, entry: str) -> None:
        if side == "before" and self._failing.get(entry, 0) > self.world.now:
            raise OperationalError("it cannot be sent")
        if self._kill is None or self._kill[0] != side or threading.current_thread() is not threading.main_thread():
            return  # what a publisher raises is a failure of its message, and no crash
        self._kill = side, self._kill[1] - 1
        if self._kill[1] == 0:
            raise Crash

    def _count(self, beat: Process) -> None:
        self.in_doubt += beat.in_doubt

    def missing(self) -> dict[str, list[float]]:
        """Slots that were never sent."""
        found: dict[str, list[Any]] = {}
        for name, every in INTERVALS.items():
            sent = {round(slot, 6) for slot in self.world.slots(name)}
            owed = [round(slot, 6) for slot in seconds(self.world.now - (2.1 if name == "t" else 0.1), every, every)]
            found[name] = [slot for slot in owed if slot not in sent]
        return {name: slots for name, slots in found.items() if slots}


@pytest.mark.parametrize("seed", range(6))
def test_no_slot_is_lost_and_none_doubled_that_was_not_in_doubt(seed: int) -> None:
    """With `send`: all are there. What is doubled has the same id, is of two terms, and was counted."""
    run = Run(seed, "send")
    run.play()
    assert run.missing() == {}
    assert sum(count - 1 for count in run.world.doubled().values()) <= run.in_doubt
    sent = run.world.sent
    assert len({each.id for each in sent}) == len({(each.entry, each.slot) for each in sent})
    assert len({(each.entry, each.slot, each.term) for each in sent}) == len(sent)


@pytest.mark.parametrize("seed", range(6))
def test_with_skip_no_slot_is_doubled_and_none_lost_that_was_not_in_doubt(seed: int) -> None:
    """What is missing was counted."""
    run = Run(seed, "skip")
    run.play()
    assert run.world.doubled() == {}
    assert sum(map(len, run.missing().values())) <= run.in_doubt
