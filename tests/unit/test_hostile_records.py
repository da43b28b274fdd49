"""Records that were not foreseen, in every place that reads them: each costs itself, and nothing else."""

from __future__ import annotations

import contextlib
import json
import logging
import re
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from celery_neli import periodic
from celery_neli.beat.replicated.claims import Watermarks
from celery_neli.beat.replicated.standalone import ReplicatedScheduler
from celery_neli.beat.replicated.term import begin
from celery_neli.election.records import decode as decode_leader_record
from celery_neli.election.role_state import Payload
from celery_neli.exceptions import ConfigurationError, RecordError
from celery_neli.periodic.definition import define, entry_of
from celery_neli.periodic.view import entry_names, view_of
from celery_neli.schedule_topic.codec import (
    ENTRY,
    MEMBER,
    STATE,
    Change,
    Definition,
    Kind,
    Note,
    State,
    decode_definition,
    decode_note,
    decode_state,
    encode_definition,
    encode_note,
    encode_state,
    key_of,
    kind_of,
)
from celery_neli.schedule_topic.pending import PendingReads, fold
from tests.unit.beats import START, World
from tests.unit.schedulers import make_app
from tests.unit.schedules import NOON, Desk

DECODERS = {STATE: decode_state, ENTRY: decode_definition, MEMBER: decode_note}
APP = make_app(timezone="Europe/Berlin")
GOOD = Definition(task="t", schedule="PT1M", since=NOON)
FIELDS: dict[str, Any] = json.loads(encode_definition(GOOD))
DEEP = "[" * 900 + "]" * 900


def spelt(**changed: Any) -> bytes:
    """A definition's bytes with other values in some fields, as a stranger may write them."""
    return json.dumps({**FIELDS, **changed}).encode()


def marked(kind: Any, value: Any) -> dict[str, Any]:
    return {"__type__": kind, "__value__": value}


#: Definitions that no beat can run, each with the reason that its line gives.
HOSTILE: dict[str, tuple[bytes, str]] = {
    "a decimal that is none": (spelt(args=[marked("decimal", "x")]), "InvalidOperation"),
    "a decimal that is not finite": (spelt(args=[marked("decimal", "sNaN")]), "finite"),
    "bytes that are no text": (spelt(args=[marked("bytes", 5)]), "AttributeError"),
    "a list for a type": (spelt(args=[marked([], 5)]), "TypeError"),
    "a type that kombu does not know": (spelt(args=[marked("what", 5)]), "Unsupported"),
    "a UUID of nothing": (spelt(kwargs={"a": marked("uuid", {})}), "TypeError"),
    "a date that is none": (spelt(args=[marked("datetime", "2026-13-01")]), "month"),
    "a date before the year 1": (spelt(args=[marked("datetime", "0001-01-01T00:00:00+14:00")]), "years 1 to 9999"),
    "lists nested 900 deep": (spelt(args=[]).replace(b'"args": []', f'"args": {DEEP}'.encode()), "nested"),
    "lists nested 100,000 deep": (b'{"v":1,"args":' + b"[" * 100_000, "JSON"),
    "dicts nested in the options": (
        spelt(options={}).replace(b'"options": {}', b'"options": ' + b'{"headers":' * 100 + b"{}" + b"}" * 100),
        "nested",
    ),
    "a number without end": (spelt(args=[]).replace(b'"args": []', b'"args": [1e999]'), "finite"),
    "an integer without end": (spelt(args=[]).replace(b'"args": []', b'"args": [' + b"9" * 5000 + b"]"), "JSON"),
    "half of a surrogate pair": (spelt(args=["\ud800"]), "surrogate"),
    "half of a pair in a key": (spelt(kwargs={"\udfff": 1}), "surrogate"),
    "half of a pair in the task": (spelt(task="t\ud800"), "surrogate|string"),
    "a task of two lines": (spelt(task="a\nb"), "task"),
    "a task that is too long": (spelt(task="t" * 10_000), "task"),
    "a schedule that is none": (spelt(schedule="solar:x"), "schedule"),
    "a schedule of two lines": (spelt(schedule="a\nb"), "schedule"),
    "an interval of a million years": (spelt(schedule="P365000000D"), "hundred years"),
    "a definition of the year 99999": (spelt(since=3e12), "years 1 to 9999"),
    "a definition of the year -10": (spelt(since=-62167219201), "years 1 to 9999"),
    "an option that does not exist": (spelt(options={"quue": "q"}), "queue"),
    "an option that names the producer": (spelt(options={"producer": 1}), "producer"),
    "a queue that is a number": (spelt(options={"queue": 5}), "queue = 5"),
    "a countdown in words": (spelt(options={"countdown": "soon"}), "countdown = 'soon'"),
    "an expiry without end": (spelt(options={"expires": 1e300}), "expires"),
    "headers that are a list": (spelt(options={"headers": [1]}), "headers"),
    "a retry policy of words": (spelt(options={"retry_policy": {"max_retries": "x"}}), "retry_policy"),
    "an overlap policy that is none": (spelt(options={"neli_overlap": [5]}), "neli_overlap"),
    "a misfire policy that is none": (spelt(options={"neli_misfire": {}}), "neli_misfire"),
    "changes without dates": (spelt(changes=[{"at": 1e15, "by": "a", "what": "b"}]), "changes"),
    "changes by half of a pair": (spelt(changes=[{"at": 1, "by": "\ud800", "what": "b"}]), "changes"),
    "a newer release's": (spelt(v=2), "version"),
    "no JSON": (b"\xff\x00", "JSON"),
    "nothing": (b"", "JSON"),
    "a megabyte": (spelt(args=["x" * 1_000_000]), "longer"),
}


