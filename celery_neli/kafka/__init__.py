"""Kafka as the package uses it: one reader, one writer, the topics, the journal of each role, the group; and a mock.

In the order of reading: causes, properties, client_log -> liveness -> reader, writer -> topic_spec, topic_admin ->
journal, group. Apart from them: mock_cluster, behind `celery_neli.embedded`. Only these modules and those of
`schedule_topic`, `status`, `repair`, `embedded` and `cli` load confluent_kafka.
"""

from __future__ import annotations

import logging
from typing import Any

from celery_neli.config import Config
from celery_neli.election import neli
from celery_neli.election.member import Connect, Group
from celery_neli.election.records import Journal
from celery_neli.election.renewal import Barrier


def connect(config: Config, log: logging.Logger) -> tuple[Journal, Group]:
    """Return the journal and the group of one member. Does not wait for a broker. Raises `ConfigurationError`."""
    from celery_neli.kafka.group import KafkaGroup
    from celery_neli.kafka.journal import KafkaJournal

    journal = KafkaJournal(config, log=log)
    try:
        return journal, KafkaGroup(config, log=log)
    except BaseException:
        journal.close()  # it is retried again and again: clients must not pile up
        raise


class _NoGroup:
    """The group of an election that has none (`member.Group`): no member is preferred; all claim a vacant role."""

    induced: frozenset[int] = frozenset()
    is_member = True

    def poll(self) -> None:
        """There is nothing to serve."""

    join = leave = close = poll


def connect_alone(config: Config, log: logging.Logger) -> tuple[Journal, Group]:
    """Return as `connect` does, but without a consumer group, which costs a client and rights: for a role that needs no
    particular leader.
    """
    from celery_neli.kafka.journal import KafkaJournal

    return KafkaJournal(config, log=log), _NoGroup()


class Neli(neli.Neli):
    """One member of an election on Kafka: `election.neli.Neli`, connected."""

    def __init__(
        self, config: Config, barrier: Barrier | None = None, *, connect: Connect = connect, **options: Any
    ) -> None:
        super().__init__(config, barrier, connect=connect, **options)
