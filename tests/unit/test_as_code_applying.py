"""A file of the schedule is applied: what is written, what stays, and what somebody else did at the same time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from celery_neli.exceptions import NeliError
from celery_neli.periodic.as_code.applying import Prepared, apply, prepare, present_of
from celery_neli.periodic.as_code.document import read
from celery_neli.periodic.as_code.plan import compare
from celery_neli.periodic.as_code.writing import as_yaml
from celery_neli.periodic.editor import ScheduleEditor
from celery_neli.schedule_topic.codec import State
from tests.unit.schedules import Desk

HEAD = "version: 1\nowner: team\nentries:\n"


@pytest.fixture
def desk() -> Desk:
    return Desk()


def editor_of(desk: Desk, owner: str | None = "team") -> ScheduleEditor:
    return ScheduleEditor(desk.app, desk.store, by="ci", owner=owner, clock=lambda: desk.now)


def ready(desk: Desk, text: str, **how: bool) -> tuple[ScheduleEditor, Prepared]:
    document = read(desk.app, text.encode(), file="s.yaml")
    assert document.mistakes == []
    editor = editor_of(desk, document.owner or None)
    return editor, prepare(editor, document, **how)


def applied(desk: Desk, text: str, **how: bool) -> dict[str, str]:
    """Apply a file; return the conflicts. In the end, nothing of it is different but those."""
    editor, made = ready(desk, text, **how)
    assert made.mistakes == []
    late = apply(editor, made)
    document = read(desk.app, text.encode(), file="s.yaml")
    after = compare(desk.app, document, present_of(editor_of(desk)), adopt=False, now=desk.now)
    assert {step.name for step in after.steps if how.get("prune") or step.action != "prune"} == set(late)
    return late


def meddling(desk: Desk, *changes: Callable[[], Any]) -> None:
    """Let somebody else make these changes just before the next ones are written, one at each time."""
    waiting = list(changes)

    def meddle() -> None:
        if waiting:
            desk.store.meddle = lambda: None
            waiting.pop(0)()
            desk.store.meddle = meddle

    desk.store.meddle = meddle


def records(desk: Desk) -> int:
    return sum(map(len, desk.store.writes))


def test_each_entry_is_one_record_and_the_second_time_there_is_none(desk: Desk) -> None:
    """Put and paused in one; the owner, the note and the author stand in it."""
    text = f"{HEAD}  a: {{task: t, schedule: 5m, paused: true, note: by night}}\n  b: {{task: t, schedule: 1h}}\n"
    assert applied(desk, text) == {}
    assert records(desk) == 2
    found = desk.store.definition("a")
    assert (found.paused, found.owner, found.until) == (True, "team", None)
    assert [(each.what, each.note, each.by) for each in found.changes] == [
        ("added", "by night", "ci"), ("paused", "by night", "ci"),
    ]  # fmt: skip
    desk.now += 60
    assert applied(desk, text) == {}
    assert records(desk) == 2


def test_a_file_of_what_is_there_applied_elsewhere_gives_the_same_file(desk: Desk) -> None:
    """Byte for byte: values of Python, pauses and notes included."""
    applied(desk, HEAD + """\
  b: {task: t, schedule: every 2 hours, args: [{__type__: date, __value__: '2026-12-01'}, 'on'], note: why}
  a: {task: t, schedule: 0 7 * * *, paused: true, kwargs: {z: 1, a: [1.5, null]}, options: {queue: q, expires: 5}}
