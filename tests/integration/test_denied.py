"""A journal whose right to read is taken, and given back, while it reads."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import pytest

from celery_neli.config import Config
from celery_neli.election.records import End, Entry
from celery_neli.exceptions import TopicError
from celery_neli.kafka.journal import KafkaJournal
from celery_neli.kafka.liveness import ASK_EVERY, PATIENCE, QUIET
from celery_neli.kafka.topic_spec import LEADER
from tests.kafka.secured import Right
from tests.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kafka.secured import SecuredKafka

pytestmark = [pytest.mark.integration, pytest.mark.slow]
LOG = logging.getLogger("celery_neli.kafka")
#: Seconds after which a client that hears nothing, though brokers answer, was replaced.
REPLACED = 2 * QUIET + PATIENCE + 3 * ASK_EVERY


def test_a_reader_that_is_denied_is_not_taken_for_deaf(
    secured_kafka: SecuredKafka, names: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    """It learns which right is missing, as one and the same trouble, and reads on where it stood."""
    caplog.set_level(logging.INFO)
    user, topic = secured_kafka.create_user(names("user")), names("topic")
    secured_kafka.create_topic(topic, config=LEADER)
    rights = [Right(operation, "topic", topic) for operation in ("Read", "Write", "DescribeConfigs")]
    secured_kafka.grant(user, *rights)
    config = Config(group=names("group"), topic=topic, kafka=secured_kafka.properties(user))
    journal, troubles, events = KafkaJournal(config, log=LOG), [], []

    def read() -> None:
        try:
            events.extend(journal.read(0.1))
        except TopicError as trouble:
            troubles.append(trouble)

    try:
        wait_until(lambda: read() or End(0) in events, timeout=30, what="the end")
        secured_kafka.revoke(user, rights[0])
        wait_until(lambda: read() or troubles, timeout=30, what="the missing right")
        over = time.monotonic() + REPLACED
        while time.monotonic() < over:
            read()
        assert len({id(trouble) for trouble in troubles}) == 1
        assert f"lacks the right Read on the topic {topic}: kafka-acls.sh" in str(troubles[0])
        assert caplog.messages == []
        secured_kafka.grant(user, rights[0])
        journal.append(0, "leader", b"after")
        wait_until(lambda: read() or any(isinstance(each, Entry) for each in events), timeout=30, what="the record")
        assert caplog.messages == [f"leader topic usable again topic={topic}"]
    finally:
        journal.close()
