"""A message made from a template is the one that Celery would have sent, byte for byte; or there is no template."""

from __future__ import annotations

import contextlib
import functools
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any
from unittest.mock import MagicMock

import kombu
import pytest
from celery import Celery, signals
from celery.beat import BeatLazyFunc, ScheduleEntry, SchedulingError
from celery.beat import Scheduler as CelerysScheduler
from kombu.transport.memory import Channel, Transport
from kombu.utils.json import dumps

from celery_neli import leader_only
from celery_neli.beat.replicated.ledger import SlotLedger
from celery_neli.beat.replicated.standalone import ReplicatedScheduler
from celery_neli.beat.replicated.templates import Templates
from tests.unit.schedulers import make_app

if TYPE_CHECKING:
    from collections.abc import Callable

NOON = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)


class Wire(Channel):
    """Keeps what would go out, as bytes, and what is declared."""

    out: list[bytes]

    def basic_publish(self, message: Any, exchange: Any, routing_key: Any, **kwargs: Any) -> None:
        type(self).out.append(dumps([message, exchange, routing_key, kwargs]).encode())

    def queue_declare(self, queue: Any = None, **kwargs: Any) -> Any:
        type(self).out.append(f"declare {queue} {sorted(kwargs.items())}".encode())
        return super().queue_declare(queue, **kwargs)


def app_on_a_wire(**conf: Any) -> tuple[Any, list[bytes]]:
    """An app with registered tasks, and what it sent."""
    wire = type("Wire", (Wire,), {"out": []})
    transport = type("OnAWire", (Transport,), {"Channel": wire})
    app = make_app(timezone="Europe/Berlin", **conf)
    app.conf.task_default_queue = "q"
    app.connection_for_write = functools.partial(app.connection_for_write, transport=transport)
    app.now = lambda: NOON

    @app.task(name="plain", shared=False)
    def plain(*args: Any, **kwargs: Any) -> None: ...

    @app.task(name="rich", shared=False, expires=70, ignore_result=True, time_limit=9, serializer="pickle")
    def rich(*args: Any, **kwargs: Any) -> None: ...

    @app.task(name="strict", shared=False)
    def strict(one: int) -> None: ...

    app.finalize()
    return app, wire.out


def messages(out: list[bytes]) -> list[Any]:
    """What was sent: [message, exchange, routing key, arguments] each; without what was declared."""
    return [json.loads(each) for each in out if each.startswith(b"[")]


def entry_of(app: Any, task: str = "remote", **fields: Any) -> ScheduleEntry:
    return ScheduleEntry(name="e", task=task, schedule=timedelta(minutes=1), last_run_at=NOON, app=app, **fields)


def sent_by(cls: type[Any], task: str, matrix: dict[str, dict[str, Any]], **conf: Any) -> dict[str, list[bytes]]:
    """Three messages of each entry, and what was declared for them, with the ids taken out."""
    app, out = app_on_a_wire(**conf)
    scheduler = cls(app=app, lazy=True)
    sent: dict[str, list[bytes]] = {}
    for name, fields in matrix.items():
        entry = entry_of(app, task, **_copy(fields))
        sent[name] = []
        for _ in range(3):
            out.clear()
            result = scheduler.apply_async(entry, producer=scheduler.producer, advance=False)
            sent[name].append(
                b" ".join(out).replace(result.id.encode(), b"ID").replace(app.thread_oid.encode(), b"OID")
            )
            sent[name].append(repr(result.ignored).encode())
            entry = next(entry)
    return sent


def _copy(fields: dict[str, Any]) -> dict[str, Any]:
    """Options and headers of one's own: Celery writes into both."""
    options = {name: dict(value) if name == "headers" else value for name, value in fields.get("options", {}).items()}
    return {**fields, "options": options} if options else dict(fields)


