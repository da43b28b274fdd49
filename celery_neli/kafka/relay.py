"""A chosen port for brokers that cannot choose theirs: a TCP relay for a Kafka client's first connection.

A Kafka client connects to a bootstrap server only to learn the brokers' addresses, and then goes to these. librdkafka's
mock brokers always bind free ports; so a relay on the chosen port is enough, and no record of a client that has learnt
the addresses passes through it. Loopback only.
"""

from __future__ import annotations

import contextlib
import os
import socket
import socketserver
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["BootstrapRelay"]

LOOPBACK = "127.0.0.1"
CHUNK = 65536  # bytes


class BootstrapRelay:
    """Listens on 127.0.0.1 at a port from the constructor on; forwards from :meth:`start` on.

    :raises OSError: the port cannot be bound.
    """

    def __init__(self, port: int) -> None:
        self._server = _Server((LOOPBACK, port), _Connection)

    def start(self, brokers: Sequence[tuple[str, int]]) -> None:
        """Forward each connection to the first of ``brokers`` that accepts it, on daemon threads; returns at once."""
        self._server.brokers = brokers
        threading.Thread(
            target=self._server.serve_forever, args=(0.2,), name="neli-embedded-kafka-relay", daemon=True
        ).start()
        self._server.serving = True

    def close(self) -> None:
        """Free the port. Connections under way end with the brokers'. Waits up to 0.2 s."""
        if self._server.serving:
            self._server.shutdown()
        self._server.server_close()

    def abandon(self) -> None:
        """In a forked child, which has the socket but not the thread: close the one without waiting for the other."""
        self._server.socket.close()


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = os.name != "nt"  # connections of a stopped relay may linger; on Windows it would steal ports
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64
    brokers: Sequence[tuple[str, int]] = ()
    serving = False


class _Connection(socketserver.BaseRequestHandler):
    server: _Server
    request: socket.socket

    def handle(self) -> None:
        for address in self.server.brokers:
            with contextlib.suppress(OSError):
                broker = socket.create_connection(address, timeout=1.0)
                break
        else:
            return  # every broker is down: the client sees its connection close, and tries again
        with broker:
            broker.settimeout(None)
            answers = threading.Thread(target=_pump, args=(broker, self.request), daemon=True)
            answers.start()
            _pump(self.request, broker)
            answers.join()


def _pump(source: socket.socket, target: socket.socket) -> None:
    """Copy until either end closes, then close both: half a Kafka connection is of no use."""
    with contextlib.suppress(OSError):
        while data := source.recv(CHUNK):
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
