"""Read the leader topic into the timelines of its roles: once, or live."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import closing, suppress
from typing import Final

from confluent_kafka import KafkaError, KafkaException

from celery_neli.config import Config
from celery_neli.exceptions import NeliError
from celery_neli.kafka.causes import DENIED
from celery_neli.kafka.client_log import ClientLog
from celery_neli.kafka.properties import reader_properties
from celery_neli.kafka.reader import Event, OutOfRange, RawRecord, Reader
from celery_neli.timeline.terms import Observe, RoleTimeline, Term

ENOUGH: Final = 400  # records within which the search for a time ends, and that are read before it to know the state

# Seconds:
ASK: Final = 1.5  # for one question
LOOK_AGAIN: Final = 2.0  # between two looks for a topic, or a partition, that does not exist yet
LOOK_LEAST: Final = 0.2  # that such a look may take; the client goes on to connect in the background
SILENT: Final = 5.0  # without a word of Kafka, after which brokers are asked if they answer


class TimelineFollower:
    """Follows the leader topic of `config`, from the oldest record or from `since` (Unix seconds) on. For one thread,
    which may be any; not in a forked child.
    """

    def __init__(
        self,
        config: Config,
        *,
        log: logging.Logger,
        since: float | None = None,
        roles: Collection[str] | None = None,
        observe: Mapping[str, Observe] | None = None,
    ) -> None:
        """Does not block; Kafka need not be there. `roles`: only these; `observe`: what is called with the records of a
        role.
        """
        self._config, self._since, self._observe = config, since, observe or {}
        self._wanted = [index for index, role in enumerate(config.roles) if roles is None or role in roles]
        self._log = ClientLog(log, config.properties, one_shot=True)
        self._reader = self._make(self._note)
        self._partitions: dict[int, RoleTimeline] = {}
        self._placed: set[int] = set()  # those that are read; one that was lost is looked for again
        self.problem = ""  # why nothing is read at present, "" if all is well
        self._looked = False  # brokers said which partitions the topic has
        self._look_at = float("-inf")
        self._heard = time.monotonic()
        self._ended: set[int] = set()  # partitions that were read to their end
        self._ahead = 0.0  # seconds that the clock of records is ahead of this machine's, by the newest live record

    @property
    def timelines(self) -> dict[str, RoleTimeline]:
        """The timeline of each role that the topic has."""
        return {each.role: each for each in self._partitions.values()}

    @property
    def caught_up(self) -> bool:
        """Return True if all roles that the topic has were read to the end of the log."""
        return self._looked and len(self._ended) == len(self._partitions)

    @property
    def now(self) -> float:
        """Return the present time by the clock that sets the records' times, as far as that is known."""
        return time.time() + self._ahead

    def terms(self) -> dict[str, list[Term]]:
        """Return the terms of each role that the topic has, oldest first."""
        return {each.role: each.terms(self.now) for each in self._partitions.values()}

    def poll(self, timeout: float) -> bool:
        """Read for `timeout` seconds at most, longer only to find the topic. Return True if a term began or ended, or
        the end of the log was reached. Raises nothing but `ConfigurationError`: `problem` says why nothing is read.
        """
        before = self._changes, self.caught_up
        if time.monotonic() >= self._look_at and len(self._placed) < len(self._wanted):
            self._look(max(LOOK_LEAST, min(timeout, ASK)))
        self._reader.heal()
        for event in self._reader.read(timeout):
            self._take(event)
        if self._reader.missing or self._reader.denied:
            self._lose()
        elif self._placed and not self.problem and time.monotonic() - self._heard > SILENT:
            self._ask()
        return (self._changes, self.caught_up) != before

    def read_to_end(self, timeout: float) -> None:
        """Read all that the topic holds; one that does not exist is empty. Raises `NeliError` if that takes more than
        `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while not self.caught_up:
            left = deadline - time.monotonic()
            if left <= 0:
                why = self.problem or f"it was not read to its end within {timeout:g} s"
                raise NeliError(f"the leader topic {self._config.topic} cannot be read: {why}")
            self.poll(min(left, 0.25))

    def close(self) -> None:
        """End; takes milliseconds."""
        self._reader.close()

    @property
    def _changes(self) -> int:
        return sum(each.changes for each in self._partitions.values())

    def _make(self, report: Callable[[KafkaError], None] | None = None) -> Reader:
        return Reader(self._config, self._log, self._config.topic, reader_properties(self._config), report=report)

    def _note(self, error: KafkaError) -> None:
        self.problem = self._log.reason(error) if error.name() == "_ALL_BROKERS_DOWN" else self.problem

    def _ask(self) -> None:
        """Ask if brokers answer, because silence says nothing where nothing is written.

        Once they answer, `heal` reads again, and the end of the log is found again.
        """
        self._heard = time.monotonic()
        try:
            self._reader.metadata(LOOK_LEAST)
        except KafkaException as exc:
            self.problem = self._log.reason(exc.args[0])

    def _look(self, timeout: float) -> None:
        """Place the partitions of the topic that are not read yet."""
        self._look_at = time.monotonic() + LOOK_AGAIN
        try:
            count = self._reader.partitions(timeout)
            self._heard = time.monotonic()
            for index in [each for each in self._wanted if each < count and each not in self._placed]:
                self._reader.place(index, self._begin(index))
                self._placed.add(index)
            self._log.reachable()
            gone = count == 0 and self._partitions
            self.problem, self._looked = f"there is no topic {self._config.topic} any more" if gone else "", True
        except KafkaException as exc:
            error = exc.args[0]
            denied = error.name() in DENIED
            lacks = self._log.lacks(["Read"], "topic", self._config.topic) if denied else ""
            self.problem = lacks or self._log.reason(error)
            self._look_at = time.monotonic() + LOOK_LEAST

    def _begin(self, index: int) -> int:
        """Begin the timeline of a partition, or let it go on if the partition was lost; return where to read from."""
        low, high = self._reader.bounds(index, ASK)
        if (timeline := self._partitions.get(index)) is not None:
            timeline.restart(low, oldest=True)
            return low
        start = low if self._since is None else self._search(index, low, high, self._since)
        role = self._config.roles[index]
        self._partitions[index] = RoleTimeline(
            self._config, role, start, oldest=start == low, observe=self._observe.get(role)
        )
        return start

    def _lose(self) -> None:
        """Look for the topic again: it is gone, or may not be read any more."""
        topic, denied = self._config.topic, self._reader.denied
        self.problem = self._log.lacks(["Read"], "topic", topic) if denied else f"there is no topic {topic} any more"
        self._reader.missing, self._reader.denied = "", False
        self._reader.drop()
        self._placed.clear()
        self._ended.clear()
        self._look_at = time.monotonic() + LOOK_LEAST

    def _take(self, event: Event) -> None:
        self._heard, self.problem = time.monotonic(), ""
        self._log.reachable()
        timeline = self._partitions[event.partition]
        if isinstance(event, RawRecord):
            timeline.read(event.offset, event.value, event.time)
            if event.partition in self._ended:
                self._ahead = event.time - time.time()
        elif isinstance(event, OutOfRange):
            self._ended.discard(event.partition)
            try:
                low, _ = self._reader.bounds(event.partition, ASK)
            except KafkaException as exc:
                self.problem = self._log.reason(exc.args[0])
                return
            timeline.restart(low, oldest=True)
            self._reader.place(event.partition, low)
        elif event.partition not in self._ended:
            self._ended.add(event.partition)
            if (claim := timeline.unbegun) is not None:
                self._learn(event.partition, timeline, claim)

    def _learn(self, index: int, timeline: RoleTimeline, claim: int) -> None:
        """Find out when the first term began, if its claim lies before what was read, and is still in the log."""
        with closing(self._make()) as reader, suppress(KafkaException):
            if claim >= reader.bounds(index, ASK)[0] and (at := _time_at(reader, index, claim)) is not None:
                timeline.learn(claim, at)

    def _search(self, index: int, low: int, high: int, moment: float) -> int:
        """Return an offset from which on the state at this moment can be known: some records before it."""
        oldest = low
        with closing(self._make()) as reader:
            while high - low > ENOUGH:
                middle = (low + high) // 2
                at = _time_at(reader, index, middle)
                low, high = (middle, high) if at is not None and at < moment else (low, middle)
        return max(oldest, low - ENOUGH)


def _time_at(reader: Reader, index: int, offset: int) -> float | None:
    """Return the time of the record at this offset, None if it does not come soon. Raises `KafkaException`."""
    reader.drop()
    reader.place(index, offset)
    deadline = time.monotonic() + ASK
    while time.monotonic() < deadline:
        for event in reader.read(0.1):
            if isinstance(event, RawRecord):
                if event.offset >= offset:
                    return event.time
            else:
                return None
    return None


def read_timelines(
    config: Config,
    *,
    log: logging.Logger,
    since: float | None = None,
    timeout: float = 10.0,
    roles: Collection[str] | None = None,
    observe: Mapping[str, Observe] | None = None,
) -> dict[str, RoleTimeline]:
    """Return the timeline of each role that the leader topic has; blocks for `timeout` seconds at most. 100,000 records
    take two seconds or so; `since` (Unix seconds) leaves out what was long before, and `roles` all others. Raises
    `NeliError`.
    """
    with closing(TimelineFollower(config, log=log, since=since, roles=roles, observe=observe)) as follower:
        follower.read_to_end(timeout)
        return follower.timelines


def read_terms(
    config: Config, *, log: logging.Logger, since: float | None = None, timeout: float = 10.0
) -> dict[str, list[Term]]:
    """Return the terms of each role, oldest first; see `read_timelines`."""
    return {role: each.terms() for role, each in read_timelines(config, log=log, since=since, timeout=timeout).items()}
