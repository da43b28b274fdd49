"""An outage is said once in a process, with its cause, however many clients meet it; so is its end."""

from __future__ import annotations

import logging
import os
import threading
from typing import Any

import pytest

from celery_neli.kafka.causes import Cause, untrusted
from celery_neli.kafka.client_log import FORGET, REMIND, SETTLE, ClientLog, Reachability
from tests.processes import wait_until

LOG = logging.getLogger("celery_neli.kafka")
SERVERS = {"bootstrap.servers": "k:9093", "security.protocol": "SSL"}
REFUSED = "ssl://k:9093/1: Connect to k failed: Connection refused"
LOGIN = Cause("login", "k:9093 refuses the user", "check it")
VERIFY = "ssl://k:9093/1: SSL handshake failed: certificate verify failed: broker certificate could not be verified"


class Error:
    def __init__(self, name: str, text: str) -> None:
        self._name, self._text = name, text

    def name(self) -> str:
        return self._name

    def str(self) -> str:
        return self._text


DOWN = Error("_ALL_BROKERS_DOWN", "1/1 brokers are down")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def kafka(clock: Clock) -> Reachability:
    return Reachability(SERVERS, clock=clock)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno > logging.DEBUG]


def test_five_clients_of_a_process_say_it_once(caplog: pytest.LogCaptureFixture) -> None:
    """With the cause that any of them met, and once that it is over. Made without a word of each other."""
    caplog.set_level(logging.INFO)
    clients = [ClientLog(LOG, {"bootstrap.servers": "five:1"}) for _ in range(5)]
    for _ in range(20):
        for each in clients:
            each.error(Error("_AUTHENTICATION", "five:1/1: SASL authentication error: Invalid username or password"))
            each.error(DOWN)
    assert [line.partition(" reason=")[0] for line in said(caplog)] == ["kafka unreachable servers=five:1"]
    assert "refuses this client or the password" in said(caplog)[0]
    for each in clients:
        each.reachable()
    assert said(caplog)[1:] == ["kafka reachable again servers=five:1"]


def test_clients_of_other_brokers_say_it_of_those(caplog: pytest.LogCaptureFixture) -> None:
    """Two Kafkas, two outages."""
    for servers in ("one:1", "two:1"):
        ClientLog(LOG, {"bootstrap.servers": servers}).error(DOWN)
    assert len(said(caplog)) == 2


def test_the_end_of_kafka_is_no_news_to_a_process_that_ends(
    kafka: Reachability, caplog: pytest.LogCaptureFixture
) -> None:
    """All may be stopped at once. While another member of the process goes on, it is."""
    caplog.set_level(logging.DEBUG)
    kafka.joined("beats")
    kafka.joined("workers")
    kafka.left("beats")
    kafka.down(LOG)
    assert len(said(caplog)) == 1
    kafka.reached(LOG)
    kafka.left("workers")
    kafka.left("workers")
    kafka.down(LOG)
    assert len([line for line in said(caplog) if "unreachable" in line]) == 1
    assert "unreachable" in caplog.records[-1].getMessage()
    kafka.reached(LOG)
    kafka.joined("beats again")
    kafka.down(LOG)
    assert len([line for line in said(caplog) if "unreachable" in line]) == 2


def test_another_lasting_cause_in_the_same_outage_is_said(
    kafka: Reachability, caplog: pytest.LogCaptureFixture
) -> None:
    """A broker comes back, and refuses: a member that waits for it waits in vain. Each once, in each outage."""
    client_log = ClientLog(LOG, SERVERS, reachability=kafka)
    for outage in (1, 2):
        for _ in range(3):
            client_log.error(Error("_TRANSPORT", REFUSED))
            client_log.error(DOWN)
        for _ in range(3):
            kafka.failed(LOGIN, LOG)
            client_log.error(Error("_TRANSPORT", REFUSED))
            client_log.error(DOWN)
        assert len(said(caplog)) == 2 * outage
        assert "Connection refused" in said(caplog)[-2]
        assert f"reason={LOGIN.reason!r}: check it; no member leads" in said(caplog)[-1]
        assert kafka.cause == LOGIN
        client_log.reachable()


def test_after_it_worked_again_the_same_cause_is_news(kafka: Reachability, caplog: pytest.LogCaptureFixture) -> None:
    """Three outages, three warnings, three ends."""
    caplog.set_level(logging.INFO)
    for _ in range(3):
        kafka.failed(LOGIN, LOG)
        kafka.down(LOG)
        kafka.reached(LOG)
        kafka.reached(LOG)
    assert len(said(caplog)) == 6
    assert kafka.cause is None


