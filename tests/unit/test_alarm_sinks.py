"""What services outside are told of slots and alarms: Sentry's transport and HTTP servers of the test's own take it."""

from __future__ import annotations

import json
import logging
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
import sentry_sdk
from celery import Celery
from celery.schedules import crontab, schedule, solar
from sentry_sdk.integrations.celery import CeleryIntegration
from sentry_sdk.transport import Transport

from celery_neli import hooks
from celery_neli.alarms import Alarms, make_sinks
from celery_neli.alarms.http import ping_url, slug
from celery_neli.alarms.overdue import Alarm
from celery_neli.alarms.sentry import monitor_config
from celery_neli.alarms.sink import MOST_QUEUED, Sink
from celery_neli.exceptions import ConfigurationError
from celery_neli.hooks import RunEvent
from celery_neli.schedule.slots import id_at
from celery_neli.settings import SETTINGS
from tests.processes import wait_until
from tests.unit.beats import START, Crash, World

if TYPE_CHECKING:
    from collections.abc import Iterator

SLOT = 1_800_000_000.0


class Captured(Transport):
    """sentry-sdk's transport, kept in memory."""

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.check_ins: list[dict[str, Any]] = []

    def capture_envelope(self, envelope: Any) -> None:
        for item in envelope.items:
            if item.headers.get("type") == "check_in":
                self.check_ins.append(item.payload.json)


@pytest.fixture
def sentry() -> Iterator[Captured]:
    transport = Captured()
    sentry_sdk.init(dsn="http://key@127.0.0.1:9/1", transport=transport, default_integrations=False)
    yield transport
    sentry_sdk.init(default_integrations=False)


def app_with(group: str = "g", **settings: Any) -> Celery:
    made = Celery("sinks", set_as_current=False)
    made.conf.update(neli_group=group, timezone="UTC", **settings)
    return made


@contextmanager
def running(app: Celery) -> Iterator[Alarms]:
    """The sinks of one process."""
    alarms = Alarms(app, make_sinks(app))
    try:
        yield alarms
    finally:
        alarms.stop()


def run(entry: str, slot: float, state: str, **more: Any) -> RunEvent:
    return RunEvent(entry=entry, task="t", slot=slot, id="5b9ad6f0-0000-0000-0000-000000000000", state=state,
                    worker="w", **more)  # fmt: skip


def alarm(entry: str = "nightly", **more: Any) -> Alarm:
    fields = {
        "kind": "slot_overdue", "task": "t", "slot": SLOT, "id": None, "reason": "not_sent", "deadline": SLOT + 60,
        "allowance": 60.0, **more,
    }  # fmt: skip
    return Alarm(entry=entry, **fields)


def statuses(sentry: Captured, entry: str) -> list[str]:
    return [each["status"] for each in sentry.check_ins if each["monitor_slug"] == entry]


# -- Sentry --


def test_a_slot_is_one_check_in_through_a_failover_in_doubt_a_retry_success_and_failure(sentry: Captured) -> None:
    """The leader is killed when the message has left; its successor sends it again."""
    world = World({"good": 60.0, "bad": 60.0})
    killed: list[str] = []

    def kill(entry: str) -> None:
        if entry == "good" and not killed:
            killed.append(entry)
            raise Crash

    world.after_wire = kill
    with running(app_with("test", neli_sentry_crons=True)):
        world.leader()
        world.ticks(until=61.0)
        assert world.beats[0].dead
        world.leader()
        world.ticks(until=65.0)
        assert world.doubled() == {("good", 60.0): 2}
        slot = START + 60
        for state in ("started", "retried", "started", "retried", "started", "succeeded"):
            hooks.run(run("good", slot, state, runtime=0.5 if state == "succeeded" else None))
        for state in ("started", "retried", "started", "failed"):
            hooks.run(run("bad", slot, state, error="ValueError: no"))
        wait_until(lambda: len(sentry.check_ins) >= 4, timeout=5, what="all check-ins")
    assert statuses(sentry, "good")[-1] == "ok"
    assert set(statuses(sentry, "good")) == {"in_progress", "ok"}
    assert statuses(sentry, "bad")[-1] == "error"
    ids = {(each["monitor_slug"], each["check_in_id"]) for each in sentry.check_ins}
    assert ids == {(name, UUID(id_at("test.beat", name, slot)).hex) for name in ("good", "bad")}
    assert {each.id for each in world.sent if each.entry == "good"} == {id_at("test.beat", "good", slot)}
    first = next(each for each in sentry.check_ins if each["monitor_slug"] == "good")
    assert first["monitor_config"]["schedule"] == {"type": "interval", "value": 1, "unit": "minute"}
    assert next(each for each in sentry.check_ins if each["status"] == "ok")["duration"] == 0.5


