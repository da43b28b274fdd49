"""The directory of notes: of one user, closed to all others, so that nobody else can write or redirect a note.

It is `celery-neli-<uid>` in `neli_health_dir`, or in the directory for temporary files.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

MOST_BYTES: Final = 65_536  # of a note
REMEDY: Final = "set neli_health_dir to a directory that this user can write, on a tmpfs for instance"


class DirectoryError(Exception):
    """The directory of notes cannot be used; says why."""


def path_of(base: str | None) -> Path:
    """Return the path of this user's directory of notes in `base` (None: the directory for temporary files). Raises
    `DirectoryError`.
    """
    if not base:
        try:
            base = tempfile.gettempdir()
        except OSError as exc:
            raise DirectoryError(f"there is no directory for temporary files ({exc.strerror or exc})") from None
    return Path(base, f"celery-neli-{os.geteuid()}")


class Directory:
    """Reads, replaces and removes files of a directory by its descriptor. Errors are `OSError`."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def names(self) -> list[str]:
        """Return the names of the files."""
        return sorted(os.listdir(self._descriptor))  # noqa: PTH208 - a Path has no descriptor

    def read(self, name: str) -> tuple[bytes, float] | None:
        """Return the content of a regular file of this user, and when it was written (Unix seconds); else None."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a FIFO must not make it wait
        try:
            file = os.open(name, flags, dir_fd=self._descriptor)
        except OSError:
            return None  # a link, or removed by now
        try:
            found = os.fstat(file)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
                return None
            return os.read(file, MOST_BYTES), found.st_mtime
        finally:
            os.close(file)

    def replace(self, name: str, content: bytes) -> None:
        """Write a file, in one step for readers."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(f"{name}.new", flags, 0o600, dir_fd=self._descriptor)
        try:
            os.write(file, content)
        finally:
            os.close(file)
        os.replace(f"{name}.new", name, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        try:
            os.unlink(name, dir_fd=self._descriptor)
        except FileNotFoundError:
            pass


@contextmanager
def opened(path: Path, *, create: bool) -> Iterator[Directory]:
    """Give the directory, made if it is missing and `create` is true. Raises `DirectoryError` if it cannot be used or
    trusted: it is a link, or it belongs to another user.
    """
    try:
        if create:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                path.mkdir(mode=0o700)
            except FileExistsError:
                pass
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as exc:
        raise DirectoryError(f"{path} cannot be used ({exc.strerror or exc})") from None
    try:
        _check(path, descriptor)
        yield Directory(descriptor)
    finally:
        os.close(descriptor)


def _check(path: Path, descriptor: int) -> None:
    found = os.fstat(descriptor)
    if found.st_uid != os.geteuid():
        raise DirectoryError(f"{path} belongs to the user {found.st_uid}: others could write into it")
    if found.st_mode & 0o077:
        os.fchmod(descriptor, 0o700)
