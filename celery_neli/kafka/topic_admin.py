"""Find a topic of an election, verify it, create it if it is missing, and notice that it is gone.

A member may start before its Kafka does, so it is no error here that Kafka cannot be reached: `TopicAdmin` goes on
asking. What an operator must mend (rights, partitions, the topic's configuration) raises `TopicError`, which says how.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TYPE_CHECKING, Any, Final

from confluent_kafka import KafkaException, Producer, TopicCollection

# Documented as part of this module, though not re-exported in the way that mypy asks for.
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclOperation,
    AdminClient,
    ClusterMetadata,
    ConfigResource,
    NewPartitions,
    NewTopic,
)

from celery_neli.exceptions import TopicError
from celery_neli.kafka.causes import is_denied
from celery_neli.kafka.properties import admin_properties

if TYPE_CHECKING:
    from celery_neli.config import Config
    from celery_neli.kafka.client_log import ClientLog
    from celery_neli.kafka.reader import Reader
    from celery_neli.kafka.topic_spec import TopicSpec
    from celery_neli.kafka.writer import Writer

__all__ = ["TopicAdmin"]

ASK: Final = 0.5  # seconds that one question for metadata may block
REQUEST: Final = 5.0  # seconds for one admin request, which does not block
PAUSE: Final = 0.1  # seconds between two attempts
LOOK_EVERY: Final = 1.0  # seconds between two questions for a topic that seems to be gone

NEEDED: Final = {"Read": AclOperation.READ, "Write": AclOperation.WRITE}
"""The rights on a topic without which a member can do nothing; each of them implies Describe."""

_NOT_ALLOWED = frozenset(
    {
        "TOPIC_AUTHORIZATION_FAILED",
        "CLUSTER_AUTHORIZATION_FAILED",
        "POLICY_VIOLATION",
        "INVALID_CONFIG",
        "TOPIC_EXCEPTION",
        "INVALID_REPLICATION_FACTOR",
    }
)

Steps = Generator["Future[Any] | float", Any, None]


class TopicAdmin:
    """Looks after one topic, step by step. For one thread.

    `poll` and `is_gone` block for half a second at most (while brokers do not answer a question for metadata): call
    `poll` only while no lease depends on the thread.
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
        self.identity: str | None = None
        """Kafka's id of the topic that was found, which no other topic of the same name has; None: it is not known."""
        self._steps: Steps | None = self._run()
        self._future: Future[Any] | None = None
        self._resume_at = float("-inf")

    def poll(self) -> bool:
        """Go on with the search, if there is anything to go on with, and return True if the topic is found and fit.

        Raises:
            TopicError: it is unfit, or may not be created. The next call begins again, and raises the same object for
                as long as it is the same trouble.
        """
        if self._admin is not None:
            self._admin.poll(0)
        while self._steps is not None:
            future = self._future
            if self._clock() < self._resume_at or (future is not None and not future.done()):
                return False
            self._future = None
            try:
                if future is not None and (error := future.exception()) is not None:
                    step = self._steps.throw(error)
                else:
                    step = self._steps.send(None if future is None else future.result())
            except StopIteration:
                self._steps = self._admin = None
                self._denied.clear()  # a right that is still missing will be refused again
            except TopicError as problem:
                self.search()
                raise self._same(problem) from None
            else:
                if isinstance(step, Future):
                    self._future = step
                else:
                    self._resume_at = self._clock() + step
        return True

    def is_gone(self) -> bool | None:
        """Ask if the topic that was found still exists, at most once a second, and return True if it does not: then it
        is searched for. None: there is no answer yet.
        """
        if self._clock() < self._look_at:
            return None
        self._look_at = self._clock() + LOOK_EVERY
        metadata = self._metadata()
        if metadata is None:
            return None
        error = metadata.topics[self._spec.name].error
        gone = error is not None and error.name() == "UNKNOWN_TOPIC_OR_PART"
        if gone:
            self.search()
        return gone

    def identify(self, timeout: float) -> str | None:
        """Return Kafka's id of the topic that exists now, or None if no broker gives it. Blocks for `timeout` seconds
        at most.
        """
        try:
            return str(self._describe(timeout).result(timeout).topic_id)
        except (KafkaException, FutureTimeout):
            return None  # the topic is gone, or brokers are: others find out
        finally:
            self._admin = None

    def deny(self, operation: str) -> None:
        """Note that a broker refused to let this member "Read" or "Write"; `raise_denied` raises it."""
        self._denied.add(operation)
        self._news = TopicError(self._log.denied([operation], self._spec.what, self._spec.name))

    def allow(self, operation: str) -> None:
        """Note that this member could "Read" or "Write", and log it if that ends some trouble."""
        if self._trouble is None:
            return
        self._denied.discard(operation)
        if not self._denied:
            self._trouble = None
            self._log.say(logging.INFO, f"{self._spec.what} usable again topic={self._spec.name}")

    def raise_denied(self) -> None:
        """Raise the `TopicError` of what was denied since the last call, if anything was."""
        if self._news is not None:
            news, self._news = self._news, None
            raise self._same(news)

    def _same(self, problem: TopicError) -> TopicError:
        """Return `problem`, or the error that was raised before if it says the same: it must be logged only once."""
        if self._trouble is None or str(self._trouble) != str(problem):
            self._trouble = problem
        return self._trouble.with_traceback(None)

    def _run(self) -> Steps:
        while True:
            metadata = self._metadata()
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
            yield PAUSE

    def _metadata(self) -> ClusterMetadata | None:
        try:
            return self._client.metadata(ASK)
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
                f"({found.error.str()}): {self._log.lacks(NEEDED, 'topic', self._spec.name)}"
            )
        return 0

    def _create_embedded(self, found: int) -> None:
        """Create the topic on the embedded Kafka, which answers no admin request. In this process it can be called;
        elsewhere a producer that asks for the topic creates it, with four partitions.
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
            asking = self._log.client(Producer, {**admin_properties(self._config), "allow.auto.create.topics": True})
            try:
                asking.list_topics(topic, timeout=ASK)
            except KafkaException as exception:
                self._log.say(logging.DEBUG, f"topic metadata not read: {exception}")

    def _grow(self, found: int) -> Steps:
        """Add the partitions that are missing: roles were appended to the list."""
        topic, wanted = self._spec.name, self._spec.partitions
        asked = self._admin_client().create_partitions([NewPartitions(topic, wanted)], request_timeout=REQUEST)
        yield from self._change(
            asked[topic],
            done=f"enlarged topic={topic} partitions={wanted} before={found}",
            taken="INVALID_PARTITIONS",
            refused=f"has {found} partition(s), but {self._spec.each}, and this member could not add any",
            remedy=f"Have them added: {self._spec.enlarge_command()}",
            right="Alter",
        )

    def _create(self, brokers: int) -> Steps:
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

    def _change(self, asked: Future[Any], *, done: str, taken: str, refused: str, remedy: str, right: str) -> Steps:
        """Wait for an admin request. `taken` is the error that says that another member was faster."""
        what, topic = self._spec.what, self._spec.name
        try:
            yield asked
        except KafkaException as exception:
            error = exception.args[0]
            reason = f"{error.name()} {error.str()}"
            if error.name() in _NOT_ALLOWED:
                allow = f" (or allow it: {self._log.lacks([right], 'topic', topic)})" if is_denied(error.name()) else ""
                raise TopicError(f"The {what} {topic} {refused} ({reason}). {remedy}{allow}") from exception
            if error.name() != taken:
                line = f"{what} not {done.split()[0]} yet topic={topic} reason={reason!r}"
                self._log.say(logging.WARNING, line)
        else:
            self._log.say(logging.INFO, f"{what} {done}")

    def _check_rights(self) -> Steps:
        """Ask which rights there are: a client finds out about a missing one only when it reads or writes, too late."""
        topic = self._spec.name
        try:
            described = yield self._describe(REQUEST)
        except KafkaException as exception:
            self._log.say(logging.DEBUG, f"rights not read topic={topic} reason={exception.args[0].name()}")
            return
        self.identity = str(described.topic_id)
        found = described.authorized_operations or NEEDED.values()
        missing = [name for name, operation in NEEDED.items() if operation not in found]
        if missing:
            raise TopicError(self._log.denied(missing, self._spec.what, topic))

    def _check_configuration(self) -> Steps:
        topic = self._spec.name
        resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
        try:
            entries = yield self._admin_client().describe_configs([resource], request_timeout=REQUEST)[resource]
        except KafkaException as exception:
            # Not allowed, or no answer: the topic exists, and a member need not know more to work.
            error = exception.args[0]
            line = f"{self._spec.what} configuration not read topic={topic} reason={error.name()}"
            more = f": {self._log.lacks(['DescribeConfigs'], 'topic', topic)}" if is_denied(error.name()) else ""
            self._log.say(logging.INFO, line + more)
            return
        for risk in self._spec.judge(self._spec, {name: entry.value for name, entry in entries.items()}):
            self._log.say(logging.WARNING, f"{self._spec.what} at risk topic={topic} {risk}")

    def _describe(self, timeout: float) -> Future[Any]:
        topic = self._spec.name
        described = self._admin_client().describe_topics(
            TopicCollection([topic]), include_authorized_operations=True, request_timeout=timeout
        )
        future: Future[Any] = described[topic]
        return future

    def _admin_client(self) -> AdminClient:
        if self._admin is None:
            self._admin = self._log.client(self._administer, admin_properties(self._config))
        return self._admin
