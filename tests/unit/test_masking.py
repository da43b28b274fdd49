"""No secret of `neli_kafka` is shown: in Celery's reports, in a `repr`, in errors and tracebacks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from celery import Celery

from celery_neli.config import Config
from celery_neli.exceptions import ConfigurationError
from celery_neli.kafka.properties import reader_properties, validate
from celery_neli.printable import hide_from_reports, is_secret, masked, secrets_of

TASKS = Path("/proc/self/task")
SECRETS = {
    "sasl.password": "hunter-1",
    "ssl.key.password": "hunter-2",
    "ssl.keystore.password": "hunter-3",
    "ssl.key.pem": "hunter-4",
    "sasl.oauthbearer.config": "principal=shop clientId=shop clientSecret=hunter-5",
    "sasl.oauthbearer.client.secret": "hunter-6",
    "sasl.oauthbearer.client.credentials.client.secret": "hunter-7",
    "sasl.oauthbearer.assertion.private.key.passphrase": "hunter-8",
    "sasl.oauthbearer.assertion.private.key.pem": "hunter-9",
    "sasl.jaas.config": 'PlainLoginModule required password="hunter-10";',
}
PUBLIC = {"bootstrap.servers": "k:9093", "security.protocol": "SASL_SSL", "sasl.mechanism": "PLAIN"}


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_is_known_by_its_name(name: str) -> None:
    """And what else is there is not taken for one."""
    assert is_secret(name)


@pytest.mark.parametrize(
    "name",
    ["ssl.key.location", "ssl.ca.location", "sasl.username", "sasl.oauthbearer.token.endpoint.url", "acks",
     "sasl.oauthbearer.client.credentials.client.id", "sasl.oauthbearer.assertion.private.key.file"],
)  # fmt: skip
def test_what_is_no_secret_is_shown(name: str) -> None:
    """An operator needs it."""
    assert not is_secret(name)


@pytest.mark.parametrize("value", ["hunter22", b"hunter22", ["hunter22"], {"x": "hunter22"}, 22334455])
def test_secrets_of_any_type_are_masked(value: object) -> None:
    """A wrong type is no reason to show it."""
    text = masked(f"bad {value!r}", secrets_of({"sasl.password": value}))
    assert "hunter22" not in text
    assert "22334455" not in text


@pytest.mark.parametrize("nested", [False, True], ids=["top", "nested"])
def test_celerys_reports_show_none(*, nested: bool) -> None:
    """`celery report` prints the settings as text, `celery inspect conf` sends them as a table."""
    hide_from_reports()
    app = Celery("shop", set_as_current=False)
    kafka = {**PUBLIC, **SECRETS}
    app.conf.neli_kafka = {"beat": kafka} if nested else kafka
    text, table = app.bugreport(), app.conf.table(with_defaults=True, censored=True)
    assert "hunter" not in text
    assert "hunter" not in json.dumps(table["neli_kafka"])
    assert "k:9093" in text


def test_the_command_hides_them_by_itself(tmp_path) -> None:
    """In `celery report` of an app that names the beat's scheduler, and nothing else of ours."""
    (tmp_path / "shop.py").write_text(
        f"from celery import Celery\napp = Celery('shop')\napp.conf.neli_kafka = { ({**PUBLIC, **SECRETS})!r}\n"
        "app.conf.neli_group = 'g'\n"
    )
    command = [sys.executable, "-m", "celery", "-A", "shop", "report"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "neli_kafka" in done.stdout
    assert "hunter" not in done.stdout


def test_nothing_that_a_traceback_shows_holds_one() -> None:
    """Tools print the locals of every frame: a configuration, and the properties made of it."""
    config = Config(group="g", kafka={**PUBLIC, **SECRETS})
    shown = f"{config!r} {config.kafka!r} {config.properties!r} {reader_properties(config)!r}"
    assert "hunter" not in shown
    assert "k:9093" in shown


def test_servers_with_a_password_are_refused_unseen() -> None:
    """As a URL of a task broker has one; librdkafka would take it for a host."""
    for servers in ("kafka://shop:hunter22@k:9093", "shop:hunter22@k:9093", "k:1,shop:hunter22@k:9093"):
        with pytest.raises(ConfigurationError, match=r"give host:port, and sasl\.username") as raised:
            Config(group="g", kafka=servers)
        assert "hunter" not in str(raised.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"sasl.pasword": "hunter22"},
        {"ssl.key.pem": "hunter22"},
        {"ssl.key.password": "hunter22", "ssl.key.location": "/nowhere.pem"},
        {"ssl.ca.location": "/nowhere/ca.pem"},
        {"socket.timeout.ms": "hunter"},
        {"enable.ssl.certificate.verification": "maybe"},
        {"sasl.password": ""},
        {"sasl.mechanism": "SCRAM-SHA-999"},
        {"client.rack": {"a": 1}, "nonsense": 1},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_properties_that_can_never_work_are_one_line_without_secrets(wrong: dict[str, object]) -> None:
    """Found without a broker, before anything starts; it names a property that is wrong."""
    kafka = {**PUBLIC, "sasl.username": "shop", "sasl.password": "hunter22", **wrong}
    with pytest.raises(ConfigurationError) as raised:
        validate(Config(group="g", kafka=kafka))
    message = str(raised.value)
    assert message.count("\n") == 0
    assert "hunter22" not in message
    assert any(name in message for name in wrong)


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_properties_that_may_work_pass_and_leave_no_thread() -> None:
    """It contacts no broker and leaves no thread, since a worker forks afterwards."""
    before = len(list(TASKS.iterdir()))
    for _ in range(3):
        validate(Config(group="g", kafka={**PUBLIC, "sasl.username": "shop", "sasl.password": "hunter22"}))
        assert len(list(TASKS.iterdir())) <= before
