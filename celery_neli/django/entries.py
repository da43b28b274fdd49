"""What the admin reads and does: one page of entries, one entry, its history, and changes of many.

Everything goes through `celery_neli.periodic`; nothing is kept between two requests. All functions block for Kafka.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from celery.beat import SchedulingError

from celery_neli import periodic
from celery_neli.exceptions import Conflict, NeliError
from celery_neli.periodic import Change, Periodic, Run
from celery_neli.periodic.editor import ScheduleEditor
from celery_neli.periodic.listing import listed
from celery_neli.printable import printable

PAGE: Final = 100  # entries of a page
LOOKED: Final = 10_000  # entries that are looked at for one page
ACTIVE, PAUSED, FINISHED, PROBLEM = STATES = ("active", "paused", "finished", "problem")
BEAT_SCHEDULE: Final = "beat_schedule"
RUNTIME: Final = "runtime"


def state_of(entry: Periodic) -> str:
    """Return one of `STATES`. A problem that only may be one leaves an entry active."""
    unrun = entry.source == RUNTIME and entry.next is None
    if entry.problem and (entry.task is None or (unrun and not entry.paused)):
        return PROBLEM
    if entry.paused or entry.paused_by is not None:
        return PAUSED
    return FINISHED if entry.finished else ACTIVE


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Which entries are asked for. `contains`: the text may be anywhere in a name, not at its beginning only. `after`
    and `before`: only the page that follows, or precedes, this name.
    """

    text: str = ""
    contains: bool = False
    state: str = ""
    source: str = ""
    tag: str = ""
    owner: str = ""
    after: str = ""
    before: str = ""

    def matches(self, entry: Periodic) -> bool:
        """Return True if an entry whose name is asked for is asked for."""
        return (
            self.source in ("", entry.source)
            and self.owner in ("", entry.owner)
            and (not self.tag or self.tag in entry.tags)
            and self.state in ("", state_of(entry))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Some entries, by name. `earlier` and `later`: the names at which the pages before and after this one go on, None
    if there is none. `looked`: how many entries were looked at, if that ended the page before it was full.
    """

    entries: list[Periodic]
    earlier: str | None = None
    later: str | None = None
    looked: int | None = None


def page(app: Any, query: Query, size: int = PAGE, most: int = LOOKED) -> Page:
    """Return a page of entries. Reading stops, in both directions, where the page is full, or after `most` entries,
    which are looked at in about two seconds.
    """
    found: list[Periodic] = []
    further, last = None, ""  # where the next page goes on; the name that was looked at last
    looked = None
    for count, each in enumerate(_listed(app, query)):
        if count == most:
            further, looked = last, count
            break
        if query.matches(each):
            if len(found) == size:
                further = found[-1].name
                break
            found.append(each)
        last = each.name
    if query.before:
        return Page(entries=found[::-1], earlier=further, later=found[0].name if found else None, looked=looked)
    start = found[0].name if found else f"{query.after} "  # which is behind that name itself
    return Page(entries=found, earlier=start if query.after else None, later=further, looked=looked)


def _listed(app: Any, query: Query) -> Iterator[Periodic]:
    static = query.source == BEAT_SCHEDULE
    editor = ScheduleEditor(app)

    def named(name: str) -> bool:
        return query.text in name and (not static or name in editor.static or name in editor.refused)

    return listed(
        editor, prefix="" if query.contains else query.text,
        after=query.after or None, before=query.before or None, named=named,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What is known of an entry's past, the latest first; `missing` says what could not be read, and why."""

    changes: list[Change]
    runs: list[Run]
    missing: list[str]


def history(app: Any, name: str, entry: Periodic | None, most: int = 50) -> History:
    """Return the last changes and runs of an entry, which may be gone. Never raises because something is not recorded.

    Of an entry that is there, its own record names its last changes; `periodic.changes` remembers longer.
    """
    changes, runs, missing = [*reversed(entry.changes if entry is not None else ())], [], []
    read: Any = getattr(periodic, "changes", None)
    try:
        changes = (read(app, name, limit=most) if read is not None else None) or changes
    except NeliError as exc:
        missing.append(f"Only the last changes are shown: {exc}")
    try:
        runs = periodic.runs(app, name, limit=most)
    except NeliError as exc:
        missing.append(f"The runs cannot be shown: {exc}")
    return History(changes=changes, runs=runs, missing=missing)


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What became of an action for many: the names of what was changed, and one line for each that was not."""

    names: list[str]
    mistakes: list[str]


def change_many(app: Any, names: Iterable[str], what: str, *, by: str) -> Done:
    """Pause, resume, remove (`what`) or run (``run_now``) entries. Those that are refused stop no other."""
    if what == "run_now":
        return _each(names, lambda name: periodic.run_now(app, name, by=by))
    done: list[str] = []
    mistakes: list[str] = []
    try:
        with periodic.batch(app, by=by) as batch:
            found = _each(names, getattr(batch, what))
            done, mistakes = found.names, found.mistakes
    except Conflict as exc:
        mistakes.append(str(exc))
        done = [each for each in done if each not in exc.names]
    except NeliError as exc:
        return Done(names=[], mistakes=[str(exc)])
    return Done(names=done, mistakes=mistakes)


def _each(names: Iterable[str], change: Callable[[str], Any]) -> Done:
    done, mistakes = [], []
    for name in names:
        try:
            change(name)
        except (NeliError, SchedulingError) as exc:
            mistakes.append(f"Entry {printable(name)}: {exc}")
        else:
            done.append(name)
    return Done(names=done, mistakes=mistakes)
