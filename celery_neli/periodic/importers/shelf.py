"""What Celery's PersistentScheduler keeps in its file (`celerybeat-schedule`), read from a copy of it."""

from __future__ import annotations

import dbm
import re
import shutil
import tempfile
from collections.abc import Collection
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from celery.beat import ScheduleEntry

from celery_neli.exceptions import ConfigurationError, NeliError
from celery_neli.periodic.importers import Found, Source, found_or_left_out, seconds
from celery_neli.periodic.importers.pickles import ENTRY_CLASS, Made, Named, Revival, load
from celery_neli.printable import printable
from celery_neli.schedule_topic.values import MAX_INT, shown

SUFFIXES = ("", ".db", ".dat", ".dir", ".bak", ".pag", "-wal", "-journal")  # what the kinds of dbm append to the name
ATTEMPTS = 3  # attempts, because a copy that was made while a beat wrote the file may be torn
MOST = 1 << 28  # bytes, more than any schedule has
ENTRIES = b"entries"
WARNING = "a beat that runs writes its file every few minutes: stop it first, for its last runs are in no file yet"


def read(app: Any, path: Path, *, trust: Collection[str] = ()) -> Source:
    """Return all entries in the file. It is copied first, so a beat that has it open is not disturbed.

    The file is a shelf of pickles, which would run code when they are unpickled. They are read as a description
    (`pickles`). An entry that holds anything but Celery's schedules, datetimes and plain values is left out, unless its
    class is in ``trust`` (dotted paths): such classes are imported and called. Raises `NeliError` if there is no such
    file, or it is not a file of Celery's.
    """
    for name in trust:
        if re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", name) is None:
            raise ConfigurationError(
                f"trust = {printable(name)!r}: give the dotted path of a class: shop.schedules.Tides"
            )
    files = [found for suffix in SUFFIXES if (found := path.with_name(path.name + suffix)).is_file()]
    if not files:
        raise NeliError(f"there is no file {path}: give the path that celery beat has as its --schedule")
    error = Exception()
    for _ in range(ATTEMPTS):
        try:
            entries = _entries(path.name, files)
            break
        except Exception as exc:  # noqa: BLE001 - a dbm and a pickle may raise anything
            error = exc
    else:
        why = printable(str(error) or repr(error))
        raise NeliError(f"{path} cannot be read as a schedule of celery beat: {why}") from None
    revival = Revival(frozenset(trust))
    rows = [
        found_or_left_out(
            key if isinstance(key, str) else f"an entry whose name is not text ({type(key).__name__})",
            partial(_found, revival, key, value),
        )
        for key, value in entries.items()
    ]
    return Source(what=path.name, entries=sorted(rows, key=lambda each: each.name), mirrors=True, warning=WARNING)


def _entries(name: str, files: list[Path]) -> dict[Any, Any]:
    if sum(each.stat().st_size for each in files) > MOST:
        raise LookupError(f"it has more than {MOST >> 20} MiB")
    with tempfile.TemporaryDirectory(prefix="celery-neli-") as directory:
        for each in files:
            shutil.copyfile(each, Path(directory) / each.name)
        with dbm.open(str(Path(directory) / name), "r") as store:
            if ENTRIES not in store:
                raise LookupError("it holds no entries; a beat that has it open may not have written it yet: stop it")
            entries = load(store[ENTRIES])
    if not isinstance(entries, dict):
        raise LookupError("what it holds as entries is not a dict")
    return entries


def _found(revival: Revival, name: Any, value: Any) -> Found:
    if not isinstance(name, str):
        raise NeliError("its name is not text")
    if not isinstance(value, Made):
        raise NeliError(f"is not an entry of a schedule but a {type(value).__name__}")
    path = revival.refused(value)
    if path is not None:
        raise NeliError(f"holds {printable(path)}, whose code would run: allow it by --trust {printable(path)}")
    if isinstance(value.of, Named) and value.of.name == ENTRY_CLASS:
        fields = dict(zip(("name", "task", "last_run_at", "total_run_count"), value.args, strict=False), **value.kwargs)
        task, runs = fields.get("task"), fields.get("total_run_count")
        last = revival.make(fields.get("last_run_at"))
    else:
        entry = revival.make(value)
        if not isinstance(entry, ScheduleEntry):
            raise NeliError(f"is not an entry of a schedule but a {printable(type(entry).__name__)}")
        task, runs, last = entry.task, entry.total_run_count, entry.last_run_at
    if not isinstance(last, (datetime, type(None))):
        raise NeliError(f"cannot be read: last_run_at = {shown(last)}: it must be a datetime")
    if type(runs or 0) is not int or not 0 <= (runs or 0) <= MAX_INT:
        raise NeliError(f"cannot be read: total_run_count = {shown(runs)}: it must be an integer from 0 on")
    return Found(name=name, task=task, schedule=None, last=seconds(last), runs=runs or 0)
