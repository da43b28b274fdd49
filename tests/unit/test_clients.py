from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from celery_neli.config import Config
from celery_neli.exceptions import ConfigurationError
from celery_neli.kafka import connect
from celery_neli.kafka.client_log import ClientLog
from celery_neli.kafka.properties import group_properties, producer_properties, reader_properties
from celery_neli.logs import REMEMBERED
from tests.processes import wait_until

TASKS = Path("/proc/self/task")


class Lines(logging.Logger):
    """A logger that keeps its lines."""

    def __init__(self) -> None:
        super().__init__("celery_neli.kafka", logging.DEBUG)
        self.lines: list[tuple[str, str]] = []

    def handle(self, record: logging.LogRecord) -> None:
        self.lines.append((record.levelname, record.getMessage()))

    def loud(self) -> list[tuple[str, str]]:
        return [line for line in self.lines if line[0] != "DEBUG"]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class KafkaTrouble:
    """Stands in for a KafkaError."""

    def __init__(self, name: str, text: str = "") -> None:
        self._name, self._text = name, text

    def name(self) -> str:
        return self._name

    def str(self) -> str:
        return self._text


def config(**kafka: object) -> Config:
    given = {name.replace("_", "."): value for name, value in kafka.items()}
    return Config(group="shop.beat", kafka={"bootstrap.servers": "k:9092", **given})


@pytest.mark.parametrize("properties", [reader_properties, producer_properties, group_properties])
def test_what_the_user_gives_reaches_every_client(properties):
    """TLS and SASL are for all three clients alike."""
    made = properties(config(security_protocol="SSL", ssl_ca_location="/ca.pem"))
    assert made["bootstrap.servers"] == "k:9092"
    assert made["security.protocol"] == "SSL"
    assert made["ssl.ca.location"] == "/ca.pem"


def test_the_users_value_wins_where_no_safety_rests_on_it():
    """Timeouts of the network are the operator's to choose."""
    assert reader_properties(config(fetch_wait_max_ms=7))["fetch.wait.max.ms"] == 7
    assert producer_properties(config(socket_timeout_ms=9000))["socket.timeout.ms"] == 9000


@pytest.mark.parametrize(
    ("properties", "name", "value", "ours"),
    [
        (reader_properties, "auto.offset.reset", "earliest", "'error'"),
        (reader_properties, "enable.auto.commit", True, "False"),
        (reader_properties, "isolation.level", "read_committed", "'read_uncommitted'"),
        (reader_properties, "group.id", "mine", "'shop.beat'"),
        (producer_properties, "acks", 1, "'all'"),
        (producer_properties, "request.required.acks", 0, "'all'"),
        (producer_properties, "message.timeout.ms", 300000, "4000"),
        (producer_properties, "enable.idempotence", "true", "False"),
        (producer_properties, "max.in.flight", 5, "1"),
        (group_properties, "partition.assignment.strategy", "range", "'cooperative-sticky'"),
        (group_properties, "session.timeout.ms", 45000, "6000"),
        (group_properties, "group.protocol", "consumer", "'classic'"),
    ],
)
def test_a_contradiction_is_refused_and_named(properties, name, value, ours):
    """The error names the property and both values."""
    with pytest.raises(ConfigurationError) as raised:
        properties(Config(group="shop.beat", kafka={"bootstrap.servers": "k:9092", name: value}))
    message = str(raised.value)
    assert repr(value) in message
    assert ours in message
    assert "neli_kafka" in message


@pytest.mark.parametrize(("name", "value"), [("acks", -1), ("acks", "-1"), ("acks", "ALL"), ("max.in.flight", "1")])
def test_the_needed_value_in_other_words_is_accepted(name, value):
    """Librdkafka's synonyms and aliases are known."""
    made = producer_properties(Config(group="shop.beat", kafka={"bootstrap.servers": "k:9092", name: value}))
    assert made["acks"] == "all"
    assert "max.in.flight" not in made


@pytest.mark.parametrize("name", ["group.instance.id", "transactional.id", "error_cb", "stats_cb", "logger"])
def test_what_cannot_work_is_refused(name):
    """A static member id is shared by all members; callbacks would run on the thread that renews the lease."""
    with pytest.raises(ConfigurationError, match=name):
        group_properties(Config(group="shop.beat", kafka={"bootstrap.servers": "k:9092", name: "x"}))


def test_the_session_outlasts_no_poll_interval():
    """Librdkafka refuses a session timeout above max.poll.interval.ms."""
    made = group_properties(Config(group="shop.beat", session_timeout=1000.0))
    assert made["max.poll.interval.ms"] >= made["session.timeout.ms"] == 1_000_000


