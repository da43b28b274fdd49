"""Records as bytes: what is written is read back, and what is no record is refused, by everybody alike (R9)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_neli.election.records import MAX_BYTES, MAX_DATA, Record, decode, encode, sound
from celery_neli.exceptions import RecordError, UnknownVersion
from celery_neli.settings import MAX_LEASE

names = st.text(min_size=1, max_size=40)
offsets = st.integers(min_value=0, max_value=1 << 60)
leases = st.floats(min_value=0.001, max_value=MAX_LEASE)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=10)
)
data = st.none() | st.dictionaries(st.text(max_size=8), scalars, max_size=4)
junk = st.recursive(
    scalars,
    lambda each: st.lists(each, max_size=4) | st.dictionaries(st.text(max_size=8), each, max_size=4),
    max_leaves=12,
)

claims = st.builds(
    Record, kind=st.just("claim"), member=names, seq=offsets, lease=leases, seen=offsets | st.just(-1), data=data
)
blind_claims = st.builds(Record, kind=st.just("claim"), member=names, seq=offsets, lease=leases, end=offsets, data=data)
heartbeats = st.builds(
    Record,
    kind=st.sampled_from(["beat", "release"]),
    member=names,
    seq=offsets,
    lease=leases,
    seen=offsets,
    term=offsets,
    data=data,
)
requests = st.builds(
    Record,
    kind=st.just("request"),
    member=names,
    seq=offsets,
    lease=st.just(0.0),
    to=st.none() | names,
    term=st.none() | offsets,
)
records = st.one_of(claims, blind_claims, heartbeats, requests)

BEAT: dict[str, Any] = {"v": 1, "kind": "beat", "member": "a/1", "seq": 3, "lease": 4.0, "seen": 8, "term": 7}


def altered(**fields: Any) -> bytes:
    return json.dumps({**BEAT, **fields}).encode()


@settings(deadline=None)
@given(records)
def test_what_is_written_is_read_back(record: Record) -> None:
    """Every field of every kind survives."""
    assert decode(encode(record)) == record


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_bytes_that_are_no_record_raise_record_error(value: bytes) -> None:
    """Nothing else is ever raised: one stranger's bytes must not end anybody's thread."""
    with pytest.raises(RecordError):
        decode(value)


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["v", "kind", "member", "seq", "lease", "seen", "term", "end", "data", "to", "x"]),
        junk | st.sampled_from([1, "beat", "claim"]),
    )
)
def test_json_that_is_no_record_raises_record_error(fields: dict[str, Any]) -> None:
    """Any JSON object is a record or raises `RecordError`; what is read can be written again."""
    try:
        record = decode(json.dumps(fields).encode())
    except RecordError:
        return
    assert decode(encode(record)) == record


@pytest.mark.parametrize("lease", [0, -1, 300.1, None, "4", True, [], 10**400])
def test_a_lease_that_is_no_number_of_seconds_within_the_limit_is_refused(lease: Any) -> None:
    """Nobody waits for ever, or for less than nothing, because of one record."""
    with pytest.raises(RecordError):
        decode(altered(lease=lease))


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e400", b"9" * 5000])
def test_numbers_that_not_every_reader_knows_are_refused_anywhere(number: bytes) -> None:
    """Also in `data`, which others repeat in their claims: an infinity there could be read but not written."""
    with pytest.raises(RecordError):
        decode(altered(data={"claimed": 0}).replace(b'"claimed": 0', b'"claimed": ' + number))


@pytest.mark.parametrize("field", ["seq", "seen", "term"])
@pytest.mark.parametrize("value", [-2, 1.0, None, "1", True, 1 << 63])
def test_offsets_are_whole_numbers(field: str, value: Any) -> None:
    """No other type passes for one."""
    with pytest.raises(RecordError):
        decode(altered(**{field: value}))


@pytest.mark.parametrize("member", ["", None, 5, "x" * 600, ["a"]])
def test_an_author_has_a_name(member: Any) -> None:
    """It is the identity that leases go by."""
    with pytest.raises(RecordError):
        decode(altered(member=member))


@pytest.mark.parametrize(
    "value", [b"", b"[]", b"null", b'"beat"', b"1", b"\xff", b"{" * 60, b"[" * 60_000, b'{"v":1,"v":1}']
)
def test_what_is_no_json_object_is_refused(value: bytes) -> None:
    """However deep, doubled or broken."""
    with pytest.raises(RecordError):
        decode(value)


def test_nesting_is_refused_before_a_parser_can_fail_on_it() -> None:
    """How deep a parser goes depends on its stack: readers would differ on a record just too deep for one of them."""
    with pytest.raises(RecordError):
        decode(altered(x=0).replace(b'"x": 0', b'"x": ' + b"[" * 100 + b"]" * 100))


def test_a_claim_that_repeats_the_largest_data_is_still_a_record() -> None:
    """Else one record with much data would keep everybody from ever claiming again."""
    largest = {"d": "\N{SNOWMAN}" * ((MAX_DATA - 10) // 6)}
    assert decode(altered(data=largest)).data == largest
    claim = Record(kind="claim", member="\N{SNOWMAN}" * 500, seq=1, lease=4.0, seen=1, data=largest)
    assert len(encode(claim)) < MAX_BYTES
    assert decode(encode(claim)) == claim
    with pytest.raises(RecordError):
        decode(altered(data={"d": "\N{SNOWMAN}" * (MAX_DATA // 6)}))


@pytest.mark.parametrize("count", [10, 63, 64, 100])
@pytest.mark.parametrize("bracket", ["[", "{", r"\u005b", r"\u007b"])
def test_data_that_a_claim_could_not_repeat_are_refused_however_they_are_spelt(bracket: str, count: int) -> None:
    """One forged record must not make every later claim unreadable: claims carry the data of others on."""
    value = json.dumps({**BEAT, "data": {"x": "?"}}).replace("?", bracket * count).encode()
    try:
        data = decode(value).data
    except RecordError:
        assert count > 60
    else:
        assert decode(encode(Record(kind="claim", member="b/2", seq=1, lease=4.0, seen=9, data=data))).data == data


def test_an_unknown_kind_is_refused() -> None:
    """A new kind needs a new version."""
    with pytest.raises(RecordError):
        decode(altered(kind="vote"))


def test_another_version_is_told_apart_from_junk() -> None:
    """Whoever reads it must stand aside, whatever else is in it; a version that is no whole number is junk."""
    with pytest.raises(UnknownVersion):
        decode(altered(v=2, kind="vote", lease=None))
    for version in (1.0, "1", None, True):
        with pytest.raises(RecordError) as caught:
            decode(altered(v=version))
        assert not isinstance(caught.value, UnknownVersion)


def test_too_long_a_record_is_refused() -> None:
    """A bound on what one record can cost its readers."""
    with pytest.raises(RecordError):
        decode(altered(x="x" * MAX_BYTES))


@pytest.mark.parametrize(
    ("record", "refers"),
    [
        (Record(kind="beat", member="a", seq=1, lease=1.0, seen=9, term=7), 9),
        (Record(kind="beat", member="a", seq=1, lease=1.0, seen=3, term=7), 7),
        (Record(kind="claim", member="a", seq=1, lease=1.0, end=12), 11),
        (Record(kind="claim", member="a", seq=1, lease=1.0, seen=-1), -1),
    ],
)
def test_a_record_refers_to_the_highest_offset_that_its_author_knew(record: Record, refers: int) -> None:
    """A log that holds it earlier than that is not the log it was written for (R9)."""
    assert record.refers == refers


@settings(max_examples=30)
@given(st.dictionaries(st.text(max_size=8), junk, max_size=4))
def test_data_that_are_sound_are_read_as_they_were_given(given: dict[str, Any]) -> None:
    """Whoever offers them gets a copy back: later changes of it change no record."""
    copy = sound(given)
    assert copy == {name: value for name, value in given.items() if name != "idle"}
    assert copy is not given
    record = Record(kind="beat", member="a/1", seq=1, lease=1.0, seen=0, term=0, data={**copy, "idle": 3600.0})
    assert decode(encode(record)).data == record.data


@pytest.mark.parametrize(
    "given",
    [
        {"a": float("nan")}, {"a": float("inf")}, {"a": object()}, {"a": {1, 2}}, {1: "a", "1": "b"}, {"a": 10**50},
        {"a": "x" * MAX_DATA}, {"a": "x" * (MAX_DATA - 20)}, {"a": json.loads("[" * 70 + "]" * 70)},
    ],
)  # fmt: skip
def test_what_no_record_can_carry_is_refused_where_it_is_given(given: Any) -> None:
    """Else everybody would skip the heartbeats of whoever offers it, and the lease would end."""
    with pytest.raises(ValueError, match="no record can carry"):
        sound(given)