def test_an_overdue_slot_is_an_error_of_the_same_check_in(sentry: Captured) -> None:
    app = app_with(neli_sentry_crons=True)
    with running(app) as alarms:
        alarms.raised(alarm(schedule=crontab(minute="0", hour="3", app=app)))
        wait_until(lambda: sentry.check_ins, timeout=5, what="a check-in")
    (found,) = sentry.check_ins
    assert (found["status"], found["monitor_slug"]) == ("error", "nightly")
    assert found["check_in_id"] == UUID(id_at("g.beat", "nightly", SLOT)).hex
    assert found["monitor_config"] == {"schedule": {"type": "crontab", "value": "0 3 * * *"}, "timezone": "UTC"}


def test_monitors_are_those_that_sentrys_own_integration_makes() -> None:
    from sentry_sdk.integrations.celery.beat import _get_monitor_config

    app = app_with(enable_utc=True)
    kinds = (
        crontab(minute="*/5", app=app), crontab(hour="1,2", day_of_week="mon-fri", app=app), schedule(60, app=app),
        schedule(300, app=app), schedule(7200, app=app), schedule(86_400, app=app), schedule(3660, app=app),
    )  # fmt: skip
    for when in kinds:
        theirs = json.loads(json.dumps(_get_monitor_config(when, app, "e"), default=str))
        assert monitor_config(when, app) == theirs
    for when in (schedule(30, app=app), schedule(90, app=app), solar("sunset", 50, 8, app=app)):
        assert monitor_config(when, app) is None
        assert _get_monitor_config(when, app, "e") == {}


def test_a_schedule_that_sentry_does_not_know_has_no_check_ins_and_one_line(
    sentry: Captured, caplog: pytest.LogCaptureFixture
) -> None:
    app = app_with(neli_sentry_crons=True)
    with running(app) as alarms:
        for _ in range(3):
            alarms.raised(alarm("often", schedule=schedule(10, app=app)))
        alarms.raised(alarm("nightly", schedule=schedule(60, app=app)))
        wait_until(lambda: sentry.check_ins, timeout=5, what="the other one's")
    assert [each["monitor_slug"] for each in sentry.check_ins] == ["nightly"]
    assert caplog.text.count("entry=often has no monitor in Sentry") == 1


def test_sentrys_own_beat_integration_beside_it_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    transport = Captured()
    celery = CeleryIntegration(monitor_beat_tasks=True)
    sentry_sdk.init(dsn="http://key@127.0.0.1:9/1", transport=transport, default_integrations=False)
    sentry_sdk.get_client().integrations["celery"] = celery
    try:
        with running(app_with(neli_sentry_crons=True)) as alarms:
            alarms.raised(alarm())
            wait_until(lambda: transport.check_ins, timeout=5, what="a check-in")
    finally:
        sentry_sdk.init(default_integrations=False)
    assert caplog.text.count("monitor_beat_tasks=True beside neli_sentry_crons") == 1


def test_a_process_that_did_not_set_sentry_up_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    sentry_sdk.init(default_integrations=False)
    with running(app_with(neli_sentry_crons=True)) as alarms:
        for _ in range(5):
            alarms.raised(alarm())
    assert caplog.text.count("sentry_sdk.init was not called in this process") == 1


# -- HTTP --