@pytest.fixture(params=sorted(HOSTILE))
def hostile(request: pytest.FixtureRequest) -> tuple[bytes, str]:
    return HOSTILE[request.param]


# -- a beat --


def test_a_bad_definition_stops_no_neighbour(hostile: tuple[bytes, str], caplog: pytest.LogCaptureFixture) -> None:
    """What stands before and behind it in one batch runs, on a leader, on a standby that takes over, and on a fresh
    beat; the leader stays in office.
    """
    caplog.set_level(logging.INFO)
    world = World({"static": 10.0})
    world.leader()
    standby = world.beat()
    world.ticks(until=5)
    for name, value in (("a", None), ("bad", hostile[0]), ("z", None)):
        good = encode_definition(replace(GOOD, schedule="PT10S", since=START + 5))
        world.log.append((ENTRY, name, value if value is not None else good, None))
    world.ticks(until=16)
    assert (world.slots("a"), world.slots("z"), world.slots("static"), world.slots("bad")) == ([15], [15], [10], [])
    assert world.election.role("leader").holder is world.beats[0].member
    world.beats[0].crash()
    standby.member.lead()
    world.ticks(until=26)
    standby.crash()
    world.leader()
    world.ticks(until=36)
    assert sorted(set(world.slots("a"))) == sorted(set(world.slots("z"))) == [15, 25, 35]
    assert sorted(set(world.slots("static"))) == [10, 20, 30]


