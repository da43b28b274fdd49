"""Singletons for the smoke tests' app: which ones there are is JSON in SMOKE_SINGLETONS, what they did goes into files.

Each function appends lines `WHAT TERM PID START END` (seconds, CLOCK_BOOTTIME) to its file in SMOKE_RECORDS.
"""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import celery_neli
from celery_neli.election.lease import boottime
from tests.smoke.project import app

TOLD: dict[str, dict[str, Any]] = json.loads(os.environ.get("SMOKE_SINGLETONS", "{}"))


def note(function: str, what: str, start: float) -> None:
    """Append one line, whole."""
    line = f"{what} {celery_neli.current_term()} {os.getpid()} {start:.6f} {boottime():.6f}\n"
    file = os.open(Path(os.environ["SMOKE_RECORDS"], function), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


def set_up() -> None:
    note("relay", "setup", boottime())


def tear_down() -> None:
    note("relay", "teardown", boottime())


def relay() -> None:
    """A turn of SMOKE_TURN seconds; it fails in the worker that SMOKE_FAILS names."""
    start = boottime()
    if os.environ.get("SMOKE_FAILS") == os.environ["SMOKE_NAME"]:
        note("relay", "failed", start)
        raise RuntimeError("as told")
    note("relay", "began", start)
    time.sleep(float(os.environ.get("SMOKE_TURN", "0.05")))
    note("relay", "turn", start)


def crash() -> None:
    """The first process dies in its turn; the next works."""
    try:
        relay()
    finally:
        if len(Path(os.environ["SMOKE_RECORDS"], "relay").read_text().splitlines()) < 4:
            os._exit(3)


def log() -> None:
    """It says something, and fails."""
    logging.getLogger("smoke").info("here is %s", celery_neli.current_term())
    logging.getLogger("smoke").debug("not to be seen")
    raise SystemExit("as told")


for name in TOLD:
    celery_neli.singleton(app, setup=set_up, teardown=tear_down, **TOLD[name])(globals()[name])