class Server:
    """Answers requests, with 200 or with what `answers` holds, and keeps them."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, bytes]] = []
        self.answers: list[int] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                outer.requests.append((self.command, self.path, body))
                self.send_response(outer.answers.pop(0) if outer.answers else 200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.server.serve_forever)
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def test_healthchecks_is_pinged_with_one_run_id_from_start_to_end(server: Server) -> None:
    app = app_with(neli_healthchecks=f"{server.url}/key/{{slug}}?create=1")
    with running(app) as alarms:
        for state in ("started", "retried", "started", "succeeded"):
            hooks.run(run("Nightly report (EU)", SLOT, state))
        hooks.run(run("Nightly report (EU)", SLOT + 60, "failed", error="ValueError: no"))
        alarms.raised(alarm("Nightly report (EU)", slot=SLOT + 120))
        wait_until(lambda: len(server.requests) == 5, timeout=5, what="all pings")
    one, two, three = (id_at("g.beat", "Nightly report (EU)", SLOT + more) for more in (0, 60, 120))
    base = "/key/nightly-report-eu"
    assert [path for _, path, _ in server.requests] == [
        f"{base}/start?create=1&rid={one}",
        f"{base}/start?create=1&rid={one}",
        f"{base}?create=1&rid={one}",
        f"{base}/fail?create=1&rid={two}",
        f"{base}/fail?create=1&rid={three}",
    ]
    assert server.requests[3][2] == b"ValueError: no"
    assert server.requests[4][2] == b"slot overdue: not sent"


def test_the_webhook_gets_each_alarm_as_json_and_nothing_else(server: Server) -> None:
    with running(app_with(neli_webhook=f"{server.url}/hook")) as alarms:
        hooks.run(run("nightly", SLOT, "failed"))
        alarms.raised(alarm(error="OperationalError", reason="failed", schedule=object()))
        wait_until(lambda: server.requests, timeout=5, what="a request")
    ((_, path, body),) = server.requests
    assert path == "/hook"
    assert json.loads(body) == {
        "group": "g.beat", "kind": "slot_overdue", "entry": "nightly", "task": "t", "slot": SLOT,
        "id": None, "reason": "failed", "deadline": SLOT + 60, "allowance": 60.0, "count": 1,
        "error": "OperationalError", "worker": "", "started": None,
    }  # fmt: skip


def test_a_service_that_is_busy_is_asked_again(server: Server) -> None:
    server.answers = [503, 429]
    with running(app_with(neli_webhook=server.url)) as alarms:
        alarms.raised(alarm())
        wait_until(lambda: len(server.requests) == 3, timeout=5, what="three tries")
    assert server.answers == []


def test_a_refusal_is_logged_once_without_the_address_and_not_repeated(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.answers = [404] * 20
    with running(app_with(neli_webhook=f"{server.url}/T0/secret")) as alarms:
        for _ in range(5):
            alarms.raised(alarm())
        wait_until(lambda: len(server.requests) == 5, timeout=5, what="all")
    lines = [each for each in caplog.text.splitlines() if "did not take a report" in each]
    assert len(lines) == 1
    assert "status=404" in lines[0]
    assert "secret" not in caplog.text


def test_a_service_that_is_away_costs_one_line_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    with running(app_with(neli_webhook="http://127.0.0.1:9/T0/secret")) as alarms:
        alarms.raised(alarm())
        wait_until(lambda: "did not take a report" in caplog.text, timeout=10, what="a line")
    assert "secret" not in caplog.text


@pytest.mark.parametrize("name", ["a/b?c", "…", "Ü", "x" * 300])
def test_any_name_makes_an_address(name: str) -> None:
    made = ping_url("https://hc-ping.com/key/{slug}", name, "/start", "id")
    assert made == f"https://hc-ping.com/key/{slug(name)}/start?rid=id"
    assert slug(name).isascii()


def test_the_address_of_healthchecks_must_have_a_place_for_the_slug() -> None:
    with pytest.raises(ConfigurationError, match=r"\{slug\}"):
        SETTINGS["neli_healthchecks"].checked("https://hc-ping.com/key")


# -- any sink --


def test_a_slow_service_delays_nothing_and_what_does_not_fit_is_dropped_with_a_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    goes_on, taken = threading.Event(), []

    def deliver(report: Any) -> None:
        goes_on.wait(10)
        taken.append(report)

    sink = Sink("slow", deliver, frozenset({"overdue"}))
    alarms = Alarms(app_with(), [sink])
    with caplog.at_level(logging.WARNING):
        for _ in range(MOST_QUEUED + 100):
            alarms.raised(alarm())
        goes_on.set()
        wait_until(lambda: len(taken) >= MOST_QUEUED, timeout=5, what="the rest")
    alarms.stop()
    assert len(taken) <= MOST_QUEUED + 1
    assert "slow is too slow: reports dropped" in caplog.text


def test_whatever_a_client_raises_costs_one_report_and_one_line_without_its_text(
    caplog: pytest.LogCaptureFixture,
) -> None:
    taken: list[Any] = []

    def deliver(report: Any) -> None:
        taken.append(report)
        if len(taken) < 4:
            raise ValueError("https://host/secret")

    alarms = Alarms(app_with(), [Sink("fragile", deliver, frozenset({"overdue"}))])
    for _ in range(5):
        alarms.raised(alarm())
    wait_until(lambda: len(taken) == 5, timeout=5, what="all five")
    alarms.stop()
    assert caplog.text.count("alarms: fragile did not take a report: ValueError") == 1
    assert "secret" not in caplog.text


def test_a_missing_library_costs_its_sink_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, sentry: Captured
) -> None:
    import importlib

    from celery_neli.alarms import http

    def without(name: str) -> Any:
        if name == "urllib3":
            raise ImportError(name)
        return importlib.import_module(name)

    monkeypatch.setattr(http, "import_module", without)
    with running(app_with(neli_webhook="http://127.0.0.1:9", neli_sentry_crons=True)) as alarms:
        assert [each.name for each in alarms.sinks] == ["sentry"]
    assert 'neli_webhook needs urllib3: pip install "celery-neli[http]"' in caplog.text


def test_a_process_without_sinks_adds_no_receiver() -> None:
    with running(app_with()):
        assert not hooks.slot
        assert not hooks.run
    with running(app_with(neli_webhook="http://127.0.0.1:9")):
        assert hooks.run
    assert not hooks.run