@pytest.mark.parametrize("name", ["a decimal that is none", "lists nested 900 deep", "no JSON"])
def test_an_entry_whose_definition_becomes_bad_runs_on_no_beat(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the leader as on its successors, as lists say; and again once it is mended, from then on."""
    monkeypatch.setattr("celery_neli.beat.replicated.host.PORTION", 60.0)  # of real time, which this clock has not
    world = World({"static": 10.0})
    world.leader()
    world.ticks(until=5)
    world.put("e", "PT10S")
    world.ticks(until=16)
    world.log.append((ENTRY, "e", HOSTILE[name][0], None))
    world.ticks(until=27)
    assert world.slots() == [15]
    world.beats[0].crash()
    world.leader()
    world.ticks(until=37)
    assert world.slots() == [15]
    world.put("e", "PT10S")
    world.ticks(until=48)
    assert world.slots() == [15, 47]


def test_a_flood_of_bad_definitions_is_twenty_lines(caplog: pytest.LogCaptureFixture) -> None:
    """A minute; each of a few has a line of its own, once, however often it comes."""
    world = World({"static": 10.0})
    world.leader()
    world.ticks(until=1)
    for number in range(500):
        world.log.append((ENTRY, f"bad-{number % 5}", HOSTILE["a decimal that is none"][0], None))
        world.ticks(until=world.now)
    assert len([line for line in caplog.messages if "cannot be read here" in line]) == 5
    world.log.extend((ENTRY, f"more-{number}", HOSTILE["a decimal that is none"][0], None) for number in range(500))
    world.ticks(until=11)
    assert len([line for line in caplog.messages if "cannot be read here" in line]) == 20
    assert world.slots("static") == [10]


def test_a_bad_definition_is_mended_by_a_good_one() -> None:
    """It left nothing behind."""
    world = World({"static": 10.0})
    world.leader()
    world.log.append((ENTRY, "e", HOSTILE["a decimal that is none"][0], None))
    world.ticks(until=5)
    world.put("e", "PT10S")
    world.ticks(until=16)
    assert world.slots() == [15]


def test_bad_states_stop_no_neighbour() -> None:
    """Before their entries are there, and after."""
    world = World({"a": 10.0, "z": 10.0})
    for value in (b"?", b"[" * 5000, b'{"v":1,"last":1e308,"runs":1,"term":1}', encode_state(State(9e17, 1, 1))):
        for name in ("a", "stray"):
            world.log.append((STATE, name, value, None))
    world.leader()
    world.ticks(until=5)
    world.log.append((ENTRY, "stray", encode_definition(replace(GOOD, schedule="PT10S", since=START + 5)), None))
    world.ticks(until=16)
    assert (world.slots("a"), world.slots("z"), world.slots("stray")) == ([10], [10], [15])


class Odd(ReplicatedScheduler):
    """An application's own scheduler, with a fault."""

    def check(self, entry: Any) -> None:
        if entry.name == "bad":
            raise KeyError(entry.name)
        super().check(entry)


def test_an_error_of_the_applications_own_scheduler_costs_one_record() -> None:
    """Whatever it raises."""
    world = World({"e": 10.0}, scheduler=Odd)
    beat = world.leader()
    world.ticks(until=5)
    for name in ("bad", "z"):
        world.log.append((ENTRY, name, encode_definition(replace(GOOD, schedule="PT10S", since=START + 5)), None))
    world.ticks(until=16)
    assert (world.slots("e"), world.slots("z"), world.slots("bad")) == ([10], [15], [])
    assert "bad" in beat.topic.refused


def test_a_stray_state_stops_no_entry_that_is_added() -> None:
    """The entry is added by the application after the topic was read."""
    world = World({"e": 10.0})
    beat = world.leader()
    world.log.append((STATE, "late", b"?", None))
    world.ticks(until=5)
    beat.scheduler.add(name="late", task="t", schedule=timedelta(seconds=10))
    world.ticks(until=16)
    assert world.slots("e") == [10]
    assert world.slots("late") == [15]


@pytest.mark.parametrize("split", [5, "x", [1], {"1": 5}, {"1": "x"}, {"1": [0]}, {"1": {"claimed": "x", "done": []}}])
def test_marks_that_are_none_are_none(split: Any) -> None:
    """A shard begins, whatever the record of the shard says that it was split from."""
    told = {0: {"shards": 2, "split": split}, 1: None}
    found = begin(1, 2, lambda shard: Payload(term=1, data=told[shard], known=True, own=False), now=NOON)
    assert found is not None
    assert found.marks is None


# -- commands --


def test_a_bad_definition_is_a_row(hostile: tuple[bytes, str]) -> None:
    """With the reason; the others are shown, and it can be removed."""
    value, reason = hostile
    desk = Desk()
    desk.put("a")
    desk.store.values[ENTRY, "bad"] = value
    desk.put("z")
    editor = desk.editor()
    rows = {name: view_of(editor, name) for name in sorted(entry_names(editor))}
    assert list(rows) == ["a", "bad", "static", "z"]
    assert [rows[name].problem for name in ("a", "static", "z")] == [None, None, None]
    found = re.search(f"^cannot be shown: .*({reason})", rows["bad"].problem or "")
    assert found, rows["bad"].problem
    assert len((rows["bad"].problem or "").splitlines()) == 1
    desk.editor().remove("bad")
    assert "bad" not in entry_names(desk.editor())


def test_names_that_nobody_could_put_are_rows() -> None:
    """A record's key may hold anything."""
    desk = Desk()
    for name in ("", "a\nb", "\ud800", "x" * 5000):
        desk.store.values[ENTRY, name] = encode_definition(GOOD)
    editor = desk.editor()
    for name in entry_names(editor) - {"static"}:
        assert "cannot be shown: " in str(view_of(editor, name).problem)
        editor.remove(name)
    assert entry_names(desk.editor()) == {"static"}


# -- the check that `put` and the readers share --

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(exclude_categories=())), inner, max_size=3)
        | st.builds(
            marked, st.sampled_from(["decimal", "datetime", "date", "time", "uuid", "bytes", "base64", "?"]), inner
        )
    ),
    max_leaves=8,
)
OPTION = st.sampled_from(["queue", "expires", "headers", "priority", "link", "retry", "countdown", "neli_overlap", "x"])
SLOW = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@SLOW
@given(
    task=st.just("t") | st.text(max_size=5),
    schedule=st.sampled_from(["PT1M", "5m", "* * * * *", 60, 1e10]) | st.text(max_size=12) | st.floats(),
    args=st.lists(JSON, max_size=3) | JSON,
    kwargs=st.none() | st.dictionaries(st.text(max_size=3), JSON, max_size=2) | JSON,
    options=st.none() | st.dictionaries(OPTION, JSON, max_size=2),
)
def test_what_put_accepts_every_reader_can_read(task: Any, schedule: Any, args: Any, kwargs: Any, options: Any) -> None:
    """Whatever is put is refused by its field, or comes back as it was from the bytes, as an entry."""
    try:
        definition = define(APP, "e", task, schedule, args=args, kwargs=kwargs, options=options)
    except ConfigurationError:
        return
    made = entry_of(definition, "e", APP)
    entry = entry_of(decode_definition(encode_definition(definition)), "e", APP)
    assert (entry.args, entry.kwargs, entry.options) == (made.args, made.kwargs, made.options)
    assert entry.schedule == made.schedule
    assert list(entry.args) == list(args)
    assert entry.kwargs == (kwargs or {})


