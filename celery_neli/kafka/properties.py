"""The librdkafka properties of a member's clients, and the check that librdkafka accepts them.

What the user gave (`Config.properties`) is merged with what is *required*, which `config.py` has checked against it,
and with what is *preferred*: good values for a lease of a few seconds, over which the user's value wins.
"""

from __future__ import annotations

import ctypes
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import confluent_kafka
from confluent_kafka import Consumer, KafkaException, Producer

from celery_neli.config import Config, required_of_members, required_of_readers, required_of_writers
from celery_neli.exceptions import ConfigurationError
from celery_neli.kafka.causes import refused
from celery_neli.printable import Masked, masked, secrets_of

# How soon every client of a member notices and forgives a broker's trouble.
_SHARED: Mapping[str, Any] = {
    # A request to a frozen broker is given up after this, so that another broker can be asked within a lease.
    "socket.timeout.ms": 4_000,
    "socket.connection.setup.timeout.ms": 4_000,
    "reconnect.backoff.ms": 100,
    "reconnect.backoff.max.ms": 1_000,
    "retry.backoff.ms": 50,
    "retry.backoff.max.ms": 500,
    # A new partition leader or a new topic is noticed within this, even if no broker reports it.
    "topic.metadata.refresh.interval.ms": 1_000,
    "topic.metadata.refresh.fast.interval.ms": 50,
    # A topic that is deleted or not created yet is reported at once; the reader's owner decides what to do.
    "topic.metadata.propagation.max.ms": 2_000,
    "enable.metrics.push": False,
}
# Of clients on which no lease depends: errors report a new partition leader before this does.
_UNHURRIED: Mapping[str, Any] = {"topic.metadata.refresh.interval.ms": 10_000}


def _properties(config: Config, required: Mapping[str, Any], preferred: Mapping[str, Any]) -> Masked:
    return Masked({**_SHARED, "client.id": config.name, **preferred, **config.properties, **required})


def _writer_properties(config: Config, preferred: Mapping[str, Any], **required: Any) -> Masked:
    ours = {**required_of_writers(config), **required}
    return _properties(config, ours, {"request.timeout.ms": ours["delivery.timeout.ms"], **preferred})


def reader_properties(config: Config) -> Masked:
    """Return the properties of the consumer that reads the journal."""
    # The embedded broker does not wake a waiting fetch, so `fetch.wait.max.ms` bounds its latency, and on any broker it
    # bounds how soon the end of the log is reported. Against the default of 500 ms it costs 0.1 % of a core.
    preferred = {"fetch.wait.max.ms": 100, "fetch.error.backoff.ms": 50, "fetch.queue.backoff.ms": 50}
    return _properties(config, required_of_readers(config), preferred)


def schedule_reader_properties(config: Config) -> Masked:
    """Return the properties of the consumer that reads the schedule topic."""
    preferred = {
        "fetch.wait.max.ms": 200,  # bounds how late the embedded broker reports a change
        "fetch.error.backoff.ms": 50,
        "fetch.queue.backoff.ms": 10,
        # Of a hundred thousand entries, so many lie in memory at a time while they are read.
        "queued.min.messages": 5_000,
        "queued.max.messages.kbytes": 4_096,
        **_UNHURRIED,
    }
    return _properties(config, required_of_readers(config), preferred)


def history_reader_properties(config: Config, *, wait: int = 200) -> Masked:
    """Return the properties of a consumer that reads the history topic; `wait`: `fetch.wait.max.ms`."""
    preferred = {
        "fetch.wait.max.ms": wait,
        "fetch.queue.backoff.ms": 10,
        "queued.min.messages": 5_000,
        "queued.max.messages.kbytes": 4_096,
        **_UNHURRIED,
    }
    return _properties(config, required_of_readers(config), preferred)