""")  # fmt: skip
    text = as_yaml("team", present_of(editor_of(desk)).entries.items())
    other = Desk()
    applied(other, text)
    assert as_yaml("team", present_of(editor_of(other)).entries.items()) == text


def test_what_does_not_change_the_schedule_keeps_the_rhythm_and_the_state(desk: Desk) -> None:
    """Another argument, another owner; another schedule begins now."""
    desk.put("a", "5m")
    begun = desk.now
    desk.store.set("a", State(begun + 300, 1, 7, begun))
    desk.now += 400
    applied(desk, f"{HEAD}  a: {{task: t, schedule: 5m, args: [1]}}\n", adopt=True)
    assert (desk.store.definition("a").since, desk.store.state("a").last) == (begun, begun + 300)
    assert desk.look("a").next == begun + 600
    applied(desk, f"{HEAD}  a: {{task: t, schedule: 10m, args: [1]}}\n")
    assert desk.store.definition("a").since == desk.now


def test_a_pause_of_an_operator_survives_a_file_that_does_not_speak_of_it(desk: Desk) -> None:
    """Even when the file changes the entry; one that says `paused: false` resumes it."""
    applied(desk, f"{HEAD}  a: {{task: t, schedule: 5m}}\n")
    desk.editor().pause("a", until=desk.now + 3600)
    applied(desk, f"{HEAD}  a: {{task: t, schedule: 5m, args: [1]}}\n")
    found = desk.store.definition("a")
    assert (found.paused, found.until, found.args) == (True, desk.now + 3600, [1])
    applied(desk, f"{HEAD}  a: {{task: t, schedule: 5m, args: [1], paused: false}}\n")
    assert not desk.store.definition("a").paused


def test_a_pause_that_ended_by_itself_is_none(desk: Desk) -> None:
    """Although its record still says so, until somebody writes the next one."""
    text = f"{HEAD}  a: {{task: t, schedule: 5m, paused: false}}\n"
    applied(desk, text)
    desk.editor().pause("a", until=desk.now + 60)
    desk.now += 60
    before = records(desk)
    assert applied(desk, text) == {}
    assert records(desk) == before


def test_pruned_is_what_the_owner_has_and_the_file_does_not_name(desk: Desk) -> None:
    """Not without being asked, and nothing of others."""
    applied(desk, f"{HEAD}  a: {{task: t, schedule: 5m}}\n  b: {{task: t, schedule: 5m}}\n")
    desk.put("web", "5m")
    text = f"{HEAD}  a: {{task: t, schedule: 5m}}\n"
    applied(desk, text)
    assert desk.store.definition("b") is not None
    applied(desk, text, prune=True)
    assert [name for name in ("a", "b", "web") if desk.store.definition(name) is not None] == ["a", "web"]


def test_nothing_may_be_done_if_one_entry_cannot_be(desk: Desk) -> None:
    """A foreign one, one of beat_schedule, one that the editor refuses: each is a mistake with its line."""
    desk.put("web", "5m")
    text = (
        HEAD
        + """\
  good: {task: t, schedule: 5m}
  web: {task: t, schedule: 5m}
  static: {task: t, schedule: 5m}