@pytest.mark.parametrize("depth", [10, 62, 65, 300, 900, 5000])
def test_put_refuses_what_is_nested_too_deeply(depth: int) -> None:
    """By the name of the field; what it accepts, a beat reads."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    if depth < 63:
        assert list(entry_of(define(APP, "e", "t", 60, args=[value]), "e", APP).args) == [value]
        return
    with pytest.raises(ConfigurationError, match=r"args = .*nested more than 64 deep"):
        define(APP, "e", "t", 60, args=[value])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("since", 3e12),
        ("since", float("nan")),
        ("task", "t\ud800"),
        ("task", "t" * 600),
        ("schedule", ",".join(["1"] * 2000) + " * * * *"),
        ("args", ["\udfff"]),
        ("kwargs", {"\ud800": 1}),
        ("options", {"headers": {"a": float("inf")}}),
        ("changes", (Change(at=1e15, by="a", what="b"),)),
        ("changes", (Change(at=1.0, by="\ud800", what="b"),)),
        ("changes", (Change(at=1.0, by="a", what="b" * 10_000),)),
    ],
)
def test_what_no_reader_accepts_is_not_written(field: str, value: Any) -> None:
    """The writer asks the reader's check, and names the field."""
    with pytest.raises(ConfigurationError, match=f"^{field}"):
        encode_definition(replace(GOOD, **{field: value}))


@pytest.mark.parametrize("value", [None, 5, "text", [1], {}])
@pytest.mark.parametrize("kind", [STATE, ENTRY, MEMBER])
def test_a_decoder_raises_one_error_only_whatever_it_is_given(kind: Kind, value: Any) -> None:
    """Also what no record can be."""
    with pytest.raises(RecordError):
        DECODERS[kind](value)


def test_what_put_refuses_the_reader_refuses_with_the_same_words() -> None:
    """One function asks."""
    for options in ({"countdown": "soon"}, {"quue": "q"}, {"eta": 5}, {"priority": 500}, {"neli_misfire_max": 0}):
        with pytest.raises(ConfigurationError) as put:
            define(APP, "e", "t", 60, options=options)
        with pytest.raises(ConfigurationError) as read:
            entry_of(decode_definition(spelt(options=options)), "e", APP)
        assert str(put.value).removeprefix("beat entry 'e': ") in str(read.value)


# -- every decoder --

