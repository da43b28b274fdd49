"""What librdkafka has to say, made fit for a log: few lines, no secrets, no floods.

librdkafka calls these objects on the thread that polls the client (measured with confluent-kafka 2.16), which is the
thread that renews the lease. So the logger underneath must not block.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from celery_neli.log_limit import LogLimit

REPEAT_AFTER = 10.0  # seconds until the same line may be said again
_CONSEQUENCE = "nobody leads until it answers"
_NUMBERS = re.compile(r"\d+")
_SECRET = re.compile(r"password|secret|token|jaas|\.key\b|key\.pem|oauthbearer\.config|credential", re.IGNORECASE)
# Lines about single connections: a broker that is down makes some twenty a second. That all are, `error` says once.
_CONNECTION_FACILITIES = frozenset({"FAIL", "ERROR", "REQTMOUT", "CLOSE", "TIMEOUT"})
_CONNECTION_ERRORS = frozenset(
    {"_TRANSPORT", "_RESOLVE", "_TIMED_OUT", "_TIMED_OUT_QUEUE", "_ALL_BROKERS_DOWN", "_DESTROY"}
)


class Error(Protocol):
    """The part of `confluent_kafka.KafkaError` that is used here."""

    def name(self) -> str:
        """The error's constant, e.g. `_TRANSPORT`."""

    def str(self) -> str:
        """The error in words."""


class KafkaLog:
    """Takes librdkafka's `logger` and `error_cb`, and the clients' own remarks.

    `log` is a `logging.Logger` or alike whose calls only enqueue. Never raises, never blocks (if `log` does not).
    Memory is bounded.
    """

    def __init__(
        self, log: logging.Logger, properties: Mapping[str, Any], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._log = log
        self._servers = str(properties.get("bootstrap.servers", properties.get("metadata.broker.list", "")))
        self._secrets = sorted(secrets_of(properties), key=len, reverse=True)
        self._limit = LogLimit(REPEAT_AFTER, clock=clock)
        self._unreachable = False
        self._reason = ""

    @property
    def unreachable(self) -> bool:
        """No broker answers, as far as the clients have told."""
        return self._unreachable

    def log(self, level: int, message: str, *args: Any) -> None:
        """One line of librdkafka: what the `logger` of a confluent_kafka client is called with."""
        line = self.masked(message % args if args else message)
        facility = line.split(" ", 1)[0]
        if facility in _CONNECTION_FACILITIES:
            level = logging.DEBUG
        elif facility == "CONFWARN" and "will be ignored by this" in line:
            level = logging.DEBUG  # one set of properties serves consumers and producers alike
        self.say(level, line)

    def error(self, error: Error) -> None:
        """A client-wide error of the reader; that no broker answers is said once until `reachable`."""
        if error.name() == "_ALL_BROKERS_DOWN":
            if not self._unreachable:
                self._unreachable = True
                because = f" reason={self._reason!r}" if self._reason else ""
                self._log.warning("kafka unreachable servers=%s%s: %s", self._servers, because, _CONSEQUENCE)
        elif error.name() in _CONNECTION_ERRORS:
            self._reason = self.masked(error.str())
        self.remark(error)

    def remark(self, error: Error) -> None:
        """A client-wide error of another client: connections are the reader's matter, the rest is said."""
        level = logging.DEBUG if error.name() in _CONNECTION_ERRORS else logging.WARNING
        self.say(level, self.masked(f"kafka error={error.name()} {error.str()}"))

    def reachable(self) -> None:
        """Something was read from a broker."""
        if self._unreachable:
            self._unreachable = False
            self._log.info("kafka reachable again servers=%s", self._servers)

    def say(self, level: int, line: str) -> None:
        """Log `line` unless one that differs in numbers only was logged less than ten seconds ago."""
        if not self._log.isEnabledFor(level):
            return
        if self._limit.allows(_NUMBERS.sub("#", line)):
            self._log.log(level, "%s", line)

    def masked(self, text: str) -> str:
        """`text` without the values of secret properties."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


def secrets_of(properties: Mapping[str, Any]) -> set[str]:
    """The values that must never be shown: passwords, keys, tokens. Very short ones occur in any text and are left."""
    found: set[str] = set()
    for name, value in properties.items():
        if isinstance(value, str) and _SECRET.search(name):
            # librdkafka quotes sasl.oauthbearer.config from the word on that it does not understand.
            words = value.split() if name == "sasl.oauthbearer.config" else []
            found |= {value, *words, *(word.partition("=")[2] for word in words)}
    return {value for value in found if len(value) > 3}
