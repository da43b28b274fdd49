"""A small HTTP server on a thread of the operating system, also under gevent, for short answers to short questions.

It uses the sockets below Python's, which gevent never replaces, and serves all connections on one thread without ever
waiting for one of them. Children that a pool forks close what they inherit of it.
"""

from __future__ import annotations

import _socket
import logging
import os
import select
import time
from collections.abc import Callable
from typing import Any, Final

from celery_neli.logs import escaping
from celery_neli.threads import Thread, original, spawn

MOST_CONNECTIONS: Final = 100  # one more, and the oldest is closed: those who know what they want are done by then
MOST_BYTES: Final = 8_192  # of a request's head
PATIENCE: Final = 5.0  # seconds that a client has to ask, and to take the answer
TURN: Final = 1.0  # seconds that one wait takes at most
BIND_AGAIN: Final = 5.0  # seconds between two attempts to get the address
BACKLOG: Final = 64
JOIN: Final = 1.0
_END = b"\r\n\r\n"

logger = escaping(logging.getLogger(__name__))


class _Connection:
    """One client: what it has sent, and what is left to send to it."""

    def __init__(self, socket: _socket.socket, until: float) -> None:
        self.socket, self.until = socket, until
        self.received, self.answer = b"", b""

    def serve(self, respond: Callable[[bytes], bytes]) -> bool:
        """Read or write what goes without waiting; return False at the end."""
        try:
            if not self.answer:
                more = self.socket.recv(MOST_BYTES)
                self.received += more
                if not (_complete(self.received) or len(self.received) > MOST_BYTES):
                    return bool(more)
                self.answer = respond(self.received[: MOST_BYTES + 1])
            self.answer = self.answer[self.socket.send(self.answer) :]
        except BlockingIOError:
            return True
        except OSError:
            return False
        return bool(self.answer)

    def close(self) -> None:
        """Close it."""
        try:
            self.socket.shutdown(_socket.SHUT_RDWR)  # a child forked in this moment may hold it, too
        except OSError:
            pass
        self.socket.close()


def _complete(received: bytes) -> bool:
    return _END in received or b"\n\n" in received


class Server:
    """Answers on an address; while that is taken, it says so once and goes on trying."""

    def __init__(self, host: str, port: int, respond: Callable[[bytes], bytes], *, name: str) -> None:
        """`respond` makes the response to a request's head on the server's thread. `name` is for the log."""
        self._host, self._port, self._respond, self._name = host.strip("[]"), port, respond, name
        self.address: tuple[str, int] | None = None
        """Where it listens; None while it does not."""
        self._listening: _socket.socket | None = None
        self._connections: dict[int, _Connection] = {}  # by descriptor, in the order of their coming
        self._poll = original("select", "poll")()
        self._pid = os.getpid()
        self._stopping = self._said = self._failed = False
        self._pause: Any = original("_thread", "allocate_lock")()
        self._thread: Thread | None = None

    def start(self) -> None:
        """Begin to serve; returns at once."""
        self._pause.acquire()
        _servers.append(self)
        self._thread = spawn(self._run, name="neli-http")

    def stop(self) -> None:
        """End; wait for a second at most. Repeatable, for one thread. Without effect in a forked child."""
        thread, self._thread = self._thread, None
        if thread is None or os.getpid() != self._pid:
            return
        self._stopping = True
        self._pause.release()
        if (listening := self._listening) is not None:
            try:
                listening.shutdown(_socket.SHUT_RDWR)  # wakes the thread that waits for it
            except OSError:
                pass
        thread.join(JOIN)

    def forget(self) -> None:
        """Close this process's copies of all descriptors, in a forked child: the parent goes on with its own."""
        if self._listening is not None:
            self._listening.close()
        for each in self._connections.values():
            each.socket.close()

    def _run(self) -> None:
        try:
            while not self._stopping:
                if self._listening is None and not self._listen():
                    self._pause.acquire(timeout=BIND_AGAIN)
                    continue
                try:
                    self._turn()
                except Exception:
                    logger.exception("health over HTTP failed: closing its connections, and trying again")
                    self._close_all()
                    self._pause.acquire(timeout=BIND_AGAIN)
        finally:
            self._close_all()
            _servers.remove(self)

    def _listen(self) -> bool:
        try:
            family, _, _, _, address = _socket.getaddrinfo(self._host, self._port, 0, _socket.SOCK_STREAM)[0]
            made = _socket.socket(family, _socket.SOCK_STREAM)
        except OSError as exc:
            self._refused(exc)
            return False
        try:
            made.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
            made.bind(address)
            made.listen(BACKLOG)
        except OSError as exc:
            made.close()
            self._refused(exc)
            return False
        made.setblocking(False)
        self._poll.register(made.fileno(), select.POLLIN)
        self._listening, self.address = made, made.getsockname()[:2]
        shown = f"[{self.address[0]}]" if ":" in self.address[0] else self.address[0]
        logger.info("health over HTTP address=http://%s:%d name=%s", shown, self.address[1], self._name)
        return True

    def _refused(self, error: OSError) -> None:
        if not self._said:
            self._said = True
            logger.error(
                "no health over HTTP: neli_http = %s:%d cannot be used (%s); this process goes on without, and tries "
                "again. Processes of one machine need an address each: port 0, or a dict for beat and worker",
                self._host, self._port, error.strerror or error,
            )  # fmt: skip

    def _turn(self) -> None:
        listening = self._listening
        assert listening is not None, "_run has seen to it"
        for descriptor, _ in self._poll.poll(1000 * TURN):
            if descriptor == listening.fileno():
                self._accept(listening)
            elif (connection := self._connections.get(descriptor)) is not None:
                if not self._serve(connection):
                    self._close(descriptor)
                elif connection.answer:
                    self._poll.modify(descriptor, select.POLLOUT)
        now = time.monotonic()
        for descriptor in [each for each, connection in self._connections.items() if connection.until < now]:
            self._close(descriptor)

    def _serve(self, connection: _Connection) -> bool:
        try:
            return connection.serve(self._respond)
        except Exception:
            if not self._failed:
                self._failed = True
                logger.exception("health over HTTP: an answer failed, which is logged once")
            return False

    def _accept(self, listening: _socket.socket) -> None:
        try:
            descriptor, _ = listening._accept()  # type: ignore[attr-defined]  # noqa: SLF001 - as Python's own socket
        except OSError:  # the client has gone, or this process has no descriptor left
            self._pause.acquire(timeout=0.01)
            return
        made = _socket.socket(fileno=descriptor)
        made.setblocking(False)
        if len(self._connections) >= MOST_CONNECTIONS:
            self._close(next(iter(self._connections)))
        self._connections[descriptor] = _Connection(made, time.monotonic() + PATIENCE)
        self._poll.register(descriptor, select.POLLIN)

    def _close(self, descriptor: int) -> None:
        self._poll.unregister(descriptor)
        self._connections.pop(descriptor).close()

    def _close_all(self) -> None:
        for descriptor in list(self._connections):
            self._close(descriptor)
        if self._listening is not None:
            self._poll.unregister(self._listening.fileno())
            self._listening.close()
            self._listening = self.address = None


_servers: list[Server] = []


def _after_fork() -> None:
    """In a child: close what it inherited, or the address would stay taken when the parent has ended."""
    for server in _servers:
        server.forget()
    _servers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