RECORDS = st.sampled_from(
    [
        encode_definition(replace(GOOD, args=[1, {"a": [None]}], options={"queue": "q"})),
        encode_state(State(NOON, 5, 7, NOON, True, NOON)),
        encode_note(Note(schedule="0a1b2c3d", version=3, at=NOON)),
        b'{"v":1,"kind":"claim","member":"m/1","seq":1,"lease":5.0,"seen":-1,"data":{"claimed":1,"done":1}}',
    ]
)
BYTES = (
    st.binary(max_size=200)
    | st.builds(lambda record, at, junk: record[:at] + junk + record[at:], RECORDS, st.integers(0, 200), st.binary())
    | st.builds(lambda record, at: record[:at] + record[at + 1 :], RECORDS, st.integers(0, 200))
    | st.builds(lambda fields: json.dumps(fields).encode(), JSON)
    | st.builds(
        lambda record, name, value: json.dumps({**json.loads(record), name: value}).encode(),
        RECORDS,
        st.sampled_from(
            [*FIELDS, "last", "runs", "term", "open", "sent", "version", "at", "kind", "seq", "lease", "data"]
        ),
        JSON,
    )
)


@SLOW
@given(value=BYTES, kind=st.sampled_from([STATE, ENTRY, MEMBER]))
def test_a_decoder_raises_one_error_only(value: bytes, kind: Kind) -> None:
    """So a reader knows what to catch; and of what it accepts, an entry comes or one error."""
    try:
        found = DECODERS[kind](value)
    except RecordError:
        return
    if isinstance(found, Definition):
        with contextlib.suppress(ConfigurationError):
            entry_of(found, "e", APP)


@SLOW
@given(value=BYTES)
def test_the_decoder_of_the_leader_topic_raises_one_error_only(value: bytes) -> None:
    """And its data are marks or none."""
    try:
        record = decode_leader_record(value)
    except RecordError:
        return
    Watermarks.of(record.data, now=NOON)


@SLOW
@given(data=st.dictionaries(st.sampled_from(["claimed", "done", "tried", "shards", "split", "base"]), JSON))
def test_a_term_begins_or_is_refused_whatever_the_log_says(data: Any) -> None:
    """No other error ends a beat, or moves its leader."""
    for shard in (0, 1):
        try:
            begin(shard, 2, lambda _: Payload(term=1, data=data, known=True, own=False), now=NOON)
        except ConfigurationError:
            pass  # of more shards than two


@given(key=st.none() | st.binary(max_size=20) | st.builds(lambda end: b"s/" + end, st.binary(max_size=20)))
def test_any_key_is_one_or_none(key: bytes | None) -> None:
    """And what it names has the same key again."""
    found = kind_of(key)
    assert found is None or key_of(*found) == key


@SLOW
@given(st.lists(st.tuples(st.sampled_from([b"s/a", b"e/a", b"m/a", b"?", None]), BYTES | st.none()), max_size=6))
def test_what_is_read_is_folded_whatever_it_is(records: list[tuple[bytes | None, bytes | None]]) -> None:
    """The record behind them is there."""
    log = logging.getLogger("test")
    found = PendingReads(lambda key, value: False, log)
    entries: dict[tuple[Kind, str], bytes | None] = {}
    for key, value in records:
        found.add(key, value)
        if (entry := kind_of(key)) is not None:
            fold(entries, entry, value)
    assert found.add(b"e/z", b"?")
    assert found.take()[ENTRY, "z"] == b"?"


def test_an_error_that_nobody_foresaw_costs_its_record_alone(caplog: pytest.LogCaptureFixture) -> None:
    """On the thread that reads."""

    def own(key: bytes, value: bytes | None) -> bool:
        if value == b"bad":
            raise KeyError(value)
        return False

    found = PendingReads(own, logging.getLogger("test"))
    assert [found.add(b"e/x", b"bad"), found.add(b"e/z", b"?")] == [False, True]
    assert "schedule record skipped key=e/x: KeyError" in caplog.text


def test_each_bad_record_has_a_line_and_a_flood_has_twenty(caplog: pytest.LogCaptureFixture) -> None:
    """Once a minute."""
    found = PendingReads(lambda key, value: False, logging.getLogger("test"))
    for name in ("a", "b", "a", "b"):
        found.refuse(ENTRY, f"kind=e name={name!r}: not JSON")
    assert [record.getMessage().split(": ")[0] for record in caplog.records] == [
        "schedule record skipped kind=e name='a'",
        "schedule record skipped kind=e name='b'",
    ]
    for number in range(5000):
        found.refuse(ENTRY, f"kind=e name='{number}': not JSON")
    assert len(caplog.records) == 20


def test_the_api_asks_for_an_app() -> None:
    """Anything else is one line."""
    for app in (None, "shop", object(), type(APP)):
        with pytest.raises(ConfigurationError, match=r"^app = .*give the Celery app"):
            periodic.list(app)
