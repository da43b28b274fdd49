"""Messages that no sane publisher sends: each costs itself at most, on the leader and on a standby."""

from __future__ import annotations

import base64
import itertools
import json
import logging
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from celery.worker import state
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from celery_neli import leader_only
from tests.unit.workers import Worker


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    yield
    state.reset_state()


def wire(**parts: Any) -> dict[str, Any]:
    """A message of the task `work` as it is on the wire of kombu's brokers without AMQP."""
    body = parts.pop("body", b"[[1], {}, {}]")
    headers = {"lang": "py", "task": "work", "id": "odd", **parts.pop("headers", {})}
    message = {
        "body": body if body is None else base64.b64encode(body).decode(),
        "headers": {key: value for key, value in headers.items() if value is not LEFT_OUT},
        "content-type": parts.pop("content_type", "application/json"),
        "content-encoding": parts.pop("content_encoding", "utf-8"),
        "properties": {"body_encoding": "base64", **parts.pop("properties", {})},
    }
    assert not parts
    return message


LEFT_OUT = object()
_number = itertools.count()
V1 = {"lang": LEFT_OUT, "task": LEFT_OUT, "id": LEFT_OUT}


def v1(**fields: Any) -> dict[str, Any]:
    """The same by protocol 1: all is in the body."""
    fields = {"task": "work", "id": "odd", "args": [1], "kwargs": {}, **fields}
    body = {key: value for key, value in fields.items() if value is not LEFT_OUT}
    return wire(headers=V1, body=json.dumps(body).encode())


RUNS, REFUSED = "runs", "refused"

