"""Changes of the runtime schedule while somebody else changes the same entries, and many changes at once."""

from __future__ import annotations

from typing import Any

import pytest

from celery_neli.exceptions import ConfigurationError, Conflict, NeliError
from celery_neli.periodic.batches import Batch
from celery_neli.periodic.edits import pausing, removing, resuming
from celery_neli.periodic.listing import listed
from celery_neli.schedule_topic.codec import ENTRY, decode_definition
from tests.unit.schedules import NOON, Desk


@pytest.fixture
def desk() -> Desk:
    return Desk()


def meddle(desk: Desk, *changes: Any) -> None:
    """Let somebody else make these changes, one just before each of the next writes."""
    left = list(changes)

    def next_one() -> None:
        if left:
            change, desk.store.meddle = left.pop(0), lambda: None
            change()
            desk.store.meddle = next_one

    desk.store.meddle = next_one


def whats(desk: Desk, name: str = "e") -> list[str]:
    return [each.what for each in desk.store.definition(name).changes]


def test_a_change_is_made_again_from_what_somebody_else_left(desk: Desk) -> None:
    """Neither is lost: the entry is paused, and has the new arguments."""
    desk.put("e")
    meddle(desk, lambda: desk.editor("bob").pause("e"))
    desk.put("e", args=[5])
    found = desk.store.definition("e")
    assert (found.paused, found.args) == (True, [5])
    assert whats(desk) == ["added", "paused", "changed args"]


def test_two_that_add_one_entry_leave_one_with_both_changes(desk: Desk) -> None:
    """What is written where nothing was known is void where something is."""
    meddle(desk, lambda: desk.put("e", args=[1]))
    desk.put("e", args=[2])
    assert (desk.store.definition("e").args, whats(desk)) == ([2], ["added", "changed args"])


def test_what_somebody_else_did_already_is_not_done_again(desk: Desk) -> None:
    """And the definition that counts is written again, behind the void one."""
    desk.put("e")
    meddle(desk, lambda: desk.editor("bob").pause("e"))
    desk.editor().pause("e")
    assert whats(desk) == ["added", "paused"]
    last = desk.store.writes[-1][-1]
    assert last.value is not None
    assert decode_definition(last.value).version == desk.store.definition("e").version


def test_an_expected_version_that_is_gone_is_a_conflict(desk: Desk) -> None:
    """Nothing is written, and the error says who was faster."""
    desk.put("e")
    seen = desk.look("e")
    desk.editor("bob").pause("e")
    writes = len(desk.store.writes)
    with pytest.raises(
        Conflict, match=rf"'e' has version .*'{seen.version}' was expected \(bob .*: paused\)"
    ) as raised:
        desk.editor().resume("e", expected=seen.version)
    assert raised.value.names == ("e",)
    assert len(desk.store.writes) == writes


def test_a_conflict_at_the_last_moment_leaves_what_the_other_wrote(desk: Desk) -> None:
    """It is written again, since Kafka keeps the last record of an entry only."""
    desk.put("e")
    version = desk.look("e").version
    meddle(desk, lambda: desk.put("e", args=[7]))
    with pytest.raises(Conflict, match="was expected"):
        desk.editor().pause("e", expected=version)
    found = desk.store.definition("e")
    assert (found.args, found.paused) == ([7], False)
    value = desk.store.writes[-1][-1].value
    assert value is not None
    assert decode_definition(value).version == found.version


def test_an_entry_that_must_not_exist_is_a_conflict_if_it_does(desk: Desk) -> None:
    """Also if it is made at that moment; one that was removed does not exist."""

    def add(desk: Desk) -> None:
        editor = desk.editor()
        editor.change(editor.to_put("e", "t", "PT1M", (), None, None, expected=""))

    meddle(desk, lambda: desk.put("e", args=[1]))
    with pytest.raises(Conflict, match="none was expected"):
        add(desk)
    assert desk.store.definition("e").args == [1]
    with pytest.raises(Conflict, match="none was expected"):
        add(desk)
    desk.editor().remove("e")
    add(desk)
    assert whats(desk) == ["added"]


def test_an_entry_that_is_gone_is_a_conflict_for_who_expects_it(desk: Desk) -> None:
    """The error says who removed it."""
    desk.put("e")
    version = desk.look("e").version
    desk.editor("bob").remove("e")
    with pytest.raises(Conflict, match=r"there is no entry 'e'.* \(bob .*: removed\)"):
        desk.editor().pause("e", expected=version)


def test_a_version_that_is_none_is_refused(desk: Desk) -> None:
    """As any value is."""
    with pytest.raises(ConfigurationError, match="expected = 5: give the version"):
        desk.editor().pause("static", expected=5)


def test_each_change_has_a_version_of_its_own(desk: Desk) -> None:
    """And nothing else does."""
    versions = []
    for args in ([1], [2], [2]):
        desk.put("e", args=args)
        versions.append(desk.look("e").version)
    assert len(set(versions)) == 2
    assert versions[1] == versions[2]


# -- notes, owners, the end of a pause --


def test_a_change_says_why_and_for_whom(desk: Desk) -> None:
    """A change without an owner leaves the owner as it is."""
    editor = desk.editor(note="the disk is full", owner="schedule.yaml")
    editor.put("e", "t", "PT1M", (), None, None)
    desk.put("e", args=[1])
    found = desk.look("e")
    assert (found.owner, found.note) == ("schedule.yaml", "")
    assert [each.note for each in found.changes] == ["the disk is full", ""]


