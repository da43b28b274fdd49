"""The librdkafka properties of a member's clients: reader, producer and group consumer, and those of a schedule.

Pure: what the user gave (`Config.properties`) is merged with what is *required*, which `config.py` has checked against
it, and with what is *preferred*: good values for a lease of a few seconds, over which the user's value wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from celery_neli.config import required_of_members, required_of_readers, required_of_writers
from celery_neli.printable import Masked

if TYPE_CHECKING:
    from celery_neli.config import Config

Properties = dict[str, Any]

# Of clients on which no lease depends: errors tell of a new partition leader before this does.
_UNHURRIED: Mapping[str, Any] = {"topic.metadata.refresh.interval.ms": 10_000}


def connection_properties(config: Config) -> Properties:
    """What every client of a member shares: how soon it notices and forgives a broker's trouble."""
    return {
        "client.id": config.name,
        # A request to a frozen broker is given up after this, so that another broker can be asked within a lease.
        "socket.timeout.ms": 4_000,
        "socket.connection.setup.timeout.ms": 4_000,
        "reconnect.backoff.ms": 100,
        "reconnect.backoff.max.ms": 1_000,
        "retry.backoff.ms": 50,
        "retry.backoff.max.ms": 500,
        # A new partition leader, or a topic made meanwhile, is noticed within this even if no broker tells.
        "topic.metadata.refresh.interval.ms": 1_000,
        "topic.metadata.refresh.fast.interval.ms": 50,
        # A topic deleted or not created yet is told at once; the journal decides what to do.
        "topic.metadata.propagation.max.ms": 2_000,
        "enable.metrics.push": False,
    }


def reader_properties(config: Config) -> Properties:
    """Properties of the consumer that reads the journal."""
    return _merge(
        config,
        required=required_of_readers(config),
        preferred={
            # The embedded broker does not wake a waiting fetch, so this bounds its latency, and on any broker it bounds
            # how soon the end of the log is told. Against the default of 500 ms it costs 0.1 % of a core.
            "fetch.wait.max.ms": 100,
            "fetch.min.bytes": 1,
            "fetch.error.backoff.ms": 50,
            "fetch.queue.backoff.ms": 50,
        },
    )


def schedule_reader_properties(config: Config) -> Properties:
    """Properties of the consumer that reads the schedule topic."""
    return _merge(
        config,
        required=required_of_readers(config),
        preferred={
            # Bounds how late the embedded broker, which does not wake a waiting fetch, tells of a change.
            "fetch.wait.max.ms": 200,
            "fetch.error.backoff.ms": 50,
            "fetch.queue.backoff.ms": 10,
            # Of a hundred thousand entries, so many lie in memory at a time while they are read.
            "queued.min.messages": 5_000,
            "queued.max.messages.kbytes": 4_096,
            **_UNHURRIED,
        },
    )


def producer_properties(config: Config) -> Properties:
    """Properties of the producer that appends to the journal."""
    return _merge(
        config,
        required=required_of_writers(config),
        preferred={
            "linger.ms": 0,
            "request.timeout.ms": _timeout(config),
            "queue.buffering.max.messages": 1_000,
        },
    )


def schedule_producer_properties(config: Config) -> Properties:
    """Properties of the producer that writes to the schedule topic."""
    return _merge(
        config,
        # A topic that brokers make when it is asked for is not compacted.
        required={**required_of_writers(config), "allow.auto.create.topics": False},
        preferred={
            "linger.ms": 50,  # nothing waits for these records: many in a request
            "request.timeout.ms": _timeout(config),
            "queue.buffering.max.messages": 20_000,
            **_UNHURRIED,
        },
    )


def _timeout(config: Config) -> int:
    return max(1, round(config.heartbeat_timeout * 1000))


def group_properties(config: Config) -> Properties:
    """Properties of the consumer that is a member of the group."""
    session = round(config.session_timeout * 1000)
    return _merge(
        config,
        required=required_of_members(config),
        preferred={
            "heartbeat.interval.ms": 200,  # how soon a member learns of a rebalance
            "max.poll.interval.ms": max(300_000, session),  # librdkafka: not below the session timeout
            "auto.offset.reset": "error",
            "fetch.queue.backoff.ms": 1_000,
        },
    )


def admin_properties(config: Config) -> Properties:
    """Properties of the short-lived client that looks after the leader topic."""
    return _merge(config, required={}, preferred={})


def _merge(config: Config, *, required: Mapping[str, Any], preferred: Properties) -> Properties:
    return Masked({**connection_properties(config), **preferred, **config.properties, **required})
