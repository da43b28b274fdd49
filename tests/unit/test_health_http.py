"""Health over HTTP: the pages, and a server that no client can hold up and no child inherits."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import time
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery

from celery_neli.health import part, start
from celery_neli.health.pages import NO_METRICS, Pages
from celery_neli.health.part import address_of, directory_of
from celery_neli.health.server import MOST_CONNECTIONS, PATIENCE, Server
from celery_neli.health.vitals import Report
from tests.processes import free_ports, wait_until
from tests.unit.fakes import FakeLeadership

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Serve = Callable[..., Server]

WELL = Report(hung=(), missing=(), leads=("mail",))
NOT_READY = Report(hung=(), missing=("no broker of Kafka answers",), leads=())
HUNG = Report(hung=("the loop\nhangs",), missing=(), leads=())


def answer(report: Report, path: str, *, method: str = "GET", headers: str = "") -> tuple[int, dict[str, str], str]:
    """Return status, headers and body of a page."""
    pages = Pages("web", "beat", ("leader", "mail"), lambda: report)
    head, _, body = pages.answer(f"{method} {path} HTTP/1.1\r\n{headers}\r\n".encode()).partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return int(first.split()[1]), dict(line.split(": ", 1) for line in lines), body.decode()


@pytest.mark.parametrize(
    ("report", "path", "status", "body"),
    [
        (WELL, "/livez", 200, "ok\n"),
        (WELL, "/livez?verbose", 200, "ok\n"),
        (WELL, "/readyz", 200, "ok\n"),
        (NOT_READY, "/livez", 200, "ok\n"),
        (NOT_READY, "/readyz", 503, "no broker of Kafka answers\n"),
        (HUNG, "/livez", 503, "the loop\\nhangs\n"),
        (HUNG, "/readyz", 503, "the loop\\nhangs\n"),
        (WELL, "/leader", 200, "leads mail\n"),
        (WELL, "/leader/mail", 200, "leads mail\n"),
        (WELL, "/leader?role=mail", 200, "leads mail\n"),
        (WELL, "/leader?role=leader", 503, "it does not lead leader\n"),
        (NOT_READY, "/leader", 503, "it does not lead any role\n"),
        (WELL, "/leader/%0aX", 404, "no role \\nX: there are leader, mail\n"),
        (WELL, "/", 404, "there are /livez, /readyz, /leader, /leader/ROLE and /metrics\n"),
        (WELL, "/livez/x", 404, "there are /livez, /readyz, /leader, /leader/ROLE and /metrics\n"),
        (WELL, "//[", 404, None),
    ],
)
def test_pages(report: Report, path: str, status: int, body: str | None) -> None:
    """A status for the probe, and the reason in words."""
    found, headers, text = answer(report, path)
    assert found == status or body is None
    assert body in (None, text)
    assert "Server" not in headers
    assert headers["Content-Length"] == str(len(text.encode()))


def test_json_for_those_who_ask_for_it() -> None:
    """The same, for machines."""
    _, headers, body = answer(NOT_READY, "/readyz", headers="Accept: application/json\r\n")
    assert headers["Content-Type"] == "application/json"
    assert json.loads(body) == {
        "ok": False, "why": ["no broker of Kafka answers"], "name": "web", "election": "beat", "live": True,
        "ready": False, "leads": [],
    }  # fmt: skip


def test_only_get_and_head() -> None:
    """HEAD without a body, and with the length that it would have."""
    status, headers, body = answer(WELL, "/livez", method="HEAD")
    assert (status, headers["Content-Length"], body) == (200, "3", "")
    for method in ("POST", "DELETE", "OPTIONS", "get"):
        status, headers, _ = answer(WELL, "/livez", method=method)
        assert (status, headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    "head", [b"", b"\r\n\r\n", b"\xff\xfe\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9\r\n\r\n", b"A" * 9000]
)
def test_what_is_no_request_is_refused(head: bytes) -> None:
    """With a status of 400 and above."""
    pages = Pages("web", "beat", ("leader",), lambda: WELL)
    assert int(pages.answer(head).split()[1]) >= 400


def test_metrics_when_they_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a line says what to install; a collector that fails is not the server's end."""
    name = "celery_neli.metrics.prometheus"
    monkeypatch.setitem(sys.modules, "celery_neli.metrics", ModuleType("celery_neli.metrics"))
    monkeypatch.setitem(sys.modules, name, None)
    assert answer(WELL, "/metrics")[::2] == (404, f"{NO_METRICS}\n")
    module: Any = ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    module.exposition = lambda accept: None
    assert answer(WELL, "/metrics")[::2] == (404, f"{NO_METRICS}\n")
    module.exposition = lambda accept: (f"for {accept}".encode(), "text/special")
    status, headers, body = answer(WELL, "/metrics", headers="Accept: all\r\n")
    assert (status, headers["Content-Type"], body) == (200, "text/special", "for all")
    module.exposition = lambda accept: 1 / 0
    assert answer(WELL, "/metrics")[0] == 500


