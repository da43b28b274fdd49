"""The sessions of a singleton: in a thread of the worker, or in a process of its own.

`ProcessSession` is the worker's side of that process, `main` the child's. The child is a fresh interpreter, not a fork:
the worker has threads and live Kafka clients. Over a socket pair go JSON lines: the commands `run` or `end`, and one
answer to each. The worker counts the failures.

The child imports the function's module, which registers the singleton again, and maps the worker's leases, so each run
checks the real lease. It never talks to Kafka. It ends

- at once, if it is idle and the worker is gone (the socket has ended; or this process has another parent, as a pool's
  child that was forked later may hold the socket open);
- after the current run otherwise, but not later than the lease. A run without a lease gets SIGTERM, which ends the
  process unless its code handles it, and SIGKILL `GRACE` later: from a thread of the child, as the worker may be dead.
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
from dataclasses import KW_ONLY, dataclass, field
from importlib.machinery import PathFinder
from typing import Any, Protocol

from celery_neli.election.lease import boottime
from celery_neli.election.shared_lease import RoleLease, SharedLease, share
from celery_neli.exceptions import ConfigurationError
from celery_neli.logs import escaping
from celery_neli.singletons import Singleton, find
from celery_neli.worker.leader_only import Lease, Unelected, in_term

CHILD = "import sys; sys.path[:] = {path}; from celery_neli.singletons.session import main; main()"
"""The child's code. `python -m` would find a project's `celery.py` in the working directory before Celery."""
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


class ChildFailed(Exception):
    """A run failed in another process, or that process died. The text says how, with the traceback from there."""


class Session(Protocol):
    """A time in which this worker leads without a break: a `ThreadSession`, or one in a process (`ProcessSession`)."""

    def run(self) -> bool:
        """Set up if need be, and call the function. Return False, and call nothing, if the lease is over."""

    def end(self) -> None:
        """Tear down after the last run. Raises nothing."""


@dataclass(eq=False)
class ThreadSession:
    """The runs of one singleton in one term, in the calling thread."""

    singleton: Singleton
    lease: Lease
    term: int
    _ready = False

    def run(self) -> bool:
        """See `Session`. `setup` is called before the first run, and again until it has returned once."""
        if not self._ready:
            if not self._call(self.singleton.setup):
                return False
            self._ready = True
        return self._call(self.singleton.function)

    def _call(self, function: Callable[[], Any] | None) -> bool:
        if not self.lease.may_start(self.term):
            return False
        if function is not None:
            with in_term(self.lease, self.term):
                function()
        return True

    def end(self) -> None:
        """Call `teardown` if `setup` had returned, even if the lease is gone; an exception of it is logged."""
        if self._ready and self.singleton.teardown is not None:
            try:
                with in_term(self.lease, self.term):
                    self.singleton.teardown()
            except BaseException:  # SystemExit, too: a singleton must not end the worker
                logger.exception("singleton teardown failed singleton=%s role=%s", self.singleton.name, self.lease.name)
        self._ready = False


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


def _send(channel: socket.socket, message: Any) -> None:
    channel.sendall(json.dumps(message).encode() + b"\n")


def _messages(channel: socket.socket) -> Iterator[Any]:
    """Yield what the other side sends, and None after each `POLL_INTERVAL` without a message, until it is gone."""
    channel.settimeout(POLL_INTERVAL)
    data = b""
    while True:
        try:
            part = channel.recv(65536)
        except TimeoutError:
            yield None
            continue
        except ConnectionError:  # it died with our last message unread
            return
        if not part:
            return
        *lines, data = (data + part).split(b"\n")
        yield from map(json.loads, lines)


@dataclass(eq=False)
class ProcessSession:
    """See `Session`. A run starts the child if there is none; the first one in a child calls `setup`."""

    singleton: Singleton
    lease: Lease
    term: int
    _: KW_ONLY
    shared: SharedLease | None
    """The leases of this worker, for the child; None without an election."""
    log: dict[str, Any]
    """Keyword arguments of Celery's `app.log.setup`, for the child."""
    _child: tuple[subprocess.Popen[bytes], socket.socket] | None = field(default=None, init=False)

    def run(self) -> bool:
        """See `Session`. Blocks until the child answers or has died. Raises `ChildFailed`; OSError if none starts."""
        if not self.lease.may_start(self.term):
            return False
        if self._child is None:
            self._start()
        try:
            answer = self._ask("run")
        except (OSError, EOFError):
            status = self._reap()
            if not self.lease.may_start(self.term):
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
            logger.warning(line, self.singleton.name, self.lease.name)
        self._reap()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        description = {
            "socket": theirs.fileno(),
            "parent": os.getpid(),
            "path": child_path(self.singleton),
            "name": self.singleton.name,
            "registered_role": self.singleton.role,
            "role": self.lease.name,
            "term": self.term,
            "leases": None if self.shared is None else (self.shared.roles, self.shared.fd),
            "log": self.log,
        }
        descriptors = [theirs.fileno()] if self.shared is None else [theirs.fileno(), self.shared.fd]
        # Until the child imports the user's module it has the path of this process, where ours were found.
        code = CHILD.format(path=ascii(list(map(str, sys.path))))
        command = [sys.executable, "-c", code, json.dumps(description)]
        try:
            with theirs:
                child = subprocess.Popen(command, pass_fds=descriptors, stdin=subprocess.DEVNULL)  # noqa: S603 - ours
        except BaseException:
            ours.close()
            raise
        self._child = child, ours

    def _ask(self, command: str) -> dict[str, Any]:
        """Return the child's answer. Raises OSError or EOFError if it is gone."""
        assert self._child is not None
        child, channel = self._child
        _send(channel, command)
        dead, held_at = False, time.monotonic()
        for answer in _messages(channel):
            if answer is not None:
                return dict(answer)
            if dead:
                break
            dead = child.poll() is not None  # then look once more: it may have answered before
            now = time.monotonic()
            if command == "end" or self.lease.may_finish(self.term):
                held_at = now
            elif now - held_at > STUCK:
                child.kill()
        raise EOFError

    def _reap(self) -> int:
        """Return the status of the child, which is about to exit."""
        assert self._child is not None
        (child, channel), self._child = self._child, None
        channel.close()
        try:
            return child.wait(EXIT)
        except subprocess.TimeoutExpired:
            child.kill()
            return child.wait()


