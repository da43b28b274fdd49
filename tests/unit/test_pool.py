"""Entries that are sent side by side, while more is due than one connection sends in time."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from kombu.exceptions import OperationalError

from celery_neli.beat.replicated import engine, publishers
from tests.unit.beats import World
from tests.unit.schedulers import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.unit.beats import Process

MANY = {f"e{n}": 60.0 for n in range(12)}
#: Two seconds before the others: so the last entry of all, which the ticking thread sends itself, is none of these.
EARLY = ("e1", "e2", "e3")
ALL = {"neli_misfire": "fire_all", "neli_publish_parallel": 4}


class Wire:
    """Holds up messages until they are let go, and knows which threads send."""

    def __init__(self, world: World) -> None:
        self.threads: set[str] = set()
        self.waiting: list[str] = []
        self.held: set[str] = set()
        self.broken: dict[str, BaseException] = {}
        self._go = threading.Event()
        world.before_wire = self.pass_by

    def pass_by(self, entry: str) -> None:
        self.threads.add(threading.current_thread().name)
        if entry in self.held:
            self.waiting.append(entry)
            assert self._go.wait(5), "held up for ever"
        if entry in self.broken:
            raise self.broken[entry]

    def let_go(self) -> None:
        self._go.set()


@pytest.fixture
def world() -> World:
    return late()


@pytest.fixture
def wire(world: World) -> Iterator[Wire]:
    wire = Wire(world)
    yield wire
    wire.let_go()


def late(schedule: Any = None, **conf: Any) -> World:
    """A world in which every entry has been due for half a minute, and nobody leads yet."""
    world = World(MANY if schedule is None else schedule, **{**ALL, **conf})
    for name in world.schedule:
        world.put_state(name, -2.0 if schedule is None and name in EARLY else 0.0)
    world.now = 90.0
    return world


def each(*slots: float) -> dict[str, list[float]]:
    """These slots of all entries."""
    return {name: [slot - 2 * (name in EARLY) for slot in slots] for name in MANY}


def held_up(world: World, wire: Wire, count: int) -> Process:
    """A leader that has so many messages on the wire."""
    beat = world.leader()

    def ready() -> bool:
        world.election.catch_up()
        beat.turn()
        return len(wire.waiting) >= count

    eventually(ready, what="messages on the wire")
    return beat


def test_publishers_are_called_in_when_many_are_late(world: World, wire: Wire) -> None:
    """Each entry once; its state says so; *done* covers them all then."""
    world.leader()
    world.ticks(until=92)
    assert {name: world.slots(name) for name in MANY} == each(60)
    assert any("publisher" in name for name in wire.threads)
    assert {name: [world.state(name).last] for name in MANY} == each(60)
    assert {world.state(name).runs for name in MANY} == {1}
    assert world.marks()[1] > 90


def test_publishers_are_left_out_while_one_connection_is_enough() -> None:
    """What is due on time is sent by the thread that ticks."""
    world = World({f"e{n}": 1.0 for n in range(5)}, **ALL)
    wire = Wire(world)
    world.leader()
    world.ticks(until=5.5)
    assert len(world.sent) == 25
    assert not any("publisher" in name for name in wire.threads)


def test_with_one_publisher_nothing_is_sent_side_by_side() -> None:
    """`neli_publish_parallel = 1`."""
    world = late(neli_publish_parallel=1)
    wire = Wire(world)
    world.leader()
    world.ticks(until=92)
    assert len(world.sent) == len(MANY)
    assert wire.threads == {threading.current_thread().name}


def test_slots_of_one_entry_stay_in_order() -> None:
    """However many are owed, one of an entry is in flight at a time."""
    world = late({f"e{n}": 3.0 for n in range(6)})
    wire = Wire(world)
    world.leader()
    world.ticks(until=91)
    wanted = [3.0 * n for n in range(1, 31)]
    assert {name: world.slots(name) for name in world.schedule} == dict.fromkeys(world.schedule, wanted)
    assert any("publisher" in name for name in wire.threads)
    assert len({sent.id for sent in world.sent}) == len(world.sent)


def test_done_does_not_pass_what_is_in_flight(world: World, wire: Wire) -> None:
    """One message hangs: its slot is not settled, whatever else has left."""
    wire.held = {"e3"}
    beat = held_up(world, wire, 1)
    eventually(lambda: beat.turn() or len(world.sent) == len(MANY) - 1, what="the others")
    for _ in range(3):
        world.now += 1
        world.election.catch_up()
        beat.turn()
    assert world.marks()[1] < 58
    wire.let_go()
    world.ticks(until=world.now + 2)
    assert world.marks()[1] > 90


def test_an_entry_that_fails_in_flight_is_tried_again(world: World, wire: Wire) -> None:
    """It is open meanwhile, and stops no other."""
    wire.broken = {"e3": OperationalError("poison")}
    world.leader()
    world.ticks(until=90.5)
    assert world.slots("e3") == []
    assert (world.state("e3").open, world.state("e3").last) == (True, -2)
    assert len(world.sent) == len(MANY) - 1
    wire.broken = {}
    world.ticks(until=125)
    assert world.slots("e3") == [58, 118]
    assert not world.state("e3").open
    assert not world.doubled()


def test_a_term_that_ends_loses_nothing_that_was_in_flight(world: World, wire: Wire) -> None:
    """What had not left is sent in the next term; what had is in doubt."""
    wire.held = set(EARLY)
    beat = held_up(world, wire, 3)
    beat.fence()
    wire.let_go()
    beat.turn()
    beat.member.lead()
    world.ticks(until=125)
    assert {name: sorted(set(world.slots(name))) for name in MANY} == each(60, 120)
    assert all(len(world.slots(name, term=2)) <= 2 for name in MANY)
    assert len({(sent.entry, sent.slot, sent.id) for sent in world.sent}) == 2 * len(MANY)


def test_a_publisher_asks_the_lease_right_before_the_wire() -> None:
    """A term that ended while it was connecting, or declaring, sends nothing; the tick ends with it."""
    world = late()
    beat = world.leader()
    original = beat.app.amqp.Producer.maybe_declare
    lapsed: list[str] = []

    def declare(self: Any, *args: Any, **kwargs: Any) -> Any:
        if "publisher" in threading.current_thread().name and not lapsed:
            lapsed.append("now")
            beat.member.vanish()
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beat.app.amqp.Producer, "maybe_declare", declare)
        eventually(lambda: beat.turn() and not beat.serves(), what="the end of the term")
        count = len(world.sent)
        beat.turn()
    assert lapsed
    assert len(world.sent) == count < len(MANY)
    beat.member.lead()
    world.ticks(until=92)
    assert {name: world.slots(name) for name in MANY} == each(60)


def test_a_hand_over_waits_for_what_is_in_flight(world: World, wire: Wire) -> None:
    """It is settled then: nothing is in doubt for the successor."""
    wire.held = {"e1", "e2"}
    beat = held_up(world, wire, 2)
    release = threading.Timer(0.1, wire.let_go)
    release.start()
    beat.hand_over()
    release.join()
    assert world.marks()[0] == world.marks()[1]
    successor = world.leader()
    world.ticks(until=95)
    assert not world.doubled()
    assert {name: world.slots(name) for name in MANY} == each(60)
    assert successor.in_doubt == 0


def test_what_hangs_at_a_hand_over_is_in_doubt(monkeypatch: pytest.MonkeyPatch, world: World, wire: Wire) -> None:
    """Nobody knows whether it leaves; the others are settled."""
    monkeypatch.setattr(engine, "DRAIN", 0.05)
    wire.held = {"e1"}
    beat = held_up(world, wire, 1)
    eventually(lambda: beat.turn() or len(world.sent) == len(MANY) - 1, what="the others")
    beat.hand_over()
    claimed, done = world.marks()
    assert done < 58 <= claimed
    world.before_wire = lambda entry: None
    successor = world.leader()
    world.ticks(until=95)
    assert successor.in_doubt == 1
    assert {name: world.slots(name) for name in MANY} == each(60)


def test_a_broker_that_hangs_is_no_progress(monkeypatch: pytest.MonkeyPatch, world: World, wire: Wire) -> None:
    """The leader would resign after `neli_stall_timeout`. When something lands, it goes on."""
    wire.held = set(EARLY)
    beat = held_up(world, wire, 1)
    assert not beat.fails()
    monkeypatch.setattr(publishers, "STUCK", 0.15)
    eventually(lambda: (beat.turn(), beat.fails())[1], what="no progress")
    wire.let_go()
    eventually(lambda: (beat.turn(), not beat.fails())[1], what="progress")
    world.ticks(until=92)
    assert len(world.sent) == len(MANY)


@pytest.mark.parametrize("lands", [True, False], ids=["leaves", "fails"])
@pytest.mark.parametrize("change", ["changed", "paused", "removed", "other arguments"])
def test_an_entry_may_change_while_it_is_in_flight(change: str, lands: bool) -> None:
    """What it has become counts; a slot that left is not sent again, one that failed is if it is still owed."""
    world = late()
    world.now = -2.0
    for name in ("r1", "r2"):
        world.put(name, "PT1M")
    world.now = 90.0
    wire = Wire(world)
    wire.held = {"r1"}
    beat = held_up(world, wire, 1)
    if change == "changed":
        world.put("r1", "PT30S")
    elif change == "paused":
        world.edit().pause("r1")
    elif change == "removed":
        world.edit().remove("r1")
    else:
        world.put("r1", "PT1M", args=[2])
    beat.turn()
    if not lands:
        wire.broken = {"r1": OperationalError("it cannot be sent")}
    wire.let_go()
    eventually(lambda: beat.turn() or not any("r1" in name for name in wire.waiting[1:]), what="the flight")
    eventually(lambda: (beat.turn(), len(world.sent) >= len(MANY) + 1 + lands)[1], what="the others")
    wire.broken, wire.held = {}, set()
    world.ticks(until=125)
    first = [58.0] if lands else []
    later = {"changed": [120.0], "paused": [], "removed": [], "other arguments": [118.0]}[change]
    if change == "other arguments" and not lands:
        first = [58.0]  # owed as before
    assert world.slots("r1") == first + later
    assert world.slots("r2") == [58, 118]
    assert world.marks()[1] > 120, "nothing holds up the mark"
    if change != "removed":
        assert world.state("r1").runs == len(world.slots("r1"))


@pytest.mark.parametrize("fate", ["leaves", "fails on the wire"])
def test_the_slot_of_an_entry_that_changed_in_flight_is_known_after_a_hand_over(fate: str) -> None:
    """That it was sent is in its state, or else it is in doubt: it is not sent twice."""
    world = late(neli_in_doubt="skip")
    world.now = -2.5
    first = world.leader()
    world.ticks(until=-2)
    first.hand_over()  # and leaves its marks
    world.put("r1", "PT1M")
    world.put_state("r1", -2.0, open=True)  # *done* says nothing of it
    world.now = 90.0
    wire = Wire(world)
    wire.held = {"r1"}
    beat = held_up(world, wire, 1)
    world.put("r1", "PT1M", args=[2])
    beat.turn()
    if fate != "leaves":
        wire.broken = {"r1": OperationalError("the connection broke")}
    wire.let_go()
    beat.hand_over()
    wire.broken, wire.held = {}, set()
    successor = world.leader()
    world.ticks(until=119)
    assert world.slots("r1") == ([58, 118] if fate == "leaves" else [118])
    assert successor.in_doubt == (fate != "leaves")


def test_an_entry_with_receivers_of_signals_goes_the_ticking_thread_s_way(world: World, wire: Wire) -> None:
    """A user's own code runs nowhere else."""
    from celery.signals import before_task_publish

    seen: set[str] = set()

    def receiver(**kwargs: Any) -> None:
        seen.add(threading.current_thread().name)

    before_task_publish.connect(receiver, weak=False, dispatch_uid="seen")
    try:
        world.leader()
        world.ticks(until=92)
    finally:
        before_task_publish.disconnect(dispatch_uid="seen")
    assert len(world.sent) == len(MANY)
    assert seen == wire.threads == {threading.current_thread().name}


