"""What the processes of an election on this machine say of their health, and what can be seen of them from outside."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from celery_neli.health.directory import Directory, DirectoryError, opened
from celery_neli.health.notes import SUFFIX, Note, is_gone
from celery_neli.health.processes import STOPPED, look_up, where

FRESH: Final = 10.0
"""Seconds that a note may be old: a process writes it every two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """One process: well if nothing is in `hung`, ready if also nothing is in `missing`."""

    pid: int
    election: str
    group: str
    name: str
    hung: tuple[str, ...]
    missing: tuple[str, ...]
    leads: tuple[str, ...]

    @property
    def well(self) -> bool:
        """True unless only a restart helps."""
        return not self.hung

    @property
    def ready(self) -> bool:
        """True if it leads, or could take a role over now."""
        return self.well and not self.missing


@dataclass(slots=True)
class Survey:
    """What was found: the processes, those that ended without a word (their notes were removed), and why not more."""

    found: list[Health] = field(default_factory=list)
    ended: list[Note] = field(default_factory=list)
    trouble: str = ""


def survey(path: Path, groups: Collection[str]) -> Survey:
    """Look for the processes of these consumer groups in the directory at `path`. Takes milliseconds; raises nothing
    of what files and processes may do.
    """
    result, space = Survey(), where()
    try:
        with opened(path, create=False) as directory:
            for name in directory.names():
                if name.endswith(SUFFIX):
                    _take(directory, name, groups, space, result)
    except (OSError, DirectoryError) as exc:
        result.trouble = str(exc)
    result.found.sort(key=lambda each: (each.election, each.name))
    return result


def _take(directory: Directory, name: str, groups: Collection[str], space: str, result: Survey) -> None:
    content = directory.read(name)
    note = None if content is None else Note.decode(content[0])
    if content is None or note is None or note.group not in groups:
        return
    if is_gone(note, space, time.time() - content[1]):
        directory.remove(name)
        if note.where == space:
            result.ended.append(note)
    elif note.where == space:
        result.found.append(_judge(note))


def _judge(note: Note) -> Health:
    hung = list(note.hung)
    process, age = look_up(note.pid), time.monotonic() - note.written
    if process is not None and process[0] and process[0] in STOPPED:
        hung.insert(0, "a signal or a debugger has stopped it")
    elif not 0 <= age <= FRESH:
        hung.insert(0, f"it has not noted for {age:.0f} s that it is well: it hangs, or it cannot write its note")
    leads = () if hung else tuple(note.leads)
    return Health(
        pid=note.pid, election=note.election, group=note.group, name=note.name, hung=tuple(hung),
        missing=tuple(note.missing), leads=leads,
    )  # fmt: skip
