"""What members' notes say together: `celery neli status` shows it, and the beat that leads looks at it. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from celery_neli.printable import printable
from celery_neli.schedule_topic.codec import Note

LIVING = 180.0  # seconds; members of older releases write a note once a minute
SILENT = 50.0  # seconds without a note after which a member is shown as not heard
NAMED = 4  # members and apps that a line names
SHOWN = 8  # hexadecimal digits of a hash


@dataclass(frozen=True, kw_only=True)
class MemberSchedule:
    """The schedule of a living member, and the name of its app."""

    name: str
    schedule: str  # the beginning of its hash
    version: int | None  # its `neli_schedule_version`
    age: float  # seconds, by two clocks, since the member said so
    app: str | None = None

    @property
    def silent(self) -> bool:
        """Return True if it was not heard for longer than a working member waits between two notes."""
        return self.age > SILENT

    @property
    def shown(self) -> str:
        """Return the schedule in a word or two."""
        return self.schedule if self.version is None else f"{self.schedule} (version {self.version})"


def living(notes: Mapping[str, Note], members: Collection[str] | None, now: float) -> list[MemberSchedule]:
    """Return the schedules, by name, of those whose note is young and who are among `members` (None: not known)."""
    return [
        MemberSchedule(
            name=name, schedule=note.schedule[:SHOWN], version=note.version, age=max(0.0, now - note.at), app=note.app
        )
        for name, note in sorted(notes.items())
        if abs(now - note.at) < LIVING and (members is None or name in members)
    ]


def names_by(schedules: Sequence[MemberSchedule], field: str) -> dict[str, list[str]]:
    """Return the names of the members that have the same `field` ("app", "shown"), by its value if it has one."""
    names: dict[str, list[str]] = {}
    for each in schedules:
        if (value := getattr(each, field)) is not None:
            names.setdefault(value, []).append(each.name)
    return names


def sharing(apps: Mapping[str, Sequence[str]], group: str) -> str | None:
    """Return a line that says which apps share a group, where there is more than one; else None."""
    if len(apps) < 2:
        return None
    named = [f"app {printable(app, 60)}: {_some([printable(each, 60) for each in apps[app]])}" for app in apps]
    return (
        f"different apps share one neli_group ({_some(named, '; ')}): only the schedule of the app that leads {group} "
        "runs; give each app a neli_group of its own"
    )


def _some(words: Sequence[str], separator: str = ", ") -> str:
    more = len(words) - NAMED
    return separator.join([*words[:NAMED], *([f"{more} more"] if more > 0 else [])])


def disagreement(schedules: Sequence[MemberSchedule]) -> str | None:
    """Return a line that says who has which schedule; None if all have the same."""
    having = names_by(schedules, "shown")
    if len(having) < 2:
        return None
    parts = (f"{printable(each)}: {', '.join(map(printable, names))}" for each, names in having.items())
    return f"members disagree on the schedule: {'; '.join(parts)}"
