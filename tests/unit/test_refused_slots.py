"""Slots that the application refuses to send: each costs itself, in one line, and nothing else."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import amqp.exceptions
import pytest
import redis.exceptions
from celery import Task
from celery.beat import BeatLazyFunc, Scheduler
from kombu.exceptions import OperationalError

from tests.unit.beats import World, seconds

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.unit.beats import Process


class AlreadyQueued(Exception):
    """As of celery-once."""


class ClientError(Exception):
    """As of botocore."""


class Guarded(Task):
    """A base class with an `apply_async` of its own, which raises what the test says."""

    abstract = True
    raises: BaseException | None = None
    after = False
    calls = 0
    strikes: Callable[[], object] = staticmethod(lambda: None)  # what comes first

    def apply_async(self, *args: Any, **options: Any) -> Any:
        type(self).calls += 1
        type(self).strikes()
        if self.raises is not None and not self.after:
            raise self.raises
        result = super().apply_async(*args, **options)
        if self.raises is not None:
            raise self.raises
        return result


def guarded(beat: Process, **attributes: Any) -> Any:
    """The task `t` of this beat, with an `apply_async` of its own."""

    @beat.app.task(name="t", base=Guarded, shared=False)
    def t(number: int = 0) -> None:
        """Does nothing."""

    for name, value in attributes.items():
        setattr(type(t._get_current_object()), name, staticmethod(value) if callable(value) else value)  # type: ignore[attr-defined]  # noqa: SLF001
    return t


def plain(beat: Process) -> None:
    @beat.app.task(name="t", shared=False)
    def t(number: int = 0) -> None:
        """Does nothing."""


def fail(*_: Any, **__: Any) -> Any:
    raise LookupError("no such colour")


def fail_for_arguments(name: str, args: Any, kwargs: Any, *_: Any, **__: Any) -> None:
    if kwargs:
        fail()


def lines(caplog: pytest.LogCaptureFixture, entry: str) -> list[str]:
    """What an operator sees of an entry's trouble."""
    found = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert all(each.exc_info is None for each in found), "no traceback"
    return [each.getMessage() for each in found if f"entry={entry}" in each.getMessage()]


#: What an application may do to its own messages: the entry's further fields, the settings, what its beat does first.
REFUSALS: dict[str, tuple[dict[str, Any], dict[str, Any], Callable[[Process], object]]] = {
    "celery-once": ({}, {}, lambda beat: guarded(beat, raises=AlreadyQueued("55"))),
    "a KeyError, which kombu's Redis has among its own": ({}, {}, lambda beat: guarded(beat, raises=KeyError("c"))),
    "a file that is not there": ({}, {}, lambda beat: guarded(beat, raises=FileNotFoundError(2, "no such file", "/x"))),
    "a text of many lines": ({}, {}, lambda beat: guarded(beat, raises=AlreadyQueued("no\nERROR beat: entry=good"))),
    "an argument too many": ({"args": (1, 2)}, {}, plain),
    "an argument of a name that the task does not know": ({"kwargs": {"colour": 1}}, {}, plain),
    "an argument that cannot be serialized": ({"args": (object(),)}, {}, plain),
    "an argument that is computed, and raises": ({"args": (BeatLazyFunc(fail),)}, {}, plain),
    "a task of no known name": ({"args": (object(),)}, {}, lambda beat: None),
    "a serializer that does not exist": ({"options": {"serializer": "nope"}}, {}, plain),
    "a compression that does not exist": ({"options": {"compression": "nope"}}, {}, plain),
    "a queue that does not exist": ({"options": {"queue": "no"}}, {"task_create_missing_queues": False}, plain),
    "a router that raises": ({"kwargs": {"number": 1}}, {"task_routes": [fail_for_arguments]}, plain),
}  # fmt: skip


#: Those that are told of when the beat starts, too: what the task takes is known by then, and what this process has.
TOLD_AT_START = (
    "an argument too many", "an argument of a name that the task does not know", "a serializer that does not exist",
    "a compression that does not exist", "a queue that does not exist",
)  # fmt: skip


