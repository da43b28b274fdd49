"""librdkafka's mock cluster: its functions, its start and its end, a chosen port for it, and what a fork must not keep.

Its brokers always bind free ports. A client connects to a bootstrap server only to learn the brokers' addresses, and
then goes to these: a TCP relay on the chosen port is enough. Loopback only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import socket
import socketserver
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from celery_neli.exceptions import ConfigurationError, EmbeddedKafkaUnavailable, NeliError

RD_KAFKA_PRODUCER: Final = 0
LOOPBACK: Final = "127.0.0.1"
CHUNK: Final = 65536  # bytes that the relay copies at a time
# Seconds. The cluster's thread empties its wake-up pipe after it has answered: a call that follows at once may lose its
# own wake-up, and would wait for the thread's next look, a second later.
SETTLE: Final = 0.002

_P, _I32, _STR = ctypes.c_void_p, ctypes.c_int32, ctypes.c_char_p
_PROTOTYPES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "rd_kafka_conf_new": (_P, ()),
    "rd_kafka_conf_set_log_cb": (None, (_P, _P)),
    "rd_kafka_new": (_P, (ctypes.c_int, _P, _STR, ctypes.c_size_t)),
    "rd_kafka_destroy": (None, (_P,)),
    "rd_kafka_mock_cluster_new": (_P, (_P, ctypes.c_int)),
    "rd_kafka_mock_cluster_destroy": (None, (_P,)),
    "rd_kafka_mock_cluster_bootstraps": (_STR, (_P,)),
    "rd_kafka_mock_topic_create": (ctypes.c_int, (_P, _STR, ctypes.c_int, ctypes.c_int)),
    "rd_kafka_mock_partition_set_leader": (ctypes.c_int, (_P, _STR, _I32, _I32)),
    "rd_kafka_mock_coordinator_set": (ctypes.c_int, (_P, _STR, _STR, _I32)),
    "rd_kafka_mock_broker_set_down": (ctypes.c_int, (_P, _I32)),
    "rd_kafka_mock_broker_set_up": (ctypes.c_int, (_P, _I32)),
    "rd_kafka_mock_broker_set_rtt": (ctypes.c_int, (_P, _I32, ctypes.c_int)),
    "rd_kafka_mock_push_request_errors_array": (None, (_P, ctypes.c_int16, ctypes.c_size_t, _P)),
    "rd_kafka_mock_clear_request_errors": (None, (_P, ctypes.c_int16)),
    "rd_kafka_mock_group_initial_rebalance_delay_ms": (None, (_P, _I32)),
    "rd_kafka_mock_topic_delete": (ctypes.c_int, (_P, _STR)),
}
# Younger than the rest: without them a group's first rebalance takes 3 s, and a topic cannot be deleted.
_OPTIONAL = {"rd_kafka_mock_group_initial_rebalance_delay_ms", "rd_kafka_mock_topic_delete"}


def load(path: str) -> ctypes.CDLL:
    """Load the library at `path` and declare the functions used here; its calls release the GIL (CDLL, not PyDLL).
    Raises `EmbeddedKafkaUnavailable` if it cannot be loaded or lacks a function, which the message names.
    """
    remedy = (
        "install confluent-kafka from its wheel (pip install confluent-kafka), pass library= the path of a librdkafka "
        "that has it, or use a real Kafka"
    )
    try:
        library = ctypes.CDLL(path)
    except OSError as exc:
        raise EmbeddedKafkaUnavailable(f"librdkafka cannot be loaded from {path}: {exc}; {remedy}") from exc
    for name, (restype, argtypes) in _PROTOTYPES.items():
        if hasattr(library, name):
            function = getattr(library, name)
            function.restype, function.argtypes = restype, argtypes
        elif name not in _OPTIONAL:
            raise EmbeddedKafkaUnavailable(f"librdkafka's mock cluster is not in {path} (no {name}); {remedy}")
    return library


class MockCluster:
    """A started mock cluster and, with a chosen port, its relay. `stop` ends both."""

    def __init__(self, library: ctypes.CDLL, *, port: int | None, brokers: int) -> None:
        self.pid = os.getpid()
        self._library = library
        self._lock = threading.Lock()
        self._relay: _Relay | None = None
        conf = library.rd_kafka_conf_new()
        library.rd_kafka_conf_set_log_cb(conf, None)  # else it prints to stderr that it has no bootstrap.servers
        error = ctypes.create_string_buffer(512)
        self._client = library.rd_kafka_new(RD_KAFKA_PRODUCER, conf, error, len(error))
        self._cluster = library.rd_kafka_mock_cluster_new(self._client, brokers) if self._client else None
        if not self._cluster:
            if self._client:
                library.rd_kafka_destroy(self._client)
            raise NeliError(f"librdkafka could not start a mock cluster of {brokers} brokers {error.value.decode()!r}")
        if self.has("group_initial_rebalance_delay_ms"):
            # A first rebalance waits 3 s for more members, as Kafka's default does; a broker of tests need not.
            library.rd_kafka_mock_group_initial_rebalance_delay_ms(self._cluster, 0)
        self.bootstrap_servers: str = library.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()
        addresses = [(host, int(p)) for host, _, p in (b.rpartition(":") for b in self.bootstrap_servers.split(","))]
        self._ports = frozenset(number for _, number in addresses)
        if port is not None:
            try:
                self._relay = _Relay(port, addresses)
            except OSError as exc:
                self.stop()
                raise ConfigurationError(f"port={port} on 127.0.0.1 cannot be had: {exc}; choose another") from exc
            self.bootstrap_servers = f"{LOOPBACK}:{port}"
        _running.add(self)

    def has(self, function: str) -> bool:
        """Return True if this librdkafka has `rd_kafka_mock_<function>`."""
        return hasattr(self._library, f"rd_kafka_mock_{function}")

    def call(self, function: str, *args: object) -> int | None:
        """Call `rd_kafka_mock_<function>`, one at a time; return librdkafka's code. Raises `NeliError` after `stop`."""
        with self._lock:
            if not self._cluster:
                raise NeliError("this embedded Kafka was closed")
            code: int | None = getattr(self._library, f"rd_kafka_mock_{function}")(self._cluster, *args)
            time.sleep(SETTLE)
        return code

    def stop(self) -> None:
        """Destroy the cluster; nothing in a forked child, where librdkafka's threads do not exist to be waited for."""
        if os.getpid() != self.pid:
            return
        _running.discard(self)
        if self._relay is not None:
            self._relay.stop()
        with self._lock:
            cluster, self._cluster = self._cluster, None
            self._library.rd_kafka_mock_cluster_destroy(cluster)
            self._library.rd_kafka_destroy(self._client)

    def drop_inherited_sockets(self) -> None:
        """In a forked child: close the brokers' sockets, and the relay's without waiting for its thread. A listening
        socket that lives on in a child keeps its port: the parent's clients would wait for an answer there after the
        parent has ended, and a broker that was taken down could not bind again (librdkafka aborts).
        """
        if self._relay is not None:
            self._relay.socket.close()
        for entry in Path("/dev/fd").iterdir():
            with contextlib.suppress(OSError):  # not a socket, or the descriptor of this very listing
                inherited = socket.socket(fileno=int(entry.name))
                try:
                    ours = inherited.family == socket.AF_INET and inherited.getsockname()[1] in self._ports
                finally:
                    inherited.detach()
                if ours:
                    os.close(int(entry.name))


