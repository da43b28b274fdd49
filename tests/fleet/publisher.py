"""Sends a stream of tasks.

    python -m tests.fleet.publisher PREFIX COUNT RATE SECONDS TASK...

The tasks are named in turn, their ids are PREFIX-0, PREFIX-1, ... What the broker has confirmed is written into the
file `sent.PREFIX`, one id a line. What it has not is sent again, with the same id, until it has: so nothing is lost on
the way, and something may be doubled.
"""

from __future__ import annotations

import os
import sys
import time
from itertools import cycle
from pathlib import Path

from kombu.exceptions import OperationalError

from tests.fleet.project import app
from tests.fleet.streams import LONG, is_long


def send(name: str, task_id: str, seconds: float) -> None:
    """Send until the broker has confirmed it."""
    while True:
        try:
            app.tasks[name].apply_async((seconds,), task_id=task_id, retry=False)
        except (OperationalError, OSError):
            time.sleep(0.2)
        else:
            return


def main(prefix: str, count: int, rate: float, seconds: float, names: list[str]) -> None:
    """Send `count` tasks, at most `rate` a second, each with a body of `seconds`, the long ones with one of LONG times
    that.
    """
    start = time.monotonic()
    with Path(os.environ["SMOKE_RECORDS"], f"sent.{prefix}").open("a", buffering=1) as sent:
        for number, name in zip(range(count), cycle(names)):
            send(name, f"{prefix}-{number}", seconds * (LONG if is_long(number) else 1))
            sent.write(f"{prefix}-{number}\n")
            time.sleep(max(0.0, start + (number + 1) / rate - time.monotonic()))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]), sys.argv[5:])
