"""The leader topic, looked for and made through clients that answer what the test says."""

from __future__ import annotations

import logging
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AclOperation

from celery_neli.config import Config
from celery_neli.embedded import EmbeddedKafka
from celery_neli.exceptions import TopicError
from celery_neli.kafka.client_log import ClientLog
from celery_neli.kafka.journal import KafkaJournal
from celery_neli.kafka.topic_admin import TopicAdmin
from celery_neli.kafka.topic_spec import leader_topic, schedule_topic
from tests.processes import wait_until

LOG = logging.getLogger("celery_neli.kafka")


def done(error: int | None = None, value: Any = None) -> Future[Any]:
    future: Future[Any] = Future()
    if error is None:
        future.set_result(value)
    else:
        future.set_exception(KafkaException(KafkaError(error)))
    return future


class Cluster:
    """A topic of so many partitions on a cluster with a controller; reader and admin client in one."""

    def __init__(self, partitions: int, refuses: int | None = None) -> None:
        self.partitions, self.refuses = partitions, refuses
        self.asked: list[str] = []
        self.configured: dict[str, str] = {}
        self.properties: dict[str, Any] = {}
        #: What the member may do, None where brokers do not tell.
        self.allowed: set[AclOperation] | None = None

    def __call__(self, properties: dict[str, Any]) -> Cluster:
        self.properties = properties
        return self

    def poll(self, timeout: float) -> None: ...

    def metadata(self, timeout: float) -> Any:
        error = None if self.partitions else KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)
        found = SimpleNamespace(error=error, partitions=dict.fromkeys(range(self.partitions)))
        topics = {"t": found, "t.schedule": found}
        return SimpleNamespace(topics=topics, controller_id=1, brokers={1: None})

    def create_topics(self, new: list[Any], request_timeout: float) -> dict[str, Future[None]]:
        self.configured = dict(new[0].config)
        return self._make("create", new[0].topic, new[0].num_partitions)

    def create_partitions(self, new: list[Any], request_timeout: float) -> dict[str, Future[None]]:
        return self._make("grow", new[0].topic, new[0].new_total_count)

    def _make(self, what: str, topic: str, partitions: int) -> dict[str, Future[None]]:
        self.asked.append(what)
        refused, self.refuses = self.refuses, None
        if refused is None:
            self.partitions = partitions
        return {topic: done(refused)}

    def describe_topics(self, wanted: Any, **_: Any) -> dict[str, Future[Any]]:
        found = SimpleNamespace(authorized_operations=self.allowed, topic_id="id")
        return {topic: done(value=found) for topic in wanted.topic_names}

    def describe_configs(self, resources: list[Any], request_timeout: float) -> dict[Any, Future[Any]]:
        entries = {name: SimpleNamespace(value=value) for name, value in self.configured.items()}
        return {resources[0]: done(value=entries)}


def check(cluster: Cluster, *roles: str, schedule: bool = False) -> bool:
    """Whether the topic is found fit within 20 polls, a second apart."""
    config, now = Config(group="g", topic="t", kafka="k:1", roles=roles), iter(range(1000))
    spec = schedule_topic(config) if schedule else leader_topic(config)
    log = ClientLog(LOG, config.properties, clock=lambda: float(next(now)))
    made = TopicAdmin(
        config, log, cluster, spec, clock=lambda: float(next(now)), administer=cluster,  # type: ignore[arg-type]
    )  # fmt: skip
    return any(made.poll() for _ in range(20))


def test_partitions_are_added_for_roles_that_were_appended(caplog: pytest.LogCaptureFixture) -> None:
    """One line tells it, with both numbers."""
    caplog.set_level(logging.INFO)
    cluster = Cluster(2)
    assert check(cluster, "a", "b", "c")
    assert (cluster.asked, cluster.partitions) == (["grow"], 3)
    assert [record.getMessage() for record in caplog.records] == ["leader topic enlarged topic=t partitions=3 before=2"]


@pytest.mark.parametrize("partitions", [3, 8])
def test_as_many_partitions_as_roles_or_more_are_left_alone(partitions: int) -> None:
    """Roles may have been taken from the list's end."""
    cluster = Cluster(partitions)
    assert check(cluster, "a", "b", "c")
    assert (cluster.asked, cluster.partitions) == ([], partitions)


def test_another_member_may_add_them_first(caplog: pytest.LogCaptureFixture) -> None:
    """Then there is nothing to tell."""
    cluster = Cluster(2, refuses=KafkaError.INVALID_PARTITIONS)
    assert check(cluster, "a", "b", "c")
    assert caplog.records == []


def test_what_may_pass_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    """Partitions cannot be added while some are being moved."""
    cluster = Cluster(2, refuses=KafkaError.REASSIGNMENT_IN_PROGRESS)
    assert check(cluster, "a", "b", "c")
    assert cluster.asked == ["grow", "grow"]
    assert "leader topic not enlarged yet" in caplog.text


@pytest.mark.parametrize("error", [KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.POLICY_VIOLATION])
def test_who_may_not_add_partitions_says_who_can(error: int) -> None:
    """With both numbers and the command."""
    with pytest.raises(TopicError, match=r"2 partition.* 3 roles.*could not add.*(FAILED|VIOLATION)") as raised:
        check(Cluster(2, refuses=error), "a", "b", "c")
    assert "kafka-topics.sh --bootstrap-server k:1 --alter --topic t --partitions 3" in str(raised.value)