#: What is odd about a message, and what Celery does with such a one: the fate of its ordinary twin. Those that end a
#: worker of Celery's, or make it reconnect for ever, are to be refused.
MESSAGES: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": (wire(), RUNS),
    # properties
    "an expiration that is no number": (wire(properties={"expiration": "abc"}), RUNS),
    "an expiration that is negative": (wire(properties={"expiration": "-1"}), RUNS),
    "an expiration that is a list": (wire(properties={"expiration": [1]}), RUNS),
    "a priority that is no number": (wire(properties={"priority": "high"}), RUNS),
    "a priority without an end": (wire(properties={"priority": float("inf")}), RUNS),
    "a priority of a thousand": (wire(properties={"priority": 1000}), RUNS),
    "a delivery mode that does not exist": (wire(properties={"delivery_mode": "perhaps"}), RUNS),
    "a delivery mode that is a mapping": (wire(properties={"delivery_mode": {}}), RUNS),
    "a correlation id that is a number": (wire(properties={"correlation_id": 5}), RUNS),
    "a correlation id of 100 KB": (wire(properties={"correlation_id": "x" * 100_000}), RUNS),
    "a reply_to that is a mapping": (wire(properties={"reply_to": {"a": 1}}), RUNS),
    "a timestamp that is text": (wire(properties={"timestamp": "yesterday"}), RUNS),
    # headers
    "no id": (wire(headers={"id": LEFT_OUT}), REFUSED),
    "an id that is null": (wire(headers={"id": None}), RUNS),
    "an id that is a number": (wire(headers={"id": 5}), RUNS),
    "an id of 100 KB": (wire(headers={"id": "x" * 100_000}), RUNS),
    "an id that is a list": (wire(headers={"id": ["a"]}), REFUSED),
    "an id that is a mapping": (wire(headers={"id": {"a": 1}}), REFUSED),
    "a language that is not text": (wire(headers={"lang": 5}), RUNS),
    "an ETA that is no time": (wire(headers={"eta": "soon"}), REFUSED),
    "an ETA that is a number": (wire(headers={"eta": 5}), REFUSED),
    "an ETA before the calendar": (wire(headers={"eta": "0001-01-01T00:00:00+14:00"}), REFUSED),
    "an expiry that is no time": (wire(headers={"expires": "soon"}), REFUSED),
    "an expiry that is a list": (wire(headers={"expires": [1]}), REFUSED),
    "an expiry after the calendar": (wire(headers={"expires": "9999-12-31T23:59:59-14:00"}), RUNS),
    "a time limit that is text": (wire(headers={"timelimit": "ab"}), REFUSED),
    "a time limit of three": (wire(headers={"timelimit": [1, 2, 3]}), REFUSED),
    "a time limit that is a number": (wire(headers={"timelimit": 5}), REFUSED),
    "time limits that are texts": (wire(headers={"timelimit": ["1", "2"]}), REFUSED),
    "a time limit that is no number": (wire(headers={"timelimit": [float("nan"), None]}), REFUSED),
    "retries that are text": (wire(headers={"retries": "many"}), RUNS),
    "a root id that is a list": (wire(headers={"root_id": [1]}), RUNS),
    "a shadow name that is a number": (wire(headers={"shadow": 5}), RUNS),
    "a shadow name that is a list": (wire(headers={"shadow": [5]}), REFUSED),
    "stamps that are a number": (wire(headers={"stamped_headers": 5}), REFUSED),
    "stamps that cannot be looked up": (wire(headers={"stamped_headers": [["a"]]}), REFUSED),
    "an argsrepr that is a list": (wire(headers={"argsrepr": [1], "kwargsrepr": 5}), RUNS),
    "an origin that is a mapping": (wire(headers={"origin": {}}), RUNS),
    "headers of ours that are odd": (wire(headers={"neli_beat_term": [], "neli_beat_slot": 5}), RUNS),
    "a count of deliveries that is text": (wire(headers={"x-delivery-count": "many"}), RUNS),
    "a count of deliveries without an end": (wire(headers={"x-delivery-count": float("inf")}), RUNS),
    "a header 200 deep": (wire(headers={"mine": json.loads("[" * 200 + "]" * 200)}), RUNS),
    # bodies
    "a body that is no JSON": (wire(body=b"{"), REFUSED),
    "no body": (wire(body=None), REFUSED),
    "an empty body": (wire(body=b""), REFUSED),
    "a body that is a number": (wire(body=b"5"), REFUSED),
    "a body that is null": (wire(body=b"null"), REFUSED),
    "a body that is text": (wire(body=b'"args"'), REFUSED),
    "a body of two parts": (wire(body=b"[[], {}]"), REFUSED),
    "a body of four parts": (wire(body=b"[[], {}, {}, {}]"), REFUSED),
    "a mapping without arguments": (wire(body=b"{}"), REFUSED),
    "arguments that are a number": (wire(body=b"[5, 5, {}]"), RUNS),
    "links that are a number": (wire(body=b"[[1], {}, 5]"), RUNS),
    "a body too deep": (wire(body=b"[" * 100_000 + b"]" * 100_000), REFUSED),
    "a content type that is not accepted": (wire(content_type="application/x-python-serialize"), REFUSED),
    "a content type that does not exist": (wire(content_type="what/ever"), REFUSED),
    "a content type that is a number": (wire(content_type=5), REFUSED),
    "no content type": (wire(content_type=None), REFUSED),
    "an encoding that does not exist": (wire(content_encoding="what-ever"), RUNS),
    "no encoding": (wire(content_encoding=None), RUNS),
    "an encoding that is a number": (wire(content_encoding=5), REFUSED),
    "bytes that are no text": (wire(body=b"\xff\xfe"), REFUSED),
    "a compression that does not exist": (wire(headers={"compression": "what/ever"}), REFUSED),
    "compressed rubbish": (wire(headers={"compression": "application/x-gzip"}), REFUSED),
    "a compression that is a list": (wire(headers={"compression": [1]}), REFUSED),
    "a compressed body": (
        wire(headers={"compression": "application/x-gzip"}, body=zlib.compress(b"[[1], {}, {}]")),
        RUNS,
    ),
    # protocol 1, and what Celery calls a hybrid
    "protocol 1": (v1(), RUNS),
    "protocol 1 without an id": (v1(id=LEFT_OUT), RUNS),
    "protocol 1 with an id that is a list": (v1(id=[1]), REFUSED),
    "protocol 1 with keywords that are a list": (v1(kwargs=[1]), REFUSED),
    "protocol 1 with an ETA that is no time": (v1(eta="soon"), REFUSED),
    "a hybrid": (wire(body=b'{"args": [1], "kwargs": {}}'), RUNS),
    "a hybrid with keywords that are a number": (wire(body=b'{"args": [1], "kwargs": 5}'), REFUSED),
}  # fmt: skip

GOOD = [wire(headers={"id": f"good{n}"}) for n in range(2)]


class Bench:
    """A worker with the leader-only task `work`, on which messages are put down as they are on the wire."""

    def __init__(self, *, leads: bool, on_standby: str = "forward", **conf: Any) -> None:
        self.worker = Worker(slots=1000, **conf)

        @self.worker.app.task(name="work", shared=False, ignore_result=True)
        @leader_only(on_standby=on_standby)
        def work(number: int = 0) -> None:
            """Does nothing."""

        if leads:
            self.worker.lease.lead()
        self.worker.connect()

    def put(self, message: dict[str, Any], queue: str | None = None) -> None:
        """As another publisher would: through JSON."""
        queue = self.worker.ordinary if queue is None else queue
        channel = self.worker.consumer.connection.default_channel
        copy = json.loads(json.dumps(message))
        info = {"exchange": "", "routing_key": queue}
        copy["properties"] = {"delivery_info": info, "delivery_tag": f"tag{next(_number)}", **copy["properties"]}
        channel._put(queue, copy)  # noqa: SLF001 - whatever it is

    def ran(self) -> list[Any]:
        """The ids of what was handed to the pool."""
        return [job.id for job in self.worker.pool.jobs]

    def succeed(self) -> None:
        for job in self.worker.pool.jobs:
            job.accept()
            job.succeed()
        self.worker.turn()

    def forwarded(self) -> list[dict[str, Any]]:
        """What is in the role's queue, as it is on the wire."""
        channel = self.worker.consumer.connection.default_channel
        found = []
        while self.worker.size(self.worker.queue()):
            found.append(channel._get(self.worker.queue()))  # noqa: SLF001
        return found


