"""The schedule topic for one question or one change, from any process: the API of periodic tasks and the command line.

Each call makes its clients, blocks, and ends them. A topic that does not exist is an empty one; a write creates it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import closing
from typing import Final

from confluent_kafka import KafkaException

from celery_neli.config import Config
from celery_neli.exceptions import NeliError, RecordError
from celery_neli.kafka.client_log import ClientLog
from celery_neli.kafka.properties import schedule_producer_properties, schedule_reader_properties
from celery_neli.kafka.reader import BEGINNING, EndOfLog, RawRecord, Reader
from celery_neli.kafka.topic_admin import TopicAdmin
from celery_neli.kafka.topic_spec import schedule_topic
from celery_neli.kafka.writer import Writer
from celery_neli.schedule_topic.codec import ENTRY, MEMBER, Kind, Note, decode_note, key_of, kind_of, partition_of
from celery_neli.schedule_topic.pending import Entries, fold

SLICE: Final = 0.05  # seconds between two steps of the search for the topic


def read_all(config: Config, *, log: logging.Logger, timeout: float = 10.0) -> dict[tuple[Kind, str], bytes]:
    """Return every state and definition, in the order in which they were last written. Raises `NeliError`."""
    return _read(config, partition_of(ENTRY), log, timeout)


def read_notes(config: Config, *, log: logging.Logger, timeout: float = 1.5) -> dict[str, Note]:
    """Return the members' notes, by name of the member; without those that cannot be read. Raises as `read_all`."""
    notes = {}
    for (_, name), value in _read(config, partition_of(MEMBER), log, timeout).items():
        try:
            notes[name] = decode_note(value)
        except RecordError:
            pass  # a newer version's, or a stranger's: nothing rests on a note
    return notes


def write(
    config: Config, records: Sequence[tuple[Kind, str, bytes | None]], *, log: logging.Logger, timeout: float = 10.0
) -> None:
    """Write the records, None to delete, and wait until Kafka has acknowledged every one. Raises `NeliError` if it did
    not in time; some may have been written nevertheless, or will be yet.
    """
    deadline = time.monotonic() + timeout
    client_log = ClientLog(log, config.properties, one_shot=True)
    properties = {
        **schedule_producer_properties(config),
        "linger.ms": 0,
        "delivery.timeout.ms": max(1, round(timeout * 1000)),
        "queue.buffering.max.messages": len(records) + 1,
    }
    with closing(Writer(config, client_log, config.schedule_topic, properties)) as writer:
        _find_topic(config, client_log, writer, deadline)
        encoded = [(partition_of(kind), key_of(kind, name), value) for kind, name, value in records]
        reason = writer.send_all(encoded, deadline - time.monotonic())
    if reason:
        raise NeliError(f"the schedule topic {config.schedule_topic} was not written: {reason}")


def _find_topic(config: Config, log: ClientLog, writer: Writer, deadline: float) -> None:
    """Wait for the topic, or create it. Raises `TopicError` if it is unfit, `NeliError` if time is over."""
    began = time.monotonic()
    topic = TopicAdmin(config, log, writer, schedule_topic(config))
    while not topic.poll():
        writer.poll()  # takes its log lines and errors, which say why there is no answer
        if time.monotonic() > deadline or log.reachability.is_hopeless(began):
            cause = log.reachability.explanation()
            raise NeliError(
                f"the schedule topic {config.schedule_topic} was not found and not created in time: Kafka at "
                f"{config.properties['bootstrap.servers']} does not answer{'' if cause is None else f': {cause}'}"
            )
        time.sleep(SLICE)


def _read(config: Config, partition: int, log: logging.Logger, timeout: float) -> dict[tuple[Kind, str], bytes]:
    deadline = time.monotonic() + timeout
    topic = config.schedule_topic
    client_log = ClientLog(log, config.properties, one_shot=True)
    properties = {**schedule_reader_properties(config), "fetch.wait.max.ms": 10}
    with closing(Reader(config, client_log, topic, properties)) as reader:
        try:
            if partition >= reader.partitions(timeout):
                return {}
            reader.place(partition, BEGINNING)
            values: Entries = {}
            while (left := deadline - time.monotonic()) > 0:
                for event in reader.read(left):
                    if isinstance(event, EndOfLog):
                        return {entry: value for entry, value in values.items() if value is not None}
                    if isinstance(event, RawRecord) and (entry := kind_of(event.key)) is not None:
                        fold(values, entry, event.value)
        except KafkaException as exception:
            raise client_log.failure(exception.args[0], topic) from None
    raise NeliError(f"the schedule topic {topic} was not read to its end within {timeout:g} s")