@pytest.fixture
def serve() -> Iterator[Serve]:
    with ExitStack() as stack:

        def serve(port: int = 0, respond: Callable[[bytes], bytes] | None = None, *, wait: bool = True) -> Server:
            pages = Pages("web", "beat", ("leader",), lambda: WELL)
            server = Server("127.0.0.1", port, respond or pages.answer, name="web")
            stack.callback(server.stop)
            server.start()
            if wait:
                wait_until(lambda: server.address, timeout=10, what="the server")
            return server

        yield serve


def ask(server: Server, path: str = "/livez") -> int:
    assert server.address is not None
    connection = HTTPConnection(*server.address, timeout=5)
    connection.request("GET", path)
    with connection.getresponse() as response:
        assert response.read()
        connection.close()
        return response.status


def client(server: Server, data: bytes = b"") -> socket.socket:
    assert server.address is not None
    made = socket.create_connection(server.address, timeout=PATIENCE + 5)
    made.sendall(data)
    return made


def test_slow_clients_hold_up_nobody(serve: Serve) -> None:
    """However many there are: those that say nothing, and those that say a little now and then, are cut off in time."""
    server = serve()
    with ExitStack() as stack:
        slow = [stack.enter_context(client(server, b"GET /livez HT")) for _ in range(2 * MOST_CONNECTIONS)]
        assert len(sockets(server)) <= MOST_CONNECTIONS + 1  # the listening one
        for _ in range(5):
            began = time.monotonic()
            assert ask(server) == 200
            assert time.monotonic() - began < 1
        began = time.monotonic()
        last = slow[-1]
        last.settimeout(0.2)
        while time.monotonic() - began < PATIENCE + 5:
            try:
                last.sendall(b"X")
                if last.recv(1) == b"":
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        assert time.monotonic() - began < PATIENCE + 3


def test_a_request_may_come_in_pieces_and_may_be_too_long(serve: Serve) -> None:
    """Up to 8 KB."""
    server = serve()
    with client(server, b"GET /livez HTTP/1.1\r\nHo") as pieces:
        time.sleep(0.1)
        pieces.sendall(b"st: x\r\n\r\n")
        assert pieces.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")
    with client(server, b"GET /livez?" + b"x" * 8_300) as long:
        assert long.recv(12) == b"HTTP/1.1 431"


def test_a_long_answer_is_sent_to_its_end(serve: Serve) -> None:
    """While others are answered."""
    server = serve(respond=lambda head: b"x" * 10_000_000 if b"long" in head else b"short")
    with client(server, b"GET long\r\n\r\n") as long, client(server, b"GET short\r\n\r\n") as short:
        assert short.recv(10) == b"short"
        length = 0
        while more := long.recv(1_000_000):
            length += len(more)
        assert length == 10_000_000


