"""A real Kafka with TLS and SASL that refuses: every process and command says why, in one line with the remedy."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from celery_neli import NeliError, periodic
from celery_neli.cli import repair, resign, schedule, status
from tests.kafka.secured import Right, SecuredKafka, User
from tests.processes import free_ports, wait_until
from tests.smoke.members import members
from tests.unit.schedulers import make_app

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.smoke.members import Members, Process

pytestmark = [pytest.mark.smoke, pytest.mark.slow]


@dataclass(frozen=True)
class Trouble:
    """Properties that do not work, and what is said of them: `reason` and `remedy` are parts of the line."""

    name: str
    properties: Callable[[SecuredKafka, User], dict[str, Any]]
    reason: str
    remedy: str


def login(**change: Any) -> Callable[[SecuredKafka, User], dict[str, Any]]:
    return lambda kafka, user: {**kafka.properties(user), **{k.replace("_", "."): v for k, v in change.items()}}


def at(listener: str, **change: Any) -> Callable[[SecuredKafka, User], dict[str, Any]]:
    return lambda kafka, user: {
        **kafka.properties(user),
        "bootstrap.servers": kafka.address(listener),
        **{k.replace("_", "."): v for k, v in change.items()},
    }


def plain(listener: str, **change: Any) -> Callable[[SecuredKafka, User], dict[str, Any]]:
    return lambda kafka, _: {
        "bootstrap.servers": kafka.address(listener),
        **{k.replace("_", "."): v for k, v in change.items()},
    }


def mutual(*, trusted: bool) -> Callable[[SecuredKafka, User], dict[str, Any]]:
    def properties(kafka: SecuredKafka, user: User) -> dict[str, Any]:
        shown = kafka.client_certificate(user.name, trusted=False) if not trusted else {}
        found = kafka.properties(user, listener="SSL")
        return {**{k: v for k, v in found.items() if k[:8] not in ("ssl.cert", "ssl.key.")}, **shown}

    return properties


def ca(kafka: SecuredKafka, user: User) -> dict[str, Any]:
    return {**kafka.properties(user), "ssl.ca.location": str(kafka.other_ca_file)}


def needless(kafka: SecuredKafka, user: User) -> dict[str, Any]:
    return {**kafka.properties(user), **kafka.properties(user, listener="SSL"), "security.protocol": "SASL_SSL"}


TROUBLES = [
    Trouble("wrong password", login(sasl_password="wrong-password"), "refuses the user", "sasl.password"),
    Trouble("wrong user", login(sasl_username="stranger"), "refuses the user stranger", "sasl.username"),
    Trouble(
        "wrong password, PLAIN",
        login(sasl_mechanism="PLAIN", sasl_username="plain", sasl_password="wrong-password"),
        "refuses the user plain",
        "sasl.password",
    ),
    Trouble(
        "wrong mechanism",
        at("SASL_PLAINTEXT", security_protocol="SASL_PLAINTEXT", sasl_mechanism="SCRAM-SHA-256"),
        "does not know the mechanism SCRAM-SHA-256, only PLAIN,SCRAM-SHA-512",
        "sasl.mechanism",
    ),
    Trouble("wrong CA", ca, "is not signed by the CA in ssl.ca.location", "give the certificate of the brokers' CA"),
    Trouble("expired certificate", at("EXPIRED"), "has expired", "renew it on the broker"),
    Trouble("other host", at("OTHERHOST"), "made out to another host", "advertised.listeners"),
    Trouble("plaintext on a TLS port", plain("SASL_SSL"), "as a port for TLS does", "set security.protocol"),
    Trouble("TLS on a plaintext port", at("SASL_PLAINTEXT"), "does not speak TLS", "set security.protocol"),
    Trouble("no login", plain("SASL_PLAINTEXT"), "without a login", "sasl.mechanism"),
    Trouble("needless login", needless, "takes no login", "security.protocol to SSL"),
    Trouble("no client certificate", mutual(trusted=False), "this client's certificate", "ssl.certificate.location"),
    Trouble("foreign client certificate", mutual(trusted=True), "this client's certificate", "ssl.key.location"),
    Trouble(
        "unresolvable", lambda *_: {"bootstrap.servers": "-.invalid:9092"}, "resolve", "spelling in bootstrap.servers"
    ),
    Trouble(
        "refused", lambda *_: {"bootstrap.servers": f"127.0.0.1:{free_ports(1)[0]}"}, "refused", "that Kafka runs there"
    ),
]
HOPELESS = [
    Trouble("missing CA file", login(ssl_ca_location="/nowhere/ca.pem"), "'/nowhere/ca.pem'", "give the path"),
    Trouble("no CA", login(ssl_ca_location=__file__), "ssl.ca.location", "no certificate"),
    Trouble("misspelt property", login(ssl_ca_locaton="x"), "'ssl.ca.locaton'", "did you mean ssl.ca.location?"),
    Trouble("wrong value", login(socket_timeout_ms="soon"), "socket.timeout.ms = 'soon'", "Invalid value"),
    Trouble("no password", login(sasl_password=""), "neli_kafka lacks sasl.password", "needs both"),
    Trouble("unknown mechanism", login(sasl_mechanism="SCRAM-SHA-999"), "sasl.mechanism = SCRAM-SHA-999", "use PLAIN"),
]


def named(troubles: list[Trouble]) -> Any:
    return pytest.mark.parametrize("trouble", troubles, ids=[each.name for each in troubles])


@pytest.fixture
def user(names: Callable[[str], str], secured_kafka: SecuredKafka) -> User:
    return secured_kafka.create_user(names("user")[-40:])  # a certificate's name is short


@pytest.fixture
def election(tmp_path: Path, names: Callable[[str], str]) -> Iterator[Members]:
    beat_schedule = {"tick": {"task": "smoke.tick", "schedule": 1.0}}
    with members(tmp_path, neli_group=names("g"), broker_url="memory://", beat_schedule=beat_schedule) as started:
        yield started


def complaints(member: Process) -> list[str]:
    """The lines of its log from WARNING on, but those of Celery's own."""
    lines = re.findall(r"^\[[^\]]*: (?:WARNING|ERROR|CRITICAL)/[^\]]*\] (.*)$", member.log, re.MULTILINE)
    return [line for line in lines if not line.startswith(("No hostname", "You're running"))]


