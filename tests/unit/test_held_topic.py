# ruff: noqa: SLF001 - it looks at what is held
"""The schedule topic as a process holds it that changes entries now and then, on the embedded Kafka."""

from __future__ import annotations

import logging
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from celery_neli.config import Config
from celery_neli.embedded import EmbeddedKafka
from celery_neli.exceptions import NeliError
from celery_neli.kafka.topic_spec import SCHEDULE_PARTITIONS
from celery_neli.periodic.store import Topic
from celery_neli.schedule_topic import held, session
from celery_neli.schedule_topic.codec import ENTRY, STATE, Definition, State, encode_definition, encode_state, key_of
from celery_neli.schedule_topic.held import HeldTopic
from celery_neli.schedule_topic.partition import Partition
from celery_neli.schedule_topic.write import Write
from tests.processes import free_ports
from tests.unit.schedulers import make_app

LOG = logging.getLogger("celery_neli.periodic.api")


@pytest.fixture
def config(embedded_kafka: EmbeddedKafka) -> Config:
    return Config(group="g.beat", kafka=embedded_kafka.bootstrap_servers)


@pytest.fixture
def topic(config: Config) -> Iterator[HeldTopic]:
    made = HeldTopic(config, log=LOG)
    yield made
    made.close()


def entry(name: str, version: str, base: str | None = None, **fields: Any) -> Write:
    value = encode_definition(Definition(task="t", schedule="PT1M", version=version, base=base, **fields))
    return Write(ENTRY, name, value, version)


def versions(topic: HeldTopic, *names: str) -> dict[str, bytes]:
    return {name: value for (kind, name), value in topic.look(names).items() if kind == ENTRY}


def test_without_a_topic_there_is_nothing(topic: HeldTopic) -> None:
    """And asking makes none."""
    assert topic.look(["a"]) == topic.read_all() == {}
    assert topic.write([]) == set()
    assert topic.look(["a"]) == {}


def test_what_was_written_is_read_by_every_process(topic: HeldTopic, config: Config) -> None:
    """By one that was there before, and by one that comes."""
    other = HeldTopic(config, log=LOG)
    assert other.look(["a"]) == {}
    assert topic.write([entry("a", "1"), entry("b", "2")]) == set()
    state = encode_state(State(0.0, 1, 1))
    topic.write([Write(STATE, "a", state)])
    wanted = {(ENTRY, "a"): entry("a", "1").value, (STATE, "a"): state, (ENTRY, "b"): entry("b", "2").value}
    for each in (topic, other, HeldTopic(config, log=LOG)):
        assert each.look(["a", "b", "c"]) == each.read_all() == wanted
    assert topic.read_all(keep="b".__eq__).keys() == {(ENTRY, "b")}
    other.close()


def test_many_values_are_read_at_once(topic: HeldTopic, config: Config) -> None:
    """And one by one they are the same."""
    names = [f"e{number}" for number in range(3 * 17 * session.SCAN_FROM)]
    topic.write([entry(name, f"v-{name}") for name in names])
    other = HeldTopic(config, log=LOG)
    found = versions(other, *names)
    assert found == {name: entry(name, f"v-{name}").value for name in names}
    for name in random.Random(1).sample(names, 20):
        assert versions(topic, name) == {name: found[name]}
    other.close()