def receive_between_neighbours(bench: Bench, message: dict[str, Any], queue: str | None = None) -> None:
    bench.put(GOOD[0], queue)
    bench.put(message, queue)
    bench.put(GOOD[1], queue)
    bench.worker.receive()


@pytest.mark.parametrize("odd", MESSAGES)
def test_a_leader_runs_or_refuses_an_odd_message_and_takes_the_next(odd: str, caplog: pytest.LogCaptureFixture) -> None:
    """As a worker of Celery's does; and what would end that one, or have it reconnect, is refused, with one line."""
    message, fate = MESSAGES[odd]
    bench = Bench(leads=True)
    receive_between_neighbours(bench, message, bench.worker.queue())
    ran = bench.ran()
    assert ran[0] == "good0"
    assert ran[-1] == "good1"
    assert len(ran) == (3 if fate == RUNS else 2)
    told = [each for each in caplog.records if each.levelno >= logging.ERROR]
    assert len(told) == (0 if fate == RUNS else 1)
    bench.succeed()
    assert bench.worker.unacked() == 0
    assert not bench.worker.in_flight.runs("leader")
    assert bench.worker.controller.semaphore.value == 1000 - len(ran)


@pytest.mark.parametrize("odd", MESSAGES)
def test_a_standby_hands_an_odd_message_on_and_takes_the_next(odd: str) -> None:
    """As it is, so that the leader does with it what it would have done; unless Celery itself cannot read it at all."""
    message, fate = MESSAGES[odd]
    bench = Bench(leads=False)
    receive_between_neighbours(bench, message)
    forwarded = bench.forwarded()
    ids = [each["headers"].get("id", "odd") for each in forwarded]
    assert (ids[0], ids[-1]) == ("good0", "good1")
    assert bench.worker.unacked() == 0
    assert bench.ran() == []
    leader = Bench(leads=True)
    for each in forwarded:
        leader.put(each, leader.worker.queue())
    leader.worker.receive()
    assert len(leader.ran()) == (3 if fate == RUNS else 2)
    leader.succeed()
    assert leader.worker.unacked() == 0


@pytest.mark.parametrize("on_standby", ["skip", "fail"])
@pytest.mark.parametrize("odd", MESSAGES)
def test_a_standby_that_does_not_forward_refuses_an_odd_message_and_takes_the_next(odd: str, on_standby: str) -> None:
    """It drops it, or fails it, or refuses it: in no case does it stop there."""
    bench = Bench(leads=False, on_standby=on_standby)
    receive_between_neighbours(bench, MESSAGES[odd][0])
    assert bench.forwarded() == []
    expected = [] if on_standby == "skip" else ["good0", "good1"]
    assert [each for each in bench.ran() if str(each).startswith("good")] == expected
    bench.succeed()
    assert bench.worker.unacked() == 0


@pytest.mark.parametrize("odd", MESSAGES)
def test_a_standby_gives_back_an_odd_message_that_came_by_the_roles_queue(odd: str) -> None:
    """It was delivered before the lease was lost: the next leader gets it."""
    bench = Bench(leads=True)
    bench.worker.lease.lose()
    receive_between_neighbours(bench, MESSAGES[odd][0], bench.worker.queue())
    assert bench.ran() == []
    assert bench.worker.unacked() == 0
    ids = [each["headers"].get("id") for each in bench.forwarded()]
    assert [each for each in ids if str(each).startswith("good")] in (["good0", "good1"], ["good1", "good0"])