MATRIX: dict[str, dict[str, Any]] = {
    "nothing": {},
    "arguments": {"args": (1, "two", None), "kwargs": {"three": 3.0, "four": [4, {"five": (5,)}]}},
    "a list": {"args": [1, 2]},
    "long": {"args": ("x" * 5000,), "kwargs": {"deep": {"a": {"b": {"c": {"d": {"e": 1}}}}}}},
    "no arguments": {"args": None, "kwargs": None},
    "lazy": {"args": (BeatLazyFunc(lambda: 4),), "kwargs": {"now": BeatLazyFunc(lambda: "five")}},
    "queue": {"options": {"queue": "other"}},
    "priority": {"options": {"queue": "other", "priority": 7}},
    "exchange": {"options": {"exchange": "x", "routing_key": "a.b", "exchange_type": "topic"}},
    "routing key": {"options": {"routing_key": "a.b"}},
    "expires": {"options": {"expires": 30}},
    "expires, float": {"options": {"expires": 0.5}},
    "never expires": {"options": {"expires": None}},
    "serializer": {"args": (1,), "options": {"serializer": "pickle"}},
    "compressed": {"args": ("x" * 200,), "options": {"compression": "zlib"}},
    "headers": {"options": {"headers": {"trace": "abc", "n": 1}}},
    "transient": {"options": {"delivery_mode": 1}},
    "limits": {"options": {"time_limit": 30, "soft_time_limit": 20}},
    "ignored": {"options": {"ignore_result": True}},
    "shadow": {"options": {"shadow": "another name"}},
    "no retry": {"options": {"retry": False}},
}
#: Sent the same, but Celery's own way.
NOT_FAST: dict[str, dict[str, Any]] = {
    "a date": {"options": {"expires": NOON + timedelta(hours=1)}},
    "expired": {"options": {"expires": -5}},
    "countdown": {"options": {"countdown": 10}},
    "eta": {"options": {"eta": NOON + timedelta(hours=1)}},
    "retry policy": {"options": {"retry_policy": {"max_retries": 1}}},
    "reply to": {"options": {"reply_to": "somebody"}},
    "an own header like Celery's": {"options": {"headers": {"origin": "me"}}},
}
CONF: dict[str, dict[str, Any]] = {
    "defaults": {},
    "routes": {"task_routes": {"rem*": {"queue": "routed", "priority": 2}, "plain": "elsewhere"}},
    "serializer": {"task_serializer": "pickle", "task_compression": "zlib"},
    "publishing": {"task_publish_retry": False, "task_default_delivery_mode": 1},
    "topic": {"task_default_exchange_type": "topic", "task_default_routing_key": "a.b", "task_default_exchange": "x"},
    "priorities": {"task_default_priority": 5, "task_ignore_result": True},
    "local time": {"enable_utc": False},
}


@pytest.mark.parametrize("conf", CONF)
@pytest.mark.parametrize("task", ["remote", "plain", "rich"])
def test_messages_are_celerys_byte_for_byte(task: str, conf: str) -> None:
    """The first, which Celery builds, and those that follow."""
    celerys = sent_by(CelerysScheduler, task, MATRIX | NOT_FAST, **CONF[conf])
    assert sent_by(ReplicatedScheduler, task, MATRIX | NOT_FAST, **CONF[conf]) == celerys


def kind_of(entry: ScheduleEntry, app: Any, scheduler: Any = None, producer: Any = None) -> Any:
    scheduler = scheduler or ReplicatedScheduler(app=app, lazy=True)
    return Templates(app).key(scheduler, entry, producer or scheduler.producer)


@pytest.mark.parametrize("name", MATRIX)
@pytest.mark.parametrize("task", ["remote", "plain", "rich"])
def test_ordinary_entries_take_the_fast_path(task: str, name: str) -> None:
    """And the sameness of their messages is no accident of going Celery's way."""
    app, _ = app_on_a_wire()
    assert kind_of(entry_of(app, task, **MATRIX[name]), app) is not None


@pytest.mark.parametrize("name", NOT_FAST)
def test_options_whose_message_changes_go_celerys_way(name: str) -> None:
    """Dates, and values that may be changed in place."""
    app, _ = app_on_a_wire()
    assert kind_of(entry_of(app, **NOT_FAST[name]), app) is None


