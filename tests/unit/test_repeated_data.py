"""Data that a member takes from the log and repeats: whatever they are, all its records stay readable."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_neli.election.records import MAX_DATA, MAX_OFFER, End, Record, decode, encode, sound
from celery_neli.election.role_state import LeaderAcquired, LeaderRevoked
from celery_neli.exceptions import RecordError
from tests.unit.stage import Stage

MARKS = {"claimed": 1793000000.123456, "done": 1793000000.0}


def sized(length: int, **more: Any) -> dict[str, Any]:
    """Data that have `length` characters as JSON."""
    data = {**more, "x": ""}
    return {**data, "x": "x" * (length - len(json.dumps(data)))}


def written_by_another(data: dict[str, Any]) -> list[bytes]:
    """A term of `x`, whose last record carries `data`."""
    beat = {"v": 1, "kind": "beat", "member": "x/1", "seq": 2, "lease": 4.0, "seen": 0, "term": 0, "data": data}
    return [
        encode(Record(kind="claim", member="x/1", seq=1, lease=4.0, seen=-1)),
        json.dumps(beat, ensure_ascii=False).encode(errors="surrogatepass"),
    ]


def led_after(log: list[bytes]) -> Stage:
    """A member that leads after another has written `log`, and whose owner has made no progress for an hour."""
    stage = Stage()
    stage.journal.log[0] += log
    stage.echo()
    stage.member.progressed = stage.now - 3600.0
    stage.echo(after=5.0)
    assert stage.echo() == [LeaderAcquired("leader", len(log))]
    return stage


@pytest.mark.parametrize("length", [MAX_DATA - 15, MAX_DATA - 12, MAX_DATA])
def test_data_as_long_as_a_record_may_carry_keep_nobody_from_leading(length: int) -> None:
    """The heartbeats of whoever repeats them tell more than they do, and are read back all the same."""
    stage = led_after(written_by_another(sized(length, **MARKS)))
    for _ in range(20):
        stage.echo(after=0.5)
    assert stage.leads()
    assert not [line for line in stage.log.lines if "skipped" in line]
    assert stage.journal.sent[-1].data == {**MARKS, "idle": pytest.approx(3600.0)}, "the longest value is left out"
    stage.member.resign()
    assert stage.turn() == [LeaderRevoked("leader", 2)]
    stage.member.state("leader").drained()
    stage.turn()
    assert stage.journal.sent[-1].kind == "release"


def test_data_that_leave_room_are_repeated_in_full() -> None:
    """Nothing is left out that need not be."""
    data = sized(MAX_DATA - len(', "idle": 3600.001'), **MARKS)
    stage = led_after(written_by_another(data))
    stage.turn(after=0.5)
    assert [record.data for record in stage.journal.sent] == [data, {**data, "idle": 3600.0}, {**data, "idle": 3600.0}]


def test_a_claim_does_not_repeat_how_long_another_was_idle() -> None:
    """`idle` is its author's own."""
    stage = led_after(written_by_another({**MARKS, "idle": 50.0}))
    assert [record.data for record in stage.journal.sent if record.kind == "claim"] == [MARKS]
    assert stage.member.state("leader").payload.data == MARKS


texts = st.text(max_size=20) | st.sampled_from(
    ["\ud800" * 900, "\x00" * 1300, "\N{SNOWMAN}" * 2700, "[" * 40, '"' * 8000]
)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**39), 10**38)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda each: st.lists(each, max_size=4) | st.dictionaries(texts, each, max_size=4),
    max_leaves=8,
)


@st.composite
def readable_data(draw: st.DrawFn) -> dict[str, Any]:
    """Data that every reader accepts, often only just."""
    data = draw(st.dictionaries(st.sampled_from(["claimed", "done", "idle", "tried"]) | texts, values, max_size=6))
    if draw(st.booleans()) and "pad" not in data:
        free = MAX_DATA - len(json.dumps({**data, "pad": ""})) - draw(st.integers(0, 30))
        data["pad"] = "x" * max(0, free)
    return data


@settings(deadline=None, max_examples=200)
@given(st.lists(readable_data(), min_size=1, max_size=3), readable_data())
def test_whatever_the_log_holds_a_member_writes_only_what_every_reader_accepts(
    found: list[dict[str, Any]], offered: dict[str, Any]
) -> None:
    """Its claim, its beats and its release can be read, whatever was effective before them (and older releases read
    them by the same rules).
    """
    stage = Stage()
    stage.write(Record(kind="claim", member="x/1", seq=1, lease=4.0, seen=-1))
    for data in found:
        seq = len(stage.journal.log[0]) + 1
        beat = {"v": 1, "kind": "beat", "member": "x/1", "seq": seq, "lease": 4.0, "seen": seq - 2, "term": 0}
        value = json.dumps({**beat, "data": data}).encode()
        try:
            decode(value)
        except RecordError:
            continue
        stage.write(value)
    stage.echo()
    stage.member.progressed = stage.now - 3599.0001
    stage.echo(after=5.0)
    assert stage.leads() or stage.echo(), "its claim was read back"
    assert stage.leads()
    stage.echo(after=0.5)
    try:
        stage.member.state("leader").set_payload(stage.grant().term or 0, offered)
    except ValueError:
        pass
    stage.echo(after=0.5)
    stage.member.resign()
    stage.echo()
    stage.member.state("leader").drained()
    stage.echo()
    assert [record.kind for record in stage.journal.sent] == ["claim", "beat", "beat", "beat", "release"]
    assert not [line for line in stage.log.lines if "not sent" in line or "skipped" in line]


@pytest.mark.parametrize("length", [MAX_OFFER + 1, MAX_DATA, MAX_DATA + 1, 10 * MAX_DATA])
def test_data_that_are_too_long_are_refused_where_they_are_given_with_both_numbers(length: int) -> None:
    """They would go into every record of the term, and into the claims of the next."""
    stage = Stage().lead()
    with pytest.raises(ValueError, match=rf"no record can carry .* {length} characters .* at most {MAX_OFFER} "):
        stage.member.state("leader").set_payload(0, sized(length))
    assert sound(sized(MAX_OFFER)) == sized(MAX_OFFER)


def test_characters_are_counted_as_they_are_written() -> None:
    """A control character or a surrogate takes six."""
    for character in ("\x00", "\ud800", "\N{SNOWMAN}"):
        sound({"x": character * ((MAX_OFFER - 9) // 6)})
        with pytest.raises(ValueError, match="characters as JSON"):
            sound({"x": character * (MAX_OFFER // 6)})


def test_a_member_whose_records_nobody_could_read_never_leads_and_says_so() -> None:
    """It sends none, in any role: others lead."""
    stage = Stage(nonce=lambda: "x" * 600)
    stage.turn()
    for _ in range(30):
        assert stage.turn(End(0), after=1.0) == []
    assert stage.journal.log == [[]]
    said = [line for line in stage.log.lines if line.startswith("record not sent role=leader kind=claim name=m")]
    assert len(said) == 1
