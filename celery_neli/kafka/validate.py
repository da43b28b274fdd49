"""Check before anything starts that librdkafka accepts the properties."""

from __future__ import annotations

import ctypes
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import confluent_kafka
from confluent_kafka import Consumer, KafkaException, Producer

from celery_neli.exceptions import ConfigurationError
from celery_neli.kafka.causes import refused
from celery_neli.kafka.properties import group_properties, producer_properties
from celery_neli.printable import masked, secrets_of

if TYPE_CHECKING:
    from celery_neli.config import Config

__all__ = ["making", "validate"]


def validate(config: Config) -> None:
    """Raise `ConfigurationError`, which names the property, if librdkafka makes no client from `config`.

    Makes two clients without brokers and ends them: takes milliseconds, reads the files that the properties name, and
    connects to nothing. No thread is left: safe before a fork.
    """
    with making(config.properties):
        for kind, properties in ((Consumer, group_properties(config)), (Producer, producer_properties(config))):
            alone = {name: value for name, value in properties.items() if name != "bootstrap.servers"}
            kind({**alone, "logger": _nothing()}).close()


@contextmanager
def making(properties: Mapping[str, Any]) -> Iterator[None]:
    """Turn what librdkafka refuses while clients are made into a `ConfigurationError` of one line."""
    try:
        yield
    except (KafkaException, TypeError, ValueError) as exception:  # the latter two from confluent-kafka's type checks
        error = exception.args[0] if isinstance(exception, KafkaException) else None
        if error is not None and error.name() not in ("_INVALID_ARG", "_CRIT_SYS_RESOURCE", "_FAIL"):
            raise
        text = refused(
            str(exception) if error is None else error.str(), properties, names=_names, readable=_is_readable
        )
        raise ConfigurationError(masked(text, secrets_of(properties))) from None


def _is_readable(path: str) -> bool:
    return os.access(path, os.R_OK)


def _nothing() -> logging.Logger:
    log = logging.Logger("celery_neli.validate")  # noqa: LOG001 - not of logging's tree
    log.addHandler(logging.NullHandler())
    return log


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