# The child


def main() -> None:
    """Run the child that `ProcessSession` describes in the argument."""
    child = json.loads(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Control-C reaches the worker too, and it decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    lease: Lease = _WhileParentLives(child["role"], child["parent"])
    shared: SharedLease | None = None
    if child["leases"] is not None:
        roles, descriptor = child["leases"]
        shared = SharedLease(tuple(roles), fd=descriptor)
        lease = shared.role(child["role"])
    busy, session = threading.Event(), None
    threading.Thread(target=_watch, args=(busy, lease, child["term"]), name="neli-lease-watch", daemon=True).start()
    with socket.socket(fileno=child["socket"]) as channel, suppress(OSError):  # the worker is gone
        for command in _messages(channel):
            if command == "end" or os.getppid() != child["parent"]:
                break
            if command is None:
                continue
            busy.set()
            try:
                session = session or _load(child, lease, shared)
                answer: dict[str, Any] = {"ran": session.run()}
            except BaseException as exc:  # noqa: BLE001 - the worker logs and counts it; SystemExit, too
                answer = {"error": _describe(exc, None if session else child["name"])}
            finally:
                busy.clear()
            with suppress(OSError):  # the worker may be gone, which the next turn notes
                _send(channel, answer)
        if session is not None:
            session.end()
        _send(channel, {})


def _load(child: dict[str, Any], lease: Lease, shared: SharedLease | None) -> ThreadSession:
    name = child["name"]
    sys.path[:] = child["path"]
    multiprocessing.current_process().name = f"singleton-{name}"
    if os.environ.get("DJANGO_SETTINGS_MODULE"):
        import django

        django.setup()  # as Celery does before it imports a worker's modules
    importlib.import_module(name.partition(":")[0])
    app, singleton = find(name, child["registered_role"])
    app.log.setup(**child["log"])
    if shared is not None:
        share(app, shared)
    return ThreadSession(singleton, lease, child["term"])


def _describe(exc: BaseException, unloaded: str | None) -> str:
    """Return one line, and the traceback if that says more. `unloaded` names what the child failed to load."""
    line = f"{exc!r} in its process" if unloaded is None else f"its process cannot load {unloaded}: {exc!r}"
    plain = unloaded is not None and isinstance(exc, (ImportError, ConfigurationError))
    return line if plain else f"{line}\n{traceback.format_exc()[-LAST:].rstrip()}"


@dataclass(frozen=True)
class _WhileParentLives(Unelected):
    """Without an election, a run may go on until the worker is gone."""

    parent: int

    def may_finish(self, term: int | None = None) -> bool:
        return os.getppid() == self.parent


def _watch(busy: threading.Event, lease: Lease, term: int) -> None:
    while busy.wait():
        if lease.may_finish(term):
            left = lease.standing().until - boottime() if isinstance(lease, RoleLease) else POLL_INTERVAL
            time.sleep(min(POLL_INTERVAL, max(left, 0.0)))
        else:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(GRACE)
            if busy.is_set():
                os.kill(os.getpid(), signal.SIGKILL)
