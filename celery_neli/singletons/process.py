"""A singleton in a process of its own: the worker's side (`ProcessSession`) and the child's (`main`).

The child is a fresh interpreter, not a fork: the worker has threads and live Kafka clients. Over a socket pair go JSON
lines: what to run, then the commands `run` or `end`, and one answer to each. The worker counts the failures.

The child imports the function's module, which registers the singleton again, and maps the worker's leases, so each run
checks the real lease. It never talks to Kafka. It ends

- at once, if it is idle and the worker is gone (the socket has ended; or this process has another parent, as a pool's
  child that was forked later may hold the socket open);
- after the current run otherwise, but not later than the lease. A run without a lease gets SIGTERM, which ends the
  process unless its code handles it, and SIGKILL `GRACE` later. A thread of the child sees to that, so that it happens
  even if the worker is frozen or dead.
"""

from __future__ import annotations

import importlib
import json
import logging
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from importlib.machinery import PathFinder
from typing import Any

from celery_neli.election.lease import boottime
from celery_neli.election.shared_lease import RoleLease, SharedLease, share
from celery_neli.exceptions import ConfigurationError
from celery_neli.logs import escaping
from celery_neli.singletons.decorator import Singleton, find
from celery_neli.singletons.runner import ChildFailed, ThreadSession
from celery_neli.worker.context import Lease, Unelected

CHILD = "import sys; sys.path[:] = {path}; from celery_neli.singletons.process import main; main()"
"""The child's code. Not `python -m`, which would put the working directory first: a project's `celery.py` there is not
Celery.
"""
POLL_INTERVAL = 0.2
"""Seconds between two looks: at the child while it is silent; in the child at the lease and at the worker."""
EXIT = 2.0
"""Seconds that a child may take to exit after its teardown."""
STUCK = 6.0
"""Seconds after the lease's end in which the child must have ended itself, unless native code keeps it from that."""
GRACE = 2.0
"""Seconds between SIGTERM and SIGKILL."""
LAST = 20_000
"""Characters of a traceback that are passed on: its end."""

logger = escaping(logging.getLogger(__name__))


def child_path(singleton: Singleton) -> list[str]:
    """Return the child's `sys.path`: that of the import that registered it, and what this process has added since."""
    return list(dict.fromkeys([*singleton.path, *map(str, sys.path)]))


def can_find(singleton: Singleton) -> bool:
    """Return True if a child will find the module of the function, or the package that it is in. Imports nothing."""
    package = singleton.name.partition(":")[0].partition(".")[0]
    if PathFinder.find_spec(package, child_path(singleton)) is not None:
        return True
    # Editable installations and the like find modules in their own ways, in every interpreter.
    others = (each for each in sys.meta_path if each is not PathFinder and hasattr(each, "find_spec"))
    return any(each.find_spec(package, None) is not None for each in others)


def _send(channel: socket.socket, message: dict[str, Any]) -> None:
    channel.sendall(json.dumps(message).encode() + b"\n")


class ProcessSession:
    """See `runner.Session`: one whose calls happen in a child. The first run starts the child, and so does the next one
    after it died; it runs `setup` then.

    Args:
        singleton: the function and its options.
        lease: of its role.
        term: the term of the session.
        shared: the leases of this worker, for the child; None without an election.
        log: keyword arguments of Celery's `app.log.setup`, for the child.
    """

    def __init__(
        self, singleton: Singleton, lease: Lease, term: int, *, shared: SharedLease | None, log: dict[str, Any]
    ) -> None:
        self._singleton, self._lease, self._term, self._shared, self._log = singleton, lease, term, shared, log
        self._child: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def run(self) -> bool:
        """See `Session`. Blocks until the child answers, or has died.

        Raises:
            ChildFailed: the run failed in the child, or the child died.
            OSError: the child cannot be started.
        """
        if not self._lease.may_start(self._term):
            return False
        started = self._child is not None
        if not started:
            self._start()
        try:
            answer = self._ask("run") if started else self._ask("run", self._description())
        except (OSError, EOFError):
            status = self._reap()
            if not self._lease.may_start(self._term):
                return False  # the child was terminated for that
            how = f"died with status {status}" if status >= 0 else f"was killed by signal {-status}"
            raise ChildFailed(f"its process {how}; standard error may say why") from None
        if "error" in answer:
            raise ChildFailed(answer["error"])
        return bool(answer["ran"])

    def end(self) -> None:
        """Let the child tear down, and wait for its end."""
        if self._child is None:
            return
        try:
            self._ask("end")
        except (OSError, EOFError):
            line = "singleton process died before it could wrap up singleton=%s role=%s"
            logger.warning(line, self._singleton.name, self._lease.name)
        self._reap()

    def _description(self) -> dict[str, Any]:
        """Return what the child must know."""
        return {
            "name": self._singleton.name,
            "registered_role": self._singleton.role,
            "role": self._lease.name,
            "roles": () if self._shared is None else self._shared.roles,
            "term": self._term,
            "path": child_path(self._singleton),
            "log": self._log,
        }

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        # Until the child imports the user's module it has the path of this process, where ours were found.
        code = CHILD.format(path=ascii(list(map(str, sys.path))))
        descriptors = [theirs.fileno(), *([] if self._shared is None else [self._shared.fd])]
        socket_fd, *lease_fd = map(str, descriptors)
        command = [sys.executable, "-c", code, socket_fd, str(os.getpid()), *lease_fd]
        try:
            with theirs:
                self._child = subprocess.Popen(command, pass_fds=descriptors, stdin=subprocess.DEVNULL)  # noqa: S603 - ours
        except BaseException:
            ours.close()
            raise
        self._socket = ours
        ours.settimeout(POLL_INTERVAL)

    def _ask(self, command: str, *before: dict[str, Any]) -> dict[str, Any]:
        assert self._child is not None
        assert self._socket is not None
        for message in (*before, {"do": command}):
            _send(self._socket, message)
        data, dead, held_at = b"", False, time.monotonic()
        while not data.endswith(b"\n"):
            try:
                part = self._socket.recv(65536)
            except TimeoutError:
                if dead:
                    raise EOFError from None
                dead = self._child.poll() is not None  # then look once more: it may have answered before
                now = time.monotonic()
                if command == "end" or self._lease.may_finish(self._term):
                    held_at = now
                elif now - held_at > STUCK:
                    self._child.kill()
            else:
                if not part:
                    raise EOFError
                data += part
        return dict(json.loads(data))

    def _reap(self) -> int:
        """Return the status of the child, which is about to exit."""
        assert self._child is not None
        assert self._socket is not None
        child, self._child = self._child, None
        self._socket.close()
        try:
            return child.wait(EXIT)
        except subprocess.TimeoutExpired:
            child.kill()
            return child.wait()


