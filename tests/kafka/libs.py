"""The jars of Apache Kafka: fetched once from Maven Central into a cache that all checkouts share."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from xml.etree import ElementTree

POM = Path(__file__).with_name("pom.xml")


def version() -> str:
    """Return the version of Kafka that the pom names."""
    for dependency in ElementTree.parse(POM).iter("{http://maven.apache.org/POM/4.0.0}dependency"):
        group, _, number = (element.text or "" for element in dependency)
        if group == "org.apache.kafka":
            return number
    raise ValueError(f"{POM} names no org.apache.kafka")


def directory() -> Path:
    """Return where the jars are, or will be: `$XDG_CACHE_HOME/celery-neli/kafka-<version>`."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "celery-neli" / f"kafka-{version()}"


def fetched() -> bool:
    """Whether the jars are there already."""
    return directory().is_dir()


def fetch(maven: str) -> Path:
    """Fetch the jars if they are not there (about 54 MB), and return their directory.

    They appear all at once, so that a fetch that is interrupted, or two at the same time, leave nothing half done.
    Raises `RuntimeError` with Maven's last lines if it fails. Blocks, for minutes where the network is slow.
    """
    target = directory()
    if fetched():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="fetching-") as scratch:
        pom = shutil.copy(POM, scratch)  # whatever Maven leaves beside its pom goes with the directory
        jars = Path(scratch, "jars")
        goal = ["dependency:copy-dependencies", f"-DoutputDirectory={jars}"]
        try:
            done = subprocess.run(
                [maven, "--batch-mode", "--no-transfer-progress", "-f", pom, *goal],
                capture_output=True,
                text=True,
                check=False,
                timeout=540,
            )
        except subprocess.TimeoutExpired as error:
            raise RuntimeError("Maven did not fetch Kafka within 540 s") from error
        if done.returncode:
            last = "\n".join(done.stdout.splitlines()[-15:])
            raise RuntimeError(f"Maven could not fetch Kafka {version()}:\n{last}")
        try:
            jars.rename(target)
        except OSError:
            if not fetched():
                raise
    return target