def test_the_same_line_is_said_once_in_ten_seconds():
    """Lines that differ in numbers only are the same; after ten seconds one is said again."""
    log, clock = Lines(), Clock()
    client_log = ClientLog(log, {}, clock=clock)
    for second in range(25):
        clock.now = float(second)
        client_log.log(logging.WARNING, "%s", f"PROTOERR broker {second} sent {second * 7} bytes")
    assert [text for _, text in log.lines] == [f"PROTOERR broker {s} sent {s * 7} bytes" for s in (0, 10, 20)]


def test_memory_of_lines_is_bounded():
    """A stream of different lines does not grow the memory: the oldest is forgotten, and may be said again."""
    log = Lines()
    client_log = ClientLog(log, {}, clock=Clock())
    words = ["".join(chr(ord("a") + int(digit)) for digit in str(n)) for n in range(REMEMBERED + 1)]
    for word in [*words, words[-1], words[0]]:
        client_log.say(logging.INFO, word)
    said = [text for _, text in log.lines]
    assert said.count(words[-1]) == 1
    assert said.count(words[0]) == 2


def test_an_outage_is_one_warning_and_its_end_one_line():
    """However many lines and errors an outage makes, it is reported once, with the reason, and so is its end."""
    log, clock = Lines(), Clock()
    client_log = ClientLog(log, {"bootstrap.servers": "k:9092"}, clock=clock)
    for second in range(60):
        clock.now = float(second)
        client_log.log(logging.ERROR, "%s", "FAIL [x] [thrd:k:9092]: k:9092: Connect failed: Connection refused")
        client_log.error(KafkaTrouble("_TRANSPORT", "k:9092: Connection refused"))
        client_log.error(KafkaTrouble("_ALL_BROKERS_DOWN", "1/1 brokers are down"))
    assert client_log.reachability.unreachable
    client_log.reachable()
    client_log.reachable()
    assert log.loud() == [
        (
            "WARNING",
            (
                "kafka unreachable servers=k:9092 reason='k:9092: Connection refused': check that Kafka runs there, "
                "and bootstrap.servers; no member leads until it answers"
            ),
        ),
        ("INFO", "kafka reachable again servers=k:9092"),
    ]


def test_what_concerns_the_group_is_the_group_members_matter():
    """A client that only reads looks for a coordinator, too, and needs none."""
    log = Lines()
    client_log = ClientLog(log, {})
    client_log.error(KafkaTrouble("COORDINATOR_NOT_AVAILABLE", "no coordinator"))
    assert log.loud() == []
    client_log.remark(KafkaTrouble("NOT_COORDINATOR", "another coordinator"), joined=True)
    assert log.loud() == [("WARNING", "kafka error=NOT_COORDINATOR another coordinator")]


def test_one_set_of_properties_for_consumers_and_producers_makes_no_noise():
    """Librdkafka remarks on every property that is not for the kind of client; no operator needs to read that."""
    log = Lines()
    line = "CONFWARN [p] Configuration property group.id is a consumer property and will be ignored by this producer"
    ClientLog(log, {}).log(logging.WARNING, "%s", line)
    assert log.loud() == []


def test_no_secret_is_logged():
    """Values of passwords, keys and tokens are masked wherever they turn up."""
    secrets = {"sasl.password": "hunter22", "ssl.key.pem": "-----KEY", "sasl.oauthbearer.client.secret": "s3cret"}
    log = Lines()
    client_log = ClientLog(log, {"bootstrap.servers": "k:9092", "sasl.username": "shop", **secrets})
    client_log.log(logging.WARNING, "%s", "bad hunter22 -----KEY s3cret for shop")
    client_log.error(KafkaTrouble("_AUTHENTICATION", "hunter22 refused"))
    client_log.say(logging.WARNING, "append lost reason=hunter22")
    text = " ".join(line for _, line in log.lines)
    assert not any(secret in text for secret in secrets.values())
    assert "shop" in text


def test_parts_of_an_oauthbearer_configuration_are_not_logged():
    """Librdkafka quotes it from the word on that it does not understand."""
    log = Lines()
    client_log = ClientLog(log, {"sasl.oauthbearer.config": "principal=shop sicret=hunter22 scope=all"})
    reason = "Unrecognized sasl.oauthbearer.config beginning at: sicret=hunter22 scope=all"
    client_log.error(KafkaTrouble("_AUTHENTICATION", reason))
    assert [line for _, line in log.lines if "beginning at" in line]
    assert not any("hunter22" in line for _, line in log.lines)


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_clients_that_contradict_leave_none_behind():
    """They are made again every half minute: the ones that could be made must not pile up."""
    kafka = {"bootstrap.servers": "127.0.0.1:1", "max.poll.interval.ms": 50_000}
    config = Config(group="shop.beat", kafka=kafka, session_timeout=60)  # the reader can be made, the group's cannot
    before = len(list(TASKS.iterdir()))
    with pytest.raises(ConfigurationError, match=r"max\.poll\.interval\.ms"):
        connect(config, logging.getLogger("celery_neli.kafka"))
    wait_until(lambda: len(list(TASKS.iterdir())) <= before, timeout=10, what="the end of the reader's threads")
