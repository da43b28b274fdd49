"""Which app and schedule each member has by its note, and whether they agree.

`celery neli status` reads them, and so does the beat that leads.
"""

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
    """The schedule of one living member: the beginning of its hash, its `neli_schedule_version`, how long ago (seconds,
    by two clocks) the member said so, and the name of its app if it has one.
    """

    name: str
    schedule: str
    version: int | None
    age: float
    app: str | None = None

    @property
    def silent(self) -> bool:
        """Return True if it was not heard for longer than a working member waits between two notes."""
        return self.age > SILENT

    @property
    def shown(self) -> str:
        """The schedule in a word or two."""
        return self.schedule if self.version is None else f"{self.schedule} (version {self.version})"


def living(notes: Mapping[str, Note], members: Collection[str] | None, now: float) -> list[MemberSchedule]:
    """Those whose note is young and who are in the group, by name; `members` is None if the group is not known. `now`
    is in Unix seconds.
    """
    return [
        MemberSchedule(
            name=name, schedule=note.schedule[:SHOWN], version=note.version, age=max(0.0, now - note.at), app=note.app
        )
        for name, note in sorted(notes.items())
        if abs(now - note.at) < LIVING and (members is None or name in members)
    ]


def apps_of(schedules: Sequence[MemberSchedule]) -> dict[str, list[str]]:
    """Return the names of the members of each app, by the app's name; members whose app has no name are left out."""
    apps: dict[str, list[str]] = {}
    for each in schedules:
        if each.app is not None:
            apps.setdefault(each.app, []).append(each.name)
    return apps


def sharing(apps: Mapping[str, Sequence[str]], group: str) -> str | None:
    """Return a line that says which apps share a group, where there is more than one; else None."""
    if len(apps) < 2:
        return None
    told = _some(
        [f"app {printable(app, 60)}: {_some([printable(each, 60) for each in apps[app]])}" for app in apps], "; "
    )
    return (
        f"different apps share one neli_group ({told}): only the schedule of the app that leads {group} runs; "
        "give each app a neli_group of its own"
    )


def _some(words: Sequence[str], separator: str = ", ") -> str:
    """Return the first few words, and how many more there are."""
    more = len(words) - NAMED
    return separator.join([*words[:NAMED], *([f"{more} more"] if more > 0 else [])])


def disagreement(schedules: Sequence[MemberSchedule]) -> str | None:
    """Who has which schedule, in a line; None if all have the same."""
    having: dict[str, list[str]] = {}
    for each in schedules:
        having.setdefault(each.shown, []).append(each.name)
    if len(having) < 2:
        return None
    return "members disagree on the schedule: " + "; ".join(
        f"{printable(each)}: {', '.join(map(printable, having[each]))}" for each in having
    )