def test_an_answer_that_fails_costs_its_connection(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """And one line with a traceback."""
    server = serve(respond=lambda head: b"ok" if b"well" in head else bytes(1 // 0))
    for _ in range(2):
        with client(server, b"GET bad\r\n\r\n") as bad:
            assert bad.recv(10) == b""
    assert caplog.messages[-1:] == ["health over HTTP: an answer failed, which is logged once"]
    assert [each.levelname for each in caplog.records].count("ERROR") == 1
    with client(server, b"GET well\r\n\r\n") as well:
        assert well.recv(10) == b"ok"


def test_a_port_that_is_taken_is_one_line(
    serve: Serve, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the server takes it when it is free: the last process may not have ended yet."""
    monkeypatch.setattr("celery_neli.health.server.BIND_AGAIN", 0.05)
    (port,) = free_ports(1)
    with caplog.at_level(logging.INFO, logger="celery_neli.health"):
        with socket.create_server(("127.0.0.1", port)):
            server = serve(port, wait=False)
            time.sleep(0.3)
            assert server.address is None
        wait_until(lambda: server.address, timeout=5, what="the server")
    assert [each.levelname for each in caplog.records] == ["ERROR", "INFO"]
    assert f"neli_http = 127.0.0.1:{port} cannot be used (Address already in use)" in caplog.messages[0]
    assert caplog.messages[1] == f"health over HTTP address=http://127.0.0.1:{port} name=web"
    assert ask(server) == 200


def test_a_stopped_server_frees_its_port_at_once(serve: Serve) -> None:
    """Within much less than the second that one wait takes."""
    server = serve()
    address = server.address
    began = time.monotonic()
    server.stop()
    server.stop()
    assert time.monotonic() - began < 0.5
    assert address is not None
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=1)


def test_a_forked_child_holds_neither_the_port_nor_a_connection(serve: Serve) -> None:
    """A pool's child lives on when its parent is killed; the next parent needs the port."""
    server = serve()
    with client(server, b"GET ") as open_one:
        time.sleep(0.2)
        held = sockets(server)
        assert len(held) == 2
        reading, writing = os.pipe()
        if (child := os.fork()) == 0:
            try:
                os.write(writing, b"free" if not held & sockets() else b"held")
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert os.read(reading, 10) == b"free"
        os.close(reading)
        os.close(writing)
        open_one.sendall(b"/livez HTTP/1.1\r\n\r\n")
        assert open_one.recv(12) == b"HTTP/1.1 200"
    assert ask(server) == 200


def sockets(server: Server | None = None) -> set[str]:
    """Return what /proc calls the sockets of this process; those of the server's side, if one is given."""
    found = set()
    for each in Path("/proc/self/fd").iterdir():
        try:
            name = str(each.readlink())
        except OSError:
            continue  # that of the directory, which is closed by now
        if name.startswith("socket:") and (server is None or is_server(each.name, server)):
            found.add(name)
    return found


def is_server(descriptor: str, server: Server) -> bool:
    """Return True if it is a socket of the server's side."""
    try:
        with socket.socket(fileno=os.dup(int(descriptor))) as found:
            return found.family == socket.AF_INET and found.getsockname() == server.address
    except OSError:
        return False


def test_where_a_process_answers_and_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its election; and nothing is started if both are off."""
    assert address_of(None, "beat") is None
    assert address_of("[::1]:80", "beat") == ("[::1]", 80)
    assert address_of({"worker": "0.0.0.0:0"}, "worker") == ("0.0.0.0", 0)
    assert address_of({"worker": "0.0.0.0:0"}, "beat") is None
    assert directory_of("") is None
    found = directory_of(None)
    assert found is not None
    assert found.name == f"celery-neli-{os.geteuid()}"
    app = Celery("shop", set_as_current=False)
    app.conf.neli_health_dir = ""
    assert start(app, FakeLeadership()) is None  # type: ignore[arg-type]

    def nowhere() -> str:
        raise FileNotFoundError(2, "No usable temporary directory")

    monkeypatch.setattr("tempfile.gettempdir", nowhere)
    assert part.directory_of(None) is None


def test_a_process_notes_and_answers_until_it_stops(tmp_path: Any) -> None:
    """All parts together."""
    app = Celery("shop", set_as_current=False)
    (port,) = free_ports(1)
    app.conf.update(neli_health_dir=str(tmp_path), neli_http=f"127.0.0.1:{port}")
    made = start(app, FakeLeadership())  # type: ignore[arg-type]
    assert made is not None
    wait_until(lambda: list(tmp_path.rglob("*.json")), timeout=5, what="the note")

    def status() -> int:
        connection = HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/livez")
            return connection.getresponse().status
        except OSError:
            return 0
        finally:
            connection.close()

    wait_until(lambda: status() == 200, timeout=5, what="an answer")
    made.stop()
    made.stop()
    assert list(tmp_path.rglob("*.json")) == []
    assert status() == 0
