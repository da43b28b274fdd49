"""The process of an isolated singleton: a fresh interpreter that calls `main`, started by `isolated.py`.

It imports the module of the function, which registers the singleton anew, and maps the worker's leases, so each turn
asks the real lease; it never talks to Kafka. It does what the worker commands, and ends

- at once, if it is idle and the worker is gone (the socket has ended; or this process has another parent, for a pool's
  child that was forked later may hold the socket open);
- after the running turn otherwise, but not later than the lease. A turn that runs without one gets SIGTERM, which ends
  the process unless its code handles it, and SIGKILL `GRACE` later: by a thread of this process, so that it happens
  though the worker be frozen or dead.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from celery_neli.election.lease import boottime
from celery_neli.election.shared_lease import SharedLease, share
from celery_neli.exceptions import ConfigurationError
from celery_neli.singletons.registry import find
from celery_neli.singletons.runner import Lease, Tenure, Unelected

LOOK = 0.2
"""Seconds between two looks at the lease while a turn runs, and at the worker while nothing comes from it."""
GRACE = 2.0
"""Seconds between SIGTERM and SIGKILL."""
LAST = 20_000
"""Characters of a traceback that are passed on: its end."""


class _WhileParentLives(Unelected):
    """Without elections: a turn may go on until the worker is gone."""

    def __init__(self, parent: int) -> None:
        self._parent = parent

    def held(self, role: str, term: int) -> bool:
        return os.getppid() == self._parent


class Guard:
    """Ends this process if it is busy (in a `with` block) while `left()`, how long it may be, is 0 seconds."""

    def __init__(self, left: Callable[[], float]) -> None:
        self._left = left
        self._busy = threading.Event()
        threading.Thread(target=self._run, name="neli-guard", daemon=True).start()

    def __enter__(self) -> None:
        self._busy.set()

    def __exit__(self, *_: object) -> None:
        self._busy.clear()

    def _run(self) -> None:
        while self._busy.wait():
            left = self._left()
            if left <= 0:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(GRACE)
                if self._busy.is_set():
                    os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(min(LOOK, max(left, 0.0)))


def _left(lease: Lease, role: str, term: int) -> float:
    """Seconds until the lease ends, if nothing renews it."""
    if not lease.held(role, term):
        return 0.0
    return lease.standing(role).until - boottime() if isinstance(lease, SharedLease) else LOOK


def _commands(channel: socket.socket, parent: int) -> Iterator[dict[str, Any]]:
    """What the worker sends, until it is gone."""
    channel.settimeout(LOOK)
    data = b""
    while os.getppid() == parent:
        try:
            part = channel.recv(65536)
        except TimeoutError:
            continue
        if not part:
            return
        *lines, data = (data + part).split(b"\n")
        yield from map(json.loads, lines)


def _say(channel: socket.socket, answer: dict[str, Any]) -> bool:
    """Whether the worker is there to hear it."""
    try:
        channel.sendall(json.dumps(answer).encode() + b"\n")
    except OSError:
        return False
    return True


def _load(told: dict[str, Any], lease: Lease) -> Tenure:
    sys.path[:] = told["path"]
    multiprocessing.current_process().name = f"singleton-{told['name']}"
    if os.environ.get("DJANGO_SETTINGS_MODULE"):
        import django

        django.setup()  # as Celery does before it imports a worker's modules
    importlib.import_module(told["name"].partition(":")[0])
    app, singleton = find(told["name"], told["registered_role"])
    app.log.setup(**told["log"])
    if isinstance(lease, SharedLease):
        share(app, lease)
    return Tenure(app, singleton, told["role"], lease, told["term"])


def _describe(exc: BaseException, unloaded: str | None) -> str:
    """One line, and the traceback if that says more. `unloaded`: what it was loading, if it failed at that."""
    if unloaded is None:
        line = f"{exc!r} in its process"
    else:
        line = f"its process cannot load {unloaded}: {exc!r}"
        if isinstance(exc, (ImportError, ConfigurationError)):
            return line
    return f"{line}\n{traceback.format_exc()[-LAST:].rstrip()}"


def _serve(channel: socket.socket, parent: int, lease_fd: int | None) -> None:
    commands = _commands(channel, parent)
    told = next(commands, None)
    if told is None:
        return
    lease: Lease = _WhileParentLives(parent) if lease_fd is None else SharedLease(tuple(told["roles"]), fd=lease_fd)
    guard = Guard(partial(_left, lease, told["role"], told["term"]))
    tenure: Tenure | None = None
    for command in commands:
        if command["do"] == "end":
            break
        answer: dict[str, Any] = {}
        try:
            with guard:
                tenure = tenure or _load(told, lease)
                answer["ran"] = tenure.turn()
        except BaseException as exc:  # noqa: BLE001 - the worker logs and counts it; SystemExit, too
            answer["error"] = _describe(exc, None if tenure else told["name"])
        if not _say(channel, answer):
            break
    if tenure is not None:
        tenure.end()
    _say(channel, {})


def main() -> None:
    """Arguments: descriptor of the socket, process id of the worker, descriptor of the leases if there are any."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Control-C reaches the worker too, and it decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    descriptor, parent, *lease = map(int, sys.argv[1:])
    with socket.socket(fileno=descriptor) as channel:
        _serve(channel, parent, lease[0] if lease else None)
