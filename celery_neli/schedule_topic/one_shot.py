"""The schedule topic for one question or one change, from any process: the API of periodic tasks and the command line.

Each call makes its clients, blocks, and ends them. A topic that does not exist is an empty one, and made by a write.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from celery_neli.exceptions import NeliError, NotAllowed, RecordError, TopicError
from celery_neli.kafka.asking import is_hopeless, metadata
from celery_neli.kafka.causes import OF_NO_READER, is_denied
from celery_neli.kafka.client_log import KafkaLog
from celery_neli.kafka.properties import schedule_producer_properties, schedule_reader_properties
from celery_neli.kafka.topic_admin import GONE, TopicCheck
from celery_neli.kafka.topic_spec import schedule_topic
from celery_neli.kafka.validate import making
from celery_neli.schedule_topic.codec import ENTRY, MEMBER, Kind, Note, decode_note, key_of, kind_of, partition_of
from celery_neli.schedule_topic.found import Entries, fold

if TYPE_CHECKING:
    import logging

    from celery_neli.config import Config

BATCH = 1000
SLICE = 0.05


def read_all(config: Config, *, log: logging.Logger, timeout: float = 10.0) -> dict[tuple[Kind, str], bytes]:
    """Every state and definition in the topic, in the order in which they were last written.

    Raises `NeliError` if it was not read to its end within `timeout` seconds.
    """
    return _read(config, partition_of(ENTRY), log, timeout)


def read_notes(config: Config, *, log: logging.Logger, timeout: float = 1.5) -> dict[str, Note]:
    """The members' notes, by name of the member; those that cannot be read are left out. Raises as `read_all`."""
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
    """Write the records, None to delete, and wait until Kafka has acknowledged every one.

    Raises `NeliError` if it did not within `timeout` seconds: some may have been written nevertheless, or will be yet.
    """
    deadline = time.monotonic() + timeout
    with _clients(config, log) as (klog, extra):
        failed: list[KafkaError] = []

        def delivered(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                failed.append(error)

        ours = {
            "linger.ms": 0,
            "delivery.timeout.ms": max(1, round(timeout * 1000)),
            "queue.buffering.max.messages": len(records) + 1,
        }
        with making(config.properties):
            producer = Producer({**schedule_producer_properties(config), **ours, **extra})
        _find_topic(config, klog, producer, deadline)
        for kind, name, value in records:
            producer.produce(
                config.schedule_topic, value, key_of(kind, name), partition=partition_of(kind), on_delivery=delivered
            )
        waiting = producer.flush(max(0.0, deadline - time.monotonic()))
        if failed or waiting:
            # What waits must not be written after its caller was told that it was not.
            producer.purge(in_queue=True, in_flight=True, blocking=False)
            reason = f"no answer from Kafka within {timeout:g} s"
            if failed:
                denied = is_denied(failed[0].name())
                reason = klog.lacks(["Write"], "topic", config.schedule_topic) if denied else klog.reason(failed[0])
            raise NeliError(f"the schedule topic {config.schedule_topic} was not written: {reason}")


@contextmanager
def _clients(config: Config, log: logging.Logger) -> Iterator[tuple[KafkaLog, dict[str, Any]]]:
    """What clients are made with; Kafka's errors become ours."""
    klog = KafkaLog(log, config.properties, one_shot=True)
    try:
        yield klog, {"logger": klog, "error_cb": klog.remark}
    except TopicError as exception:
        raise NeliError(str(exception)) from None
    except KafkaException as exception:
        error = exception.args[0]
        where = f"Kafka at {config.properties['bootstrap.servers']}"
        if is_denied(error.name()):
            raise NotAllowed(f"{where}: {klog.lacks(['Read'], 'topic', config.schedule_topic)}") from None
        raise NeliError(f"{where}: {klog.reason(error)}") from None


def _find_topic(config: Config, klog: KafkaLog, producer: Producer, deadline: float) -> None:
    """Wait for the topic, or make it."""
    began = time.monotonic()
    check = TopicCheck(config, klog, reader=producer, topic=schedule_topic(config))
    while not check.poll():
        producer.poll(0)  # for its log lines and errors, which tell why there is no answer
        if time.monotonic() > deadline or is_hopeless(klog, began):
            cause = klog.reachability.explanation()
            reason = "does not answer" if cause is None else f"does not answer: {cause}"
            raise NeliError(
                f"the schedule topic {config.schedule_topic} was not found and not made in time: "
                f"Kafka at {config.properties['bootstrap.servers']} {reason}"
            )
        time.sleep(SLICE)


def _read(config: Config, partition: int, log: logging.Logger, timeout: float) -> dict[tuple[Kind, str], bytes]:
    deadline = time.monotonic() + timeout
    topic = config.schedule_topic
    with _clients(config, log) as (klog, extra):
        with making(config.properties):
            reader = Consumer({**schedule_reader_properties(config), "fetch.wait.max.ms": 10, **extra})
        try:
            found = metadata(reader, klog, topic, timeout)
            if found.error is not None and found.error.name() not in GONE:
                raise KafkaException(found.error)
            if partition not in found.partitions:
                return {}
            reader.assign([TopicPartition(topic, partition, OFFSET_BEGINNING)])
            values: Entries = {}
            while (left := deadline - time.monotonic()) > 0:
                first = reader.poll(left)
                for message in [] if first is None else [first, *reader.consume(BATCH, 0)]:
                    error = message.error()
                    if error is None:
                        key, value = message.key(), message.value()
                        entry = kind_of(key if isinstance(key, bytes) else None)
                        if entry is not None and not isinstance(value, str):
                            fold(values, entry, value)
                    elif error.name() in OF_NO_READER:
                        continue
                    elif error.name() == "_PARTITION_EOF":
                        return {entry: value for entry, value in values.items() if value is not None}
                    else:
                        raise KafkaException(error)
        finally:
            reader.close()
    raise NeliError(f"the schedule topic {topic} was not read to its end within {timeout:g} s")
