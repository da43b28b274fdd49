"""Runs inside a member's process and writes down when the lease held, by sampling it, for `judge.py` to compare.

Lines of text, each written whole:

    held TERM START END MARGIN          it held in every sample from START to END; MARGIN: the least left of the lease
    free                                it did not hold
    acquired|revoked|fenced TERM AT     a signal (or event of a `Neli`)

START is taken after the first sample and END before the last one, so the interval is never longer than the truth, even
when the process is frozen in the middle of a sample.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

from celery_neli.election.lease import boottime

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from celery_neli.election.shared_lease import Standing

FLUSH = 0.05


class Recorder:
    """Samples `standing()` every `interval` seconds on a thread of its own; `note` is for signals, from any thread."""

    def __init__(self, path: Path, standing: Callable[[], Standing], *, interval: float = 0.005) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._standing = standing
        self._interval = interval
        self._write("free")
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Sample no more; what is not written yet is lost."""
        self._stopped = True
        self._thread.join()
        os.close(self._file)

    def note(self, kind: str, term: int) -> None:
        """Write a transition down with the present time."""
        self._write(f"{kind} {term} {boottime():.6f}")

    def _write(self, line: str) -> None:
        os.write(self._file, f"{line}\n".encode())

    def _run(self) -> None:
        term, start, end, margin = None, 0.0, 0.0, 0.0
        while not self._stopped:
            before = boottime()
            standing = self._standing()
            after = boottime()
            now_held = standing.term if standing.held else None
            if term is not None and (now_held != term or after - start > FLUSH):
                self._write(f"held {term} {start:.6f} {end:.6f} {margin:.3f}")
                if now_held is None:
                    self._write("free")
                term = None
            if now_held is not None:
                if term is None:
                    term, start, margin = now_held, after, standing.until - before
                end, margin = before, min(margin, standing.until - before)
            time.sleep(self._interval)