@pytest.mark.parametrize("parallel", [1, 4])
@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_slot_that_the_application_refuses_costs_one_line_and_nothing_else(
    refusal: str, parallel: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Later slots are tried on time, no run is counted, and nothing is owed or in doubt for a successor."""
    fields, conf, prepare = REFUSALS[refusal]
    entry = {"task": "t", "schedule": 10.0, **fields}
    world = World({"bad": entry, "good": {"task": "other", "schedule": 1.0}}, neli_publish_parallel=parallel, **conf)
    world.conf["neli_in_doubt"] = "skip"
    beat = world.beat()
    prepare(beat)
    beat.member.lead()
    with caplog.at_level(logging.INFO):
        world.ticks(until=35)
    told = lines(caplog, "bad")
    if refusal in TOLD_AT_START:
        assert "slot refused" not in told.pop(0)
    assert [line.partition(":00:")[2][:2] for line in told] == ["10", "20", "30"]
    assert all("\n" not in line for line in told)
    assert all("beat: slot refused entry=bad slot=2026-03-01T12:00:" in line for line in told)
    assert world.slots("bad") == []
    assert world.slots("good") == seconds(35)
    state = world.state("bad")
    assert (state.last, state.runs, state.open) == (30, 0, False)
    assert world.marks()[1] > 34
    beat.hand_over()
    successor = world.leader({"bad": {"task": "other", "schedule": 10.0}, "good": 1.0})
    world.ticks(until=45)
    assert world.slots("bad") == [40]
    assert successor.in_doubt == 0
    assert world.state("bad").runs == 1


@pytest.mark.parametrize("parallel", [1, 4])
def test_refusals_of_a_backlog_hold_up_no_neighbour(parallel: int, caplog: pytest.LogCaptureFixture) -> None:
    """Entries that are sent side by side, some of which take no such argument."""
    entries = {f"e{n}": {"task": "t", "schedule": 60.0, "args": (1,) * (n % 3)} for n in range(30)}
    world = World(entries, neli_misfire="fire_all", neli_publish_parallel=parallel)
    for name in entries:
        world.put_state(name, 0.0)
    world.now = 90.0
    beat = world.beat()
    plain(beat)
    beat.member.lead()
    world.ticks(until=121)
    for n in range(30):
        assert world.slots(f"e{n}") == ([] if n % 3 == 2 else [60, 120])
        told = [line for line in lines_about_refusals(caplog) if f"entry=e{n} " in line]
        assert len(told) == (2 if n % 3 == 2 else 0)
        assert (world.state(f"e{n}").last, world.state(f"e{n}").runs) == (120, 0 if n % 3 == 2 else 2)
    assert not world.doubled()


@pytest.mark.parametrize(
    "error",
    [
        OperationalError("no route"),
        ConnectionRefusedError("refused"),
        TimeoutError("slow"),
        redis.exceptions.ConnectionError("gone"),
        amqp.exceptions.RecoverableConnectionError("gone"),
    ],
    ids=repr,
)
def test_what_may_be_the_brokers_failure_is_retried(error: Exception) -> None:
    """An `apply_async` of its own may talk to a broker, too: the slot is owed, and sent in the end."""
    world = World({"e": 10.0})
    beat = world.beat()
    task = guarded(beat, raises=error)
    beat.member.lead()
    world.ticks(until=12)
    assert world.slots() == []
    assert world.state().open
    type(task._get_current_object()).raises = None  # noqa: SLF001
    world.ticks(until=25)
    assert world.slots() == [10, 20]
    assert world.state().runs == 2


@pytest.mark.parametrize("parallel", [1, 4])
def test_an_error_of_the_transport_that_kombu_does_not_name_is_retried(parallel: int) -> None:
    """Amazon's SQS throttles by an error that kombu's transport does not list; the slots are owed, not refused."""
    world = World({f"e{n}": 10.0 for n in range(6)}, neli_publish_parallel=parallel)

    def throttle(entry: str) -> None:
        if world.now < 12:
            raise ClientError("ThrottlingException")

    world.before_wire = throttle
    world.leader()
    world.ticks(until=25)
    assert {n: world.slots(f"e{n}") for n in range(6)} == {n: [10, 20] for n in range(6)}
    assert not world.doubled()


class Expired(BaseException):
    """As gevent's Timeout."""


@pytest.mark.parametrize("raises", [GeneratorExit(), Expired("5 s")], ids=repr)
def test_what_would_end_a_program_costs_its_slot_alone(raises: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    """Else the next beat would lead, send the same slot, and end: one after the other."""
    world = World({"bad": 10.0, "good": {"task": "other", "schedule": 1.0}})
    beat = world.beat()
    guarded(beat, raises=raises)
    beat.member.lead()
    world.ticks(until=25)
    assert world.slots("good") == seconds(25)
    assert [type(raises).__name__ in line for line in lines(caplog, "bad")] == [True, True]
    assert (world.state("bad").last, world.state("bad").runs, world.state("bad").open) == (20, 0, False)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("raises", [KeyboardInterrupt(), SystemExit()], ids=repr)
def test_what_a_signal_handler_raises_ends_beat(raises: BaseException, after: bool) -> None:
    """Ctrl-C at any place; and SystemExit, before which Celery's handler has asked the scheduler to close."""
    world = World({"e": 10.0})
    beat = world.beat()
    guarded(beat, raises=raises, after=after, strikes=lambda: beat.close())
    beat.member.lead()
    with pytest.raises(type(raises)):
        world.ticks(until=15)


@pytest.mark.parametrize("in_transport", [False, True])
def test_a_task_that_exits_ends_beat_with_a_line(in_transport: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Of a signal that interrupts a wait for the task broker, the entry is not to blame."""
    world = World({"e": 10.0})
    beat = world.beat()
    exits = SystemExit(3)
    guarded(beat, raises=None if in_transport else exits)

    def strike(entry: str) -> None:
        raise exits

    world.before_wire = strike
    beat.member.lead()
    with pytest.raises(SystemExit):
        world.ticks(until=15)
    told = [] if in_transport else ["beat: ends entry=e: what sends it raised SystemExit(3)"]
    assert lines(caplog, "e") == told


def test_a_refusal_after_the_message_has_left_does_not_unsend_it(caplog: pytest.LogCaptureFixture) -> None:
    """The slot counts as run, for it did, and is not sent twice."""
    world = World({"e": 10.0})
    beat = world.beat()
    guarded(beat, raises=ValueError("cannot write down that it was sent"), after=True)
    beat.member.lead()
    world.ticks(until=25)
    assert world.slots() == [10, 20]
    assert world.state().runs == 2
    assert [line.startswith("beat: sent anyway entry=e slot=") for line in lines(caplog, "e")] == [True] * 2


def test_a_slot_that_is_refused_when_it_is_retried_is_over(caplog: pytest.LogCaptureFixture) -> None:
    """celery-once says so when the first attempt did arrive; the slot is no longer in doubt."""
    world = World({"e": 10.0}, neli_in_doubt="skip")
    beat = world.beat()
    task = type(guarded(beat)._get_current_object())  # noqa: SLF001
    beat.member.lead()

    def arrive_and_break(entry: str) -> None:
        task.raises = AlreadyQueued("55")
        raise OperationalError("the connection broke")

    world.after_wire = arrive_and_break
    world.ticks(until=15)
    assert world.slots() == [10]
    assert len([line for line in lines_about_refusals(caplog) if "entry=e" in line]) == 1
    world.after_wire = lambda entry: None
    task.raises = None
    beat.hand_over()
    successor = world.leader()
    world.ticks(until=25)
    assert world.slots() == [10, 20]
    assert successor.in_doubt == 0


def lines_about_refusals(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if "slot refused" in each.getMessage()]


def test_a_refused_entry_of_one_slot_is_removed(caplog: pytest.LogCaptureFixture) -> None:
    """Its only slot is over."""
    world = World()
    beat = world.beat()
    guarded(beat, raises=AlreadyQueued("55"))
    beat.member.lead()
    world.ticks(until=1)
    world.put("once", "2026-03-01T12:00:05Z")
    with caplog.at_level(logging.INFO):
        world.ticks(until=10)
    assert world.slots("once") == []
    assert len(lines_about_refusals(caplog)) == 1
    assert "once" not in beat.scheduler.schedule
    assert "schedule: entry=once was refused its only run, and was removed" in caplog.text


def test_a_caller_of_apply_async_is_told_of_a_refusal() -> None:
    """A tick has only the log to tell."""
    from celery.beat import SchedulingError

    world = World({"e": 10.0})
    beat = world.beat()
    guarded(beat, raises=AlreadyQueued("55"))
    beat.member.lead()
    world.ticks(until=1)
    with pytest.raises(SchedulingError, match="55"):
        beat.scheduler.apply_async(beat.entry(), producer=beat.scheduler.producer)


# -- what others put around the scheduler's methods --


class Monitor:
    """Reports a check-in for each entry that is sent, and writes its id into the message, as Sentry does."""

    def __init__(self, patch: pytest.MonkeyPatch, world: World, *methods: str) -> None:
        self.check_ins: list[tuple[str, float]] = []
        self.arrived: list[Any] = []
        for method in methods:
            patch.setattr(Scheduler, method, self._around(getattr(Scheduler, method), world))
        arrive = world.arrive

        def note(headers: Any) -> None:
            arrive(headers)
            self.arrived.append(headers.get("check-in"))

        world.arrive = note  # type: ignore[method-assign]

    def _around(self, method: Any, world: World) -> Any:
        def patched(scheduler: Any, entry: Any, *args: Any, **kwargs: Any) -> Any:
            self.check_ins.append((entry.name, world.now))
            headers = entry.options.pop("headers", {})
            headers["check-in"] = len(self.check_ins) - 1
            entry.options["headers"] = headers
            return method(scheduler, entry, *args, **kwargs)

        return patched


@pytest.mark.parametrize("options", [{}, {"task_id": "mine"}, {"headers": {"mine": 1}}], ids=repr)
@pytest.mark.parametrize("method", ["apply_entry", "apply_async"])
def test_instrumentation_sees_one_attempt_for_each_slot(
    method: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often a slot is retried; the message that arrives in the end has the id of that attempt."""
    world = World({"e": {"task": "t", "schedule": 100.0, "options": options}})
    monitor = Monitor(monkeypatch, world, method)
    tries: list[float] = []

    def no_broker(entry: str) -> None:
        tries.append(world.now)
        if 100 <= world.now < 120:
            raise OperationalError("no route")

    world.before_wire = no_broker
    world.leader()
    world.ticks(until=210)
    assert len(tries) == 7
    assert world.slots() == [100, 200]
    assert [round(at) for _, at in monitor.check_ins] == [100, 200]
    assert monitor.arrived == [0, 1]


@pytest.mark.parametrize("method", ["apply_entry", "apply_async"])
def test_entries_sent_side_by_side_are_one_attempt_each(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Publishers retry, too."""
    entries = {f"e{n}": 60.0 for n in range(12)}
    world = World(entries, neli_misfire="fire_all", neli_publish_parallel=4)
    monitor = Monitor(monkeypatch, world, method)
    for name in entries:
        world.put_state(name, 0.0)
    world.now = 90.0

    def no_broker(entry: str) -> None:
        if world.now < 93:
            raise OperationalError("no route")

    world.before_wire = no_broker
    world.leader()
    world.ticks(until=110)
    assert {name: world.slots(name) for name in entries} == {name: [60.0] for name in entries}
    assert sorted(name for name, _ in monitor.check_ins) == sorted(entries)
    assert sorted(monitor.arrived) == list(range(12))


def test_an_entry_that_is_redefined_while_it_is_retried_is_sent_as_it_is_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was attempted before is another message."""
    world = World()
    world.put("e", "PT10S")
    monitor = Monitor(monkeypatch, world, "apply_entry")
    bodies: list[Any] = []
    broken = [True]

    def no_broker(entry: str) -> None:
        if broken[0]:
            raise OperationalError("no route")

    world.before_wire = no_broker
    beat = world.leader()
    publish = beat.app.amqp.Producer.publish

    def note(producer: Any, body: Any, *args: Any, **kwargs: Any) -> Any:
        bodies.append(list(body[0]))
        return publish(producer, body, *args, **kwargs)

    monkeypatch.setattr(beat.app.amqp.Producer, "publish", note)
    world.ticks(until=12)
    world.put("e", "PT10S", args=[2])
    broken[0] = False
    world.ticks(until=18)
    assert bodies[-1] == [2]
    assert len(world.sent) == 1
    assert len(monitor.check_ins) >= 1