# The child


def main() -> None:
    """Run the child. Its arguments are the descriptor of the socket, the worker's process id, and the descriptor of the
    leases if there are any.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Control-C reaches the worker too, and it decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    descriptor, parent, *lease = map(int, sys.argv[1:])
    with socket.socket(fileno=descriptor) as channel:
        _serve(channel, parent, lease[0] if lease else None)


def _serve(channel: socket.socket, parent: int, lease_fd: int | None) -> None:
    commands = _commands(channel, parent)
    description = next(commands, None)
    if description is None:
        return
    role, term = description["role"], description["term"]
    shared = None if lease_fd is None else SharedLease(tuple(description["roles"]), fd=lease_fd)
    lease: Lease = _WhileParentLives(role, parent) if shared is None else shared.role(role)
    watch = LeaseWatch(partial(_seconds_left, lease, term))
    session: ThreadSession | None = None
    for command in commands:
        if command["do"] == "end":
            break
        answer: dict[str, Any] = {}
        try:
            with watch:
                session = session or _load(description, lease, shared)
                answer["ran"] = session.run()
        except BaseException as exc:  # noqa: BLE001 - the worker logs and counts it; SystemExit, too
            answer["error"] = _describe(exc, None if session else description["name"])
        try:
            _send(channel, answer)
        except OSError:  # the worker is gone
            break
    if session is not None:
        session.end()
    with suppress(OSError):
        _send(channel, {})


def _commands(channel: socket.socket, parent: int) -> Iterator[dict[str, Any]]:
    """Yield what the worker sends, until it is gone."""
    channel.settimeout(POLL_INTERVAL)
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


def _load(description: dict[str, Any], lease: Lease, shared: SharedLease | None) -> ThreadSession:
    name = description["name"]
    sys.path[:] = description["path"]
    multiprocessing.current_process().name = f"singleton-{name}"
    if os.environ.get("DJANGO_SETTINGS_MODULE"):
        import django

        django.setup()  # as Celery does before it imports a worker's modules
    importlib.import_module(name.partition(":")[0])
    app, singleton = find(name, description["registered_role"])
    app.log.setup(**description["log"])
    if shared is not None:
        share(app, shared)
    return ThreadSession(singleton, lease, description["term"])


def _describe(exc: BaseException, unloaded: str | None) -> str:
    """Return one line, and the traceback if that says more. `unloaded` names what the child failed to load."""
    if unloaded is None:
        line = f"{exc!r} in its process"
    else:
        line = f"its process cannot load {unloaded}: {exc!r}"
        if isinstance(exc, (ImportError, ConfigurationError)):
            return line
    return f"{line}\n{traceback.format_exc()[-LAST:].rstrip()}"


class _WhileParentLives(Unelected):
    """Without an election, a run may go on until the worker is gone."""

    def __init__(self, name: str, parent: int) -> None:
        super().__init__(name)
        self._parent = parent

    def may_finish(self, term: int | None = None) -> bool:
        return os.getppid() == self._parent


def _seconds_left(lease: Lease, term: int) -> float:
    """Return the seconds until the lease ends if nothing renews it."""
    if not lease.may_finish(term):
        return 0.0
    return lease.standing().until - boottime() if isinstance(lease, RoleLease) else POLL_INTERVAL


class LeaseWatch:
    """Ends this process if it is busy (in a `with` block) while `seconds_left()` is 0."""

    def __init__(self, seconds_left: Callable[[], float]) -> None:
        self._seconds_left = seconds_left
        self._busy = threading.Event()
        threading.Thread(target=self._run, name="neli-lease-watch", daemon=True).start()

    def __enter__(self) -> None:
        self._busy.set()

    def __exit__(self, *_: object) -> None:
        self._busy.clear()

    def _run(self) -> None:
        while self._busy.wait():
            left = self._seconds_left()
            if left <= 0:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(GRACE)
                if self._busy.is_set():
                    os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(min(POLL_INTERVAL, max(left, 0.0)))
