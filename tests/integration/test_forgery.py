"""Forged and malformed records on the leader topic, by the thousand: nobody is promoted by them, and nobody dies."""

from __future__ import annotations

import json
import logging
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka import Consumer, Message, Producer, TopicPartition

from celery_neli import Config, LeaderAcquired, Neli
from tests.processes import wait_until

if TYPE_CHECKING:
    from celery_neli.election.role_state import LeaderEvent

pytestmark = [pytest.mark.integration, pytest.mark.slow]

JUNK = [
    b"", b"\xff\xfe\x00", b"not JSON", b"null", b"[]", b"{}", b'{"v":1}', b'{"v":true}', b'{"v":1,"kind":"coup"}',
    b'{"v":1,"v":1}', b"[" * 5000, b"x" * 70_000, b'{"v":1,"kind":"beat","member":"m","seq":NaN}',
    b'{"v":1,"kind":"claim","member":"m","seq":1,"lease":1e999,"seen":-1}', b'{"v":1,"kind":"request","to":5}',
]  # fmt: skip


class Voter:
    """A member in this process, and what it was told."""

    def __init__(self, config: Config) -> None:
        self.name = config.name
        self.acquired: list[int] = []
        self.neli = Neli(config, self._barrier)
        self.pulser = self.neli.background(lambda: None)

    def _barrier(self, event: LeaderEvent) -> None:
        if isinstance(event, LeaderAcquired):
            self.acquired.append(event.term)


class Forger:
    """Writes records into the log of the only role, and knows their offsets."""

    def __init__(self, config: Config) -> None:
        self.offsets: set[int] = set()
        self._topic = config.topic
        self._producer = Producer({"bootstrap.servers": config.properties["bootstrap.servers"], "linger.ms": 5})

    def write(self, *values: bytes) -> None:
        """Append, and wait until it is done."""
        for value in values:
            self._producer.produce(self._topic, value, partition=0, on_delivery=self._delivered)
            self._producer.poll(0)
        assert self._producer.flush(30) == 0

    def _delivered(self, error: object, message: Message) -> None:
        assert error is None
        self.offsets.add(message.offset() or 0)


def read_log(config: Config) -> list[bytes]:
    """Every record from offset 0."""
    reader = Consumer({"bootstrap.servers": config.properties["bootstrap.servers"], "group.id": "reader"})
    try:
        _, high = reader.get_watermark_offsets(TopicPartition(config.topic, 0), timeout=10)
        reader.assign([TopicPartition(config.topic, 0, 0)])
        values: list[bytes] = []
        wait_until(
            lambda: values.extend(each.value() or b"" for each in reader.consume(500, 0.5)) or len(values) >= high,
            timeout=30, what=f"{high} records",
        )  # fmt: skip
        return values
    finally:
        reader.close()


def parsed(value: bytes) -> dict[str, Any]:
    """The record, or an empty one."""
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def forgery(rnd: random.Random, genuine: list[dict[str, Any]], end: int) -> bytes:
    """Junk, or something that a member has written with a part of it changed."""
    if rnd.random() < 0.4:
        return rnd.choice(JUNK)
    record = dict(rnd.choice(genuine))
    seq = record["seq"]
    for what in rnd.sample(("member", "kind", "seq", "lease", "seen", "term", "end"), rnd.randrange(1, 4)):
        record[what] = {
            "member": rnd.choice([*(each["member"] for each in genuine), "stranger/1", "", 7]),
            "kind": rnd.choice(("claim", "beat", "release", "request", "coup")),
            "seq": rnd.choice((0, seq + rnd.choice((-1, 1, 1000)), -1, "1")),
            "lease": rnd.choice((0.001, 1.0, 4.0, -1, 0, 301, "4", None, True)),
            "seen": rnd.choice((-1, 0, end - 2, end - 1, end, end + 1000, None, 1.5)),
            "term": rnd.choice((0, end - 2, end - 1, end, end + 1000, None, 1.5)),
            "end": rnd.choice((0, end - 1, end, end + 1)),
        }[what]
    return json.dumps(record).encode()


@pytest.fixture
def vote(kafka: str, names: Callable[[str], str]) -> Iterator[Callable[[str], Voter]]:
    """Start members of one election by name."""
    started: list[Voter] = []

    def vote(name: str) -> Voter:
        started.append(Voter(Config(group=names("group"), kafka=kafka, name=name)))
        return started[-1]

    yield vote
    for each in started:
        each.neli.request_close()
    for each in started:
        each.pulser.close()


def leaders(voters: list[Voter]) -> list[Voter]:
    """Those who lead now."""
    return [each for each in voters if each.neli.is_leader]


def test_forged_records_promote_nobody(vote: Callable[[str], Voter], caplog: pytest.LogCaptureFixture) -> None:
    """Three thousand, of every kind. A forged claim may depose, so leaders change; each led by a claim of its own."""
    caplog.set_level(logging.INFO)
    voters = [vote(name) for name in "abc"]
    config = voters[0].neli.config
    wait_until(lambda: leaders(voters), timeout=30, what="a leader")
    forger, rnd = Forger(config), random.Random(8)
    for _ in range(30):
        log = read_log(config)
        members = [each for at, each in enumerate(map(parsed, log)) if at not in forger.offsets]
        forger.write(*(forgery(rnd, members[-20:], len(log)) for _ in range(100)))
        assert len(leaders(voters)) <= 1
    wait_until(lambda: leaders(voters), timeout=60, what="a leader after all")
    last = leaders(voters)[0]

    log = read_log(config)
    assert len(forger.offsets) == 3000
    for voter in voters:
        assert voter.neli.state.value == "live"
        for term in voter.acquired:
            assert term not in forger.offsets
            assert parsed(log[term])["kind"] == "claim"
            assert parsed(log[term])["member"].startswith(f"{voter.name}/")
    skipped = [each for each in caplog.records if each.getMessage().startswith("record skipped")]
    kinds = Counter(re.sub(r".*offset=\d+: ", "", each.getMessage()) for each in skipped)
    print(f"\nforged {len(forger.offsets)}, terms {[each.acquired for each in voters]}, last led by {last.name}")
    print(f"  warnings by three members in all: {dict(kinds)}")
    errors = [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR]
    assert errors == []
    assert len(kinds) >= 8
    assert max(kinds.values()) <= len(voters)


def test_a_newer_version_makes_all_stand_aside(vote: Callable[[str], Voter], caplog: pytest.LogCaptureFixture) -> None:
    """What it says cannot be judged, so nobody leads or claims any more; each says so, loudly and once."""
    voters = [vote(name) for name in "ab"]
    wait_until(lambda: leaders(voters), timeout=30, what="a leader")
    caplog.clear()
    Forger(voters[0].neli.config).write(*[b'{"v":2,"kind":"claim"}'] * 100)
    wait_until(lambda: not leaders(voters), timeout=10, what="nobody leads")
    standing_aside = [each for each in caplog.records if "protocol unknown" in each.getMessage()]
    wait_until(
        lambda: sum("protocol unknown" in each.getMessage() for each in caplog.records) == len(voters),
        timeout=10, what="a word from each",
    )  # fmt: skip
    with pytest.raises(TimeoutError):
        wait_until(lambda: leaders(voters), timeout=voters[0].neli.config.heartbeat_timeout + 2, what="a leader")
    assert len(standing_aside) <= len(voters)
