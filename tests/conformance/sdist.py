"""Celery's own tests: fetched once from its source distribution into a cache that all checkouts share."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VERSION = "5.7.0"
SHA256 = "6a5dfcf6662287204f009a02002b9e66c83d4105e47ebabdc7079108772fc6f0"


def directory() -> Path:
    """Return where the tests are, or will be: `$XDG_CACHE_HOME/celery-neli/celery-<version>`."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "celery-neli" / f"celery-{VERSION}"


def fetch() -> Path:
    """Fetch the tests if they are not there (about 2 MB), and return their directory.

    Only `t/` and what configures pytest: the package under test is the installed one. Raises `RuntimeError` with pip's
    last lines if it fails. Blocks for seconds.
    """
    target = directory()
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="fetching-") as scratch:
        wanted = Path(scratch, "requirements.txt")
        wanted.write_text(f"celery=={VERSION} --hash=sha256:{SHA256}\n")
        command = [
            "download",
            "--no-deps",
            "--no-binary",
            "celery",
            "--require-hashes",
            "-r",
            str(wanted),
            "-d",
            scratch,
        ]
        try:
            done = subprocess.run(
                [sys.executable, "-m", "pip", *command], capture_output=True, text=True, check=False, timeout=300
            )
        except subprocess.TimeoutExpired as error:
            raise RuntimeError("pip did not fetch Celery's source within 300 s") from error
        if done.returncode:
            last = "\n".join((done.stdout + done.stderr).splitlines()[-10:])
            raise RuntimeError(f"pip could not fetch Celery's source distribution:\n{last}")
        root = f"celery-{VERSION}"
        with tarfile.open(Path(scratch, f"{root}.tar.gz")) as archive:
            members = [m for m in archive if m.name == f"{root}/pyproject.toml" or m.name.startswith(f"{root}/t/")]
            archive.extractall(scratch, members=members, filter="data")
        try:
            Path(scratch, root).rename(target)
        except OSError:
            if not target.is_dir():
                raise
    return target
