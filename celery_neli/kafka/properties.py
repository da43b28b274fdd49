"""The librdkafka properties of a member's clients: reader, producer and group consumer, and those of a schedule.

Pure: what the user gave (`Config.properties`) is merged with what a member needs. Three kinds of property:

- *required*: safety rests on them, or another setting of ours decides them. A user's differing value is an error,
  raised where the client is made.
- *refused*: a member cannot work with them at all.
- *preferred*: good values for a lease of a few seconds; the user's value wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from celery_neli.exceptions import ConfigurationError
from celery_neli.masking import Masked

if TYPE_CHECKING:
    from celery_neli.config import Config

Properties = dict[str, Any]

# librdkafka knows each of these by two names (its CONFIGURATION.md).
ALIASES: Mapping[str, str] = {
    "metadata.broker.list": "bootstrap.servers",
    "request.required.acks": "acks",
    "message.timeout.ms": "delivery.timeout.ms",
    "max.in.flight": "max.in.flight.requests.per.connection",
    "queue.buffering.max.ms": "linger.ms",
}

REFUSED: Mapping[str, str] = {
    "error_cb": "errors go to the logger celery_neli.kafka",
    "logger": "log lines go to the logger celery_neli.kafka",
    "log_cb": "log lines go to the logger celery_neli.kafka",
    "stats_cb": "it would run on the thread that renews the lease",
    "throttle_cb": "it would run on the thread that renews the lease",
    "on_delivery": "it would run on the thread that renews the lease",
    "on_commit": "nothing is ever committed",
    "group.instance.id": "all members would share it, and the group would fence all but one",
    "transactional.id": "a member does not write in transactions",
    "key.serializer": "these clients have no serializers",
    "value.serializer": "these clients have no serializers",
    "key.deserializer": "these clients have no deserializers",
    "value.deserializer": "these clients have no deserializers",
}

# Where a required value comes from, for the message.
SETTINGS: Mapping[str, str] = {
    "group.id": "neli_group",
    "session.timeout.ms": "neli_session_timeout",
    "delivery.timeout.ms": "neli_heartbeat_timeout",
}


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
    """Properties of the consumer that reads the journal.

    Raises `ConfigurationError`, which names a property that contradicts.
    """
    return _merge(
        config,
        required=_reading(config),
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
    """Properties of the consumer that reads the schedule topic. Raises as `reader_properties`."""
    return _merge(
        config,
        required=_reading(config),
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


def _reading(config: Config) -> Properties:
    return {
        "group.id": config.group,  # never joined: the client demands an id, and this one is authorised anyway
        "auto.offset.reset": "error",  # a position out of the log must be told, not mended in silence (R9)
        "enable.partition.eof": True,  # the end of the log is what a claim waits for (R2)
        "isolation.level": "read_uncommitted",  # a stranger's open transaction must not hold up the log
        "enable.auto.commit": False,
        "allow.auto.create.topics": False,
    }


def producer_properties(config: Config) -> Properties:
    """Properties of the producer that appends to the journal.

    Raises `ConfigurationError`, which names a property that contradicts.
    """
    return _merge(
        config,
        required=_writing(config),
        preferred={
            "linger.ms": 0,
            "request.timeout.ms": _timeout(config),
            "queue.buffering.max.messages": 1_000,
        },
    )


def schedule_producer_properties(config: Config) -> Properties:
    """Properties of the producer that writes to the schedule topic. Raises as `producer_properties`."""
    return _merge(
        config,
        # A topic that brokers make when it is asked for is not compacted.
        required={**_writing(config), "allow.auto.create.topics": False},
        preferred={
            "linger.ms": 50,  # nothing waits for these records: many in a request
            "request.timeout.ms": _timeout(config),
            "queue.buffering.max.messages": 20_000,
            **_UNHURRIED,
        },
    )


def _writing(config: Config) -> Properties:
    return {
        "acks": "all",  # a record that only one broker has can be lost after it was read (R1)
        # A record older than the lease that it buys is of no use, and a state must not be written long after its term.
        "delivery.timeout.ms": _timeout(config),
        # No idempotence: both folds bear doubles and late records, and a clean broker stop then delays a record by
        # 0.3 s instead of 1.2 s.
        "enable.idempotence": False,
        "max.in.flight.requests.per.connection": 1,
    }


def _timeout(config: Config) -> int:
    return max(1, round(config.heartbeat_timeout * 1000))


def group_properties(config: Config) -> Properties:
    """Properties of the consumer that is a member of the group.

    Raises `ConfigurationError`, which names a property that contradicts.
    """
    session = round(config.session_timeout * 1000)
    return _merge(
        config,
        required={
            "group.id": config.group,
            "group.protocol": "classic",  # KIP-848 leaves the session timeout to the broker: 45 s
            "partition.assignment.strategy": "cooperative-sticky",  # a join must not disturb the leader
            "session.timeout.ms": session,
            "enable.auto.commit": False,
            "allow.auto.create.topics": False,
        },
        preferred={
            "heartbeat.interval.ms": 200,  # how soon a member learns of a rebalance
            "max.poll.interval.ms": max(300_000, session),  # librdkafka: not below the session timeout
            "auto.offset.reset": "error",
            "fetch.queue.backoff.ms": 1_000,
        },
    )


def check(config: Config) -> None:
    """Raise `ConfigurationError` for a property that contradicts what an election needs."""
    for properties in (reader_properties, producer_properties, group_properties):
        properties(config)


def admin_properties(config: Config) -> Properties:
    """Properties of the short-lived client that looks after the leader topic."""
    return _merge(config, required={}, preferred={})


def _merge(config: Config, *, required: Properties, preferred: Properties) -> Properties:
    given = {_canonical(name): value for name, value in config.properties.items()}
    for name, reason in REFUSED.items():
        if given.get(name) is not None:
            raise ConfigurationError(f"neli_kafka must not contain {name}: {reason}.")
    for name, ours in required.items():
        if name in given and not _same(name, given[name], ours):
            where = f" (it follows from {SETTINGS[name]})" if name in SETTINGS else ""
            raise ConfigurationError(
                f"neli_kafka has {name}={given[name]!r}, but an election needs {name}={ours!r}{where}; remove it."
            )
    return Masked({**connection_properties(config), **preferred, **given, **required})


def _canonical(name: str) -> str:
    return ALIASES.get(name, name)


def _same(name: str, given: Any, ours: Any) -> bool:
    return _spelt(name, given) == _spelt(name, ours)


def _spelt(name: str, value: Any) -> str:
    text = str(value).strip().lower()
    if name == "acks" and text == "-1":
        return "all"
    return text
