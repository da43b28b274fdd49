"""The pages that a process answers over HTTP: `/livez`, `/readyz`, `/leader` and `/metrics`, for GET and HEAD only."""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

from celery_neli.health.vitals import Report
from celery_neli.logs import escaping
from celery_neli.printable import printable

TEXT: Final = "text/plain; charset=utf-8"
JSON: Final = "application/json"
METHODS: Final = ("GET", "HEAD")
NO_METRICS: Final = 'no metrics here: pip install "celery-neli[metrics]" in the environment of this process'
_METRICS: Final = "celery_neli.metrics.prometheus"

logger = escaping(logging.getLogger(__name__))


class Request(BaseHTTPRequestHandler):
    """The head of a request, read by Python's own parser. `refusal` is the status for one that is none, else None."""

    def __init__(self, head: bytes) -> None:
        self.refusal: int | None = None
        self.rfile = BytesIO(head)
        self.raw_requestline = self.rfile.readline()
        self.close_connection = True
        if not self.parse_request() and self.refusal is None:
            self.refusal = HTTPStatus.BAD_REQUEST

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Note the status; the parser calls it."""
        self.refusal = code

    def handle_expect_100(self) -> bool:
        """Ask for no body."""
        return True

    @property
    def wants_json(self) -> bool:
        """True if the client would rather have JSON than text."""
        return JSON in (self.headers.get("Accept") or "")


class Pages:
    """Answers requests from a process's report. For one thread; waits for nothing."""

    def __init__(self, name: str, election: str, roles: Sequence[str], report: Callable[[], Report]) -> None:
        self._name, self._election, self._roles, self._report = name, election, roles, report
        self._metrics: Any = None
        self._failed = False

    def answer(self, head: bytes) -> bytes:
        """Return the response to the request that begins so, ready to be sent. The connection is to be closed then."""
        if b"\r\n\r\n" not in head and b"\n\n" not in head:
            return _response(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, TEXT, "the request is too long\n")
        request = Request(head)
        if request.refusal is not None:
            return _response(request.refusal, TEXT, f"{HTTPStatus(request.refusal).phrase}\n")
        if request.command not in METHODS:
            return _response(HTTPStatus.METHOD_NOT_ALLOWED, TEXT, "use GET or HEAD\n", extra="Allow: GET, HEAD\r\n")
        return _response(*self._page(request), with_body=request.command == "GET")

    def _page(self, request: Request) -> tuple[int, str, str | bytes]:
        try:
            parts = urlsplit(request.path)
        except ValueError:
            return HTTPStatus.BAD_REQUEST, TEXT, "this is no path\n"
        path, _, role = parts.path[1:].partition("/")
        if path == "leader":
            given = unquote(role) or (parse_qs(parts.query).get("role") or [""])[-1]
            return self._leader(request, given)
        pages = {"livez": self._live, "readyz": self._ready, "metrics": self._exposition}
        if role or path not in pages:
            return HTTPStatus.NOT_FOUND, TEXT, "there are /livez, /readyz, /leader, /leader/ROLE and /metrics\n"
        return pages[path](request)

    def _live(self, request: Request) -> tuple[int, str, str | bytes]:
        report = self._report()
        return self._verdict(request, report, ok=report.live, why=report.hung)

    def _ready(self, request: Request) -> tuple[int, str, str | bytes]:
        report = self._report()
        return self._verdict(request, report, ok=report.ready, why=(*report.hung, *report.missing))

    def _leader(self, request: Request, role: str) -> tuple[int, str, str | bytes]:
        if role and role not in self._roles:
            return HTTPStatus.NOT_FOUND, TEXT, f"no role {printable(role)}: there are {', '.join(self._roles)}\n"
        report = self._report()
        leads = role in report.leads if role else bool(report.leads)
        return self._verdict(
            request, report, ok=leads, why=(f"it does not lead {role or 'any role'}",),
            said=f"leads {', '.join(report.leads)}",
        )  # fmt: skip

    def _verdict(
        self, request: Request, report: Report, *, ok: bool, why: Sequence[str], said: str = "ok"
    ) -> tuple[int, str, str]:
        status = HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE
        if not request.wants_json:
            return status, TEXT, "".join(f"{printable(each, 1_000)}\n" for each in ([said] if ok else why))
        body = {
            "ok": ok, "why": [] if ok else list(why), "name": self._name, "election": self._election,
            "live": report.live, "ready": report.ready, "leads": list(report.leads),
        }  # fmt: skip
        return status, JSON, json.dumps(body) + "\n"

    def _exposition(self, request: Request) -> tuple[int, str, str | bytes]:
        try:
            if self._metrics is None:
                self._metrics = importlib.import_module(_METRICS)
            found: tuple[bytes, str] | None = self._metrics.exposition(request.headers.get("Accept") or "")
        except ImportError:
            found = None
        except Exception:
            if not self._failed:
                self._failed = True
                logger.exception("metrics cannot be shown, which is logged once")
            return HTTPStatus.INTERNAL_SERVER_ERROR, TEXT, "metrics cannot be shown: the log of this process has why\n"
        if found is None:
            return HTTPStatus.NOT_FOUND, TEXT, f"{NO_METRICS}\n"
        return HTTPStatus.OK, found[1], found[0]


def _response(status: int, kind: str, body: str | bytes, *, with_body: bool = True, extra: str = "") -> bytes:
    content = body if isinstance(body, bytes) else body.encode("utf-8", "backslashreplace")
    head = (
        f"HTTP/1.1 {int(status)} {HTTPStatus(status).phrase}\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {len(content)}\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n"
        f"{extra}Connection: close\r\n\r\n"
    )
    return head.encode("latin-1") + (content if with_body else b"")
