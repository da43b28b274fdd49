"""Make Kafka clients, and make what librdkafka reports of them fit for a log: few lines, no secrets, no floods.

`ClientLog` is called by librdkafka on the thread that polls the client (measured with confluent-kafka 2.16), which may
be the thread that renews the lease. So the logger underneath must not block. `Reachability` finds out if this process
reaches its Kafka, and why not; its clients share the answer, which is logged once.
"""

from __future__ import annotations

import logging
import os
import re
import time
import weakref
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, Final, TypeVar

from confluent_kafka import KafkaError, KafkaException

from celery_neli.exceptions import NeliError, NotAllowed
from celery_neli.kafka import causes
from celery_neli.kafka.causes import Cause
from celery_neli.kafka.properties import making
from celery_neli.logs import LogLimit
from celery_neli.printable import masked, secrets_of
from celery_neli.threads import original, spawn

REPEAT_AFTER: Final = 10.0  # seconds until the same line may be logged again
UNEXPLAINED: Final = "check bootstrap.servers, this host's DNS, and firewalls on the way"
_NUMBERS = re.compile(r"\d+")
# About single connections: a broker that is down causes some twenty a second. `Reachability` logs once what they mean.
_CONNECTION_FACILITIES = frozenset({"FAIL", "ERROR", "REQTMOUT", "CLOSE", "TIMEOUT"})
# Reported in our own words: by FAIL, by the check of the topic, by the group that is left.
_REPORTED = frozenset({"SSL", "PARTCNT", "SESSTMOUT"})
_CONNECTION_ERRORS = frozenset(
    {"_TRANSPORT", "_RESOLVE", "_TIMED_OUT", "_TIMED_OUT_QUEUE", "_ALL_BROKERS_DOWN", "_DESTROY", "_SSL",
     "_AUTHENTICATION"}
)  # fmt: skip
_WITHOUT_REASON = frozenset({"_ALL_BROKERS_DOWN", "_DESTROY", "_TIMED_OUT_QUEUE"})
_Client = TypeVar("_Client")
Report = Callable[[KafkaError], None]

CONSEQUENCE: Final = "no member leads until it answers"
GUESS: Final = 2.0  # seconds after which a cause that is only a guess is believed
SETTLE: Final = 5.0  # seconds until a lasting cause is logged: the line about an outage of all brokers has it anyway
FORGET: Final = 60.0  # seconds after which a cause that comes again is a new one
LOOK: Final = 5.0  # seconds to wait for a look at a certificate; then the outage is logged without its result
REMIND: Final = 600.0  # seconds until a cause that concerns single brokers is logged again

Look = Callable[[str, Mapping[str, Any]], "Cause | None"]


