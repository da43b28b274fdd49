"""Which definition of an entry counts: every reader of the log agrees, and so does one of what Kafka has left of it."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from celery_neli.schedule_topic.codec import (
    ENTRY,
    REVISION_MOST,
    Definition,
    decode_definition,
    encode_definition,
    repaired,
    succeeding,
)
from celery_neli.schedule_topic.latest import Latest
from celery_neli.schedule_topic.pending import fold
from celery_neli.schedule_topic.versions import Head, Marks, head_of, is_void, repairs

Log = list[bytes | None]
ONE = Definition(task="t", schedule="PT1M")


def read(log: Log) -> tuple[bytes | None, bool]:
    """Return what counts at the end, and whether the last record is void."""
    current, void, marks = None, False, Marks()
    for value in log:
        void = not marks.counts("e", value)
        current = current if void else value
    return current, void


def grown(current: Definition | None, **fields: object) -> bytes:
    return encode_definition(succeeding(replace(ONE, **fields), current))  # type: ignore[arg-type]


def decoded(value: bytes | None) -> Definition | None:
    return None if value is None else decode_definition(value)


@st.composite
def logs(draw: st.DrawFn) -> Log:
    """What writers make that have read some older part of the log, and beats that repair and delete."""
    log: Log = []
    for _ in range(draw(st.integers(0, 12))):
        seen, _ = read(log[: draw(st.integers(0, len(log)))])
        now, _ = read(log)
        step = draw(st.sampled_from(["write", "write", "write", "remove", "repair", "delete", "forced", "forged"]))
        if step == "write":
            log.append(grown(decoded(seen)))
        elif step == "remove":
            log.append(grown(decoded(seen), removed=True))
        elif step == "repair" and seen is not None:
            log.append(encode_definition(repaired(decode_definition(seen))))
        elif step == "delete" and now is not None:
            log.append(None)
        elif step == "forced":
            log.append(encode_definition(replace(ONE, version="forced")))
        elif step == "forged":
            log.append(encode_definition(replace(ONE, version="forged", base="", revision=REVISION_MOST)))
    return log


@settings(max_examples=400, deadline=None)
@given(logs(), st.data())
def test_readers_of_a_compacted_log_agree_once_the_last_record_is_repaired(log: Log, data: st.DataObject) -> None:
    """Whatever prefix Kafka has compacted to its last record; and so after any further change that counts."""
    current, _ = read(log)
    if current is None:
        return
    log.append(encode_definition(repaired(decode_definition(current))))
    cut = data.draw(st.integers(0, len(log)))
    left = log[max(0, cut - 1) :]  # the last record of the prefix, and all after it
    assert read(left)[0] == read(log)[0] == log[-1]
    log.append(grown(decoded(log[-1])))
    assert read(log[max(0, cut - 1) :])[0] == log[-1]


@settings(max_examples=400, deadline=None)
@given(logs(), st.data())
def test_it_is_all_one_how_often_what_was_read_is_taken(log: Log, data: st.DataObject) -> None:
    """Of records that were not taken yet, those are kept on which it depends."""
    marks, current, void, at = Marks(), None, False, 0
    while at < len(log):
        until = data.draw(st.integers(at + 1, len(log)))
        entries: dict[object, object] = {}
        for value in log[at:until]:
            fold(entries, (ENTRY, "e"), value)  # type: ignore[arg-type]
        kept = entries[ENTRY, "e"]
        for value in kept if isinstance(kept, tuple) else (kept,):
            void = not marks.counts("e", value)
            current = current if void else value
        at = until
    assert (current, void) == read(log)


def test_of_two_writers_that_read_the_same_the_first_counts() -> None:
    a = grown(None)
    first, second = grown(decoded(a), paused=True), grown(decoded(a), task="u")
    assert read([a, first, second]) == (first, True)
    assert repairs(second, first)
    assert not repairs(first, first)


def test_a_successor_counts_where_a_void_record_is_all_that_kafka_has_left_of_what_it_replaces() -> None:
    """Versions alone would make it void for ever."""
    a = grown(None)
    b, void = grown(decoded(a), paused=True), grown(decoded(a), task="u")
    after = grown(decoded(b), task="w")
    assert read([a, b, void, after]) == read([void, after]) == (after, False)


def test_an_entry_with_the_highest_revision_can_still_be_changed_and_repaired() -> None:
    """Nobody gets there but by forgery: each change adds one."""
    forged = encode_definition(replace(ONE, version="x", base="", revision=REVISION_MOST))
    after = grown(decoded(forged), task="u")
    again = encode_definition(repaired(decode_definition(forged)))
    assert read([forged, after]) == (after, False)
    assert read([forged, again]) == (again, False)
    assert read([forged, after, grown(decoded(after), task="v")])[1] is False


def test_a_tombstone_deletes_what_was_removed_and_nothing_that_was_put_in_the_meantime() -> None:
    a = grown(None)
    gone = grown(decoded(a), removed=True)
    again = grown(decoded(gone))
    assert read([a, gone, None]) == (None, False)
    assert read([a, gone, again, None]) == (again, True)
    assert read([encode_definition(ONE), None]) == (None, False)  # it has no version: an older release wrote it


def test_a_definition_without_a_base_always_counts_and_so_does_what_cannot_be_read() -> None:
    a = grown(None)
    forced = encode_definition(replace(ONE, version="x"))
    assert read([a, forced]) == (forced, False)
    assert read([a, b"?"]) == (b"?", False)
    assert head_of(b"?") == Head()
    assert not is_void(Head(base="x", revision=1), Head().mark)


def test_an_entry_that_was_removed_is_not_among_what_counts() -> None:
    latest = Latest()
    a = grown(None)
    assert latest.add((ENTRY, "e"), a)
    assert latest.values() == {(ENTRY, "e"): a}
    assert latest.add((ENTRY, "e"), grown(decoded(a), removed=True))
    assert latest.values() == {}