def create_topic(bootstrap_servers: str, topic: str, partitions: int) -> bool:
    """Create `topic` on the cluster of this process at `bootstrap_servers`, if there is one; return True if it did."""
    address = bootstrap_servers.replace("localhost", LOOPBACK)
    here = [cluster for cluster in list(_running) if cluster.bootstrap_servers == address]
    return bool(here) and here[0].call("topic_create", topic.encode(), partitions, 1) == 0


_running: weakref.WeakSet[MockCluster] = weakref.WeakSet()
_forking = threading.local()


def _before_fork() -> None:
    _forking.pipe = os.pipe() if _running else None


def _after_fork_in_parent() -> None:
    # Wait for the child to let go, so that the parent may take a broker down at once. A second is ample, and a bound is
    # needed: a child of a fork on another thread may hold the pipe for as long as it lives.
    if _forking.pipe is not None:
        reading, writing = _forking.pipe
        os.close(writing)
        select.select([reading], [], [], 1.0)
        os.close(reading)


def _after_fork_in_child() -> None:
    for cluster in list(_running):
        cluster.drop_inherited_sockets()
    _running.clear()
    if _forking.pipe is not None:
        for end in _forking.pipe:
            os.close(end)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


class _Relay(socketserver.ThreadingTCPServer):
    """Forwards each connection to its port, to the first of `brokers` that accepts it, on daemon threads."""

    allow_reuse_address = os.name != "nt"  # connections of a stopped relay may linger; on Windows it would steal ports
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, port: int, brokers: Sequence[tuple[str, int]]) -> None:
        super().__init__((LOOPBACK, port), _Connection)
        self.brokers = brokers
        threading.Thread(target=self.serve_forever, args=(0.2,), name="neli-embedded-kafka-relay", daemon=True).start()

    def stop(self) -> None:
        """Free the port. Connections under way end with the brokers'. Waits up to 0.2 s."""
        self.shutdown()
        self.server_close()


class _Connection(socketserver.BaseRequestHandler):
    server: _Relay
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
