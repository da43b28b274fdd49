"""Text that others wrote, in the log of a beat that leads, of one that stands by, and of a worker."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest

from celery_neli.logs import escaping
from celery_neli.schedule_topic.codec import ENTRY, MEMBER, STATE
from celery_neli.schedule_topic.pending import PendingReads
from tests.unit import hostile
from tests.unit.beats import START, World

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever is logged during the test, Celery's own lines too, is one line that harms no terminal."""
    for name in ("celery_neli", "celery"):
        caplog.set_level(logging.INFO, name)  # Celery tells the source of its functions at DEBUG
    yield
    found = [record.getMessage() for record in caplog.get_records("call")]
    assert found, "nothing was logged"
    for line in found:
        assert line.isprintable(), line[:300]


@pytest.mark.parametrize("leads", [True, False])
@pytest.mark.parametrize("text", hostile.TEXTS, ids=range(len(hostile.TEXTS)))
def test_a_beat_that_reads_hostile_entries_goes_on_and_its_log_stays_readable(text: str, leads: bool) -> None:
    """Entries of such names are left out, wherever the text stands; the good one beside them runs."""
    world = World({"e": 10.0})
    world.leader()
    standby = world.beat()
    world.ticks(until=5)
    if not leads:
        world.beats[0].hand_over()
        standby.member.lead()
    fields: dict[str, Any] = {"since": START + 5, "task": "t", "schedule": "PT1S", "args": [], "kwargs": {}}
    for name, value in {
        text: hostile.definition(text, **fields),
        "task": hostile.definition(text, **{**fields, "task": text}),
        "schedule": hostile.definition(text, **{**fields, "schedule": text}),
        "args": hostile.definition(text, **{**fields, "args": [text], "kwargs": {text: text}}),
        "options": hostile.definition(text, **fields, options={text: text}),
        "good": hostile.definition("good", **{**fields, "changes": []}),
    }.items():
        world.log.append((ENTRY, name, value, None))
    world.log.append((STATE, text, b"?", None))
    world.log.append((MEMBER, text, hostile.note(text, at=START), None))
    world.ticks(until=12)
    for name in (text, "task"):
        world.log.append((ENTRY, name, None, None))
    world.ticks(until=15)
    assert world.slots("good")


@pytest.mark.parametrize("text", hostile.TEXTS, ids=range(len(hostile.TEXTS)))
def test_a_key_that_is_none_of_ours_is_refused_in_one_line(text: str) -> None:
    """The key and the name stand in the line."""
    found = PendingReads(lambda key, value: False, escaping(logging.getLogger("celery_neli.schedule")))
    found.add(text.encode("utf-8", "surrogatepass"), b"?")
    found.refuse("e", f"kind=e name={text!r}: bad")
