"""Make Kafka clients, and make what librdkafka reports of them fit for a log: few lines, no secrets, no floods.

librdkafka calls a `ClientLog` on the thread that polls the client (measured with confluent-kafka 2.16), which may be
the thread that renews the lease. So the logger underneath must not block.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, TypeVar

from confluent_kafka import KafkaError, KafkaException

from celery_neli.exceptions import NeliError, NotAllowed
from celery_neli.kafka.causes import OF_NO_READER, is_denied, missing_right, of_connection, servers_of
from celery_neli.kafka.properties import making
from celery_neli.kafka.reachability import Reachability, of_process
from celery_neli.logs import LogLimit
from celery_neli.printable import masked, secrets_of

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
        """`one_shot`: for clients that ask a single question: `reason` says why there is no answer, and nothing is
        logged about connections. `reachability`: by default the one of this process.
        """
        self._log, self._properties = log, properties
        self._secrets = secrets_of(properties)
        self._limit = LogLimit(REPEAT_AFTER, clock=clock)
        self._loud = None if one_shot else log
        self.reachability = reachability or (Reachability(properties) if one_shot else of_process(properties))

    @property
    def unreachable(self) -> bool:
        """Return True if no broker answers, as far as the clients have reported."""
        return self.reachability.unreachable

    def copy(self) -> ClientLog:
        """Return another one that logs to the same place, for another thread."""
        return ClientLog(self._log, self._properties, reachability=self.reachability)

    def client(
        self,
        make: Callable[[dict[str, Any]], _Client],
        properties: Mapping[str, Any],
        on_error: Callable[[Any], None] | None = None,
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
        quiet = name in _CONNECTION_ERRORS or self._loud is None or (name in OF_NO_READER and not joined)
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
        where = f"Kafka at {servers_of(self._properties)}"
        if is_denied(error.name()):
            return NotAllowed(f"{where}: {self.lacks(['Read'], 'topic', topic)}")
        return NeliError(f"{where}: {self.reason(error)}")

    def lacks(self, operations: Collection[str], kind: str, name: str) -> str:
        """Return the sentence for missing rights, with the command that gives them (`causes.missing_right`)."""
        return missing_right(self._properties, operations, kind, name)

    def say(self, level: int, line: str) -> None:
        """Log `line`, masked, unless one that differs in numbers only was logged less than ten seconds ago."""
        if not self._log.isEnabledFor(level):
            return
        line = masked(line, self._secrets)
        if self._limit.allows(_NUMBERS.sub("#", line)):
            self._log.log(level, "%s", line)

    def _note(self, text: str) -> None:
        self.reachability.failed(of_connection(masked(text, self._secrets), self._properties), self._loud)