def test_what_the_misfire_policy_leaves_out_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """Also of entries that wait for a publisher."""
    world = late({f"e{n}": 10.0 for n in range(20)}, neli_misfire="fire_once")
    beat = world.leader()
    world.ticks(until=92)
    assert {name: world.slots(name) for name in world.schedule} == {key: [90] for key in world.schedule}
    assert caplog.text.count("slots missed") == 20
    assert beat.left_out == 20 * 8


@pytest.mark.parametrize("lands", [True, False], ids=["leaves", "fails"])
@pytest.mark.parametrize("held", [{"e2"}, {"e1", "e2", "e3"}], ids=["alone", "among others"])
def test_a_flight_that_a_signal_cuts_off_as_it_lands_is_still_in_flight(
    held: set[str], lands: bool, world: World, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Celery's handlers raise anywhere: what was not dealt with to its end is in doubt at a handover, and not lost."""
    world.put_state("e2", -4.0)  # the earliest: nothing else holds up the mark
    wire.held = set(held)
    beat = held_up(world, wire, 1)
    wire.broken = {} if lands else {name: OperationalError("poison") for name in held}
    write, cut = beat.topic.write, []

    def signal(kind: Any, name: str, value: bytes | None) -> None:
        if name in held and not cut:
            cut.append(name)
            raise SystemExit
        write(kind, name, value)

    monkeypatch.setattr(beat.topic, "write", signal)
    wire.let_go()
    with pytest.raises(SystemExit):
        eventually(beat.turn, what="the signal")
    beat.hand_over()
    wire.broken = {}
    successor = world.leader()
    world.ticks(until=95)
    assert {name: sorted(set(world.slots(name))) for name in MANY} == {**each(60), "e2": [56]}
    assert len({sent.id for sent in world.sent}) == len(MANY)
    if not lands:
        assert successor.in_doubt >= 1
