"""A thread that pulses a curator and works while it leads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from celery_neli.exceptions import ClosedError

if TYPE_CHECKING:
    from celery_neli.election.neli import Neli

PULSE = 1.0


class Pulser:
    """Made by `Neli.background`. The thread ends when the curator is closed, on `close`, or when the task raises."""

    def __init__(self, neli: Neli, task: Callable[[], None]) -> None:
        self._neli, self._task = neli, task
        self._cancel = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"neli-pulser-{neli.config.group}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._cancel.is_set():
                if self._neli.pulse(PULSE, cancel=self._cancel):
                    self._task()
        except ClosedError:
            return
        except BaseException as exc:  # noqa: BLE001 - SystemExit, too; handed to wait()
            self._failure = exc
            self._neli.close()  # a leader that cannot work hands over

    def wait(self, timeout: float | None = None) -> bool:
        """Wait up to `timeout` seconds until the pulser has ended; whether it has. Raises what the task raised, which
        also closed the curator.
        """
        self._thread.join(timeout)
        if self._failure is not None:
            raise self._failure
        return not self._thread.is_alive()

    def close(self) -> None:
        """End the pulser; waits for a task that is running. The curator lives on, and resigns if nobody pulses it."""
        self._cancel.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()
