"""The records of the history topic: what is written is read, and nothing else is."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from celery_neli.exceptions import RecordError, UnknownVersion
from celery_neli.history.records import (
    EARLIEST,
    LATEST,
    MAX_BYTES,
    MAX_WHOLE,
    OUTCOMES,
    PARTITIONS,
    STATES,
    Record,
    RunRecord,
    SlotRecord,
    WorkerRecord,
    decode,
    encode,
    encode_slot,
    key,
    key_of,
    partition_of,
    slot_record,
)
from celery_neli.hooks import SlotEvent

SLOT = SlotRecord(entry="report", task="shop.report", slot=1000.0, outcome="sent", at=1000.2, member="a", term=7)
RUN = RunRecord(entry="report", task="shop.report", slot=1000.0, id="x", state="started", at=1000.4, worker="w")
WORKER = WorkerRecord(worker="w@host", at=1.0, queues=("celery", "slow"))

times = st.floats(EARLIEST, LATEST)
texts = st.text(st.characters(), max_size=50)  # lone surrogates as well: a name in beat_schedule may have one
errors = st.text(max_size=400)
slots = st.builds(
    SlotRecord,
    entry=texts, task=texts, slot=st.none() | times, outcome=st.sampled_from(OUTCOMES), at=times, member=texts,
    role=texts, term=st.none() | st.integers(0, MAX_WHOLE), id=st.none() | texts, policy=texts,
    count=st.integers(0, MAX_WHOLE), first=st.none() | times, error=errors,
)  # fmt: skip
runs = st.builds(
    RunRecord,
    entry=texts, task=texts, slot=st.none() | times, id=st.none() | texts, state=st.sampled_from(STATES), at=times,
    worker=texts, runtime=st.none() | st.floats(0, 1e9), retries=st.integers(0, MAX_WHOLE), error=errors,
)  # fmt: skip
workers = st.builds(
    WorkerRecord, worker=texts, at=times, queues=st.lists(texts, max_size=5).map(tuple), stopped=st.booleans()
)


@given(slots | runs | workers)
def test_what_is_written_is_read(record: Record) -> None:
    """Every record comes back as it was, to the last digit of its times."""
    assert decode(encode(record)) == record


@given(st.binary(max_size=200))
@example(b"[" * MAX_BYTES)
@example(b'{"v":1,"kind":' + b"[" * (MAX_BYTES - 20))
@example(b'{"v":1,"kind":["run"]}')
@example(b'{"v":1,"kind":"worker","worker":"w","at":NaN}')
@example(b'{"v":1,"kind":"worker","worker":"w","at":1e999}')
@example(b'{"v":1,"kind":"worker","worker":"w","at":' + b"9" * 30000 + b"}")
@example(b'{"v":' + b"9" * 5000 + b"}")
def test_hostile_bytes_raise_a_record_error(value: bytes) -> None:
    """Whatever stands in the topic, reading it raises `RecordError` alone."""
    with pytest.raises(RecordError):
        decode(value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from([SLOT, RUN, WORKER]), st.data())
def test_a_forged_field_raises_a_record_error_or_is_of_its_type(record: Record, data: st.DataObject) -> None:
    """A record in which a field was changed is refused, or can be written as it was read."""
    fields = json.loads(encode(record))
    fields[data.draw(st.sampled_from(sorted(fields)))] = data.draw(json_values)
    try:
        found = decode(json.dumps(fields).encode())
    except RecordError:
        return
    assert decode(encode(found)) == found


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"v": 2}, "version is 2"),
        ({"v": True}, "no version"),
        ({"kind": "other"}, "unknown kind"),
        ({"at": True}, "bad 'at'"),
        ({"at": "1000"}, "bad 'at'"),
        ({"slot": 1e300}, "bad 'slot'"),
        ({"outcome": "gone"}, "bad 'outcome'"),
        ({"count": -1}, "bad 'count'"),
        ({"term": 1.0}, "bad 'term'"),
        ({"entry": None}, "bad 'entry'"),
        ({"entry": "x" * 9000}, "bad 'entry'"),
        ({"error": "x" * 401}, "bad 'error'"),
    ],
)
def test_a_bad_field_is_named(change: dict[str, object], says: str) -> None:
    """A value outside what a field may hold is refused, and the error names the field."""
    fields = {**json.loads(encode(SLOT)), **change}
    with pytest.raises(RecordError, match=says):
        decode(json.dumps(fields).encode())


def test_a_missing_field_is_refused() -> None:
    """A field without a default must be there."""
    fields = json.loads(encode(RUN))
    del fields["worker"]
    with pytest.raises(RecordError, match="missing"):
        decode(json.dumps(fields).encode())


def test_a_newer_version_is_told_from_nonsense() -> None:
    """A reader may say that a newer release wrote the record."""
    with pytest.raises(UnknownVersion):
        decode(b'{"v":2}')


def test_unknown_fields_are_skipped() -> None:
    """A later release may add a field without a new version."""
    assert decode(json.dumps({**json.loads(encode(SLOT)), "more": [1]}).encode()) == SLOT


@pytest.mark.parametrize(
    "record", [replace(SLOT, entry="x" * 9000), replace(RUN, runtime=float("nan")), replace(RUN, error="x" * 500)]
)
def test_what_no_reader_would_take_is_not_written(record: Record) -> None:
    """`encode` raises instead."""
    with pytest.raises(RecordError):
        encode(record)


def test_the_bytes_are_pinned() -> None:
    """Other releases read these bytes."""
    assert encode(SLOT) == (
        b'{"v":1,"kind":"slot","entry":"report","task":"shop.report","slot":1000.0,"outcome":"sent","at":1000.2,'
        b'"member":"a","term":7}'
    )
    assert encode(RUN) == (
        b'{"v":1,"kind":"run","entry":"report","task":"shop.report","slot":1000.0,"id":"x","state":"started",'
        b'"at":1000.4,"worker":"w"}'
    )
    assert encode(WORKER) == b'{"v":1,"kind":"worker","worker":"w@host","at":1.0,"queues":["celery","slow"]}'
    assert (key_of(SLOT), key_of(WORKER)) == (b"report", b"w@host")
    assert [partition_of(key(each)) for each in ("report", "nightly", "a", "\ud800")] == [0, 2, 3, 0]


def test_names_are_spread() -> None:
    """Entries are in all partitions."""
    assert {partition_of(key(f"entry-{number}")) for number in range(100)} == set(range(PARTITIONS))


@given(
    st.builds(
        SlotEvent,
        entry=texts, task=texts, slot=st.none() | times, outcome=st.sampled_from(OUTCOMES), at=times, role=texts,
        term=st.none() | st.integers(0, MAX_WHOLE), id=st.none() | texts, policy=st.sampled_from(["", "skip"]),
        count=st.integers(1, 2), first=st.none() | times, error=st.sampled_from(["", "no"]),
    ),
    texts,
)  # fmt: skip
@example(SlotEvent(entry="e", task="t", slot=1.0, outcome="sent", at=1.5, role="leader", term=7, id="x"), "a")
def test_the_quick_way_writes_the_same_bytes(event: SlotEvent, member: str) -> None:
    """What was sent, the most frequent record, is written by a short cut."""
    assert encode_slot(event, member) == encode(slot_record(event, member))
