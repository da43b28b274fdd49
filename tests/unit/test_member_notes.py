"""The members of a beat election say that they are of different apps."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

import pytest

from celery_neli.beat.replicated import host as keeper
from celery_neli.beat.replicated.member_notes import MOST, SETTLE, MemberNotes
from celery_neli.schedule_topic.codec import ENTRY, MEMBER, Note, decode_note, encode_note
from celery_neli.schedule_topic.notes import living, names_by, sharing
from tests.unit.fakes import FakeTopic
from tests.unit.schedulers import Beat, eventually, make_app

NOW = 1_732_365_000.0


def note(app: str | None, *, ago: float = 5.0) -> bytes:
    return encode_note(Note(schedule="0123abcd", version=None, at=NOW - ago, app=app))


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage() for record in caplog.records if record.name == "celery_neli.beat.replicated.member_notes"
    ]


@pytest.fixture
def notes() -> MemberNotes:
    return MemberNotes("beat1", "shop", "g.beat", clock=lambda: NOW)


def test_members_of_another_app_are_named_once_a_minute(notes: MemberNotes, caplog: pytest.LogCaptureFixture) -> None:
    """With both apps, what it means and the way out, as an error."""
    notes.read({(MEMBER, "beat2"): note("shop"), (MEMBER, "blog1"): note("blog")})
    for _ in range(3):
        notes.warn(leads=True)
    (line,) = said(caplog)
    assert "app shop: beat1, beat2; app blog: blog1" in line
    assert "neli_group of its own" in line
    assert caplog.records[-1].levelno == logging.ERROR


def test_a_standby_says_it_once_and_not_of_a_member_that_it_only_reads_of(caplog: pytest.LogCaptureFixture) -> None:
    """For readers of the log of the app whose schedule does not run."""
    clock = [NOW]
    notes = MemberNotes("beat1", "shop", "g.beat", clock=lambda: clock[0])
    notes.read({(MEMBER, "gone"): note("blog")})
    notes.warn(leads=False)
    notes.read({(MEMBER, "gone"): None})
    notes.warn(leads=False)
    clock[0] += 2 * SETTLE
    notes.read({(MEMBER, "blog1"): note("blog")})
    notes.warn(leads=False)
    assert said(caplog) == []
    for _ in range(30):
        clock[0] += SETTLE
        notes.warn(leads=False)
    (line,) = said(caplog)
    assert line.startswith("beat: app=shop stands by in group=g.beat: different apps share one neli_group (")


@pytest.mark.parametrize(
    "others",
    [
        {},
        {"beat2": note("shop")},
        {"beat2": note(None)},
        {"blog1": note("blog", ago=300)},
        {"blog1": b"?"},
        {"beat1": note("blog")},
    ],
)
def test_of_one_app_nothing_is_said(
    notes: MemberNotes, caplog: pytest.LogCaptureFixture, others: dict[str, bytes]
) -> None:
    """Nor of an older release, of a member long gone, of what is no note, and of this process's name before."""
    notes.read({(MEMBER, name): value for name, value in others.items()})
    notes.warn(leads=True)
    assert said(caplog) == []


def test_a_member_that_left_counts_no_more(notes: MemberNotes, caplog: pytest.LogCaptureFixture) -> None:
    """Its note is deleted when it ends."""
    notes.read({(MEMBER, "blog1"): note("blog")})
    notes.read({(MEMBER, "blog1"): None})
    notes.warn(leads=True)
    assert said(caplog) == []


def test_an_app_without_a_name_is_compared_with_none(caplog: pytest.LogCaptureFixture) -> None:
    """It may be any."""
    notes = MemberNotes("beat1", None, "g.beat", clock=lambda: NOW)
    notes.read({(MEMBER, "blog1"): note("blog")})
    notes.warn(leads=True)
    assert said(caplog) == []


def test_names_of_apps_cannot_forge_a_line(notes: MemberNotes, caplog: pytest.LogCaptureFixture) -> None:
    """Notes may be written by anybody who can write to the topic; and their number is bounded."""
    notes.read({(MEMBER, f"m{number}\n"): note("blog\nERROR\x1b[2J") for number in range(2 * MOST)})
    notes.warn(leads=True)
    (line,) = said(caplog)
    assert line.isprintable()
    assert f"{MOST - 4} more" in line
    assert line.endswith("give each app a neli_group of its own")


def test_the_name_of_the_app_is_an_addition_to_the_note() -> None:
    """A release that does not know it still reads the note, and this one reads a note without it."""
    fields = json.loads(note("shop"))
    assert (fields.pop("app"), fields.keys()) == ("shop", {"v", "schedule", "version", "at"})
    assert decode_note(json.dumps(fields).encode()).app is None
    assert decode_note(json.dumps({**fields, "app": "shop", "later": [1]}).encode()).app == "shop"


def test_status_tells_apps_apart() -> None:
    """As the leader does."""
    told = living({"a": decode_note(note("shop")), "b": decode_note(note("blog"))}, None, NOW)
    line = sharing(names_by(told, "app"), "g.beat")
    assert line is not None
    assert "(app shop: a; app blog: b)" in line
    assert sharing(names_by(told[:1], "app"), "g.beat") is None


def test_a_beat_writes_its_app_into_its_note_and_says_that_another_app_shares_its_group(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """At once when it leads."""
    topic = FakeTopic()
    other = encode_note(Note(schedule="89abcdef", version=None, at=time.time(), app="blog"))
    topic.log.append((MEMBER, "blog1", other, None))
    app = make_app(neli_scheduler=None, beat_schedule={"e": {"task": "t", "schedule": 3600.0}})
    with Beat(app, topic=topic) as beat:
        beat.turns()
        assert said(caplog) == []
        beat.leadership.grant(1)
        eventually(lambda: said(caplog), what="the line")
        mine = [decode_note(value) for kind, _, value, writer in topic.log if kind == MEMBER and writer is topic]
        assert [each.app for each in mine] == ["test"]
    assert "app blog: blog1" in said(caplog)[0]


class Busy(FakeTopic):
    """There is always more to read than a portion."""

    def drain(self) -> Any:
        for n in range(100):
            self.log.append((ENTRY, f"gone{n}", None, None))
        return super().drain()


def test_a_beat_that_is_busy_all_the_time_writes_its_note(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no dead member: a flood takes a beat a while."""
    monkeypatch.setattr(keeper, "PORTION", 0.0)
    topic = Busy()
    app = make_app(neli_scheduler=None, beat_schedule={"e": {"task": "t", "schedule": 3600.0}})
    with Beat(app, topic=topic):
        eventually(lambda: [kind for kind, _, _, writer in topic.log if kind == MEMBER and writer is topic], what="it")
