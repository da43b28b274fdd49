"""What is to be written to the schedule topic: the latest value of each key, until Kafka has acknowledged it."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from celery_neli.kafka.causes import is_denied
from celery_neli.threads import original

if TYPE_CHECKING:
    from celery_neli.kafka.client_log import KafkaLog

IN_FLIGHT = 10_000
"""Records that librdkafka has at a time."""
SLICE = 0.05  # seconds that `flush` spends in librdkafka at a time
_NONE: Any = object()


class Writes:
    """Unacknowledged writes. Any thread; nothing blocks but `flush`, and nothing raises.

    Not in a signal handler that may have interrupted a call: there is a lock, held for microseconds, and for real
    threads and greenlets alike.
    """

    def __init__(self, topic: str, klog: KafkaLog) -> None:
        self._topic, self._klog = topic, klog
        self._lock: Any = original("_thread", "allocate_lock")()
        self._producer: Producer | None = None
        self.quiet = False
        """No broker answers, which others say."""
        self.denied = False
        """Whether a record was refused because rights are missing; the follower logs that."""
        # By key:
        self._unsaved: dict[bytes, tuple[int, bytes | None]] = {}  # partition and value, the latest
        self._waiting: OrderedDict[bytes, None] = OrderedDict()  # what librdkafka does not have
        self._flying: dict[bytes, bytes | None] = {}  # the value that it has; one at a time, so order is kept
        self._own: dict[bytes, bytes | None] = {}  # the value that it was given last, until it is read

    @property
    def unsaved(self) -> int:
        """How many keys have a value that is not acknowledged."""
        return len(self._unsaved)

    def saved(self, key: bytes) -> bool:
        """Whether its latest value is acknowledged."""
        return key not in self._unsaved

    def put(self, key: bytes, partition: int, value: bytes | None) -> None:
        """Write it soon. Of several values of a key the last one is sure to arrive."""
        with self._lock:
            self._unsaved[key] = partition, value
            if key not in self._flying:
                self._waiting[key] = None
                self._hand_over()

    def use(self, producer: Producer | None) -> None:
        """Write with it from now on; None: not now."""
        with self._lock:
            self._producer = producer
            self._flying.clear()  # the one before may have taken it along
            self._waiting.update(dict.fromkeys(self._unsaved))
            self._hand_over()

    def serve(self) -> None:
        """Take what librdkafka has to tell, and hand over what waits. To be called now and then."""
        producer = self._producer
        if producer is not None:
            producer.poll(0)
        if self._waiting:
            with self._lock:
                self._hand_over()

    def flush(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds until everything is acknowledged; whether it is."""
        deadline = time.monotonic() + timeout
        while self._unsaved:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self.serve()
            producer = self._producer
            if producer is not None:
                producer.flush(min(left, SLICE))
            time.sleep(0.001)  # greenlets have a turn, and the thread that reads has the lock
        return True

    def forget(self, which: Callable[[bytes], bool]) -> None:
        """Do not write any more what was not acknowledged, of the keys for which `which` is true."""
        with self._lock:
            for key in [key for key in self._unsaved if which(key)]:
                del self._unsaved[key]
                self._waiting.pop(key, None)
                self._flying.pop(key, None)
                self._own.pop(key, None)
            if self._producer is not None:
                # Takes the rest along, and maybe what is written right after: they are found undelivered, and wait.
                self._producer.purge(in_queue=True, in_flight=True, blocking=False)

    def own(self, key: bytes, value: bytes | None) -> bool:
        """Whether a record that was read is the last one that was written here of this key. Says so once."""
        if self._own.get(key, _NONE) != value:
            return False
        self._own.pop(key, None)
        return True

    def _hand_over(self) -> None:
        if self._producer is None:
            return
        for key in list(islice(self._waiting, max(0, IN_FLIGHT - len(self._producer)))):
            partition, value = self._unsaved[key]
            try:
                self._producer.produce(
                    self._topic, value, key, partition=partition, on_delivery=partial(self._delivered, key, value)
                )
            except BufferError:
                return
            except KafkaException as exception:
                error = exception.args[0]
                if error.name() != "MSG_SIZE_TOO_LARGE":  # the topic is gone, and will be made anew
                    return
                self._klog.say(logging.WARNING, f"not saved key={key!r}: {error.str()}")
                del self._unsaved[key]  # it would be refused again
            else:
                self._flying[key] = self._own[key] = value
            del self._waiting[key]

    def _delivered(self, key: bytes, value: bytes | None, error: KafkaError | None, message: Message) -> None:
        with self._lock:
            if self._flying.get(key, _NONE) is not value:
                return  # forgotten
            del self._flying[key]
            if error is None and self._unsaved[key][1] == value:
                del self._unsaved[key]
            else:
                self._waiting[key] = None
            if error is None:
                return
            self._own.pop(key, None)
        if is_denied(error.name()):
            self.denied = True
            return
        purged = error.name() in ("_PURGE_QUEUE", "_PURGE_INFLIGHT")
        level = logging.DEBUG if purged or self.quiet else logging.WARNING
        self._klog.say(level, f"schedule not saved yet reason={error.name()} {error.str()}")