def answers(kafka: dict[str, Any], group: str) -> dict[str, str]:
    """What each command says that could not work."""
    app = make_app(neli_group=group, neli_kafka=kafka, neli_scheduler=None)
    said = {}
    commands: dict[str, tuple[Any, list[str]]] = {
        "status": (status, []),
        "resign": (resign, []),
        "repair": (repair, []),
        "list": (schedule, ["list"]),
        "add": (schedule, ["add", "e", "t", "PT1M"]),
    }
    for name, (command, arguments) in commands.items():
        done = CliRunner().invoke(command, arguments, obj=SimpleNamespace(app=app), catch_exceptions=False)
        assert done.exit_code == 1, name
        said[name] = done.output.strip()
    done = CliRunner().invoke(status, ["--json"], obj=SimpleNamespace(app=app), catch_exceptions=False)
    assert done.exit_code == 1
    said["json"] = json.loads(done.output)["error"]
    with pytest.raises(NeliError) as raised:
        periodic.put(app, "e", "t", 60)
    said["put"] = str(raised.value)
    return said


@named(TROUBLES)
def test_what_kafka_refuses_is_told_once_with_the_remedy(
    trouble: Trouble, election: Members, user: User, secured_kafka: SecuredKafka
) -> None:
    """By a beat, by a worker, by every command, in `status --json` and in `NeliError`; and never the password."""
    kafka = trouble.properties(secured_kafka, user)
    election.settings["neli_kafka"] = kafka
    beat, worker = election.beat(), election.worker("-P", "solo", name="worker")
    for name, text in answers(kafka, election.group).items():
        assert trouble.reason in text, name
        assert trouble.remedy in text, name
        assert len(text.splitlines()) == 1, name
        assert "wrong-password" not in text, name
    for member in (beat, worker):
        wait_until(lambda member=member: trouble.reason in member.log, timeout=60, what=f"the line of {member.name}")
        found = complaints(member)
        assert len(found) == 1, found
        line = found[0]
        assert line.startswith("kafka unreachable servers=")
        assert trouble.reason in line
        assert trouble.remedy in line
        assert "wrong-password" not in member.log
        assert "Traceback" not in member.log
        assert member.alive


@named(HOPELESS)
def test_what_can_never_work_ends_everything_at_its_start(
    trouble: Trouble, election: Members, user: User, secured_kafka: SecuredKafka
) -> None:
    """With one line and no traceback, before a broker is asked."""
    kafka = trouble.properties(secured_kafka, user)
    election.settings["neli_kafka"] = kafka
    started = election.beat(), election.worker("-P", "solo", name="worker")
    for name, text in answers(kafka, election.group).items():
        assert trouble.reason in text, name
        assert trouble.remedy in text, name
        assert len(text.splitlines()) == 1, name
    for member in started:
        assert member.wait_end() == 1
        (line,) = [line for line in member.log.splitlines() if "neli_kafka" in line]
        assert line.startswith("Error: neli_kafka ")
        assert trouble.reason in line
        assert trouble.remedy in line
        assert "Traceback" not in member.log
        assert user.password not in member.log


def test_a_member_goes_on_by_itself_once_the_password_is_right(
    election: Members, user: User, secured_kafka: SecuredKafka
) -> None:
    """The operator mends it in Kafka; nothing is restarted, and one line says that it works."""
    topic = f"{election.group}.beat.neli"
    rights = [Right(operation, "topic", topic) for operation in ("Create", "Read", "Write", "DescribeConfigs")]
    rights += [Right(each.operation, "topic", f"{topic}.schedule") for each in rights]
    secured_kafka.grant(user, *rights, Right("Read", "group", f"{election.group}.beat"))
    later = User(user.name, "the-right-one")
    election.settings["neli_kafka"] = secured_kafka.properties(later)
    beat = election.beat(neli_alarms=False)  # they need a topic of their own, and say so
    wait_until(lambda: "kafka unreachable" in beat.log, timeout=60, what="the line")
    secured_kafka.set_password(later)
    wait_until(lambda: "leadership acquired" in beat.log, timeout=60, what="a leader")
    assert beat.log.count("kafka unreachable") == beat.log.count("kafka reachable again") == 1
    assert len(complaints(beat)) == 1


@pytest.mark.parametrize(
    ("listener", "mechanism"),
    [("SASL_SSL", "SCRAM-SHA-256"), ("SASL_SSL", "SCRAM-SHA-512"), ("SASL_PLAINTEXT", "SCRAM-SHA-512"), ("SSL", "")],
)
def test_what_is_right_works(
    listener: str, mechanism: str, names: Callable[[str], str], user: User, secured_kafka: SecuredKafka
) -> None:
    """A login over TLS and without, and a certificate in its place, which names the same user."""
    group = names("g")
    secured_kafka.grant(
        user, *(Right(each, "topic", f"{group}.beat.neli.schedule") for each in ("Create", "Read", "Write"))
    )
    kafka = secured_kafka.properties(user, listener=listener, mechanism=mechanism)
    app = make_app(neli_group=group, neli_kafka=kafka, neli_scheduler=None)
    periodic.put(app, "e", "t", 60)
    assert [each.name for each in periodic.list(app)] == ["e"]
