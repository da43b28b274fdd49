"""Import from other schedulers: what an importer finds in RedBeat, django-celery-beat and the file of celery beat.

`run` checks all that was found, and then writes all of it or nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from celery.utils.time import maybe_make_aware

from celery_neli.printable import printable_error

__all__ = ["Found", "LeftOut", "Source", "of_entry", "seconds"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An entry of a source. Times are Unix seconds.

    `last`: its last run, None if it never ran. `since`: the time after which its slots count, if that is not its last
    run. `notes`: what is different here.
    """

    name: str
    task: Any
    schedule: Any
    args: Any = ()
    kwargs: Any = None
    options: Any = None
    paused: bool = False
    last: float | None = None
    runs: int = 0
    since: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """An entry of a source that cannot be imported, and why."""

    name: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What a scheduler keeps. `mirrors`: only entries of `beat_schedule`. `warning`: what to know before an import."""

    what: str
    entries: Sequence[Found | LeftOut]
    mirrors: bool = False
    warning: str | None = None


def of_entry(entry: Any, *, name: str | None = None, paused: bool = False, app: Any = None) -> Found | LeftOut:
    """Return a Celery entry as `Found`, and any other object as `LeftOut`.

    ``name`` is what its source calls it; ``app`` is for an entry that has none.
    """
    try:
        if app is not None:
            entry.app = entry.schedule.app = app
        options: Mapping[str, Any] = entry.options or {}
        arguments: Iterable[Any] = entry.args or ()
        return Found(
            name=entry.name,
            task=entry.task,
            schedule=entry.schedule,
            args=list(arguments),
            kwargs=entry.kwargs or {},
            options=options,
            paused=paused,
            last=seconds(entry.last_run_at),
            runs=entry.total_run_count or 0,
        )
    except Exception as exc:  # noqa: BLE001 - what is stored may raise anything; only this entry is left out
        why = f"is not an entry of Celery's: cannot be read: {printable_error(exc)}"
        return LeftOut(name=str(name or getattr(entry, "name", "?")), why=why)


def seconds(at: datetime | None) -> float | None:
    """Return a time as Celery keeps it (a naive one is UTC) in Unix seconds."""
    return None if at is None else maybe_make_aware(at).timestamp()