class ClientLog:
    """Takes librdkafka's `logger` and `error_cb`, and the lines of the code that uses the clients. `log` only enqueues.
    Nothing but `client` raises, nothing but `reason` and `failure` blocks. Memory is bounded.
    """

    def __init__(
        self,
        log: logging.Logger,
        properties: Mapping[str, Any],
        *,
        one_shot: bool = False,
        reachability: Reachability | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`one_shot`: for clients that ask a single question: nothing is logged about connections. `reachability`: by
        default the one of this process.
        """
        self._log, self._properties = log, properties
        self._secrets = secrets_of(properties)
        self._limit = LogLimit(REPEAT_AFTER, clock=clock)
        self._loud = None if one_shot else log
        self.reachability = reachability or (Reachability(properties) if one_shot else of_process(properties))

    def copy(self) -> ClientLog:
        """Return another one that logs to the same place, for another thread."""
        return ClientLog(self._log, self._properties, reachability=self.reachability)

    def client(
        self, make: Callable[[dict[str, Any]], _Client], properties: Mapping[str, Any], on_error: Report | None = None
    ) -> _Client:
        """Make a client that logs here. Raises `ConfigurationError` if librdkafka refuses a property."""
        with making(self._properties):
            return make({**properties, "logger": self, "error_cb": on_error or self.remark})

    def close(self, client: Any, what: str = "kafka client", level: int = logging.WARNING) -> None:
        """Close a client; log it if it fails."""
        try:
            client.close()
        except (KafkaException, RuntimeError) as exception:
            self.say(level, f"{what} close failed: {exception}")

    def log(self, level: int, message: str, *args: Any) -> None:
        """Log one line of librdkafka: what the `logger` of a confluent_kafka client is called with."""
        line = message % args if args else message
        facility = line.split(" ", 1)[0]
        if facility in _CONNECTION_FACILITIES:
            level = logging.DEBUG
            if facility == "FAIL":
                self._note(line)
        elif (facility == "CONFWARN" and "will be ignored by this" in line) or facility in _REPORTED:
            level = logging.DEBUG  # one set of properties serves consumers and producers alike
        self.say(level, line)

    def error(self, error: KafkaError) -> None:
        """Log a client-wide error of the journal's reader, once until `reachable` if it says that no broker answers."""
        self.remark(error)
        if error.name() == "_ALL_BROKERS_DOWN":
            self.reachability.down(self._log)

    def remark(self, error: KafkaError, *, joined: bool = False) -> None:
        """Note from an error why connections fail; log any other. `joined`: it is about a member of the group."""
        name, text = error.name(), error.str()
        if name in _CONNECTION_ERRORS - _WITHOUT_REASON:
            self._note(text)
        quiet = name in _CONNECTION_ERRORS or self._loud is None or (name in causes.OF_NO_READER and not joined)
        self.say(logging.DEBUG if quiet else logging.WARNING, f"kafka error={name} {text}")

    def reachable(self) -> None:
        """Note that something was read from a broker."""
        self.reachability.reached(self._log)

    def reason(self, error: KafkaError) -> str:
        """Return why a question got no answer, and the remedy. Blocks for two seconds to look at a certificate."""
        name, text = error.name(), masked(error.str(), self._secrets)
        if name in _CONNECTION_ERRORS | {"_MSG_TIMED_OUT"} and (cause := self.reachability.explanation()) is not None:
            return str(cause)
        return f"no broker answered in time ({text}): {UNEXPLAINED}" if name in ("_TRANSPORT", "_TIMED_OUT") else text

    def failure(self, error: KafkaError, topic: str) -> NeliError:
        """Return what to raise if `topic` was not read: `NotAllowed` if a right is missing. Blocks as `reason`."""
        where = f"Kafka at {causes.servers_of(self._properties)}"
        if error.name() in causes.DENIED:
            return NotAllowed(f"{where}: {self.lacks(['Read'], 'topic', topic)}")
        return NeliError(f"{where}: {self.reason(error)}")

    def lacks(self, operations: Collection[str], kind: str, name: str) -> str:
        """Return the sentence for missing rights, with the command that gives them (`causes.missing_right`)."""
        return causes.missing_right(self._properties, operations, kind, name)

    def say(self, level: int, line: str) -> None:
        """Log `line`, masked, unless one that differs in numbers only was logged less than ten seconds ago."""
        if not self._log.isEnabledFor(level):
            return
        line = masked(line, self._secrets)
        if self._limit.allows(_NUMBERS.sub("#", line)):
            self._log.log(level, "%s", line)

    def _note(self, text: str) -> None:
        self.reachability.failed(causes.of_connection(masked(text, self._secrets), self._properties), self._loud)


class Reachability:
    """What the clients of one process have found out about one set of brokers. Any thread, and under gevent. Nothing
    raises, and nothing but `explanation` blocks: the lock is held for microseconds.
    """

    def __init__(
        self, properties: Mapping[str, Any], *, clock: Callable[[], float] = time.monotonic, look: Look = causes.examine
    ) -> None:
        """`clock` and `look`, which says why a certificate is refused and may block, are for tests."""
        self._properties, self._clock, self._look = properties, clock, look
        self._servers = causes.servers_of(properties)
        self._lock: Any = original("_thread", "allocate_lock")()
        self.unreachable = False  # no broker answers, as far as the clients have reported
        self.cause: Cause | None = None  # why no broker answers, a lasting cause before others
        self._worked = False  # brokers answered before
        self._looking = float("-inf")  # until when to wait for a look at a certificate
        self._looked: dict[str, float] = {}  # brokers whose certificates were looked at, and when
        self._owed: logging.Logger | None = None  # whose line about the outage waits for the look
        self._logged: set[str] = set()  # keys of the lasting causes that were logged in this outage
        self._kept: dict[str, tuple[float, float]] = {}  # when each cause came first, and last
        self._limit = LogLimit(REMIND, clock=clock)
        self._members: set[int] = set()
        self._level = logging.WARNING

    def joined(self, member: object) -> None:
        """Note that `member` takes part in an election of this process."""
        with self._lock:
            self._members.add(id(member))
            self._level = logging.WARNING

    def left(self, member: object) -> None:
        """Note that `member` has begun to close. After the last one, log at DEBUG: Kafka may end with the process."""
        with self._lock:
            self._members.discard(id(member))
            if not self._members:
                self._level = logging.DEBUG

    def is_hopeless(self, began: float) -> bool:
        """Return True if an answer to what was asked at `began` (monotonic seconds) is not worth waiting for."""
        cause = self.cause
        return cause is not None and cause.lasting and (not cause.guess or time.monotonic() - began > GUESS)

    def explanation(self) -> Cause | None:
        """Return the cause, looked at more closely where that helps. Blocks for two seconds or so then."""
        cause = self.cause
        return (self._look(cause.where, self._properties) if cause and cause.where else None) or cause

    def failed(self, cause: Cause | None, log: logging.Logger | None) -> None:
        """Note that a connection failed. Warn a while later if it concerns some brokers only. No `log`: do not warn."""
        if cause is None:
            return
        if cause.guess and self._worked:
            cause = Cause(causes.AWAY, cause.reason, "")  # the properties are right
        look, line = False, ""
        with self._lock:
            if self.cause is not None and self.cause.key.startswith(f"{cause.key} "):  # what is known says it exactly
                look, cause = self._must_look(cause), self.cause
            elif self.cause is None or cause.lasting or not self.cause.lasting:
                self.cause = cause
            if log is not None and cause.lasting:
                look = look or self._must_look(cause)
                if not look and not self._is_looking():
                    line = self._line(cause)
        if log is not None and look:
            spawn(partial(self._look_at, cause, log), name="neli-certificate")
        self._say(log, line)

    def down(self, log: logging.Logger) -> None:
        """Note that a client found all brokers down, and log a warning to `log` unless that was logged already."""
        with self._lock:
            if self.unreachable:
                return
            self.unreachable = True
            if self._is_looking():
                self._owed = log
                return
            line = self._outage(self.cause)
        self._say(log, line)

    def reached(self, log: logging.Logger) -> None:
        """Note that something was read from a broker, and log it to `log` if none answered before."""
        self._worked = True
        if not self.unreachable and self.cause is None:
            return  # the usual case needs no lock
        with self._lock:
            said = self.unreachable and self._owed is None
            self.unreachable, self.cause, self._owed = False, None, None
            self._logged.clear()
        if said:
            log.info("kafka reachable again servers=%s", self._servers)

    # With the lock

    def _must_look(self, cause: Cause) -> bool:
        now = self._clock()
        if not cause.where or self._is_looking() or now - self._looked.get(cause.where, float("-inf")) < FORGET:
            return False
        self._looking, self._looked[cause.where] = now + LOOK, now
        return True

    def _is_looking(self) -> bool:
        return self._clock() < self._looking

    def _line(self, cause: Cause) -> str:
        """Return what must be logged about a lasting cause, "" if nothing."""
        if self.unreachable:
            self._owed = None
            return "" if cause.key in self._logged else self._outage(cause)
        now = self._clock()
        since, last = self._kept.get(cause.key, (now, now))
        since = now if now - last > FORGET else since
        self._kept[cause.key] = since, now
        if now - since < SETTLE or not self._limit.allows(cause.key):
            return ""
        return f"kafka broker unreachable servers={self._servers} reason={cause.reason!r}: {cause.remedy}"

    def _outage(self, cause: Cause | None) -> str:
        if cause is None:
            return f"kafka unreachable servers={self._servers}: {CONSEQUENCE}"
        if cause.lasting:
            self._logged.add(cause.key)
        remedy = f"{cause.remedy}; " if cause.remedy else ""
        return f"kafka unreachable servers={self._servers} reason={cause.reason!r}: {remedy}{CONSEQUENCE}"

    # On a thread of its own

    def _look_at(self, cause: Cause, log: logging.Logger) -> None:
        try:
            found = self._look(cause.where, self._properties) or cause
        except Exception:  # noqa: BLE001 - whatever Python's TLS raises, the less exact cause is logged
            found = cause
        with self._lock:
            self._looking, owed, self._owed = float("-inf"), self._owed, None
            if self.cause is not None:
                self.cause = found
            line = self._outage(found) if owed is not None else self._line(found)
        self._say(owed or log, line)

    def _say(self, log: logging.Logger | None, line: str) -> None:
        if log is not None and line:
            log.log(self._level, "%s", line)


_known: weakref.WeakValueDictionary[str, Reachability] = weakref.WeakValueDictionary()


def of_process(properties: Mapping[str, Any]) -> Reachability:
    """Return the `Reachability` that all clients of this process with these brokers share."""
    servers = causes.servers_of(properties)
    return _known.get(servers) or _known.setdefault(servers, Reachability(properties))


if hasattr(os, "register_at_fork"):
    # In a child: another thread may have held a lock, and what the parent reached says nothing there.
    os.register_at_fork(after_in_child=_known.clear)
