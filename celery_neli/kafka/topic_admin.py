"""Find a topic of an election, verify it, create it if it is missing, and notice that it is gone.

While Kafka cannot be reached, `TopicAdmin` goes on asking: a member may start before its Kafka does. What an operator
must mend (rights, partitions, the topic's configuration) raises `TopicError`, which says how.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, Final, TypeVar

from confluent_kafka import KafkaException, TopicCollection

# Documented as part of this module, though not re-exported in the way that mypy asks for.
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclOperation,
    AdminClient,
    ClusterMetadata,
    ConfigResource,
    NewPartitions,
    NewTopic,
)

from celery_neli.config import Config
from celery_neli.exceptions import TopicError
from celery_neli.kafka.causes import DENIED
from celery_neli.kafka.client_log import ClientLog
from celery_neli.kafka.properties import admin_properties
from celery_neli.kafka.reader import Reader
from celery_neli.kafka.topic_spec import TopicSpec
from celery_neli.kafka.writer import Writer

ASK: Final = 0.5  # seconds that one question for metadata may block
REQUEST: Final = 5.0  # seconds for one admin request, which does not block
PAUSE: Final = 0.1  # seconds between two attempts
LOOK_EVERY: Final = 1.0  # seconds between two questions for a topic that seems to be gone

# The rights on a topic without which a member can do nothing; each of them implies Describe.
NEEDED: Final = {"Read": AclOperation.READ, "Write": AclOperation.WRITE}
_NOT_ALLOWED = DENIED | {"POLICY_VIOLATION", "INVALID_CONFIG", "TOPIC_EXCEPTION", "INVALID_REPLICATION_FACTOR"}

_Result = TypeVar("_Result")
Steps = Generator[None, None, _Result]  # yields while it waits


class TopicAdmin:
    """Looks after one topic, step by step. For one thread. `poll` and `is_gone` block for half a second at most, while
    brokers do not answer: call `poll` only while no lease depends on the thread.
    """

    def __init__(
        self,
        config: Config,
        log: ClientLog,
        client: Reader | Writer,
        spec: TopicSpec,
        *,
        clock: Callable[[], float] = time.monotonic,
        administer: Callable[[dict[str, Any]], AdminClient] = AdminClient,
    ) -> None:
        """`client` is asked for metadata. `clock` and `administer` are for tests."""
        self._config, self._log, self._client, self._spec = config, log, client, spec
        self._clock, self._administer = clock, administer
        self._admin: AdminClient | None = None
        self._look_at = float("-inf")
        self._denied: set[str] = set()  # the rights that are missing, as brokers said when they refused
        self._news: TopicError | None = None  # to be raised
        self._trouble: TopicError | None = None  # what was raised last
        self.search()

    @property
    def found(self) -> bool:
        """Return True if the topic was found and is fit, and does not seem to be gone."""
        return self._steps is None

    def search(self) -> None:
        """Look for the topic again. Drops the admin client, but does not wait for what that was asked."""
        self._admin = None
        self.identity: str | None = None  # Kafka's id of the topic that was found, which no other one has
        self._steps: Steps[None] | None = self._run()

    def poll(self) -> bool:
        """Go on with the search, if there is one, and return True if the topic is found and fit. Raises `TopicError` if
        it is unfit, may not be created, or was denied since the last call. The next call begins again, and raises the
        same object for the same trouble.
        """
        if self._news is not None:
            news, self._news = self._news, None
            raise self._same(news)
        if self._admin is not None:
            self._admin.poll(0)
        if self._steps is not None:
            try:
                next(self._steps)
            except StopIteration:
                self._steps = self._admin = None
                self._denied.clear()  # a right that is still missing will be refused again
            except TopicError as problem:
                self.search()
                raise self._same(problem) from None
        return self.found

    def is_gone(self) -> bool | None:
        """Return True if the topic that was found is gone: it is searched for then. None: there is no answer yet."""
        if self._clock() < self._look_at:
            return None
        self._look_at = self._clock() + LOOK_EVERY
        metadata = self._metadata(self._client)
        if metadata is None:
            return None
        error = metadata.topics[self._spec.name].error
        gone = error is not None and error.name() == "UNKNOWN_TOPIC_OR_PART"
        if gone:
            self.search()
        return gone

    def identify(self, timeout: float) -> str | None:
        """Return Kafka's id of the topic that exists now, None if no broker gives it. Blocks for up to `timeout` s."""
        try:
            return str(self._describe(timeout).result(timeout).topic_id)
        except (KafkaException, FutureTimeout):
            return None  # the topic is gone, or brokers are: others find out
        finally:
            self._admin = None

    def deny(self, operation: str) -> None:
        """Note that a broker refused to let this member "Read" or "Write"; the next `poll` raises it."""
        self._denied.add(operation)
        self._news = self._lacking([operation])

    def allow(self, operation: str) -> None:
        """Note that this member could "Read" or "Write", and log it if that ends some trouble."""
        if self._trouble is None:
            return
        self._denied.discard(operation)
        if not self._denied:
            self._trouble = None
            self._log.say(logging.INFO, f"{self._spec.what} usable again topic={self._spec.name}")

    def _same(self, problem: TopicError) -> TopicError:
        """Return `problem`, or the error that was raised before if it says the same: it must be logged only once."""
        if self._trouble is None or str(self._trouble) != str(problem):
            self._trouble = problem
        return self._trouble.with_traceback(None)

    def _run(self) -> Steps[None]:
        while True:
            metadata = self._metadata(self._client)
            if metadata is not None:
                found = self._partitions(metadata)
                administered = metadata.controller_id in metadata.brokers  # the embedded Kafka has no controller
                if found >= self._spec.partitions:
                    if administered:
                        yield from self._check_rights()
                        yield from self._check_configuration()
                    return
                if administered:
                    yield from self._grow(found) if found else self._create(len(metadata.brokers))
                else:
                    self._create_embedded(found)
            resume_at = self._clock() + PAUSE
            while self._clock() < resume_at:
                yield

    def _metadata(self, client: Reader | Writer) -> ClusterMetadata | None:
        try:
            return client.metadata(ASK)
        except KafkaException as exception:
            self._log.say(logging.DEBUG, f"topic metadata not read: {exception}")
            return None

    def _partitions(self, metadata: ClusterMetadata) -> int:
        """Return how many partitions the topic has, 0 if it is missing. Raises `TopicError` if it cannot be seen."""
        found = metadata.topics[self._spec.name]
        if found.error is None:
            return len(found.partitions)
        if found.error.name() in _NOT_ALLOWED:
            raise TopicError(
                f"Kafka does not let this member see the {self._spec.what} {self._spec.name}, if it exists "
                f"({found.error.str()}): {self._log.lacks(self._spec.rights, 'topic', self._spec.name)}"
            )
        return 0

    def _create_embedded(self, found: int) -> None:
        """Create the topic on the embedded Kafka, which answers no admin request: with a call within this process; else
        by a producer that asks for it, with four partitions.
        """
        topic, wanted = self._spec.name, self._spec.partitions
        if found:
            raise TopicError(
                f"The {self._spec.what} {topic} has {found} partition(s), but {self._spec.each}, and the "
                "embedded Kafka adds none: start it with `celery -A <app> neli kafka`, which makes the topics "
                f"of the app, or begin with EmbeddedKafka.create_topic({topic!r}, partitions={wanted})"
            )
        here = sys.modules.get("celery_neli.kafka.mock_cluster")
        if here is None or not here.create_topic(self._spec.servers, topic, wanted):
            properties = {**admin_properties(self._config), "allow.auto.create.topics": True}
            self._metadata(Writer(self._config, self._log, topic, properties))

    def _grow(self, found: int) -> Steps[None]:
        """Add the partitions that are missing: roles were appended to the list."""
        topic, wanted = self._spec.name, self._spec.partitions
        asked = self._admin_client().create_partitions([NewPartitions(topic, wanted)], request_timeout=REQUEST)
        yield from self._change(
            asked[topic],
            done=f"enlarged topic={topic} partitions={wanted} before={found}",
            taken="INVALID_PARTITIONS",
            refused=f"has {found} partition(s), but {self._spec.each}, and this member could not add any",
            remedy=f"Have them added: {self._spec.partitions_command()}",
            right="Alter",
        )

    def _create(self, brokers: int) -> Steps[None]:
        topic, partitions = self._spec.name, self._spec.partitions
        # The brokers' default is often 1, and then one broker's end is everybody's.
        replicas = 3 if brokers >= 3 else None
        new = NewTopic(topic, partitions, replication_factor=replicas or -1, config=self._spec.config(replicas))
        yield from self._change(
            self._admin_client().create_topics([new], request_timeout=REQUEST)[topic],
            done=f"created topic={topic} partitions={partitions} replicas={replicas or 'default'}",
            taken="TOPIC_ALREADY_EXISTS",
            refused="is missing and could not be created",
            remedy=f"Have it created: {self._spec.create_command(replicas=replicas)}",
            right="Create",
        )

    def _change(
        self, asked: Future[Any], *, done: str, taken: str, refused: str, remedy: str, right: str
    ) -> Steps[None]:
        """Wait for an admin request. `taken` is the error that says that another member was faster."""
        what, topic = self._spec.what, self._spec.name
        try:
            yield from _answer(asked)
        except KafkaException as exception:
            error = exception.args[0]
            reason = f"{error.name()} {error.str()}"
            if error.name() in _NOT_ALLOWED:
                allow = f" (or allow it: {self._log.lacks([right], 'topic', topic)})" if error.name() in DENIED else ""
                raise TopicError(f"The {what} {topic} {refused} ({reason}). {remedy}{allow}") from exception
            if error.name() != taken:
                self._log.say(logging.WARNING, f"{what} not {done.split()[0]} yet topic={topic} reason={reason!r}")
        else:
            self._log.say(logging.INFO, f"{what} {done}")

    def _check_rights(self) -> Steps[None]:
        """Ask which rights there are: a client finds out about a missing one only when it reads or writes, too late."""
        topic = self._spec.name
        try:
            described = yield from _answer(self._describe(REQUEST))
        except KafkaException as exception:
            self._log.say(logging.DEBUG, f"rights not read topic={topic} reason={exception.args[0].name()}")
            return
        self.identity = str(described.topic_id)
        found = described.authorized_operations or NEEDED.values()
        missing = [name for name in self._spec.rights if NEEDED[name] not in found]
        if missing:
            raise self._lacking(missing)

    def _lacking(self, operations: list[str]) -> TopicError:
        verbs, what, topic = " and ".join(operations).lower(), self._spec.what, self._spec.name
        lacks = self._log.lacks(operations, "topic", topic)
        return TopicError(f"Kafka does not let this member {verbs} the {what} {topic}: {lacks}")

    def _check_configuration(self) -> Steps[None]:
        topic = self._spec.name
        resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
        try:
            asked = self._admin_client().describe_configs([resource], request_timeout=REQUEST)[resource]
            entries = yield from _answer(asked)
        except KafkaException as exception:
            # Not allowed, or no answer: the topic exists, and a member need not know more to work.
            error = exception.args[0]
            line = f"{self._spec.what} configuration not read topic={topic} reason={error.name()}"
            more = f": {self._log.lacks(['DescribeConfigs'], 'topic', topic)}" if error.name() in DENIED else ""
            self._log.say(logging.INFO, line + more)
            return
        for risk in self._spec.risks({name: entry.value for name, entry in entries.items()}):
            self._log.say(logging.WARNING, f"{self._spec.what} at risk topic={topic} {risk}")

    def _describe(self, timeout: float) -> Future[Any]:
        wanted = TopicCollection([self._spec.name])
        asked: dict[str, Future[Any]] = self._admin_client().describe_topics(
            wanted, include_authorized_operations=True, request_timeout=timeout
        )
        return asked[self._spec.name]

    def _admin_client(self) -> AdminClient:
        if self._admin is None:
            self._admin = self._log.client(self._administer, admin_properties(self._config))
        return self._admin


def _answer(asked: Future[_Result]) -> Steps[_Result]:
    while not asked.done():
        yield
    return asked.result()
