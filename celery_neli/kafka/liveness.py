"""Notice that a Kafka client has lost all its brokers, although brokers answer: only a new client helps.

A client that asks for metadata while the last broker is being stopped may be given an empty list of brokers. It then
drops the one that it knew, never goes back to its bootstrap servers and reports nothing (librdkafka 2.13 and later,
issue 5301). So each client is watched: when did it last hear from a broker, and does a new client hear from one?
"""

from __future__ import annotations

import enum
import logging
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any, Final

from confluent_kafka import Consumer, KafkaException

from celery_neli.config import Config
from celery_neli.exceptions import NeliError
from celery_neli.kafka.client_log import ClientLog
from celery_neli.kafka.properties import reader_properties
from celery_neli.threads import spawn

QUIET: Final = 3.0  # seconds without a word from a broker until something is done
PATIENCE: Final = 2.0  # seconds that a client has to hear something after brokers were found to answer
PATIENCE_MOST: Final = 60.0  # the same in seconds, at most, if new clients hear nothing either
ASK: Final = 2.0  # seconds that one question for brokers may take
ASK_EVERY: Final = 1.0  # seconds from one question to the next


class Step(enum.Enum):
    """What to do with the client that is watched: nothing, read again from where it stands, or replace it."""

    WAIT = "wait"
    REREAD = "reread"
    REPLACE = "replace"


class Watch:
    """Decides what to do with one client from when it last heard something. For one thread; never waits."""

    def __init__(self, brokers: Brokers, *, rereads: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        """`rereads`: the client is a reader; to read again from where it stands comes first. `clock` is for tests."""
        self._brokers, self._rereads, self._clock = brokers, rereads, clock
        self._moved = self._replaced = float("-inf")
        self._moved_for: float | None = None  # when the client had last heard something then
        self._answered = float("inf")  # since when brokers answer and the client hears nothing
        self._patience = PATIENCE
        self._ask_at = float("-inf")
        self.first = True  # it was not replaced since it last heard something: so far it is worth a warning

    def look(self, heard: float) -> Step:
        """Return what to do now with a client that last heard something at `heard` (the clock's seconds)."""
        now = self._clock()
        if heard > self._replaced:
            self.first, self._patience = True, PATIENCE
        if now - heard < QUIET:
            self._answered = float("inf")
            return Step.WAIT
        if self._rereads and self._moved_for != heard:
            self._moved, self._moved_for, self._answered = now, heard, float("inf")
            return Step.REREAD
        if now - self._moved < QUIET:
            return Step.WAIT
        answer = self._brokers.answer()
        if answer is not None:
            self._answered = min(now, self._answered) if answer else float("inf")
            if now - self._answered >= self._patience:
                return Step.REPLACE
        if now >= self._ask_at:
            self._ask_at = now + ASK_EVERY
            self._brokers.ask()
        return Step.WAIT

    def replaced(self) -> None:
        """Note that the client was replaced. The new one has its time to hear something, the next one twice that."""
        self._replaced = self._moved = self._clock()
        self._answered, self.first = float("inf"), False
        self._patience = min(2 * self._patience, PATIENCE_MOST)

    def let_go(self, client: Any, log: ClientLog, what: str) -> None:
        """Close the client that was replaced, on another thread, for it may wait long. Warn of it the first time."""
        log.say(logging.WARNING if self.first else logging.DEBUG, f"kafka client deaf: {what}: replaced")
        self.replaced()
        spawn(partial(log.copy().close, client, "lost kafka client", logging.DEBUG), name="neli-lost-client")


class Probe:
    """Asks a client to which nothing need come, such as a producer, if it finds brokers. For one thread."""

    def __init__(self, config: Config, log: ClientLog, topic: str) -> None:
        self.watch = Watch(Brokers(config, log, topic))
        self.heard = time.monotonic()  # when the client was last known to reach a broker
        self._topic, self._wait, self._ask_at = topic, min(0.5, config.heartbeat_timeout / 8), 0.0

    def is_lost(self, client: Any) -> bool:
        """Return True if the client finds no broker although brokers answer. May wait for half a second, every two."""
        if time.monotonic() < self._ask_at:
            return False
        self._ask_at = time.monotonic() + 4 * self._wait
        try:
            if client.list_topics(self._topic, timeout=self._wait).brokers:
                self.heard = time.monotonic()
                return False
        except KafkaException:
            pass  # it has no broker to ask
        return self.watch.look(self.heard) is Step.REPLACE


class Brokers:
    """Asks for the brokers with a client of its own, on a thread of its own. `ask` and `answer` are for one thread."""

    def __init__(
        self, config: Config, log: ClientLog, topic: str, *, make: Callable[[dict[str, Any]], Any] = Consumer
    ) -> None:
        """`topic`: if it exists, all its partitions must have leaders. `make` is for tests."""
        self._config, self._log, self._topic, self._make = config, log.copy(), topic, make
        self._asking = False
        self._answer: bool | None = None

    def ask(self) -> None:
        """Begin to ask, unless that is under way; returns at once."""
        if not self._asking:
            self._asking, self._answer = True, None
            spawn(self._run, name="neli-brokers")

    def answer(self) -> bool | None:
        """Return True if brokers answered the last `ask`; None until there is an answer, and after it was returned."""
        if self._asking:
            return None
        answer, self._answer = self._answer, None
        return answer

    def find(self) -> bool:
        """Return True if a new client finds brokers, and leaders of the topic. Blocks for two seconds at most."""
        try:
            with closing(self._log.client(self._make, reader_properties(self._config))) as client:
                metadata = client.list_topics(self._topic, timeout=ASK)
        except (KafkaException, NeliError, RuntimeError) as exception:
            self._log.say(logging.DEBUG, f"brokers do not answer: {exception}")
            return False
        found = metadata.topics[self._topic]
        return bool(metadata.brokers) and all(each.leader in metadata.brokers for each in found.partitions.values())

    def _run(self) -> None:
        try:
            self._answer = self.find()
        finally:
            self._asking = False
