"""The note that a process keeps of its health: a small file, replaced every two seconds, which goes with the process.

Only a thread of its own writes it, as a disk may hang; then the note grows old, and is taken for that of a process that
is not well.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from celery_neli.health.directory import REMEDY, Directory, DirectoryError, opened
from celery_neli.health.processes import look_up, where
from celery_neli.logs import escaping
from celery_neli.threads import Thread, original, spawn

if TYPE_CHECKING:  # else the command `celery neli health` would load the whole election
    from celery_neli.health.vitals import Report

LOOK_EVERY: Final = 1.0  # seconds between two looks if something has changed, which is written at once
WRITE_EVERY: Final = 2.0
FOREIGN_MOST: Final = 3_600.0  # seconds after which the note of another boot or container is removed
JOIN: Final = 1.0
VERSION: Final = 1
SUFFIX: Final = ".json"

logger = escaping(logging.getLogger(__name__))


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """What a process says of itself. `written` is `time.monotonic()`, which all processes of a machine share."""

    version: int
    pid: int
    started: int  # of the process, in ticks since the boot: tells it from another one with this pid
    where: str  # boot and space of pids
    group: str
    election: str
    name: str
    hung: list[str]
    missing: list[str]
    leads: list[str]
    written: float

    def encode(self) -> bytes:
        """Return it as it is in the file."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, content: bytes) -> Note | None:
        """Return the note in a file; None if it is none, or one of another release."""
        try:
            note: Any = cls(**json.loads(content))  # of any types
        except (ValueError, TypeError, RecursionError):
            return None
        texts = (note.where, note.group, note.election, note.name)
        lists = (note.hung, note.missing, note.leads)
        fit = (
            note.version == VERSION
            and all(type(each) is int for each in (note.version, note.pid, note.started))
            and all(isinstance(each, str) for each in texts)
            and all(isinstance(each, list) and all(isinstance(one, str) for one in each) for each in lists)
            and type(note.written) in (int, float)
        )
        return cast("Note", note) if fit else None


def file_name(group: str, space: str, pid: int) -> str:
    """Return the name of the note of a process: a group's name may be too long for a file's."""
    digest = sha256(f"{group} {space}".encode()).hexdigest()[:16]
    return f"{digest}-{pid}{SUFFIX}"


def is_gone(note: Note, space: str, age: float) -> bool:
    """Return True if the process of a note has ended. In the view of this process, which is in this `space` (`where`);
    of other ones it is unknown, until the note's file is an hour old (`age`: seconds).
    """
    if note.where != space:
        return age > FOREIGN_MOST
    found = look_up(note.pid)
    return found is None or found[1] != note.started


def sweep(directory: Directory, space: str) -> None:
    """Remove what processes have left that ended without a word, and files that are no notes and an hour old."""
    for name in directory.names():
        found = directory.read(name)
        if found is None:
            continue
        note, age = Note.decode(found[0]), time.time() - found[1]
        if age > FOREIGN_MOST if note is None else is_gone(note, space, age):
            directory.remove(name)


class NoteKeeper:
    """Keeps the note of this process in the directory at `path`, on a thread of its own.

    If it cannot, it says so once at INFO and goes on trying: nothing but `celery neli health` depends on it.
    """

    def __init__(self, path: Path, group: str, election: str, name: str, report: Callable[[], Report]) -> None:
        self._path, self._report = path, report
        self._pid, self._where = os.getpid(), where()
        found = look_up(self._pid)
        self._same: Mapping[str, Any] = {
            "version": VERSION, "pid": self._pid, "started": found[1] if found else 0, "where": self._where,
            "group": group, "election": election, "name": name,
        }  # fmt: skip
        self._file = file_name(group, self._where, self._pid)
        self._written: tuple[Report | None, float] = None, float("-inf")
        self._swept = self._said = False
        self._stopping: Any = original("_thread", "allocate_lock")()
        self._thread: Thread | None = None

    def start(self) -> None:
        """Begin to write the note."""
        self._stopping.acquire()
        self._thread = spawn(self._run, name="neli-health-note")

    def stop(self) -> None:
        """Remove the note; wait for a second at most. Repeatable, for one thread."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._stopping.release()
            thread.join(JOIN)

    def write(self) -> None:
        """Write the note if it has changed or is two seconds old. For one thread."""
        report, now = self._report(), time.monotonic()
        if (report.leads, bool(report.hung), bool(report.missing)) == self._state() and (
            now - self._written[1] < WRITE_EVERY
        ):
            return
        note = Note(
            **self._same, hung=list(report.hung), missing=list(report.missing), leads=list(report.leads), written=now
        )
        try:
            with opened(self._path, create=True) as directory:
                if not self._swept:
                    self._swept = True
                    sweep(directory, self._where)
                directory.replace(self._file, note.encode())
        except (OSError, DirectoryError) as exc:
            self._say(str(exc))
        else:
            self._written = report, now

    def _state(self) -> tuple[tuple[str, ...], bool, bool] | None:
        report = self._written[0]
        return None if report is None else (report.leads, bool(report.hung), bool(report.missing))

    def _say(self, reason: str) -> None:
        if not self._said:
            self._said = True
            logger.info("health not noted: `celery neli health` cannot see this process: %s; %s", reason, REMEDY)

    def _write_or_say(self) -> None:
        try:
            self.write()
        except Exception:
            if not self._said:
                self._said = True
                logger.exception("health not noted, which is logged once")

    def _run(self) -> None:
        try:
            self._write_or_say()
            while not self._stopping.acquire(timeout=LOOK_EVERY):
                self._write_or_say()
        finally:
            try:
                with opened(self._path, create=False) as directory:
                    directory.remove(self._file)
            except (OSError, DirectoryError):
                pass
