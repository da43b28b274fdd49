"""A Kafka inside this process for development and tests, with nothing to install or to start.

librdkafka, which confluent-kafka contains, has a mock cluster for its own tests (``rdkafka_mock.h``): a TCP server on
the loopback interface that speaks Kafka's protocol to any client on this machine. It supports produce, fetch, metadata,
consumer groups and transactions. Its brokers can go down and come back, answer slowly, move leaders and coordinators,
and fail chosen requests, so our tests inject faults with it. This module calls it with ctypes.

It is never for production. It forgets everything when it ends, keeps 5 MB or 100 000 records per partition, and has no
replication behind its replication factor, no authentication and no CreateTopics request. A topic that a client creates
by asking for it has 4 partitions; :meth:`EmbeddedKafka.create_topic` lets you choose, as members of an election in this
process and ``celery -A <app> neli kafka`` do. An empty consumer group admits its first member at once. Every later
rebalance takes the group's ``session.timeout.ms`` less a second, and so does the wait for a killed member. All members
must name the same assignor first, or librdkafka ends the process.
"""

from __future__ import annotations

import ctypes
import logging
import os
import weakref
from pathlib import Path

import confluent_kafka.cimpl
from confluent_kafka import KafkaError

from celery_neli.exceptions import ConfigurationError, EmbeddedKafkaUnavailable, NeliError
from celery_neli.kafka.mock_cluster import MockCluster, load
from celery_neli.logs import escaping
from celery_neli.printable import did_you_mean

__all__ = ["EmbeddedKafka"]

logger = escaping(logging.getLogger(__name__))

ALL_BROKERS = -1  # rdkafka_mock.h: "Use -1 for all brokers"; as the leader of a partition, none

#: The requests that the mock brokers answer, by their names in the Kafka protocol: only these can be made to fail.
API_KEYS = {
    "Produce": 0,
    "Fetch": 1,
    "ListOffsets": 2,
    "Metadata": 3,
    "OffsetCommit": 8,
    "OffsetFetch": 9,
    "FindCoordinator": 10,
    "JoinGroup": 11,
    "Heartbeat": 12,
    "LeaveGroup": 13,
    "SyncGroup": 14,
    "ApiVersions": 18,
    "InitProducerId": 22,
    "OffsetForLeaderEpoch": 23,
    "AddPartitionsToTxn": 24,
    "AddOffsetsToTxn": 25,
    "EndTxn": 26,
    "TxnOffsetCommit": 28,
}