def test_a_session_that_is_not_used_is_closed(topic: HeldTopic, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the next use makes another."""
    monkeypatch.setattr(held, "IDLE", 0.3)
    topic.write([entry("a", "1")])
    assert topic._session is not None
    end = time.monotonic() + 10
    while topic._session is not None and time.monotonic() < end:
        time.sleep(0.05)
    assert topic._session is None
    assert versions(topic, "a").keys() == {"a"}


def test_a_session_that_hears_nothing_is_replaced(topic: HeldTopic, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after librdkafka has lost all its brokers: the question is answered by another one."""
    topic.write([entry("a", "1")])
    lost = topic._session
    assert lost is not None
    monkeypatch.setattr(session, "DEAF", 1.0)
    monkeypatch.setattr(lost._reader, "read", lambda *_args, **_given: iter(()))
    HeldTopic(topic._config, log=LOG).write([entry("b", "2")])
    assert versions(topic, "b").keys() == {"b"}
    assert topic._session is not lost


def test_a_topic_that_was_made_again_is_read_again(topic: HeldTopic, embedded_kafka: EmbeddedKafka) -> None:
    """What was known of it says nothing."""
    topic.write([entry("a", "1")])
    known = topic._session
    assert known is not None
    for each in known._partitions.values():
        each.next, each.last = 500, (499, 1.0)  # as if more had been there
    assert versions(topic, "a").keys() == {"a"}
    assert topic._session is not known


def test_without_kafka_there_is_one_line_in_time() -> None:
    """It names the servers, for every question."""
    topic = HeldTopic(Config(group="g.beat", kafka=f"127.0.0.1:{free_ports(1)[0]}"), log=LOG)
    for ask in (
        lambda: topic.look(["a"], timeout=0.3),
        lambda: topic.write([entry("a", "1")], timeout=0.3),
        lambda: topic.read_all(timeout=0.3),
    ):
        began = time.monotonic()
        with pytest.raises(NeliError, match=r"127\.0\.0\.1") as raised:
            ask()
        assert "\n" not in str(raised.value)
        assert time.monotonic() - began < 3
    assert topic._session is None


def test_a_right_that_is_missing_is_said(topic: HeldTopic, embedded_kafka: EmbeddedKafka) -> None:
    """With the command that gives it; afterwards all goes on."""
    topic.write([entry("a", "1")])
    embedded_kafka.push_errors("Produce", "TOPIC_AUTHORIZATION_FAILED")
    with pytest.raises(NeliError, match=r"was not written: .* right Write on the topic g\.beat\.neli\.schedule: kaf"):
        topic.write([entry("b", "2")])
    assert versions(topic, "a", "b").keys() == {"a"}


def test_a_thread_that_waits_too_long_says_so(topic: HeldTopic) -> None:
    """Others use the session."""
    with topic._lock, pytest.raises(NeliError, match="other threads wait for it"):
        topic.look(["a"], timeout=0.1)


# gevent's hook of os.fork uses select(), which knows 1,024 files; the process of all unit tests may have more.
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in.*_after_fork_in_parent:pytest.PytestUnraisableExceptionWarning"
)
def test_a_forked_child_uses_a_session_of_its_own(topic: HeldTopic) -> None:
    """The parent's is not touched, also when the child ends; both go on."""
    topic.write([entry("a", "1")])
    parents = topic._session
    child = os.fork()
    if not child:
        status = 1
        try:
            topic.write([entry("b", "2")])
            status = 0 if topic._session is not parents and versions(topic, "a", "b").keys() == {"a", "b"} else 2
        finally:
            topic.close()
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert topic._session is parents
    assert versions(topic, "a", "b").keys() == {"a", "b"}


@pytest.mark.parametrize("end", ["", "import os; pid = os.fork() or sys.exit(); os.waitpid(pid, 0)"])
def test_the_end_of_a_process_is_not_delayed(embedded_kafka: EmbeddedKafka, end: str) -> None:
    """Nor that of a forked child that never used it, whose finalisers run."""
    embedded_kafka.create_topic("g.beat.neli.schedule", partitions=SCHEDULE_PARTITIONS)
    code = f"""
import sys, time
from celery import Celery
from celery_neli import periodic
app = Celery("x", broker="memory://")
app.conf.update(neli_group="g", neli_kafka={embedded_kafka.bootstrap_servers!r})
periodic.put(app, "a", "t", "PT1M")
{end}
print(time.time())
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert said.stderr == ""
    assert time.time() - float(said.stdout) < 1.5


def test_an_app_has_one_session(embedded_kafka: EmbeddedKafka) -> None:
    """However often it is asked for."""
    app = make_app(neli_group="g", neli_kafka=embedded_kafka.bootstrap_servers)
    one, other = Topic(app), Topic(app)
    assert one.look == other.look
    assert one.look.__self__ is other.look.__self__  # type: ignore[attr-defined]


# -- where records stand --


def test_a_partition_knows_where_each_record_stands() -> None:
    """As a dict would, whatever is written and deleted, with and without its small form."""
    chance, known, model = random.Random(7), Partition(), {}
    names = [f"e{number}" for number in range(3000)]
    for offset in range(40_000):
        name = chance.choice(names)
        gone = chance.random() < 0.2
        value = None if gone else encode_state(State(0.0, 1, offset))
        assert known.add(offset, float(offset), key_of(STATE, name), STATE, value)
        model[name] = None if gone else offset
        if chance.random() < 0.001:
            known.settle()
    assert {name: known.offset(key_of(STATE, name)) for name in names} == {name: model.get(name) for name in names}
    assert known.next == 40_000


def test_a_state_of_a_deposed_leader_does_not_count() -> None:
    """As beats judge; what cannot be read has no epoch."""
    known, key = Partition(), key_of(STATE, "e")
    assert known.add(0, 0.0, key, STATE, encode_state(State(0.0, 1, 5)))
    assert not known.add(1, 0.0, key, STATE, encode_state(State(0.0, 9, 3)))
    assert known.offset(key) == 0
    assert known.add(2, 0.0, key, STATE, b"?")
    assert known.add(3, 0.0, key, STATE, encode_state(State(0.0, 9, 3)))
    assert known.offset(key) == 3
