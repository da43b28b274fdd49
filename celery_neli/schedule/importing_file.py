"""What Celery's PersistentScheduler keeps in its file (`celerybeat-schedule`), read from a copy of it."""

from __future__ import annotations

import shelve
import shutil
import tempfile
from pathlib import Path
from typing import Any

from celery_neli.exceptions import NeliError
from celery_neli.schedule.importing import Source, of_entry

__all__ = ["read"]

#: What the kinds of dbm add to the name.
SUFFIXES = ("", ".db", ".dat", ".dir", ".bak", ".pag", "-wal", "-journal")
#: A copy that was made while beat wrote may be torn.
ATTEMPTS = 3
WARNING = "a beat that runs writes its file every few minutes: stop it first, for its last runs are in no file yet"


def read(app: Any, path: Path) -> Source:
    """All entries in the file, which is copied first: a beat that has it open is not disturbed, nothing is written.

    It is a shelf of pickles, which run code when they are read: only a file of one's own.

    :raises NeliError: there is no such file, or it is none of Celery's.
    """
    files = [found for suffix in SUFFIXES if (found := path.with_name(path.name + suffix)).is_file()]
    if not files:
        raise NeliError(f"there is no file {path}: give the path that celery beat has as its --schedule")
    for attempt in range(ATTEMPTS):
        try:
            entries = _entries(path.name, files)
            break
        except Exception as exc:  # noqa: BLE001 - of any dbm and any pickle
            if attempt == ATTEMPTS - 1:
                raise NeliError(f"{path} cannot be read as a schedule of celery beat: {exc}") from None
    else:
        raise AssertionError
    return Source(
        what=path.name,
        entries=[of_entry(entries[name], name=name, app=app) for name in sorted(entries, key=str)],
        mirrors=True,
        warning=WARNING,
    )


def _entries(name: str, files: list[Path]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="celery-neli-") as directory:
        for each in files:
            shutil.copyfile(each, Path(directory) / each.name)
        with shelve.open(str(Path(directory) / name), flag="r") as shelf:  # noqa: S301 - see `read`
            if "entries" not in shelf:
                raise LookupError("it holds no entries; a beat that has it open may not have written it yet: stop it")
            entries: dict[str, Any] = dict(shelf["entries"])
            return entries
