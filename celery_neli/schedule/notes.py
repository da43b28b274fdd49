"""Which schedule each member has, and whether they agree: what `celery neli status` makes of the members' notes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from celery_neli.schedule.records import Note

LIVING = 180.0  # seconds; members say it once a minute
SHOWN = 8  # hexadecimal digits of a hash


@dataclass(frozen=True, kw_only=True)
class MemberSchedule:
    """The schedule of one living member: the beginning of its hash, its `neli_schedule_version`, and how long ago
    (seconds, by two clocks) the member said so.
    """

    name: str
    schedule: str
    version: int | None
    age: float

    @property
    def shown(self) -> str:
        """The schedule in a word or two."""
        return self.schedule if self.version is None else f"{self.schedule} (version {self.version})"


def living(notes: Mapping[str, Note], members: Collection[str] | None, now: float) -> list[MemberSchedule]:
    """Those whose note is young and who are in the group, by name; `members` is None if the group is not known. `now`
    is in Unix seconds.
    """
    return [
        MemberSchedule(name=name, schedule=note.schedule[:SHOWN], version=note.version, age=max(0.0, now - note.at))
        for name, note in sorted(notes.items())
        if abs(now - note.at) < LIVING and (members is None or name in members)
    ]


def disagreement(schedules: Sequence[MemberSchedule]) -> str | None:
    """Who has which schedule, in a line; None if all have the same."""
    having: dict[str, list[str]] = {}
    for each in schedules:
        having.setdefault(each.shown, []).append(each.name)
    if len(having) < 2:
        return None
    return "members disagree on the schedule: " + "; ".join(f"{each}: {', '.join(having[each])}" for each in having)