def test_who_may_not_create_the_topic_says_who_can() -> None:
    """With the command that makes it as a member would."""
    with pytest.raises(TopicError, match=r"is missing.*kafka-topics\.sh.*--create --topic t --partitions 2"):
        check(Cluster(0, refuses=KafkaError.TOPIC_AUTHORIZATION_FAILED), "a", "b")


@pytest.mark.parametrize("schedule", [False, True], ids=["leader topic", "schedule topic"])
@pytest.mark.parametrize(
    ("allowed", "missing"),
    [
        ({AclOperation.DESCRIBE}, "Read and Write"),
        ({AclOperation.DESCRIBE, AclOperation.READ}, "Write"),
        ({AclOperation.DESCRIBE, AclOperation.WRITE}, "Read"),
    ],
)
def test_a_missing_right_is_found_before_it_is_needed(
    allowed: set[AclOperation], missing: str, *, schedule: bool
) -> None:
    """With the command that gives it."""
    cluster = Cluster(2)
    cluster.allowed = allowed
    topic, flags = "t.schedule" if schedule else "t", " ".join(f"--operation {each}" for each in missing.split(" and "))
    with pytest.raises(TopicError, match=rf"lacks the right {missing} on the topic {topic}: kafka-acls\.sh") as raised:
        check(cluster, "a", schedule=schedule)
    assert str(raised.value).endswith(f"--add --allow-principal User:<user> {flags} --topic {topic}")


def test_all_rights_are_enough() -> None:
    """Whatever else there is."""
    cluster = Cluster(1)
    cluster.allowed = {AclOperation.READ, AclOperation.WRITE, AclOperation.DESCRIBE}
    assert check(cluster, "a")


def test_a_missing_schedule_topic_is_made_to_be_compacted(caplog: pytest.LogCaptureFixture) -> None:
    """17 partitions, whatever the number of roles; what a member makes it does not complain of."""
    cluster = Cluster(0)
    assert check(cluster, "a", schedule=True)
    assert (cluster.partitions, cluster.configured["cleanup.policy"]) == (17, "compact")
    assert "at risk" not in caplog.text


def test_a_schedule_topic_of_one_partition_is_enlarged() -> None:
    """Notes have one of their own."""
    cluster = Cluster(1)
    cluster.configured = {"cleanup.policy": "compact"}
    assert check(cluster, "a", schedule=True)
    assert (cluster.asked, cluster.partitions) == (["grow"], 17)


@pytest.mark.parametrize("policy", ["delete", "compact,delete"])
def test_a_schedule_topic_that_forgets_is_refused(policy: str) -> None:
    """With the command that mends it."""
    cluster = Cluster(4)
    cluster.configured = {"cleanup.policy": policy}
    with pytest.raises(TopicError, match=rf"t\.schedule has cleanup\.policy={policy}, which deletes") as raised:
        check(cluster, "a", schedule=True)
    assert "kafka-configs.sh --bootstrap-server k:1 --alter" in str(raised.value)
    assert "--entity-name t.schedule --add-config cleanup.policy=compact,segment.bytes=" in str(raised.value)


def test_a_schedule_topic_that_is_read_for_long_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """The brokers' default for a segment is a gigabyte."""
    cluster = Cluster(2)
    cluster.configured = {"cleanup.policy": "compact", "segment.bytes": str(1 << 30)}
    assert check(cluster, "a", schedule=True)
    assert "schedule topic at risk topic=t.schedule segment.bytes=1073741824 is large" in caplog.text


@pytest.mark.parametrize("policy", ["compact", "compact,delete"])
def test_a_leader_topic_that_is_compacted_is_refused(policy: str) -> None:
    """With the command that mends it."""
    cluster = Cluster(1)
    cluster.configured = {"cleanup.policy": policy}
    with pytest.raises(TopicError, match=r"proof of who leads.*--add-config cleanup\.policy=delete$"):
        check(cluster, "a")


def test_who_may_not_create_the_schedule_topic_says_who_can() -> None:
    """With its own command."""
    with pytest.raises(TopicError, match=r"--create --topic t\.schedule --partitions 17 .*cleanup\.policy=compact"):
        check(Cluster(0, refuses=KafkaError.TOPIC_AUTHORIZATION_FAILED), "a", schedule=True)


def test_on_the_embedded_kafka_of_this_process_any_number_of_roles_has_its_partitions() -> None:
    """It answers no request to create a topic, and makes those that are asked for with four partitions."""
    roles = tuple("abcdef")
    with EmbeddedKafka() as kafka:
        journal = KafkaJournal(Config(group="g", kafka=kafka.bootstrap_servers, roles=roles), log=LOG)
        try:
            ended: set[int] = set()
            wait_until(
                lambda: ended.update(event.role for event in journal.read(0.05)) or len(ended) == 6,
                timeout=20, what="six roles",
            )  # fmt: skip
        finally:
            journal.close()


def test_on_an_embedded_kafka_too_few_partitions_are_an_error() -> None:
    """No client can add any; the error says what can be done."""
    with EmbeddedKafka() as kafka:
        kafka.create_topic("t", partitions=4)
        config = Config(group="g", topic="t", kafka=kafka.bootstrap_servers, roles=tuple("abcdef"))
        journal = KafkaJournal(config, log=LOG)
        try:
            with pytest.raises(TopicError, match=r"4 partition.* 6 roles.*neli kafka.*partitions=6"):
                wait_until(lambda: journal.read(0.05), timeout=20, what="an error")
        finally:
            journal.close()
