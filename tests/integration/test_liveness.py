"""Clean stops of the only broker: a client that asks at the wrong moment forgets it (see kafka/liveness.py)."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import pytest

from celery_neli.config import Config
from celery_neli.election.records import Entry
from celery_neli.kafka.group import KafkaGroup
from celery_neli.kafka.journal import KafkaJournal
from celery_neli.schedule_topic import topic as schedule_client
from celery_neli.schedule_topic.codec import ENTRY
from celery_neli.schedule_topic.topic import ScheduleTopic
from tests import services
from tests.kafka.cluster import KafkaCluster
from tests.processes import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]
ROUNDS = int(os.environ.get("NELI_DEAF_ROUNDS", "1"))
LOG = logging.getLogger("celery_neli.kafka")
CLIENTS = 4
HEALED = 30.0  # seconds, on a busy machine


@pytest.fixture
def node(kafka_libs: Path, tmp_path: Path) -> Iterator[KafkaCluster]:
    """One broker of the test's own, to be stopped."""
    java = services.java()
    assert java is not None, "kafka_libs has asked for it"
    with KafkaCluster(nodes=1, java=java, libs=kafka_libs, directory=tmp_path) as cluster:
        yield cluster


class Client:
    """A journal and a group member, served by a thread of their own, as a member's are."""

    def __init__(self, config: Config) -> None:
        self.journal, self.group = KafkaJournal(config, log=LOG), KafkaGroup(config, log=LOG)
        self.word = b"begin"
        self.heard: set[bytes] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        """Stop."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        said = 0.0
        while not self._stop.is_set():
            for event in self.journal.read(0.1):
                self.group.join()
                if isinstance(event, Entry):
                    self.heard.add(event.value)
            self.group.poll()
            if time.monotonic() - said > 0.5 and self.word not in self.heard:
                said = time.monotonic()
                self.journal.append(0, "a", self.word)
        self.group.close()
        self.journal.close()


def test_every_client_hears_again_after_a_clean_stop(node: KafkaCluster, caplog: pytest.LogCaptureFixture) -> None:
    """Journals read what they append, group members are induced, schedules are read: whatever became of the clients."""
    caplog.set_level(logging.WARNING)
    # Asked so often, some question falls into the few milliseconds of a stop in which a broker names no brokers.
    servers = {"bootstrap.servers": node.bootstrap_servers, "topic.metadata.refresh.interval.ms": 20}
    config = Config(group="deaf", kafka=servers, roles=tuple("abcd"))
    with ExitStack() as stack:
        clients = [stack.enter_context(closing(Client(config))) for _ in range(CLIENTS)]
        topics = [ScheduleTopic(config, log=LOG) for _ in range(CLIENTS)]
        for topic in topics:
            stack.callback(topic.stop)
            topic.start()

        def well(word: bytes) -> None:
            """Wait until everything works; `word` was not used before."""
            began = time.monotonic()
            for number, client in enumerate(clients):
                client.word = word + b" of %d" % number  # of its own: its own producer must bring it
            for client in clients:
                wait_until(partial(client.heard.__contains__, client.word), timeout=HEALED, what="an own record")
            reported = [f"journals {time.monotonic() - began:.1f} s"]
            wait_until(lambda: all(client.group.induced for client in clients), timeout=HEALED, what="induction")
            reported.append(f"groups {time.monotonic() - began:.1f} s")
            schedule_client.write(config, [(ENTRY, word.decode(), b"{}")], log=LOG, timeout=HEALED)
            for topic in topics:
                wait_until(partial(found, topic, word.decode()), timeout=HEALED, what="a record of the schedule")
            reported.append(f"schedules {time.monotonic() - began:.1f} s")
            print(f"\n{word.decode()}:", *reported, end="")

        well(b"begin")
        for number in range(ROUNDS):
            node.nodes[0].terminate()
            node.nodes[0].start()
            node.nodes[0].wait_ready()
            well(b"round %d" % number)
    deaf = Counter(record.getMessage() for record in caplog.records if "kafka client deaf" in record.getMessage())
    print(f"\n{deaf.total()} clients were deaf and healed:", *deaf.items(), sep="\n")


def found(topic: ScheduleTopic, name: str) -> bool:
    """Whether the record of this entry has been read."""
    return ("e", name) in topic.drain()
