"""What is made of the members' notes."""

from __future__ import annotations

from celery_neli.schedule_topic.codec import Note
from celery_neli.schedule_topic.notes import disagreement, living

NOW = 1_732_365_000.0


def note(schedule: str, *, version: int | None = None, ago: float = 10.0) -> Note:
    return Note(schedule=schedule, version=version, at=NOW - ago)


def test_members_of_one_schedule_agree() -> None:
    """Nothing is said."""
    found = living({"b": note("0123456789"), "a": note("0123456789")}, {"a", "b"}, NOW)
    assert [(each.name, each.schedule, each.age) for each in found] == [("a", "01234567", 10), ("b", "01234567", 10)]
    assert disagreement(found) is None


def test_members_of_two_schedules_are_told_apart() -> None:
    """Who has which, and the versions."""
    notes = {"a": note("aaaaaaaaaa", version=3), "b": note("bbbbbbbbbb"), "c": note("aaaaaaaaaa", version=3)}
    told = disagreement(living(notes, None, NOW))
    assert told == "members disagree on the schedule: aaaaaaaa (version 3): a, c; bbbbbbbb: b"


def test_the_dead_do_not_disagree() -> None:
    """Neither an old note counts, nor that of a member that has left the group."""
    notes = {"a": note("a"), "old": note("b", ago=200), "left": note("c")}
    assert [each.name for each in living(notes, {"a", "old"}, NOW)] == ["a"]
    assert [each.name for each in living(notes, None, NOW)] == ["a", "left"]


def test_a_clock_that_is_ahead_makes_no_one_dead() -> None:
    """The age is not negative, either."""
    (found,) = living({"a": note("a", ago=-60)}, None, NOW)
    assert found.age == 0
