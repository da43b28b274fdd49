from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator

import pytest
from confluent_kafka import Consumer, TopicPartition

from celery_neli.config import Config
from celery_neli.exceptions import ConfigurationError
from celery_neli.kafka.group import KafkaGroup

pytestmark = pytest.mark.integration
LOG = logging.getLogger("celery_neli.kafka")
NO_ROLE: frozenset[int] = frozenset()


@pytest.fixture
def config(kafka_node, names) -> Config:
    """An election of one role, whose topic exists."""
    config = Config(group=names("group"), kafka=kafka_node.bootstrap_servers)
    kafka_node.create_topic(config.topic)
    return config


@pytest.fixture
def member() -> Iterator[Callable[[Config], KafkaGroup]]:
    """Make members, which are closed at the end."""
    made: list[KafkaGroup] = []

    def member(config: Config) -> KafkaGroup:
        made.append(KafkaGroup(config, log=LOG))
        return made[-1]

    yield member
    for each in made:
        each.close()


def poll(*groups: KafkaGroup, until: Callable[[], object], timeout: float = 20.0) -> None:
    deadline = time.monotonic() + timeout
    while not until():
        assert time.monotonic() < deadline, f"not within {timeout} s: {[group.induced for group in groups]}"
        for group in groups:
            group.poll()
        time.sleep(0.02)


def test_a_lone_member_is_induced_for_every_role(kafka_node, names, member):
    """Nothing is assigned before it joins; partitions beyond the roles are of no interest."""
    config = Config(group=names("group"), kafka=kafka_node.bootstrap_servers, roles=("red", "green"))
    kafka_node.create_topic(config.topic, partitions=4)
    alone = member(config)
    alone.poll()
    assert alone.induced == NO_ROLE
    alone.join()
    alone.join()
    poll(alone, until=lambda: alone.induced == {0, 1})


def test_a_newcomer_does_not_disturb_the_induced(config, member):
    """The assignment is sticky: who joins later takes nothing away, not even for a moment."""
    first = member(config)
    first.join()
    poll(first, until=lambda: first.induced)
    seen = set()
    for _ in range(3):
        newcomer = member(config)
        newcomer.join()
        deadline = time.monotonic() + 1.5
        poll(first, newcomer, until=lambda: seen.add(first.induced) or time.monotonic() > deadline)  # noqa: B023
        assert newcomer.induced == NO_ROLE
    assert seen == {frozenset({0})}


def test_the_group_counts_a_member_in_that_it_gives_nothing(config, member):
    """Until it leaves: whoever stands by has joined as well as who is induced."""
    first, second = member(config), member(config)
    assert not first.is_member
    first.join()
    poll(first, until=lambda: first.is_member)
    assert first.induced
    second.join()
    poll(first, second, until=lambda: second.is_member)
    assert second.induced == NO_ROLE
    second.leave()
    assert not second.is_member
    second.join()
    poll(first, second, until=lambda: second.is_member)
    second.close()
    assert (first.is_member, second.is_member) == (True, False)


def test_eight_roles_are_spread_evenly_over_four_members(kafka_node, names, member):
    """Two each; who joins takes from the others what it gets and no more, and what the dead had goes to all."""
    config = Config(group=names("group"), kafka=kafka_node.bootstrap_servers, roles=tuple("abcdefgh"))
    kafka_node.create_topic(config.topic, partitions=8)
    members: list[KafkaGroup] = []
    for most in (8, 4, 3, 2):
        before = [each.induced for each in members]
        members.append(member(config))
        members[-1].join()
        poll(*members, until=lambda: spread(members) and max(len(each.induced) for each in members) == most)  # noqa: B023
        assert all(each.induced <= had for each, had in zip(members, before, strict=False))
    assert [len(each.induced) for each in members] == [2, 2, 2, 2]
    gone, *left = members
    had = [each.induced for each in left]
    gone.close()
    poll(*left, until=lambda: spread(left))
    assert all(each.induced > kept for each, kept in zip(left, had, strict=True)) or max(map(len, had)) == 2
    assert sorted(len(each.induced) for each in left) == [2, 3, 3]