def patched(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


@pytest.mark.parametrize(
    "change",
    [
        lambda app, patch: patch.setattr(type(app), "send_task", patched(type(app).send_task)),
        lambda app, patch: patch.setattr(app, "send_task", MagicMock()),
        lambda app, patch: patch.setattr(app.Task, "apply_async", patched(app.Task.apply_async)),
        lambda app, patch: patch.setattr(app.tasks["plain"], "apply_async", MagicMock(), raising=False),
        lambda app, patch: patch.setattr(type(app.tasks["plain"]), "shadow_name", lambda *args: "other"),
        lambda app, patch: patch.setattr(app.amqp, "send_task_message", MagicMock()),
        lambda app, patch: patch.setattr(app.amqp, "create_task_message", app.amqp.as_task_v1),
        lambda app, patch: app.conf.update(task_routes=(lambda *args, **kwargs: {"queue": "any"},)),
        lambda app, patch: patch.setattr(kombu.Producer, "publish", patched(kombu.Producer.publish)),
        lambda app, patch: patch.setattr(type(app), "current_worker_task", app.tasks["plain"]),
        lambda app, patch: app.conf.update(task_always_eager=True),
        lambda app, patch: app.conf.update(task_send_sent_event=True),
        lambda app, patch: patch.setattr(
            CelerysScheduler, "apply_async", patched(CelerysScheduler.apply_async)
        ),
    ],
    ids=[
        "Celery.send_task", "app.send_task", "Task.apply_async", "task.apply_async", "shadow_name", "send_task_message",
        "protocol 1", "a router", "Producer.publish", "inside a task", "eager", "sent events", "Scheduler.apply_async",
    ],
)  # fmt: skip
def test_what_is_overridden_or_patched_is_not_passed_by(
    change: Callable[[Any, pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By users, by Sentry and the like, at any time: also when a template is there already."""
    app, _ = app_on_a_wire()
    entry = entry_of(app, "plain")
    assert kind_of(entry, app) is not None
    change(app, monkeypatch)
    assert kind_of(entry, app) is None


@pytest.mark.parametrize(
    "patch",
    [
        lambda app, patch: patch.setattr(app, "send_task", MagicMock()),
        lambda app, patch: patch.setattr(app.tasks["plain"], "apply_async", MagicMock(), raising=False),
    ],
    ids=["app.send_task", "task.apply_async"],
)
@pytest.mark.parametrize("ends", ["ends", "is cut off"])
def test_what_is_patched_during_a_turn_is_noticed_in_the_next(
    patch: Callable[[Any, pytest.MonkeyPatch], None], ends: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked once in a turn, however the turn ends; outside of turns, each time."""
    app, _ = app_on_a_wire()
    scheduler, entry = ReplicatedScheduler(app=app, lazy=True), entry_of(app, "plain")
    engine = scheduler.neli_engine
    fast = engine.sender.templates

    def first() -> float:
        assert fast.key(scheduler, entry, scheduler.producer) is not None
        patch(app, monkeypatch)
        assert fast.key(scheduler, entry, scheduler.producer) is not None, "asked before, in this turn"
        if ends == "is cut off":
            raise SystemExit
        return 1.0

    def second() -> float:
        assert fast.key(scheduler, entry, scheduler.producer) is None
        monkeypatch.undo()
        return 1.0

    def third() -> float:
        assert fast.key(scheduler, entry, scheduler.producer) is not None
        return 1.0

    with contextlib.suppress(SystemExit):
        engine.turn(first)
    assert fast.key(scheduler, entry, scheduler.producer) is None
    engine.turn(second)
    engine.turn(third)


def test_another_task_and_another_producer_are_asked_about_within_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found of one says nothing of the next."""
    app, _ = app_on_a_wire()
    scheduler, fast = ReplicatedScheduler(app=app, lazy=True), Templates(app)
    monkeypatch.setattr(app.tasks["plain"], "apply_async", MagicMock(), raising=False)
    own = app.amqp.Producer(app.connection_for_write(), auto_declare=False)
    own.publish = MagicMock()
    fast.answers = {}
    assert fast.key(scheduler, entry_of(app, "strict"), scheduler.producer) is not None
    assert fast.key(scheduler, entry_of(app, "plain"), scheduler.producer) is None
    assert fast.key(scheduler, entry_of(app, "strict"), own) is None
    assert fast.key(scheduler, entry_of(app, "strict"), scheduler.producer) is not None


@pytest.mark.parametrize(
    "signal", [signals.before_task_publish, signals.after_task_publish, signals.task_sent], ids=lambda each: each.name
)
def test_receivers_of_publishing_signals_count_within_a_turn(signal: Any) -> None:
    """A turn may last, and what comes and goes may be a debugger."""
    app, _ = app_on_a_wire()
    scheduler, fast, entry = ReplicatedScheduler(app=app, lazy=True), Templates(app), entry_of(app, "plain")

    def receiver(**kwargs: Any) -> None: ...

    fast.answers = {}
    assert fast.key(scheduler, entry, scheduler.producer) is not None
    signal.connect(receiver, weak=False, dispatch_uid="seen")
    try:
        assert fast.key(scheduler, entry, scheduler.producer) is None
    finally:
        signal.disconnect(dispatch_uid="seen")
    assert fast.key(scheduler, entry, scheduler.producer) is not None


@pytest.mark.parametrize(
    "signal", [signals.before_task_publish, signals.after_task_publish, signals.task_sent], ids=lambda each: each.name
)
def test_receivers_of_publishing_signals_get_every_message(signal: Any) -> None:
    """They may change it."""
    app, out = app_on_a_wire()
    scheduler = ReplicatedScheduler(app=app, lazy=True)
    seen: list[Any] = []

    def receiver(sender: Any, **kwargs: Any) -> None:
        seen.append(sender)

    scheduler.apply_async(entry_of(app), producer=scheduler.producer, advance=False)
    signal.connect(receiver)
    try:
        for _ in range(2):
            scheduler.apply_async(entry_of(app), producer=scheduler.producer, advance=False)
    finally:
        signal.disconnect(receiver)
    assert seen == ["remote", "remote"]
    assert len(messages(out)) == 3


def test_an_overridden_send_task_of_the_scheduler_gets_every_message() -> None:
    """Celery's documented seam."""

    class Own(ReplicatedScheduler):
        sent = 0

        def send_task(self, *args: Any, **kwargs: Any) -> Any:
            self.sent += 1
            return super().send_task(*args, **kwargs)

    app, _ = app_on_a_wire()
    scheduler = Own(app=app, lazy=True)
    for _ in range(3):
        scheduler.apply_async(entry_of(app), producer=scheduler.producer, advance=False)
    assert scheduler.sent == 3


def test_headers_that_change_between_messages_are_sent_as_they_are_then() -> None:
    """Sentry writes new ones into the entry each time."""
    app, out = app_on_a_wire()
    scheduler = ReplicatedScheduler(app=app, lazy=True)
    entry = entry_of(app)
    for trace in ("a", "b", "c"):
        entry.options["headers"] = {"trace": trace}
        scheduler.apply_async(entry, producer=scheduler.producer, advance=False)
    assert [each[0]["headers"]["trace"] for each in messages(out)] == ["a", "b", "c"]


def test_options_and_arguments_that_are_changed_in_place_count() -> None:
    """Nobody has to tell."""
    app, out = app_on_a_wire()
    scheduler = ReplicatedScheduler(app=app, lazy=True)
    entry = entry_of(app, kwargs={"n": 1}, options={"priority": 1})
    for n in (1, 2, True):
        entry.kwargs["n"] = entry.options["priority"] = n
        scheduler.apply_async(entry, producer=scheduler.producer, advance=False)
    sent = [each[0] for each in messages(out)]
    assert [message["headers"]["kwargsrepr"] for message in sent] == ["{'n': 1}", "{'n': 2}", "{'n': True}"]
    assert [repr(message["properties"]["priority"]) for message in sent] == ["1", "2", "True"]


def test_expiry_counts_from_each_message() -> None:
    """Not from the first one."""
    app, out = app_on_a_wire()
    scheduler = ReplicatedScheduler(app=app, lazy=True)
    for minute in range(3):
        app.now = lambda minute=minute: NOON + timedelta(minutes=minute)
        scheduler.apply_async(entry_of(app, options={"expires": 30}), producer=scheduler.producer, advance=False)
    told = [datetime.fromisoformat(each[0]["headers"]["expires"]) for each in messages(out)]
    assert told == [NOON + timedelta(minutes=minute, seconds=30) for minute in range(3)]


def test_changed_routes_count() -> None:
    """For the next message."""
    app, out = app_on_a_wire()
    scheduler = ReplicatedScheduler(app=app, lazy=True)
    for queue in ("one", "two"):
        app.conf.update(task_routes={"remote": queue})
        for _ in range(2):
            scheduler.apply_async(entry_of(app), producer=scheduler.producer, advance=False)
    assert [each[2] for each in messages(out)] == ["one", "one", "two", "two"]


def test_arguments_that_the_task_does_not_take_are_refused_each_time() -> None:
    """As `Task.apply_async` does."""
    app, out = app_on_a_wire()
    scheduler = ReplicatedScheduler(app=app, lazy=True)
    scheduler.apply_async(entry_of(app, "strict", args=(1,)), producer=scheduler.producer, advance=False)
    for _ in range(2):
        with pytest.raises(SchedulingError, match=r"Couldn't apply scheduled task e: .*one"):
            scheduler.apply_async(entry_of(app, "strict"), producer=scheduler.producer, advance=False)
    assert len(messages(out)) == 1


def test_a_given_id_is_the_id() -> None:
    """In the options, as with Celery."""
    app, out = app_on_a_wire()
    scheduler = ReplicatedScheduler(app=app, lazy=True)
    for task_id in ("x", "y", "y"):
        result = scheduler.apply_async(
            entry_of(app, options={"task_id": task_id}), producer=scheduler.producer, advance=False
        )
        assert result.id == task_id
    sent = [each[0] for each in messages(out)]
    assert [message["headers"]["id"] for message in sent] == ["x", "y", "y"]
    assert [message["headers"]["root_id"] for message in sent] == ["x", "y", "y"]
    assert [message["properties"]["correlation_id"] for message in sent] == ["x", "y", "y"]


def test_the_result_backend_is_told_of_every_message() -> None:
    """Some subscribe to the result."""
    app, _ = app_on_a_wire()
    told: list[str] = []
    app.backend.on_task_call = lambda producer, task_id: told.append(task_id)
    scheduler = ReplicatedScheduler(app=app, lazy=True)
    ids = [scheduler.apply_async(entry_of(app), producer=scheduler.producer, advance=False).id for _ in range(3)]
    scheduler.apply_async(entry_of(app, "rich"), producer=scheduler.producer, advance=False)  # ignores its result
    assert told == ids


def through(app: Any, scheduler: Any, fast: Templates, producer: Any, entry: ScheduleEntry) -> Any:
    """Send as a publisher does: the kind is known to the coordinator, the template to all."""
    kind = fast.key(scheduler, entry, scheduler.producer)
    template = fast.get(kind)
    if template is not None:
        return fast.send(template, entry, producer)
    with fast.recording(kind, producer) as recorder:
        return CelerysScheduler.apply_async(scheduler, entry, producer=recorder, advance=False)


def test_templates_serve_any_thread_with_a_producer_of_its_own() -> None:
    """Its messages are those that Celery sends there: with the thread's own address for replies, and declared there."""
    app, out = app_on_a_wire()
    scheduler, fast = ReplicatedScheduler(app=app, lazy=True), Templates(app)
    through(app, scheduler, fast, scheduler.producer, entry_of(app))

    def on_a_thread(send: Callable[[Any], Any]) -> list[Any]:
        seen: list[Any] = []

        def run() -> None:
            producer = app.amqp.Producer(app.connection_for_write(), auto_declare=False)
            out.clear()
            ids = [send(producer).id for _ in range(2)]
            told = b" ".join(out).replace(app.thread_oid.encode(), b"OID")
            for task_id in ids:
                told = told.replace(task_id.encode(), b"ID")
            seen.append(told)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        return seen

    celerys = on_a_thread(
        lambda producer: CelerysScheduler.apply_async(scheduler, entry_of(app), producer=producer, advance=False)
    )
    assert b"declare q" in celerys[0]
    assert b"OID" in celerys[0]
    assert on_a_thread(lambda producer: through(app, scheduler, fast, producer, entry_of(app))) == celerys


def test_many_threads_learn_and_send_at_once() -> None:
    """Each message is its own."""
    app, out = app_on_a_wire()
    scheduler, fast = ReplicatedScheduler(app=app, lazy=True), Templates(app)
    ready = threading.Barrier(4)

    def run(thread: int) -> None:
        producer = app.amqp.Producer(app.connection_for_write(), auto_declare=False)
        ready.wait()
        for n in range(50):
            entry = entry_of(app, args=(thread, n), options={"queue": f"q{n % 3}", "task_id": f"{thread}-{n}"})
            through(app, scheduler, fast, producer, entry)

    assert scheduler.producer is not None
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(run, range(4)))
    sent = {message["headers"]["id"]: (message["headers"]["argsrepr"], key) for message, _, key, _ in messages(out)}
    assert sent == {f"{t}-{n}": (f"[{t}, {n}]", f"q{n % 3}") for t in range(4) for n in range(50)}


class Flaky(Wire):
    """Loses its connection whenever it is told to."""

    lose = False

    def basic_publish(self, message: Any, exchange: Any, routing_key: Any, **kwargs: Any) -> None:
        if type(self).lose:
            type(self).lose = False
            raise ConnectionResetError("lost")
        super().basic_publish(message, exchange, routing_key, **kwargs)


@pytest.mark.parametrize("cls", [CelerysScheduler, ReplicatedScheduler])
def test_a_connection_that_is_lost_in_mid_publish_is_made_anew_and_the_queue_declared_there(cls: type[Any]) -> None:
    """The publish is retried, as Celery's is."""
    app, _ = app_on_a_wire()
    wire = type("FlakyWire", (Flaky,), {"out": []})
    transport = type("OnAWire", (Transport,), {"Channel": wire, "connection_errors": (ConnectionResetError,)})
    app.connection_for_write = functools.partial(Celery.connection_for_write, app, transport=transport)
    scheduler = cls(app=app, lazy=True)
    for _ in range(2):
        scheduler.apply_async(entry_of(app), producer=scheduler.producer, advance=False)
    wire.out.clear()
    wire.lose = True
    scheduler.apply_async(entry_of(app), producer=scheduler.producer, advance=False)
    assert wire.out[0][:9] == b"declare q"
    assert len(messages(wire.out)) == 1


@pytest.mark.parametrize("first", [False, True], ids=["from the start", "marked later"])
def test_a_leader_only_task_chooses_its_queue_itself(*, first: bool) -> None:
    """Its class overrides `apply_async`: every message goes through there."""

    class Led(ReplicatedScheduler):
        neli_make_ledger = staticmethod(lambda **_: SlotLedger())

    app, out = app_on_a_wire(neli_group="g")
    scheduler = Led(app=app, lazy=True)
    entry = entry_of(app, "plain")
    if first:
        scheduler.apply_async(entry, producer=scheduler.producer, advance=False)
        out.clear()
    leader_only(app.tasks["plain"])
    assert kind_of(entry, app, scheduler) is None
    for _ in range(2):
        scheduler.apply_async(entry, producer=scheduler.producer, advance=False)
    assert [routing_key for _, _, routing_key, _ in messages(out)] == ["g.leader.leader"] * 2


def test_a_class_of_tasks_that_overrides_apply_async_gets_every_message() -> None:
    """As users write them, with `base=`."""
    app, _ = app_on_a_wire()
    asked: list[Any] = []

    class Own(app.Task):  # type: ignore[name-defined,misc]
        def apply_async(self, *args: Any, **kwargs: Any) -> Any:
            asked.append(args)
            return super().apply_async(*args, **kwargs)

    @app.task(name="own", base=Own, shared=False)
    def own() -> None: ...

    scheduler = ReplicatedScheduler(app=app, lazy=True)
    for _ in range(3):
        scheduler.apply_async(entry_of(app, "own"), producer=scheduler.producer, advance=False)
    assert len(asked) == 3


def test_lazy_arguments_are_evaluated_for_each_message() -> None:
    """Not once for the template."""
    app, out = app_on_a_wire()
    scheduler = ReplicatedScheduler(app=app, lazy=True)
    count = iter(range(100))
    entry = entry_of(app, args=(BeatLazyFunc(lambda: next(count)),))
    for _ in range(3):
        scheduler.apply_async(entry, producer=scheduler.producer, advance=False)
    assert [message["headers"]["argsrepr"] for message, *_ in messages(out)] == ["[0]", "[1]", "[2]"]


def test_an_eta_counts_from_each_message() -> None:
    """It is in seconds from now."""
    app, out = app_on_a_wire()
    scheduler = ReplicatedScheduler(app=app, lazy=True)
    for minute in range(3):
        app.now = lambda minute=minute: NOON + timedelta(minutes=minute)
        scheduler.apply_async(entry_of(app, options={"countdown": 10}), producer=scheduler.producer, advance=False)
    told = [datetime.fromisoformat(message["headers"]["eta"]) for message, *_ in messages(out)]
    assert told == [NOON + timedelta(minutes=minute, seconds=10) for minute in range(3)]


def test_apply_entry_is_called_for_every_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sentry and others patch it, on the class, at any time."""
    app, out = app_on_a_wire()
    scheduler = ReplicatedScheduler(app=app, lazy=True)
    applied: list[str] = []
    original = CelerysScheduler.apply_entry

    def apply_entry(self: Any, entry: Any, *args: Any, **kwargs: Any) -> Any:
        applied.append(entry.name)
        entry.options["headers"] = {"trace": len(applied)}
        return original(self, entry, *args, **kwargs)

    monkeypatch.setattr(CelerysScheduler, "apply_entry", apply_entry)
    for name in ("one", "two", "three"):
        scheduler.add(name=name, task="remote", schedule=timedelta(seconds=60), last_run_at=NOON - timedelta(hours=1))
    for _ in range(4):
        scheduler.tick()
    assert sorted(applied) == ["one", "three", "two"]
    assert [message["headers"]["trace"] for message, *_ in messages(out)] == [1, 2, 3]