def history_producer_properties(config: Config) -> Masked:
    """Return the properties of the producer that writes to the history topic: many records in a request, and what Kafka
    does not take within two minutes is dropped.
    """
    preferred = {"linger.ms": 100, "request.timeout.ms": 10_000, **_UNHURRIED}
    # A report of each record would cost more than the record; `len` of a writer says how many it still has.
    required = {
        "delivery.timeout.ms": 120_000,
        "queue.buffering.max.messages": 100_000,
        "delivery.report.only.error": True,
    }
    return _writer_properties(config, preferred, **required, **{"allow.auto.create.topics": False})


def producer_properties(config: Config) -> Masked:
    """Return the properties of the producer that appends to the journal."""
    return _writer_properties(config, {"linger.ms": 0, "queue.buffering.max.messages": 1_000})


def schedule_producer_properties(config: Config) -> Masked:
    """Return the properties of the producer that writes to the schedule topic."""
    # Nothing waits for these records: many in a request.
    preferred = {"linger.ms": 50, "queue.buffering.max.messages": 20_000, **_UNHURRIED}
    # A topic that brokers create when a client asks for it is not compacted.
    return _writer_properties(config, preferred, **{"allow.auto.create.topics": False})


def group_properties(config: Config) -> Masked:
    """Return the properties of the consumer that is a member of the group."""
    preferred = {
        "heartbeat.interval.ms": 200,  # how soon a member learns of a rebalance
        # librdkafka refuses one below the session timeout.
        "max.poll.interval.ms": max(300_000, round(config.session_timeout * 1000)),
        "auto.offset.reset": "error",
        "fetch.queue.backoff.ms": 1_000,
    }
    return _properties(config, required_of_members(config), preferred)


def admin_properties(config: Config) -> Masked:
    """Return the properties of the short-lived client that looks after a topic."""
    return _properties(config, {}, {})


def validate(config: Config) -> None:
    """Raise `ConfigurationError`, which names the property, if librdkafka makes no client from `config`. Reads the
    files that the properties name, connects to nothing, takes milliseconds, leaves no thread: safe before a fork.
    """
    silent = logging.Logger("celery_neli.validate")  # noqa: LOG001 - not of logging's tree
    silent.addHandler(logging.NullHandler())
    with making(config.properties):
        for kind, properties in ((Consumer, group_properties(config)), (Producer, producer_properties(config))):
            alone = {name: value for name, value in properties.items() if name != "bootstrap.servers"}
            kind({**alone, "logger": silent}).close()


@contextmanager
def making(properties: Mapping[str, Any]) -> Iterator[None]:
    """Turn what librdkafka refuses while clients are made into a `ConfigurationError` of one line."""
    try:
        yield
    except (KafkaException, TypeError, ValueError) as exception:  # the latter two from confluent-kafka's type checks
        error = exception.args[0] if isinstance(exception, KafkaException) else None
        if error is not None and error.name() not in ("_INVALID_ARG", "_CRIT_SYS_RESOURCE", "_FAIL"):
            raise
        given = str(exception) if error is None else error.str()
        text = refused(given, properties, names=_names, readable=lambda path: os.access(path, os.R_OK))
        raise ConfigurationError(masked(text, secrets_of(properties))) from None


def _names() -> list[str]:
    """Return the properties that librdkafka knows, from the table that it prints of them."""
    library, libc = ctypes.CDLL(confluent_kafka.cimpl.__file__), ctypes.CDLL(None)
    libc.fopen.restype, libc.fopen.argtypes = ctypes.c_void_p, (ctypes.c_char_p, ctypes.c_char_p)
    libc.fclose.argtypes = library.rd_kafka_conf_properties_show.argtypes = (ctypes.c_void_p,)
    with tempfile.NamedTemporaryFile() as table:
        file = libc.fopen(os.fsencode(table.name), b"w")
        library.rd_kafka_conf_properties_show(file)
        libc.fclose(file)
        return re.findall(r"^([a-z][a-z0-9_.]+) +\|", table.read().decode(), re.MULTILINE)