def test_a_cause_that_concerns_one_broker_of_several_is_said_after_a_while(
    kafka: Reachability, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Others answer all the time. Not at once, for it may be the first word of an outage."""
    for _ in range(int(2 * SETTLE)):
        kafka.failed(LOGIN, LOG)
        kafka.reached(LOG)
        clock.now += 1
    assert said(caplog) == [f"kafka broker unreachable servers=k:9093 reason={LOGIN.reason!r}: check it"]
    for _ in range(int(REMIND)):
        kafka.failed(LOGIN, LOG)
        clock.now += 1
    assert len(said(caplog)) == 2


def test_a_connection_that_fails_now_and_then_is_no_news(
    kafka: Reachability, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Each time is the first."""
    for _ in range(100):
        kafka.failed(LOGIN, LOG)
        clock.now += FORGET + 1
    assert said(caplog) == []


def test_the_line_about_an_outage_waits_for_what_is_wrong_with_the_certificate(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Librdkafka tells no more than that it is not trusted. Looked at once, on another thread."""
    looked, go = [], threading.Event()

    def look(where: str, properties: Any) -> Cause:
        looked.append(where)
        go.wait(10)
        return untrusted(where, 10, "", properties)

    kafka = Reachability(SERVERS, clock=clock, look=look)
    client_log = ClientLog(LOG, SERVERS, reachability=kafka)
    for _ in range(5):
        client_log.error(Error("_SSL", VERIFY))
        client_log.error(DOWN)
    assert said(caplog) == []
    go.set()
    wait_until(lambda: said(caplog), timeout=10, what="the line")
    for _ in range(5):
        client_log.error(Error("_SSL", VERIFY))
        client_log.error(DOWN)
    assert len(said(caplog)) == 1
    assert "reason='the certificate of k:9093 has expired': renew it on the broker; no member leads" in said(caplog)[0]
    assert looked == ["k:9093"]


def test_a_look_that_does_not_return_holds_up_no_line(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """The less exact cause is reported, once; if the look comes to an end after all, the exact one."""
    go = threading.Event()

    def look(where: str, properties: Any) -> Cause:
        go.wait(10)
        return untrusted(where, 10, "", properties)

    client_log = ClientLog(LOG, SERVERS, reachability=Reachability(SERVERS, clock=clock, look=look))
    for _ in range(10):
        client_log.error(Error("_SSL", VERIFY))
        client_log.error(DOWN)
        clock.now += 1
    assert len(said(caplog)) == 1
    assert "the certificate of k:9093 is not trusted" in said(caplog)[0]
    go.set()
    wait_until(lambda: len(said(caplog)) == 2, timeout=10, what="the exact cause")
    assert "has expired" in said(caplog)[1]


def test_a_look_that_fails_leaves_the_less_exact_cause(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever it raises."""

    def look(where: str, properties: Any) -> Cause:
        raise RuntimeError("no TLS here")

    kafka = Reachability(SERVERS, clock=clock, look=look)
    client_log = ClientLog(LOG, SERVERS, reachability=kafka)
    client_log.error(Error("_SSL", VERIFY))
    client_log.error(DOWN)
    wait_until(lambda: said(caplog), timeout=10, what="the line")
    assert "the certificate of k:9093 is not trusted" in said(caplog)[0]


def test_a_one_shot_client_has_the_reason_and_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """The error of a command carries the cause, by itself."""
    client_log = ClientLog(LOG, {"bootstrap.servers": "once:1"}, one_shot=True)
    unknown = client_log.reason(Error("_TRANSPORT", "Failed to get metadata"))
    assert unknown.startswith("no broker answered in time (Failed to get metadata): check bootstrap.servers")
    client_log.log(
        logging.INFO, "%s", "FAIL [c] [thrd:x]: once:1/1: Disconnected: closed (after 1ms in state APIVERSION_QUERY)"
    )
    client_log.remark(DOWN)
    reason = client_log.reason(Error("_TRANSPORT", "Failed to get metadata: Local: Broker transport failure"))
    assert reason.startswith("once:1 closes the connection at the first request, as a port for TLS does: set security")
    assert client_log.reason(Error("MSG_SIZE_TOO_LARGE", "too large")) == "too large"
    assert said(caplog) == []


def test_a_proxy_without_a_broker_behind_it_is_no_wrong_property(
    kafka: Reachability, caplog: pytest.LogCaptureFixture
) -> None:
    """It takes connections and closes them, as a broker does that speaks another protocol; but that worked before."""
    client_log = ClientLog(LOG, {"bootstrap.servers": "k:9093"}, reachability=kafka)
    closed = "FAIL [c] [thrd:x]: k:9093/1: Disconnected: closed (after 1ms in state APIVERSION_QUERY)"
    client_log.reachable()
    for _ in range(3):
        client_log.error(Error("_TRANSPORT", REFUSED))
        client_log.error(DOWN)
        client_log.log(logging.INFO, "%s", closed)
    assert len(said(caplog)) == 1
    assert "Connection refused" in said(caplog)[0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_begins_afresh() -> None:
    """What its parent could not reach says nothing of it, nor may a lock of the parent's be waited for."""
    properties = {"bootstrap.servers": "forked:1"}
    parent = ClientLog(LOG, properties)
    parent.error(DOWN)
    child = os.fork()
    if not child:
        os._exit(ClientLog(LOG, properties).reachability.unreachable)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert parent.reachability.unreachable


@pytest.mark.parametrize("facility", ["PARTCNT", "SESSTMOUT", "SSL"])
def test_what_is_reported_in_our_own_words_is_not_reported_in_librdkafkas(
    facility: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A right that is missing would be reported twice."""
    caplog.set_level(logging.DEBUG)
    ClientLog(LOG, {"bootstrap.servers": "reported:1"}).log(logging.WARNING, f"{facility} [x#producer-1] whatever")
    assert [each.levelno for each in caplog.records] == [logging.DEBUG]
