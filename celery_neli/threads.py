"""Threads of the operating system, and a bell that wakes those that wait for one, under gevent too.

Under gevent's monkey patching `threading.Thread` makes a greenlet, and a greenlet that waits for Kafka would stop the
whole process. `spawn` always starts a thread of the operating system.
"""

from __future__ import annotations

import gc
import importlib
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

_Result = TypeVar("_Result")
GREEN_WAIT = 0.02  # seconds until a waiting greenlet looks at a real thread again; gevent has no cheaper wait


def patched() -> bool:
    """Return True if gevent has replaced this process's threads by greenlets."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))


def original(module: str, name: str) -> Any:
    """Return `module.name` as it is without gevent."""
    if patched():
        return sys.modules["gevent.monkey"].get_original(module, name)
    return getattr(importlib.import_module(module), name)


class Thread:
    """A running daemon thread of the operating system."""

    def __init__(self, target: Callable[[], None], name: str) -> None:
        self.ended = False
        self._target = target
        self._thread = None if patched() else threading.Thread(target=self._run, name=name, daemon=True)
        if self._thread is None:
            original("_thread", "start_new_thread")(self._run, ())
        else:
            self._thread.start()

    def _run(self) -> None:
        try:
            self._target()
        finally:
            self.ended = True

    def join(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for its end. Return True if it has ended. Other greenlets run in that time."""
        if self._thread is not None:
            self._thread.join(timeout)
        else:
            _poll(lambda: self.ended, timeout)
        return self.ended


def _poll(done: Callable[[], bool], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not done() and (left := deadline - time.monotonic()) > 0:
        time.sleep(min(GREEN_WAIT, left))


def spawn(target: Callable[[], None], *, name: str) -> Thread:
    """Start `target` on a daemon thread of the operating system."""
    return Thread(target, name)


def off_loop(function: Callable[[], _Result]) -> _Result:
    """Call what may block, and return what it returns: under gevent on a thread of its pool, while greenlets run."""
    if not patched():
        return function()
    results: list[_Result] = []
    errors: list[BaseException] = []

    def call() -> None:
        try:
            results.append(function())
        except BaseException as exc:  # noqa: BLE001 - the pool would print it, too
            errors.append(exc)

    sys.modules["gevent"].get_hub().threadpool.apply(call)
    for error in errors:
        raise error
    return results[0]


def stack_of(thread_id: int) -> str:
    """Return where the thread of that `threading.get_ident()` is, as a traceback shows it. Blocks for milliseconds."""
    # Python 3.11 holds a lock while it looks up the frames. A garbage collection at that moment may request the same
    # lock, and then the process hangs forever (CPython #106883).
    collects = gc.isenabled()
    gc.disable()
    try:
        frame = sys._current_frames().get(thread_id)  # noqa: SLF001 - the documented way to another thread's stack
    finally:
        if collects:
            gc.enable()
    return "(its thread has ended)" if frame is None else "".join(traceback.format_stack(frame))


class Bell:
    """One thread rings it, and all that wait wake up. It counts its rings, so a waiter misses none."""

    def __init__(self) -> None:
        self.rings = 0
        self._condition = None if patched() else threading.Condition()

    def ring(self) -> None:
        """Wake all that wait. May be called from any thread, but not from a signal handler."""
        if self._condition is None:
            self.rings += 1
            return
        with self._condition:
            self.rings += 1
            self._condition.notify_all()

    def wait(self, seen: int, timeout: float) -> None:
        """Return when the bell has rung more than `seen` times, or after `timeout` seconds."""
        if self._condition is None:
            _poll(lambda: self.rings != seen, timeout)
            return
        with self._condition:
            self._condition.wait_for(lambda: self.rings != seen, timeout)
