"""Slots that could not be published: what the successor makes of them, and what is told while they are tried again."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
from celery.beat import BeatLazyFunc
from kombu.exceptions import OperationalError

from tests.unit.beats import Crash, World

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.unit.beats import Process


class Failing:
    """A world with an entry `bad` that fails until told otherwise, at one ``place``."""

    def __init__(
        self,
        place: str,
        every: float = 10.0,
        *,
        error: BaseException | None = None,
        others: Mapping[str, float] | None = None,
        **conf: object,
    ) -> None:
        self.fails = True
        self.tries = 0
        self._error = OperationalError("it cannot be sent") if error is None else error
        entry = {"task": "t", "schedule": every}
        if place == "before the wire":
            entry["args"] = (BeatLazyFunc(self._fail),)
        self.world = World({"bad": entry, **(others or {})}, **conf)
        if place == "on the wire":
            self.world.before_wire = self._fail

    def _fail(self, entry: str = "bad") -> None:
        if self.fails:
            self.tries += 1
            raise self._error

    def fail_on_the_wire(self, entry: str) -> None:
        """Whatever else is so."""
        self.tries += 1
        raise self._error

    def succeeded(self, beat: Process) -> Process:
        """The leader hands over; its successor, which does not fail."""
        beat.hand_over()
        self.fails = False
        self.world.before_wire = lambda entry: None
        successor = self.world.leader()
        self.world.ticks(until=self.world.now + 1)
        return successor


def crash(entry: str) -> None:
    """The leader dies at this very place."""
    raise Crash


#: By where its message came to grief: whether the slot is in doubt for the successor.
PLACES = {"before the wire": False, "on the wire": True}


@pytest.mark.parametrize("policy", ["skip", "send"])
@pytest.mark.parametrize("place", PLACES)
def test_a_signal_that_cuts_off_a_message_leaves_it_in_doubt_if_the_transport_had_it(place: str, policy: str) -> None:
    """Celery's handlers raise anywhere. A message that the transport did not have is owed, and no more."""
    failing = Failing(place, error=SystemExit(0), neli_in_doubt=policy)
    beat = failing.world.leader()
    with pytest.raises(SystemExit):
        failing.world.ticks(until=12)
    successor = failing.succeeded(beat)
    doubtful = PLACES[place]
    assert successor.in_doubt == doubtful
    assert failing.world.slots("bad") == ([] if doubtful and policy == "skip" else [10])
    failing.world.ticks(until=25)
    assert failing.world.slots("bad")[-1] == 20


@pytest.mark.parametrize("policy", ["skip", "send"])
@pytest.mark.parametrize("place", PLACES)
def test_a_slot_that_fails_is_in_doubt_for_the_successor_if_the_transport_had_it(place: str, policy: str) -> None:
    """A clean release tells which: one that failed before the wire is owed, and no more."""
    failing = Failing(place, neli_in_doubt=policy)
    beat = failing.world.leader()
    failing.world.ticks(until=12.5)
    assert failing.tries == 2
    successor = failing.succeeded(beat)
    doubtful = PLACES[place]
    assert successor.in_doubt == doubtful
    assert failing.world.slots("bad") == ([] if doubtful and policy == "skip" else [10])


def test_a_slot_that_the_transport_had_once_stays_in_doubt() -> None:
    """That a later try failed before the wire says nothing about the first."""
    failing = Failing("before the wire", neli_in_doubt="skip")
    failing.fails = False
    failing.world.before_wire = failing.fail_on_the_wire
    beat = failing.world.leader()
    failing.world.ticks(until=10.5)
    failing.fails = True
    failing.world.ticks(until=12.5)
    assert failing.tries == 2
    assert failing.succeeded(beat).in_doubt == 1
    assert failing.world.slots("bad") == []


def test_a_hand_over_whose_states_could_not_be_written_leaves_the_doubt() -> None:
    """What is in Kafka is old: nobody can tell which slots were sent since."""
    failing = Failing("before the wire", neli_in_doubt="skip")
    beat = failing.world.leader()
    failing.world.ticks(until=12.5)
    beat.topic.up = False
    failing.world.ticks(until=13.5)
    assert beat.topic.unsaved
    assert failing.succeeded(beat).in_doubt == 1
    assert failing.world.slots("bad") == []


def test_a_slot_that_is_owed_is_so_after_every_clean_hand_over() -> None:
    """The next leader fails, too, and hands over."""
    failing = Failing("before the wire", neli_in_doubt="skip")
    first = failing.world.leader()
    failing.world.ticks(until=12.5)
    first.hand_over()
    second = failing.world.leader()
    failing.world.ticks(until=15.5)
    assert failing.tries > 3
    assert failing.succeeded(second).in_doubt == 0
    assert failing.world.slots("bad") == [10]