@pytest.mark.parametrize("field", ["by", "note", "owner"])
@pytest.mark.parametrize("value", [5, " ", "two\nlines", "x" * 2000])
def test_what_says_nothing_is_refused(desk: Desk, field: str, value: Any) -> None:
    """It is shown to people."""
    with pytest.raises(ConfigurationError, match=f"{field} = "):
        desk.editor(**{"by": "alice", field: value})


def test_a_pause_ends_by_itself(desk: Desk) -> None:
    """Slots up to its end never run, and it can be made longer."""
    desk.put("e")
    desk.editor().pause("e", until=NOON + 90)
    assert (desk.look("e").paused, desk.look("e").until, desk.look("e").next) == (True, NOON + 90, None)
    desk.editor().pause("e", until=NOON + 150)
    desk.now = NOON + 151
    found = desk.look("e")
    assert (found.paused, found.until, found.since, found.next) == (False, None, NOON + 150, NOON + 210)
    assert whats(desk)[1] == "paused until 2026-06-01 12:01:30Z"


@pytest.mark.parametrize("until", [NOON, "tomorrow", True, float("nan"), 1e30])
def test_an_end_that_is_none_is_refused(desk: Desk, until: Any) -> None:
    """Nothing is stored."""
    with pytest.raises(ConfigurationError, match="until = "):
        desk.editor().pause("static", until=until)
    assert desk.store.writes == []


# -- batches --


@pytest.fixture
def batch(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Batch:
    monkeypatch.setattr("celery_neli.periodic.batches.ScheduleEditor", lambda app, **given: desk.editor())
    return Batch(desk.app)


def test_a_batch_is_written_at_its_end(desk: Desk, batch: Batch) -> None:
    """In one go; several changes of an entry are one record."""
    desk.put("old")
    with batch:
        batch.put("new", "t", "PT1M")
        batch.pause("old")
        batch.put("old", "t", "PT1M", args=[3])
        batch.remove("old")
        batch.put("old", "t", "PT2M")
        assert len(desk.store.writes) == 1
        assert len(batch) == 5
    assert [each.name for each in desk.store.writes[1]] == ["new", "old"]
    assert desk.store.definition("old").schedule == "PT2M"
    with pytest.raises(NeliError, match="has ended"):
        batch.put("late", "t", "PT1M")


def test_a_batch_whose_block_raises_writes_nothing(desk: Desk, batch: Batch) -> None:
    """Each call raises at once what is wrong with it."""
    with pytest.raises(NeliError, match="no entry 'unknown'"), batch:  # noqa: PT012
        batch.put("new", "t", "PT1M")
        batch.pause("unknown")
    assert desk.store.writes == []


def test_a_batch_with_a_conflict_writes_nothing_of_it(desk: Desk, batch: Batch) -> None:
    """If it is known before; the error names all of them."""
    for name in ("a", "b", "c"):
        desk.put(name)
    with pytest.raises(Conflict, match="nothing was changed") as raised, batch:  # noqa: PT012
        for name in ("a", "b"):
            batch.put(name, "t", "PT5M", expected="another")
        batch.put("c", "t", "PT5M")
    assert raised.value.names == ("a", "b")
    assert desk.store.definition("c").schedule == "PT1M"


def test_a_batch_writes_the_others_if_one_is_overtaken(desk: Desk, batch: Batch) -> None:
    """The error names that one only."""
    desk.put("a")
    version = desk.look("a").version
    meddle(desk, lambda: desk.put("a", args=[9]))
    with pytest.raises(Conflict) as raised, batch:  # noqa: PT012
        batch.put("a", "t", "PT5M", expected=version)
        batch.put("b", "t", "PT5M")
    assert raised.value.names == ("a",)
    assert (desk.store.definition("a").args, desk.store.definition("b").schedule) == ([9], "PT5M")


def test_a_batch_again_writes_what_is_missing_only(desk: Desk, batch: Batch) -> None:
    """As after the end of a process in its middle."""
    desk.put("a")
    with batch:
        batch.put("a", "t", "PT1M")
        batch.put("b", "t", "PT1M")
    assert [each.name for each in desk.store.writes[-1]] == ["b"]


# -- lists --


def names(desk: Desk, **wanted: Any) -> list[str]:
    return [each.name for each in listed(desk.editor(), **wanted)]


def test_entries_are_listed_by_name_as_they_are_asked_for(desk: Desk) -> None:
    """By prefix, after a name, so many, of an owner, with a tag."""
    for name in ("b/2", "a", "b/1", "b/3", "z"):
        desk.put(name)
    desk.editor(owner="me").put("b/2", "t", "PT1M", (), None, None)
    assert names(desk) == ["a", "b/1", "b/2", "b/3", "static", "z"]
    assert names(desk, prefix="b/") == ["b/1", "b/2", "b/3"]
    assert names(desk, prefix="b/", after="b/1", limit=1) == ["b/2"]
    assert names(desk, owner="me") == ["b/2"]
    assert names(desk, tag="billing") == []
    desk.editor().remove("a")
    assert names(desk, limit=1) == ["b/1"]


@pytest.mark.parametrize("wanted", [{"limit": 0}, {"limit": True}, {"prefix": 5}, {"after": 5}, {"tag": 5}])
def test_what_cannot_be_listed_is_refused_at_once(desk: Desk, wanted: dict[str, Any]) -> None:
    """Not when the first entry is asked for."""
    (field,) = wanted
    with pytest.raises(ConfigurationError, match=f"{field} = "):
        listed(desk.editor(), **wanted)


def test_an_edit_is_planned_before_kafka_is_asked(desk: Desk) -> None:
    """What is wrong with a name is found then."""
    for edit in (pausing, resuming, removing):
        with pytest.raises(ConfigurationError, match="name = 5"):
            edit(desk.editor(), 5)
    assert (ENTRY, "e") not in desk.store.values
