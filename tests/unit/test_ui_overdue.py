"""What the page shows as overdue: found by the rules of the alarms, and gone once it happened."""

from __future__ import annotations

from typing import Any

from starlette.testclient import TestClient

from celery_neli.history.records import RunRecord, SlotRecord
from celery_neli.schedule_topic.codec import Definition, State, encode_definition, encode_state
from celery_neli.ui.overdue import OverdueIndex
from celery_neli.ui.state import State as PageState
from tests.ui.example import app_of, page_of, state_of

NOW = 1_800_000_000.0


def watched(**settings: Any) -> tuple[PageState, OverdueIndex]:
    """A page that knows one entry, with a slot each ten minutes, the last of them sent at `NOW`."""
    state = state_of(app_of(**settings))
    index = OverdueIndex(state.app, {}, state.schedule.states, group="g.beat", now=NOW)
    state.overdue = index
    for kind, value in (
        ("e", encode_definition(Definition(task="t", schedule="PT10M", since=NOW - 6_000))),
        ("s", encode_state(State(NOW, 9, 5, NOW - 6_000))),
    ):
        state.schedule.add(kind, "a", value)  # type: ignore[arg-type]
        index.entry(kind, "a", value, NOW)  # type: ignore[arg-type]
    return state, index


def settle(state: PageState, index: OverdueIndex, last: float) -> None:
    value = encode_state(State(last, 10, 5, NOW - 6_000))
    state.schedule.add("s", "a", value)
    index.entry("s", "a", value, last)


def test_a_slot_that_was_not_sent_is_overdue_until_it_is() -> None:
    """After sixty seconds and a tenth of its interval, as the alarms say; once it is settled, it is not."""
    state, index = watched()
    assert not index.judge(NOW + 600 + 119)
    assert index.all() == []
    assert index.judge(NOW + 600 + 124)
    assert [(each.entry, each.slot, each.reason, each.allowance) for each in index.all()] == [
        ("a", NOW + 600, "not_sent", 120.0)
    ]
    told = TestClient(page_of(state)).get("/attention").text
    assert "was not sent" in told
    assert 'href="/entry?name=a"' in told
    settle(state, index, NOW + 600)
    assert index.all() == []
    assert "Nothing." in TestClient(page_of(state)).get("/attention").text


def test_a_task_that_no_worker_started_is_overdue_until_one_does() -> None:
    """If workers are known to report; and one that runs for longer than it may, until it has ended."""
    state, index = watched(neli_max_runtime=30.0)
    made: dict[str, Any] = {"entry": "a", "task": "t"}
    index.record(RunRecord(**made, slot=NOW - 600, id="0", state="succeeded", at=NOW - 599, worker="w"))
    index.record(SlotRecord(**made, slot=NOW, id="1", outcome="sent", at=NOW, member="b"))
    index.judge(NOW + 130)
    assert [each.reason for each in index.all()] == ["not_started"]
    index.record(RunRecord(**made, slot=NOW, id="1", state="started", at=NOW + 131, worker="w"))
    assert index.all() == []
    index.judge(NOW + 170)
    assert [(each.reason, each.worker) for each in index.all()] == [("not_finished", "w")]
    assert "has not finished" in TestClient(page_of(state)).get("/attention").text
    index.record(RunRecord(**made, slot=NOW, id="1", state="succeeded", at=NOW + 171, worker="w"))
    assert index.all() == []


def test_before_the_schedule_is_read_nothing_is_said() -> None:
    """The page says that it does not know."""
    assert "It is not known yet" in TestClient(page_of(state_of(app_of()))).get("/attention").text