"""
    )
    _, made = ready(desk, text)
    assert sorted(made.mistakes) == [
        (5, "web: is there and has no owner: --adopt takes it over"),
        (6, "static: beat_schedule has an entry of that name: change it there, or take it out of this file"),
    ]
    desk.app.conf.neli_scheduler = "celery.beat.Scheduler"
    _, made = ready(desk, f"{HEAD}  good: {{task: t, schedule: 5m}}\n")
    assert [each.line for each in made.mistakes] == [4]
    assert "only celery_neli.ReplicatedScheduler runs entries" in made.mistakes[0].text


@pytest.mark.parametrize("flag", ["prune", "adopt"])
def test_what_belongs_to_an_owner_needs_one(desk: Desk, flag: str) -> None:
    """A file without owner would prune or take over what the application put."""
    _, made = ready(desk, "version: 1\nentries: {}\n", **{flag: True})
    assert made.mistakes == [(1, f"owner is missing, and --{flag} needs one: write 'owner: team-billing'")]


THREE = HEAD + "".join(f"  {name}: {{task: t, schedule: 5m, args: [1]}}\n" for name in "abc")


def test_a_change_between_comparing_and_applying_is_a_conflict_and_holds_up_no_other(desk: Desk) -> None:
    """The entry stays as they left it, and the line says who it was."""
    applied(desk, THREE.replace("[1]", "[0]"))
    editor, made = ready(desk, THREE)
    desk.put("b", "5m", args=[7])
    late = apply(editor, made)
    assert [*late] == ["b"]
    assert "alice made the last change" in late["b"]
    assert [desk.store.definition(name).args for name in "abc"] == [[1], [7], [1]]


def test_a_change_while_it_is_applied_is_a_conflict_and_holds_up_no_other(desk: Desk) -> None:
    """After the versions were looked at, and before the records arrive: also of an entry that was removed, or added."""
    applied(desk, THREE.replace("[1]", "[0]"))
    editor, made = ready(desk, f"{THREE}  d: {{task: t, schedule: 5m}}\n  e: {{task: t, schedule: 5m}}\n")
    meddling(desk, lambda: (desk.put("b", "5m", args=[7]), desk.editor().remove("c"), desk.put("d", "1h")))
    late = apply(editor, made)
    assert sorted(late) == ["b", "c", "d"]
    assert [desk.store.definition(name).args for name in "ab"] == [[1], [7]]
    assert desk.store.definition("c") is None
    assert (desk.store.definition("d").schedule, desk.store.definition("e").schedule) == ("PT1H", "PT5M")


def test_an_entry_that_somebody_else_changes_is_not_pruned(desk: Desk) -> None:
    """Neither what changed after the comparison nor what changes while it is removed."""
    applied(desk, THREE)
    editor, made = ready(desk, f"{HEAD}  a: {{task: t, schedule: 5m, args: [1]}}\n", prune=True)
    desk.put("b", "5m", args=[7])
    meddling(desk, lambda: desk.put("c", "5m", args=[8]))
    assert sorted(apply(editor, made)) == ["b", "c"]
    assert [desk.store.definition(name).args for name in "abc"] == [[1], [7], [8]]


def test_the_same_change_by_somebody_else_is_no_conflict(desk: Desk) -> None:
    """Two pipelines apply the same file at once: both end in its state."""
    applied(desk, THREE.replace("[1]", "[0]"))
    text = THREE.replace("  c:", "  d:")
    editor, made = ready(desk, text, prune=True)

    def other() -> None:
        second, again = ready(desk, text, prune=True)
        assert apply(second, again) == {}

    meddling(desk, other)
    assert apply(editor, made) == {}
    assert [name for name in "abcd" if desk.store.definition(name) is not None] == ["a", "b", "d"]


def test_changes_that_come_one_after_another_are_all_conflicts(desk: Desk) -> None:
    """One is seen when the versions are looked at, the other while the rest is written."""
    applied(desk, THREE.replace("[1]", "[0]"))
    editor, made = ready(desk, THREE)
    desk.put("a", "5m", args=[7])
    meddling(desk, lambda: desk.put("b", "5m", args=[8]))
    assert sorted(apply(editor, made)) == ["a", "b"]
    assert [desk.store.definition(name).args for name in "abc"] == [[7], [8], [1]]


def test_what_dies_in_the_middle_is_finished_by_the_next_time(desk: Desk) -> None:
    """The records that were written are good, and are not written again."""
    editor, made = ready(desk, THREE)
    write = desk.store.write

    def dies(writes: list[Any]) -> set[str]:
        write(writes[:2])
        raise NeliError("Kafka does not answer")

    desk.store.write = dies  # type: ignore[method-assign]
    editor, made = ready(desk, THREE)
    with pytest.raises(NeliError, match="does not answer"):
        apply(editor, made)
    desk.store.write = write  # type: ignore[method-assign]
    desk.now += 5
    assert applied(desk, THREE) == {}
    assert [len(each) for each in desk.store.writes] == [2, 1]
