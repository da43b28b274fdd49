"""A singleton in a process of its own, as the worker sees it: each turn is a command, and waits for the answer.

The child (`child.py`) is a fresh interpreter, not a fork: the worker has threads and live Kafka clients. Over
a socket pair go JSON lines: what to run, then `turn` or `end` and one answer to each. Failures are counted here.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import time
from importlib.machinery import PathFinder
from typing import Any

from celery_neli.election.shared_lease import SharedLease
from celery_neli.logs import escaping
from celery_neli.singletons.registry import Singleton
from celery_neli.singletons.runner import ChildFailed, Lease

CHILD = "import sys; sys.path[:] = {path}; from celery_neli.singletons.child import main; main()"
"""What the child is told to run. Not by `python -m`, which would put the working directory before all else: a project's
`celery.py` there is none of ours.
"""
LOOK = 0.2
"""Seconds between two looks at the child while it says nothing."""
EXIT = 2.0
"""Seconds that a child may take to exit when it has wrapped up."""
STUCK = 6.0
"""Seconds after the lease's end in which the child must have ended itself, unless native code holds it up."""

logger = escaping(logging.getLogger(__name__))


def child_path(singleton: Singleton) -> list[str]:
    """The child's `sys.path`: that of the import that registered it, and what this process has added since."""
    return list(dict.fromkeys([*singleton.path, *map(str, sys.path)]))


def can_find(singleton: Singleton) -> bool:
    """Whether a child will find the module of the function, or the package that it is in. Imports nothing."""
    package = singleton.name.partition(":")[0].partition(".")[0]
    if PathFinder.find_spec(package, child_path(singleton)) is not None:
        return True
    # Editable installations and the like find modules in their own ways, in every interpreter.
    others = (each for each in sys.meta_path if each is not PathFinder and hasattr(each, "find_spec"))
    return any(each.find_spec(package, None) is not None for each in others)


class Isolated:
    """See `turns.Turns`: the stretch whose calls happen in a child. It is started by the first turn, and by the next
    one after it died; it runs `setup` then.
    """

    def __init__(self, singleton: Singleton, role: str, lease: Lease, term: int, *, log: dict[str, Any]) -> None:
        """`log`: keyword arguments of Celery's `app.log.setup`, for the child."""
        self._singleton, self._role, self._lease, self._term, self._log = singleton, role, lease, term, log
        self._child: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def turn(self) -> bool:
        """See `turns.Turns`. Blocks until the child answers, or has died. Raises `ChildFailed`, or OSError if there is
        no starting it.
        """
        if not self._leading():
            return False
        started = self._child is not None
        if not started:
            self._start()
        try:
            if not started:
                self._send(self._told())
            answer = self._ask("turn")
        except (OSError, EOFError):
            status = self._reap()
            if not self._leading():
                return False  # the child was terminated for that
            how = f"died with status {status}" if status >= 0 else f"was killed by signal {-status}"
            raise ChildFailed(f"its process {how}; standard error may say why") from None
        if "error" in answer:
            raise ChildFailed(answer["error"])
        return bool(answer["ran"])

    def end(self) -> None:
        """Let the child wrap up, and wait for its end."""
        if self._child is None:
            return
        try:
            self._ask("end")
        except (OSError, EOFError):
            line = "singleton process died before it could wrap up singleton=%s role=%s"
            logger.warning(line, self._singleton.name, self._role)
        self._reap()

    def _leading(self) -> bool:
        return self._lease.leading(self._role) == self._term

    def _told(self) -> dict[str, Any]:
        """What the child must know."""
        return {
            "name": self._singleton.name,
            "registered_role": self._singleton.role,
            "role": self._role,
            "roles": self._lease.roles if isinstance(self._lease, SharedLease) else (self._role,),
            "term": self._term,
            "path": child_path(self._singleton),
            "log": self._log,
        }

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        # Until the child imports the user's module it has the path of this process, where ours were found.
        code = CHILD.format(path=ascii(list(map(str, sys.path))))
        command = [sys.executable, "-c", code, str(theirs.fileno()), str(os.getpid())]
        pass_fds = [theirs.fileno()]
        if isinstance(self._lease, SharedLease):
            command.append(str(self._lease.fd))
            pass_fds.append(self._lease.fd)
        try:
            with theirs:
                self._child = subprocess.Popen(command, pass_fds=pass_fds, stdin=subprocess.DEVNULL)  # noqa: S603 - ours
        except BaseException:
            ours.close()
            raise
        self._socket = ours
        ours.settimeout(LOOK)

    def _ask(self, what: str) -> dict[str, Any]:
        assert self._child is not None
        assert self._socket is not None
        self._send({"do": what})
        data, dead, held_at = b"", False, time.monotonic()
        while not data.endswith(b"\n"):
            try:
                part = self._socket.recv(65536)
            except TimeoutError:
                if dead:
                    raise EOFError from None
                dead = self._child.poll() is not None  # and look once more: it may have said something before
                now = time.monotonic()
                if what == "end" or self._lease.held(self._role, self._term):
                    held_at = now
                elif now - held_at > STUCK:
                    self._child.kill()
            else:
                if not part:
                    raise EOFError
                data += part
        return dict(json.loads(data))

    def _send(self, what: dict[str, Any]) -> None:
        assert self._socket is not None
        self._socket.sendall(json.dumps(what).encode() + b"\n")

    def _reap(self) -> int:
        """The status of the child, which is at its end."""
        assert self._child is not None
        assert self._socket is not None
        child, self._child = self._child, None
        self._socket.close()
        try:
            return child.wait(EXIT)
        except subprocess.TimeoutExpired:
            child.kill()
            return child.wait()
