"""Beats as processes, and what they noted."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from celery_neli.config import Config
from celery_neli.embedded import EmbeddedKafka
from celery_neli.kafka.topic_spec import schedule_topic

PATIENCE = 120.0


def make_topic(kafka: EmbeddedKafka, group: str) -> None:
    """Make the schedule topic of a `neli_group`, which beats in other processes cannot make on the embedded Kafka."""
    spec = schedule_topic(Config(group=f"{group}.beat"))
    kafka.create_topic(spec.name, partitions=spec.partitions)


@dataclass(frozen=True, slots=True)
class Left:
    """A message that left: when it was due, and when it had left (Unix seconds)."""

    due: float
    at: float
    entry: str


@dataclass(frozen=True, slots=True)
class Beat:
    """A beat that runs, and the file that it writes."""

    process: subprocess.Popen[bytes]
    file: Path

    def left(self) -> list[Left]:
        """What has left so far."""
        if not self.file.exists():
            return []
        lines = self.file.read_text().splitlines()
        return [Left(float(due), float(at), name) for due, at, name in (line.split() for line in lines if line)]


@contextlib.contextmanager
def beat(directory: Path, **spec: Any) -> Iterator[Beat]:
    """Start one (see beat_process), and kill it at the end."""
    name = uuid.uuid4().hex[:8]
    file = directory / name
    spec = {"kafka": "127.0.0.1:1", "redis": None, "group": name, "name": name, **spec, "file": str(file)}
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.beat_process", json.dumps(spec)])
    try:
        yield Beat(process, file)
    finally:
        process.kill()
        process.wait()


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait until it is true; its value."""
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {PATIENCE:g} s")
        time.sleep(0.02)
    return found