def test_a_slot_that_was_owed_is_in_doubt_once_a_leader_died_over_it() -> None:
    """It sends what it found owed, and dies before it has told anything more."""
    failing = Failing("before the wire", neli_in_doubt="skip")
    world = failing.world
    first = world.leader()
    world.ticks(until=12.5)
    first.hand_over()
    failing.fails = False
    second = world.leader()

    def die(entry: str) -> None:
        second.crash(arrives=False)
        raise Crash

    world.after_wire = die
    world.ticks(until=13.5)
    assert world.slots("bad") == [10]
    world.after_wire = lambda entry: None
    third = world.leader()
    world.ticks(until=18)
    assert third.in_doubt == 1
    assert world.slots("bad") == [10]


def test_a_slot_that_was_found_in_doubt_stays_so_though_its_next_try_fails_before_the_wire() -> None:
    """The leader that died may have sent it, whatever the next one did."""
    failing = Failing("before the wire", neli_in_doubt="send")
    world = failing.world
    failing.fails = False
    world.after_wire = crash
    world.leader()
    world.ticks(until=11)
    assert world.slots("bad") == [10]
    world.after_wire = lambda entry: None
    failing.fails = True
    second = world.leader()
    world.ticks(until=18)
    assert (failing.tries > 1, second.in_doubt) == (True, 1)
    assert failing.succeeded(second).in_doubt == 1
    assert world.slots("bad") == [10, 10]


def test_a_slot_that_fails_does_not_bring_back_what_others_sent_since() -> None:
    """Nor are any of theirs lost, or taken for in doubt."""
    failing = Failing("before the wire", neli_in_doubt="skip", others={"good": 3.0})
    world = failing.world
    beat = world.leader()
    world.ticks(until=19.5)
    assert world.slots("good") == [3, 6, 9, 12, 15, 18]
    successor = failing.succeeded(beat)
    world.ticks(until=25)
    assert world.slots("good") == [3, 6, 9, 12, 15, 18, 21, 24]
    assert (world.slots("bad"), successor.in_doubt) == ([10, 20], 0)


def test_doubt_about_a_slot_that_was_sent_in_the_end_is_no_doubt_about_others() -> None:
    """Their slots before it are still owed: nothing that the transport had is left unsettled."""
    failing = Failing("before the wire", neli_in_doubt="skip", others={"worse": 11.0})
    world, broken = failing.world, [True]

    def break_once(entry: str) -> None:
        if broken.pop() if broken else False:
            raise OperationalError("the connection broke")

    world.before_wire = break_once
    beat = world.leader()
    world.ticks(until=12.5)
    assert (world.slots("worse"), broken) == ([11], [])
    assert failing.succeeded(beat).in_doubt == 0
    assert world.slots("bad") == [10]


@pytest.mark.parametrize("place", PLACES)
def test_a_slot_that_was_sent_in_the_end_leaves_no_doubt(place: str) -> None:
    """It failed before that, and is settled now."""
    failing = Failing(place, neli_in_doubt="skip")
    beat = failing.world.leader()
    failing.world.ticks(until=12.5)
    failing.fails = False
    failing.world.ticks(until=14.5)
    successor = failing.succeeded(beat)
    failing.world.ticks(until=25)
    assert failing.world.slots("bad") == [10, 20]
    assert successor.in_doubt == 0


@pytest.fixture
def missed(caplog: pytest.LogCaptureFixture) -> Callable[[], int]:
    """How many lines told of missed slots."""
    caplog.set_level(logging.WARNING)
    return lambda: caplog.text.count("slots missed entry=bad")


def test_slots_that_are_left_out_are_told_once_however_often_their_entry_fails(missed: Callable[[], int]) -> None:
    """And again only when there are more of them; each counts once."""
    failing = Failing("on the wire", every=100.0)
    world = failing.world
    world.put_state("bad", 0.0)
    world.now = 1050.0
    beat = world.leader()
    world.ticks(until=1099)
    assert failing.tries > 4
    assert (missed(), beat.left_out) == (1, 9)
    world.ticks(until=1199)
    assert (missed(), beat.left_out) == (2, 10)


def test_slots_that_are_left_out_after_a_success_are_told_again(missed: Callable[[], int]) -> None:
    """They are others, though there may be fewer."""
    failing = Failing("on the wire", every=100.0)
    world = failing.world
    world.put_state("bad", 0.0)
    world.now = 1050.0
    beat = world.leader()
    world.ticks(until=1055)
    failing.fails = False
    world.ticks(until=1110)
    assert world.slots("bad") == [1000, 1100]
    assert (missed(), beat.left_out) == (1, 9)
    world.now = 1450.0  # nobody had a turn meanwhile
    world.ticks(until=1460)
    assert world.slots("bad") == [1000, 1100, 1400]
    assert (missed(), beat.left_out) == (2, 9 + 2)