@pytest.mark.parametrize("awaited", ['[[1], {}, {"chord": 5}]', '[[1], {}, {"chord": {}}]', "[[1], {}, 5]"])
@pytest.mark.parametrize("odd_id", [5, None, "x" * 100_000], ids=["a number", "null", "100 KB"])
def test_a_result_that_cannot_be_stored_costs_one_line(
    awaited: str, odd_id: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A caller awaits a run that a standby was to skip, and what would tell him is broken."""
    bench = Bench(leads=False, on_standby="skip", result_backend="cache+memory://")
    odd = wire(headers={"id": odd_id, "ignore_result": False}, body=awaited.encode())
    receive_between_neighbours(bench, odd)
    bench.succeed()
    assert bench.worker.unacked() == 0
    assert len([each for each in caplog.records if each.levelno >= logging.ERROR]) <= 1


@pytest.mark.parametrize("eta", [None, "2000-01-01T00:00:00+00:00"])
def test_what_the_pool_cannot_take_is_refused(eta: str | None, caplog: pytest.LogCaptureFixture) -> None:
    """A timer may hand it over, and nothing would catch the error there."""
    bench = Bench(leads=True)
    take = bench.worker.pool.apply_async

    def apply_async(*args: Any, correlation_id: Any, **kwargs: Any) -> Any:
        if correlation_id == "odd":
            raise RecursionError("maximum recursion depth exceeded while pickling an object")
        return take(*args, correlation_id=correlation_id, **kwargs)

    bench.worker.pool.apply_async = apply_async  # type: ignore[method-assign]
    bench.worker.connect()
    receive_between_neighbours(bench, wire(headers={"eta": eta}), bench.worker.queue())
    bench.worker.tick(1)
    assert bench.ran() == ["good0", "good1"]
    bench.succeed()
    assert bench.worker.unacked() == 0
    assert bench.worker.controller.semaphore.value == 998
    assert "message rejected task=work id=odd" in caplog.text


# -- whatever may come --

texts = st.text(max_size=8) | st.sampled_from(["abc", "", "1", "-1", "2026-01-01T00:00:00", "\ud800", "\n", "\x1b[2J"])
numbers = st.integers() | st.floats() | st.booleans() | st.none()
values: st.SearchStrategy[Any] = st.recursive(
    texts | numbers, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)
HEADERS = (
    "lang", "id", "shadow", "eta", "expires", "group", "group_index", "retries", "timelimit", "root_id", "parent_id",
    "argsrepr", "kwargsrepr", "origin", "ignore_result", "replaced_task_nesting", "stamped_headers", "stamps",
    "compression", "meth", "neli_beat_term", "neli_beat_slot", "neli_beat_entry", "x-death", "x-delivery-count",
    "celery_beat_task", "mine",
)  # fmt: skip
PROPERTIES = (
    "priority", "correlation_id", "reply_to", "delivery_mode", "expiration", "message_id", "timestamp", "type",
    "app_id", "user_id", "cluster_id",
)  # fmt: skip
FIELDS = ("id", "args", "kwargs", "eta", "expires", "chord", "retries", "timelimit", "utc", "callbacks", "group")
bodies = st.one_of(
    st.binary(max_size=20),
    values.map(lambda value: json.dumps(value).encode()),
    st.tuples(values, values, values).map(lambda value: json.dumps(value).encode()),
    st.dictionaries(st.sampled_from(FIELDS), values).map(lambda value: json.dumps(value).encode()),
)
properties = st.dictionaries(st.sampled_from(PROPERTIES), values, max_size=4)
messages = st.one_of(
    st.builds(
        wire,
        headers=st.dictionaries(st.sampled_from(HEADERS), values, max_size=6),
        properties=properties,
        body=st.just(b"[[1], {}, {}]") | bodies,
        content_type=st.just("application/json") | st.just("application/json") | values,
        content_encoding=st.just("utf-8") | values,
    ),
    st.builds(
        lambda fields, properties: {**v1(**fields), "properties": {"body_encoding": "base64", **properties}},
        fields=st.dictionaries(st.sampled_from(FIELDS), values, max_size=6),
        properties=properties,
    ),
)
fuzzed = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(odd=st.lists(messages, min_size=1, max_size=3))
@fuzzed
@pytest.mark.parametrize("on_standby", ["forward", "skip", "fail"])
@pytest.mark.parametrize("leads", [True, False], ids=["leader", "standby"])
def test_whatever_comes_a_worker_goes_on(leads: bool, on_standby: str, odd: list[dict[str, Any]]) -> None:
    """Nothing that a message holds reaches the consumer as an error, and no neighbour is lost."""
    state.reset_state()
    bench = Bench(leads=leads, on_standby=on_standby)
    queue = bench.worker.queue() if leads else bench.worker.ordinary
    bench.put(GOOD[0], queue)
    for message in odd:
        bench.put(message, queue)
    bench.put(GOOD[1], queue)
    bench.worker.receive()
    forwarded = [each["headers"].get("id") for each in bench.forwarded()]
    seen = [each for each in bench.ran() + forwarded if each in ("good0", "good1")]
    assert seen == ([] if on_standby == "skip" and not leads else ["good0", "good1"])
    bench.worker.tick(0)
    bench.succeed()
    waiting = [each for each in bench.worker.timer.queue if not each.entry.canceled]
    assert bench.worker.unacked() == len(waiting)
