"""Records on their way between a beat and the schedule topic, on both sides the latest value of each key."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException

from celery_neli.kafka.causes import DENIED
from celery_neli.kafka.client_log import ClientLog
from celery_neli.kafka.writer import Writer
from celery_neli.logs import LogLimit
from celery_neli.printable import printable, printable_error
from celery_neli.schedule_topic.codec import ENTRY, STATE, Kind, kind_of, outdated
from celery_neli.schedule_topic.versions import Chain, chain
from celery_neli.threads import original

REFUSED_EVERY: Final = 60.0  # seconds between two lines about one record
REFUSED_LINES: Final = 20  # lines about one kind of record in that time, however many there are
IN_FLIGHT: Final = 10_000  # records that librdkafka has at a time
SLICE: Final = 0.05  # seconds that `flush` spends in librdkafka at a time
_NONE: Any = object()

#: By what they are and whose: the latest value; of definitions several, where others decide which of them count.
Entries = dict[tuple[Kind, str], bytes | Chain | None]


def fold(entries: Entries, entry: tuple[Kind, str], value: bytes | None) -> bool:
    """Put what was read into `entries`, at their end. Return False if a state of a higher epoch stays instead."""
    before = entries.pop(entry, _NONE)
    if before is not _NONE and entry[0] == ENTRY:
        entries[entry] = chain(before, value)
        return True
    if before is not _NONE and entry[0] == STATE and outdated(value, by=before):
        entries[entry] = before
        return False
    entries[entry] = value
    return True


class PendingReads:
    """Records that one thread reads and another takes. `is_own(key, value)` says if this process wrote a record."""

    def __init__(self, is_own: Callable[[bytes, bytes | None], bool], log: logging.Logger) -> None:
        self._is_own, self._log = is_own, log
        self._lock: Any = original("_thread", "allocate_lock")()  # for greenlets and threads alike
        self._entries: Entries = {}
        self.generation = 0  # how often the topic has been read from its beginning again
        self.taken = 0  # the generation of what `take` returned last
        self._limit, self._lines = LogLimit(REFUSED_EVERY), LogLimit(REFUSED_EVERY)

    def add(self, key: bytes | None, value: bytes | None) -> bool:
        """Add a record; return True if there is something new to take. A bad record costs itself alone."""
        try:
            own = key is not None and self._is_own(key, value)
            entry = kind_of(key)
            if entry is not None:
                own &= entry[0] != ENTRY  # of a definition others decide whether it counts
                with self._lock:
                    new = fold(self._entries, entry, value)
                    if new and own:
                        del self._entries[entry]
                return new and not own
            why = "nothing of ours"
        except Exception as exc:  # noqa: BLE001 - unforeseen: the other records are still read
            why = printable_error(exc)
        self.refuse("", f"key={printable(key)}: {why}")
        return False

    def take(self) -> Entries:
        """Return what was added since the last call, but not own states and notes, nor what they replaced."""
        with self._lock:
            entries, self._entries = self._entries, {}
            self.taken = self.generation
        return entries

    def begin_again(self) -> None:
        """Begin a new generation: the topic is read from its beginning again, so what was not taken yet is dropped."""
        with self._lock:
            self._entries = {}
            self.generation += 1

    def refuse(self, kind: str, what: str) -> None:
        """Log that a record is skipped: a line a minute about each, at most twenty about a `kind`, one if it is ""."""
        lines = REFUSED_LINES if kind else 1
        if self._limit.allows((kind, what)) and any(self._lines.allows((kind, line)) for line in range(lines)):
            self._log.warning("schedule record skipped %s", what)


class PendingWrites:
    """Writes that are not acknowledged. Any thread, but no signal handler; nothing blocks but `flush`, and nothing
    raises.
    """

    def __init__(self, log: ClientLog) -> None:
        self._log = log
        self._lock: Any = original("_thread", "allocate_lock")()
        self._writer: Writer | None = None
        self.denied = False  # a record was refused because rights are missing; the follower logs it
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
        """Return True if the key's latest value is acknowledged."""
        return key not in self._unsaved

    def put(self, key: bytes, partition: int, value: bytes | None) -> None:
        """Write it soon. Of several values of a key the last one is sure to arrive."""
        with self._lock:
            self._unsaved[key] = partition, value
            if key not in self._flying:
                self._waiting[key] = None
                self._hand_over()

    def use(self, writer: Writer | None) -> None:
        """Write with it from now on; None: not now."""
        with self._lock:
            self._writer = writer
            self._flying.clear()  # the one before may have taken it along
            self._waiting.update(dict.fromkeys(self._unsaved))
            self._hand_over()

    def serve(self) -> None:
        """Take the writer's reports, and hand over what waits. To be called now and then."""
        writer = self._writer
        if writer is not None:
            writer.poll()
        if self._waiting:
            with self._lock:
                self._hand_over()

    def flush(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds until everything is acknowledged, and return True if it is."""
        deadline = time.monotonic() + timeout
        while self._unsaved:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self.serve()
            writer = self._writer
            if writer is not None:
                writer.flush(min(left, SLICE))
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
            if self._writer is not None:
                # Takes the rest along, and maybe what is written right after: they are found undelivered, and wait.
                self._writer.purge()

    def is_own(self, key: bytes, value: bytes | None) -> bool:
        """Return True, once, if a record that was read is the last one that was written here of this key."""
        if self._own.get(key, _NONE) != value:
            return False
        self._own.pop(key, None)
        return True

    def _hand_over(self) -> None:
        if self._writer is None:
            return
        for key in list(islice(self._waiting, max(0, IN_FLIGHT - len(self._writer)))):
            partition, value = self._unsaved[key]
            try:
                self._writer.send(partition, key, value, partial(self._delivered, key, value))
            except BufferError:
                return
            except KafkaException as exception:
                error = exception.args[0]
                if error.name() != "MSG_SIZE_TOO_LARGE":  # the topic is gone, and will be created again
                    return
                self._log.say(logging.WARNING, f"not saved key={key!r}: {error.str()}")
                del self._unsaved[key]  # it would be refused again
            else:
                self._flying[key] = self._own[key] = value
            del self._waiting[key]

    def _delivered(self, key: bytes, value: bytes | None, error: KafkaError | None) -> None:
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
        if error.name() in DENIED:
            self.denied = True
            return
        purged = error.name() in ("_PURGE_QUEUE", "_PURGE_INFLIGHT")
        level = logging.DEBUG if purged or self._log.reachability.unreachable else logging.WARNING
        self._log.say(level, f"schedule not saved yet reason={error.name()} {error.str()}")