def spread(members: list[KafkaGroup]) -> bool:
    """Every role is assigned, to one member each."""
    return sorted(role for each in members for role in each.induced) == list(range(8))


def test_who_leaves_is_not_induced_any_more_and_another_is(config, member):
    """At once for the one, within a rebalance for the other; and the one may come back."""
    first, second = member(config), member(config)
    first.join()
    poll(first, until=lambda: first.induced)
    second.join()
    first.leave()
    first.leave()
    assert first.induced == NO_ROLE
    poll(first, second, until=lambda: second.induced == {0})
    second.leave()
    first.join()
    poll(first, second, until=lambda: first.induced == {0})


def test_who_closes_hands_over_within_a_moment(config, member):
    """A closed member left the group; no member waits for its session to end."""
    first, second = member(config), member(config)
    first.join()
    poll(first, until=lambda: first.induced)
    second.join()
    deadline = time.monotonic() + 1.0
    poll(first, second, until=lambda: time.monotonic() > deadline)
    began = time.monotonic()
    first.close()
    assert time.monotonic() - began < 0.5
    assert first.induced == NO_ROLE
    poll(second, until=lambda: second.induced == {0}, timeout=3.0)
    first.close()
    first.poll()
    first.join()


def test_nothing_is_committed(config, member, kafka_node):
    """The group keeps no offsets: it is there to assign partitions only."""
    alone = member(config)
    alone.join()
    poll(alone, until=lambda: alone.induced)
    alone.close()
    asker = Consumer({"bootstrap.servers": kafka_node.bootstrap_servers, "group.id": config.group})
    try:
        (found,) = asker.committed([TopicPartition(config.topic, 0)], timeout=10)
    finally:
        asker.close()
    assert found.offset < 0


def test_a_topic_made_after_joining_is_found(kafka_node, names, member, caplog):
    """Who joins too early waits; that is said once."""
    config = Config(group=names("group"), kafka=kafka_node.bootstrap_servers)
    early = member(config)
    early.join()
    deadline = time.monotonic() + 1.0
    poll(early, until=lambda: time.monotonic() > deadline)
    kafka_node.create_topic(config.topic)
    poll(early, until=lambda: early.induced == {0})
    assert sum("UNKNOWN_TOPIC_OR_PART" in record.getMessage() for record in caplog.records) <= 1


def test_a_contradicting_property_is_refused(kafka_node):
    """An eager assignor would move the leader with every join."""
    given = {"bootstrap.servers": kafka_node.bootstrap_servers, "partition.assignment.strategy": "range"}
    with pytest.raises(ConfigurationError, match=r"partition\.assignment\.strategy.*range.*cooperative-sticky"):
        KafkaGroup(Config(group="g", kafka=given), log=LOG)


def test_closing_without_a_broker_is_quick():
    """A member that never reached Kafka ends in milliseconds."""
    group = KafkaGroup(Config(group="g", kafka="127.0.0.1:9"), log=LOG)
    group.join()
    group.poll()
    began = time.monotonic()
    group.close()
    assert time.monotonic() - began < 0.5


@pytest.mark.slow
def test_closing_is_quick_while_the_coordinator_is_frozen(kafka_cluster, names, member):
    """A member that must end does not wait for a broker that never answers."""
    config = Config(group=names("group"), kafka=kafka_cluster.bootstrap_servers)
    kafka_cluster.create_topic(config.topic)
    group = member(config)
    group.join()
    poll(group, until=lambda: group.induced == {0}, timeout=40)
    kafka_cluster.coordinator_of(config.group).freeze()
    began = time.monotonic()
    group.close()
    took = time.monotonic() - began
    print(f"closed in {took * 1000:.0f} ms")
    assert took < 1.0
