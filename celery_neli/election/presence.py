"""Leader's work that runs where the worker's main process does not see it: an ordinary task that calls a leader-only
function, in a pool's child.

Each process that does such work holds a shared lock on one byte of the memory that the leases are in, one byte for each
role; a hand-over waits until nobody holds it. The kernel gives the lock up with its process, however that ends.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

if sys.platform == "win32":  # Celery has no pool with children there: the threads of this process are all
    LOCK_EX = LOCK_NB = LOCK_SH = LOCK_UN = 0

    def lockf(fd: int, operation: int, length: int = 0, start: int = 0, /) -> None:
        """Nothing to lock."""
else:
    from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, LOCK_UN, lockf


class Presence:
    """Who is at work, by role, in this process and in those that share the descriptor `fd`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._begin()

    def _begin(self) -> None:
        self._pid, self._lock, self._here = os.getpid(), threading.Lock(), Counter[int]()

    @contextmanager
    def at_work(self, index: int) -> Iterator[None]:
        """Be at work as the role number `index`. To be entered before the lease is asked: a hand-over looks after the
        lease has ended, and so one of the two sees the other. Any thread; does not block.
        """
        if self._pid != os.getpid():
            self._begin()  # forked: these locks are the parent's
        with self._lock:
            self._here[index] += 1
            if self._here[index] == 1:
                lockf(self._fd, LOCK_SH, 1, index)  # waits for one who looks, for that moment
        try:
            yield
        finally:
            with self._lock:
                self._here[index] -= 1
                if not self._here[index]:
                    lockf(self._fd, LOCK_UN, 1, index)

    def anybody(self, index: int) -> bool:
        """Whether anybody is at work as that role. Any thread of the process that made this; does not block."""
        with self._lock:
            if self._here[index]:
                return True
            try:
                lockf(self._fd, LOCK_EX | LOCK_NB, 1, index)
            except OSError:
                return True
            lockf(self._fd, LOCK_UN, 1, index)
            return False
