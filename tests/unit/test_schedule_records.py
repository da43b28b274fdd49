"""Records of the schedule topic: what is written is read again, and nothing else is."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_neli.exceptions import ConfigurationError, RecordError, UnknownVersion
from celery_neli.schedule_topic.codec import (
    ENTRY,
    MAX_BYTES,
    MEMBER,
    PAUSE,
    STATE,
    Change,
    Definition,
    Note,
    State,
    check_name,
    decode_definition,
    decode_note,
    decode_state,
    encode_definition,
    encode_note,
    encode_state,
    key_of,
    kind_of,
    outdated,
    partition_of,
)

DECODERS = {STATE: decode_state, ENTRY: decode_definition, MEMBER: decode_note}
TIMES = st.floats(min_value=-1e10, max_value=1e10)
COUNTS = st.integers(min_value=0, max_value=2**53)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=3,
)
OBJECTS = st.dictionaries(st.text(), JSON, max_size=3)
DEFINITION = Definition(task="shop.tidy", schedule="*/5 * * * *")


@given(st.builds(State, TIMES, COUNTS, COUNTS, TIMES, st.booleans()))
def test_a_state_is_read_as_it_was_written(state: State) -> None:
    """To the last bit of its times."""
    assert decode_state(encode_state(state)) == state


def test_a_state_is_small() -> None:
    """A hundred thousand are written and read."""
    assert len(encode_state(State(1732365000.25, 12345, 98765))) < 60


@settings(max_examples=25)
@given(
    st.builds(
        Definition, task=st.text(min_size=1), schedule=st.text(min_size=1), args=st.lists(JSON, max_size=3),
        kwargs=OBJECTS, options=OBJECTS, paused=st.booleans(), since=TIMES,
        changes=st.lists(st.builds(Change, at=TIMES, by=st.text(), what=st.text()), max_size=3).map(tuple),
    )
)  # fmt: skip
def test_a_definition_is_read_as_it_was_written(definition: Definition) -> None:
    """Arguments and options are whatever JSON can say."""
    assert decode_definition(encode_definition(definition)) == definition


def test_the_pause_of_a_static_entry_has_no_task() -> None:
    """What it runs stands in `beat_schedule`."""
    pause = Definition(task=None, schedule=None, paused=True, static=True)
    assert decode_definition(encode_definition(pause)) == pause


def test_the_last_twenty_changes_are_kept() -> None:
    """A definition that is changed for years stays small."""
    changes = tuple(Change(at=float(number), by="me", what="paused") for number in range(30))
    kept = decode_definition(encode_definition(replace(DEFINITION, changes=changes))).changes
    assert [each.at for each in kept] == list(range(10, 30))


@pytest.mark.parametrize("version", [None, 0, 7])
def test_a_note_is_read_as_it_was_written(version: int | None) -> None:
    """With and without `neli_schedule_version`."""
    note = Note(schedule="0a1b2c3d", version=version, at=1732365000.25)
    assert decode_note(encode_note(note)) == note


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("task", None),
        ("task", ""),
        ("schedule", None),
        ("args", "abc"),
        ("args", [object()]),
        ("args", [float("nan")]),
        ("kwargs", {1: 2}),
        ("kwargs", {"a": {1, 2}}),
        ("options", []),
        ("options", {"expires": object()}),
        ("args", ["x" * MAX_BYTES]),
        ("kwargs", {"a": "x" * MAX_BYTES}),
    ],
)
def test_what_cannot_be_stored_is_refused_by_the_name_of_its_field(field: str, value: Any) -> None:
    """Before anything is written."""
    with pytest.raises(ConfigurationError, match=rf"^{field}(:| =) "):
        encode_definition(replace(DEFINITION, **{field: value}))


def test_the_longest_definition_can_be_read_again() -> None:
    """The limits of writing and reading fit: what is accepted is not lost."""
    length = MAX_BYTES
    while True:
        try:
            value = encode_definition(replace(DEFINITION, args=["x" * length]))
            break
        except ConfigurationError:
            length -= 50
    assert MAX_BYTES - 1000 < len(value) <= MAX_BYTES
    assert decode_definition(value).args == ["x" * length]


STATE_VALUE = json.loads(encode_state(State(1.5, 2, 3, 4.5, open=True)))
DEFINITION_VALUE = json.loads(encode_definition(replace(DEFINITION, changes=(Change(at=1, by="a", what="b"),))))
NOTE_VALUE = json.loads(encode_note(Note(schedule="a", version=1, at=1.5)))
WRONG: dict[str, list[Any]] = {
    "last": [None, "1", True, [], 10**30],
    "runs": [None, 1.5, -1, True, 10**30],
    "term": [None, 1.5, -2, True],
    "since": ["1", True, 10**30],
    "open": [1, None],
    "task": [None, "", 1],
    "schedule": [None, 1],
    "args": [None, {}, "a"],
    "kwargs": [None, []],
    "options": [None, []],
    "paused": [None, 1],
    "static": [None, 1],
    "changes": [None, {}, [1], [{"at": 1}], [{"at": "1", "by": "a", "what": "b"}]],
    "version": [-1, 1.5, True, "1"],
    "at": [None, "1", True],
    "v": [None, "1", 1.0, True],
}


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (kind, field, value)
        for kind, whole in ((STATE, STATE_VALUE), (ENTRY, DEFINITION_VALUE), (MEMBER, NOTE_VALUE))
        for field in whole
        for value in WRONG[field]
        if not (kind == MEMBER and field == "version" and value is None)
    ],
)
def test_a_field_of_another_type_makes_no_record(kind: Any, field: str, value: Any) -> None:
    """Whoever wrote it: it is skipped, not guessed at."""
    whole = {STATE: STATE_VALUE, ENTRY: DEFINITION_VALUE, MEMBER: NOTE_VALUE}[kind]
    DECODERS[kind](json.dumps(whole).encode())
    with pytest.raises(RecordError):
        DECODERS[kind](json.dumps({**whole, field: value}).encode())


@pytest.mark.parametrize("kind", [STATE, ENTRY, MEMBER])
@pytest.mark.parametrize(
    "value",
    [b"", b"x", b"[]", b"1", b"\xff", b"{}", b'{"v":1}', b'{"v":1} x', b'{"v":1', b'{"v":1,"last":NaN}', b"[" * 99_999],
)
def test_what_is_no_record_is_said_to_be_none(kind: Any, value: bytes) -> None:
    """Never another exception."""
    with pytest.raises(RecordError):
        DECODERS[kind](value)


@pytest.mark.parametrize("kind", [STATE, ENTRY, MEMBER])
def test_a_newer_version_is_told_apart(kind: Any) -> None:
    """It is not broken, but not for us."""
    with pytest.raises(UnknownVersion):
        DECODERS[kind](b'{"v":2,"x":1}')


@given(st.sampled_from([STATE, ENTRY, MEMBER]), st.text(st.characters()))
def test_a_key_leads_back_to_its_name(kind: Any, name: str) -> None:
    """Whatever characters an entry's name has, lone surrogates included; other keys are nobody's."""
    assert kind_of(key_of(kind, name)) == (kind, name)


@pytest.mark.parametrize("key", [None, b"", b"s", b"x/a", b"leader", b"s/\xff"])
def test_other_keys_are_strangers(key: bytes | None) -> None:
    """They are skipped."""
    assert kind_of(key) is None


def test_notes_lie_apart() -> None:
    """So that `celery neli status` need not read a hundred thousand entries."""
    names = [f"entry-{number}" for number in range(200)] + ["\ud800"]
    assert {partition_of(ENTRY, name) for name in names} == set(range(16))
    assert [partition_of(STATE, name) for name in names] == [partition_of(ENTRY, name) for name in names]
    assert partition_of(ENTRY, "nightly") == 10
    assert {partition_of(kind, name) for kind in (MEMBER, PAUSE) for name in names} == {16}


def test_the_state_of_a_lower_epoch_is_outdated_wherever_it_stands() -> None:
    """A leader that was frozen may write behind its successor; a deletion has no epoch, and counts as it stands."""
    old, new = encode_state(State(9.0, 9, 3)), encode_state(State(1.0, 1, 5))
    assert outdated(old, by=new)
    assert not outdated(new, by=old)
    assert not outdated(old, by=old)
    assert not outdated(None, by=new)
    assert not outdated(old, by=None)
    assert not outdated(b"?", by=new)


@pytest.mark.parametrize("name", ["", "x" * 513, "a\nb", 5, None])
def test_a_runtime_entry_has_a_name_that_can_be_shown(name: Any) -> None:
    """One line of it."""
    with pytest.raises(ConfigurationError, match=r"^name = "):
        check_name(name)
    assert check_name("tidy up: café") == "tidy up: café"