class EmbeddedKafka:
    """librdkafka's mock Kafka cluster as a context manager, with its faults as methods.

    All methods may be called from any thread; they wait milliseconds for the mock cluster's own thread, with the GIL
    released. A forked child has no Kafka: it loses the inherited sockets at once, and all methods raise except
    :meth:`start`, which starts a new one, and :meth:`close`.

    Clients find it at ``port`` on 127.0.0.1, by default any free one: the mock brokers always listen on free ports, and
    a relay on the chosen one leads a client to them. The ids of the ``brokers`` are 1, 2, ... ``library`` is the path
    of another librdkafka than confluent-kafka's. Raises `ConfigurationError` if one is out of range.
    """

    def __init__(
        self, *, port: int | None = None, brokers: int = 1, library: str | os.PathLike[str] | None = None
    ) -> None:
        if port is not None and not 0 < port < 65536:
            raise ConfigurationError(f"port={port!r}: choose one from 1 to 65535, or None for any free port")
        if brokers < 1:
            raise ConfigurationError(f"brokers={brokers!r}: an embedded Kafka needs at least one broker")
        self.port = port
        self.brokers = brokers
        self._path = os.fspath(library) if library is not None else _librdkafka()
        self._running: MockCluster | None = None

    def __enter__(self) -> EmbeddedKafka:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> EmbeddedKafka:
        """Start the brokers, without topics, and return self. A second start does nothing. Raises `ConfigurationError`
        if the port is not free, and `EmbeddedKafkaUnavailable` if librdkafka lacks the mock cluster.
        """
        if self._running is None or self._running.pid != os.getpid():
            self._running = running = MockCluster(load(self._path), port=self.port, brokers=self.brokers)
            self._finalizer = weakref.finalize(self, running.stop)  # if it is not closed
            logger.warning(
                "embedded kafka started bootstrap_servers=%s brokers=%d: for development only, never production;"
                " it forgets everything when it ends",
                running.bootstrap_servers,
                self.brokers,
            )
        return self

    def close(self) -> None:
        """End the brokers and forget their topics. Waits for librdkafka's threads. Does nothing twice, or in a fork."""
        if self._running is not None:
            self._running = None
            self._finalizer()

    @property
    def bootstrap_servers(self) -> str:
        """``"127.0.0.1:<port>"``, or a comma-separated list of all brokers when no port was chosen."""
        return self._started().bootstrap_servers

    def create_topic(self, name: str, *, partitions: int = 1, replication_factor: int = 1) -> None:
        """Create a topic. Raises `NeliError` if it exists, or if librdkafka refuses its shape."""
        if partitions < 1 or not 1 <= replication_factor <= self.brokers:
            raise ConfigurationError(
                f"topic {name!r}: partitions={partitions} must be at least 1 and replication_factor="
                f"{replication_factor} from 1 to the number of brokers, {self.brokers}"
            )
        self._do(f"create topic {name!r}", "topic_create", name.encode(), partitions, replication_factor)

    def delete_topic(self, name: str) -> None:
        """Delete a topic and its records. A client that asks for it by name may create it again."""
        self._do(f"delete topic {name!r}", "topic_delete", name.encode())

    def broker_down(self, broker: int | None = None) -> None:
        """Close a broker's connections (default: all brokers') and refuse new ones. Leaders stay where they are."""
        self._do("take a broker down", "broker_set_down", self._id(broker))

    def broker_up(self, broker: int | None = None) -> None:
        """Let a broker (default: all) accept connections again, at the same port and with its records."""
        self._do("bring a broker up", "broker_set_up", self._id(broker))

    def slow(self, seconds: float, broker: int | None = None) -> None:
        """Delay the answer to every request by so many seconds; 0 ends the delay (default: all brokers)."""
        if not 0 <= seconds < 86400:
            raise ConfigurationError(f"slow({seconds!r}): give a round-trip time in seconds, from 0 to a day")
        self._do("slow a broker", "broker_set_rtt", self._id(broker), round(seconds * 1000))

    def move_leader(self, topic: str, partition: int, broker: int | None) -> None:
        """Make a broker the leader of a partition; None leaves it without a leader."""
        self._do(f"move {topic} [{partition}]", "partition_set_leader", topic.encode(), partition, self._id(broker))

    def move_coordinator(self, group: str, broker: int) -> None:
        """Make a broker the coordinator of a consumer group. The group's members notice it and go there."""
        self._do(f"move group {group!r}", "coordinator_set", b"group", group.encode(), self._id(broker))

    def push_errors(self, api: str, *errors: str | int, count: int = 1) -> None:
        """Fail the next requests of one kind, on any broker, with the given errors in turn, ``count`` times over.

        ``api`` is a request of :data:`API_KEYS`, e.g. ``"Produce"``; errors are names or numbers of
        :class:`confluent_kafka.KafkaError`, e.g. ``"NOT_COORDINATOR"``; ``"_TRANSPORT"`` breaks the connection.
        """
        codes = [_error_code(error) for error in errors] * count
        if not codes:
            raise ConfigurationError(f"push_errors({api!r}): name at least one error, and a count of at least 1")
        array = (ctypes.c_int * len(codes))(*codes)
        self._started().call("push_request_errors_array", _api_key(api), len(codes), array)

    def clear_errors(self, api: str) -> None:
        """Forget the errors that were pushed for one kind of request and have not failed one yet."""
        self._started().call("clear_request_errors", _api_key(api))

    def _id(self, broker: int | None) -> int:
        if broker is None:
            return ALL_BROKERS
        if broker not in range(1, self.brokers + 1):
            raise ConfigurationError(f"broker {broker!r} does not exist: the ids are {[*range(1, self.brokers + 1)]}")
        return broker

    def _started(self) -> MockCluster:
        if self._running is None:
            raise NeliError("this embedded Kafka is not running: call start(), or use it as a context manager")
        if self._running.pid != os.getpid():
            raise NeliError(f"this embedded Kafka runs in process {self._running.pid}, not in its fork {os.getpid()}")
        return self._running

    def _do(self, what: str, function: str, *args: object) -> None:
        started = self._started()
        if not started.has(function):
            raise EmbeddedKafkaUnavailable(f"cannot {what}: this librdkafka is too old for it; upgrade confluent-kafka")
        code = started.call(function, *args)
        if code:
            raise NeliError(f"cannot {what}: {KafkaError(code).str()} ({KafkaError(code).name()})")


def _librdkafka() -> str:
    extension = Path(confluent_kafka.cimpl.__file__)
    # Windows finds a symbol only in its own DLL, which the wheel keeps beside the package. Other systems also look in
    # the libraries that the extension is linked to, be they the wheel's, the system's or conda's.
    dlls = sorted(extension.parent.parent.glob("confluent_kafka.libs/librdkafka-*.dll"))
    return str(dlls[0] if dlls else extension)


def _api_key(api: str) -> int:
    if api not in API_KEYS:
        raise ConfigurationError(f"no embedded Kafka answers {api!r} requests; {did_you_mean(api, API_KEYS)}")
    return API_KEYS[api]


def _error_code(error: str | int) -> int:
    if isinstance(error, int):
        return error
    codes = {name: code for name, code in vars(KafkaError).items() if name.isupper() and isinstance(code, int)}
    if error not in codes:
        raise ConfigurationError(f"confluent_kafka.KafkaError has no error {error!r}; {did_you_mean(error, codes)}")
    return codes[error]
