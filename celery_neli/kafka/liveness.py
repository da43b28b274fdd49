"""Clients that hear nothing any more although brokers answer: noticed, and replaced.

A client that asks for metadata while the last broker is being stopped may be told of no broker at all, drop the one it
knew, and then never go back to its bootstrap servers (librdkafka 2.13 and later; confluentinc/librdkafka issue 5301).
It says nothing, not even that all brokers are down, and only a new client helps. So each client is watched from
outside: by when it last heard of a broker, and by whether a client made for the question does.
"""

from __future__ import annotations

import enum
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from confluent_kafka import Consumer, KafkaException

from celery_neli.kafka.properties import reader_properties
from celery_neli.threads import spawn

if TYPE_CHECKING:
    from celery_neli.config import Config
    from celery_neli.kafka.client_log import KafkaLog

QUIET = 3.0  # seconds without a word until something is done
PATIENCE = 2.0  # seconds that a client has to speak after brokers were found to answer
PATIENCE_MOST = 60.0  # ... at most, if new clients hear nothing either
ASK = 2.0  # seconds for one question
ASK_EVERY = 1.0  # seconds from one question to the next


class Step(enum.Enum):
    """What to do with the client that is watched."""

    WAIT = "wait"
    PLACE = "place"
    """Begin to read anew where it stands; once, before brokers are asked."""
    RENEW = "renew"
    """Make it anew."""


class Answering(Protocol):
    """What `Watch` needs of `Brokers`."""

    def ask(self) -> None:
        """Begin to find out whether brokers answer; returns at once."""

    def told(self) -> bool | None:
        """The answer to the last `ask`, once; None: there is none yet."""


class Watch:
    """Decides about one client from when it last heard something. For one thread; never waits."""

    def __init__(
        self, brokers: Answering, *, placing: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`placing`: the client is a reader, and can be placed anew first. `clock` is for tests."""
        self._brokers, self._placing, self._clock = brokers, placing, clock
        self._placed = self._renewed = float("-inf")
        self._placed_for: float | None = None  # when it had last heard something then
        self._answered: float | None = None  # since when brokers answer, and the client says nothing
        self._patience = PATIENCE
        self._ask_at = float("-inf")
        self.first = True
        """The client was not renewed since it last heard something: so far it is worth a warning."""

    def look(self, heard: float) -> Step:
        """What to do now with a client that last heard something at `heard` (the clock's seconds)."""
        now = self._clock()
        if heard > self._renewed:
            self.first, self._patience = True, PATIENCE
        if now - heard < QUIET:
            self._answered = None
            return Step.WAIT
        if self._placing and self._placed_for != heard:
            self._placed, self._placed_for, self._answered = now, heard, None
            return Step.PLACE
        if now - self._placed < QUIET:
            return Step.WAIT
        answer = self._brokers.told()
        if answer is False:
            self._answered = None
        elif answer and self._answered is None:
            self._answered = now
        elif answer and self._answered is not None and now - self._answered >= self._patience:
            return Step.RENEW
        if now >= self._ask_at:
            self._ask_at = now + ASK_EVERY
            self._brokers.ask()
        return Step.WAIT

    def renewed(self) -> None:
        """The client was made anew: it has its time to speak, and the next one has twice of it."""
        self._renewed = self._placed = self._clock()
        self._answered, self.first = None, False
        self._patience = min(2 * self._patience, PATIENCE_MOST)


class Brokers:
    """Asks for the brokers with a client of its own, on a thread of its own. `ask` and `told` are for one thread."""

    def __init__(
        self, config: Config, klog: KafkaLog, topic: str, *, make: Callable[[dict[str, Any]], Any] = Consumer
    ) -> None:
        """`klog` is used on another thread. `topic`: its partitions must be led, if it is there.
        `make` is for tests.
        """
        self._config, self._klog, self._topic, self._make = config, klog, topic, make
        self._asking = False
        self._answer: bool | None = None

    def ask(self) -> None:
        """Begin to ask, unless that is under way; returns at once."""
        if not self._asking:
            self._asking, self._answer = True, None
            spawn(self._run, name="neli-brokers")

    def told(self) -> bool | None:
        """Whether brokers answered the last `ask`; once, then and until then None."""
        if self._asking:
            return None
        answer, self._answer = self._answer, None
        return answer

    def answer(self) -> bool:
        """Whether a client made for it finds brokers, and the topic's partitions led. Blocks for some two seconds at
        most; any real thread.
        """
        properties = {**reader_properties(self._config), "logger": self._klog, "error_cb": self._klog.remark}
        try:
            client = self._make(properties)
            try:
                metadata = client.list_topics(self._topic, timeout=ASK)
            finally:
                client.close()
        except (KafkaException, RuntimeError) as exception:
            self._klog.say(logging.DEBUG, f"brokers do not answer: {exception}")
            return False
        found = metadata.topics[self._topic]
        return bool(metadata.brokers) and all(each.leader in metadata.brokers for each in found.partitions.values())

    def _run(self) -> None:
        try:
            self._answer = self.answer()
        finally:
            self._asking = False


def hears(client: Any, topic: str, timeout: float) -> bool:
    """Whether `client` is told of a broker within `timeout` seconds when it asks. Blocks for so long."""
    try:
        return bool(client.list_topics(topic, timeout=timeout).brokers)
    except KafkaException:
        return False


def let_go(client: Any) -> None:
    """Close a client that was replaced, on a thread of its own: who hears nothing may wait long. Returns at once."""

    def close() -> None:
        try:
            client.close()
        except (KafkaException, RuntimeError):
            pass  # it could do nothing any more

    spawn(close, name="neli-deaf-client")
